//! How states, times, hashes and store paths read on pages. Every state has a symbol and a word, never a colour alone.

use harmonia_core::api::{AttrState, Evaluation, JobCounts, Verdict};
use harmonia_core::{AttemptOutcome, EvalStatus, FailureKind, JobStatus, Timestamp};
use time::format_description::well_known::Rfc3339;

/// A state as a symbol and a word; `class` colours it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Badge {
    pub(crate) class: &'static str,
    pub(crate) symbol: &'static str,
    pub(crate) word: &'static str,
}

const fn badge(class: &'static str, symbol: &'static str, word: &'static str) -> Badge {
    Badge { class, symbol, word }
}

const SUCCEEDED: Badge = badge("good", "✔", "succeeded");
const FAILED: Badge = badge("bad", "✖", "failed");
const DEP_FAILED: Badge = badge("warn", "↯", "dependency failed");
const BUILDING: Badge = badge("busy", "▶", "building");
const UPLOADING: Badge = badge("busy", "⇡", "uploading");
const PENDING: Badge = badge("idle", "○", "waiting");
const CANCELLED: Badge = badge("idle", "⊘", "cancelled");

pub(crate) fn job(status: JobStatus) -> Badge {
    match status {
        JobStatus::Pending => PENDING,
        JobStatus::Building => BUILDING,
        JobStatus::Uploading => UPLOADING,
        JobStatus::Succeeded => SUCCEEDED,
        JobStatus::Failed => FAILED,
        JobStatus::Cancelled => CANCELLED,
        JobStatus::DepFailed => DEP_FAILED,
    }
}

pub(crate) fn attr(state: AttrState) -> Badge {
    match state {
        AttrState::Cached => badge("good", "✔", "cached"),
        AttrState::Error => badge("bad", "!", "evaluation error"),
        AttrState::Pending => PENDING,
        AttrState::Building => BUILDING,
        AttrState::Uploading => UPLOADING,
        AttrState::Succeeded => SUCCEEDED,
        AttrState::Failed => FAILED,
        AttrState::DepFailed => DEP_FAILED,
        AttrState::Cancelled => CANCELLED,
    }
}

/// How an evaluation is. It does not build while none of these jobs does: those that it reaches, or all.
pub(crate) fn evaluation(evaluation: &Evaluation, jobs: &JobCounts) -> Badge {
    match (evaluation.status, evaluation.verdict) {
        (EvalStatus::Queued, _) => badge("idle", "○", "queued"),
        (EvalStatus::Running, _) => badge("busy", "▶", "evaluating"),
        (EvalStatus::Failed, _) => badge("bad", "✖", "evaluation failed"),
        (EvalStatus::Skipped, Verdict::Cancelled) => badge("idle", "⊘", "skipped"),
        (_, Verdict::Running) if jobs.pending > 0 && jobs.building + jobs.uploading == 0 => PENDING,
        (_, Verdict::Running) => BUILDING,
        (_, Verdict::Succeeded) => SUCCEEDED,
        (_, Verdict::Failed) => FAILED,
        (_, Verdict::Cancelled) if evaluation.superseded_by.is_some() => badge("idle", "⊘", "superseded"),
        (_, Verdict::Cancelled) => CANCELLED,
    }
}

pub(crate) fn attempt(outcome: AttemptOutcome) -> Badge {
    match outcome {
        AttemptOutcome::Running => badge("busy", "▶", "running"),
        AttemptOutcome::Succeeded => SUCCEEDED,
        AttemptOutcome::Failed => FAILED,
        AttemptOutcome::Transient => badge("warn", "↻", "failed transiently"),
        AttemptOutcome::Aborted => badge("idle", "⊘", "aborted"),
        AttemptOutcome::Lost => badge("warn", "?", "node lost"),
    }
}

