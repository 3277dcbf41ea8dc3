//! The shipped forge plugins as servers run them: the components in the true plugin host, against forges that hold every
//! request to what the real ones publish. Start reading at `bench.rs`; then one folder a forge.

mod bench;
mod conformance;
mod gitea;
mod github;
mod watch;
