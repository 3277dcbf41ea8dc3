//! What a simulation shows: makespan, waits, utilisation, fairness. Start at [`Outcome`]; [`Recorder`] listens while it runs.

use serde::Serialize;

use super::engine::Fleet;
use super::{SimulatedProject, Workload};
use crate::policy::PolicyError;

/// Windows into which the time that the work takes on all slots is divided, for fairness and the timeline.
const WINDOWS: f64 = 100.0;
/// No window is shorter, in seconds.
const WINDOW_MIN_S: f64 = 1.0;

/// What no policy can beat.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Bounds {
    /// End of the longest chain of jobs, each begun as soon as it is queued and its inputs are built.
    pub critical_path_s: f64,
    /// Seconds of all builds.
    pub work_s: f64,
    /// The same, with every slot busy from the start.
    pub work_over_slots_s: f64,
}

impl Bounds {
    /// The least possible makespan that is known.
    pub fn makespan_s(&self) -> f64 {
        self.critical_path_s.max(self.work_over_slots_s)
    }
}

/// Seconds from when jobs could run until they ran.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Waits {
    /// Mean.
    pub mean_s: f64,
    /// Median.
    pub p50_s: f64,
    /// All but one in twenty.
    pub p95_s: f64,
    /// The longest.
    pub max_s: f64,
}

impl Waits {
    fn of(waits_s: &mut [f64]) -> Self {
        waits_s.sort_unstable_by(f64::total_cmp);
        let Some(last) = waits_s.last() else { return Self::default() };
        // The smallest wait that so large a part does not exceed.
        let rank = |part: f64| waits_s[((part * waits_s.len() as f64).ceil() as usize).clamp(1, waits_s.len()) - 1];
        Self {
            mean_s: waits_s.iter().sum::<f64>() / waits_s.len() as f64,
            p50_s: rank(0.5),
            p95_s: rank(0.95),
            max_s: *last,
        }
    }
}

/// What it meant for one project.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ProjectOutcome {
    /// Its name.
    pub name: String,
    /// Its shares.
    pub shares: u32,
    /// Jobs built.
    pub jobs: u64,
    /// Seconds they built.
    pub work_s: f64,
    /// When the last one ended.
    pub finished_at_s: f64,
    /// How long its ready jobs waited.
    pub waits: Waits,
}

/// One window of the timeline.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Sample {
    /// Its start.
    pub from_s: f64,
    /// Its end.
    pub to_s: f64,
    /// Part of all slots' time that was used.
    pub utilisation: f64,
    /// Ready jobs that waited at its end.
    pub waiting: u64,
    /// Jain's index of the window, when it was contended.
    pub fairness: Option<f64>,
}

/// Calls of the policy, and those that failed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Failures {
    /// How often it was asked for an order.
    pub ranks: u64,
    /// How often it gave nothing usable (of all calls, also for the books).
    pub failures: u64,
    /// What the first failure was.
    pub first: Option<String>,
}

/// What a simulation shows.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outcome {
    /// Jobs built.
    pub jobs: u64,
    /// Builders.
    pub builders: u32,
    /// Slots of all builders.
    pub slots: u64,
    /// When the last job ended.
    pub makespan_s: f64,
    /// What it could have been at best.
    pub bounds: Bounds,
    /// Part of all slots' time, from the start to the makespan, in which they built.
    pub utilisation: f64,
    /// Jain's index: the mean over contended windows (see [`jain`]); `None` when no window was contended.
    ///
    /// A window is a hundredth of all work divided by all slots. It is contended when at least two projects had ready jobs
    /// waiting during all of it. Their numbers are the slot seconds that each got in the window over its shares.
    pub fairness: Option<f64>,
    /// How long ready jobs waited.
    pub waits: Waits,
    /// By project, as in the workload.
    pub projects: Vec<ProjectOutcome>,
    /// How it went.
    pub timeline: Vec<Sample>,
    /// How the policy did.
    pub policy: Failures,
    /// Start and end of each job, in seconds.
    #[serde(skip)]
    pub spans_s: Vec<(f64, f64)>,
}

/// Jain's fairness index of what each got: `(Σx)² / (n · Σx²)`. 1 when all got the same, `1/n` when one got everything.
/// `None` for nobody; nothing at all for everybody is fair.
pub fn jain(amounts: &[f64]) -> Option<f64> {
    let sum: f64 = amounts.iter().sum();
    let squares: f64 = amounts.iter().map(|amount| amount * amount).sum();
    match amounts.len() {
        0 => None,
        _ if squares <= 0.0 => Some(1.0),
        count => Some(sum * sum / (count as f64 * squares)),
    }
}

#[derive(Clone, Default)]
struct Account {
    waiting: u64,
    running: u64,
    /// Since when without a break jobs of it waited.
    backlogged_since_s: Option<f64>,
    /// Slot seconds in this window.
    used_s: f64,
    counted_to_s: f64,
}

impl Account {
    fn count(&mut self, now_s: f64) {
        self.used_s += self.running as f64 * (now_s - self.counted_to_s);
        self.counted_to_s = now_s;
    }
}

/// Listens to a simulation.
pub(super) struct Recorder {
    fleet: Fleet,
    bounds: Bounds,
    window_s: f64,
    windows_closed: u64,
    accounts: Vec<Account>,
    shares: Vec<u32>,
    timeline: Vec<Sample>,
    ready_s: Vec<f64>,
    spans_s: Vec<(f64, f64)>,
    owners: Vec<u32>,
    policy: Failures,
    makespan_s: f64,
}

