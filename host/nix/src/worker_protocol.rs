//! The Nix worker protocol: client codec.
