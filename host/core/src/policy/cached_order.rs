//! An order of the policy that a node keeps for some moments, so that it need not ask before every claim.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use super::Candidate;
use crate::ids::{ClassId, JobId, ProjectId};

/// How long a node claims from an order before it asks again. So much later a claim hears of other accounts and of jobs that
/// became ready in front of others; of boosted jobs it hears at once, from the database.
pub const CACHED_FOR: Duration = Duration::from_millis(500);

/// What is left of an order. Start at [`CachedOrder::new`].
#[derive(Debug, Default)]
pub struct CachedOrder {
    jobs: VecDeque<JobId>,
    classes: Vec<ClassId>,
    made_at: Option<Instant>,
}

impl CachedOrder {
    /// The part of `order` that later claims may follow.
    ///
    /// The policy saw the first `heads` jobs of each project and class. Where it used up all those of a queue that may have
    /// more, the next of that queue might have been its choice: there the order ends.
    pub fn new(order: &[JobId], candidates: &[Candidate], heads: u32, classes: &[ClassId], made_at: Instant) -> Self {
        let queues: HashMap<JobId, (ProjectId, ClassId)> =
            candidates.iter().map(|candidate| (candidate.job, (candidate.project, candidate.class))).collect();
        let mut used: HashMap<(ProjectId, ClassId), u32> = HashMap::new();
        let mut jobs = VecDeque::new();
        for job in order {
            jobs.push_back(*job);
            let Some(queue) = queues.get(job) else { break };
            let count = used.entry(*queue).or_default();
            *count += 1;
            if *count >= heads {
                break;
            }
        }
        Self { jobs, classes: classes.to_vec(), made_at: Some(made_at) }
    }

    /// Whether it may still be followed by a node of these classes.
    pub fn is_fresh(&self, classes: &[ClassId], now: Instant) -> bool {
        self.classes == classes
            && self.made_at.is_some_and(|made_at| now.saturating_duration_since(made_at) < CACHED_FOR)
    }

    /// The first `count` jobs.
    pub fn first(&self, count: usize) -> Vec<JobId> {
        self.jobs.iter().take(count).copied().collect()
    }

    /// A claim tried the first `tried` jobs and got `claimed` of the `wanted` ones: what is in front of the last of them others
    /// have, or, when it got too few, all that it tried.
    pub fn tried(&mut self, tried: usize, claimed: &[JobId], wanted: usize) {
        let tried = tried.min(self.jobs.len());
        let gone = if claimed.len() < wanted {
            tried
        } else {
            self.jobs.range(..tried).rposition(|job| claimed.contains(job)).map_or(0, |last| last + 1)
        };
        self.jobs.drain(..gone);
    }

    /// How many jobs are left.
    pub fn left(&self) -> usize {
        self.jobs.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;

    fn candidate(job: i64, project: i64) -> Candidate {
        Candidate {
            job: JobId(job),
            project: ProjectId(project),
            class: ClassId(1),
            priority: 0,
            queued_at: Timestamp::UNIX_EPOCH,
            retries: 0,
            path_length: 1,
        }
    }

    /// Jobs 1.. of project 1, 11.. of project 2, two of each seen; one of project 3.
    fn kept(order: &[i64], made_at: Instant) -> CachedOrder {
        let of = [(1, 1), (2, 1), (11, 2), (12, 2), (21, 3)];
        let candidates = of.map(|(job, project)| candidate(job, project));
        let order: Vec<JobId> = order.iter().map(|job| JobId(*job)).collect();
        CachedOrder::new(&order, &candidates, 2, &[ClassId(1)], made_at)
    }

    fn left(kept: &CachedOrder) -> Vec<i64> {
        kept.first(10).into_iter().map(|job| job.0).collect()
    }

    #[test]
    fn an_order_ends_where_a_queue_that_may_have_more_is_used_up() {
        for (order, expected) in [
            (&[1, 11, 2, 21, 12][..], &[1, 11, 2][..]),
            (&[21, 1, 11, 12, 2], &[21, 1, 11, 12]),
            (&[21, 1, 11], &[21, 1, 11]),
            (&[1, 77, 11], &[1, 77]),
            (&[], &[]),
        ] {
            assert_eq!(left(&kept(order, Instant::now())), expected, "of {order:?}");
        }
    }

    #[test]
    fn it_is_followed_for_a_bounded_time_and_for_the_classes_it_was_made_for() {
        let now = Instant::now();
        let kept = kept(&[1, 11, 2], now);
        assert!(kept.is_fresh(&[ClassId(1)], now + CACHED_FOR / 2));
        assert!(!kept.is_fresh(&[ClassId(1)], now + CACHED_FOR));
        assert!(!kept.is_fresh(&[ClassId(1), ClassId(2)], now));
        assert!(!CachedOrder::default().is_fresh(&[], now));
        assert_eq!((kept.first(2), kept.left()), (vec![JobId(1), JobId(11)], 3));
    }

    #[test]
    fn what_was_tried_is_not_tried_again() {
        let mut kept = kept(&[21, 1, 11, 12], Instant::now());
        kept.tried(4, &[JobId(1)], 1);
        assert_eq!(left(&kept), [11, 12], "21 was passed over, somebody has it");
        kept.tried(9, &[JobId(12)], 2);
        assert_eq!(kept.left(), 0, "two were wanted: who got one has seen all");
        let mut kept = self::kept(&[21, 1, 11, 12], Instant::now());
        kept.tried(3, &[JobId(1)], 2);
        assert_eq!(left(&kept), [12], "what was not tried may be free");
        kept.tried(1, &[], 1);
        assert_eq!(kept.left(), 0);
    }
}