/// How a job failed, for people.
pub(crate) fn failure(kind: FailureKind) -> &'static str {
    match kind {
        FailureKind::Build => "the builder reported an error",
        FailureKind::Timeout => "the build took too long",
        FailureKind::Limit => "a size limit was exceeded",
        FailureKind::Infrastructure => "infrastructure failure, not the derivation's fault",
        FailureKind::Unsupported => "no node can build this",
    }
}

/// A moment: machine form for `<time datetime>`, and how long ago it was.
#[derive(Debug, Clone)]
pub(crate) struct When {
    pub(crate) machine: String,
    pub(crate) ago: String,
}

pub(crate) fn when(moment: Timestamp, now: Timestamp) -> When {
    let seconds = (now - moment).whole_seconds();
    let ago = if seconds < 0 { format!("in {}", duration(-seconds)) } else { format!("{} ago", duration(seconds)) };
    let machine = moment.replace_nanosecond(0).unwrap_or(moment).format(&Rfc3339).unwrap_or_default();
    When { machine, ago }
}

/// Seconds as the two largest units that matter.
pub(crate) fn duration(seconds: i64) -> String {
    let seconds = seconds.max(0);
    let (minutes, hours, days) = (seconds / 60, seconds / 3_600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, 1..=9) => format!("{minutes} min {} s", seconds % 60),
        (0, 0, _) => format!("{minutes} min"),
        (0, 1..=9, _) => format!("{hours} h {} min", minutes % 60),
        (0, _, _) => format!("{hours} h"),
        (1..=9, _, _) => format!("{days} d {} h", hours % 24),
        _ => format!("{days} d"),
    }
}

pub(crate) fn between(start: Timestamp, end: Timestamp) -> String {
    duration((end - start).whole_seconds())
}

/// The first digits of a commit.
pub(crate) fn short_commit(commit: &str) -> String {
    commit.chars().take(10).collect()
}

/// A store path without `/nix/store/`, hash and name apart, so that a page can dim the hash.
#[derive(Debug, Clone)]
pub(crate) struct PathParts {
    pub(crate) full: String,
    pub(crate) hash: String,
    pub(crate) name: String,
}

pub(crate) fn path_parts(path: &str) -> PathParts {
    let base = path.rsplit('/').next().unwrap_or(path);
    let (hash, name) = base.split_once('-').unwrap_or(("", base));
    PathParts { full: path.to_owned(), hash: hash.to_owned(), name: name.to_owned() }
}

/// `1 job`, `2 jobs`.
pub(crate) fn plural(number: u64, one: &str, many: &str) -> String {
    if number == 1 { format!("1 {one}") } else { format!("{number} {many}") }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn durations() {
        for (seconds, text) in [
            (-5, "0 s"),
            (0, "0 s"),
            (59, "59 s"),
            (61, "1 min 1 s"),
            (600, "10 min"),
            (3_660, "1 h 1 min"),
            (36_000, "10 h"),
            (90_000, "1 d 1 h"),
            (864_000, "10 d"),
        ] {
            assert_eq!(duration(seconds), text);
        }
    }

    #[test]
    fn moments() {
        let now = datetime!(2026-01-02 03:04:05.6 UTC);
        let past = when(datetime!(2026-01-02 03:04:00.5 UTC), now);
        assert_eq!((past.machine.as_str(), past.ago.as_str()), ("2026-01-02T03:04:00Z", "5 s ago"));
        assert_eq!(when(datetime!(2026-01-02 03:05:05.6 UTC), now).ago, "in 1 min 0 s");
    }

    #[test]
    fn every_state_has_its_own_word() {
        let mut words: Vec<&str> = JobStatus::ALL.iter().map(|status| job(*status).word).collect();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), JobStatus::ALL.len());
    }

    #[test]
    fn paths() {
        let parts = path_parts("/nix/store/00000000000000000000000000000000-a-1.0");
        assert_eq!((parts.hash.len(), parts.name.as_str()), (32, "a-1.0"));
        assert_eq!(path_parts("odd").name, "odd");
    }
}
