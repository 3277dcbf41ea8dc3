//! Tests of the store on its own. With stock Nix beside it: `host/daemon/tests`.
