//! Forges for tests: a fake GitHub and a fake Gitea that hold every request against the forges' published descriptions.
//!
//! Start reading at [`FakeGithub`]; [`World`] is what both forges know, [`Faults`] is how they fail, [`Event`] is what they
//! deliver. A request that the real forge would not understand is a violation: tests assert that there are none.
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
    Account, CheckRun, Code, Comment, Commit, CommitStatus, Hook, Installation, Label, Permission, PullRequest, Repository,
    Token, World,
};
