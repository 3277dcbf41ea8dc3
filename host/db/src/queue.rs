//! The queue of build jobs: what builders claim and how it ends. Start at `claim`, then `finish`; what users do is in
//! `users`; `charge` keeps the scheduling policy's books, `record` reads the queue for the simulator. The statements behind
//! are in `jobs.sql`, `claims.sql` and `builders.sql` of `migrations/functions`.

mod charge;
mod claim;
mod finish;
mod record;
mod users;

pub use charge::{Booking, DecayDue, UnchargedAttempt};
pub use claim::{ClaimedJob, JobLimits, QueueHeads};
pub use finish::{FailOutcome, LogTail};
pub(crate) use finish::{size, text};
pub use record::RecordedJob;
