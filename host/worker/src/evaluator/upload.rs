//! What builders elsewhere need besides outputs: `.drv` files and input sources. Start at [`Uploader`].

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::PathBuf;

use base64::Engine as _;
use harmonia_core::limits::{DRVS_PER_CALL_MAX, SIGNER_BODY_BYTES_MAX};
use harmonia_core::signer_api::{DrvFile, DrvUpload, Holder, PathInfo, SlotsRequest, SourcesComplete};
use harmonia_core::{ClaimToken, EvalId};
use harmonia_db::{Db, DbError};
use harmonia_nix::StorePath;
use harmonia_nix::worker_protocol::ClientError;

use super::graph::{GraphError, Walker};
use crate::pack::{PackError, PackOptions, Packed, pack, physical_path};
use crate::signer_client::{SignerClient, SignerError, Upload, UploadSource};
use crate::store_daemon::Connection;

/// Sources packed and uploaded together.
const SOURCES_AT_ONCE: usize = 16;
/// Sources of one batch, references included; about as many are remembered.
const SOURCES_MAX: usize = 100_000;
/// Base64 and JSON around the bytes of a call.
const CALL_BYTES_MAX: usize = SIGNER_BODY_BYTES_MAX / 2;

/// Why something is not in the cache.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UploadError {
    /// A derivation cannot be read.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// The signers or the object store.
    #[error("could not upload derivations and sources to the cache")]
    Signer(#[from] SignerError),
    /// The daemon.
    #[error("could not ask the store daemon about a source")]
    Daemon(#[source] ClientError),
    /// A source is gone.
    #[error("the source {0} is not in the node's store (was it collected as garbage?)")]
    NoSource(StorePath),
    /// A source cannot be packed.
    #[error("could not pack the source {path}")]
    Pack {
        path: StorePath,
        #[source]
        cause: PackError,
    },
    /// A source that could not be packed before.
    #[error("{0}")]
    Unusable(String),
    /// Too many.
    #[error("it needs more than {SOURCES_MAX} sources")]
    TooMany,
    /// The database.
    #[error("could not look up sources")]
    Database(#[from] DbError),
}

impl UploadError {
    /// Whether it is about what was to be uploaded: trying again cannot help, and other things need not be affected.
    pub(super) fn is_about_content(&self) -> bool {
        match self {
            Self::Graph(error) => error.is_about_content(),
            Self::Signer(error) => matches!(error, SignerError::Refused { .. } | SignerError::PutRefused { .. }),
            Self::Daemon(error) => matches!(error, ClientError::Daemon(_)),
            Self::Pack { cause, .. } => matches!(cause, PackError::TooLarge { .. } | PackError::Tree { .. }),
            Self::NoSource(_) | Self::Unusable(_) | Self::TooMany => true,
            Self::Database(error) => error.refuses_values(),
        }
    }
}

/// Uploads for one evaluation; remembers what is done.
pub(crate) struct Uploader<'a> {
    db: &'a Db,
    signer: &'a SignerClient,
    eval: EvalId,
    token: &'a ClaimToken,
    store_root: Option<PathBuf>,
    spool_dir: PathBuf,
    /// Largest source, as a NAR, in bytes.
    source_bytes_max: u64,
    sources_done: HashSet<StorePath>,
    /// Those that cannot be packed, and why: reading them again would take as long.
    unusable: HashMap<StorePath, String>,
}

impl<'a> Uploader<'a> {
    pub(crate) fn new(
        db: &'a Db,
        signer: &'a SignerClient,
        eval: EvalId,
        token: &'a ClaimToken,
        store_root: Option<PathBuf>,
        spool_dir: PathBuf,
        source_bytes_max: u64,
    ) -> Self {
        Self {
            db,
            signer,
            eval,
            token,
            store_root,
            spool_dir,
            source_bytes_max,
            sources_done: HashSet::new(),
            unusable: HashMap::new(),
        }
    }

    /// Uploads `.drv` files, which come dependencies first.
    pub(crate) async fn derivations(
        &self,
        walker: &mut Walker<'_>,
        paths: impl Iterator<Item = &StorePath>,
    ) -> Result<(), UploadError> {
        let mut drvs = Vec::new();
        let mut bytes = 0;
        // They were just read as a rule.
        for path in paths {
            let text = walker.read_file(path).await.map_err(GraphError::from)?;
            bytes += text.len().div_ceil(3) * 4 + 200;
            if drvs.len() >= DRVS_PER_CALL_MAX || (bytes > CALL_BYTES_MAX && !drvs.is_empty()) {
                self.send(std::mem::take(&mut drvs)).await?;
                bytes = text.len() * 2;
            }
            let aterm_base64 = base64::engine::general_purpose::STANDARD.encode(text);
            drvs.push(DrvFile { path: path.to_string(), aterm_base64 });
        }
        self.send(drvs).await
    }

    async fn send(&self, drvs: Vec<DrvFile>) -> Result<(), UploadError> {
        if !drvs.is_empty() {
            self.signer.drv_upload(self.token, &DrvUpload { evaluation: self.eval, drvs }).await?;
        }
        Ok(())
    }

    /// Uploads sources with everything they refer to, references first. What the cache has is skipped.
    pub(crate) async fn sources(
        &mut self,
        connection: &mut Connection,
        wanted: BTreeSet<StorePath>,
    ) -> Result<(), UploadError> {
        for chunk in self.missing(connection, wanted).await?.chunks(SOURCES_AT_ONCE) {
            let (mut infos, mut files): (Vec<PathInfo>, Vec<UploadSource>) = (Vec::new(), Vec::new());
            let mut kept: Vec<Packed> = Vec::new();
            for source in chunk {
                let packed = self.pack(&source.path).await?;
                infos.push(packed.path_info(
                    &source.path,
                    source.info.references.iter().cloned(),
                    None,
                    source.info.content_address.as_ref(),
                ));
                files.push(UploadSource::File(packed.file.to_path_buf()));
                kept.push(packed);
            }
            let request = SlotsRequest { holder: Holder::Evaluation(self.eval), paths: infos.clone(), log: None };
            let upload = [Upload { request, sources: files, log: None }];
            self.signer.send(self.token, &upload[0]).await?;
            let complete = SourcesComplete { evaluation: self.eval, paths: infos };
            let call = || self.signer.sources_complete(self.token, &complete);
            self.signer.complete(self.token, &upload, call).await?;
            self.sources_done.extend(chunk.iter().map(|source| source.path.clone()));
        }
        Ok(())
    }

    async fn pack(&mut self, path: &StorePath) -> Result<Packed, UploadError> {
        let options = PackOptions::new(self.spool_dir.clone(), self.source_bytes_max);
        let packed = pack(physical_path(self.store_root.as_deref(), path), options).await;
        packed.map_err(|cause| {
            let error = UploadError::Pack { path: path.clone(), cause };
            if error.is_about_content() {
                self.unusable.insert(path.clone(), harmonia_core::chain(&error));
            }
            error
        })
    }

    /// The closure of the sources without what the cache has, references first.
    async fn missing(
        &mut self,
        connection: &mut Connection,
        wanted: BTreeSet<StorePath>,
    ) -> Result<Vec<Source>, UploadError> {
        if self.sources_done.len() > SOURCES_MAX {
            self.sources_done.clear();
        }
        let mut found: BTreeMap<StorePath, Source> = BTreeMap::new();
        let mut frontier: Vec<StorePath> =
            wanted.into_iter().filter(|path| !self.sources_done.contains(path)).collect();
        while !frontier.is_empty() {
            let published: HashSet<StorePath> =
                self.db.canonical_paths(&frontier).await?.into_iter().map(|known| known.path).collect();
            let mut next = BTreeSet::new();
            for path in std::mem::take(&mut frontier) {
                if let Some(problem) = self.unusable.get(&path) {
                    return Err(UploadError::Unusable(problem.clone()));
                }
                if published.contains(&path) {
                    self.sources_done.insert(path);
                    continue;
                }
                let info = connection.query_path_info(&path).await.map_err(UploadError::Daemon)?;
                let info = info.ok_or_else(|| UploadError::NoSource(path.clone()))?;
                let new = |path: &&StorePath| !found.contains_key(*path) && !self.sources_done.contains(*path);
                next.extend(info.references.iter().filter(|reference| **reference != path).filter(new).cloned());
                found.insert(path.clone(), Source { path, info });
            }
            if found.len() > SOURCES_MAX {
                return Err(UploadError::TooMany);
            }
            frontier = next.into_iter().filter(|path| !found.contains_key(path)).collect();
        }
        Ok(references_first(found))
    }
}

struct Source {
    path: StorePath,
    info: harmonia_nix::worker_protocol::PathInfo,
}

/// Sources refer to few others, so that repeated passes are cheap; cycles do not exist between content-addressed paths.
fn references_first(mut left: BTreeMap<StorePath, Source>) -> Vec<Source> {
    let mut order = Vec::with_capacity(left.len());
    while !left.is_empty() {
        let is_ready = |source: &Source| {
            source.info.references.iter().all(|reference| *reference == source.path || !left.contains_key(reference))
        };
        let ready: Vec<StorePath> =
            left.values().filter(|source| is_ready(source)).map(|source| source.path.clone()).collect();
        if ready.is_empty() {
            // Not content-addressed after all: the signer will say what is wrong with them.
            order.extend(std::mem::take(&mut left).into_values());
        }
        order.extend(ready.iter().filter_map(|path| left.remove(path)));
    }
    order
}
