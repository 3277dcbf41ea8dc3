//! Recorded queues: JSON lines, one job a line after a line that says what the file is (docs/simulate.md). Start at
//! [`read_record`].

use std::collections::HashMap;
use std::io::BufRead;

use serde::{Deserialize, Serialize};

use super::{SimulatedJob, SimulatedProject, Workload, WorkloadError};

/// What the first line says, so that another file is not taken for a queue.
pub const RECORD_FORMAT: &str = "harmonia-ci queue 1";
/// Longest line, in bytes.
const LINE_BYTES_MAX: u64 = 4 << 20;
/// Most jobs of a file.
const JOBS_MAX: usize = 20_000_000;
/// How long a job builds when no job of the file ever did.
const UNKNOWN_S: f64 = 30.0;

/// The first line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordHead {
    /// [`RECORD_FORMAT`].
    pub format: String,
}

/// One job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RecordLine {
    /// Its number, unique in the file; the smaller, the older.
    pub job: i64,
    /// Its project.
    pub project: String,
    /// The project's shares.
    #[serde(default = "shares")]
    pub shares: u32,
    /// System and required features.
    #[serde(default)]
    pub class: String,
    /// 0, or more when boosted.
    #[serde(default)]
    pub priority: i32,
    /// When it came into the queue: seconds since any moment, the same for the whole file.
    #[serde(default)]
    pub queued_at_s: f64,
    /// How long it built; absent: it never did, and the median of the file is taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
    /// Numbers of the jobs that it waits for. Those that are not in the file count as built.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inputs: Vec<i64>,
    /// Name of what it builds, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
}

fn shares() -> u32 {
    100
}

/// Why a file is no recorded queue.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// It cannot be read.
    #[error("could not read the recorded queue")]
    Read(#[source] std::io::Error),
    /// It is something else.
    #[error("this is no recorded queue: its first line is not {{\"format\":\"{RECORD_FORMAT}\"}}")]
    Format,
    /// A line is not as it should be.
    #[error("line {line} of the recorded queue is no job")]
    Line {
        /// Its number, from 1.
        line: usize,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
    /// A line or the file is longer than any should be.
    #[error("line {line} of the recorded queue goes beyond what is read (lines of 4 MiB, 20 million jobs)")]
    TooLong {
        /// Its number, from 1.
        line: usize,
    },
    /// Two lines have one number.
    #[error("job {job} is there twice")]
    Twice {
        /// The number.
        job: i64,
    },
    /// Its jobs make no queue.
    #[error("the recorded queue cannot be replayed")]
    Workload(#[from] WorkloadError),
}

/// Reads a recorded queue. Its times begin with the first job that was queued.
pub fn read_record(mut file: impl BufRead) -> Result<Workload, RecordError> {
    let mut lines: Vec<RecordLine> = Vec::new();
    let mut text = Vec::new();
    for line in 1.. {
        text.clear();
        let length = std::io::Read::take(&mut file, LINE_BYTES_MAX + 1)
            .read_until(b'\n', &mut text)
            .map_err(RecordError::Read)?;
        if length == 0 && line > 1 {
            break;
        }
        if length as u64 > LINE_BYTES_MAX || lines.len() >= JOBS_MAX {
            return Err(RecordError::TooLong { line });
        }
        if line == 1 {
            let head: Option<RecordHead> = serde_json::from_slice(&text).ok();
            if head.is_none_or(|head| head.format != RECORD_FORMAT) {
                return Err(RecordError::Format);
            }
        } else if !text.trim_ascii().is_empty() {
            lines.push(serde_json::from_slice(&text).map_err(|source| RecordError::Line { line, source })?);
        }
    }
    workload(lines)
}

fn workload(mut lines: Vec<RecordLine>) -> Result<Workload, RecordError> {
    // The simulator's ids are ages, as the database's.
    lines.sort_by_key(|line| line.job);
    let mut places: HashMap<i64, u32> = HashMap::with_capacity(lines.len());
    for (place, line) in (0_u32..).zip(&lines) {
        if places.insert(line.job, place).is_some() {
            return Err(RecordError::Twice { job: line.job });
        }
    }
    let start_s = lines.iter().map(|line| line.queued_at_s).fold(f64::INFINITY, f64::min);
    let mut known: Vec<f64> =
        lines.iter().filter_map(|line| line.seconds).filter(|seconds| seconds.is_finite()).collect();
    known.sort_unstable_by(f64::total_cmp);
    let median_s = known.get(known.len() / 2).copied().unwrap_or(UNKNOWN_S);
    let (mut projects, mut classes) = (Vec::new(), HashMap::new());
    let mut numbers: HashMap<String, u32> = HashMap::new();
    let mut jobs = Vec::with_capacity(lines.len());
    for line in lines {
        let project = *numbers.entry(line.project).or_insert_with_key(|name| {
            projects.push(SimulatedProject { name: name.clone(), shares: line.shares.max(1) });
            projects.len() as u32 - 1
        });
        let class = classes.len() as i32 + 1;
        jobs.push(SimulatedJob {
            project,
            class: *classes.entry(line.class).or_insert(class),
            priority: line.priority,
            queued_at_s: line.queued_at_s - start_s,
            seconds: line.seconds.unwrap_or(median_s),
            inputs: line.inputs.iter().filter_map(|input| places.get(input).copied()).collect(),
        });
    }
    Ok(Workload::new(projects, jobs)?)
}
