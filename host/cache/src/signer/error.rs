//! Why a signer does not do what it was asked for. Start at [`SignError::kind`]: it says what the caller may do.

use std::fmt::Write as _;
use std::sync::Arc;

use harmonia_db::DbError;
use harmonia_nix::derivation::{DerivationFileError, VerifyOutputsError};
use harmonia_nix::{ContentAddress, Hash, StorePath};

use crate::ObjectError;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What the caller of a signer may do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignErrorKind {
    /// The token is void: drop the work.
    StaleClaim,
    /// Sending the same again cannot help.
    Refused,
    /// An object is not in the store as declared: ask for slots again, upload, then complete again.
    NotUploaded,
    /// Nothing is wrong with the call: try again later, or on another signer.
    TryAgain,
    /// The deployment is set up wrongly; an operator has to act. Callers try again meanwhile.
    Misconfigured,
}

/// Why a call of the signer did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// The token belongs to nothing that is still held.
    #[error(
        "the claim token is not (or no longer) valid for this: the work was cancelled, ended, or given to another node"
    )]
    StaleClaim,
    /// The call is not acceptable.
    #[error("refused")]
    Refused(#[source] Box<Refusal>),
    /// Objects that must be there are not, or are others than declared.
    #[error("not in the object store as declared: {}; ask for upload slots again", listed(.0))]
    NotUploaded(Vec<NotUploaded>),
    /// The object store did not do its part.
    #[error("the object store did not do what the signer needs")]
    Store(#[source] Arc<ObjectError>),
    /// The database did not do its part.
    #[error("the database did not do what the signer needs")]
    Database(#[source] Box<DbError>),
    /// The database holds something that no signer wrote.
    #[error("the database row of {path} is not valid")]
    Row {
        /// Which path.
        path: String,
        /// What is wrong.
        #[source]
        cause: BoxError,
    },
}

/// An object that is not there as declared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotUploaded {
    /// Its key.
    pub key: String,
    /// How it differs.
    pub reason: ObjectDifference,
}

/// How an object differs from what was declared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ObjectDifference {
    /// There is none.
    #[error("missing")]
    Missing,
    /// It has another size.
    #[error("has {found} bytes instead of {declared}")]
    Size {
        /// As declared.
        declared: u64,
        /// In the store.
        found: u64,
    },
    /// It has other bytes.
    #[error("has another checksum")]
    Checksum,
}

/// What makes a call unacceptable, however often it is sent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// A count or size is beyond its bound.
    #[error("{what}: {found} is more than the {max} that are accepted")]
    TooMuch {
        /// Of what.
        what: &'static str,
        /// How much there is.
        found: u64,
        /// The bound, see `docs/limits.md`.
        max: u64,
    },
    /// A field is not what it must be.
    #[error("{field} '{text}' is not valid")]
    Malformed {
        /// Which field.
        field: &'static str,
        /// What it says, shortened.
        text: String,
        /// What is wrong.
        #[source]
        cause: BoxError,
    },
    /// The same path twice in one call.
    #[error("{0} is named twice")]
    Twice(StorePath),
    /// The path is none that this token covers.
    #[error("{path} is {why}: this token does not cover it")]
    NotCovered {
        /// Which path.
        path: StorePath,
        /// What it is not.
        why: &'static str,
    },
    /// A content-addressed path that its content does not have.
    #[error("{declared} does not belong to its content: that would be {computed}")]
    WrongContentPath {
        /// The path declared.
        declared: StorePath,
        /// The path computed.
        computed: StorePath,
    },
    /// The content address cannot be one of this path.
    #[error("{path} cannot be addressed by its content like that")]
    ContentAddress {
        /// Which path.
        path: StorePath,
        /// Why.
        #[source]
        cause: BoxError,
    },
    /// The database has other rows for this derivation than its file gives.
    #[error("{0} is registered as something else than its file says; an operator must look at derivation_findings")]
    KnownOtherwise(StorePath),
    /// The outputs are not those of the derivation.
    #[error("the outputs are not those of {derivation}: {problem}")]
    Outputs {
        /// Which derivation.
        derivation: StorePath,
        /// What is wrong, with the names.
        problem: String,
    },
    /// The bytes of a `.drv` file do not belong to its path, or are none.
    #[error("the file of the derivation {path} is not acceptable")]
    DerivationFile {
        /// The path declared.
        path: StorePath,
        /// What is wrong.
        #[source]
        cause: DerivationFileError,
    },
    /// A derivation declares an output path that it does not have.
    #[error("the derivation {path} declares outputs that it does not have")]
    DerivationOutputs {
        /// The derivation.
        path: StorePath,
        /// Which output, and what it must be.
        #[source]
        cause: VerifyOutputsError,
    },
    /// The inputs of a derivation were not uploaded before it.
    #[error("the derivation {derivation} needs {input}, which was never uploaded: upload inputs first")]
    UnknownInput {
        /// The derivation.
        derivation: StorePath,
        /// The input.
        input: StorePath,
    },
    /// A reference that no cache has and that does not come along.
    #[error("{path} refers to paths that no cache has: {}", listed_paths(.missing))]
    MissingReferences {
        /// The path.
        path: StorePath,
        /// The references.
        missing: Vec<StorePath>,
    },
    /// A fixed output, or a content-addressed path, with another content.
    #[error("{path} must have the content {expected}, but has {found}")]
    WrongHash {
        /// Which path.
        path: StorePath,
        /// What its derivation or its path says.
        expected: String,
        /// What it is.
        found: String,
    },
    /// The uploaded archive is not what was declared, or no archive at all.
    #[error("the archive uploaded for {path} is not what was declared")]
    Archive {
        /// Which path.
        path: StorePath,
        /// What is wrong.
        #[source]
        cause: BoxError,
    },
    /// Not possible as things stand in the database.
    #[error("{reason}")]
    State {
        /// Why.
        reason: String,
    },
    /// Outputs whose path is known only after the build are not handled.
    #[error("the output '{output}' of {derivation} is content-addressed without a fixed hash, which is not supported")]
    Floating {
        /// The derivation.
        derivation: StorePath,
        /// The output's name.
        output: String,
    },
}

