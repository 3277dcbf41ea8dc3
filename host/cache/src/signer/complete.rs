//! A finished build: from "the bytes are up" to "the job succeeded".

use std::collections::{BTreeMap, BTreeSet};

use harmonia_core::limits::PATHS_PER_CALL_MAX;
use harmonia_core::signer_api::{BuildComplete, BuildCompleteAnswer};
use harmonia_core::{AttemptId, ClaimToken};
use harmonia_db::{Alongside, UploadScope};
use harmonia_nix::StorePath;

use super::error::{Refusal, SignError};
use super::publish::take_listings;
use super::rows::{Row, new_path, rows_by_path, rows_of};
use super::rules::{self, CheckedOutput};
use super::wire::{self, Upload};
use super::{Answered, Signer};
use crate::keys;

impl Signer {
    /// Verifies, claims, signs and publishes the outputs of a build, and ends its job.
    ///
    /// In order: the outputs are exactly those of the derivation, the closure is complete, the objects are there and
    /// have the content they must have; then all outputs are claimed in one transaction, and from there on any signer
    /// can finish ([`Signer::finish_unfinished`]).
    pub async fn build_complete(
        &self,
        token: &ClaimToken,
        call: BuildComplete,
    ) -> Result<BuildCompleteAnswer, SignError> {
        let BuildComplete { attempt, outputs, extra_paths, log, usage } = call;
        if let Some(Answered::Completed(answer)) = self.answered(attempt, token) {
            return Ok(answer);
        }
        wire::bound("outputs of a build", outputs.len() as u64, PATHS_PER_CALL_MAX as u64)?;
        let mut outputs = outputs
            .into_iter()
            .map(|output| Ok((output.name, wire::upload(&output.info)?)))
            .collect::<Result<Vec<(String, Upload)>, SignError>>()?;
        let mut extras = wire::uploads(&extra_paths)?;
        wire::distinct(outputs.iter().map(|(_, upload)| &upload.path).chain(extras.iter().map(|extra| &extra.path)))?;
        let log = log.as_ref().map(wire::log).transpose()?;
        let mut listings = take_listings(outputs.iter_mut().map(|(_, upload)| upload).chain(&mut extras));

        // All that is to be known before, in one question. What comes along is asked about when it is known to be needed.
        let uploads = || outputs.iter().map(|(_, upload)| upload);
        let paths: Vec<StorePath> = uploads().chain(&extras).map(|upload| upload.path.clone()).collect();
        let outer = if extras.is_empty() {
            rules::outer_references(uploads().map(|upload| (&upload.path, &upload.references)))
        } else {
            Vec::new()
        };
        // Or none: then the claim, which checks the token and the references itself, is the first. (A log that is in the bucket
        // must not become the latest on the word of a token that nobody checked.)
        let is_log_at_hand = log.as_ref().is_none_or(|log| log.bytes.is_some()) && !self.inner.options.small_in_bucket;
        let known = self.scope_of_new(attempt, token).filter(|_| extras.is_empty() && is_log_at_hand);
        let is_known = known.is_some();
        let UploadScope { scope, rows, mut missing } = match known {
            Some(scope) => UploadScope { scope, rows: Vec::new(), missing: Vec::new() },
            None => self.db().upload_scope(attempt, token, &paths, &outer, false).await?,
        };
        let mut rows = rows_by_path(rows)?;
        let declared = self.require_outputs(&scope.drv_path).await?;
        let outputs = rules::check_outputs(&scope.drv_path, &declared, outputs)?;
        rules::check_needed(outputs.iter().map(|output| &output.upload), &extras)?;
        let extras = self.check_extras(&scope.drv_path, self.only_missing(extras).await?).await?;

        if !extras.is_empty() {
            missing = self.closure_gate(outputs.iter().chain(&extras).map(|checked| &checked.upload)).await?;
        }
        if !missing.is_empty() {
            return Ok(missing_references(&missing));
        }
        // Boxed, as their states are large and short-lived.
        Box::pin(self.verify_uploads(&extras, &mut rows, Some(attempt))).await?;
        // Neither needs the other; a build that is refused has a log all the same.
        let verified = Box::pin(self.verify_uploads(&outputs, &mut rows, Some(attempt)));
        let logged = Box::pin(self.publish_log(&scope.drv_path, attempt, log.as_ref()));
        let (verified, log_key) = tokio::join!(verified, logged);
        verified?;

        if !extras.is_empty() {
            let new: Vec<_> = extras.iter().map(|extra| new_path(&extra.upload)).collect();
            let rows = rows_of(self.db().claim_extra_paths(attempt, token, &new).await?)?;
            self.publish_sources(&rows, &listings).await?;
        }
        let new: Vec<_> = outputs.iter().map(|output| new_path(&output.upload)).collect();
        let mut along = Alongside::default();
        if is_known {
            along.references = outer;
        }
        if !self.inner.options.small_in_bucket {
            along.log = log.and_then(|log| log.bytes);
            along.listings = listings.keep_small(new.iter().map(|output| &output.path));
        }
        let claimed = self.db().claim_outputs(attempt, token, &new, &along).await?;
        if !claimed.missing.is_empty() {
            return Ok(missing_references(&claimed.missing));
        }
        let claimed_rows = rows_of(claimed.rows)?;
        self.publish_build(scope.job, &claimed_rows, &listings, &usage, log_key.as_deref()).await?;
        if is_known {
            // What others claimed since the slots were asked for: they verified it then.
            let is_ours = |row: &Row| outputs.iter().any(|output| output.upload.object == row.upload.object);
            for row in claimed_rows.iter().filter(|row| !is_ours(row)) {
                self.confirm_delivered(row).await?;
            }
        }
        let answer = if claimed.divergent.is_empty() {
            BuildCompleteAnswer::Published
        } else {
            let differs: Vec<String> = claimed.divergent.iter().map(ToString::to_string).collect();
            tracing::warn!(job = %scope.job, ?differs, "a build is not reproducible: the published outputs stay");
            BuildCompleteAnswer::Canonical { differs }
        };
        self.remember_answer(attempt, token, Answered::Completed(answer.clone()));
        Ok(answer)
    }

