//! The upload protocol (`harmonia_core::signer_api`), on nodes with a signer.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use harmonia_core::limits::{DRV_BYTES_MAX, SIGNER_BODY_BYTES_MAX};
use harmonia_core::signer_api::{
    BuildComplete, BuildCompleteAnswer, BuildFailed, BuildFailedAnswer, DrvUpload, DrvUploadAnswer, SlotsAnswer,
    SlotsRequest, SourcesComplete, SourcesCompleteAnswer,
};
use serde::de::DeserializeOwned;

use crate::bodies::{Allowed, Room};
use crate::error::WebError;
use crate::extract::SignerClaim;
use crate::state::AppState;

// One `.drv` of the largest size must fit, in base64.
const _: () = assert!(SIGNER_BODY_BYTES_MAX > DRV_BYTES_MAX * 4 / 3 + 4096);

/// What is read stays in memory until the call is answered, and so does its room.
async fn read<T: DeserializeOwned>(
    state: &AppState,
    is_known: bool,
    headers: &HeaderMap,
    body: Body,
) -> Result<(T, Room), WebError> {
    let bodies = state.bodies();
    let allowed = Allowed { bytes_max: SIGNER_BODY_BYTES_MAX, time: bodies.limits().signer_call };
    if is_known {
        return bodies.json(headers, body, allowed).await;
    }
    bodies.strangers_json(headers, body, allowed).await
}

pub(crate) async fn upload_slots(
    State(state): State<AppState>,
    SignerClaim { signer, token, is_known }: SignerClaim,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<SlotsAnswer>, WebError> {
    let (request, _room): (SlotsRequest, Room) = read(&state, is_known, &headers, body).await?;
    Ok(Json(signer.slots(&token, &request).await?))
}

pub(crate) async fn drv_upload(
    State(state): State<AppState>,
    SignerClaim { signer, token, is_known }: SignerClaim,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<DrvUploadAnswer>, WebError> {
    let (request, _room): (DrvUpload, Room) = read(&state, is_known, &headers, body).await?;
    Ok(Json(signer.drv_upload(&token, request).await?))
}

pub(crate) async fn sources_complete(
    State(state): State<AppState>,
    SignerClaim { signer, token, is_known }: SignerClaim,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<SourcesCompleteAnswer>, WebError> {
    let (request, _room): (SourcesComplete, Room) = read(&state, is_known, &headers, body).await?;
    Ok(Json(signer.sources_complete(&token, &request).await?))
}

pub(crate) async fn build_complete(
    State(state): State<AppState>,
    SignerClaim { signer, token, is_known }: SignerClaim,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<BuildCompleteAnswer>, WebError> {
    let (request, _room): (BuildComplete, Room) = read(&state, is_known, &headers, body).await?;
    Ok(Json(signer.build_complete(&token, request).await?))
}

pub(crate) async fn build_failed(
    State(state): State<AppState>,
    SignerClaim { signer, token, is_known }: SignerClaim,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<BuildFailedAnswer>, WebError> {
    let (request, _room): (BuildFailed, Room) = read(&state, is_known, &headers, body).await?;
    Ok(Json(signer.build_failed(&token, &request).await?))
}
