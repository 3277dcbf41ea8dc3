//! Store paths: what the cache holds, who may upload what, and how a finished build is published. The signer's side;
//! statements are in `migrations/functions/store_paths.sql`. Start at [`Db::claim_outputs`] and [`Db::publish_outputs`].

mod publish;
mod rows;
mod upstream;

pub use publish::{Alongside, Claimed, Finished, Healed, MissingPath, NewPath, UnfinishedPublication};
pub use rows::{AttemptScope, BuildInput, CanonicalPath, EvaluationScope, PathRow, PathState, UploadScope};
pub(crate) use rows::{parse_all, strings};
pub use upstream::{ClaimedWalk, UpstreamAnswer, UpstreamFault, UpstreamTrouble};
