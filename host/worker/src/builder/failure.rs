//! What a failed attempt means for its job: permanent or tried again. Start at [`of_build`].
//!
//! Decided from statuses, exit codes, error types and what the node itself went through (`evidence.rs`); never from what a
//! build printed, which could lie. What the store refuses for its content would be refused again: that fails the build.

use std::error::Error;

use harmonia_core::FailureKind;
pub(super) use harmonia_core::chain;
use harmonia_core::signer_api::Failure;
use harmonia_nix::worker_protocol::types::{BuildResult, BuildStatus};

use super::evidence::Evidence;
use crate::pack::PackError;
use crate::signer_client::SignerError;

/// Longest message kept, in bytes; the log has the rest.
const MESSAGE_BYTES_MAX: usize = 8 << 10;
/// `SIGKILL`: the first process of a sandbox cannot be killed so from within. It was the kernel (out of memory) or an operator.
const SIGKILL: i32 = 9;
/// Statuses of daemons newer than those whose names the codec knows.
const HASH_MISMATCH: BuildStatus = BuildStatus::Unknown(15);

/// Why an attempt does not go on.
#[derive(Debug)]
pub(super) enum Trouble {
    /// It failed; the job is told, through a signer.
    Failed(Failure),
    /// It failed because no signer (or no object store) answered for long: the job is told without one.
    Unacknowledged(Failure),
    /// The claim is void: nobody wants to hear of it.
    Void,
    /// Nothing failed, but it cannot go on here and now: back to the queue for this reason, nothing is counted.
    GivenBack(String),
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// A failure that says nothing about the derivation: the job is tried again.
pub(super) fn transient(message: impl Into<String>) -> Failure {
    failure(None, message.into(), None)
}

/// A failure that would come again.
pub(super) fn permanent(kind: FailureKind, message: impl Into<String>) -> Failure {
    failure(Some(kind), message.into(), None)
}

/// As [`transient`], from an error and its causes.
pub(super) fn transient_error(error: &dyn Error) -> Failure {
    transient(chain(error))
}

fn failure(kind: Option<FailureKind>, message: String, exit_code: Option<i32>) -> Failure {
    Failure { kind, message: shortened(message), exit_code }
}

/// What the daemon's result means; `None` for success. `is_fixed_output`: it may use the network, so that a builder which
/// failed before there was anything to hash is to be tried again. `evidence` of what the node went through meanwhile.
pub(super) fn of_build(result: &BuildResult, is_fixed_output: bool, evidence: Evidence) -> Option<Failure> {
    if result.status.is_success() {
        return None;
    }
    let message = result.plain_error_message();
    let end = builder_end(&message);
    let exit_code = match end {
        Some(BuilderEnd::Exit(code)) => Some(code),
        _ => None,
    };
    // The builder failed, or the daemon around it: both can be for want of what the node should have had.
    let want = match evidence {
        Evidence { out_of_memory: true, .. } => Some("the kernel killed processes for lack of memory meanwhile"),
        Evidence { disk_full: true, .. } => Some("the disk was full meanwhile"),
        Evidence { .. } => None,
    };
    let kind = match result.status {
        BuildStatus::PermanentFailure if end == Some(BuilderEnd::Signal(SIGKILL)) => None,
        BuildStatus::PermanentFailure | BuildStatus::MiscFailure if want.is_some() || is_fixed_output => None,
        BuildStatus::MiscFailure if errno_of_the_node(&message).is_some() => None,
        // `MiscFailure` is what the daemon says of whatever is no build error to it: a file of a type that no store takes,
        // `__noChroot` where that is not allowed, a cycle of outputs.
        BuildStatus::PermanentFailure
        | BuildStatus::MiscFailure
        | BuildStatus::InputRejected
        | BuildStatus::OutputRejected
        | BuildStatus::CachedFailure
        | BuildStatus::NotDeterministic
        | HASH_MISMATCH => Some(FailureKind::Build),
        BuildStatus::TimedOut => Some(FailureKind::Timeout),
        BuildStatus::LogLimitExceeded => Some(FailureKind::Limit),
        // Disk full, network, an input that vanished, a daemon that was told to stop, and whatever newer daemons say.
        BuildStatus::TransientFailure
        | BuildStatus::DependencyFailed
        | BuildStatus::NoSubstituters
        | BuildStatus::Unknown(_) => None,
        BuildStatus::Built
        | BuildStatus::Substituted
        | BuildStatus::AlreadyValid
        | BuildStatus::ResolvesToAlreadyValid => return None,
    };
    let mut message = without_log(&message);
    if message.is_empty() {
        message = format!("the build failed ({:?})", result.status);
    }
    if let (None, Some(want)) = (kind, want) {
        message = format!("{message} ({want})");
    }
    Some(failure(kind, message, exit_code))
}

/// The error numbers that are a machine's trouble, as the daemon words them at the end of its message.
const ERRNOS_OF_THE_NODE: [&str; 11] = [
    "Cannot allocate memory",
    "Connection refused",
    "Connection reset by peer",
    "Disk quota exceeded",
    "Input/output error",
    "No space left on device",
    "Read-only file system",
    "Resource temporarily unavailable",
    "Stale file handle",
    "Too many open files",
    "Too many open files in system",
];

/// Which trouble of the machine a daemon's message ends with, after what it was doing. It has no field for that; whoever
/// could make a build end with these words gains three tries instead of one.
fn errno_of_the_node(message: &str) -> Option<&'static str> {
    let (_, end) = message.trim_end().rsplit_once(": ")?;
    ERRNOS_OF_THE_NODE.into_iter().find(|words| *words == end)
}

