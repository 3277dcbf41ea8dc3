//! What the tests of the whole share: the workspace as cargo and git see it ([`workspace`]), the built binary as a
//! server and as a command ([`server`]), stock Nix as the judge ([`stock_nix`]). The tests are in `tests/`.
//!
//! Start reading at `tests/tidy.rs` for the rules of the house, and at `tests/black_box_*.rs` for what the built binary
//! must do.

pub mod repository;
pub mod server;
pub mod stock_nix;
pub mod workspace;
