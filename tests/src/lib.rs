//! What the tests of the whole share: the workspace as cargo and git see it. The tests are in `tests/`.
//!
//! Start reading at `tests/tidy.rs` for the rules of the house, and at `tests/black_box_*.rs` for what the built binary
//! must do.

pub mod workspace;
