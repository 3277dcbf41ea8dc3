//! What `harmonia-ci up` brings along so that one command runs the whole thing on one machine.
//!
//! Start reading at [`postgres::PrivatePostgres`], the shortest of the services. Each service is one that a larger
//! installation has elsewhere, spoken to in the same way: a PostgreSQL URL, an S3 endpoint with a key pair, the
//! socket of a Nix daemon. `up` only writes another configuration.
//!
//! Never here: SQL, our schema, evaluations, jobs, signing. This crate could serve any other program.

pub mod demo;
pub mod nix_daemon;
mod percent;
pub mod postgres;
mod process;
pub mod s3;
