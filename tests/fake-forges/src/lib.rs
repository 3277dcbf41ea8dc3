//! Forges for tests: a fake GitHub and a fake Gitea that hold every request against the forges' published descriptions.
//!
//! Start reading at [`FakeGithub`]; [`World`] is what both forges know, [`Faults`] is how they fail, [`Event`] is what they
//! deliver. A request that the real forge would not understand is a violation: tests assert that there are none.
//!
//! ```no_run
//! # async fn example() {
//! use harmonia_fake_forges::{Event, FakeGithub};
//!
//! let forge = FakeGithub::start().await;
//! let (before, after) = {
//!     let mut world = forge.world();
//!     world.add_repository("acme/site");
//!     let before = world.repository("acme/site").head("main").to_owned();
//!     let after = world.push("acme/site", "main", "A change");
//!     world.install("acme", None);
//!     (before, after)
//! };
//! let reference = "refs/heads/main";
//! let push = Event::Push { repository: "acme/site", reference, before: &before, after: &after, pusher: "alice" };
//! let delivery = forge.delivery(push); // headers and body, to be posted to what is tested
//! # let _ = delivery;
//! forge.until("the commit is green", |forge| !forge.check_runs("acme/site", &after).is_empty()).await;
//! assert_eq!(forge.violations(), Vec::<String>::new());
//! # }
//! ```
//!
//! Never here: anything of ours that is being tested. Signatures, tokens and payloads come from the forges' own libraries
//! and examples (package.json, installed by `./dev setup`), so that a mistake of ours cannot confirm itself.

mod delivery;
mod description;
mod faults;
mod files;
mod forge;
mod gitea;
mod github;
mod helper;
mod json;
mod oauth;
mod server;
mod world;

pub use delivery::{CommentAction, Delivery, Event, InstallationAction, PullRequestAction, RepositoryAction};
pub use faults::{Effect, Faults, Gate, When};
pub use forge::{Recorded, WorldGuard};
pub use gitea::FakeGitea;
pub use github::FakeGithub;
pub use world::{
    Account, CheckRun, Code, Comment, Commit, CommitStatus, Hook, Installation, Label, Permission, PullRequest,
    Repository, Token, World,
};
