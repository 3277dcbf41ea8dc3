//! Sources: content-addressed paths that an evaluator uploads. Nobody built them, so all that is known of them is
//! that their path belongs to their content, which is checked here.

use std::collections::BTreeMap;

use harmonia_core::signer_api::{SourcesComplete, SourcesCompleteAnswer};
use harmonia_core::{AttemptId, ClaimToken};
use harmonia_db::PathState;
use harmonia_nix::StorePath;

use super::Signer;
use super::error::SignError;
use super::publish::take_listings;
use super::rows::{Row, new_path, rows_of};
use super::rules::{self, CheckedOutput};
use super::wire::{self, Upload};

impl Signer {
    /// Checks, signs and publishes sources whose bytes are up. All or none.
    pub async fn sources_complete(
        &self,
        token: &ClaimToken,
        call: &SourcesComplete,
    ) -> Result<SourcesCompleteAnswer, SignError> {
        let mut uploads = wire::uploads(&call.paths)?;
        self.db().evaluation_scope(call.evaluation, token).await?;
        let listings = take_listings(uploads.iter_mut());
        let mut sources = Vec::with_capacity(uploads.len());
        for mut upload in uploads {
            // Who made a source is nobody's word but the uploader's.
            upload.deriver = None;
            let binding = Some(rules::check_source(&upload)?);
            sources.push(CheckedOutput { upload, binding });
        }
        let paths: Vec<StorePath> = sources.iter().map(|source| source.upload.path.clone()).collect();
        let mut rows = self.rows(&paths).await?;

        let missing = self.closure_gate(sources.iter().map(|source| &source.upload)).await?;
        if let Some(refusal) = rules::blame(sources.iter().map(|source| &source.upload), &missing) {
            return Err(refusal.into());
        }
        self.verify_uploads(&sources, &mut rows, None).await?;

        let new: Vec<_> = sources.iter().map(|source| new_path(&source.upload)).collect();
        let rows = rows_of(self.db().claim_paths(call.evaluation, token, &new).await?)?;
        let published = rows.iter().filter(|row| row.state != PathState::Published).count();
        self.publish_sources(&rows, &listings).await?;
        Ok(SourcesCompleteAnswer { published })
    }

    /// Which references are neither published, nor upstream, nor among the paths themselves.
    pub(super) async fn closure_gate<'a>(
        &self,
        uploads: impl Iterator<Item = &'a Upload> + Clone,
    ) -> Result<Vec<StorePath>, SignError> {
        let outer = rules::outer_references(uploads.map(|upload| (&upload.path, &upload.references)));
        if outer.is_empty() {
            return Ok(outer);
        }
        Ok(self.db().unavailable_references(&outer).await?)
    }

    /// Fails unless what is to be claimed is in the bucket as declared, and has the content that its path requires.
    /// `completing`: for which attempt.
    pub(super) async fn verify_uploads(
        &self,
        uploads: &[CheckedOutput],
        rows: &mut BTreeMap<StorePath, Row>,
        completing: Option<AttemptId>,
    ) -> Result<(), SignError> {
        self.require_canonical(rows, uploads.iter().map(|checked| &checked.upload), completing).await?;
        // Whoever claimed a path verified it: what stays of the path is theirs, and need not be read again.
        let is_new = |upload: &Upload| !rows.get(&upload.path).is_some_and(Row::is_held);
        for CheckedOutput { upload, binding } in uploads.iter().filter(|checked| is_new(&checked.upload)) {
            if rules::must_read(*binding, self.inner.options.verify, rand::random()) {
                let references = self.possible_references(upload).await?;
                super::content::verify(self.store(), upload, references).await?;
            }
        }
        Ok(())
    }
}
