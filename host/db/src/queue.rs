//! The queue of build jobs: what builders claim and how it ends. Start at `claim`, then `finish`; what users do is in
//! `users`. The statements behind are in `migrations/0007_job_transitions.sql` and `0008_builders.sql`.

mod claim;
mod finish;
mod users;

pub use claim::{ClaimedJob, JobLimits, QueueHeads};
pub use finish::{FailOutcome, LogTail};
pub(crate) use finish::{size, text};
