//! Whether upstream caches have the outputs of derivations: only a narinfo that was read and is to be believed says so.
//! Start at [`Upstream::available`]. Without substituters nothing is asked.
//!
//! Both answers are remembered in the database until they expire, for all evaluators. What a cache cannot say now is not
//! remembered and counts as not available: building it is never wrong. A cache that does not answer is left alone for a
//! while, so that it costs an evaluation one time-out and not one a path.

mod health;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, StreamExt as _, stream};
use harmonia_core::{ClaimToken, EvalId, Incarnation, NodeId, chain};
use harmonia_db::{Db, DbError, GraphDerivation, UpstreamAnswer};
use harmonia_nix::{Sha256Hash, StorePath};

use crate::binary_cache::BinaryCache;
use crate::substitute::{self, Look, SubstituteError};
use health::{Health, News};

/// One answer may take so long.
const TIMEOUT: Duration = Duration::from_secs(15);
/// Questions on their way at the same time.
const PARALLEL: usize = 24;

/// The configured caches, and how they are.
pub(crate) struct Upstream {
    http: reqwest::Client,
    caches: Vec<(BinaryCache, Health)>,
}

/// Who asks, and where answers are remembered.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asker<'a> {
    pub(crate) db: &'a Db,
    pub(crate) eval: EvalId,
    pub(crate) token: &'a ClaimToken,
}

impl Upstream {
    pub(crate) fn new(http: reqwest::Client, caches: Vec<BinaryCache>) -> Self {
        Self { http, caches: caches.into_iter().map(|cache| (cache, Health::default())).collect() }
    }

    /// The caches' names, as the database has them.
    pub(crate) fn names(&self) -> Vec<String> {
        self.caches.iter().map(|(cache, _)| name(cache)).collect()
    }

    /// The cache of this name.
    pub(crate) fn cache(&self, wanted: &str) -> Option<&BinaryCache> {
        self.caches.iter().map(|(cache, _)| cache).find(|cache| name(cache) == wanted)
    }

    /// Tells the database which caches are asked here: answers of others do not count any more.
    pub(crate) async fn register(&self, db: &Db, node: &NodeId, incarnation: Incarnation) -> Result<(), DbError> {
        let caches: Vec<(String, String)> =
            self.caches.iter().map(|(cache, _)| (name(cache), keys_digest(cache))).collect();
        db.register_upstreams(node, incarnation, &caches).await
    }

    /// Tells the database, for the nodes page, how the caches are, as far as that changed.
    pub(crate) async fn report(&self, db: &Db, node: &NodeId, incarnation: Incarnation) -> Result<(), DbError> {
        for (cache, health) in &self.caches {
            if let Some(News(trouble)) = health.news() {
                db.note_upstream(node, incarnation, &name(cache), trouble.as_deref()).await?;
                health.told(trouble);
            }
        }
        Ok(())
    }

