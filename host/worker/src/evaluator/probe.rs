//! What is found out once, at start: programs, the store, whether the sandbox works. Start at [`prepare`].

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use harmonia_nix::STORE_DIR;

use super::engine::{Confinement, Engine, EngineError, tells_what_runs};
use super::source::{Mirrors, PinnedFlake};
use super::upstream::Upstream;
use super::{EngineChoice, EvaluatorError, EvaluatorOptions, Settings};
use crate::git::way::egress;
use crate::store_daemon::StoreDaemon;

/// Where programs are looked for besides `PATH`, which a service often has a bare one of.
const USUAL_DIRECTORIES: [&str; 4] =
    ["/usr/local/bin", "/usr/bin", "/run/current-system/sw/bin", "/nix/var/nix/profiles/default/bin"];

/// A program that says nothing about its version within this time has none.
const VERSION_TIMEOUT: Duration = Duration::from_secs(10);
/// As the database has it.
const ENGINE_ID_CHARS_MAX: usize = 1_000;

/// Checks everything that an evaluation needs of the machine.
pub(super) async fn prepare(options: EvaluatorOptions) -> Result<Settings, EvaluatorError> {
    for name in ["tmp", "mirrors", "home"] {
        let dir = options.state_dir.join(name);
        // What an earlier process left half done.
        if name == "tmp" && dir.exists() {
            std::fs::remove_dir_all(&dir).map_err(|cause| EvaluatorError::State { dir: dir.clone(), cause })?;
        }
        std::fs::create_dir_all(&dir).map_err(|cause| EvaluatorError::State { dir, cause })?;
    }
    let git = find("git")?;
    let nix_instantiate = find("nix-instantiate")?;
    // Both are the same program. What it does past errors shows whenever it is used (`engine/driver.rs`).
    let nix = Some(nix_instantiate.with_file_name("nix")).filter(|nix| is_program(nix)).or_else(|| find("nix").ok());
    let nix = nix.filter(|_| tells_what_runs());
    let nix_eval_jobs = match &options.engine {
        EngineChoice::Nix => None,
        EngineChoice::NixEvalJobs(program) => Some(program.clone()),
        EngineChoice::Auto => find("nix-eval-jobs").ok(),
    };
    let daemon = StoreDaemon::new(&options.daemon_socket);
    // The first connection makes a new store's directories, without which there is nothing to show to the engine.
    drop(daemon.connect().await?);
    let store_dir = match &options.store_root {
        Some(root) => root.join(STORE_DIR.trim_start_matches('/')),
        None => PathBuf::from(STORE_DIR),
    };
    let engine_id = engine_id(&options, &nix_instantiate, nix_eval_jobs.as_deref()).await;
    let egress = egress(options.allow_hosts.clone());
    let mut settings = Settings {
        engine_id,
        upstream: Upstream::new(options.http.clone(), options.substituters.clone()),
        walks_wanted: tokio::sync::Notify::new(),
        daemon,
        mirrors: Mirrors::new(options.state_dir.join("mirrors"), options.mirrors),
        egress: egress.clone(),
        git,
        nix_instantiate,
        nix,
        nix_eval_jobs,
        confinement: Confinement {
            helper: Some(options.sandbox_helper.clone()),
            daemon_socket: options.daemon_socket.clone(),
            store_dir,
            egress: options.network.then_some(egress),
            scratch_dir: options.state_dir.join("home"),
        },
        options,
    };
    for missing in harmonia_sandbox::kernel_features().missing() {
        tracing::warn!("Evaluator: {missing}");
    }
    if let Err(reason) = try_sandbox(&settings).await {
        if settings.options.require_sandbox || settings.options.store_root.is_some() {
            return Err(EvaluatorError::Sandbox { reason });
        }
        tracing::warn!(%reason, "Flakes are evaluated WITHOUT a sandbox: evaluated code runs as this user");
        settings.confinement.helper = None;
    }
    Ok(settings)
}

/// Everything but the tree that decides what comes out: programs with their versions, and settings.
async fn engine_id(options: &EvaluatorOptions, nix: &Path, nix_eval_jobs: Option<&Path>) -> String {
    let mut parts = vec![format!("harmonia-ci {}", env!("CARGO_PKG_VERSION")), version(nix).await];
    if let Some(program) = nix_eval_jobs {
        // Not every version knows the option; where Nix installed it, its place tells them apart.
        let place = std::fs::canonicalize(program).unwrap_or_else(|_| program.to_owned());
        parts.push(format!("{} {}", place.display(), version(program).await));
    }
    let listed: Vec<String> = options.allow_hosts.iter().map(ToString::to_string).collect();
    parts
        .push(format!("ifd {}, network {} {}", options.allow_ifd, options.network, listed.join(" ")).trim().to_owned());
    parts.join("; ").chars().take(ENGINE_ID_CHARS_MAX).collect()
}

/// The first line that a program prints about its version; empty when it does not say.
async fn version(program: &Path) -> String {
    let mut command = tokio::process::Command::new(program);
    command.arg("--version").stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(VERSION_TIMEOUT, command.output()).await;
    let printed = output.ok().and_then(Result::ok).filter(|output| output.status.success()).map(|output| output.stdout);
    let text = String::from_utf8_lossy(printed.as_deref().unwrap_or_default()).into_owned();
    text.lines().next().unwrap_or_default().chars().take(200).collect()
}

/// Evaluates something small, exactly as flakes are.
async fn try_sandbox(settings: &Settings) -> Result<(), String> {
    if settings.options.sandbox_helper.is_empty() {
        return Err("no helper command is configured".to_owned());
    }
    let nothing = PinnedFlake { reference: "path:/nix/store/none".to_owned(), is_wrapped: false };
    let engine: Engine = settings.engine(nothing, false);
    match engine.try_out().await {
        Ok(()) => Ok(()),
        Err(EngineError::Sandbox(reason) | EngineError::Failed(reason)) => Err(reason),
        Err(error) => Err(harmonia_core::chain(&error)),
    }
}

fn find(name: &'static str) -> Result<PathBuf, EvaluatorError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .filter(|directory| directory.is_absolute())
        .chain(USUAL_DIRECTORIES.iter().map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|file| is_program(file))
        .ok_or(EvaluatorError::Program(name))
}

fn is_program(file: &Path) -> bool {
    file.is_file() && rustix::fs::access(file, rustix::fs::Access::EXEC_OK).is_ok()
}
