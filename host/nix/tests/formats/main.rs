//! Our formats judged by the installed Nix and by recorded derivations. Each test has a store of its own in a
//! temporary folder; nothing outside of it is read or written.

mod derivations;
mod fixtures;
mod hashes;
mod nix;
mod signatures;
mod store_paths;
