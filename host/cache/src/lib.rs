//! What stands between the bucket and everybody else: upload slots, the signer, and the reader of the binary cache.
//!
//! Start reading at [`Signer`] for how a path gets into the cache (slots, verification, claim, signature, publication),
//! then at [`Reader`] for how it gets out. [`ObjectStore`] is the only code that speaks S3.
//!
//! Never here: HTTP routes and status codes, the queue's policy, processes, foreign code.
//! Only here: signing keys and the object store's credentials.

mod flight;
pub mod keys;
mod object;
mod reader;
mod signer;

pub use object::{
    ByteRange, DEFAULT_REGION, ObjectBody, ObjectError, ObjectHead, ObjectStore, ObjectStoreOptions, PresignedPut,
    PutContract, PutOptions, PutOutcome,
};
pub use reader::{Body, BodyHead, ReadError, Reader, ReaderOptions};
pub use signer::{
    NotUploaded, ObjectDifference, ProbeReport, PublishedHook, Refusal, SignError, SignErrorKind, Signer,
    SignerOptions, Verify, VerifyError,
};
