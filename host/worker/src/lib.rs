//! Roles that run foreign code: the evaluator turns commits into queued jobs, the builder turns jobs into outputs.
//!
//! Start reading at [`evaluator::run`] and [`builder::run`], the two loops; both hand what they made to a signer
//! through [`signer_client::SignerClient`], over HTTP even when the signer runs in the same process.
//!
//! Never here: signing keys, the object store's credentials, forges, plugins, pages.

pub mod binary_cache;
pub mod builder;
pub mod evaluator;
pub mod git;
pub mod pack;
pub mod remote_heads;
pub mod signer_client;
pub mod store_daemon;
pub mod substitute;

#[cfg(test)]
mod test_parts;
