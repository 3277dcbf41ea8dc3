//! The fakes under test themselves: what a fake lets pass, no other test will notice.

mod client;
mod deliveries;
mod gitea;
mod github;
