//! A build from its request to its outcome. Start at [`run`].

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use harmonia_nix::derivation::DerivationOutput;
use harmonia_nix::worker_protocol::BuildStatus;
use harmonia_sandbox::{BuilderRun, End, Network, SandboxSpec};
use tokio_util::sync::CancellationToken;

use super::attributes::{Attributes, rejected};
use super::builtin;
use super::environment::{World, environment};
use super::outputs::{Collection, collect};
use super::place::{Place, lease};
use super::process::{self, Ended};
use super::tree::remove_tree;
use super::{BuildFailure, BuildLog, BuildOutcome, BuildRequest, BuiltPath, Usage};

/// When less is free than this, a failure may be due to it.
const LITTLE_SPACE_BYTES: u64 = 8 << 20;

/// Builds a derivation. `log` hears everything while it happens, so it should be quick. After cancelling, every process of
/// the build is dead when this returns.
pub async fn run(
    request: BuildRequest,
    mut log: impl FnMut(BuildLog<'_>) + Send,
    cancel: CancellationToken,
) -> BuildOutcome {
    let mut usage = Usage::default();
    let result = build(Arc::new(request), &mut log, &cancel, &mut usage).await;
    BuildOutcome { result, usage }
}

async fn build(
    request: Arc<BuildRequest>,
    log: &mut (impl FnMut(BuildLog<'_>) + Send),
    cancel: &CancellationToken,
    usage: &mut Usage,
) -> Result<Vec<BuiltPath>, BuildFailure> {
    let preparing = Arc::clone(&request);
    let (place, spec) = blocking(move || prepare(&preparing)).await?;
    let place = Arc::new(place);
    let ended = process::run(&spec, &request.options, request.drv_path.as_str(), log, cancel).await;
    let outcome = match ended {
        Err(failure) => Err(failure),
        Ok(ended) => {
            *usage = ended.usage;
            if let Err(failure) = judge(&request, &place, &ended) {
                Err(failure)
            } else {
                let (request, place, cancel) = (Arc::clone(&request), Arc::clone(&place), cancel.clone());
                blocking(move || take_outputs(&request, &place, &cancel)).await
            }
        }
    };
    let keep = outcome.is_err() && request.options.keep_failed && !is_builtin(&request);
    if keep {
        log(BuildLog::Note(&format!("note: keeping build directory '{}'", place.build_dir.display())));
    }
    let cleaning = Arc::clone(&request);
    let cleaned = blocking(move || Ok(clean(&cleaning, &place, keep))).await?;
    if let Err(error) = cleaned {
        tracing::warn!(derivation = %request.drv_path, %error, "could not remove what the build of {} left", request.drv_path);
    }
    outcome
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BuildFailure> + Send + 'static,
) -> Result<T, BuildFailure> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(error) => Err(BuildFailure::machine("build", error)),
    }
}

fn is_builtin(request: &BuildRequest) -> bool {
    request.derivation.builder.starts_with(b"builtin:")
}

fn prepare(request: &BuildRequest) -> Result<(Place, SandboxSpec), BuildFailure> {
    let attributes = Attributes::of(request)?;
    let is_fixed = request.derivation.outputs.values().any(|output| matches!(output, DerivationOutput::Fixed { .. }));
    let place = Place::prepare(request, &attributes, is_fixed, lease(request)?)?;
    let prepared = describe(request, &attributes, &place);
    if prepared.is_err() {
        let _the_reason_is_told = clean(request, &place, false);
    }
    prepared.map(|spec| (place, spec))
}

fn describe(request: &BuildRequest, attributes: &Attributes<'_>, place: &Place) -> Result<SandboxSpec, BuildFailure> {
    let environment = environment(&World {
        request,
        attributes,
        is_fixed: place.is_fixed,
        top: &place.top,
        outputs: &place.scratch,
        rewrites: &place.rewrites,
        proxy: place.proxy(),
    })?;
    place.fill(&environment)?;
    let derivation = &request.derivation;
    let run = if is_builtin(request) {
        builtin::prepare(request, &place.rewrites, place.proxy()).map_err(rejected)?
    } else {
        let path = derivation.builder.as_slice();
        let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or(path);
        BuilderRun::Program {
            path: path.into(),
            arg0: name.into(),
            args: derivation.args.iter().map(|argument| place.rewrites.apply(argument).into()).collect(),
        }
    };
    Ok(place.spec(request, environment, run))
}

/// Whether the builder did its work.
fn judge(request: &BuildRequest, place: &Place, ended: &Ended) -> Result<(), BuildFailure> {
    let (how, exit_code, signal) = match &ended.end {
        End::Exited(0) => return Ok(()),
        End::Exited(code) => (format!("failed with exit code {code}"), Some(*code), None),
        End::Signalled(signal) => {
            (format!("failed due to signal {signal} ({})", signal_name(*signal)), None, Some(*signal))
        }
        End::Stopped => ("was stopped".to_owned(), None, None),
        End::NotSetUp(reason) => {
            let where_to = if place.sandboxed { "in a sandbox" } else { "without a sandbox" };
            return Err(BuildFailure::new(
                BuildStatus::MiscFailure,
                format!("could not run the builder of '{}' {where_to}: {reason}", request.drv_path),
            ));
        }
    };
    let mut message = format!("builder for '{}' {how}", request.drv_path);
    if !ended.tail.is_empty() {
        let _never_fails = writeln!(message, ";\nlast {} log lines:", ended.tail.len());
        for line in &ended.tail {
            let _never_fails = writeln!(message, "> {line}");
        }
        let _never_fails = write!(message, "For full logs, run 'nix log {}'.", request.drv_path);
    }
    let is_full = [&request.store_dir, &place.build_dir].into_iter().any(|path| is_full(path));
    if is_full {
        message += "\nnote: build failure may have been caused by lack of free disk space";
    }
    let again = is_full || place.is_fixed;
    let status = if again { BuildStatus::TransientFailure } else { BuildStatus::PermanentFailure };
    Err(BuildFailure { exit_code, signal, ..BuildFailure::new(status, message) })
}

fn is_full(path: &Path) -> bool {
    rustix::fs::statvfs(path).is_ok_and(|space| space.f_bavail.saturating_mul(space.f_frsize) < LITTLE_SPACE_BYTES)
}

fn take_outputs(
    request: &BuildRequest,
    place: &Place,
    cancel: &CancellationToken,
) -> Result<Vec<BuiltPath>, BuildFailure> {
    let attributes = Attributes::of(request)?;
    // Without a sandbox nothing keeps an ordinary user from its own files; whoever shares a network namespace with the
    // host may have sent descriptors anywhere.
    let by_other_user = place.lease.is_some();
    let reachable = if place.sandboxed { place.network == Network::Host } else { by_other_user };
    let cancelled = || cancel.is_cancelled();
    collect(&Collection {
        request,
        attributes: &attributes,
        scratch: &place.scratch,
        left_in: &place.left_in,
        rewrites: &place.output_rewrites,
        made_by: place.lease.as_ref().map(|lease| lease.user.uid),
        reachable,
        cancelled: &cancelled,
    })
}

/// Removes what is of no use any more: all but the outputs.
fn clean(request: &BuildRequest, place: &Place, keep_build_dir: bool) -> std::io::Result<()> {
    let build_dir = if keep_build_dir {
        std::fs::set_permissions(&place.build_dir, std::os::unix::fs::PermissionsExt::from_mode(0o755))
    } else {
        remove_tree(&place.build_dir)
    };
    let store = remove_tree(&request.staging.join("store"));
    let tmp = remove_tree(&request.staging.join("tmp"));
    place.remove_scratch().and(build_dir).and(store).and(tmp)
}

/// What `strsignal` says.
fn signal_name(signal: i32) -> &'static str {
    match signal {
        1 => "Hangup",
        2 => "Interrupt",
        3 => "Quit",
        4 => "Illegal instruction",
        5 => "Trace/breakpoint trap",
        6 => "Aborted",
        7 => "Bus error",
        8 => "Floating point exception",
        9 => "Killed",
        10 => "User defined signal 1",
        11 => "Segmentation fault",
        12 => "User defined signal 2",
        13 => "Broken pipe",
        14 => "Alarm clock",
        15 => "Terminated",
        24 => "CPU time limit exceeded",
        25 => "File size limit exceeded",
        31 => "Bad system call",
        _ => "Unknown signal",
    }
}
