//! What the API and the pages show, read only, in the wire types of `harmonia_core::api`.
//!
//! Start at [`evaluations`](self::evaluations) (lists, attributes), `looks` (one evaluation, followed) and `builds` (one job with
//! its history); `why` turns rows into sentences that say why a job does not run; `logs` is what live logs follow.
//!
//! One visibility rule, applied in every statement here: to whom may not see it ([`Db::seen_by`]), what belongs to a project
//! that is not public does not exist. Evaluations go by their project; jobs by their derivation, which may serve many
//! projects, and which names none that is not public.

mod builds;
mod evaluations;
pub(crate) mod forges;
mod logs;
mod looks;
mod projects;
mod queue;
mod waits;
mod why;

pub use evaluations::EvaluationRow;
pub(crate) use evaluations::attr_state;
pub use forges::PageOf;
pub use logs::{LogAttempt, LogMark, LogState, LogTailView};
pub use looks::{LookedAttr, LookedJob, WholeLook};

use std::str::FromStr;

use harmonia_core::state::ParseStateError;

use crate::DbError;
use crate::error::parse;

/// Turns a state's text into its type. The tables' CHECK constraints allow no other words.
fn state<T: FromStr<Err = ParseStateError>>(text: &str) -> Result<T, DbError> {
    parse("state", text)
}

/// A count as PostgreSQL gives it.
fn count(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

#[cfg(test)]
mod tests;
