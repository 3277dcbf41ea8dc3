//! The cache with its real parts: an S3 endpoint, PostgreSQL, Nix.

mod crash;
mod healing;
mod hostile;
mod nix;
mod object_store;
mod publish;
mod reader;
mod support;
mod world;
