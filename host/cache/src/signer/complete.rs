//! A finished build: from "the bytes are up" to "the job succeeded".

use std::collections::BTreeMap;

use harmonia_core::ClaimToken;
use harmonia_core::limits::PATHS_PER_CALL_MAX;
use harmonia_core::signer_api::{BuildComplete, BuildCompleteAnswer};
use harmonia_nix::{Derivation, StorePath};

use super::{Answered, Signer};
use super::error::SignError;
use super::publish::take_listings;
use super::rows::{Row, new_path, rows_of};
use super::rules::{self, CheckedOutput};
use super::wire::{self, Upload};
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
        let listings = take_listings(outputs.iter_mut().map(|(_, upload)| upload).chain(&mut extras));

        let scope = self.db().attempt_scope(attempt, token).await?;
        let derivation = self.require_derivation(&scope.drv_path).await?;
        let outputs = rules::check_outputs(&scope.drv_path, &derivation, outputs)?;
        rules::check_needed(outputs.iter().map(|output| &output.upload), &extras)?;
        let extras = self.check_extras(extras).await?;

        let all = || outputs.iter().chain(&extras).map(|checked| &checked.upload);
        let missing = self.closure_gate(all()).await?;
        if !missing.is_empty() {
            let paths = missing.iter().map(ToString::to_string).collect();
            return Ok(BuildCompleteAnswer::MissingReferences { paths });
        }
        let paths: Vec<StorePath> = all().map(|upload| upload.path.clone()).collect();
        let mut rows = self.rows(&paths).await?;
        self.verify_uploads(&extras, &mut rows).await?;
        self.verify_uploads(&outputs, &mut rows).await?;
        let log_key = self.publish_log(&scope.drv_path, attempt, log).await;

        if !extras.is_empty() {
            let new: Vec<_> = extras.iter().map(|extra| new_path(&extra.upload)).collect();
            let rows = rows_of(self.db().claim_extra_paths(attempt, token, &new).await?)?;
            self.publish_sources(&rows, &listings).await?;
        }
        let new: Vec<_> = outputs.iter().map(|output| new_path(&output.upload)).collect();
        let claimed = self.db().claim_outputs(attempt, token, &new).await?;
        self.publish_build(scope.job, &rows_of(claimed.rows)?, &listings, &usage, log_key.as_deref()).await?;
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

    /// Whether a builder may upload these beside its outputs.
    pub(super) async fn check_extras(&self, extras: Vec<Upload>) -> Result<Vec<CheckedOutput>, SignError> {
        let mut derivers: BTreeMap<StorePath, Option<Derivation>> = BTreeMap::new();
        let mut checked = Vec::with_capacity(extras.len());
        for mut upload in extras {
            let derivation = match &upload.deriver {
                None => None,
                Some(deriver) => {
                    if !derivers.contains_key(deriver) {
                        derivers.insert(deriver.clone(), self.load_derivation(deriver).await?);
                    }
                    derivers.get(deriver).and_then(Option::as_ref)
                }
            };
            let binding = rules::check_extra(&mut upload, derivation)?;
            checked.push(CheckedOutput { upload, binding });
        }
        Ok(checked)
    }

    /// Fails unless the objects that will be named in narinfos are there: the declared ones, or those of rows that were
    /// claimed or published before.
    pub(super) async fn require_canonical<'a>(
        &self,
        rows: &mut BTreeMap<StorePath, Row>,
        uploads: impl Iterator<Item = &'a Upload>,
    ) -> Result<(), SignError> {
        let mut declared = Vec::new();
        for upload in uploads {
            if let Some(row) = rows.get(&upload.path).filter(|row| row.is_held() && row.upload.object != upload.object) {
                if self.is_delivered(row).await? {
                    continue;
                }
                // What stands in the way of this upload can be delivered by nobody.
                self.give_up(row).await?;
                rows.remove(&upload.path);
            }
            declared.push((keys::nar(&upload.object.hash), upload.object));
        }
        self.require(declared).await
    }
}
