//! The outputs of a derivation: there already, from caches, or built once its inputs are there. Start at [`Run::realise`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, join_all};
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use harmonia_nix::derivation::{Derivation, DerivationKind};
use harmonia_nix::store_path::StorePath;
use harmonia_nix::worker_protocol::{BuildMode, BuildStatus, OutputNames};

use super::Scheduler;
use super::building::Wanted;
use super::outcome::Outcome;
use super::run::{Run, blocking};
use super::substitution::Substitution;

/// A derivation, and which of the wanted outputs are there.
#[derive(Debug)]
pub(super) struct Looked {
    pub(super) derivation: Derivation,
    /// All wanted outputs.
    pub(super) wanted: BTreeMap<String, StorePath>,
    /// Those of them that are valid (and sound, when that is asked).
    pub(super) valid: BTreeSet<StorePath>,
}

impl Looked {
    pub(super) fn is_complete(&self) -> bool {
        self.wanted.values().all(|path| self.valid.contains(path))
    }
}

/// What substituting the outputs came to.
enum Substituted {
    /// All are there.
    Complete(Looked),
    /// It may succeed once the inputs are there, which fill the hole in the closure.
    Later(Looked),
    /// It has to be built.
    Not(Looked),
}

impl Run {
    /// Makes outputs of a derivation valid.
    pub(super) async fn realise(self: Arc<Self>, drv_path: StorePath, outputs: OutputNames) -> Outcome {
        match self.try_realise(&drv_path, &outputs).await {
            Ok(outcome) | Err(outcome) => outcome,
        }
    }

    async fn try_realise(self: &Arc<Self>, drv_path: &StorePath, outputs: &OutputNames) -> Result<Outcome, Outcome> {
        if !self.substitute(drv_path, None, false).await.is_success() {
            let message = format!("cannot build missing derivation '{drv_path}'");
            return Err(Outcome::failure(BuildStatus::MiscFailure, message));
        }
        let mut wanted = Wanted::default();
        wanted.add(outputs);
        let looked = self.look(drv_path, &wanted).await?;
        if looked.is_complete() && self.mode == BuildMode::Normal {
            return Ok(Outcome::success(BuildStatus::AlreadyValid, looked.wanted));
        }
        match self.substitute_outputs(drv_path, &wanted, looked).await? {
            Substituted::Complete(looked) => return self.complete(drv_path, looked).await,
            Substituted::Not(_) => {}
            Substituted::Later(looked) => {
                self.realise_inputs(drv_path, &looked.derivation).await?;
                if let Substituted::Complete(looked) = self.substitute_outputs(drv_path, &wanted, looked).await? {
                    return self.complete(drv_path, looked).await;
                }
            }
        }
        // Twice at most: who built it first may have been asked for less.
        for _ in 0..2 {
            let (run, path) = (Arc::clone(self), drv_path.clone());
            let outcome = self.build(drv_path, move || run.build_with_inputs(path).boxed()).await;
            if !outcome.is_success() {
                return Err(outcome);
            }
            let looked = self.look(drv_path, &wanted).await?;
            if looked.is_complete() || self.mode != BuildMode::Normal {
                return Ok(Outcome { outputs: looked.wanted, ..outcome });
            }
            self.forget_build(drv_path);
        }
        let message = format!("some outputs of '{drv_path}' are unexpectedly invalid");
        Err(Outcome::failure(BuildStatus::MiscFailure, message))
    }

    /// The same for a derivation that need not be in the store, all of its outputs; its inputs are plain paths.
    pub(super) async fn realise_single(self: Arc<Self>, drv_path: StorePath, derivation: Derivation) -> Outcome {
        match self.try_realise_single(drv_path, derivation).await {
            Ok(outcome) | Err(outcome) => outcome,
        }
    }