impl Refusal {
    pub(super) fn wrong_hash(path: &StorePath, expected: ContentAddress, found: Hash) -> Self {
        Self::WrongHash { path: path.clone(), expected: expected.to_string(), found: found.to_string() }
    }
}

impl SignError {
    /// What the caller may do.
    pub fn kind(&self) -> SignErrorKind {
        match self {
            Self::StaleClaim => SignErrorKind::StaleClaim,
            Self::Refused(_) => SignErrorKind::Refused,
            Self::NotUploaded(_) => SignErrorKind::NotUploaded,
            Self::Store(error) if error.is_transient() => SignErrorKind::TryAgain,
            Self::Database(error) if error.is_transient() => SignErrorKind::TryAgain,
            Self::Store(_) | Self::Database(_) | Self::Row { .. } => SignErrorKind::Misconfigured,
        }
    }

    /// Stable kebab-case word for the wire ([`harmonia_core::api::ApiError::code`]).
    pub fn code(&self) -> &'static str {
        match self.kind() {
            SignErrorKind::StaleClaim => "stale-claim",
            SignErrorKind::Refused => "refused",
            SignErrorKind::NotUploaded => "not-uploaded",
            SignErrorKind::TryAgain | SignErrorKind::Misconfigured => "unavailable",
        }
    }

    /// The sentence for whoever called: of a refusal the whole chain, since that is about what the caller sent; of
    /// everything else the first message only.
    pub fn public_message(&self) -> String {
        let Self::Refused(refusal) = self else { return self.to_string() };
        let mut message = refusal.to_string();
        let mut cause = std::error::Error::source(&**refusal);
        while let Some(error) = cause {
            message.push_str(": ");
            message.push_str(&error.to_string());
            cause = error.source();
        }
        message
    }
}

impl From<DbError> for SignError {
    fn from(error: DbError) -> Self {
        match error {
            DbError::StaleClaim => Self::StaleClaim,
            DbError::Refused { reason } => Refusal::State { reason }.into(),
            error => Self::Database(Box::new(error)),
        }
    }
}

impl From<Refusal> for SignError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(Box::new(refusal))
    }
}

impl From<Arc<ObjectError>> for SignError {
    fn from(error: Arc<ObjectError>) -> Self {
        Self::Store(error)
    }
}

impl From<ObjectError> for SignError {
    fn from(error: ObjectError) -> Self {
        Self::Store(Arc::new(error))
    }
}

/// Names as many as a person reads.
const NAMED_MAX: usize = 10;

fn listed(objects: &[NotUploaded]) -> String {
    join(objects.iter().map(|object| format!("{} ({})", object.key, object.reason)), objects.len())
}

pub(super) fn listed_paths(paths: &[StorePath]) -> String {
    join(paths.iter().map(ToString::to_string), paths.len())
}

fn join(items: impl Iterator<Item = String>, count: usize) -> String {
    let mut text = items.take(NAMED_MAX).collect::<Vec<_>>().join(", ");
    if count > NAMED_MAX {
        let _ = write!(text, " and {} more", count - NAMED_MAX);
    }
    text
}
