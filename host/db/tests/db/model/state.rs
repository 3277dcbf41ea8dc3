//! The model: jobs as a map, every rule as set operations over the whole graph. Slow and plain on purpose; nothing of it
//! is taken from the SQL.

use std::collections::{BTreeMap, BTreeSet};

use harmonia_core::JobStatus::{Building, Cancelled, DepFailed, Failed, Pending, Succeeded, Uploading};
use harmonia_core::limits::{LOST_NODES_MAX, TRANSIENT_TRIES_MAX};
use harmonia_core::{EvalStatus, FailureKind, JobStatus};

use crate::world::Drv;

#[derive(Debug, Clone)]
pub(crate) struct Job {
    pub(crate) status: JobStatus,
    kind: Option<FailureKind>,
    priority: i32,
    retries: u32,
    lost: u32,
    /// An evaluator must walk below it first.
    walking: bool,
    /// Order of insertion.
    id: usize,
}

#[derive(Debug, Clone)]
pub(crate) struct EvalState {
    project: usize,
    branch: &'static str,
    pub(crate) status: EvalStatus,
    pub(crate) attrs: BTreeSet<usize>,
    holds: BTreeSet<usize>,
    lost: u32,
}

impl EvalState {
    pub(crate) fn is_running(&self) -> bool {
        self.status == EvalStatus::Running
    }

    fn roots(&self) -> BTreeSet<usize> {
        self.attrs.union(&self.holds).copied().collect()
    }
}

#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) graph: Vec<Drv>,
    pub(crate) jobs: BTreeMap<usize, Job>,
    /// Live evaluations only.
    pub(crate) evals: BTreeMap<i64, EvalState>,
    pub(crate) published: BTreeSet<usize>,
    /// Derivations that have a row.
    known: BTreeSet<usize>,
    losses: BTreeMap<usize, u32>,
}

/// What is compared with the database: status, kind, unmet inputs, priority, transient failures.
pub(crate) type Seen = (JobStatus, Option<FailureKind>, i32, i32, i32);

impl Model {
    pub(crate) fn new(graph: Vec<Drv>) -> Self {
        let (known, published) = (BTreeSet::new(), BTreeSet::new());
        Self { graph, jobs: BTreeMap::new(), evals: BTreeMap::new(), published, known, losses: BTreeMap::new() }
    }

    fn status(&self, number: usize) -> Option<JobStatus> {
        self.jobs.get(&number).map(|job| job.status)
    }

    fn available(&self, number: usize) -> bool {
        self.graph[number].outputs.iter().all(|path| self.published.contains(path))
    }

    /// Claimed and published are one here: every claim is followed by its publication.
    pub(crate) fn outputs_claimed(&self, number: usize) -> bool {
        self.available(number)
    }

