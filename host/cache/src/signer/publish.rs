//! From claimed rows to published paths: signatures, narinfos, listings. Start at [`Signer::finish_unfinished`] for what
//! is left to do after a crash.
//!
//! A claimed row implies that its object was verified and that the closure gate was passed, so anybody may publish it.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use harmonia_core::limits::SMALL_OBJECT_BYTES_MAX;
use harmonia_core::signer_api::AttemptUsage;
use harmonia_core::{AttemptId, JobId, chain};
use harmonia_db::{MissingPath, PathState, UnfinishedPublication};
use harmonia_nix::nar::check_listing;
use harmonia_nix::{NarInfo, SecretKey, Sha256Hash, StorePath};

use super::content::{self, References};
use super::error::{ObjectDifference, SignError};
use super::rows::{Row, rows_of};
use super::slots::LOG;
use super::wire::{Log, Upload};
use super::{PARALLEL_REQUESTS, Signer};
use crate::{ObjectError, PutOptions, keys};

/// Most publications finished in one round.
const UNFINISHED_PER_ROUND: u32 = 100;

/// Most reports of missing paths looked at in one round.
const REPORTS_PER_ROUND: u32 = 1_000;

/// Largest narinfo that is read (the limit of the parser).
const NARINFO_BYTES_MAX: usize = 4 << 20;

/// Listings that came along with a call, each of them one.
#[derive(Debug, Default)]
pub(super) struct Listings {
    /// With the NAR that each describes.
    of: BTreeMap<StorePath, (Sha256Hash, String)>,
    /// Those that the database has.
    kept: BTreeSet<StorePath>,
}

pub(super) fn take_listings<'a>(uploads: impl Iterator<Item = &'a mut Upload>) -> Listings {
    let taken = uploads.filter_map(|upload| {
        let listing = upload.listing.take().filter(|listing| is_listing(&upload.path, listing))?;
        Some((upload.path.clone(), (upload.nar_hash, listing)))
    });
    Listings { of: taken.collect(), kept: BTreeSet::new() }
}

impl Listings {
    /// Those of `paths` that are small, which are not to become objects.
    pub(super) fn keep_small<'a>(&mut self, paths: impl Iterator<Item = &'a StorePath>) -> BTreeMap<StorePath, String> {
        let mut small = BTreeMap::new();
        for path in paths {
            if let Some((_, listing)) = self.of.get(path).filter(|(_, text)| text.len() <= SMALL_OBJECT_BYTES_MAX) {
                small.insert(path.clone(), listing.clone());
                self.kept.insert(path.clone());
            }
        }
        small
    }
}

impl Signer {
    /// Finishes what was claimed when its signer stopped before it was published: signs and publishes from the claimed
    /// rows, without any builder. Says how many publications it finished; to be called again while that is not 0, and
    /// every now and then.
    ///
    /// Large listings of these paths are lost, since only the builder had them.
    pub async fn finish_unfinished(&self) -> Result<usize, SignError> {
        let unfinished = self.db().unfinished_publications(UNFINISHED_PER_ROUND).await?;
        let mut finished = 0;
        for publication in unfinished {
            let job = publication.job;
            match self.finish(publication).await {
                Ok(()) => finished += 1,
                // One that cannot be finished must not keep the others waiting.
                Err(error) => tracing::warn!(
                    %job, error = &error as &dyn std::error::Error, "could not finish a publication, trying again later"
                ),
            }
        }
        Ok(finished)
    }

    async fn finish(&self, publication: UnfinishedPublication) -> Result<(), SignError> {
        let UnfinishedPublication { job, attempt, drv_path, rows } = publication;
        let rows = rows_of(rows)?;
        let mut log_key = None;
        let key = keys::attempt_log(&drv_path, attempt);
        if self.db().small_object(&key).await?.is_some() {
            log_key = Some(key);
        } else if self.store().head(&key).await?.is_some() {
            self.store().copy(&key, &keys::log(&drv_path)).await?;
            log_key = Some(key);
        }
        tracing::info!(%job, %attempt, "finishing a publication that was interrupted");
        self.publish_build(job, &rows, &Listings::default(), &AttemptUsage::default(), log_key.as_deref()).await?;
        // Time has passed since the objects were verified.
        for row in &rows {
            self.confirm_delivered(row).await?;
        }
        Ok(())
    }

