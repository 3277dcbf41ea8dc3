//! `POST /api/v1/bundles`: a git bundle, streamed into the database in pieces of at most 1 MiB.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use bytes::BytesMut;
use harmonia_core::api::BundleStored;
use harmonia_core::limits::BUNDLE_BYTES_MAX;
use sha2::{Digest, Sha256};

use crate::bodies::{self, Pieces};
use crate::error::WebError;
use crate::extract::ApiUser;
use crate::state::AppState;

/// What one row holds.
const CHUNK_BYTES: usize = 1 << 20;
/// Every bundle begins with one of these.
const SIGNATURES: [&[u8]; 2] = [b"# v2 git bundle\n", b"# v3 git bundle\n"];
const SIGNATURE_BYTES: usize = 16;

/// A bundle that breaks off stays unfinished: no evaluation can name it, and it is deleted with other stale ones.
pub(crate) async fn store(
    State(state): State<AppState>,
    _: ApiUser,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<BundleStored>, WebError> {
    bodies::declared(&headers, BUNDLE_BYTES_MAX)?;
    let _room = state.bodies().buffer(2 * CHUNK_BYTES).await?;
    let mut pieces = Pieces::new(body, state.bodies().limits().bundle);
    let mut kept = BytesMut::with_capacity(CHUNK_BYTES);
    while kept.len() < SIGNATURE_BYTES {
        let Some(piece) = pieces.next().await? else { break };
        kept.extend_from_slice(&piece);
    }
    if !SIGNATURES.iter().any(|signature| kept.starts_with(signature)) {
        return Err(WebError::refused("the body is no git bundle (made with `git bundle create`)"));
    }
    let bundle = state.db().begin_bundle().await?;
    let mut upload = Upload { state: &state, bundle, seq: 0, size: 0, hash: Sha256::new() };
    if let Err(error) = upload.take(pieces, kept).await {
        // What came so far is of no use. Should this fail too, it goes with other stale bundles.
        let _ = state.db().abandon_bundle(bundle).await;
        return Err(error);
    }
    state.db().finish_bundle(bundle, upload.size, upload.hash.finalize().into()).await?;
    Ok(Json(BundleStored { bundle }))
}

struct Upload<'a> {
    state: &'a AppState,
    bundle: i64,
    seq: u32,
    size: u64,
    hash: Sha256,
}

impl Upload<'_> {
    async fn take(&mut self, mut pieces: Pieces, mut kept: BytesMut) -> Result<(), WebError> {
        loop {
            while kept.len() >= CHUNK_BYTES {
                let chunk = kept.split_to(CHUNK_BYTES);
                self.append(&chunk).await?;
            }
            let Some(piece) = pieces.next().await? else { break };
            kept.extend_from_slice(&piece);
        }
        if kept.is_empty() { Ok(()) } else { self.append(&kept).await }
    }

    async fn append(&mut self, chunk: &[u8]) -> Result<(), WebError> {
        self.size += chunk.len() as u64;
        if self.size > BUNDLE_BYTES_MAX {
            return Err(WebError::too_large(BUNDLE_BYTES_MAX, "the bundle"));
        }
        self.hash.update(chunk);
        self.state.db().append_bundle(self.bundle, self.seq, chunk).await?;
        self.seq += 1;
        Ok(())
    }
}
