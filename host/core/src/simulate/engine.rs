//! The simulation itself: an event heap, ready queues by project, builders that ask. Start at [`run`].

use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeSet, BinaryHeap, VecDeque};
use std::time::Duration;

use super::outcome::{Outcome, Recorder};
use super::{SimulatedJob, Workload};
use crate::clock::Timestamp;
use crate::ids::{ClassId, JobId, NodeId, ProjectId};
use crate::policy::{AskingNode, Candidate, Policy, ProjectLoad, charge_all, decay_all, order_candidates};

/// Simulated seconds between two charges of running builds.
const CHARGE_EVERY_S: f64 = 5.0;
/// Simulated seconds between two steps of decay.
const DECAY_EVERY_S: f64 = 60.0;
/// Most heads of a project that a claim looks at, as in the real claim.
const HEADS_MAX: usize = 64;

/// Who builds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fleet {
    /// Builders.
    pub builders: u32,
    /// Slots of each.
    pub slots: u32,
}

impl Fleet {
    /// All slots.
    pub fn slots_total(&self) -> u64 {
        u64::from(self.builders) * u64::from(self.slots)
    }
}

/// What happens at a moment; at the same moment in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Ended { job: u32, builder: u32 },
    Queued { job: u32 },
    Charge,
    Decay,
}

/// An event at a time. Times are finite.
#[derive(Debug, Clone, Copy, PartialEq)]
struct At(f64, Event);

impl Eq for At {}
impl PartialOrd for At {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for At {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.total_cmp(&other.0).then(self.1.cmp(&other.1))
    }
}

/// A project's ready jobs, in the order of the real queue: boosted first, then the oldest.
type ReadyQueue = BTreeSet<(Reverse<i32>, u32)>;

struct Project {
    ready: ReadyQueue,
    consumed_seconds: f64,
    running: u32,
    uncharged_seconds: f64,
    /// Up to when `uncharged_seconds` counts.
    counted_to_s: f64,
}

struct Simulation<'a> {
    workload: &'a Workload,
    policy: &'a dyn Policy,
    events: BinaryHeap<Reverse<At>>,
    now_s: f64,
    /// Inputs that are not built, and one more until the job is queued.
    unmet: Vec<u32>,
    /// Of each job, who waits for it.
    dependents: Vec<Vec<u32>>,
    projects: Vec<Project>,
    /// Projects with ready jobs.
    with_ready: BTreeSet<u32>,
    builders: Vec<AskingNode>,
    /// Builders with free slots that nobody had anything for, longest idle first, each once.
    idle: VecDeque<u32>,
    is_idle: Vec<bool>,
    /// Builders that got a slot back at this moment.
    is_freed: Vec<bool>,
    recorder: Recorder,
    left: usize,
}

/// Builds all of `workload` with `fleet`, in the order of `policy`.
///
/// A fleet without slots builds nothing: the outcome then is that of an empty workload.
pub fn run(workload: &Workload, fleet: Fleet, policy: &dyn Policy) -> Outcome {
    let bounds = workload.bounds(fleet.slots_total());
    let left = if fleet.slots_total() == 0 { 0 } else { workload.jobs.len() };
    let mut dependents = vec![Vec::new(); workload.jobs.len()];
    for (job, it) in (0_u32..).zip(&workload.jobs) {
        for input in &it.inputs {
            dependents[*input as usize].push(job);
        }
    }
    let queued = (0_u32..).zip(&workload.jobs).map(|(job, it)| Reverse(At(it.queued_at_s, Event::Queued { job })));
    let chores = [Reverse(At(CHARGE_EVERY_S, Event::Charge)), Reverse(At(DECAY_EVERY_S, Event::Decay))];
    let new_project = || Project {
        ready: BTreeSet::new(),
        consumed_seconds: 0.0,
        running: 0,
        uncharged_seconds: 0.0,
        counted_to_s: 0.0,
    };
    let mut simulation = Simulation {
        workload,
        policy,
        events: queued.chain(chores).collect(),
        now_s: 0.0,
        unmet: workload.jobs.iter().map(|job| job.inputs.len() as u32 + 1).collect(),
        dependents,
        projects: workload.projects.iter().map(|_| new_project()).collect(),
        with_ready: BTreeSet::new(),
        builders: (0..fleet.builders)
            .map(|n| AskingNode { node: NodeId(format!("builder-{n}")), slots: fleet.slots, speed_factor: 1.0 })
            .collect(),
        idle: (0..fleet.builders).collect(),
        is_idle: vec![true; fleet.builders as usize],
        is_freed: vec![false; fleet.builders as usize],
        recorder: Recorder::new(workload, fleet, bounds),
        left,
    };
    simulation.until_all_is_built();
    simulation.recorder.outcome(workload)
}

