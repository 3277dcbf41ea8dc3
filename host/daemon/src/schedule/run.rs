//! The goals of one request. Start at [`Running::start`].
//!
//! Each goal is a task that ends with a value which all who wait for it get; there is at most one for each thing wanted.
//! When the request is over, or its client away, all of them end.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::future::{BoxFuture, FutureExt as _, Shared};
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use harmonia_nix::ContentAddress;
use harmonia_nix::derivation::Derivation;
use harmonia_nix::store_path::StorePath;
use harmonia_nix::worker_protocol::{BuildMode, DerivedPath, OutputNames};
use tokio::sync::OnceCell;
use tokio_util::task::AbortOnDropHandle;

use super::building::Wanted;
use super::log::Activity;
use super::offers::LookUp;
use super::outcome::Outcome;
use super::slots::ClientSlots;
use super::substitution::Substitution;
use super::{Request, ScheduleError, Scheduler};
use crate::store::StoreError;
use crate::substitute::Cache;

/// What a goal will end with.
pub(super) type Goal<T> = Shared<BoxFuture<'static, T>>;

/// One request and its goals.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) scheduler: Arc<Scheduler>,
    pub(super) request: Request,
    pub(super) mode: BuildMode,
    pub(super) activity: Activity,
    pub(super) slots: ClientSlots,
    caches: OnceCell<Vec<Arc<Cache>>>,
    goals: Mutex<Goals>,
}

#[derive(Debug, Default)]
struct Goals {
    derivations: HashMap<(StorePath, OutputNames), Goal<Outcome>>,
    builds: HashMap<StorePath, Goal<Outcome>>,
    /// Which outputs are wanted of each derivation, by all who want it.
    wanted: HashMap<StorePath, Wanted>,
    look_ups: HashMap<StorePath, Goal<LookUp>>,
    fetches: HashMap<StorePath, Goal<Substitution>>,
    /// Derivations whose failures the client has been told of.
    told: HashSet<StorePath>,
    is_over: bool,
}

/// Ends all goals of a request when it is dropped.
#[derive(Debug)]
pub(super) struct Running(Arc<Run>);

impl Deref for Running {
    type Target = Arc<Run>;

    fn deref(&self) -> &Arc<Run> {
        &self.0
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // The tasks hold the run, which holds the tasks: what they are is taken out, then dropped without the lock.
        let goals = std::mem::replace(&mut *self.0.goals(), Goals { is_over: true, ..Goals::default() });
        drop(goals);
    }
}

impl Running {
    pub(super) fn start(scheduler: &Arc<Scheduler>, request: Request, mode: BuildMode) -> Self {
        let (activity, slots) = (request.log.realise(), scheduler.client_slots(&request.options));
        let (caches, goals) = (OnceCell::new(), Mutex::default());
        Self(Arc::new(Run { scheduler: Arc::clone(scheduler), request, mode, activity, slots, caches, goals }))
    }

    /// How all of these end; unless the client wants to go on after a failure, the first one ends the others.
    pub(super) async fn targets(&self, targets: &[DerivedPath]) -> Vec<(DerivedPath, Outcome)> {
        self.ends_of(targets, self.request.options.keep_going).await
    }

    /// The same, but a failure never ends the others.
    pub(super) async fn all_targets(&self, targets: &[DerivedPath]) -> Vec<(DerivedPath, Outcome)> {
        self.ends_of(targets, true).await
    }

    async fn ends_of(&self, targets: &[DerivedPath], keep_going: bool) -> Vec<(DerivedPath, Outcome)> {
        let mut outcomes: Vec<Option<Outcome>> = vec![None; targets.len()];
        let goals = targets.iter().enumerate().map(|(index, target)| {
            let goal = self.target(target);
            async move { (index, goal.await) }
        });
        let mut goals: FuturesUnordered<_> = goals.collect();
        while let Some((index, outcome)) = goals.next().await {
            let is_end = !outcome.is_success() && !keep_going;
            outcomes[index] = Some(outcome);
            if is_end {
                break;
            }
        }
        let ends = targets.iter().cloned().zip(outcomes);
        ends.map(|(target, outcome)| (target, outcome.unwrap_or_else(Outcome::cancelled))).collect()
    }

    /// How a derivation ends that need not be in the store.
    pub(super) async fn single(&self, drv_path: StorePath, derivation: Derivation) -> Outcome {
        Run::realise_single(Arc::clone(self), drv_path, derivation).await
    }
}

