//! What an evaluation and its builds amount to. Pure: [`verdict`].

use crate::api::{AttrCounts, Verdict};
use crate::state::EvalStatus;

/// What the verdict depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "four facts of the row, each a condition of its own")]
pub struct Facts {
    /// Where the evaluation itself stands.
    pub status: EvalStatus,
    /// Every name has a result or an error.
    pub complete: bool,
    /// No attribute at all is fine.
    pub allow_empty: bool,
    /// Nobody waits for its builds any more.
    pub is_superseded: bool,
    /// It stands for another evaluation of the same tree.
    pub is_reuse: bool,
    /// Its attributes by state.
    pub counts: AttrCounts,
}

/// Green only under every condition of invariant 5 (database.md); red only when nothing runs any more, so that who
/// waits for the end sees all failures.
pub fn verdict(facts: &Facts) -> Verdict {
    let counts = &facts.counts;
    let is_building = counts.pending + counts.building > 0;
    match facts.status {
        EvalStatus::Queued | EvalStatus::Running => return Verdict::Running,
        EvalStatus::Cancelled => return Verdict::Cancelled,
        EvalStatus::Skipped if !facts.is_reuse => return Verdict::Cancelled,
        EvalStatus::Failed => return Verdict::Failed,
        EvalStatus::Succeeded | EvalStatus::Skipped => {}
    }
    if is_building && !facts.is_superseded {
        return Verdict::Running;
    }
    let has_failed = counts.failed + counts.dep_failed + counts.eval_errors > 0;
    if has_failed {
        return Verdict::Failed;
    }
    if is_building || counts.cancelled > 0 {
        return Verdict::Cancelled;
    }
    let is_green = facts.complete && counts.succeeded == counts.total && (counts.total > 0 || facts.allow_empty);
    if is_green { Verdict::Succeeded } else { Verdict::Failed }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts {
            status: EvalStatus::Succeeded,
            complete: true,
            allow_empty: false,
            is_superseded: false,
            is_reuse: false,
            counts: AttrCounts { total: 3, succeeded: 3, ..AttrCounts::default() },
        }
    }

    #[test]
    fn green_needs_every_condition() {
        assert_eq!(verdict(&facts()), Verdict::Succeeded);
        let incomplete = Facts { complete: false, ..facts() };
        assert_eq!(verdict(&incomplete), Verdict::Failed);
        let empty = Facts { counts: AttrCounts::default(), ..facts() };
        assert_eq!(verdict(&empty), Verdict::Failed);
        let allowed_empty = Facts { allow_empty: true, ..empty };
        assert_eq!(verdict(&allowed_empty), Verdict::Succeeded);
        for spoil in [
            |counts: &mut AttrCounts| counts.failed = 1,
            |counts: &mut AttrCounts| counts.dep_failed = 1,
            |counts: &mut AttrCounts| counts.eval_errors = 1,
        ] {
            let mut spoiled = facts();
            spoiled.counts.succeeded = 2;
            spoil(&mut spoiled.counts);
            assert_eq!(verdict(&spoiled), Verdict::Failed);
            spoiled.counts.pending = 1;
            assert_eq!(verdict(&spoiled), Verdict::Running, "the rest may still show more failures");
            spoiled.is_superseded = true;
            assert_eq!(verdict(&spoiled), Verdict::Failed);
        }
        let mut unaccounted = facts();
        unaccounted.counts.succeeded = 2;
        assert_eq!(verdict(&unaccounted), Verdict::Failed);
    }

    #[test]
    fn the_evaluation_itself_comes_first() {
        for (status, expected) in [
            (EvalStatus::Queued, Verdict::Running),
            (EvalStatus::Running, Verdict::Running),
            (EvalStatus::Failed, Verdict::Failed),
            (EvalStatus::Cancelled, Verdict::Cancelled),
            (EvalStatus::Skipped, Verdict::Cancelled),
        ] {
            assert_eq!(verdict(&Facts { status, ..facts() }), expected, "{status}");
        }
        let reused = Facts { status: EvalStatus::Skipped, is_reuse: true, ..facts() };
        assert_eq!(verdict(&reused), Verdict::Succeeded);
        let mut cancelled = facts();
        cancelled.counts = AttrCounts { total: 2, succeeded: 1, cancelled: 1, ..AttrCounts::default() };
        assert_eq!(verdict(&cancelled), Verdict::Cancelled);
    }
}
