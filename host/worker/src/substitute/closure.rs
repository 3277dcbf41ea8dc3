//! Which paths of a closure are missing, and fetching them in an order in which references come first.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use futures_util::stream::{self, FuturesUnordered, StreamExt};
use harmonia_core::SecretUrl;
use harmonia_nix::worker_protocol::types::{PathInfo, ValidPathInfo};
use harmonia_nix::{NarInfo, StorePath};

use super::cache::{self, FetchError};
use super::{Offer, Plan, SubstituteError, SubstituteFailure, Substituter, stream as archive, verdict};
use crate::binary_cache::BinaryCache;
use crate::store_daemon::Connection;

/// Most paths of one plan.
const PLAN_PATHS_MAX: usize = 100_000;
/// Pause before the caches are asked again; doubles each time.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

impl Substituter {
    /// Finds out what of `paths` and of their closures is missing, and which cache has it.
    pub async fn plan(&self, paths: &BTreeSet<StorePath>) -> Result<Plan, SubstituteFailure> {
        let mut plan = Plan { roots: paths.clone(), ..Plan::default() };
        let mut frontier = paths.clone();
        if frontier.is_empty() {
            return Ok(plan);
        }
        let mut daemon = self.daemon.connect().await.map_err(SubstituteError::from)?;
        while !frontier.is_empty() {
            let valid = daemon.query_valid_paths(&frontier, false).await.map_err(SubstituteError::Query)?;
            plan.seen.extend(frontier.iter().cloned());
            if plan.seen.len() > PLAN_PATHS_MAX {
                return Err(SubstituteError::TooManyPaths { max: PLAN_PATHS_MAX }.into());
            }
            let missing: Vec<StorePath> = frontier.difference(&valid).cloned().collect();
            let mut answers = stream::iter(missing.into_iter().map(|path| self.find(path)))
                .buffer_unordered(self.options.parallel_queries.max(1));
            let (mut nowhere, mut faults) = (Vec::new(), Vec::new());
            frontier = BTreeSet::new();
            while let Some(answer) = answers.next().await {
                match answer {
                    Ok(offer) => {
                        frontier.extend(offer.info.references.difference(&plan.seen).cloned());
                        plan.found.insert(offer.info.path.clone(), offer);
                    }
                    // Who hears of it wants to know all of them, to have them made again at once.
                    Err(SubstituteFailure { cause: SubstituteError::Missing { paths, .. }, faults: of_them }) => {
                        nowhere.extend(paths);
                        faults.extend(of_them);
                    }
                    Err(failure) => return Err(failure.below(&plan.roots, &plan.found)),
                }
            }
            if !nowhere.is_empty() {
                nowhere.sort_unstable();
                let cause = SubstituteError::Missing { paths: nowhere, caches: self.options.caches.len() };
                return Err(SubstituteFailure { cause, faults }.below(&plan.roots, &plan.found));
            }
        }
        Ok(plan)
    }

    /// Fetches what was planned, several archives side by side, each after those it refers to.
    pub async fn import(&self, plan: Plan) -> Result<(), SubstituteFailure> {
        let mut order = Order::new(&plan.found);
        let mut idle: Vec<Connection> = Vec::new();
        let mut running = FuturesUnordered::new();
        loop {
            while running.len() < self.options.parallel_fetches.max(1)
                && let Some(path) = order.ready.pop_front()
            {
                let Some(offer) = plan.found.get(&path) else { continue };
                running.push(self.import_one(idle.pop(), offer));
            }
            match running.next().await {
                None => break,
                Some(result) => {
                    let (path, connection) =
                        result.map_err(|failure: SubstituteFailure| failure.below(&plan.roots, &plan.found))?;
                    idle.extend(connection);
                    order.done(&path);
                }
            }
        }
        match order.waiting.into_keys().next() {
            None => Ok(()),
            Some(path) => Err(SubstituteError::Cycle { path }.into()),
        }
    }

    /// The first cache that has `path` and is to be believed.
    async fn find(&self, path: StorePath) -> Result<Offer, SubstituteFailure> {
        self.first_offer(&path, 0, true).await
    }

    async fn first_offer(&self, path: &StorePath, from: usize, patient: bool) -> Result<Offer, SubstituteFailure> {
        let caches = &self.options.caches;
        let mut retry = 0;
        loop {
            let mut errors = Vec::new();
            for (index, cache) in caches.iter().enumerate().skip(from) {
                match cache::narinfo(&self.http, cache, path).await {
                    Ok(Some(info)) => return Ok(Offer { index, cache: cache.clone(), info }),
                    Ok(None) => {}
                    Err(error) => errors.push(error),
                }
            }
            let failure = verdict(path, caches, errors);
            let may_change = matches!(failure.cause, SubstituteError::Unavailable { .. });
            if !patient || !may_change || retry >= self.options.retries {
                return Err(failure);
            }
            tokio::time::sleep(RETRY_PAUSE * 2_u32.pow(retry.min(6))).await;
            retry += 1;
        }
    }