/// What the store's packing of an output means.
pub(super) fn of_packing(error: &PackError) -> Failure {
    match error {
        PackError::TooLarge { .. } => permanent(FailureKind::Limit, chain(error)),
        // The tree is what it is; only what the operating system says of it may change.
        PackError::Tree { cause, .. } if !cause.is_io() => permanent(FailureKind::Build, chain(error)),
        PackError::Tree { .. } | PackError::Spool { .. } | PackError::Cancelled => transient_error(error),
    }
}

/// What an upload that did not succeed means.
pub(super) fn of_signer(error: &SignerError) -> Trouble {
    match error {
        SignerError::StaleClaim => Trouble::Void,
        // Understood and refused: again would be refused again, but the derivation is not to blame.
        SignerError::Refused { .. } => permanent(FailureKind::Infrastructure, chain(error)).into(),
        SignerError::Unavailable { .. } => Trouble::Unacknowledged(transient_error(error)),
        SignerError::NotUploaded { .. } | SignerError::PutRefused { .. } | SignerError::Source(_) => {
            transient_error(error).into()
        }
    }
}

/// How the builder process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BuilderEnd {
    Exit(i32),
    Signal(i32),
}

/// Reads it from the beginning of the daemon's message, which the protocol has no field for:
/// `builder for '….drv' failed with exit code 1;`, and since Nix 2.30 `Cannot build '….drv'.` with the line
/// `Reason: builder failed with exit code 1.` below. The lines that quote the log are not looked at.
fn builder_end(message: &str) -> Option<BuilderEnd> {
    let mut lines = message.lines();
    let first = lines.next()?;
    // A store path has no quote, so that what follows the second one is the daemon's.
    let after = match first.split("builder for '").nth(1) {
        Some(rest) => rest.split_once('\'')?.1,
        None if first.contains("Cannot build '") => lines.next()?.trim_start().strip_prefix("Reason: builder ")?,
        None => return None,
    };
    let number = |words: &str| -> Option<i32> {
        let digits = after.split(words).nth(1)?;
        digits.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
    };
    match number("failed with exit code ") {
        Some(code) => Some(BuilderEnd::Exit(code)),
        None => number("failed due to signal ").map(BuilderEnd::Signal),
    }
}

/// The daemon's message without what the page shows anyway (which derivation, its outputs), without the end of the log that
/// it quotes and without its advice to run `nix log`: we keep the log.
fn without_log(message: &str) -> String {
    let quotes_log = |line: &str| {
        let line = line.trim().to_ascii_lowercase();
        line.starts_with("last ") && line.ends_with("log lines:")
    };
    let mut lines: Vec<&str> = message.lines().take_while(|line| !quotes_log(line)).collect();
    // Since Nix 2.30: `Cannot build '….drv'.`, `Reason: …`, `Output paths:` and a line for each.
    if let Some(reason) = lines.get(1).and_then(|line| line.trim_start().strip_prefix("Reason: "))
        && lines[0].contains("Cannot build '")
    {
        let outputs = lines.iter().position(|line| line.trim() == "Output paths:").unwrap_or(lines.len());
        let mut rest = lines[2..outputs.max(2)].to_vec();
        rest.insert(0, reason.trim_end_matches('.'));
        lines = rest;
    }
    lines.join("\n").trim().trim_end_matches(';').to_owned()
}

fn shortened(mut message: String) -> String {
    if message.len() > MESSAGE_BYTES_MAX {
        // The beginning names what failed; the end of the log is in the log.
        let end = message.floor_char_boundary(MESSAGE_BYTES_MAX);
        message.truncate(end);
        message.push_str(" […]");
    }
    message
}

