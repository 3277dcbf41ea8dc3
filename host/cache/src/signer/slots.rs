//! Where to PUT: presigned URLs for what is not in the bucket yet.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use harmonia_core::ClaimToken;
use harmonia_core::limits::SLOT_SECONDS;
use harmonia_core::signer_api::{Holder, Slot, SlotsAnswer, SlotsRequest};
use harmonia_nix::StorePath;

use super::error::{ObjectDifference, Refusal, SignError};
use super::rows::{Row, rows_by_path};
use super::rules;
use super::wire::{self, Object, Upload};
use super::{PARALLEL_REQUESTS, Signer};
use crate::{PutContract, keys};

/// What kind of object goes up, as its headers say.
#[derive(Debug, Clone, Copy)]
pub(super) struct Form {
    pub(super) content_type: &'static str,
    pub(super) content_encoding: Option<&'static str>,
}

const NAR: Form = Form { content_type: "application/x-nix-nar", content_encoding: None };
/// Clients such as `nix log` undo the encoding by themselves.
pub(super) const LOG: Form = Form { content_type: "text/plain; charset=utf-8", content_encoding: Some("zstd") };

impl Signer {
    /// Says of each path, and of the log, whether its object is in the bucket or where to PUT it.
    ///
    /// A path that the cache has with other bytes is `Present` too: completing will name it as canonical.
    pub async fn slots(&self, token: &ClaimToken, request: &SlotsRequest) -> Result<SlotsAnswer, SignError> {
        let uploads = wire::uploads(&request.paths)?;
        let log = request.log.as_ref().map(wire::log).transpose()?;
        let paths: Vec<StorePath> = uploads.iter().map(|upload| upload.path.clone()).collect();
        let (log_key, rows) = match request.holder {
            Holder::Attempt(attempt) => {
                // Who asks for its log alone has failed.
                let is_built = !paths.is_empty();
                let found = self.db().upload_scope(attempt, token, &paths, &[], is_built).await?;
                let scope = found.scope;
                let is_new = is_built && found.rows.is_empty();
                self.remember_scope(attempt, token, is_new.then(|| scope.clone()));
                let outputs: Vec<&StorePath> = scope.outputs.values().flatten().collect();
                let extras = uploads.iter().filter(|upload| !outputs.contains(&&upload.path)).cloned().collect();
                self.check_extras(&scope.drv_path, extras).await?;
                (Some(keys::attempt_log(&scope.drv_path, attempt)), rows_by_path(found.rows)?)
            }
            Holder::Evaluation(evaluation) => {
                self.db().evaluation_scope(evaluation, token).await?;
                for upload in &uploads {
                    rules::check_source(upload)?;
                }
                (None, self.rows(&paths).await?)
            }
        };
        // Before the look: whoever deletes either sees the lease, or has deleted before we look.
        let leased: Vec<StorePath> = rows.keys().cloned().collect();
        if !leased.is_empty() {
            self.db().renew_leases(&leased).await?;
        }
        let slots: Vec<_> = uploads.iter().map(|upload| self.path_slot(upload, &rows)).collect();
        let paths = stream::iter(slots).buffered(PARALLEL_REQUESTS).try_collect().await?;
        let log = match (log, log_key) {
            (None, _) => None,
            (Some(log), Some(key)) => Some(self.object_slot(key, log.object, LOG).await?),
            (Some(_), None) => {
                let problem = Refusal::TooMuch { what: "logs of an evaluation", found: 1, max: 0 };
                return Err(problem.into());
            }
        };
        Ok(SlotsAnswer { paths, log })
    }

    async fn path_slot(&self, upload: &Upload, rows: &BTreeMap<StorePath, Row>) -> Result<Slot, SignError> {
        if let Some(row) = rows.get(&upload.path)
            && row.is_held()
            && row.upload.object != upload.object
        {
            let canonical = row.upload.object;
            if self.look_shared(keys::nar(&canonical.hash), canonical).await?.is_none() {
                return Ok(Slot::Present);
            }
        }
        self.object_slot(keys::nar(&upload.object.hash), upload.object, NAR).await
    }

    async fn object_slot(&self, key: String, object: Object, form: Form) -> Result<Slot, SignError> {
        let Some(difference) = self.look_shared(key.clone(), object).await? else { return Ok(Slot::Present) };
        let contract = PutContract {
            key: &key,
            length: object.size,
            sha256: object.hash,
            content_type: form.content_type,
            content_encoding: form.content_encoding,
            // What is there and wrong has to be replaced.
            write_once: difference == ObjectDifference::Missing && self.is_write_once(),
        };
        let now = self.inner.options.clock.now();
        let put = self.store().presign_put(&contract, now, Duration::from_secs(SLOT_SECONDS)).await?;
        Ok(Slot::Put { url: put.url, headers: put.headers })
    }
}
