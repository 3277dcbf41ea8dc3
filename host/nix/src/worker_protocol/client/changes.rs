//! Operations that change the store, or what the daemon does for this client.

use std::collections::BTreeSet;
use std::path::Path;

use tokio::io::{AsyncRead, AsyncWrite};

use super::sequence::Sequence;
use super::{Client, ClientError};
use crate::content_address::ContentAddressMethod;
use crate::derivation::BasicDerivation;
use crate::hash::HashAlgorithm;
use crate::store_path::StorePath;
use crate::worker_protocol::operations::Operation;
use crate::worker_protocol::types::{
    BuildMode, BuildResult, ClientOptions, DerivedPath, GcReport, GcRequest, ValidPathInfo, put_derivation,
};
use crate::worker_protocol::wire::{
    put_bool, put_bytes, put_list, put_store_path, put_store_paths, put_u64, read_bool, read_count, read_string,
    read_strings, read_u64,
};

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Client<R, W> {
    /// Changes settings for this connection. A daemon that does not trust us warns of those it ignores.
    pub async fn set_options(&mut self, options: &ClientOptions) -> Result<(), ClientError> {
        let mut request = self.begin(Operation::SetOptions)?;
        options.put(&mut request);
        self.ask(&request).await?;
        self.is_ready = true;
        Ok(())
    }

    /// Keeps a path (valid or not yet) from the garbage collector while this connection lasts.
    pub async fn add_temp_root(&mut self, path: &StorePath) -> Result<(), ClientError> {
        let mut request = self.begin(Operation::AddTempRoot)?;
        put_store_path(&mut request, path);
        self.ask_number(&request).await.map(drop)
    }

    /// Registers a symlink outside the store, which the caller has made, as a root.
    pub async fn add_indirect_root(&mut self, link: &Path) -> Result<(), ClientError> {
        let mut request = self.begin(Operation::AddIndirectRoot)?;
        put_bytes(&mut request, link.as_os_str().as_encoded_bytes());
        self.ask_number(&request).await.map(drop)
    }

    /// Has the daemon make a symlink to `path` and register it as a root (since 1.36). Returns where the link is.
    pub async fn add_perm_root(&mut self, path: &StorePath, link: &Path) -> Result<String, ClientError> {
        let mut request = self.begin(Operation::AddPermRoot)?;
        put_store_path(&mut request, path);
        put_bytes(&mut request, link.as_os_str().as_encoded_bytes());
        self.ask(&request).await?;
        let link = read_string(&mut self.reader, "a root").await?;
        Ok(self.end(link))
    }

    /// Adds content whose hash determines its path (since 1.25). `source` is an archive for the recursive method, else the
    /// bytes of the file.
    pub async fn add_to_store(
        &mut self,
        name: &str,
        method: ContentAddressMethod,
        algorithm: HashAlgorithm,
        references: &BTreeSet<StorePath>,
        repair: bool,
        source: impl AsyncRead + Unpin,
    ) -> Result<ValidPathInfo, ClientError> {
        let mut request = self.begin(Operation::AddToStore)?;
        put_bytes(&mut request, name);
        let kind = if method == ContentAddressMethod::Text { "" } else { "fixed:" };
        put_bytes(&mut request, format!("{kind}{}{algorithm}", method.prefix()));
        put_store_paths(&mut request, references);
        put_bool(&mut request, repair);
        self.send(&request).await?;
        self.upload(source).await?;
        let added = ValidPathInfo::read(&mut self.reader).await?;
        Ok(self.end(added))
    }

    /// Adds one file with a text that may refer to other paths: a `.drv`, or what `builtins.toFile` makes (since 1.25).
    pub async fn add_text_to_store(
        &mut self,
        name: &str,
        text: &[u8],
        references: &BTreeSet<StorePath>,
        repair: bool,
    ) -> Result<ValidPathInfo, ClientError> {
        let (method, algorithm) = (ContentAddressMethod::Text, HashAlgorithm::Sha256);
        self.add_to_store(name, method, algorithm, references, repair, text).await
    }

    /// Adds a path of which all is known, with its archive. The references must be valid already.
    ///
    /// Unless the path is content-addressed it needs a signature that the daemon trusts, or a daemon that trusts us and
    /// `dont_check_signatures`.
    pub async fn add_to_store_nar(
        &mut self,
        info: &ValidPathInfo,
        archive: impl AsyncRead + Unpin,
        repair: bool,
        dont_check_signatures: bool,
    ) -> Result<(), ClientError> {
        let mut request = self.begin(Operation::AddToStoreNar)?;
        info.put(&mut request);
        put_bool(&mut request, repair);
        put_bool(&mut request, dont_check_signatures);
        self.send(&request).await?;
        if self.version().minor >= 23 {
            self.upload(archive).await?;
        } else {
            self.answer_reads(archive).await?;
        }
        self.is_ready = true;
        Ok(())
    }

    /// Adds many paths in one go, in an order in which each path comes after those it refers to (since 1.32).
    pub async fn add_multiple_to_store<S, I>(
        &mut self,
        paths: I,
        repair: bool,
        dont_check_signatures: bool,
    ) -> Result<(), ClientError>
    where
        S: AsyncRead + Unpin,
        I: IntoIterator<Item = (ValidPathInfo, S), IntoIter: ExactSizeIterator + Unpin>,
    {
        let mut request = self.begin(Operation::AddMultipleToStore)?;
        put_bool(&mut request, repair);
        put_bool(&mut request, dont_check_signatures);
        self.send(&request).await?;
        let paths = paths.into_iter();
        self.upload(Sequence::new(paths.len(), paths)).await?;
        self.is_ready = true;
        Ok(())
    }

    /// Adds signatures (`key-name:base64`) to a valid path.
    pub async fn add_signatures(&mut self, path: &StorePath, signatures: &BTreeSet<String>) -> Result<(), ClientError> {
        let mut request = self.begin(Operation::AddSignatures)?;
        put_store_path(&mut request, path);
        put_list(&mut request, signatures);
        self.ask_number(&request).await.map(drop)
    }

    /// Stores the log of a build that was done elsewhere (since 1.32).
    pub async fn add_build_log(
        &mut self,
        derivation: &StorePath,
        log: impl AsyncRead + Unpin,
    ) -> Result<(), ClientError> {
        let mut request = self.begin(Operation::AddBuildLog)?;
        put_bytes(&mut request, derivation.base_name());
        self.send(&request).await?;
        self.upload(log).await?;
        read_u64(&mut self.reader).await?;
        self.is_ready = true;
        Ok(())
    }

    /// Registers where an output of a content-addressed derivation is, as a JSON text (since 1.31).
    pub async fn register_drv_output(&mut self, realisation: &str) -> Result<(), ClientError> {
        let mut request = self.begin(Operation::RegisterDrvOutput)?;
        put_bytes(&mut request, realisation);
        self.ask(&request).await?;
        self.is_ready = true;
        Ok(())
    }

    /// Makes a path valid by substituting it, unless it is valid.
    pub async fn ensure_path(&mut self, path: &StorePath) -> Result<(), ClientError> {
        let mut request = self.begin(Operation::EnsurePath)?;
        put_store_path(&mut request, path);
        self.ask_number(&request).await.map(drop)
    }

    /// Builds or substitutes all of these. A failure of any is a [`ClientError::Daemon`].
    pub async fn build_paths(&mut self, paths: &[DerivedPath], mode: BuildMode) -> Result<(), ClientError> {
        let mut request = self.begin(Operation::BuildPaths)?;
        put_list(&mut request, self.derived_paths(Operation::BuildPaths, paths)?);
        put_u64(&mut request, mode.code());
        self.ask_number(&request).await.map(drop)
    }

    /// Builds or substitutes all of these and tells of each how it went (since 1.34).
    pub async fn build_paths_with_results(
        &mut self,
        paths: &[DerivedPath],
        mode: BuildMode,
    ) -> Result<Vec<(DerivedPath, BuildResult)>, ClientError> {
        let mut request = self.begin(Operation::BuildPathsWithResults)?;
        put_list(&mut request, self.derived_paths(Operation::BuildPathsWithResults, paths)?);
        put_u64(&mut request, mode.code());
        self.ask(&request).await?;
        let version = self.version();
        let mut results = Vec::new();
        for _ in 0..read_count(&mut self.reader, "build results").await? {
            let path = read_string(&mut self.reader, "a derived path").await?;
            let path = DerivedPath::from_wire(&path, version)?;
            results.push((path, BuildResult::read(&mut self.reader, version).await?));
        }
        Ok(self.end(results))
    }

    /// Builds one derivation, which need not be in the store; its inputs must be valid there.
    ///
    /// A build that fails is an `Ok` with a status. What the builder prints arrives in the log target.
    pub async fn build_derivation(
        &mut self,
        path: &StorePath,
        derivation: &BasicDerivation,
        mode: BuildMode,
    ) -> Result<BuildResult, ClientError> {
        let mut request = self.begin(Operation::BuildDerivation)?;
        put_store_path(&mut request, path);
        put_derivation(&mut request, derivation);
        put_u64(&mut request, mode.code());
        self.ask(&request).await?;
        let result = BuildResult::read(&mut self.reader, self.session.version).await?;
        Ok(self.end(result))
    }

    /// Collects garbage, or tells what would be collected.
    pub async fn collect_garbage(&mut self, request: &GcRequest) -> Result<GcReport, ClientError> {
        let mut bytes = self.begin(Operation::CollectGarbage)?;
        put_u64(&mut bytes, request.action.code());
        put_store_paths(&mut bytes, &request.paths);
        put_bool(&mut bytes, request.ignore_liveness);
        put_u64(&mut bytes, request.max_freed_bytes);
        for _ in 0..3 {
            put_u64(&mut bytes, 0); // obsolete settings
        }
        self.ask(&bytes).await?;
        let paths = read_strings(&mut self.reader, "a path").await?;
        let freed_bytes = read_u64(&mut self.reader).await?;
        read_u64(&mut self.reader).await?; // obsolete
        Ok(self.end(GcReport { paths, freed_bytes }))
    }

    /// Compares the store with its database, and the files with their hashes if asked to. Returns whether errors are left.
    ///
    /// Stock daemons answer `false` after `repair` even where nothing could repair a path.
    pub async fn verify_store(&mut self, check_contents: bool, repair: bool) -> Result<bool, ClientError> {
        let mut request = self.begin(Operation::VerifyStore)?;
        put_bool(&mut request, check_contents);
        put_bool(&mut request, repair);
        self.ask(&request).await?;
        let errors = read_bool(&mut self.reader).await?;
        Ok(self.end(errors))
    }

    /// Makes equal files of the store share their blocks.
    pub async fn optimise_store(&mut self) -> Result<(), ClientError> {
        let request = self.begin(Operation::OptimiseStore)?;
        self.ask_number(&request).await.map(drop)
    }

    /// For operations that answer with a number without meaning.
    async fn ask_number(&mut self, request: &[u8]) -> Result<u64, ClientError> {
        self.ask(request).await?;
        let number = read_u64(&mut self.reader).await?;
        Ok(self.end(number))
    }
}