    /// For each derivation, in order: whether every output is in one of the caches.
    pub(crate) fn available<'a, 'd>(
        &'a self,
        asker: Asker<'a>,
        derivations: impl Iterator<Item = &'d GraphDerivation>,
    ) -> BoxFuture<'a, Result<Vec<bool>, DbError>> {
        let outputs = derivations
            .map(|derivation| derivation.outputs.iter().map(|output| output.path.clone()).collect())
            .collect();
        self.all_present(asker, outputs).boxed()
    }

    async fn all_present(&self, asker: Asker<'_>, outputs: Vec<Option<Vec<StorePath>>>) -> Result<Vec<bool>, DbError> {
        if self.caches.is_empty() {
            return Ok(vec![false; outputs.len()]);
        }
        let paths: Vec<StorePath> =
            outputs.iter().flatten().flatten().collect::<BTreeSet<_>>().into_iter().cloned().collect();
        let memo = asker.db.upstream_memo(&paths).await?;
        let found = self.find(&paths, &memo).await;
        if !found.answers.is_empty() {
            asker.db.remember_upstream(asker.eval, asker.token, &found.answers).await?;
        }
        if !found.silent.is_empty() {
            let warn = |cache: &String| format!("{cache} does not answer: what it may have is built here");
            let warnings: Vec<String> = found.silent.iter().map(warn).collect();
            match asker.db.add_warnings(asker.eval, asker.token, &warnings).await {
                // A walk in the name of an evaluation that has ended: nobody reads its warnings any more.
                Ok(()) | Err(DbError::StaleClaim) => {}
                Err(error) => return Err(error),
            }
        }
        let has = |outputs: &Option<Vec<StorePath>>| {
            outputs
                .as_ref()
                .is_some_and(|outputs| !outputs.is_empty() && outputs.iter().all(|path| found.present.contains(path)))
        };
        Ok(outputs.iter().map(has).collect())
    }

    /// What the caches say, where `memo` does not.
    async fn find(&self, paths: &[StorePath], memo: &[UpstreamAnswer]) -> Found {
        let mut known: HashMap<(&StorePath, &str), bool> = HashMap::new();
        for answer in memo {
            known.insert((&answer.path, &answer.cache), answer.present);
        }
        let known = &known;
        let asking: Vec<BoxFuture<'_, One>> = paths.iter().map(|path| self.find_one(path, known).boxed()).collect();
        let mut asked = stream::iter(asking).buffer_unordered(PARALLEL);
        let mut found = Found::default();
        while let Some(one) = asked.next().await {
            found.answers.extend(one.answers);
            found.silent.extend(one.silent);
            found.present.extend(one.present);
        }
        found
    }

    async fn find_one(&self, path: &StorePath, known: &HashMap<(&StorePath, &str), bool>) -> One {
        let names = self.names();
        let mut one = One::default();
        if names.iter().any(|name| known.get(&(path, name.as_str())) == Some(&true)) {
            one.present = Some(path.clone());
            return one;
        }
        for ((cache, health), name) in self.caches.iter().zip(names) {
            if known.contains_key(&(path, name.as_str())) {
                continue;
            }
            match self.ask(cache, health, path).await {
                Some(present) => one.answers.push(UpstreamAnswer { path: path.clone(), cache: name, present }),
                None => one.silent.push(name),
            }
            if one.answers.last().is_some_and(|answer| answer.present) {
                one.present = Some(path.clone());
                break;
            }
        }
        one
    }

    /// `None`: it cannot say now.
    async fn ask(&self, cache: &BinaryCache, health: &Health, path: &StorePath) -> Option<bool> {
        if health.is_away(Instant::now()) {
            return None;
        }
        let Ok(answer) = tokio::time::timeout(TIMEOUT, substitute::look(&self.http, cache, path)).await else {
            health.away(Instant::now(), format!("does not answer within {} s", TIMEOUT.as_secs()));
            return None;
        };
        match answer {
            Ok(Look::Found(_)) => {
                health.works();
                Some(true)
            }
            Ok(Look::Absent { refused: None }) => {
                health.works();
                Some(false)
            }
            // Nobody may read it, or this path: either way it is not there for us.
            Ok(Look::Absent { refused: Some(status) }) => {
                health.refuses(status);
                Some(false)
            }
            Err(SubstituteError::Unavailable { cause, .. }) => {
                tracing::debug!(cache = %cache.url(), error = %chain(&cause), "An upstream cache did not answer");
                if cause.is_no_answer() {
                    health.away(Instant::now(), format!("does not answer ({})", chain(&cause)));
                } else {
                    health.fails(Instant::now(), format!("fails ({})", chain(&cause)));
                }
                None
            }
            Err(error) => {
                tracing::debug!(error = %chain(&error), "What an upstream cache says does not count");
                Some(false)
            }
        }
    }
}

#[derive(Debug, Default)]
struct Found {
    present: HashSet<StorePath>,
    answers: Vec<UpstreamAnswer>,
    /// Caches that could not say.
    silent: BTreeSet<String>,
}

#[derive(Debug, Default)]
struct One {
    /// The path, if one of the caches has it.
    present: Option<StorePath>,
    answers: Vec<UpstreamAnswer>,
    silent: Vec<String>,
}

fn name(cache: &BinaryCache) -> String {
    cache.url().to_string()
}

/// Changes with the keys that count, since answers that rest on others do not.
fn keys_digest(cache: &BinaryCache) -> String {
    let keys: BTreeSet<String> = cache.trusted_keys().iter().map(ToString::to_string).collect();
    Sha256Hash::of(keys.into_iter().collect::<Vec<_>>().join("\n").as_bytes()).to_string()
}

#[cfg(test)]
mod tests;