    /// Makes one path valid whose references are. Hands the connection back for the next one.
    async fn import_one(
        &self,
        connection: Option<Connection>,
        planned: &Offer,
    ) -> Result<(StorePath, Option<Connection>), SubstituteFailure> {
        let path = &planned.info.path;
        let _alone = self.alone(path).await;
        let mut connection = match connection {
            Some(connection) => connection,
            None => self.daemon.connect().await.map_err(SubstituteError::from)?,
        };
        // Another build may have brought or built it while we waited.
        if connection.is_valid_path(path).await.map_err(SubstituteError::Query)? {
            return Ok((path.clone(), Some(connection)));
        }
        let mut offer = planned.clone();
        let mut errors = Vec::new();
        let mut retry = 0;
        loop {
            match self.fetch(connection, &offer).await {
                Ok(connection) => return Ok((path.clone(), Some(connection))),
                Err(error @ SubstituteError::Daemon { .. }) => return Err(error.into()),
                Err(error) => errors.push(error),
            }
            connection = self.daemon.connect().await.map_err(SubstituteError::from)?;
            // The next cache, if it tells the same of the path; else from the start again, if that may help.
            match self.first_offer(path, offer.index + 1, false).await {
                Ok(next) if next.info.references == planned.info.references => offer = next,
                other => {
                    let later = other.err().filter(|failure| !matches!(failure.cause, SubstituteError::Missing { .. }));
                    let (cause, faults) = later.map(|failure| (failure.cause, failure.faults)).unzip();
                    errors.extend(cause);
                    let mut failure = verdict(path, &self.options.caches, std::mem::take(&mut errors));
                    let new = faults.unwrap_or_default().into_iter().filter(|fault| !failure.faults.contains(fault));
                    failure.faults.extend(new.collect::<Vec<_>>());
                    if !matches!(failure.cause, SubstituteError::Unavailable { .. }) || retry >= self.options.retries {
                        return Err(failure);
                    }
                    tokio::time::sleep(RETRY_PAUSE * 2_u32.pow(retry.min(6))).await;
                    retry += 1;
                    offer = planned.clone();
                }
            }
        }
    }

    async fn fetch(&self, mut daemon: Connection, offer: &Offer) -> Result<Connection, SubstituteError> {
        let Offer { cache, info, .. } = offer;
        let failed = |error| classify(&info.path, cache.url(), error);
        if info.nar_size > self.options.nar_bytes_max {
            return Err(failed(FetchError::TooLarge { max: self.options.nar_bytes_max }));
        }
        let response = cache::get_archive(&self.http, cache, info).await.map_err(failed)?;
        let (nar, fault) = archive::open(response, info).map_err(failed)?;
        // The signature was checked here, which the daemon cannot do: it need not know our keys.
        match daemon.add_to_store_nar(&valid_path_info(info), nar, false, true).await {
            Ok(()) => Ok(daemon),
            Err(cause) => Err(match fault.take() {
                Some(error) => failed(error),
                None => SubstituteError::Daemon { path: info.path.clone(), cause },
            }),
        }
    }
}

/// Whether a cache gives a path: its narinfo is read and believed, and the whole archive is what that says. For a second
/// opinion; nothing is kept.
pub(crate) async fn examine(
    http: &reqwest::Client,
    cache: &BinaryCache,
    path: &StorePath,
    nar_bytes_max: u64,
) -> Result<(), SubstituteError> {
    let Some(info) = cache::narinfo(http, cache, path).await? else {
        return Err(SubstituteError::Missing { paths: vec![path.clone()], caches: 1 });
    };
    let failed = |error| classify(path, cache.url(), error);
    if info.nar_size > nar_bytes_max {
        return Err(failed(FetchError::TooLarge { max: nar_bytes_max }));
    }
    let response = cache::get_archive(http, cache, &info).await.map_err(failed)?;
    let (mut nar, fault) = archive::open(response, &info).map_err(failed)?;
    match tokio::io::copy(&mut nar, &mut tokio::io::sink()).await {
        Ok(_) => Ok(()),
        Err(error) => Err(failed(fault.take().unwrap_or(FetchError::Unpack(error)))),
    }
}

/// Whether another try, or another answer, is to be expected of this cache.
fn classify(path: &StorePath, cache: &SecretUrl, cause: FetchError) -> SubstituteError {
    let (path, cache) = (path.clone(), cache.clone());
    match cause {
        FetchError::Http(_) | FetchError::Stalled { .. } | FetchError::Status(_) => {
            SubstituteError::Unavailable { path, cache, cause }
        }
        cause => SubstituteError::Corrupt { path, cache, cause },
    }
}

fn valid_path_info(info: &NarInfo) -> ValidPathInfo {
    ValidPathInfo {
        path: info.path.clone(),
        info: PathInfo {
            deriver: info.deriver.clone(),
            references: info.references.clone(),
            signatures: info.signatures.iter().map(ToString::to_string).collect(),
            content_address: info.content_address,
            ..PathInfo::new(info.nar_hash, info.nar_size)
        },
    }
}

/// Who can go next.
struct Order {
    ready: VecDeque<StorePath>,
    /// For each path that is not imported, how many of its references are not either.
    waiting: BTreeMap<StorePath, usize>,
    referrers: BTreeMap<StorePath, Vec<StorePath>>,
}

impl Order {
    fn new(found: &BTreeMap<StorePath, Offer>) -> Self {
        let mut order = Self { ready: VecDeque::new(), waiting: BTreeMap::new(), referrers: BTreeMap::new() };
        for (path, offer) in found {
            let mut count = 0;
            for reference in offer.info.references.iter().filter(|other| *other != path && found.contains_key(*other)) {
                order.referrers.entry(reference.clone()).or_default().push(path.clone());
                count += 1;
            }
            order.waiting.insert(path.clone(), count);
            if count == 0 {
                order.ready.push_back(path.clone());
            }
        }
        order
    }

    fn done(&mut self, path: &StorePath) {
        self.waiting.remove(path);
        for referrer in self.referrers.remove(path).unwrap_or_default() {
            if let Some(count) = self.waiting.get_mut(&referrer) {
                *count -= 1;
                if *count == 0 {
                    self.ready.push_back(referrer);
                }
            }
        }
    }
}
