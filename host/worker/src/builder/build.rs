//! One build by the store daemon: over a connection that it has for itself, its log, its limits. Start at [`build`].
//!
//! Dropping the future (and the connection with it) closes the connection, on which the daemon kills the build's processes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use harmonia_core::FailureKind;
use harmonia_db::ClaimedJob;
use harmonia_nix::BasicDerivation;
use harmonia_nix::worker_protocol::types::{BuildMode, BuildResult, ClientOptions};
use harmonia_nix::worker_protocol::{ActivityResult, LogMessage, LogTarget};

use super::Node;
use super::connections::Lent;
use super::failure::{Trouble, chain, of_build, permanent, transient};
use super::spool::AttemptLog;

/// The daemon's own wall-clock limit comes this much after ours, which names the limit and is exact.
const DAEMON_GRACE: Duration = Duration::from_secs(30);

/// A build that succeeded.
#[derive(Debug)]
pub(super) struct Built {
    /// Processor time, when the daemon measured it.
    pub(super) cpu_seconds: Option<f64>,
}

/// Builds `derivation`, whose inputs must be valid, over a connection that has this job's [`options`], and logs what it prints.
pub(super) async fn build<'a>(
    node: &'a Node,
    job: &ClaimedJob,
    derivation: &BasicDerivation,
    mut connection: Lent<'a>,
    log: Arc<AttemptLog>,
) -> Result<(Built, Lent<'a>), Trouble> {
    let limits = &job.limits;
    connection.set_log(LogTarget::callback(move |message| {
        if let LogMessage::Result { result: ActivityResult::BuildLogLine(line), .. } = message {
            log.line(&line);
        }
    }));
    let build = node.watch.during(connection.build_derivation(&job.drv_path, derivation, BuildMode::Normal));
    let (result, evidence) = if limits.timeout_s == 0 {
        build.await
    } else {
        // On time-out the connection is dropped, which kills the build.
        tokio::time::timeout(Duration::from_secs(limits.timeout_s), build).await.map_err(|_| {
            let message =
                format!("the build took longer than the limit of {} s (timeout) and was stopped", limits.timeout_s);
            permanent(FailureKind::Timeout, message)
        })?
    };
    match result {
        Ok(result) => match of_build(&result, is_fixed_output(derivation), evidence) {
            None => Ok((Built { cpu_seconds: cpu_seconds(&result) }, connection)),
            Some(failure) if failure.kind == Some(FailureKind::Timeout) => {
                // Ours comes before the daemon's for the whole build, so that this is the one for silence.
                let limit = limits.max_silent_s;
                let message = format!("the build was silent for longer than the limit of {limit} s (max_silent)");
                Err(permanent(FailureKind::Timeout, format!("{message}: {}", failure.message)).into())
            }
            Some(failure) => Err(failure.into()),
        },
        // A build that fails is a result; this is a daemon that refused or went away.
        Err(error) => Err(transient(format!("the store daemon did not build it: {}", chain(&error))).into()),
    }
}

/// What the daemon is told for a job. All of it each time: it remembers what the job before set.
pub(super) fn options(job: &ClaimedJob, cores: u64) -> ClientOptions {
    let timeout_s = match job.limits.timeout_s {
        0 => 0,
        limit => limit + DAEMON_GRACE.as_secs(),
    };
    let settings = [
        // The log is kept by us.
        ("keep-build-log", "false".to_owned()),
        ("timeout", timeout_s.to_string()),
        // A process of the daemon remembers which paths were valid, and with which hash, for so many seconds; others build and
        // delete meanwhile.
        ("narinfo-cache-positive-ttl", "0".to_owned()),
        ("narinfo-cache-negative-ttl", "0".to_owned()),
    ];
    let overrides = settings.map(|(name, value)| (name.to_owned(), value));
    ClientOptions {
        max_build_jobs: 1,
        // The daemon judges silence: it sees every byte, we see whole lines only, and a progress bar is not silence.
        max_silent_time_s: job.limits.max_silent_s,
        build_cores: cores,
        use_substitutes: false,
        overrides: BTreeMap::from(overrides),
        ..ClientOptions::default()
    }
}

/// Whether it has an output whose hash is known in advance, so that it may use the network.
fn is_fixed_output(derivation: &BasicDerivation) -> bool {
    derivation.outputs.values().any(|output| matches!(output, harmonia_nix::DerivationOutput::Fixed { .. }))
}

fn cpu_seconds(result: &BuildResult) -> Option<f64> {
    let (user, system) = (result.cpu_user_us?, result.cpu_system_us?);
    Some((user + system) as f64 / 1e6)
}
