//! One build, from inputs that are there to outputs that are registered. Start at [`Run::build_ready`].

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use harmonia_nix::derivation::{BasicDerivation, Derivation};
use harmonia_nix::narinfo::fingerprint;
use harmonia_nix::signature::SecretKey;
use harmonia_nix::store_path::{STORE_DIR, StorePath};
use harmonia_nix::worker_protocol::{BuildMode, BuildStatus, OutputNames, PathInfo, ValidPathInfo};

use super::derivation::Looked;
use super::execution::{Job, failed};
use super::outcome::{Outcome, describe};
use super::run::{Run, blocking};
use super::slots::Slot;
use crate::build::{BuildFailure, BuildRequest, BuiltPath, InputPath};
use crate::store::{PathLocks, Staging, Store, StoreError};

/// Which outputs are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wanted {
    All,
    Some(BTreeSet<String>),
}

impl Default for Wanted {
    fn default() -> Self {
        Self::Some(BTreeSet::new())
    }
}

impl Wanted {
    /// These, too.
    pub(super) fn add(&mut self, outputs: &OutputNames) {
        match (self, outputs) {
            (Self::All, _) => {}
            (wanted, OutputNames::All) => *wanted = Self::All,
            (Self::Some(names), OutputNames::Named(more)) => names.extend(more.iter().cloned()),
        }
    }

    pub(super) fn contains(&self, name: &str) -> bool {
        match self {
            Self::All => true,
            Self::Some(names) => names.contains(name),
        }
    }

    /// Those that are wanted by name.
    pub(super) fn names(&self) -> impl Iterator<Item = &String> {
        match self {
            Self::All => None,
            Self::Some(names) => Some(names),
        }
        .into_iter()
        .flatten()
    }
}

/// What a build holds while it runs.
struct Held {
    locks: PathLocks,
    slot: Slot,
}

impl Run {
    /// Builds a derivation whose inputs are valid; `inputs` are the output paths of the derivations among them.
    pub(super) async fn build_ready(
        self: &Arc<Self>,
        drv_path: StorePath,
        derivation: Derivation,
        inputs: BTreeMap<(StorePath, String), StorePath>,
        wanted: Wanted,
    ) -> Outcome {
        match self.try_build_ready(drv_path, derivation, inputs, wanted).await {
            Ok(outcome) | Err(outcome) => outcome,
        }
    }

    async fn try_build_ready(
        self: &Arc<Self>,
        drv_path: StorePath,
        derivation: Derivation,
        inputs: BTreeMap<(StorePath, String), StorePath>,
        wanted: Wanted,
    ) -> Result<Outcome, Outcome> {
        self.scheduler.can_build(&drv_path, &derivation)?;
        if self.request.options.max_jobs == 0 {
            let message = "unable to start any build; either increase '--max-jobs' or enable remote builds.";
            return Err(Outcome::failure(BuildStatus::MiscFailure, message));
        }
        let outputs = derivation.output_paths().filter_map(|(_, path)| path.cloned()).collect();
        let held = self.acquire(&outputs).await?;
        // Whoever held the locks may have built it.
        let looked = self.look_at(&drv_path, derivation, &wanted).await?;
        if looked.is_complete() && self.mode != BuildMode::Check {
            return Ok(Outcome::success(BuildStatus::AlreadyValid, looked.wanted));
        }
        self.refuse_low_disk()?;
        let basic = looked.derivation.resolve(|input, output| inputs.get(&(input.clone(), output.to_owned())).cloned());
        let basic = basic.map_err(|error| {
            let message = format!("cannot build '{drv_path}': {}", describe(&error));
            Outcome::failure(BuildStatus::MiscFailure, message)
        })?;
        let (request, staging) = self.prepare(drv_path.clone(), basic).await?;
        let verb = match self.mode {
            BuildMode::Normal => "building",
            BuildMode::Repair => "repairing outputs of",
            BuildMode::Check => "checking outputs of",
        };
        let activity = self.request.log.build(&self.activity, format!("{verb} '{drv_path}'"), drv_path.as_str());
        let began_s = now_s();
        let held = (held, staging, Arc::clone(&self.request.roots));
        let (ended, (held, staging, _)) = Job::start(self, request, activity, held).end().await;
        let mut outcome = match ended.result {
            Ok(built) => self.finish(&drv_path, looked, built, staging, held).await?,
            Err(failure) => {
                self.keep_mismatched(&drv_path, &failure, staging, held).await?;
                failed(&failure)
            }
        };
        if outcome.status == BuildStatus::Built {
            self.run_post_build_hook(&drv_path, &outcome).await?;
        }
        (outcome.times_built, outcome.start_time_s, outcome.stop_time_s) = (1, began_s, now_s());
        outcome.usage = Some(Box::new(ended.usage));
        Ok(outcome)
    }

