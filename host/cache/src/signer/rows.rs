//! Rows of `store_paths` as values, and back.

use std::collections::BTreeMap;

use harmonia_db::{NewPath, PathRow, PathState};
use harmonia_nix::StorePath;

use super::Signer;
use super::error::SignError;
use super::wire::{Object, Upload};

/// What the cache has of a path, or is about to have.
#[derive(Debug, Clone)]
pub(super) struct Row {
    /// What narinfo and signature are made from. Never has a listing: those are not kept.
    pub(super) upload: Upload,
    pub(super) state: PathState,
}

impl Row {
    /// Whether the first writer has won already: what the row says stays.
    pub(super) fn is_held(&self) -> bool {
        matches!(self.state, PathState::Claimed | PathState::Published)
    }
}

impl Signer {
    pub(super) async fn rows(&self, paths: &[StorePath]) -> Result<BTreeMap<StorePath, Row>, SignError> {
        rows_by_path(self.db().path_rows(paths).await?)
    }
}

pub(super) fn rows_by_path(rows: Vec<PathRow>) -> Result<BTreeMap<StorePath, Row>, SignError> {
    rows.into_iter().map(|row| row_of(row).map(|row| (row.upload.path.clone(), row))).collect()
}

pub(super) fn rows_of(rows: Vec<PathRow>) -> Result<Vec<Row>, SignError> {
    rows.into_iter().map(row_of).collect()
}

fn row_of(row: PathRow) -> Result<Row, SignError> {
    let path = row.path.clone();
    let ca = row.ca.as_deref().map(str::parse).transpose().map_err(|cause| invalid_row(&path, cause))?;
    let nar_hash = row.nar_hash.parse().map_err(|cause| invalid_row(&path, cause))?;
    let hash = row.file_hash.parse().map_err(|cause| invalid_row(&path, cause))?;
    let upload = Upload {
        path: row.path,
        nar_hash,
        nar_size: row.nar_size,
        object: Object { hash, size: row.file_size },
        references: row.references.into_iter().collect(),
        deriver: row.deriver,
        ca,
        listing: None,
    };
    Ok(Row { upload, state: row.state })
}

pub(super) fn new_path(upload: &Upload) -> NewPath {
    NewPath {
        path: upload.path.clone(),
        nar_hash: upload.nar_hash.to_string(),
        nar_size: upload.nar_size,
        file_hash: upload.object.hash.to_string(),
        file_size: upload.object.size,
        references: upload.references.iter().cloned().collect(),
        ca: upload.ca.map(|address| address.to_string()),
        deriver: upload.deriver.clone(),
    }
}

pub(super) fn invalid_row(path: &StorePath, cause: impl std::error::Error + Send + Sync + 'static) -> SignError {
    SignError::Row { path: path.to_string(), cause: cause.into() }
}
