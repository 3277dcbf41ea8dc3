//! Paths from caches, each with what it refers to first. Start at [`Run::substitute`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::future::join_all;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use harmonia_nix::ContentAddress;
use harmonia_nix::store_path::StorePath;
use harmonia_nix::worker_protocol::{BuildStatus, PathInfo, ValidPathInfo};
use tokio::io::BufReader;
use tokio_util::io::SyncIoBridge;

use super::ScheduleError;
use super::offers::{LookUp, Offer};
use super::outcome::{Outcome, describe};
use super::run::{Goal, Run, blocking};
use crate::store::AddOptions;
use crate::substitute::FetchError;

/// Bytes of an archive between the network and the disk.
const BUFFER_BYTES: usize = 256 << 10;
/// Most paths of one closure.
const CLOSURE_PATHS_MAX: usize = 1_000_000;

/// How substituting a path ended.
#[derive(Debug, Clone)]
pub(super) enum Substitution {
    /// It was there.
    AlreadyValid,
    /// It is there now.
    Substituted,
    /// No cache has it.
    NoSubstituter,
    /// A cache has it, but something that it refers to is to be had nowhere.
    IncompleteClosure,
    /// Something went wrong.
    Failed(Arc<str>),
}

impl Substitution {
    pub(super) fn is_success(&self) -> bool {
        matches!(self, Self::AlreadyValid | Self::Substituted)
    }

    /// What the client is told when it wanted just this.
    pub(super) fn into_outcome(self, path: &StorePath) -> Outcome {
        match self {
            Self::AlreadyValid => Outcome::success(BuildStatus::AlreadyValid, BTreeMap::new()),
            Self::Substituted => Outcome::success(BuildStatus::Substituted, BTreeMap::new()),
            Self::NoSubstituter => Outcome::failure(
                BuildStatus::NoSubstituters,
                format!("path '{path}' is required, but there is no substituter that can build it"),
            ),
            Self::IncompleteClosure => Outcome::failure(
                BuildStatus::DependencyFailed,
                format!("some references of path '{path}' could not be realised"),
            ),
            Self::Failed(message) => Outcome::failure(BuildStatus::MiscFailure, message.as_ref()),
        }
    }

    fn failed(error: impl Into<ScheduleError>) -> Self {
        Self::Failed(describe(&error.into()).into())
    }
}

impl Run {
    /// Makes a path valid, and before it what it refers to. With `repair`, files of a valid path that are damaged are
    /// replaced. `address`: of a fixed output.
    pub(super) async fn substitute(
        self: &Arc<Self>,
        path: &StorePath,
        address: Option<ContentAddress>,
        repair: bool,
    ) -> Substitution {
        match self.is_sound(path, repair).await {
            Ok(true) => return Substitution::AlreadyValid,
            Ok(false) => {}
            Err(error) => return Substitution::failed(error),
        }
        let offers = match self.plan(path, address).await {
            Ok(offers) => offers,
            Err(end) => return end,
        };
        let order = match in_order(path, &offers) {
            Ok(order) => order,
            Err(path) => {
                let message = format!("cannot substitute '{path}': its references depend on itself");
                return Substitution::Failed(message.into());
            }
        };
        let mut goals: BTreeMap<StorePath, Goal<Substitution>> = BTreeMap::new();
        for next in order {
            let offer = Arc::clone(&offers[&next]);
            let needed = offer.info.references.iter().filter_map(|reference| goals.get(reference).cloned()).collect();
            let (run, repair) = (Arc::clone(self), repair && next == *path);
            let goal = self.fetch(&next, move || async move { run.fetch_after(offer, needed, repair).await }.boxed());
            goals.insert(next, goal);
        }
        match goals.remove(path) {
            Some(goal) => goal.await,
            None => Substitution::NoSubstituter,
        }
    }

    /// Whether nothing is to be done.
    async fn is_sound(&self, path: &StorePath, repair: bool) -> Result<bool, ScheduleError> {
        let (store, roots, path) = (Arc::clone(&self.scheduler.store), Arc::clone(&self.request.roots), path.clone());
        blocking(move || {
            roots.add(&path)?;
            Ok(store.is_valid(&path)? && (!repair || store.is_sound(&path)?))
        })
        .await
    }

    /// Who has the path, and who has what is missing of its closure.
    async fn plan(
        self: &Arc<Self>,
        path: &StorePath,
        address: Option<ContentAddress>,
    ) -> Result<BTreeMap<StorePath, Arc<Offer>>, Substitution> {
        let mut offers = BTreeMap::new();
        let mut seen = BTreeSet::from([path.clone()]);
        let mut asked = FuturesUnordered::new();
        let ask = |path: StorePath, address| {
            let run = Arc::clone(self);
            async move { (run.look_up(&path, address).await, path) }
        };
        asked.push(ask(path.clone(), address));
        let mut holes = (false, None);
        while let Some((answer, found)) = asked.next().await {
            match answer {
                LookUp::Offer(offer) => {
                    let new: Vec<StorePath> =
                        offer.info.references.iter().filter(|path| seen.insert((*path).clone())).cloned().collect();
                    offers.insert(found, offer);
                    if seen.len() > CLOSURE_PATHS_MAX {
                        let message =
                            format!("cannot substitute '{path}': more than {CLOSURE_PATHS_MAX} paths are missing");
                        return Err(Substitution::Failed(message.into()));
                    }
                    let missing = self.missing_of(new).await.map_err(Substitution::failed)?;
                    asked.extend(missing.into_iter().map(|path| ask(path, None)));
                }
                LookUp::Nowhere if found == *path => return Err(Substitution::NoSubstituter),
                LookUp::Nowhere => holes.0 = true,
                LookUp::Failed(message) if found == *path => return Err(Substitution::Failed(message)),
                LookUp::Failed(message) => holes.1 = Some(message),
            }
        }
        match holes {
            (true, _) => Err(Substitution::IncompleteClosure),
            (false, Some(message)) => Err(Substitution::Failed(message)),
            (false, None) => Ok(offers),
        }
    }