    /// A slot, and the locks of the outputs. Nobody waits for long with either of them in his hands.
    async fn acquire(self: &Arc<Self>, outputs: &BTreeSet<StorePath>) -> Result<Held, Outcome> {
        let slot = self.slots.acquire().await;
        let (store, roots) = (Arc::clone(&self.scheduler.store), Arc::clone(&self.request.roots));
        let wanted = outputs.clone();
        if let Some(locks) = blocking(move || store.try_lock_paths(&roots, &wanted)).await? {
            return Ok(Held { locks, slot });
        }
        drop(slot);
        let shown: Vec<String> = outputs.iter().map(|path| format!("'{path}'")).collect();
        let _waits = self.request.log.wait(&self.activity, format!("waiting for lock on {}", shown.join(", ")));
        let locks = self.scheduler.store.lock_paths_soon(&self.request.roots, outputs).await?;
        Ok(Held { locks, slot: self.slots.acquire().await })
    }

    fn refuse_low_disk(&self) -> Result<(), Outcome> {
        let store_dir = &self.scheduler.store.layout().real_store_dir;
        let needed = self.scheduler.settings.free_bytes_min;
        match rustix::fs::statvfs(store_dir) {
            Ok(found) if found.f_bavail.saturating_mul(found.f_frsize) < needed => {
                let message = format!(
                    "only {} bytes are free in {}, builds need {needed}: collect garbage",
                    found.f_bavail.saturating_mul(found.f_frsize),
                    store_dir.display()
                );
                Err(Outcome::failure(BuildStatus::TransientFailure, message))
            }
            // Where the kernel cannot say, the build finds out.
            _ => Ok(()),
        }
    }

    /// What the executor is given.
    async fn prepare(&self, drv_path: StorePath, basic: BasicDerivation) -> Result<(BuildRequest, Staging), Outcome> {
        let (store, roots) = (Arc::clone(&self.scheduler.store), Arc::clone(&self.request.roots));
        let options = self.request.options.build.clone();
        let prepared = blocking(move || {
            let closure = store.closure(&basic.input_srcs)?;
            let mut valid_outputs = BTreeMap::new();
            for (name, output) in &basic.outputs {
                let Some(path) = output.path() else { continue };
                if let Some(info) = store.path_info(path)? {
                    valid_outputs.insert(name.clone(), input_path(&store, path, info));
                }
            }
            let inputs = closure.into_iter().map(|(path, info)| {
                let input = input_path(&store, &path, info);
                (path, input)
            });
            let staging = store.staging(&roots)?;
            let sandbox_inputs = sandbox_inputs(&store, &options.sandbox_paths)?;
            let request = BuildRequest {
                drv_path,
                inputs: inputs.collect(),
                sandbox_inputs,
                outputs: basic.outputs.keys().cloned().collect(),
                valid_outputs,
                derivation: basic,
                store_dir: store.layout().real_store_dir.clone(),
                staging: staging.dir().to_owned(),
                options,
            };
            Ok((request, staging))
        });
        Ok(prepared.await?)
    }

    /// Puts what was built where it belongs and makes it valid; or compares it with what is there.
    async fn finish(
        &self,
        drv_path: &StorePath,
        looked: Looked,
        built: Vec<BuiltPath>,
        staging: Staging,
        held: Held,
    ) -> Result<Outcome, Outcome> {
        let (store, roots, drv_path) =
            (Arc::clone(&self.scheduler.store), Arc::clone(&self.request.roots), drv_path.clone());
        let (mode, keep_failed) = (self.mode, self.request.options.build.keep_failed);
        let (keys, optimise) = (self.request.options.secret_keys.clone(), self.request.options.auto_optimise);
        let finished = blocking(move || {
            // The right to write lasts until all is registered; others may build meanwhile.
            let Held { locks: _locks, slot } = held;
            drop(slot);
            if mode == BuildMode::Check {
                let different = different_outputs(&store, &drv_path, &built, keep_failed)?;
                drop(staging);
                return Ok(match different {
                    Some(outcome) => outcome,
                    None => Outcome::success(BuildStatus::Built, looked.wanted),
                });
            }
            let mut new = Vec::new();
            for built in &built {
                roots.add(&built.path)?;
                if store.is_valid(&built.path)? && (mode == BuildMode::Normal || store.is_sound(&built.path)?) {
                    continue;
                }
                store.move_into_store(&built.staged, &built.path, optimise)?;
                new.push(valid_path(&drv_path, built, &keys));
            }
            store.register(&new)?;
            drop(staging);
            Ok(Outcome::success(BuildStatus::Built, looked.wanted))
        });
        Ok(finished.await?)
    }

