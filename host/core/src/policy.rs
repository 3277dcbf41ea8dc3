//! The scheduling policy's port: who goes first among the heads of the projects' ready queues.
//!
//! A policy only orders. It cannot make an unready job run, run one twice, or starve manual rebuilds: the caller puts
//! priority above 0 first ([`order_candidates`]) whatever the policy says.

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::clock::Timestamp;
use crate::ids::{ClassId, JobId, NodeId, ProjectId};

mod cached_order;

pub use cached_order::{CACHED_FOR, CachedOrder};

/// One ready job near the head of its project's queue.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// The job.
    pub job: JobId,
    /// Who wanted it first.
    pub project: ProjectId,
    /// Its class.
    pub class: ClassId,
    /// 0, or 100 for a manual rebuild.
    pub priority: i32,
    /// When it was inserted.
    pub queued_at: Timestamp,
    /// Tries before this one.
    pub retries: u32,
    /// Jobs on the longest chain of jobs that wait for this one, itself included, as known when it was inserted.
    pub path_length: u32,
}

/// What the policy may know of the node that asks.
#[derive(Debug, Clone, PartialEq)]
pub struct AskingNode {
    /// The node.
    pub node: NodeId,
    /// How many jobs it wants now.
    pub slots: u32,
    /// Running mean of its build speed; 1 is average, and what everybody has until somebody measures it.
    pub speed_factor: f64,
}

/// What the policy may know of one project.
#[derive(Debug, Clone, PartialEq)]
pub struct ProjectLoad {
    /// The project.
    pub project: ProjectId,
    /// Its scheduling shares (100 by default).
    pub shares: u32,
    /// Decayed build seconds it consumed.
    pub consumed_seconds: f64,
    /// Its jobs now building.
    pub running: u32,
}

/// Orders candidates for one node, and keeps the books. Pure: the same input gives the same answer.
pub trait Policy: Send + Sync {
    /// Jobs in the order in which the node should try to claim them. May leave some out.
    fn rank(
        &self,
        node: &AskingNode,
        projects: &[ProjectLoad],
        candidates: &[Candidate],
    ) -> Result<Vec<JobId>, PolicyError>;

    /// What each project's consumption becomes when its builds ran for so many seconds more.
    fn charge(&self, charges: &[(ProjectLoad, f64)]) -> Result<Vec<f64>, PolicyError>;

    /// What each consumption becomes when `seconds` have passed.
    fn decay(&self, consumed_seconds: &[f64], seconds: f64) -> Result<Vec<f64>, PolicyError>;
}

/// Why a policy gave no order; the claim falls back to priority, then first in, first out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the scheduling policy gave no order: {reason}")]
pub struct PolicyError {
    /// What went wrong.
    pub reason: String,
}

/// Priority, then first in, first out: the order without any policy, and the fallback when one fails.
#[derive(Debug, Clone, Copy, Default)]
pub struct FirstInFirstOut;

/// What is left of consumption after an hour, without any policy and in the default one (builds.md).
pub const DECAY_PER_HOUR: f64 = 0.95;

impl Policy for FirstInFirstOut {
    fn rank(&self, _: &AskingNode, _: &[ProjectLoad], candidates: &[Candidate]) -> Result<Vec<JobId>, PolicyError> {
        let mut sorted: Vec<&Candidate> = candidates.iter().collect();
        sorted.sort_by_key(|c| (-i64::from(c.priority), c.job));
        Ok(sorted.into_iter().map(|c| c.job).collect())
    }

    fn charge(&self, charges: &[(ProjectLoad, f64)]) -> Result<Vec<f64>, PolicyError> {
        Ok(charges.iter().map(|(load, seconds)| load.consumed_seconds + seconds).collect())
    }

    fn decay(&self, consumed_seconds: &[f64], seconds: f64) -> Result<Vec<f64>, PolicyError> {
        let factor = DECAY_PER_HOUR.powf(seconds / 3600.0);
        Ok(consumed_seconds.iter().map(|consumed| consumed * factor).collect())
    }
}

