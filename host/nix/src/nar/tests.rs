//! Unit tests of the grammar; those against Nix are in `tests/nar_*.rs`.