impl Simulation<'_> {
    fn until_all_is_built(&mut self) {
        while self.left > 0 {
            let Some(Reverse(At(now_s, event))) = self.events.pop() else { return };
            self.recorder.advance(now_s);
            self.now_s = now_s;
            let mut freed = Vec::new();
            self.happen(event, &mut freed);
            // All of this moment, before anybody asks.
            while let Some(Reverse(At(at_s, next))) = self.events.peek().copied()
                && at_s <= now_s
            {
                self.events.pop();
                self.happen(next, &mut freed);
            }
            // Who just became free asks for itself; then whoever waited longest, as long as there is something.
            for builder in freed {
                self.is_freed[builder as usize] = false;
                self.claim(builder);
            }
            while !self.with_ready.is_empty()
                && let Some(builder) = self.idle.pop_front()
            {
                self.is_idle[builder as usize] = false;
                self.claim(builder);
                if self.is_idle[builder as usize] {
                    break;
                }
            }
        }
    }

    fn happen(&mut self, event: Event, freed: &mut Vec<u32>) {
        match event {
            Event::Queued { job } => self.met(job),
            Event::Ended { job, builder } => {
                self.left -= 1;
                let project = self.workload.jobs[job as usize].project;
                self.count(project);
                self.projects[project as usize].running -= 1;
                self.recorder.ended(job, self.now_s);
                self.builders[builder as usize].slots += 1;
                if !self.is_idle[builder as usize] && !std::mem::replace(&mut self.is_freed[builder as usize], true) {
                    freed.push(builder);
                }
                for dependent in std::mem::take(&mut self.dependents[job as usize]) {
                    self.met(dependent);
                }
            }
            Event::Charge => {
                self.charge();
                self.events.push(Reverse(At(self.now_s + CHARGE_EVERY_S, Event::Charge)));
            }
            Event::Decay => {
                self.decay();
                self.events.push(Reverse(At(self.now_s + DECAY_EVERY_S, Event::Decay)));
            }
        }
    }

    /// One thing less that the job waits for.
    fn met(&mut self, job: u32) {
        self.unmet[job as usize] -= 1;
        if self.unmet[job as usize] > 0 {
            return;
        }
        let SimulatedJob { project, priority, .. } = self.workload.jobs[job as usize];
        self.projects[project as usize].ready.insert((Reverse(priority), job));
        self.with_ready.insert(project);
        self.recorder.ready(job, project, self.now_s);
    }

    /// The builder asks for as many jobs as it has free slots, and takes the first of the policy's order.
    fn claim(&mut self, builder: u32) {
        let slots = self.builders[builder as usize].slots as usize;
        let (loads, candidates) = self.heads(slots.min(HEADS_MAX));
        let mut taken = 0;
        if !candidates.is_empty() && slots > 0 {
            let asking = &self.builders[builder as usize];
            let (order, error) = order_candidates(self.policy, asking, &loads, &candidates);
            self.recorder.asked(error);
            for job in order.into_iter().take(slots) {
                self.start((job.0 - 1) as u32, builder);
                taken += 1;
            }
        }
        if taken < slots && !self.is_idle[builder as usize] {
            self.is_idle[builder as usize] = true;
            self.idle.push_back(builder);
        }
    }

    fn heads(&self, per_project: usize) -> (Vec<ProjectLoad>, Vec<Candidate>) {
        let mut loads = Vec::with_capacity(self.with_ready.len());
        let mut candidates = Vec::with_capacity(self.with_ready.len() * per_project);
        for number in &self.with_ready {
            let project = &self.projects[*number as usize];
            let id = ProjectId(i64::from(*number) + 1);
            loads.push(ProjectLoad {
                project: id,
                shares: self.workload.projects[*number as usize].shares,
                consumed_seconds: project.consumed_seconds,
                running: project.running,
            });
            candidates.extend(project.ready.iter().take(per_project).map(|(_, job)| {
                let it = &self.workload.jobs[*job as usize];
                Candidate {
                    job: JobId(i64::from(*job) + 1),
                    project: id,
                    class: ClassId(it.class),
                    priority: it.priority,
                    queued_at: Timestamp::UNIX_EPOCH + Duration::from_secs_f64(it.queued_at_s.min(1e9)),
                    retries: 0,
                    path_length: self.workload.path_lengths[*job as usize],
                }
            }));
        }
        (loads, candidates)
    }

    fn start(&mut self, job: u32, builder: u32) {
        let SimulatedJob { project, priority, seconds, .. } = self.workload.jobs[job as usize];
        self.count(project);
        let queue = &mut self.projects[project as usize];
        queue.ready.remove(&(Reverse(priority), job));
        queue.running += 1;
        if queue.ready.is_empty() {
            self.with_ready.remove(&project);
        }
        let has_more = !queue.ready.is_empty();
        self.builders[builder as usize].slots -= 1;
        self.recorder.started(job, project, self.now_s, has_more);
        self.events.push(Reverse(At(self.now_s + seconds, Event::Ended { job, builder })));
    }

    /// Counts a project's running seconds up to now.
    fn count(&mut self, project: u32) {
        let project = &mut self.projects[project as usize];
        project.uncharged_seconds += f64::from(project.running) * (self.now_s - project.counted_to_s);
        project.counted_to_s = self.now_s;
    }

    fn charge(&mut self) {
        let mut charges = Vec::new();
        for number in 0..self.projects.len() as u32 {
            self.count(number);
            let project = &mut self.projects[number as usize];
            if project.uncharged_seconds > 0.0 {
                let load = ProjectLoad {
                    project: ProjectId(i64::from(number) + 1),
                    shares: self.workload.projects[number as usize].shares,
                    consumed_seconds: project.consumed_seconds,
                    running: project.running,
                };
                charges.push((load, std::mem::take(&mut project.uncharged_seconds)));
            }
        }
        if charges.is_empty() {
            return;
        }
        let (becomes, error) = charge_all(self.policy, &charges);
        self.recorder.failed(error);
        for ((load, _), becomes) in charges.iter().zip(becomes) {
            self.projects[(load.project.0 - 1) as usize].consumed_seconds = becomes;
        }
    }

    fn decay(&mut self) {
        let consumed: Vec<f64> = self.projects.iter().map(|project| project.consumed_seconds).collect();
        let (becomes, error) = decay_all(self.policy, &consumed, DECAY_EVERY_S);
        self.recorder.failed(error);
        for (project, becomes) in self.projects.iter_mut().zip(becomes) {
            project.consumed_seconds = becomes;
        }
    }
}