#[cfg(test)]
mod tests {
    use harmonia_nix::nar::NarError;

    use super::*;

    fn result(status: BuildStatus, message: &str) -> BuildResult {
        BuildResult {
            status,
            error_message: message.to_owned(),
            times_built: 0,
            is_non_deterministic: false,
            start_time_s: 0,
            stop_time_s: 0,
            cpu_user_us: None,
            cpu_system_us: None,
            built_outputs: std::collections::BTreeMap::new(),
        }
    }

    const EXIT: &str = "builder for '/nix/store/00000000000000000000000000000000-a.drv' failed with exit code 3;\n\
        last 1 log lines:\n> failed due to signal 9 (Killed)";
    const NEWER: &str = "Cannot build '/nix/store/00000000000000000000000000000000-a.drv'.\n\
        Reason: builder failed with exit code 3.\n\
        Output paths:\n  /nix/store/00000000000000000000000000000000-a\n\
        Last 1 log lines:\n> builder failed due to signal 9 (Killed).\n\
        For full logs, run:\n  nix log /nix/store/00000000000000000000000000000000-a.drv";
    const KILLED: &str =
        "builder for '/nix/store/00000000000000000000000000000000-a.drv' failed due to signal 9 (Killed)";
    const CRASHED: &str =
        "builder for '/nix/store/00000000000000000000000000000000-a.drv' failed due to signal 11 (Segmentation fault)";
    /// What a build that wants to be tried again for ever could print.
    const LIE: &str =
        "something else\nbuilder for '/nix/store/00000000000000000000000000000000-a.drv' failed due to signal 9";

    #[test]
    fn every_status_is_permanent_or_tried_again() {
        use BuildStatus as S;
        use FailureKind::{Build, Limit, Timeout};
        let cases = [
            (S::PermanentFailure, EXIT, false, Some((Some(Build), Some(3)))),
            (S::PermanentFailure, NEWER, false, Some((Some(Build), Some(3)))),
            (S::PermanentFailure, KILLED, false, Some((None, None))),
            (S::PermanentFailure, CRASHED, false, Some((Some(Build), None))),
            (S::PermanentFailure, LIE, false, Some((Some(Build), None))),
            (S::PermanentFailure, EXIT, true, Some((None, Some(3)))),
            (S::TransientFailure, EXIT, true, Some((None, Some(3)))),
            (S::OutputRejected, "hash mismatch in fixed-output derivation", true, Some((Some(Build), None))),
            (S::Unknown(15), "hash mismatch", true, Some((Some(Build), None))),
            (S::OutputRejected, "output is not allowed to refer to", false, Some((Some(Build), None))),
            (S::InputRejected, "", false, Some((Some(Build), None))),
            (S::CachedFailure, "", false, Some((Some(Build), None))),
            (S::NotDeterministic, "", false, Some((Some(Build), None))),
            (S::TimedOut, "timed out after 3 seconds", false, Some((Some(Timeout), None))),
            (S::LogLimitExceeded, "", false, Some((Some(Limit), None))),
            (S::TransientFailure, "no space left", false, Some((None, None))),
            (S::MiscFailure, "", false, Some((Some(Build), None))),
            (S::MiscFailure, "file '/nix/store/x/pipe' has an unsupported type", false, Some((Some(Build), None))),
            (S::MiscFailure, "error: cycle detected in build of '/nix/store/x.drv'", false, Some((Some(Build), None))),
            (
                S::MiscFailure,
                "derivation has '__noChroot' set, but that's not allowed",
                false,
                Some((Some(Build), None)),
            ),
            (S::MiscFailure, "error: writing to file: No space left on device", false, Some((None, None))),
            (S::MiscFailure, "unable to fork: Resource temporarily unavailable\n", false, Some((None, None))),
            (
                S::MiscFailure,
                "'/nix/store/x: No space left on device' has a strange name",
                false,
                Some((Some(Build), None)),
            ),
            (S::DependencyFailed, "", false, Some((None, None))),
            (S::NoSubstituters, "", false, Some((None, None))),
            (S::Unknown(16), "cancelled", false, Some((None, None))),
            (S::Built, "", false, None),
            (S::Substituted, "", false, None),
            (S::AlreadyValid, "", false, None),
            (S::ResolvesToAlreadyValid, "", false, None),
        ];
        for (status, message, is_fixed_output, expected) in cases {
            let failure = of_build(&result(status, message), is_fixed_output, Evidence::default());
            let found = failure.as_ref().map(|failure| (failure.kind, failure.exit_code));
            assert_eq!(found, expected, "{status:?} {message:?} {is_fixed_output}");
            assert!(failure.is_none_or(|failure| !failure.message.is_empty()), "{status:?}: a failure says something");
        }
    }

