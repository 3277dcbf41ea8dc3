//! Cases of scheduling policies.

use std::collections::HashSet;

use harmonia_core::policy::{AskingNode, Candidate, Policy, PolicyError, ProjectLoad};
use harmonia_core::{ClassId, JobId, NodeId, ProjectId, Timestamp};

use super::Report;

const AMOUNTS: [f64; 6] = [0.0, 1.0, 60.0, 3600.0, 1e6, 1e12];

pub(super) fn check(policy: &dyn Policy, report: &mut Report<'_>) {
    for count in [0, 1, 1000] {
        report
            .add(format!("{count} candidates are ranked: only these, none twice, twice the same"), rank(policy, count));
    }
    report.add("a charge is finite and grows with what is charged", charge(policy));
    report.add("decay is finite, only takes away, and more with time", decay(policy));
}

fn rank(policy: &dyn Policy, count: u32) -> Result<(), String> {
    let node = AskingNode { node: NodeId("node".into()), slots: 8, speed_factor: 1.0 };
    let projects: Vec<ProjectLoad> = (0..count.div_ceil(3)).map(|n| load(n, f64::from(n))).collect();
    let candidates: Vec<Candidate> = (0..count).map(candidate).collect();
    let order = policy.rank(&node, &projects, &candidates).map_err(text)?;
    let known: HashSet<JobId> = candidates.iter().map(|candidate| candidate.job).collect();
    let mut seen = HashSet::new();
    for job in &order {
        if !known.contains(job) {
            return Err(format!("it names {job}, which is no candidate"));
        }
        if !seen.insert(*job) {
            return Err(format!("it names {job} twice"));
        }
    }
    if count > 0 && order.is_empty() {
        return Err("it names none".into());
    }
    let again = policy.rank(&node, &projects, &candidates).map_err(text)?;
    if again == order { Ok(()) } else { Err("it gives another order for the same input".into()) }
}

fn charge(policy: &dyn Policy) -> Result<(), String> {
    for consumed in AMOUNTS {
        let charges: Vec<(ProjectLoad, f64)> = AMOUNTS.iter().map(|seconds| (load(1, consumed), *seconds)).collect();
        let after = policy.charge(&charges).map_err(text)?;
        let mut least = consumed;
        for ((_, seconds), after) in charges.iter().zip(after) {
            if after < least {
                return Err(format!("{consumed} s charged with {seconds} s become {after} s"));
            }
            least = after;
        }
        if least <= consumed && consumed < 1e9 {
            return Err(format!("{consumed} s do not grow when charged"));
        }
    }
    Ok(())
}

fn decay(policy: &dyn Policy) -> Result<(), String> {
    for consumed in AMOUNTS {
        let mut most = consumed;
        for seconds in AMOUNTS {
            let after = policy.decay(&[consumed], seconds).map_err(text)?;
            let [after] = after.as_slice() else { return Err("it answers another number of amounts".into()) };
            if *after > most {
                return Err(format!("{consumed} s become {after} s after {seconds} s"));
            }
            most = *after;
        }
    }
    Ok(())
}

fn text(error: PolicyError) -> String {
    error.reason
}

fn load(project: u32, consumed_seconds: f64) -> ProjectLoad {
    ProjectLoad { project: ProjectId(i64::from(project) + 1), shares: 100, consumed_seconds, running: project % 4 }
}

fn candidate(n: u32) -> Candidate {
    Candidate {
        job: JobId(i64::from(n) + 1),
        project: ProjectId(i64::from(n / 3) + 1),
        class: ClassId((n % 5) as i32 + 1),
        priority: 0,
        queued_at: Timestamp::UNIX_EPOCH + time::Duration::seconds(i64::from(n)),
        retries: n % 3,
        path_length: n % 17 + 1,
    }
}