    async fn try_realise_single(
        self: &Arc<Self>,
        drv_path: StorePath,
        derivation: Derivation,
    ) -> Result<Outcome, Outcome> {
        let wanted = Wanted::All;
        let looked = self.look_at(&drv_path, derivation, &wanted).await?;
        if looked.is_complete() && self.mode == BuildMode::Normal {
            return Ok(Outcome::success(BuildStatus::AlreadyValid, looked.wanted));
        }
        let looked = match self.substitute_outputs(&drv_path, &wanted, looked).await? {
            Substituted::Complete(looked) => return self.complete(&drv_path, looked).await,
            Substituted::Not(looked) | Substituted::Later(looked) => looked,
        };
        let outputs = looked.wanted.clone();
        let missing = self.substitute_sources(&drv_path, &looked.derivation).await?;
        if missing > 0 {
            let message = format!("some dependencies of '{drv_path}' are missing");
            return Err(Outcome::failure(BuildStatus::MiscFailure, message));
        }
        let outcome = self.build_ready(drv_path, looked.derivation, BTreeMap::new(), wanted).await;
        if outcome.is_success() { Ok(Outcome { outputs, ..outcome }) } else { Err(outcome) }
    }

    /// Reads a valid derivation and looks which of the wanted outputs are there.
    pub(super) async fn look(&self, drv_path: &StorePath, wanted: &Wanted) -> Result<Looked, Outcome> {
        let (store, path) = (Arc::clone(&self.scheduler.store), drv_path.clone());
        let derivation = blocking(move || store.read_derivation(&path)).await?;
        self.look_at(drv_path, derivation, wanted).await
    }

    pub(super) async fn look_at(
        &self,
        drv_path: &StorePath,
        derivation: Derivation,
        wanted: &Wanted,
    ) -> Result<Looked, Outcome> {
        refuse_unknown_paths(drv_path, &derivation)?;
        let absent = wanted.names().filter(|name| !derivation.outputs.contains_key(*name));
        let absent: Vec<String> = absent.map(|name| format!("'{name}'")).collect();
        if !absent.is_empty() {
            let message = format!("derivation '{drv_path}' does not have wanted outputs {}", absent.join(", "));
            return Err(Outcome::failure(BuildStatus::MiscFailure, message));
        }
        let (store, roots) = (Arc::clone(&self.scheduler.store), Arc::clone(&self.request.roots));
        let (wanted, checks_content) = (wanted.clone(), self.mode == BuildMode::Repair);
        let looked = blocking(move || {
            let mut looked = Looked { derivation, wanted: BTreeMap::new(), valid: BTreeSet::new() };
            for (name, path) in looked.derivation.output_paths() {
                let Some(path) = path else { continue };
                roots.add(path)?;
                if wanted.contains(name) {
                    looked.wanted.insert(name.to_owned(), path.clone());
                }
            }
            looked.valid = store.valid_of(looked.wanted.values())?;
            if checks_content {
                let mut sound = BTreeSet::new();
                for path in &looked.valid {
                    if store.is_sound(path)? {
                        sound.insert(path.clone());
                    }
                }
                looked.valid = sound;
            }
            Ok(looked)
        });
        Ok(looked.await?)
    }

    /// Tries to get the wanted outputs from caches.
    async fn substitute_outputs(
        self: &Arc<Self>,
        drv_path: &StorePath,
        wanted: &Wanted,
        looked: Looked,
    ) -> Result<Substituted, Outcome> {
        let may_substitute = self.request.options.use_substitutes
            && looked.derivation.options().map_err(|error| rejected(drv_path, &error))?.allow_substitutes;
        let mut ends = Vec::new();
        if may_substitute {
            let repair = self.mode == BuildMode::Repair;
            let missing = looked.wanted.iter().filter(|(_, path)| !looked.valid.contains(*path));
            let address = |name: &String| looked.derivation.outputs.get(name)?.fixed_address().copied();
            ends = join_all(missing.map(|(name, path)| self.substitute(path, address(name), repair))).await;
        }
        let failure = ends.iter().find_map(|end| match end {
            Substitution::Failed(message) => Some(message),
            _ => None,
        });
        if let Some(message) = failure.filter(|_| !self.request.options.try_fallback) {
            let message = format!(
                "some substitutes for the outputs of derivation '{drv_path}' failed (usually happens due to networking \
                 issues): {message}; try '--fallback' to build derivation from source "
            );
            return Err(Outcome::failure(BuildStatus::TransientFailure, message));
        }
        let has_hole = ends.iter().any(|end| matches!(end, Substitution::IncompleteClosure));
        let others_failed = ends.iter().any(|end| !end.is_success() && !matches!(end, Substitution::IncompleteClosure));
        let looked = if ends.is_empty() { looked } else { self.look_at(drv_path, looked.derivation, wanted).await? };
        match (self.mode, looked.is_complete()) {
            (BuildMode::Normal | BuildMode::Repair, true) => Ok(Substituted::Complete(looked)),
            (BuildMode::Check, false) => {
                let message = format!("some outputs of '{drv_path}' are not valid, so checking is not possible");
                Err(Outcome::failure(BuildStatus::MiscFailure, message))
            }
            _ if has_hole && !others_failed => Ok(Substituted::Later(looked)),
            _ => Ok(Substituted::Not(looked)),
        }
    }

