//! The upload protocol (`harmonia_core::signer_api`), on nodes with a signer.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use harmonia_cache::Signer;
use harmonia_core::limits::{DRV_BYTES_MAX, SIGNER_BODY_BYTES_MAX};
use harmonia_core::signer_api::{
    BuildComplete, BuildCompleteAnswer, BuildFailed, BuildFailedAnswer, DrvUpload, DrvUploadAnswer, SlotsAnswer,
    SlotsRequest, SourcesComplete, SourcesCompleteAnswer,
};

use crate::error::WebError;
use crate::extract::{self, Claim};
use crate::state::AppState;

// One `.drv` of the largest size must fit, in base64.
const _: () = assert!(SIGNER_BODY_BYTES_MAX > DRV_BYTES_MAX * 4 / 3 + 4096);

fn signer(state: &AppState) -> Result<&Signer, WebError> {
    state.options().signer.as_ref().ok_or_else(|| {
        WebError::no_such_service("this node is no signer: ask one of the nodes that have the capability `signer`")
    })
}

pub(crate) async fn upload_slots(
    State(state): State<AppState>,
    Claim(token): Claim,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<SlotsAnswer>, WebError> {
    let signer = signer(&state)?;
    let request: SlotsRequest = extract::json(&headers, body, SIGNER_BODY_BYTES_MAX).await?;
    Ok(Json(signer.slots(&token, &request).await?))
}

pub(crate) async fn drv_upload(
    State(state): State<AppState>,
    Claim(token): Claim,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<DrvUploadAnswer>, WebError> {
    let signer = signer(&state)?;
    let request: DrvUpload = extract::json(&headers, body, SIGNER_BODY_BYTES_MAX).await?;
    Ok(Json(signer.drv_upload(&token, request).await?))
}

pub(crate) async fn sources_complete(
    State(state): State<AppState>,
    Claim(token): Claim,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<SourcesCompleteAnswer>, WebError> {
    let signer = signer(&state)?;
    let request: SourcesComplete = extract::json(&headers, body, SIGNER_BODY_BYTES_MAX).await?;
    Ok(Json(signer.sources_complete(&token, &request).await?))
}

pub(crate) async fn build_complete(
    State(state): State<AppState>,
    Claim(token): Claim,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<BuildCompleteAnswer>, WebError> {
    let signer = signer(&state)?;
    let request: BuildComplete = extract::json(&headers, body, SIGNER_BODY_BYTES_MAX).await?;
    Ok(Json(signer.build_complete(&token, request).await?))
}

pub(crate) async fn build_failed(
    State(state): State<AppState>,
    Claim(token): Claim,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<BuildFailedAnswer>, WebError> {
    let signer = signer(&state)?;
    let request: BuildFailed = extract::json(&headers, body, SIGNER_BODY_BYTES_MAX).await?;
    Ok(Json(signer.build_failed(&token, &request).await?))
}