impl Recorder {
    pub(super) fn new(workload: &Workload, fleet: Fleet, bounds: Bounds) -> Self {
        Self {
            fleet,
            bounds,
            window_s: (bounds.work_over_slots_s / WINDOWS).max(WINDOW_MIN_S),
            windows_closed: 0,
            accounts: vec![Account::default(); workload.projects.len()],
            shares: workload.projects.iter().map(|project| project.shares.max(1)).collect(),
            timeline: Vec::new(),
            ready_s: vec![f64::NAN; workload.jobs.len()],
            spans_s: vec![(f64::NAN, f64::NAN); workload.jobs.len()],
            owners: workload.jobs.iter().map(|job| job.project).collect(),
            policy: Failures::default(),
            makespan_s: 0.0,
        }
    }

    /// Time moves on: windows that end by then are closed.
    pub(super) fn advance(&mut self, now_s: f64) {
        loop {
            let end_s = (self.windows_closed + 1) as f64 * self.window_s;
            if end_s > now_s {
                return;
            }
            self.close(end_s);
        }
    }

    fn close(&mut self, end_s: f64) {
        let from_s = self.windows_closed as f64 * self.window_s;
        self.windows_closed += 1;
        let (mut used_s, mut waiting, mut amounts) = (0.0, 0, Vec::new());
        for (account, shares) in self.accounts.iter_mut().zip(&self.shares) {
            account.count(end_s);
            if account.backlogged_since_s.is_some_and(|since_s| since_s <= from_s) {
                amounts.push(account.used_s / f64::from(*shares));
            }
            waiting += account.waiting;
            used_s += std::mem::take(&mut account.used_s);
        }
        self.timeline.push(Sample {
            from_s,
            to_s: end_s,
            utilisation: used_s / (self.fleet.slots_total() as f64 * (end_s - from_s)),
            waiting,
            fairness: if amounts.len() < 2 { None } else { jain(&amounts) },
        });
    }

    pub(super) fn ready(&mut self, job: u32, project: u32, now_s: f64) {
        self.ready_s[job as usize] = now_s;
        let account = &mut self.accounts[project as usize];
        account.waiting += 1;
        account.backlogged_since_s.get_or_insert(now_s);
    }

    /// `has_more`: other ready jobs of the project still wait.
    pub(super) fn started(&mut self, job: u32, project: u32, now_s: f64, has_more: bool) {
        self.spans_s[job as usize].0 = now_s;
        let account = &mut self.accounts[project as usize];
        account.count(now_s);
        account.running += 1;
        account.waiting -= 1;
        if !has_more {
            account.backlogged_since_s = None;
        }
    }

    pub(super) fn ended(&mut self, job: u32, now_s: f64) {
        self.spans_s[job as usize].1 = now_s;
        self.makespan_s = self.makespan_s.max(now_s);
        let account = &mut self.accounts[self.owners[job as usize] as usize];
        account.count(now_s);
        account.running -= 1;
    }

    pub(super) fn asked(&mut self, error: Option<PolicyError>) {
        self.policy.ranks += 1;
        self.failed(error);
    }

    pub(super) fn failed(&mut self, error: Option<PolicyError>) {
        if let Some(error) = error {
            self.policy.failures += 1;
            self.policy.first.get_or_insert(error.reason);
        }
    }

    pub(super) fn outcome(mut self, workload: &Workload) -> Outcome {
        let last_s = self.windows_closed as f64 * self.window_s;
        if self.makespan_s > last_s {
            self.close(self.makespan_s);
        }
        let mut waits: Vec<Vec<f64>> = vec![Vec::new(); workload.projects.len()];
        let mut projects: Vec<ProjectOutcome> = workload.projects.iter().map(new_project).collect();
        for ((job, span), ready_s) in workload.jobs.iter().zip(&self.spans_s).zip(&self.ready_s) {
            if span.1.is_nan() {
                continue;
            }
            let project = &mut projects[job.project as usize];
            project.jobs += 1;
            project.work_s += job.seconds;
            project.finished_at_s = project.finished_at_s.max(span.1);
            waits[job.project as usize].push(span.0 - ready_s);
        }
        for (project, waits) in projects.iter_mut().zip(&mut waits) {
            project.waits = Waits::of(waits);
        }
        let mut all: Vec<f64> = waits.into_iter().flatten().collect();
        let contended: Vec<f64> = self.timeline.iter().filter_map(|sample| sample.fairness).collect();
        let work_s: f64 = projects.iter().map(|project| project.work_s).sum();
        let possible_s = self.fleet.slots_total() as f64 * self.makespan_s;
        Outcome {
            jobs: projects.iter().map(|project| project.jobs).sum(),
            builders: self.fleet.builders,
            slots: self.fleet.slots_total(),
            makespan_s: self.makespan_s,
            bounds: self.bounds,
            utilisation: if possible_s > 0.0 { work_s / possible_s } else { 0.0 },
            fairness: (!contended.is_empty()).then(|| contended.iter().sum::<f64>() / contended.len() as f64),
            waits: Waits::of(&mut all),
            projects,
            timeline: self.timeline,
            policy: self.policy,
            spans_s: self.spans_s,
        }
    }
}

fn new_project(project: &SimulatedProject) -> ProjectOutcome {
    ProjectOutcome {
        name: project.name.clone(),
        shares: project.shares,
        jobs: 0,
        work_s: 0.0,
        finished_at_s: 0.0,
        waits: Waits::default(),
    }
}