/// The order in which a claim tries `candidates`, and the policy's error when it fell back.
///
/// Manual rebuilds first; then what the policy named (unknown and repeated ids dropped); then what it left out is left
/// out, unless it named nothing usable at all, which counts as an error.
pub fn order_candidates(
    policy: &dyn Policy,
    node: &AskingNode,
    projects: &[ProjectLoad],
    candidates: &[Candidate],
) -> (Vec<JobId>, Option<PolicyError>) {
    let fallback = || FirstInFirstOut.rank(node, projects, candidates).unwrap_or_default();
    let ranked = match contained(|| policy.rank(node, projects, candidates)) {
        Ok(ranked) => ranked,
        Err(error) => return (fallback(), Some(error)),
    };
    let known: HashSet<JobId> = candidates.iter().map(|c| c.job).collect();
    let mut boosted: Vec<&Candidate> = candidates.iter().filter(|c| c.priority > 0).collect();
    boosted.sort_by_key(|c| (-i64::from(c.priority), c.job));
    let mut seen = HashSet::new();
    let order: Vec<JobId> = boosted
        .into_iter()
        .map(|c| c.job)
        .chain(ranked.into_iter().filter(|job| known.contains(job)))
        .filter(|job| seen.insert(*job))
        .collect();
    if order.is_empty() && !candidates.is_empty() {
        let reason = format!("it named none of {} candidates", candidates.len());
        return (fallback(), Some(PolicyError { reason }));
    }
    (order, None)
}

/// What each project's consumption becomes, and the policy's error when [`FirstInFirstOut`]'s arithmetic had to do.
///
/// As many numbers as charges come back, each finite and not negative, whatever the policy says.
pub fn charge_all(policy: &dyn Policy, charges: &[(ProjectLoad, f64)]) -> (Vec<f64>, Option<PolicyError>) {
    let says = contained(|| policy.charge(charges));
    believe(says, charges.len(), || FirstInFirstOut.charge(charges).unwrap_or_default())
}

/// What each consumption becomes when `seconds` have passed, as [`charge_all`].
pub fn decay_all(policy: &dyn Policy, consumed_seconds: &[f64], seconds: f64) -> (Vec<f64>, Option<PolicyError>) {
    let says = contained(|| policy.decay(consumed_seconds, seconds));
    believe(says, consumed_seconds.len(), || FirstInFirstOut.decay(consumed_seconds, seconds).unwrap_or_default())
}

fn believe(
    says: Result<Vec<f64>, PolicyError>,
    count: usize,
    fallback: impl FnOnce() -> Vec<f64>,
) -> (Vec<f64>, Option<PolicyError>) {
    let error = match says {
        Ok(numbers) if numbers.len() != count => {
            PolicyError { reason: format!("it gave {} numbers for {count} projects", numbers.len()) }
        }
        Ok(numbers) => match numbers.iter().find(|number| !number.is_finite() || **number < 0.0) {
            None => return (numbers, None),
            Some(number) => PolicyError { reason: format!("consumption cannot be {number}") },
        },
        Err(error) => error,
    };
    (fallback(), Some(error))
}