    /// Looks at the paths that builders found in no cache, or damaged in ours. Those that the bucket cannot deliver as they
    /// should be are lost, so that they are built again; says how many. To be called when such a report is notified, and
    /// every now and then.
    pub async fn check_reported_paths(&self) -> Result<usize, SignError> {
        let reported = self.db().missing_paths(REPORTS_PER_ROUND).await?;
        let paths: Vec<StorePath> = reported.iter().map(|missing| missing.path.clone()).collect();
        let rows = self.rows(&paths).await?;
        let mut lost = 0;
        for MissingPath { path, damaged } in &reported {
            let is_sound = match rows.get(path) {
                Some(row) if row.state == PathState::Published => {
                    let is_sound =
                        self.confirm_delivered(row).await? && !(*damaged && self.confirm_damaged(row).await?);
                    if is_sound {
                        self.mend_narinfo(row).await?;
                    }
                    is_sound
                }
                // On its way, lost already, or never ours: what upstream caches were said to have is for evaluators.
                _ => true,
            };
            if is_sound {
                self.db().dismiss_missing_path(path).await?;
            }
            lost += usize::from(!is_sound);
        }
        Ok(lost)
    }

    /// A narinfo is made of a row and the keys: one that is gone, or is not that, is written again.
    async fn mend_narinfo(&self, row: &Row) -> Result<(), SignError> {
        let path = &row.upload.path;
        let found = self.store().get_bytes(&keys::narinfo(path), NARINFO_BYTES_MAX).await?;
        let found = found.as_deref().and_then(|text| std::str::from_utf8(text).ok()).map(NarInfo::parse);
        let wanted = narinfo(&row.upload, &[]);
        let keys = self.public_keys();
        let is_right =
            |found: NarInfo| found.is_signed_by(&keys) && NarInfo { signatures: Vec::new(), ..found } == wanted;
        let is_sound = found.and_then(Result::ok).is_some_and(is_right);
        if !is_sound {
            tracing::warn!(%path, "the narinfo of a published path was damaged: it is written again");
            self.put_narinfo(&row.upload).await?;
            self.tell_published(std::slice::from_ref(path));
        }
        Ok(())
    }

    /// Reads the whole object. One that is not what its row says is deleted, or it would be taken for a new upload.
    async fn confirm_damaged(&self, row: &Row) -> Result<bool, SignError> {
        let path = &row.upload.path;
        match content::verify(self.store(), &row.upload, References::Bound).await {
            Ok(()) => return Ok(false),
            Err(SignError::Refused(refusal)) => {
                tracing::warn!(%path, error = %chain(&refusal), "the object of a published path is damaged: it is to be built again");
            }
            Err(SignError::NotUploaded(_)) => {}
            Err(error) => return Err(error),
        }
        self.store().delete(&keys::nar(&row.upload.object.hash)).await?;
        self.lose(path).await?;
        Ok(true)
    }

    pub(super) async fn confirm_delivered(&self, row: &Row) -> Result<bool, SignError> {
        let is_there = self.is_delivered(row).await?;
        if !is_there {
            tracing::warn!(path = %row.upload.path, "the object of a published path is gone: it is to be built again");
            self.lose(&row.upload.path).await?;
        }
        Ok(is_there)
    }

    /// Whether the bucket has the object of a row.
    pub(super) async fn is_delivered(&self, row: &Row) -> Result<bool, SignError> {
        let object = row.upload.object;
        Ok(self.look(&keys::nar(&object.hash), object).await?.is_none())
    }

    /// Takes a row whose object is gone out of the way of whoever uploads that path again.
    ///
    /// A row that is only claimed never becomes a published one in between: whatever waits for it would go on.
    pub(super) async fn give_up(&self, row: &Row, completing: Option<AttemptId>) -> Result<(), SignError> {
        let path = &row.upload.path;
        tracing::warn!(%path, "what was claimed of a path is gone from the bucket: it is replaced");
        if row.state == PathState::Claimed {
            // Perhaps written by a signer that died before it published.
            self.store().delete(&keys::narinfo(path)).await?;
            if self.db().give_up_claimed_path(path, completing).await? {
                return Ok(());
            }
        }
        self.lose(path).await
    }