impl Run {
    fn target(self: &Arc<Self>, target: &DerivedPath) -> BoxFuture<'static, Outcome> {
        match target {
            DerivedPath::Built { derivation, outputs } => self.derivation(derivation, outputs).boxed(),
            DerivedPath::Opaque(path) => {
                let (run, path) = (Arc::clone(self), path.clone());
                async move {
                    let repair = run.mode == BuildMode::Repair;
                    run.substitute(&path, None, repair).await.into_outcome(&path)
                }
                .boxed()
            }
        }
    }

    /// The goal of some outputs of a derivation.
    pub(super) fn derivation(self: &Arc<Self>, drv_path: &StorePath, outputs: &OutputNames) -> Goal<Outcome> {
        self.goals().wanted.entry(drv_path.clone()).or_default().add(outputs);
        let key = (drv_path.clone(), outputs.clone());
        let (run, drv_path, outputs) = (Arc::clone(self), drv_path.clone(), outputs.clone());
        self.goal(|goals| &mut goals.derivations, key, move || run.realise(drv_path, outputs).boxed())
    }

    /// The goal of building a derivation, whichever outputs are wanted.
    pub(super) fn build(
        self: &Arc<Self>,
        drv_path: &StorePath,
        future: impl FnOnce() -> BoxFuture<'static, Outcome>,
    ) -> Goal<Outcome> {
        self.goal(|goals| &mut goals.builds, drv_path.clone(), future)
    }

    /// Forgets how a build ended, as when more was wanted meanwhile.
    pub(super) fn forget_build(&self, drv_path: &StorePath) {
        let forgotten = self.goals().builds.remove(drv_path);
        drop(forgotten);
    }

    /// Which outputs of a derivation are wanted by all who want it.
    pub(super) fn wanted(&self, drv_path: &StorePath) -> Wanted {
        self.goals().wanted.get(drv_path).cloned().unwrap_or_default()
    }

    /// Tells the client why something failed that others need; once.
    pub(super) fn tell(&self, drv_path: &StorePath, outcome: &Outcome) {
        let is_news = self.goals().told.insert(drv_path.clone());
        if is_news && !outcome.message.is_empty() {
            self.request.log.error(&outcome.message);
        }
    }

    /// The goal of knowing what the caches have of a path; `address`: of a fixed output.
    pub(super) fn look_up(self: &Arc<Self>, path: &StorePath, address: Option<ContentAddress>) -> Goal<LookUp> {
        let (run, wanted) = (Arc::clone(self), path.clone());
        let ask = move || async move { run.ask_caches(&wanted, address, 0).await }.boxed();
        self.goal(|goals| &mut goals.look_ups, path.clone(), ask)
    }

    /// The goal of fetching a path.
    pub(super) fn fetch(
        self: &Arc<Self>,
        path: &StorePath,
        future: impl FnOnce() -> BoxFuture<'static, Substitution>,
    ) -> Goal<Substitution> {
        self.goal(|goals| &mut goals.fetches, path.clone(), future)
    }

    /// The caches to ask, by priority; those that cannot be asked are told of once.
    pub(super) async fn caches(&self) -> &[Arc<Cache>] {
        let options = &self.request.options;
        let find = || async {
            if !options.use_substitutes {
                return Vec::new();
            }
            let (caches, warnings) = self.scheduler.caches.of(&options.substituters).await;
            for warning in warnings {
                self.request.log.warn(&warning);
            }
            caches
        };
        self.caches.get_or_init(find).await
    }

    fn goal<K: Eq + Hash, T: Clone + Send + Sync + 'static>(
        &self,
        which: impl Fn(&mut Goals) -> &mut HashMap<K, Goal<T>>,
        key: K,
        future: impl FnOnce() -> BoxFuture<'static, T>,
    ) -> Goal<T> {
        let mut goals = self.goals();
        if goals.is_over {
            // Whoever asks is about to end, too.
            return futures_util::future::pending().boxed().shared();
        }
        which(&mut goals).entry(key).or_insert_with(|| spawn(future())).clone()
    }

    fn goals(&self) -> MutexGuard<'_, Goals> {
        self.goals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A task whose value all who wait get; it ends when nobody can wait for it any more.
fn spawn<T: Clone + Send + Sync + 'static>(future: BoxFuture<'static, T>) -> Goal<T> {
    let task = AbortOnDropHandle::new(tokio::spawn(future));
    async move {
        match task.await {
            Ok(value) => value,
            Err(failed) => match failed.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // Only while the request ends, together with whoever waits.
                Err(_cancelled) => futures_util::future::pending().await,
            },
        }
    }
    .boxed()
    .shared()
}

/// Does something that blocks where that holds up nobody.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, ScheduleError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(Into::into),
        Err(failed) => match failed.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The daemon stops.
            Err(_cancelled) => futures_util::future::pending().await,
        },
    }
}