/// A policy that panics is one that failed.
fn contained<T>(call: impl FnOnce() -> Result<T, PolicyError>) -> Result<T, PolicyError> {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|_| Err(PolicyError { reason: "it panicked".to_owned() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Says(Result<Vec<i64>, &'static str>);
    impl Policy for Says {
        fn rank(&self, _: &AskingNode, _: &[ProjectLoad], _: &[Candidate]) -> Result<Vec<JobId>, PolicyError> {
            match &self.0 {
                Ok(ids) => Ok(ids.iter().map(|id| JobId(*id)).collect()),
                Err(reason) => Err(PolicyError { reason: (*reason).to_owned() }),
            }
        }
        fn charge(&self, charges: &[(ProjectLoad, f64)]) -> Result<Vec<f64>, PolicyError> {
            FirstInFirstOut.charge(charges)
        }
        fn decay(&self, consumed_seconds: &[f64], seconds: f64) -> Result<Vec<f64>, PolicyError> {
            FirstInFirstOut.decay(consumed_seconds, seconds)
        }
    }

    fn asking() -> AskingNode {
        AskingNode { node: NodeId("n".into()), slots: 4, speed_factor: 1.0 }
    }

    fn order(policy: &dyn Policy, jobs: &[(i64, i32)]) -> (Vec<i64>, bool) {
        let candidates: Vec<Candidate> = jobs
            .iter()
            .map(|(id, priority)| Candidate {
                job: JobId(*id),
                project: ProjectId(1),
                class: ClassId(1),
                priority: *priority,
                queued_at: Timestamp::UNIX_EPOCH,
                retries: 0,
                path_length: 1,
            })
            .collect();
        let (order, error) = order_candidates(policy, &asking(), &[], &candidates);
        (order.into_iter().map(|job| job.0).collect(), error.is_some())
    }

    #[test]
    fn a_policy_orders_but_cannot_starve_boosts_invent_jobs_or_stop_work() {
        let jobs = [(1, 0), (2, 0), (3, 100), (4, 0)];
        let cases = [
            (Ok(vec![4, 2, 1]), vec![3, 4, 2, 1], false),
            (Ok(vec![4, 4, 99, 1]), vec![3, 4, 1], false),
            (Ok(vec![]), vec![3], false),
            (Ok(vec![3, 1]), vec![3, 1], false),
            (Err("trapped"), vec![3, 1, 2, 4], true),
            (Ok(vec![99]), vec![3], false),
        ];
        for (said, expected, fell_back) in cases {
            assert_eq!(order(&Says(said.clone()), &jobs), (expected, fell_back), "policy said {said:?}");
        }
        assert_eq!(order(&Says(Ok(vec![99])), &[(2, 0), (1, 0)]), (vec![1, 2], true));
        assert_eq!(order(&FirstInFirstOut, &jobs), (vec![3, 1, 2, 4], false));
    }

    /// Says these numbers, or panics.
    struct Books(Option<Vec<f64>>);
    impl Policy for Books {
        fn rank(&self, _: &AskingNode, _: &[ProjectLoad], _: &[Candidate]) -> Result<Vec<JobId>, PolicyError> {
            panic!("a policy that panics")
        }
        fn charge(&self, _: &[(ProjectLoad, f64)]) -> Result<Vec<f64>, PolicyError> {
            Ok(self.0.clone().expect("a policy that panics"))
        }
        fn decay(&self, _: &[f64], _: f64) -> Result<Vec<f64>, PolicyError> {
            Err(PolicyError { reason: "out of fuel".to_owned() })
        }
    }

    fn load(consumed_seconds: f64) -> ProjectLoad {
        ProjectLoad { project: ProjectId(1), shares: 100, consumed_seconds, running: 1 }
    }

    #[test]
    fn a_policy_that_panics_or_talks_nonsense_costs_neither_order_nor_books() {
        assert_eq!(order(&Books(None), &[(2, 0), (1, 0)]), (vec![1, 2], true));
        let charges = [(load(10.0), 5.0), (load(1.0), 0.5)];
        let nonsense =
            [None, Some(vec![1.0]), Some(vec![1.0, f64::NAN]), Some(vec![-1.0, 1.0]), Some(vec![f64::INFINITY; 2])];
        for says in nonsense {
            let (becomes, error) = charge_all(&Books(says.clone()), &charges);
            assert_eq!((becomes, error.is_some()), (vec![15.0, 1.5], true), "it said {says:?}");
        }
        assert_eq!(charge_all(&Books(Some(vec![0.0, 7.0])), &charges), (vec![0.0, 7.0], None));
        let (faded, error) = decay_all(&Books(None), &[100.0], 3600.0);
        assert!((faded[0] - 95.0).abs() < 1e-9, "{faded:?}");
        assert_eq!(error.map(|error| error.reason).as_deref(), Some("out of fuel"));
    }

    #[test]
    fn consumption_adds_up_and_fades_by_the_hour() {
        let load = ProjectLoad { project: ProjectId(1), shares: 100, consumed_seconds: 10.0, running: 1 };
        assert_eq!(FirstInFirstOut.charge(&[(load, 5.0)]), Ok(vec![15.0]));
        let faded = FirstInFirstOut.decay(&[100.0, 0.0], 7200.0).expect("never fails");
        assert!((faded[0] - 90.25).abs() < 1e-9 && faded[1] == 0.0, "{faded:?}");
    }
}