    fn above(&self, number: usize) -> impl Iterator<Item = usize> + '_ {
        self.graph.iter().enumerate().filter(move |(_, drv)| drv.deps.contains(&number)).map(|(above, _)| above)
    }

    fn unmet(&self, number: usize) -> i32 {
        let open = |dep: &&usize| self.status(**dep).is_some_and(|status| status != Succeeded);
        let walking = self.jobs.get(&number).is_some_and(|job| job.walking);
        self.graph[number].deps.iter().filter(open).count() as i32 + i32::from(walking)
    }

    pub(crate) fn view(&self) -> BTreeMap<usize, Seen> {
        self.jobs
            .iter()
            .map(|(number, job)| {
                let unmet = if job.status == Pending { self.unmet(*number) } else { 0 };
                (*number, (job.status, job.kind, unmet, job.priority, job.retries as i32))
            })
            .collect()
    }

    fn set(&mut self, number: usize, status: JobStatus) {
        let job = self.jobs.get_mut(&number).expect("a job");
        job.status = status;
        job.kind = None;
    }

    /// No pending job above a failed or cancelled one. Dependencies have smaller numbers.
    fn settle(&mut self) {
        for number in 0..self.graph.len() {
            if self.status(number) != Some(Pending) {
                continue;
            }
            let below = |wanted: &[JobStatus]| {
                self.graph[number]
                    .deps
                    .iter()
                    .any(|dep| self.status(*dep).is_some_and(|status| wanted.contains(&status)))
            };
            if below(&[Failed, DepFailed]) {
                self.set(number, DepFailed);
            } else if below(&[Cancelled]) {
                self.set(number, Cancelled);
            }
        }
    }

    /// From `from` downwards through jobs that are not over with (succeeded, cancelled).
    fn below(&self, from: &BTreeSet<usize>) -> BTreeSet<usize> {
        let open = |number: usize| !matches!(self.status(number), None | Some(Succeeded | Cancelled));
        let mut found: BTreeSet<usize> = from.iter().copied().filter(|number| open(*number)).collect();
        for number in (0..self.graph.len()).rev() {
            if found.contains(&number) {
                found.extend(self.graph[number].deps.iter().copied().filter(|dep| open(*dep)));
            }
        }
        found
    }

    fn wanted(&self) -> BTreeSet<usize> {
        self.below(&self.evals.values().flat_map(EvalState::roots).collect())
    }

    fn cancel_unwanted(&mut self, roots: &BTreeSet<usize>, running: bool) -> usize {
        let wanted = self.wanted();
        let before = self.count(Cancelled);
        for number in self.below(roots).difference(&wanted).copied().collect::<Vec<_>>() {
            let may = match self.status(number) {
                Some(Pending) => true,
                Some(Building) => running,
                Some(Uploading) => running && !self.outputs_claimed(number),
                _ => false,
            };
            if may && self.available(number) {
                self.succeed(number);
            } else if may {
                self.set(number, Cancelled);
            }
        }
        self.settle();
        self.count(Cancelled) - before
    }

    fn count(&self, status: JobStatus) -> usize {
        self.jobs.values().filter(|job| job.status == status).count()
    }

    pub(crate) fn create_evaluation(&mut self, id: i64, project: usize, branch: &'static str) {
        let old: Vec<i64> = self
            .evals
            .iter()
            .filter(|(_, eval)| eval.project == project && eval.branch == branch)
            .map(|(id, _)| *id)
            .collect();
        self.withdraw(&old, false);
        for id in old {
            self.evals.remove(&id);
        }
        let (attrs, holds) = (BTreeSet::new(), BTreeSet::new());
        self.evals.insert(id, EvalState { project, branch, status: EvalStatus::Running, attrs, holds, lost: 0 });
    }

    /// These evaluations want nothing any more.
    pub(crate) fn withdraw(&mut self, ids: &[i64], running: bool) {
        let mut roots = BTreeSet::new();
        for id in ids {
            let eval = self.evals.get_mut(id).expect("live");
            roots.extend(eval.roots());
            eval.attrs.clear();
            eval.holds.clear();
        }
        self.cancel_unwanted(&roots, running);
    }

    pub(crate) fn finish(&mut self, id: i64) {
        let eval = self.evals.get_mut(&id).expect("live");
        eval.status = EvalStatus::Succeeded;
        let holds: BTreeSet<usize> = std::mem::take(&mut eval.holds).difference(&eval.attrs.clone()).copied().collect();
        self.cancel_unwanted(&holds, false);
    }

    pub(crate) fn requeue(&mut self, id: i64) {
        let eval = self.evals.get_mut(&id).expect("live");
        eval.status = EvalStatus::Queued;
        eval.holds.append(&mut eval.attrs);
    }

    fn reopens(&self, number: usize) -> bool {
        match self.jobs.get(&number) {
            None => false,
            Some(job) => match job.status {
                Cancelled | DepFailed => true,
                Failed => matches!(job.kind, Some(FailureKind::Infrastructure | FailureKind::Unsupported)),
                _ => false,
            },
        }
    }

    /// Where an evaluator walks from these roots.
    pub(crate) fn walk(&self, roots: &[usize]) -> Vec<usize> {
        let descends = |number: usize| {
            let stands = self.available(number)
                || (self.status(number).is_some() && !self.reopens(number) && !self.jobs[&number].walking);
            !(self.known.contains(&number) && stands)
        };
        let mut walked: BTreeSet<usize> = roots.iter().copied().filter(|root| descends(*root)).collect();
        for number in (0..self.graph.len()).rev() {
            if walked.contains(&number) {
                walked.extend(self.graph[number].deps.iter().copied().filter(|dep| descends(*dep)));
            }
        }
        walked.into_iter().collect()
    }

    /// Returns how many jobs are new.
    pub(crate) fn insert(&mut self, id: i64, walked: &[usize], roots: &[usize]) -> usize {
        let reopened: BTreeSet<usize> =
            walked.iter().copied().filter(|number| self.reopens(*number) && !self.available(*number)).collect();
        self.known.extend(walked);
        let mut new = 0;
        for number in walked {
            if !self.jobs.contains_key(number) && !self.available(*number) {
                let id = self.jobs.len();
                let fresh = Job { status: Pending, kind: None, priority: 0, retries: 0, lost: 0, walking: false, id };
                self.jobs.insert(*number, fresh);
                new += 1;
            }
        }
        let reset = self.reset(&reopened, Some(0));
        for number in walked.iter().filter(|number| !self.available(**number)).copied().collect::<Vec<_>>() {
            self.jobs.get_mut(&number).expect("a job").walking = false;
        }
        self.settle();
        // What is available gets no job, and leads nowhere: the jobs below it are wanted through holds of their own, or nobody
        // would withdraw them.
        let waiting = walked.iter().filter(|number| !self.available(**number));
        let inner: BTreeSet<usize> = waiting.flat_map(|number| self.graph[*number].deps.clone()).collect();
        let eval = self.evals.get_mut(&id).expect("live");
        eval.attrs.extend(roots);
        eval.holds.extend(walked.iter().filter(|number| !inner.contains(number) && !roots.contains(number)));
        let along: BTreeSet<usize> = reset.difference(&reopened).copied().collect();
        self.cancel_unwanted(&along, false);
        new
    }

    /// Pending again, with what is dep-failed above.
    fn reset(&mut self, numbers: &BTreeSet<usize>, priority: Option<i32>) -> BTreeSet<usize> {
        let over = |status| matches!(status, Some(Failed | DepFailed | Cancelled));
        let mut reset: BTreeSet<usize> = numbers.iter().copied().filter(|number| over(self.status(*number))).collect();
        for number in 0..self.graph.len() {
            if reset.contains(&number) {
                reset.extend(self.above(number).filter(|above| self.status(*above) == Some(DepFailed)));
            }
        }
        for number in &reset {
            self.set(*number, Pending);
            let job = self.jobs.get_mut(number).expect("a job");
            (job.retries, job.lost) = (0, 0);
            job.priority = priority.unwrap_or(job.priority);
        }
        self.settle();
        self.recheck(&reset);
        reset
    }

    /// The first `count` ready jobs of our system, manual rebuilds first.
    pub(crate) fn claim(&mut self, count: usize) -> Vec<usize> {
        let ready = |number: &usize, job: &Job| {
            job.status == Pending && self.unmet(*number) == 0 && self.graph[*number].system == crate::world::SYSTEM
        };
        let mut ready: Vec<(i32, usize, usize)> = self
            .jobs
            .iter()
            .filter(|(number, job)| ready(number, job))
            .map(|(number, job)| (-job.priority, job.id, *number))
            .collect();
        ready.sort_unstable();
        let claimed: Vec<usize> = ready.into_iter().take(count).map(|(.., number)| number).collect();
        for number in &claimed {
            self.set(*number, Building);
        }
        claimed
    }

    fn succeed(&mut self, number: usize) {
        self.set(number, Succeeded);
        let job = self.jobs.get_mut(&number).expect("a job");
        (job.retries, job.lost, job.priority) = (0, 0, 0);
    }

    pub(crate) fn complete(&mut self, number: usize) {
        self.succeed(number);
        self.published.extend(self.graph[number].outputs.clone());
        self.turn_up();
    }

    /// After `numbers` became pending again: what is there is there, and what nobody can make strands those above.
    fn recheck(&mut self, numbers: &BTreeSet<usize>) {
        self.turn_up();
        let is_stranded = |number: &usize| {
            self.status(*number) == Some(Pending)
                && self.graph[*number].deps.iter().any(|dep| !self.jobs.contains_key(dep) && !self.available(*dep))
        };
        let stranded: Vec<usize> = numbers.iter().copied().filter(is_stranded).collect();
        self.await_walk(&stranded);
    }

    /// What somebody wants waits for a walk, the rest fails.
    fn await_walk(&mut self, numbers: &[usize]) {
        let (wanted, mut left): (Vec<usize>, Vec<usize>) =
            numbers.iter().partition(|number| self.jobs[*number].walking || self.is_wanted_by_an_evaluation(**number));
        for number in wanted {
            self.jobs.get_mut(&number).expect("a job").walking = true;
        }
        self.settle();
        left.sort_by_key(|number| self.jobs[number].id);
        for number in left {
            if self.status(number) == Some(Pending) {
                self.fail_for_good(number, FailureKind::Infrastructure);
            }
        }
    }

    /// Through jobs that have not ended.
    fn is_wanted_by_an_evaluation(&self, number: usize) -> bool {
        let mut up = BTreeSet::from([number]);
        for other in number..self.graph.len() {
            let runs = matches!(self.status(other), Some(Pending | Building | Uploading));
            if runs && self.graph[other].deps.iter().any(|dep| up.contains(dep)) {
                up.insert(other);
            }
        }
        self.evals.values().any(|eval| !eval.roots().is_disjoint(&up))
    }

    /// Pending jobs that an evaluator is to walk below.
    pub(crate) fn walks(&self) -> BTreeSet<usize> {
        let walks = |(_, job): &(&usize, &Job)| job.walking && job.status == Pending;
        self.jobs.iter().filter(walks).map(|(number, _)| *number).collect()
    }

    /// Those of them that somebody is to find.
    pub(crate) fn wanted_walks(&self) -> BTreeSet<usize> {
        self.walks().into_iter().filter(|number| self.is_wanted_by_an_evaluation(*number)).collect()
    }

    /// The attributes of an evaluation that ended hold everything.
    pub(crate) fn end_walk(&mut self, id: i64) {
        let eval = self.evals.get_mut(&id).expect("live");
        if !eval.is_running() {
            eval.holds.clear();
        }
    }

    /// Jobs whose outputs are there have nothing to do, whatever became of them, but for those that are being built. What failed
    /// for them comes back where somebody wants it.
    fn turn_up(&mut self) {
        let mut above = BTreeSet::new();
        for other in 0..self.graph.len() {
            if matches!(self.status(other), Some(Pending | Failed | DepFailed | Cancelled)) && self.available(other) {
                if self.status(other) != Some(Pending) {
                    above.extend(self.above(other));
                }
                self.succeed(other);
            }
        }
        above.retain(|number| self.status(*number) == Some(DepFailed));
        if !above.is_empty() {
            let reset = self.reset(&above, None);
            self.cancel_unwanted(&reset, false);
        }
    }

    fn fail_for_good(&mut self, number: usize, kind: FailureKind) {
        if self.available(number) {
            // Another made its outputs meanwhile.
            self.succeed(number);
            return;
        }
        self.set(number, Failed);
        self.jobs.get_mut(&number).expect("a job").kind = Some(kind);
        self.settle();
    }

    pub(crate) fn fail(&mut self, number: usize, kind: Option<FailureKind>) {
        let job = self.jobs.get_mut(&number).expect("a job");
        match kind {
            Some(kind) => self.fail_for_good(number, kind),
            None if job.retries + 1 >= TRANSIENT_TRIES_MAX => self.fail_for_good(number, FailureKind::Infrastructure),
            None => {
                job.retries += 1;
                self.give_back(&[number]);
            }
        }
    }

    /// Claimed jobs are pending again, but for those whose outputs are there.
    pub(crate) fn give_back(&mut self, numbers: &[usize]) {
        for number in numbers {
            if self.status(*number) == Some(Building) || !self.outputs_claimed(*number) {
                self.set(*number, Pending);
            }
        }
        self.settle();
        self.recheck(&numbers.iter().copied().collect());
    }

    /// The node said goodbye, and came back.
    pub(crate) fn restart(&mut self, held: &[usize]) {
        self.give_back(held);
        let running = self.running();
        for id in running {
            self.requeue(id);
        }
    }

    /// It vanished, or crashed and came back.
    pub(crate) fn lose_node(&mut self, held: &[usize]) {
        let mut back = Vec::new();
        for number in held {
            if self.status(*number) == Some(Uploading) && self.outputs_claimed(*number) {
                continue;
            }
            let job = self.jobs.get_mut(number).expect("a job");
            job.lost += 1;
            if job.lost >= LOST_NODES_MAX {
                self.fail_for_good(*number, FailureKind::Infrastructure);
            } else {
                back.push(*number);
            }
        }
        self.give_back(&back);
        for id in self.running() {
            let eval = self.evals.get_mut(&id).expect("live");
            eval.lost += 1;
            if eval.lost >= LOST_NODES_MAX {
                self.withdraw(&[id], false);
                self.evals.remove(&id);
            } else {
                self.requeue(id);
            }
        }
    }

    fn running(&self) -> Vec<i64> {
        self.evals.iter().filter(|(_, eval)| eval.is_running()).map(|(id, _)| *id).collect()
    }

    pub(crate) fn rebuild(&mut self, numbers: &[usize]) -> usize {
        let over = |status| matches!(status, Some(Failed | DepFailed | Cancelled));
        let mut below: BTreeSet<usize> = numbers.iter().copied().filter(|number| over(self.status(*number))).collect();
        for number in (0..self.graph.len()).rev() {
            if below.contains(&number) {
                below.extend(self.graph[number].deps.iter().copied().filter(|dep| over(self.status(*dep))));
            }
        }
        self.reset(&below, Some(100)).len()
    }

    /// `None`: refused, since several branches or projects want it.
    pub(crate) fn cancel_job(&mut self, number: usize) -> Option<usize> {
        if !matches!(self.status(number), Some(Pending | Building | Uploading)) {
            return Some(0);
        }
        let wanting: BTreeSet<(usize, &str)> = self
            .evals
            .values()
            .filter(|eval| self.below(&eval.roots()).contains(&number))
            .map(|eval| (eval.project, eval.branch))
            .collect();
        if wanting.len() > 1 {
            return None;
        }
        if self.status(number) == Some(Uploading) && self.outputs_claimed(number) {
            return Some(0);
        }
        let before = self.count(Cancelled);
        if self.available(number) {
            self.succeed(number);
            return Some(0);
        }
        self.set(number, Cancelled);
        self.settle();
        self.cancel_unwanted(&self.graph[number].deps.iter().copied().collect(), false);
        Some(self.count(Cancelled) - before)
    }

    /// Returns whether it was once too often.
    pub(crate) fn lose(&mut self, path: usize) -> bool {
        self.published.remove(&path);
        let losses = self.losses.entry(path).or_default();
        *losses += 1;
        let too_often = *losses > 2;
        // What was there without a job gets one, if somebody wants it.
        let unmade: Vec<usize> = (0..self.graph.len())
            .filter(|number| self.graph[*number].outputs.contains(&path) && !self.jobs.contains_key(number))
            .filter(|number| self.known.contains(number))
            .collect();
        for number in unmade {
            if self.is_wanted_by_an_evaluation(number) {
                let id = self.jobs.len();
                let fresh = Job { status: Pending, kind: None, priority: 0, retries: 0, lost: 0, walking: true, id };
                self.jobs.insert(number, fresh);
                self.settle();
            } else {
                let above: Vec<usize> =
                    self.above(number).filter(|above| self.status(*above) == Some(Pending)).collect();
                self.await_walk(&above);
            }
        }
        let makers: Vec<usize> = (0..self.graph.len())
            .filter(|number| self.status(*number) == Some(Succeeded) && self.graph[*number].outputs.contains(&path))
            .collect();
        for number in &makers {
            self.set(*number, Pending);
        }
        self.settle();
        self.recheck(&makers.iter().copied().collect());
        if too_often {
            for number in &makers {
                if self.status(*number) == Some(Pending) {
                    self.fail_for_good(*number, FailureKind::Infrastructure);
                }
            }
        }
        too_often && !makers.is_empty()
    }

    pub(crate) fn mark_unsupported(&mut self, system: &str) {
        let jobs: BTreeSet<(usize, usize)> = self
            .jobs
            .iter()
            .filter(|(number, job)| job.status == Pending && self.graph[**number].system == system)
            .map(|(number, job)| (job.id, *number))
            .collect();
        // In the order in which the jobs came: one may be above another.
        for (_, number) in jobs {
            if self.status(number) == Some(Pending) {
                self.fail_for_good(number, FailureKind::Unsupported);
            }
        }
    }

    pub(crate) fn revive_unsupported(&mut self) {
        let jobs: BTreeSet<usize> = self
            .jobs
            .iter()
            .filter(|(_, job)| job.kind == Some(FailureKind::Unsupported))
            .map(|(number, _)| *number)
            .collect();
        let reset = self.reset(&jobs, None);
        self.cancel_unwanted(&reset, false);
    }

    pub(crate) fn cancel_orphans(&mut self) -> usize {
        let mut roots: BTreeSet<usize> = self.evals.values().flat_map(EvalState::roots).collect();
        roots.extend(self.jobs.iter().filter(|(_, job)| job.priority > 0).map(|(number, _)| *number));
        let wanted = self.below(&roots);
        let before = self.count(Cancelled);
        let pending: Vec<usize> = self.jobs.iter().filter(|(_, job)| job.status == Pending).map(|(n, _)| *n).collect();
        for number in pending.into_iter().filter(|number| !wanted.contains(number)) {
            self.set(number, Cancelled);
        }
        self.settle();
        self.count(Cancelled) - before
    }

    /// Whether `cause` failed, and `number` depends on it.
    pub(crate) fn failed_for(&self, number: usize, cause: usize) -> bool {
        let mut below = BTreeSet::from([number]);
        for number in (0..self.graph.len()).rev() {
            if below.contains(&number) {
                below.extend(self.graph[number].deps.clone());
            }
        }
        self.status(cause) == Some(Failed) && below.contains(&cause)
    }
}
