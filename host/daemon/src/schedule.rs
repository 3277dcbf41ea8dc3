//! From what a client wants to valid paths: by substituting, or else by building. Start at [`Scheduler::build_paths`].
//!
//! Each request has a graph of goals of its own (`run`): a task for each derivation and each path, which waits for those
//! that it needs and goes on the moment that they are there. What several requests share is the store with its locks on
//! output paths (so that two who want the same derivation build it once), the caches, and the slots (`slots`).
//!
//! | goal | module |
//! |---|---|
//! | outputs of a derivation | `derivation`, then `building` |
//! | a path from a cache | `substitution`, which asks `offers` |
//! | what a build would do | `missing` |

mod build_log;
mod building;
mod derivation;
mod execution;
mod hook;
pub mod log;
mod missing;
mod offers;
mod outcome;
mod run;
pub mod slots;
mod substitution;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use harmonia_nix::NarInfo;
use harmonia_nix::derivation::{BasicDerivation, Derivation, DerivationKind};
use harmonia_nix::signature::{PublicKey, SecretKey};
use harmonia_nix::store_path::StorePath;
use harmonia_nix::worker_protocol::{BuildMode, BuildResult, BuildStatus, DerivedPath, MissingPaths, OutputNames};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::build::BuildOptions;
use crate::store::{AddOptions, Store, StoreError, TempRoots};
use crate::substitute::Caches;

pub use log::Log;
use outcome::{Outcome, exit_status};
use run::{Running, blocking};
use slots::{ClientSlots, Slots};

/// Archives that are fetched at the same time.
const DOWNLOADS_MAX: usize = 16;
/// Narinfos that are asked for at the same time.
const QUERIES_MAX: usize = 32;

/// Settings of the daemon that hold for all clients.
#[derive(Debug, Clone)]
pub struct SchedulerSettings {
    /// Builds at the same time for all clients together, unless one alone may have more.
    pub builds_max: usize,
    /// Systems that are built for here, such as `x86_64-linux`.
    pub systems: BTreeSet<String>,
    /// `system-features`: what derivations may require.
    pub system_features: BTreeSet<String>,
    /// Whether the logs of builds are kept (`keep-build-log`).
    pub keep_log: bool,
    /// Whether they are compressed (`compress-build-log`).
    pub compress_log: bool,
    /// No build begins with fewer bytes free where the store is.
    pub free_bytes_min: u64,
    /// Time until a connection to a cache stands.
    pub connect_timeout: Option<Duration>,
}

/// What a client may and wants, of its settings and the daemon's.
#[derive(Debug, Clone)]
#[expect(clippy::struct_excessive_bools, reason = "they are independent settings")]
pub struct RequestOptions {
    /// Whether the client may do what could harm others.
    pub is_trusted: bool,
    /// Go on with other builds after a failure.
    pub keep_going: bool,
    /// Build what cannot be substituted although it should be.
    pub try_fallback: bool,
    /// Builds at the same time.
    pub max_jobs: usize,
    /// Whether to substitute at all.
    pub use_substitutes: bool,
    /// Where from.
    pub substituters: Vec<String>,
    /// Whose signatures count.
    pub trusted_keys: Vec<PublicKey>,
    /// Whether signatures count at all.
    pub require_signatures: bool,
    /// What is built here is signed with these (`secret-key-files`).
    pub secret_keys: Vec<SecretKey>,
    /// Files that are equal are linked to each other at once (`auto-optimise-store`).
    pub auto_optimise: bool,
    /// A program that is run after each build.
    pub post_build_hook: Option<PathBuf>,
    /// How to build.
    pub build: BuildOptions,
}

/// One client's request.
#[derive(Debug)]
pub struct Request {
    /// Where it hears of what goes on.
    pub log: Log,
    /// What it needs is kept as long as this.
    pub roots: Arc<TempRoots>,
    /// What it may and wants.
    pub options: RequestOptions,
}

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum ScheduleError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Something was not to be had.
    #[error("{message}")]
    Failed {
        /// What, for people.
        message: String,
        /// What `nix` should exit with.
        exit_status: u64,
    },
    /// Clients who are not trusted may not do this.
    #[error("{0}")]
    NotTrusted(&'static str),
}

/// What a cache says of a path.
#[derive(Debug, Clone)]
pub struct Substitutable {
    /// The derivation that made it.
    pub deriver: Option<StorePath>,
    /// What it refers to.
    pub references: BTreeSet<StorePath>,
    /// Bytes to download; 0 when the cache does not say.
    pub download_size_bytes: u64,
    /// Bytes when unpacked.
    pub nar_size_bytes: u64,
}

