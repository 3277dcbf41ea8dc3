//! Workloads that look like real ones, from a seed: the same seed gives the same jobs, on every machine and for good.
//!
//! Projects have sizes by Zipf's law. Each queues its jobs as evaluations, whose sizes are heavy-tailed, at random moments.
//! An evaluation is a graph in layers: a job waits for up to six jobs of the layers below, mostly the next one; some wait for
//! nothing. Build times are log-normal: the median is 12 seconds, the mean near a minute, some take hours.

use super::{SimulatedJob, SimulatedProject, Workload, WorkloadError};

/// Median of build times, in seconds.
const MEDIAN_S: f64 = 12.0;
/// Width of their distribution, in powers of e.
const SIGMA: f64 = 1.7;
/// No build takes longer (the default time limit of builds).
const LONGEST_S: f64 = 4.0 * 3600.0;
/// Jobs of the median evaluation, and the most.
const EVALUATION_MEDIAN: f64 = 60.0;
const EVALUATION_MAX: f64 = 20_000.0;
/// Part of the jobs that wait for nothing.
const LEAVES: f64 = 0.15;

/// How evaluations are shaped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// Layers, as of packages: as many as the logarithm of the jobs, three times.
    Layered,
    /// No job waits for another.
    Wide,
    /// Layers of four jobs: long chains.
    Deep,
}

/// What to generate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Generated {
    /// Jobs.
    pub jobs: u32,
    /// Projects; at least 1.
    pub projects: u32,
    /// Seconds within which evaluations come, evenly.
    pub arrive_within_s: f64,
    /// Shape of each.
    pub shape: Shape,
    /// Whatever follows from chance follows from this.
    pub seed: u64,
}

/// `SplitMix64` (Steele, Lea, Flood 2014): small, and its numbers never change with a library's version.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// From 0 up to, and without, 1.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// From 0 up to, and without, `bound`.
    fn below(&mut self, bound: u32) -> u32 {
        (self.unit() * f64::from(bound)) as u32
    }

    /// Log-normal (Box and Muller's method).
    fn log_normal(&mut self, median: f64, sigma: f64) -> f64 {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        median * (sigma * radius * (std::f64::consts::TAU * self.unit()).cos()).exp()
    }
}

/// Generates a workload.
pub fn generate(wanted: &Generated) -> Result<Workload, WorkloadError> {
    let mut random = Random(wanted.seed);
    let count = wanted.projects.max(1);
    let harmonic: f64 = (1..=count).map(|rank| 1.0 / f64::from(rank)).sum();
    let mut jobs = Vec::with_capacity(wanted.jobs as usize);
    let (mut upto, mut given) = (0.0, 0);
    let mut projects = Vec::with_capacity(count as usize);
    for rank in 1..=count {
        let number = rank - 1;
        projects.push(SimulatedProject { name: format!("project-{rank}"), shares: 100 });
        upto += 1.0 / f64::from(rank) / harmonic;
        let end = if rank == count { wanted.jobs } else { (upto * f64::from(wanted.jobs)).round() as u32 };
        while given < end {
            let size = random.log_normal(EVALUATION_MEDIAN, 1.5).clamp(1.0, EVALUATION_MAX) as u32;
            let size = size.min(end - given);
            let queued_at_s = random.unit() * wanted.arrive_within_s.max(0.0);
            evaluation(&mut jobs, &mut random, number, size, queued_at_s, wanted.shape);
            given += size;
        }
    }
    // Ids are ages: who came first has the smaller one.
    in_order_of_arrival(&mut jobs);
    Workload::new(projects, jobs)
}

fn evaluation(
    jobs: &mut Vec<SimulatedJob>,
    random: &mut Random,
    project: u32,
    size: u32,
    queued_at_s: f64,
    shape: Shape,
) {
    let first = jobs.len() as u32;
    let width = match shape {
        Shape::Wide => size,
        Shape::Deep => 4,
        Shape::Layered => (f64::from(size) / (3.0 * f64::from(size).ln()).max(1.0)).ceil() as u32,
    }
    .max(1);
    for place in 0..size {
        let layer = place / width;
        let mut inputs = Vec::new();
        if layer > 0 && random.unit() >= LEAVES {
            for _ in 0..=random.below(6) {
                // Mostly of the layer below, now and then of an older one.
                let back = (random.unit().powi(4) * f64::from(layer)) as u32;
                inputs.push(first + (layer - 1 - back.min(layer - 1)) * width + random.below(width));
            }
            inputs.sort_unstable();
            inputs.dedup();
        }
        let seconds = random.log_normal(MEDIAN_S, SIGMA).min(LONGEST_S);
        jobs.push(SimulatedJob { project, class: 1, priority: 0, queued_at_s, seconds, inputs });
    }
}

fn in_order_of_arrival(jobs: &mut Vec<SimulatedJob>) {
    let mut order: Vec<u32> = (0..jobs.len() as u32).collect();
    // Stable: jobs of an evaluation stay as they are, inputs first.
    order.sort_by(|a, b| jobs[*a as usize].queued_at_s.total_cmp(&jobs[*b as usize].queued_at_s));
    let mut places = vec![0_u32; jobs.len()];
    for (place, job) in (0_u32..).zip(&order) {
        places[*job as usize] = place;
    }
    let mut sorted: Vec<SimulatedJob> = order
        .iter()
        .map(|job| {
            let job = &mut jobs[*job as usize];
            SimulatedJob { inputs: std::mem::take(&mut job.inputs), ..*job }
        })
        .collect();
    for job in &mut sorted {
        for input in &mut job.inputs {
            *input = places[*input as usize];
        }
    }
    *jobs = sorted;
}