    async fn lose(&self, path: &StorePath) -> Result<(), SignError> {
        // First: a narinfo promises what can be delivered.
        self.store().delete(&keys::narinfo(path)).await?;
        // It says at which offsets of this generation's archive files lie.
        self.store().delete(&keys::listing(path)).await?;
        self.tell_published(std::slice::from_ref(path));
        let outcome = self.db().confirm_lost_path(path).await?;
        tracing::info!(%path, ?outcome, "a lost path was given up");
        Ok(())
    }

    /// Publishes all outputs of a build and ends its job.
    pub(super) async fn publish_build(
        &self,
        job: JobId,
        rows: &[Row],
        listings: &Listings,
        usage: &AttemptUsage,
        log_key: Option<&str>,
    ) -> Result<(), SignError> {
        self.write_narinfos(rows, listings).await?;
        let paths = paths_of(rows);
        let finished = self.db().publish_outputs(job, &paths, usage, log_key).await?;
        self.tell_published(&paths);
        tracing::debug!(%job, readied = finished.readied, "published");
        Ok(())
    }

    /// Publishes paths that belong to no job.
    pub(super) async fn publish_sources(&self, rows: &[Row], listings: &Listings) -> Result<(), SignError> {
        self.write_narinfos(rows, listings).await?;
        let paths = paths_of(rows);
        self.db().publish_paths(&paths).await?;
        self.tell_published(&paths);
        Ok(())
    }

    async fn write_narinfos(&self, rows: &[Row], listings: &Listings) -> Result<(), SignError> {
        let open = rows.iter().filter(|row| row.state != PathState::Published);
        let writes: Vec<_> = open.map(|row| self.write_narinfo(&row.upload, listings)).collect();
        stream::iter(writes).buffer_unordered(PARALLEL_REQUESTS).try_collect::<()>().await?;
        Ok(())
    }

    async fn write_narinfo(&self, upload: &Upload, listings: &Listings) -> Result<(), ObjectError> {
        match listings.of.get(&upload.path) {
            Some((nar_hash, _)) if *nar_hash == upload.nar_hash && listings.kept.contains(&upload.path) => {}
            Some((nar_hash, listing)) if *nar_hash == upload.nar_hash => {
                let options = PutOptions { content_type: "application/json", ..PutOptions::default() };
                self.store().put(&keys::listing(&upload.path), listing.clone().into(), options).await?;
            }
            // One of an earlier generation would lead into the wrong archive.
            _ => self.store().delete(&keys::listing(&upload.path)).await?,
        }
        self.put_narinfo(upload).await
    }

    async fn put_narinfo(&self, upload: &Upload) -> Result<(), ObjectError> {
        let text = narinfo(upload, &self.inner.keys).to_string();
        let options = PutOptions { content_type: "text/x-nix-narinfo", ..PutOptions::default() };
        self.store().put(&keys::narinfo(&upload.path), Bytes::from(text), options).await?;
        Ok(())
    }