impl From<&NarInfo> for Substitutable {
    fn from(info: &NarInfo) -> Self {
        Self {
            deriver: info.deriver.clone(),
            references: info.references.clone(),
            download_size_bytes: info.file_size.unwrap_or_default(),
            nar_size_bytes: info.nar_size,
        }
    }
}

/// What all requests share.
#[derive(Debug)]
pub struct Scheduler {
    store: Arc<Store>,
    settings: SchedulerSettings,
    caches: Caches,
    slots: Slots,
    downloads: Semaphore,
    queries: Semaphore,
    /// Ends all builds.
    stop: CancellationToken,
    /// Builds that run, or whose processes are not all dead yet.
    builds: TaskTracker,
}

impl Scheduler {
    /// Works on this store.
    pub fn new(store: Arc<Store>, settings: SchedulerSettings) -> Arc<Self> {
        let (caches, slots) = (Caches::new(settings.connect_timeout), Slots::new(settings.builds_max));
        let (downloads, queries) = (Semaphore::new(DOWNLOADS_MAX), Semaphore::new(QUERIES_MAX));
        let (stop, builds) = (CancellationToken::new(), TaskTracker::new());
        Arc::new(Self { store, settings, caches, slots, downloads, queries, stop, builds })
    }

    /// Ends all builds, and waits until every process of theirs is dead. No request may come any more.
    pub async fn stop(&self) {
        self.stop.cancel();
        self.builds.close();
        self.builds.wait().await;
    }

