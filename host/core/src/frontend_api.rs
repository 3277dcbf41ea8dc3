//! What other nodes ask of a frontend over HTTP. Calls carry `Authorization: Bearer <claim token>`.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::EvalId;

/// `POST /internal/clone-credential`: the credential with which an evaluator fetches the repository of the evaluation that
/// its token claims. 404: the project has no forge. 409: the token is void.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CloneCredentialRequest {
    /// The evaluation that the token holds.
    pub eval: EvalId,
}

/// Answer to [`CloneCredentialRequest`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CloneCredentialAnswer {
    /// `None`: the repository can be fetched by anybody.
    pub credential: Option<WireCredential>,
}

/// A credential on its way between two nodes.
#[derive(Clone, Serialize, Deserialize)]
pub struct WireCredential {
    /// User.
    pub user: String,
    /// Password.
    pub password: String,
    /// Servers (`host` or `host:port`) that it may go to.
    pub hosts: Vec<String>,
}

impl fmt::Debug for WireCredential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WireCredential").field("user", &self.user).field("hosts", &self.hosts).finish_non_exhaustive()
    }
}
