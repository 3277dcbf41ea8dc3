//! Completing an upload although the object store lost or spoilt something of it. Start at [`SignerClient::complete`].

use std::future::Future;

use harmonia_core::signer_api::SlotsRequest;
use harmonia_core::token::ClaimToken;

use super::{SignerClient, SignerError, UploadSource};

/// How often what the signer did not find is uploaded again.
const UPLOADS_AGAIN_MAX: u32 = 3;

/// What [`SignerClient::upload`] brings into the store, kept to bring it there once more.
#[derive(Debug, Clone)]
pub struct Upload {
    /// The objects.
    pub request: SlotsRequest,
    /// Bytes of `request.paths`, in order.
    pub sources: Vec<UploadSource>,
    /// Bytes of `request.log`.
    pub log: Option<UploadSource>,
}

impl SignerClient {
    /// Brings the objects into the store.
    pub async fn send(&self, token: &ClaimToken, upload: &Upload) -> Result<(), SignerError> {
        self.upload(token, &upload.request, &upload.sources, upload.log.as_ref()).await
    }

    /// Makes `call`, which completes `uploads`. When the signer misses objects in the store, or finds others there, they
    /// are uploaded again (it hands out slots for just these) and the call is repeated, a few times.
    pub async fn complete<A, F, C>(&self, token: &ClaimToken, uploads: &[Upload], call: C) -> Result<A, SignerError>
    where
        C: Fn() -> F,
        F: Future<Output = Result<A, SignerError>>,
    {
        let mut again = 0;
        loop {
            match call().await {
                Err(SignerError::NotUploaded { call, message }) if again < UPLOADS_AGAIN_MAX => {
                    again += 1;
                    tracing::warn!(
                        call,
                        message,
                        again,
                        "Objects are not in the store as uploaded, uploading them again"
                    );
                    for upload in uploads {
                        self.send(token, upload).await?;
                    }
                }
                ended => return ended,
            }
        }
    }
}