    /// The store.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    fn client_slots(&self, options: &RequestOptions) -> ClientSlots {
        self.slots.client(options.max_jobs)
    }

    /// Makes all of these valid.
    pub async fn build_paths(
        self: &Arc<Self>,
        request: Request,
        targets: &[DerivedPath],
        mode: BuildMode,
    ) -> Result<(), ScheduleError> {
        let log = request.log.clone();
        let outcomes = self.realise(request, targets, mode).await?;
        let failed: Vec<&(DerivedPath, Outcome)> =
            outcomes.iter().filter(|(_, outcome)| !outcome.is_success()).collect();
        let exit_status = exit_status(outcomes.iter().map(|(_, outcome)| outcome));
        let mut told = failed.iter().filter(|(_, outcome)| !outcome.message.is_empty());
        match (failed.as_slice(), told.next()) {
            ([], _) => Ok(()),
            ([_], Some((_, outcome))) => Err(ScheduleError::Failed { message: outcome.message.clone(), exit_status }),
            (failed, first) => {
                for (_, outcome) in first.into_iter().chain(told) {
                    log.error(&outcome.message);
                }
                let paths: BTreeSet<String> =
                    failed.iter().map(|(target, _)| format!("'{}'", path_of(target))).collect();
                let paths = paths.into_iter().collect::<Vec<_>>().join(", ");
                Err(ScheduleError::Failed { message: format!("build of {paths} failed"), exit_status })
            }
        }
    }

    /// The same, but failures are in the results, in the order of the targets.
    pub async fn build_paths_with_results(
        self: &Arc<Self>,
        request: Request,
        targets: &[DerivedPath],
        mode: BuildMode,
    ) -> Result<Vec<(DerivedPath, BuildResult)>, ScheduleError> {
        let outcomes = self.realise(request, targets, mode).await?;
        let store = Arc::clone(&self.store);
        blocking(move || {
            let result = |(target, outcome): (DerivedPath, Outcome)| {
                let result = outcome.into_result(&store, &target)?;
                Ok((target, result))
            };
            outcomes.into_iter().map(result).collect()
        })
        .await
    }

    async fn realise(
        self: &Arc<Self>,
        request: Request,
        targets: &[DerivedPath],
        mode: BuildMode,
    ) -> Result<Vec<(DerivedPath, Outcome)>, ScheduleError> {
        if mode == BuildMode::Repair && !request.options.is_trusted {
            return Err(ScheduleError::NotTrusted("repairing is not allowed because you are not in 'trusted-users'"));
        }
        let running = Running::start(self, request, mode);
        Ok(running.targets(targets).await)
    }

    /// Builds a derivation whose inputs are plain paths. It need not be in the store.
    pub async fn build_derivation(
        self: &Arc<Self>,
        request: Request,
        drv_path: &StorePath,
        derivation: BasicDerivation,
        mode: BuildMode,
    ) -> Result<BuildResult, ScheduleError> {
        let derivation = Derivation::from(derivation);
        let is_fixed = derivation.kind().is_ok_and(|kind| kind == DerivationKind::Fixed);
        let mut drv_path = drv_path.clone();
        if !request.options.is_trusted {
            // What the output paths of others follow from is not seen here, so that only trust says that they are right.
            if !is_fixed {
                return Err(ScheduleError::NotTrusted("you are not privileged to build input-addressed derivations"));
            }
            drv_path = self.write_derivation(&request, &derivation).await?;
        }
        let running = Running::start(self, request, mode);
        let outcome = running.single(drv_path.clone(), derivation.clone()).await;
        let store = Arc::clone(&self.store);
        blocking(move || outcome.into_result_of(&store, &drv_path, &derivation)).await
    }

    async fn write_derivation(&self, request: &Request, derivation: &Derivation) -> Result<StorePath, ScheduleError> {
        let (store, roots) = (Arc::clone(&self.store), Arc::clone(&request.roots));
        let (name, text) = (format!("{}.drv", derivation.name), derivation.to_aterm());
        let references = derivation.input_srcs.clone();
        blocking(move || Ok(store.add_text(&roots, &name, &text, &references, AddOptions::default())?.path)).await
    }

    /// Makes a path valid by substituting it.
    pub async fn ensure_path(self: &Arc<Self>, request: Request, path: &StorePath) -> Result<(), ScheduleError> {
        let targets = [DerivedPath::Opaque(path.clone())];
        let outcomes = self.realise(request, &targets, BuildMode::Normal).await?;
        match outcomes.into_iter().find(|(_, outcome)| !outcome.is_success()) {
            None => Ok(()),
            Some((_, outcome)) => Err(ScheduleError::Failed {
                message: format!("path '{path}' does not exist and cannot be created: {}", outcome.message),
                exit_status: exit_status([&outcome]),
            }),
        }
    }

    /// Gets a sound copy of a damaged path: from a cache, or by building its deriver.
    pub async fn repair_path(self: &Arc<Self>, request: Request, path: &StorePath) -> Result<(), ScheduleError> {
        let failed = || ScheduleError::Failed { message: format!("cannot repair path '{path}'"), exit_status: 1 };
        let running = Running::start(self, request, BuildMode::Repair);
        let outcomes = running.targets(&[DerivedPath::Opaque(path.clone())]).await;
        if outcomes.iter().all(|(_, outcome)| outcome.is_success()) {
            return Ok(());
        }
        let (store, damaged) = (Arc::clone(&self.store), path.clone());
        let deriver = blocking(move || {
            let deriver = store.path_info(&damaged)?.and_then(|info| info.deriver);
            Ok(match deriver {
                Some(deriver) if store.is_valid(&deriver)? => Some(deriver),
                _ => None,
            })
        });
        let derivation = deriver.await?.ok_or_else(failed)?;
        let outcomes = running.targets(&[DerivedPath::Built { derivation, outputs: OutputNames::All }]).await;
        if outcomes.iter().all(|(_, outcome)| outcome.is_success()) { Ok(()) } else { Err(failed()) }
    }

    /// What building these would do.
    pub async fn query_missing(
        self: &Arc<Self>,
        request: Request,
        targets: &[DerivedPath],
    ) -> Result<MissingPaths, ScheduleError> {
        let running = Running::start(self, request, BuildMode::Normal);
        missing::query(&running, targets).await
    }

    /// What the caches know of these paths, without regard to what is valid here.
    pub async fn query_substitutable(
        self: &Arc<Self>,
        request: Request,
        paths: &BTreeSet<StorePath>,
    ) -> Result<BTreeMap<StorePath, Substitutable>, ScheduleError> {
        let running = Running::start(self, request, BuildMode::Normal);
        let looked = futures_util::future::join_all(paths.iter().map(|path| running.look_up(path, None))).await;
        let found = paths
            .iter()
            .zip(looked)
            .filter_map(|(path, found)| found.offer().map(|offer| (path.clone(), Substitutable::from(&offer.info))));
        Ok(found.collect())
    }

    /// Substitutes what can be of these; what cannot stays away, with a warning.
    pub async fn substitute_paths(self: &Arc<Self>, request: Request, paths: &BTreeSet<StorePath>) {
        let log = request.log.clone();
        let running = Running::start(self, request, BuildMode::Normal);
        let wanted = paths.iter().filter(|path| !path.is_derivation());
        let targets: Vec<DerivedPath> = wanted.cloned().map(DerivedPath::Opaque).collect();
        for (_, outcome) in running.all_targets(&targets).await {
            let was_there = outcome.is_success() || outcome.status == BuildStatus::NoSubstituters;
            if !was_there {
                log.warn(&outcome.message);
            }
        }
    }
}

fn path_of(target: &DerivedPath) -> &StorePath {
    match target {
        DerivedPath::Opaque(path) => path,
        DerivedPath::Built { derivation, .. } => derivation,
    }
}