    /// All wanted outputs are there; when repairing, what they refer to has to be sound as well.
    async fn complete(self: &Arc<Self>, drv_path: &StorePath, looked: Looked) -> Result<Outcome, Outcome> {
        if self.mode != BuildMode::Repair {
            return Ok(Outcome::success(BuildStatus::Substituted, looked.wanted));
        }
        let (store, path) = (Arc::clone(&self.scheduler.store), drv_path.clone());
        let wanted: BTreeSet<StorePath> = looked.wanted.values().cloned().collect();
        let damaged = blocking(move || {
            let mut damaged = Vec::new();
            for output in store.closure(&wanted)?.into_keys() {
                if !wanted.contains(&output) && !store.is_sound(&output)? {
                    damaged.push(output);
                }
            }
            if damaged.is_empty() || !store.is_valid(&path)? {
                return Ok((damaged, BTreeMap::new()));
            }
            let mut makers = BTreeMap::new();
            for derivation in store.closure([&path])?.into_keys().filter(StorePath::is_derivation) {
                let outputs = store.derivation_outputs(&derivation)?;
                makers.extend(outputs.into_values().map(|output| (output, derivation.clone())));
            }
            Ok((damaged, makers))
        });
        let (damaged, makers) = damaged.await?;
        let repairs = damaged.iter().map(|output| {
            let message = format!("found corrupted or missing path '{output}' in the output closure of '{drv_path}'");
            self.request.log.error(&message);
            let repair: BoxFuture<'_, bool> = match makers.get(output) {
                Some(maker) => self.derivation(maker, &OutputNames::All).map(|end| end.is_success()).boxed(),
                None => async { self.substitute(output, None, true).await.is_success() }.boxed(),
            };
            repair
        });
        if join_all(repairs).await.contains(&false) {
            let message = format!("some paths in the output closure of derivation '{drv_path}' could not be repaired");
            return Err(Outcome::failure(BuildStatus::MiscFailure, message));
        }
        Ok(Outcome::success(BuildStatus::AlreadyValid, looked.wanted))
    }

    /// Builds a valid derivation once its inputs are there.
    async fn build_with_inputs(self: Arc<Self>, drv_path: StorePath) -> Outcome {
        let (store, path) = (Arc::clone(&self.scheduler.store), drv_path.clone());
        // Read anew, and not kept while inputs are built: a hundred thousand of them may wait.
        let read = {
            let (store, path) = (Arc::clone(&store), path.clone());
            blocking(move || store.read_derivation(&path)).await
        };
        let inputs = match read {
            Ok(derivation) => match self.realise_inputs(&drv_path, &derivation).await {
                Ok(inputs) => inputs,
                Err(outcome) => return outcome,
            },
            Err(error) => return error.into(),
        };
        match blocking(move || store.read_derivation(&path)).await {
            Ok(derivation) => {
                let wanted = self.wanted(&drv_path);
                self.build_ready(drv_path, derivation, inputs, wanted).await
            }
            Err(error) => error.into(),
        }
    }

    /// Makes all inputs valid; the output paths of the derivations among them.
    async fn realise_inputs(
        self: &Arc<Self>,
        drv_path: &StorePath,
        derivation: &Derivation,
    ) -> Result<BTreeMap<(StorePath, String), StorePath>, Outcome> {
        let goals = derivation.input_drvs.iter().map(|(input, names)| {
            let goal = self.derivation(input, &OutputNames::Named(names.clone()));
            let input = input.clone();
            async move { (input, goal.await) }
        });
        let mut goals: FuturesUnordered<_> = goals.collect();
        let (mut paths, mut failed) = (BTreeMap::new(), 0);
        while let Some((input, outcome)) = goals.next().await {
            if outcome.is_success() {
                paths.extend(outcome.outputs.into_iter().map(|(name, path)| ((input.clone(), name), path)));
                continue;
            }
            failed += 1;
            // Whoever wanted only what needs it would not hear of the reason otherwise.
            self.tell(&input, &outcome);
            if !self.request.options.keep_going {
                break;
            }
        }
        if failed == 0 {
            failed += self.substitute_sources(drv_path, derivation).await?;
        }
        if failed > 0 {
            let message = format!("{failed} dependencies of derivation '{drv_path}' failed to build");
            return Err(Outcome::failure(BuildStatus::DependencyFailed, message));
        }
        Ok(paths)
    }

    /// Makes the sources of a derivation valid; how many are not to be had.
    async fn substitute_sources(
        self: &Arc<Self>,
        drv_path: &StorePath,
        derivation: &Derivation,
    ) -> Result<usize, Outcome> {
        let (store, sources) = (Arc::clone(&self.scheduler.store), derivation.input_srcs.clone());
        let missing = blocking(move || {
            let valid = store.valid_of(&sources)?;
            Ok(sources.into_iter().filter(|path| !valid.contains(path)).collect::<Vec<_>>())
        });
        let missing = missing.await?;
        if let Some(path) = missing.first().filter(|_| !self.request.options.use_substitutes) {
            let message = format!("dependency '{path}' of '{drv_path}' does not exist, and substitution is disabled");
            return Err(Outcome::failure(BuildStatus::MiscFailure, message));
        }
        let ends = join_all(missing.iter().map(|path| self.substitute(path, None, false))).await;
        Ok(ends.iter().filter(|end| !end.is_success()).count())
    }
}

