//! Store paths: what the cache holds, who may upload what, and how a finished build is published. The signer's side;
//! statements are in `migrations/functions/store_paths.sql`. Start at [`Db::claim_outputs`] and [`Db::publish_outputs`].

mod publish;
mod rows;

pub use publish::{Claimed, Finished, Healed, NewPath, UnfinishedPublication};
pub use rows::{AttemptScope, CanonicalPath, EvaluationScope, PathRow, PathState};
pub(crate) use rows::{parse_all, strings};
