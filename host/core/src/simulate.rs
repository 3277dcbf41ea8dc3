//! A simulator of the queue: what would happen under another scheduling policy, or with other builders. Pure: the same
//! workload, fleet and policy give the same outcome, and nothing here reads a clock.
//!
//! Start reading at [`run`], which is `simulate/engine.rs`. A [`Workload`] is recorded (`record.rs` has the file format) or
//! generated ([`generate`]); an [`Outcome`] prints as SVG with [`svg()`].
//!
//! It does as the real thing does where that matters to a policy: a builder asks for as many jobs as it has free slots; the
//! policy ranks at most that many heads of each project; boosted jobs go first; builds are charged every few seconds while
//! they run, and consumption fades. It does not simulate downloads, uploads, failures, or builders of different systems:
//! every builder runs everything.

mod engine;
mod generate;
mod outcome;
mod record;
mod svg;

#[cfg(test)]
mod tests;

pub use engine::{Fleet, run};
pub use generate::{Generated, Shape, generate};
pub use outcome::{Bounds, Failures, Outcome, ProjectOutcome, Sample, Waits, jain};
pub use record::{RECORD_FORMAT, RecordError, RecordHead, RecordLine, read_record};
pub use svg::svg;

/// A project that wants jobs built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SimulatedProject {
    /// Its name.
    pub name: String,
    /// Its scheduling shares; at least 1.
    pub shares: u32,
}

/// One job.
#[derive(Debug, Clone, PartialEq)]
pub struct SimulatedJob {
    /// Index of its project.
    pub project: u32,
    /// Its class; shown to the policy, and no more than that.
    pub class: i32,
    /// 0, or more when boosted.
    pub priority: i32,
    /// When it comes into the queue, in seconds since the start.
    pub queued_at_s: f64,
    /// How long it builds.
    pub seconds: f64,
    /// Indexes of the jobs it waits for.
    pub inputs: Vec<u32>,
}

/// Jobs and whose they are.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Workload {
    projects: Vec<SimulatedProject>,
    jobs: Vec<SimulatedJob>,
    /// Of each job: jobs on the longest chain above it, itself included.
    path_lengths: Vec<u32>,
    /// Jobs, inputs before dependents.
    order: Vec<u32>,
}

/// Why jobs make no workload.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WorkloadError {
    /// An index is out of range.
    #[error("job {job} names a project or an input that does not exist")]
    Unknown {
        /// Index of the job.
        job: usize,
    },
    /// A time that is none.
    #[error("job {job} has a time that is negative or no number")]
    Time {
        /// Index of the job.
        job: usize,
    },
    /// Jobs wait for each other in a circle.
    #[error("{jobs} jobs wait for each other in a circle")]
    Cycle {
        /// How many are in circles or behind them.
        jobs: usize,
    },
    /// More than the simulator's numbers hold.
    #[error("more jobs or projects than can be counted")]
    TooMany,
}

impl Workload {
    /// Checks the graph, and finds how long the chains are.
    pub fn new(projects: Vec<SimulatedProject>, jobs: Vec<SimulatedJob>) -> Result<Self, WorkloadError> {
        if u32::try_from(jobs.len()).is_err() || u32::try_from(projects.len()).is_err() {
            return Err(WorkloadError::TooMany);
        }
        for (job, it) in jobs.iter().enumerate() {
            if it.project as usize >= projects.len() || it.inputs.iter().any(|input| *input as usize >= jobs.len()) {
                return Err(WorkloadError::Unknown { job });
            }
            let is_time = |seconds: f64| seconds.is_finite() && seconds >= 0.0;
            if !is_time(it.queued_at_s) || !is_time(it.seconds) {
                return Err(WorkloadError::Time { job });
            }
        }
        let mut waiting_for = vec![0_u32; jobs.len()];
        for job in &jobs {
            for input in &job.inputs {
                waiting_for[*input as usize] += 1;
            }
        }
        // From those that nothing waits for, down to inputs.
        let mut path_lengths = vec![1_u32; jobs.len()];
        let mut order: Vec<u32> =
            (0..).zip(&waiting_for).filter(|(_, count)| **count == 0).map(|(job, _)| job).collect();
        let mut done = 0;
        while let Some(&job) = order.get(done) {
            done += 1;
            for input in &jobs[job as usize].inputs {
                let above = path_lengths[job as usize].saturating_add(1);
                let length = &mut path_lengths[*input as usize];
                *length = above.max(*length);
                let count = &mut waiting_for[*input as usize];
                *count -= 1;
                if *count == 0 {
                    order.push(*input);
                }
            }
        }
        if order.len() < jobs.len() {
            return Err(WorkloadError::Cycle { jobs: jobs.len() - order.len() });
        }
        order.reverse();
        Ok(Self { projects, jobs, path_lengths, order })
    }

    /// The projects.
    pub fn projects(&self) -> &[SimulatedProject] {
        &self.projects
    }

    /// The jobs.
    pub fn jobs(&self) -> &[SimulatedJob] {
        &self.jobs
    }

    /// What no order of jobs can beat on so many slots.
    pub fn bounds(&self, slots: u64) -> Bounds {
        let mut ends_s = vec![0.0_f64; self.jobs.len()];
        let mut critical_path_s = 0.0_f64;
        for job in &self.order {
            let it = &self.jobs[*job as usize];
            let start = it.inputs.iter().map(|input| ends_s[*input as usize]).fold(it.queued_at_s, f64::max);
            ends_s[*job as usize] = start + it.seconds;
            critical_path_s = critical_path_s.max(start + it.seconds);
        }
        let work_s: f64 = self.jobs.iter().map(|job| job.seconds).sum();
        Bounds { critical_path_s, work_s, work_over_slots_s: work_s / slots.max(1) as f64 }
    }
}