impl Scheduler {
    /// Whether derivations of this system with these required features are built here; else why not.
    pub(super) fn can_build(&self, drv_path: &StorePath, derivation: &Derivation) -> Result<(), Outcome> {
        let options = derivation.options().map_err(|error| rejected(drv_path, &error))?;
        let required = options.required_system_features;
        let settings = &self.settings;
        if (derivation.platform == "builtin" || settings.systems.contains(&derivation.platform))
            && required.is_subset(&settings.system_features)
        {
            return Ok(());
        }
        let list = |features: &BTreeSet<String>| features.iter().cloned().collect::<Vec<_>>().join(", ");
        let message = format!(
            "a '{}' with features {{{}}} is required to build '{drv_path}', but I am a '{}' with features {{{}}}",
            derivation.platform,
            list(&required),
            list(&settings.systems),
            list(&settings.system_features)
        );
        Err(Outcome::failure(BuildStatus::InputRejected, message))
    }
}

fn rejected(drv_path: &StorePath, error: &dyn std::error::Error) -> Outcome {
    let message = format!("cannot build '{drv_path}': {}", super::outcome::describe(error));
    Outcome::failure(BuildStatus::InputRejected, message)
}

/// Derivations whose output paths are known only after the build.
fn refuse_unknown_paths(drv_path: &StorePath, derivation: &Derivation) -> Result<(), Outcome> {
    let what = match derivation.kind() {
        Ok(DerivationKind::InputAddressed | DerivationKind::Fixed) => return Ok(()),
        Ok(DerivationKind::Floating) => "is content-addressed without a hash that is known beforehand",
        Ok(DerivationKind::Deferred) => "depends on a derivation whose outputs are content-addressed",
        Ok(DerivationKind::Impure) => "is impure",
        Err(error) => return Err(rejected(drv_path, &error)),
    };
    let message = format!("cannot build '{drv_path}': it {what}, which this daemon does not support");
    Err(Outcome::failure(BuildStatus::InputRejected, message))
}
