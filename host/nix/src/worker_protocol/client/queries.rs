//! Operations that only ask.

use std::collections::{BTreeMap, BTreeSet};

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt};

use super::{Client, ClientError};
use crate::nar::{Decoder, Limits, NarError};
use crate::store_path::StorePath;
use crate::worker_protocol::operations::Operation;
use crate::worker_protocol::stderr::{ERROR, read_error};
use crate::worker_protocol::types::{DerivedPath, GcRoot, MissingPaths, PathInfo};
use crate::worker_protocol::wire::{
    WireError, put_bool, put_bytes, put_list, put_store_path, put_store_paths, read_bool, read_count,
    read_optional_store_path, read_store_paths, read_string, read_text, read_u64,
};

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Client<R, W> {
    /// Whether a path is in the store and complete.
    pub async fn is_valid_path(&mut self, path: &StorePath) -> Result<bool, ClientError> {
        let mut request = self.begin(Operation::IsValidPath)?;
        put_store_path(&mut request, path);
        self.ask(&request).await?;
        let answer = read_bool(&mut self.reader).await?;
        Ok(self.end(answer))
    }

    /// Which of these paths are valid; with `substitute` the daemon first substitutes what it can (since 1.27).
    pub async fn query_valid_paths(
        &mut self,
        paths: &BTreeSet<StorePath>,
        substitute: bool,
    ) -> Result<BTreeSet<StorePath>, ClientError> {
        let needs = if substitute { 27 } else { 0 };
        let mut request = self.begin_since(Operation::QueryValidPaths, needs)?;
        put_store_paths(&mut request, paths);
        if self.version().minor >= 27 {
            put_bool(&mut request, substitute);
        }
        self.ask_paths(&request).await
    }

    /// Every valid path.
    pub async fn query_all_valid_paths(&mut self) -> Result<BTreeSet<StorePath>, ClientError> {
        let request = self.begin(Operation::QueryAllValidPaths)?;
        self.ask_paths(&request).await
    }

    /// What the store knows of a path; `None` when it is not valid.
    pub async fn query_path_info(&mut self, path: &StorePath) -> Result<Option<PathInfo>, ClientError> {
        let mut request = self.begin(Operation::QueryPathInfo)?;
        put_store_path(&mut request, path);
        self.ask(&request).await?;
        let info =
            if read_bool(&mut self.reader).await? { Some(PathInfo::read(&mut self.reader).await?) } else { None };
        Ok(self.end(info))
    }

    /// The valid path with this hash part (32 characters).
    pub async fn query_path_from_hash_part(&mut self, hash_part: &str) -> Result<Option<StorePath>, ClientError> {
        let mut request = self.begin(Operation::QueryPathFromHashPart)?;
        put_bytes(&mut request, hash_part);
        self.ask(&request).await?;
        let path = read_optional_store_path(&mut self.reader, "a path").await?;
        Ok(self.end(path))
    }

    /// Valid paths that refer to this one.
    pub async fn query_referrers(&mut self, path: &StorePath) -> Result<BTreeSet<StorePath>, ClientError> {
        let mut request = self.begin(Operation::QueryReferrers)?;
        put_store_path(&mut request, path);
        self.ask_paths(&request).await
    }

    /// Valid derivations of which this path is an output.
    pub async fn query_valid_derivers(&mut self, path: &StorePath) -> Result<BTreeSet<StorePath>, ClientError> {
        let mut request = self.begin(Operation::QueryValidDerivers)?;
        put_store_path(&mut request, path);
        self.ask_paths(&request).await
    }

    /// What realising these would build and substitute.
    pub async fn query_missing(&mut self, paths: &[DerivedPath]) -> Result<MissingPaths, ClientError> {
        let mut request = self.begin(Operation::QueryMissing)?;
        put_list(&mut request, self.derived_paths(Operation::QueryMissing, paths)?);
        self.ask(&request).await?;
        let reader = &mut self.reader;
        let missing = MissingPaths {
            will_build: read_store_paths(reader, "a derivation to build").await?,
            will_substitute: read_store_paths(reader, "a path to substitute").await?,
            unknown: read_store_paths(reader, "an unknown path").await?,
            download_size_bytes: read_u64(reader).await?,
            nar_size_bytes: read_u64(reader).await?,
        };
        Ok(self.end(missing))
    }

    /// Outputs of a valid derivation by name; `None` where the path is not known before the build.
    pub async fn query_derivation_output_map(
        &mut self,
        derivation: &StorePath,
    ) -> Result<BTreeMap<String, Option<StorePath>>, ClientError> {
        let mut request = self.begin(Operation::QueryDerivationOutputMap)?;
        put_store_path(&mut request, derivation);
        self.ask(&request).await?;
        let mut outputs = BTreeMap::new();
        for _ in 0..read_count(&mut self.reader, "outputs").await? {
            let name = read_string(&mut self.reader, "the name of an output").await?;
            outputs.insert(name, read_optional_store_path(&mut self.reader, "an output").await?);
        }
        Ok(self.end(outputs))
    }

    /// Realisations of an output of a content-addressed derivation (`sha256:…!out`), as JSON texts.
    pub async fn query_realisation(&mut self, output_id: &str) -> Result<Vec<String>, ClientError> {
        let mut request = self.begin(Operation::QueryRealisation)?;
        put_bytes(&mut request, output_id);
        self.ask(&request).await?;
        let mut realisations = Vec::new();
        for _ in 0..read_count(&mut self.reader, "realisations").await? {
            realisations.push(read_text(&mut self.reader, "a realisation").await?);
        }
        Ok(self.end(realisations))
    }

    /// All roots of the garbage collector.
    pub async fn find_roots(&mut self) -> Result<Vec<GcRoot>, ClientError> {
        let request = self.begin(Operation::FindRoots)?;
        self.ask(&request).await?;
        let mut roots = Vec::new();
        for _ in 0..read_count(&mut self.reader, "roots").await? {
            roots.push(GcRoot::read(&mut self.reader).await?);
        }
        Ok(self.end(roots))
    }

    /// Writes the archive of a valid path to `output`, and returns its size in bytes. Does not flush `output`.
    ///
    /// The archive's structure is checked in passing, its hash is not: compare it with that of [`Client::query_path_info`],
    /// whose NAR size is also the bound for `limits`. After an error the connection cannot be used any more.
    pub async fn nar_from_path(
        &mut self,
        path: &StorePath,
        output: &mut (impl AsyncWrite + Unpin),
        limits: Limits,
    ) -> Result<u64, ClientError> {
        let mut request = self.begin(Operation::NarFromPath)?;
        put_store_path(&mut request, path);
        self.ask(&request).await?;
        let mut decoder = Decoder::new(limits);
        while !decoder.is_done() {
            let chunk = self.reader.fill_buf().await.map_err(WireError::from)?;
            if chunk.is_empty() {
                return Err(WireError::Closed.into());
            }
            let start = decoder.offset();
            let mut used = 0;
            while used < chunk.len() && !decoder.is_done() {
                match decoder.push(&chunk[used..]) {
                    Ok(step) => used += step.consumed,
                    // Daemons begin an archive before they know that there is something to send. Where they break it off,
                    // an error message stands, whose tag would be an impossible length.
                    Err(NarError::StringTooLong { offset, length: ERROR, .. }) => {
                        let behind_tag = (offset + 8).saturating_sub(start) as usize;
                        self.reader.consume(behind_tag);
                        return Err(read_error(&mut self.reader, self.session.version).await?.into());
                    }
                    Err(error) => return Err(ClientError::Nar(error)),
                }
            }
            output.write_all(&chunk[..used]).await.map_err(ClientError::Sink)?;
            self.reader.consume(used);
        }
        Ok(self.end(decoder.offset()))
    }

    async fn ask_paths(&mut self, request: &[u8]) -> Result<BTreeSet<StorePath>, ClientError> {
        self.ask(request).await?;
        let paths = read_store_paths(&mut self.reader, "a path").await?;
        Ok(self.end(paths))
    }

    pub(super) fn derived_paths(
        &self,
        operation: Operation,
        paths: &[DerivedPath],
    ) -> Result<Vec<String>, ClientError> {
        let spoken = self.version();
        let unsupported = || ClientError::Unsupported { operation, needs: 30, spoken };
        paths.iter().map(|path| path.to_wire(spoken).ok_or_else(unsupported)).collect()
    }
}