    /// Who corrects the hash of a fixed output need not build it again: it is there under the path that is right for it.
    async fn keep_mismatched(
        &self,
        drv_path: &StorePath,
        failure: &BuildFailure,
        staging: Staging,
        held: Held,
    ) -> Result<(), Outcome> {
        let (store, roots, drv_path) =
            (Arc::clone(&self.scheduler.store), Arc::clone(&self.request.roots), drv_path.clone());
        let (mismatched, keys) = (failure.mismatched.clone(), self.request.options.secret_keys.clone());
        let optimise = self.request.options.auto_optimise;
        let kept = blocking(move || {
            let _held = held;
            let Some(built) = mismatched else { return Ok(()) };
            // Somebody who has the lock makes just this.
            let Some(_locks) = store.try_lock_paths(&roots, &BTreeSet::from([built.path.clone()]))? else {
                return Ok(());
            };
            if !store.is_valid(&built.path)? {
                store.move_into_store(&built.staged, &built.path, optimise)?;
                store.register(&[valid_path(&drv_path, &built, &keys)])?;
            }
            drop(staging);
            Ok(())
        });
        Ok(kept.await?)
    }
}

/// The closures of what `sandbox-paths` takes from the store.
fn sandbox_inputs(
    store: &Store,
    sandbox_paths: &[(PathBuf, PathBuf)],
) -> Result<BTreeMap<StorePath, InputPath>, StoreError> {
    let base_names = sandbox_paths.iter().filter_map(|(_, source)| {
        let below = source.strip_prefix(STORE_DIR).ok()?;
        StorePath::from_base_name(below.components().next()?.as_os_str().to_str()?).ok()
    });
    let mut roots = BTreeSet::new();
    for path in base_names {
        if store.is_valid(&path)? {
            roots.insert(path);
        }
    }
    let closure = store.closure(&roots)?.into_iter();
    Ok(closure.map(|(path, info)| (path.clone(), input_path(store, &path, info))).collect())
}

fn input_path(store: &Store, path: &StorePath, info: PathInfo) -> InputPath {
    let PathInfo { nar_hash, nar_size_bytes, references, content_address, .. } = info;
    InputPath { real: store.real_path(path), nar_hash, nar_size_bytes, references, content_address }
}

/// What is registered of something built here.
fn valid_path(drv_path: &StorePath, built: &BuiltPath, keys: &[SecretKey]) -> ValidPathInfo {
    let BuiltPath { path, nar_hash, nar_size_bytes, references, content_address, .. } = built;
    let text = fingerprint(path, nar_hash, *nar_size_bytes, references);
    let info = PathInfo {
        deriver: Some(drv_path.clone()),
        references: references.clone(),
        ultimate: true,
        signatures: keys.iter().map(|key| key.sign(text.as_bytes()).to_string()).collect(),
        content_address: *content_address,
        ..PathInfo::new(*nar_hash, *nar_size_bytes)
    };
    ValidPathInfo { path: path.clone(), info }
}

/// The failure of a check: which outputs are other ones than those that are there.
fn different_outputs(
    store: &Store,
    drv_path: &StorePath,
    built: &[BuiltPath],
    keep_failed: bool,
) -> Result<Option<Outcome>, StoreError> {
    let mut different = None;
    for BuiltPath { path, staged, nar_hash, .. } in built {
        if store.valid_path_info(path)?.nar_hash == *nar_hash {
            continue;
        }
        let mut message = format!("derivation '{drv_path}' may not be deterministic: output '{path}' differs");
        if keep_failed {
            let kept = store.real_path(path).with_file_name(format!("{}.check", path.base_name()));
            store.keep_beside(staged, &kept)?;
            message = format!("{message} from '{path}.check'");
        }
        different.get_or_insert(Outcome::failure(BuildStatus::NotDeterministic, message));
    }
    Ok(different)
}

/// Seconds of Unix time.
fn now_s() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |time| time.as_secs())
}