    #[test]
    fn only_what_the_node_went_through_makes_a_failure_transient() {
        let memory = Evidence { out_of_memory: true, ..Evidence::default() };
        let disk = Evidence { disk_full: true, ..Evidence::default() };
        for (evidence, words) in [(memory, "lack of memory"), (disk, "the disk was full")] {
            for status in [BuildStatus::PermanentFailure, BuildStatus::MiscFailure] {
                let failure = of_build(&result(status, KILLED), false, evidence).expect("a failure");
                assert_eq!(failure.kind, None, "{status:?} {evidence:?}");
                assert!(failure.message.contains(words), "{}", failure.message);
            }
            for status in [BuildStatus::OutputRejected, BuildStatus::TimedOut, BuildStatus::InputRejected] {
                let failure = of_build(&result(status, KILLED), false, evidence).expect("a failure");
                assert!(failure.kind.is_some() && !failure.message.contains(words), "{status:?} {evidence:?}");
            }
            assert_eq!(of_build(&result(BuildStatus::Built, ""), false, evidence), None);
        }
    }

    #[test]
    fn packing_and_upload() {
        use std::io::Error;
        let kind = |error: PackError| of_packing(&error).kind;
        assert_eq!(kind(PackError::TooLarge { path: "p".into(), max: 1 }), Some(FailureKind::Limit));
        assert_eq!(kind(PackError::Spool { dir: "d".into(), cause: Error::other("full") }), None);
        assert_eq!(kind(PackError::Cancelled), None);
        let tree = |cause| PackError::Tree { path: "p".into(), cause };
        assert_eq!(kind(tree(NarError::TooDeep { max: 1 })), Some(FailureKind::Build));
        let unreadable = NarError::File { action: "read", path: "p".into(), cause: Error::other("EIO") };
        assert_eq!(kind(tree(unreadable)), None);

        let kind = |error: SignerError| match of_signer(&error) {
            Trouble::Failed(failure) | Trouble::Unacknowledged(failure) => Some(failure.kind),
            Trouble::Void | Trouble::GivenBack(_) => None,
        };
        assert_eq!(kind(SignerError::StaleClaim), None);
        let refused = SignerError::Refused { call: "build-complete", code: "x".into(), message: "y".into() };
        assert_eq!(kind(refused), Some(Some(FailureKind::Infrastructure)));
        let lost = SignerError::NotUploaded { call: "build-complete", message: String::new() };
        assert_eq!(kind(lost), Some(None), "the store is to blame");
        assert_eq!(kind(SignerError::PutRefused { status: 400, message: String::new() }), Some(None));
        assert_eq!(kind(SignerError::Source(Error::other("gone"))), Some(None));
    }

    #[test]
    fn messages_keep_causes_and_are_bounded() {
        let error = PackError::Spool { dir: "/spool".into(), cause: std::io::Error::other("no space") };
        let message = of_packing(&error).message;
        assert!(message.contains("/spool") && message.ends_with(": no space"), "{message}");
        let long = transient("é".repeat(MESSAGE_BYTES_MAX));
        assert!(long.message.len() < MESSAGE_BYTES_MAX + 10 && long.message.ends_with("é […]"));
    }

    #[test]
    fn the_message_does_not_repeat_the_log() {
        let message = "builder for '/nix/store/x-a.drv' failed with exit code 1;\n       last 2 log lines:\n       > a\n       > b\n       For full logs, run 'nix log /nix/store/x-a.drv'.";
        assert_eq!(without_log(message), "builder for '/nix/store/x-a.drv' failed with exit code 1");
        assert_eq!(without_log("hash mismatch:\n  wanted: a\n  got: b"), "hash mismatch:\n  wanted: a\n  got: b");
        assert_eq!(without_log(""), "");
        assert_eq!(without_log(NEWER), "builder failed with exit code 3");
        let mismatch = "Cannot build '/nix/store/x-a.drv'.\nReason: platform mismatch\nRequired system: 'riscv64-linux'\n\
            Current system: 'x86_64-linux'\nOutput paths:\n  /nix/store/x-a";
        assert_eq!(
            without_log(mismatch),
            "platform mismatch\nRequired system: 'riscv64-linux'\nCurrent system: 'x86_64-linux'"
        );
    }
}