    /// Leaves out what some cache has already: there is nothing to add to that.
    async fn only_missing(&self, mut extras: Vec<Upload>) -> Result<Vec<Upload>, SignError> {
        if !extras.is_empty() {
            let paths: Vec<StorePath> = extras.iter().map(|extra| extra.path.clone()).collect();
            let missing = self.db().unavailable_references(&paths).await?;
            extras.retain(|extra| missing.contains(&extra.path));
        }
        Ok(extras)
    }

    /// Whether a builder may upload these beside the outputs of its derivation.
    pub(super) async fn check_extras(
        &self,
        drv_path: &StorePath,
        extras: Vec<Upload>,
    ) -> Result<Vec<CheckedOutput>, SignError> {
        let mut checked = Vec::with_capacity(extras.len());
        let mut derivers: BTreeSet<StorePath> = BTreeSet::new();
        for mut upload in extras {
            let known = match &upload.deriver {
                Some(deriver) => self.load_outputs(deriver).await?,
                None => None,
            };
            let binding = rules::check_extra(&mut upload, known.as_deref())?;
            derivers.extend(upload.deriver.clone());
            checked.push(CheckedOutput { upload, binding });
        }
        // What an output refers to was there when it was built: it comes from the inputs, not from anywhere.
        let strange = self.outside_of_closure(drv_path, derivers).await?;
        match checked.iter().find(|extra| extra.upload.deriver.as_ref().is_some_and(|drv| strange.contains(drv))) {
            None => Ok(checked),
            Some(extra) => {
                let why = "not made by anything that this build depends on";
                Err(Refusal::NotCovered { path: extra.upload.path.clone(), why }.into())
            }
        }
    }

    /// Fails unless the objects that will be named in narinfos are there: the declared ones, or those of rows that were
    /// claimed or published before.
    pub(super) async fn require_canonical<'a>(
        &self,
        rows: &mut BTreeMap<StorePath, Row>,
        uploads: impl Iterator<Item = &'a Upload>,
        completing: Option<AttemptId>,
    ) -> Result<(), SignError> {
        let mut declared = Vec::new();
        for upload in uploads {
            if let Some(row) = rows.get(&upload.path).filter(|row| row.is_held() && row.upload.object != upload.object)
            {
                if self.is_delivered(row).await? {
                    continue;
                }
                // What stands in the way of this upload can be delivered by nobody.
                self.give_up(row, completing).await?;
                rows.remove(&upload.path);
            }
            declared.push((keys::nar(&upload.object.hash), upload.object));
        }
        self.require(declared).await
    }
}

fn missing_references(paths: &[StorePath]) -> BuildCompleteAnswer {
    BuildCompleteAnswer::MissingReferences { paths: paths.iter().map(ToString::to_string).collect() }
}