    /// Makes the attempt's log the one that `nix log` finds. `None`: there was none, or it is not there as declared.
    ///
    /// A log is never worth more than the build it is about: trouble with it is logged here and ends there.
    pub(super) async fn publish_log(
        &self,
        drv_path: &StorePath,
        attempt: AttemptId,
        declared: Option<&Log>,
    ) -> Option<String> {
        let key = keys::attempt_log(drv_path, attempt);
        let declared = match declared {
            Some(Log { bytes: Some(bytes), .. }) if self.inner.options.small_in_bucket => {
                let options = PutOptions {
                    content_type: LOG.content_type,
                    content_encoding: LOG.content_encoding,
                    ..PutOptions::default()
                };
                if let Err(error) = self.store().put(&key, bytes.clone().into(), options).await {
                    tracing::warn!(key, error = &error as &dyn std::error::Error, "could not store a log");
                }
                declared
            }
            // The caller puts it into the database.
            Some(Log { bytes: Some(_), .. }) => return Some(key),
            declared => declared,
        };
        let declared = declared.map(|log| log.object);
        let found = match declared {
            Some(object) => self.look(&key, object).await,
            None => Ok(Some(ObjectDifference::Missing)),
        };
        match found {
            Ok(None) => {}
            Ok(Some(difference)) => {
                if declared.is_some() {
                    tracing::warn!(key, %difference, "the log that a builder declared is not in the bucket");
                }
                self.forget_latest_log(drv_path).await;
                return None;
            }
            // Unknown is not absent: the key stays on record.
            Err(error) => {
                tracing::warn!(key, error = &error as &dyn std::error::Error, "could not look at a log");
                return Some(key);
            }
        }
        if let Err(error) = self.store().copy(&key, &keys::log(drv_path)).await {
            tracing::warn!(key, error = &error as &dyn std::error::Error, "could not make a log the latest");
            self.forget_latest_log(drv_path).await;
        }
        Some(key)
    }

    /// What an earlier attempt printed must not be shown as the log of this one, whose own was lost.
    async fn forget_latest_log(&self, drv_path: &StorePath) {
        if let Err(error) = self.store().delete(&keys::log(drv_path)).await {
            tracing::warn!(%drv_path, error = &error as &dyn std::error::Error, "could not delete the log of an older attempt");
        }
    }
}

fn paths_of(rows: &[Row]) -> Vec<StorePath> {
    rows.iter().map(|row| row.upload.path.clone()).collect()
}

/// The signed narinfo of a path.
fn narinfo(upload: &Upload, secret_keys: &[SecretKey]) -> NarInfo {
    let mut narinfo = NarInfo {
        path: upload.path.clone(),
        url: keys::nar(&upload.object.hash),
        compression: "zstd".to_owned(),
        file_hash: Some(upload.object.hash),
        file_size: Some(upload.object.size),
        nar_hash: upload.nar_hash,
        nar_size: upload.nar_size,
        references: upload.references.clone(),
        deriver: upload.deriver.clone(),
        content_address: upload.ca,
        signatures: Vec::new(),
    };
    for key in secret_keys {
        narinfo.sign(key);
    }
    narinfo
}

/// What a builder calls a listing is served to browsers: only what is one goes into the bucket.
fn is_listing(path: &StorePath, text: &str) -> bool {
    match check_listing(text) {
        Ok(()) => true,
        Err(error) => {
            tracing::warn!(%path, %error, "a builder sent a listing that is none: left out");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use harmonia_nix::PublicKey;

    use super::*;

    #[test]
    fn a_narinfo_is_signed_by_every_key() {
        let path = StorePath::parse("/nix/store/00000000000000000000000000000000-a").expect("valid");
        let upload = Upload {
            path: path.clone(),
            nar_hash: Sha256Hash::of(b"nar"),
            nar_size: 120,
            object: super::super::wire::Object { hash: Sha256Hash::of(b"file"), size: 80 },
            references: BTreeSet::from([path]),
            deriver: None,
            ca: None,
            listing: None,
        };
        let secret_keys = ["old-1", "new-1"].map(|name| SecretKey::from_seed(name, &[7; 32]).expect("valid"));
        let narinfo = NarInfo::parse(&narinfo(&upload, &secret_keys).to_string()).expect("own text");
        assert_eq!(narinfo.signatures.len(), 2);
        for key in &secret_keys {
            let key: PublicKey = key.public_key();
            assert!(narinfo.is_signed_by(std::slice::from_ref(&key)), "{key}");
        }
        assert_eq!(narinfo.url, keys::nar(&upload.object.hash));
    }

    #[test]
    fn only_listings_are_published() {
        let path = StorePath::parse("/nix/store/00000000000000000000000000000000-a").expect("valid");
        assert!(is_listing(&path, r#"{"root":{"narOffset":96,"size":3,"type":"regular"},"version":1}"#));
        for bad in ["", "<script>", r#"{"version":1}"#, &"[".repeat(100_000)] {
            assert!(!is_listing(&path, bad));
        }
    }
}