    /// Those of these that are not valid; all are kept from now on.
    async fn missing_of(&self, paths: Vec<StorePath>) -> Result<Vec<StorePath>, ScheduleError> {
        if paths.is_empty() {
            return Ok(paths);
        }
        let (store, roots) = (Arc::clone(&self.scheduler.store), Arc::clone(&self.request.roots));
        blocking(move || {
            for path in &paths {
                roots.add(path)?;
            }
            let valid = store.valid_of(&paths)?;
            Ok(paths.into_iter().filter(|path| !valid.contains(path)).collect())
        })
        .await
    }

    /// Fetches a path once all that it needs is there.
    async fn fetch_after(
        self: Arc<Self>,
        offer: Arc<Offer>,
        needed: Vec<Goal<Substitution>>,
        repair: bool,
    ) -> Substitution {
        let path = offer.info.path.clone();
        if join_all(needed).await.iter().any(|end| !end.is_success()) {
            return Substitution::Failed(format!("some references of path '{path}' could not be realised").into());
        }
        let mut offer = offer;
        let mut trouble: Option<Arc<str>> = None;
        loop {
            match self.fetch_from(&offer, repair).await {
                Ok(end) => return end,
                Err((message, is_gone)) => {
                    self.request.log.error(&message);
                    // What disappeared is as if it had never been there.
                    if !is_gone {
                        trouble.get_or_insert(message.into());
                    }
                }
            }
            offer = match self.ask_caches(&path, offer.info.content_address, offer.index + 1).await {
                // Another's copy may refer to something else, which nobody has made valid: the store refuses it then.
                LookUp::Offer(next) => next,
                LookUp::Nowhere => return trouble.map_or(Substitution::NoSubstituter, Substitution::Failed),
                LookUp::Failed(message) => return Substitution::Failed(trouble.unwrap_or(message)),
            };
        }
    }

    /// Fetches a path from one cache; else why not, and whether it just is not there any more.
    async fn fetch_from(&self, offer: &Offer, repair: bool) -> Result<Substitution, (String, bool)> {
        let Offer { info, cache, .. } = offer;
        let failed = |error: &dyn std::error::Error, is_gone| {
            (format!("cannot get '{}' from '{}': {}", info.path, cache.uri(), describe(error)), is_gone)
        };
        let Ok(_permit) = self.scheduler.downloads.acquire().await else { return Ok(Substitution::NoSubstituter) };
        let _activity = self.request.log.substitute(&self.activity, info.path.as_str(), cache.uri());
        let archive = cache.archive(info).await.map_err(|error| failed(&error, FetchError::is_gone(&error)))?;
        let valid = ValidPathInfo {
            path: info.path.clone(),
            info: PathInfo {
                deriver: info.deriver.clone(),
                references: info.references.clone(),
                signatures: info.signatures.iter().map(ToString::to_string).collect(),
                content_address: info.content_address,
                ..PathInfo::new(info.nar_hash, info.nar_size)
            },
        };
        let unsigned = cache.is_trusted() || !self.request.options.require_signatures;
        let (store, roots) = (Arc::clone(&self.scheduler.store), Arc::clone(&self.request.roots));
        let optimise = self.request.options.auto_optimise;
        let added = blocking(move || {
            let archive = SyncIoBridge::new(BufReader::with_capacity(BUFFER_BYTES, archive));
            store.add_nar(&roots, &valid, archive, AddOptions { repair, unsigned, optimise })
        });
        added.await.map_err(|error| failed(&error, false))?;
        Ok(Substitution::Substituted)
    }
}

/// What is offered for `path` and its closure, each after what it refers to, `path` last. Fails with a path that depends on
/// itself.
fn in_order(path: &StorePath, offers: &BTreeMap<StorePath, Arc<Offer>>) -> Result<Vec<StorePath>, StorePath> {
    let mut order = Vec::new();
    let (mut done, mut on_the_way) = (BTreeSet::new(), BTreeSet::from([path]));
    let references = |path: &StorePath| offers.get(path).map(|offer| offer.info.references.iter());
    let mut way: Vec<_> = references(path).map(|references| (path, references)).into_iter().collect();
    while let Some((current, left)) = way.last_mut() {
        let current = *current;
        let Some(next) = left.next() else {
            on_the_way.remove(current);
            done.insert(current);
            order.push(current.clone());
            way.pop();
            continue;
        };
        if next == current || done.contains(next) {
            continue;
        }
        if on_the_way.contains(next) {
            return Err(next.clone());
        }
        if let Some(references) = references(next) {
            on_the_way.insert(next);
            way.push((next, references));
        }
    }
    Ok(order)
}
