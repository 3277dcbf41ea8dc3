//! The derivations below attributes: read natively, walked as far as the database says, in an order in which
//! dependencies come first. Start at [`Walker::walk`]; what it holds meanwhile is in `graph/held.rs`. What is wrong with a
//! derivation is the error of every attribute that leads to it, and of nothing else.

mod held;
mod recent;

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use harmonia_core::limits::{DRV_BYTES_MAX, REFERENCES_MAX};
use harmonia_core::{ClaimToken, EvalId};
use harmonia_db::{AskedLimits, Db, DbError, GraphDerivation, GraphOutput, Walk};
use harmonia_nix::{Derivation, StorePath};

use super::upstream::{Asker, Upstream};
use crate::pack::physical_path;
pub(crate) use held::Planned;
use held::{Held, Id, Role};
use recent::{Memo, Recent};

/// Derivations asked of the database at once.
const CLASSIFY_MAX: usize = 2_000;
/// Paths that derivations name which are held at once as they were read, before only who needs whom is kept of them.
const READ_REFERENCES_MAX: usize = 100_000;
/// Derivations remembered as settled, over all walks of an evaluation. Beyond that they are simply asked for again.
const SETTLED_MAX: usize = 400_000;
/// Newer evaluators may say a `.drv` path a moment before they have written the file. Over the whole evaluation, since it
/// may also be one that nobody ever writes.
const DRV_PATIENCE: Duration = Duration::from_secs(10);
const DRV_PAUSE: Duration = Duration::from_millis(50);

/// Longest name of a system, and of a feature, in bytes; most features, and how long they may be together.
const WORD_BYTES_MAX: usize = 256;
const FEATURES_MAX: usize = 64;
const FEATURES_BYTES_MAX: usize = 1_024;

/// Why a walk cannot be finished.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GraphError {
    /// One derivation cannot be used.
    #[error(transparent)]
    Unusable(#[from] Unusable),
    /// More than a walk holds.
    #[error("it depends on more than {0} derivations that are not built yet")]
    TooMany(usize),
    /// And more than the node's memory is for.
    #[error(
        "the derivations that it depends on and that are not built yet are too many, or have too many inputs: an \
         evaluation has {} MiB of this node's memory for them", .0 >> 20
    )]
    TooLarge(u64),
    /// The database.
    #[error("could not look up derivations")]
    Database(#[from] DbError),
}

impl GraphError {
    /// Whether another graph would do.
    pub(super) fn is_about_content(&self) -> bool {
        match self {
            Self::Unusable(_) | Self::TooMany(_) | Self::TooLarge(_) => true,
            Self::Database(error) => error.refuses_values(),
        }
    }
}

/// Why a derivation cannot be built, whoever needs it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unusable {
    /// It is not in the node's store.
    #[error("could not read the derivation {path} in the node's store")]
    Read {
        path: StorePath,
        #[source]
        cause: std::io::Error,
    },
    /// It is larger than anybody needs.
    #[error("the derivation {0} is larger than {DRV_BYTES_MAX} bytes")]
    TooLarge(StorePath),
    /// Not a derivation.
    #[error("the derivation {path} cannot be read")]
    Parse {
        path: StorePath,
        #[source]
        cause: harmonia_nix::derivation::DerivationFileError,
    },
    /// What it says of itself is of a wrong type.
    #[error("the derivation {path} cannot be built by anybody")]
    Options {
        path: StorePath,
        #[source]
        cause: harmonia_nix::derivation::DerivationOptionsError,
    },
    /// A feature that is no word.
    #[error(
        "the derivation {path} requires the system feature '{feature}' (requiredSystemFeatures), which no machine can offer: \
         a feature is a word of at most {WORD_BYTES_MAX} bytes without blanks"
    )]
    Feature { path: StorePath, feature: String },
    /// Too many features.
    #[error(
        "the derivation {0} requires too many system features (requiredSystemFeatures): at most {FEATURES_MAX}, together \
         of at most {FEATURES_BYTES_MAX} bytes, are allowed"
    )]
    Features(StorePath),
    /// A system that cannot be one.
    #[error("the system of the derivation {0} is longer than {WORD_BYTES_MAX} bytes")]
    System(StorePath),
    /// More than a store path may refer to.
    #[error("the derivation {0} has more than {REFERENCES_MAX} inputs")]
    References(StorePath),
}

/// What a walk found.
#[derive(Debug, Default)]
pub(crate) struct Walked {
    /// To be inserted, dependencies first.
    pub(crate) derivations: Vec<Planned>,
    /// Further derivations whose files signers need to check those: below what upstream caches have. Dependencies first,
    /// to be uploaded before the others.
    pub(crate) only_files: Vec<StorePath>,
    /// Roots that cannot be built, and why. Nothing that only they need is in the above.
    pub(crate) refused: HashMap<StorePath, String>,
}

/// Walks for one evaluation.
pub(crate) struct Walker<'a> {
    db: &'a Db,
    eval: EvalId,
    token: &'a ClaimToken,
    store_root: Option<PathBuf>,
    upstream: &'a Upstream,
    /// Most of one walk; more is refused rather than held in memory.
    bounds: WalkBounds,
    /// How long to wait yet, over the whole evaluation, for files that are not there.
    patience_left: Duration,
    /// Inserted, or found to need nothing.
    settled: Memo,
    /// Uploaded although they are in no batch.
    files_known: Memo,
    /// What was read for the batch at hand.
    recent: Recent,
    /// Those that cannot be built, and why.
    unusable: HashMap<StorePath, String>,
}

/// How much a walk may hold.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WalkBounds {
    /// Derivations.
    pub(crate) derivations_max: usize,
    /// Memory.
    pub(crate) bytes_max: u64,
}

/// One look at a graph.
struct Look {
    held: Held,
    /// Derivations that are to be inserted, and those of which only the file counts.
    found: usize,
    files: usize,
    /// To be looked at.
    frontier: Vec<Id>,
    /// Below what upstream caches have.
    below_available: Vec<Id>,
    /// Something of it cannot be built.
    has_unusable: bool,
}

impl<'a> Walker<'a> {
    pub(crate) fn new(
        db: &'a Db,
        eval: EvalId,
        token: &'a ClaimToken,
        store_root: Option<PathBuf>,
        upstream: &'a Upstream,
        bounds: WalkBounds,
    ) -> Self {
        Self {
            db,
            eval,
            token,
            store_root,
            upstream,
            bounds,
            patience_left: DRV_PATIENCE,
            settled: Memo::default(),
            files_known: Memo::default(),
            recent: Recent::default(),
            unusable: HashMap::new(),
        }
    }

    /// What has to be inserted for these derivations. `asked`: what the attributes at hand ask for those they name. `again`: the
    /// database says that they are missing, whatever we remember.
    pub(crate) async fn walk(
        &mut self,
        roots: &[StorePath],
        asked: &[(StorePath, AskedLimits)],
        again: bool,
    ) -> Result<Walked, GraphError> {
        if again {
            for root in roots {
                self.settled.remove(root);
            }
        }
        for memo in [&mut self.settled, &mut self.files_known] {
            if memo.len() > SETTLED_MAX {
                memo.clear();
            }
        }
        let look = self.look(roots, asked).await?;
        let refused = if look.has_unusable { self.refused(roots, &look) } else { HashMap::new() };
        let look = if refused.is_empty() {
            look
        } else {
            // Once more without them: what the others need is not to be told apart otherwise.
            let good: Vec<StorePath> = roots.iter().filter(|root| !refused.contains_key(*root)).cloned().collect();
            self.look(&good, asked).await?
        };
        let (derivations, only_files) = look.held.into_plan();
        for path in &only_files {
            self.files_known.insert(path);
        }
        Ok(Walked { derivations, only_files, refused })
    }

    async fn look(&mut self, roots: &[StorePath], asked: &[(StorePath, AskedLimits)]) -> Result<Look, GraphError> {
        let mut look = Look {
            held: Held::new(self.bounds.bytes_max),
            found: 0,
            files: 0,
            frontier: Vec::new(),
            below_available: Vec::new(),
            has_unusable: false,
        };
        for root in roots.iter().filter(|root| !self.settled.contains(root)) {
            let id = look.held.name(root)?;
            if look.held.queue(id) {
                look.frontier.push(id);
            }
        }
        while !look.frontier.is_empty() {
            let rest = look.frontier.split_off(look.frontier.len().min(CLASSIFY_MAX));
            let unknown = std::mem::replace(&mut look.frontier, rest);
            let unknown: Vec<StorePath> = unknown.into_iter().map(|id| look.held.path(id).clone()).collect();
            let (mut read, mut references) = (Vec::new(), 0);
            let found = self.db.classify_derivations(self.eval, self.token, &unknown, asked).await?;
            let open = found.iter().filter(|(_, walk)| *walk != Walk::Stop).map(|(path, _)| path.clone()).collect();
            self.prefetch(open).await;
            for (path, walk) in found {
                if walk == Walk::Stop {
                    self.settled.insert(&path);
                    continue;
                }
                let Some(derivation) = self.described(&path).await else {
                    look.has_unusable = true;
                    look.held.charge_unusable()?;
                    continue;
                };
                references += names(&derivation);
                read.push(derivation);
                if references > READ_REFERENCES_MAX {
                    self.descend(&mut look, std::mem::take(&mut read)).await?;
                    references = 0;
                }
            }
            self.descend(&mut look, read).await?;
        }
        self.look_at_files(&mut look).await?;
        Ok(look)
    }

    /// Below these it goes on: for those that have to be built, with what they need.
    async fn descend(&mut self, look: &mut Look, read: Vec<GraphDerivation>) -> Result<(), GraphError> {
        let asker = Asker { db: self.db, eval: self.eval, token: self.token };
        let available = self.upstream.available(asker, read.iter()).await?;
        for (derivation, available) in read.into_iter().zip(available) {
            let inputs = self.inputs(look, &derivation)?;
            if available {
                look.below_available.extend(&inputs);
            } else {
                look.frontier.extend(inputs.iter().filter(|input| look.held.queue(**input)));
            }
            let role = if available { Role::Available } else { Role::Built };
            look.held.hold(&derivation.drv_path, role, inputs, names(&derivation))?;
            look.found += 1;
            if look.found > self.bounds.derivations_max {
                return Err(GraphError::TooMany(self.bounds.derivations_max));
            }
        }
        Ok(())
    }

    /// The places of what a derivation needs, without what needs nothing any more.
    fn inputs(&self, look: &mut Look, derivation: &GraphDerivation) -> Result<Vec<Id>, GraphError> {
        let open = derivation.inputs.iter().map(|(input, _)| input).filter(|input| !self.settled.contains(input));
        open.map(|input| look.held.name(input)).collect()
    }

    /// The roots that lead to something that cannot be built.
    fn refused(&self, roots: &[StorePath], look: &Look) -> HashMap<StorePath, String> {
        let wrong = look.held.wrong_below(|path| self.unusable.contains_key(path));
        let reason = |root: &StorePath| {
            if let Some(reason) = self.unusable.get(root) {
                return Some(reason.clone());
            }
            let below = self.unusable.get(look.held.path(*wrong.get(&look.held.id(root)?)?))?;
            Some(format!("something that it needs cannot be built: {below}"))
        };
        roots.iter().filter_map(|root| Some((root.clone(), reason(root)?))).collect()
    }

    /// What the files of these say, read again unless that was just done.
    pub(crate) async fn read_planned(&mut self, planned: &[Planned]) -> Result<Vec<GraphDerivation>, GraphError> {
        self.prefetch(planned.iter().map(|planned| planned.drv_path.clone()).collect()).await;
        let mut derivations = Vec::with_capacity(planned.len());
        for Planned { drv_path, available, path_length, .. } in planned {
            let described = self.read(drv_path).await?;
            derivations.push(GraphDerivation { available: *available, path_length: *path_length, ..described });
        }
        Ok(derivations)
    }

    /// These are in the database now.
    pub(crate) fn settle(&mut self, derivations: &[GraphDerivation]) {
        for derivation in derivations {
            self.settled.insert(&derivation.drv_path);
        }
        self.recent.clear();
    }

    async fn look_at_files(&mut self, look: &mut Look) -> Result<(), GraphError> {
        while let Some(id) = look.below_available.pop() {
            let path = look.held.path(id).clone();
            let is_known = !matches!(look.held.role(id), Role::Named | Role::Queued);
            if is_known || self.settled.contains(&path) || self.files_known.contains(&path) {
                continue;
            }
            if look.files >= self.bounds.derivations_max {
                return Err(GraphError::TooMany(self.bounds.derivations_max));
            }
            let Some(derivation) = self.described(&path).await else {
                look.has_unusable = true;
                look.held.charge_unusable()?;
                continue;
            };
            // The hash of a fixed output does not depend on inputs.
            let inputs = if derivation.outputs.iter().all(|output| output.fixed_hash.is_none()) {
                self.inputs(look, &derivation)?
            } else {
                Vec::new()
            };
            look.below_available.extend(&inputs);
            look.held.hold(&path, Role::OnlyFile, inputs, 0)?;
            look.files += 1;
        }
        Ok(())
    }

    /// What a derivation is; `None` when it cannot be used, with the reason remembered.
    async fn described(&mut self, path: &StorePath) -> Option<GraphDerivation> {
        if self.unusable.contains_key(path) {
            return None;
        }
        match self.read(path).await {
            Ok(derivation) => Some(derivation),
            Err(reason) => {
                self.unusable.insert(path.clone(), harmonia_core::chain(&reason));
                None
            }
        }
    }

    async fn read(&mut self, path: &StorePath) -> Result<GraphDerivation, Unusable> {
        if let Some(described) = self.recent.described(path) {
            return Ok(described.clone());
        }
        let bytes = self.read_file(path).await?;
        let derivation = Derivation::from_file(path, &bytes)
            .map_err(|cause| Unusable::Parse { path: path.clone(), cause })
            .and_then(|derivation| describe(path.clone(), &derivation))?;
        self.recent.describe(&derivation);
        Ok(derivation)
    }

    /// Reads the files of these at once: one after the other each would cost several turns of threads. Whatever is wrong
    /// with one shows when it is used.
    pub(crate) async fn prefetch(&mut self, mut wanted: Vec<StorePath>) {
        wanted.retain(|path| !self.recent.has(path));
        if wanted.len() < 2 {
            return;
        }
        let root = self.store_root.clone();
        let read = move || recent::read_files(root.as_deref(), wanted);
        for (path, bytes) in tokio::task::spawn_blocking(read).await.unwrap_or_default() {
            self.recent.keep(path, bytes);
        }
    }

    /// Why an attribute's derivation cannot be used, whatever the database knows of it: it must be in the node's store.
    pub(crate) async fn check(&mut self, path: &StorePath) -> Option<String> {
        if self.settled.contains(path) || self.described(path).await.is_some() {
            return None;
        }
        self.unusable.get(path).cloned()
    }

    /// The bytes of a `.drv` file.
    pub(crate) async fn read_file(&mut self, path: &StorePath) -> Result<Arc<[u8]>, Unusable> {
        if let Some(bytes) = self.recent.bytes(path) {
            return Ok(bytes);
        }
        let file = physical_path(self.store_root.as_deref(), path);
        let length = loop {
            match tokio::fs::symlink_metadata(&file).await {
                Ok(metadata) if metadata.is_file() => break metadata.len(),
                Ok(_) => {
                    let cause = std::io::Error::other("it is not a file");
                    return Err(Unusable::Read { path: path.clone(), cause });
                }
                Err(error) if error.kind() == std::io::ErrorKind::NotFound && !self.patience_left.is_zero() => {
                    self.patience_left = self.patience_left.saturating_sub(DRV_PAUSE);
                    tokio::time::sleep(DRV_PAUSE).await;
                }
                Err(cause) => return Err(Unusable::Read { path: path.clone(), cause }),
            }
        };
        if length > DRV_BYTES_MAX as u64 {
            return Err(Unusable::TooLarge(path.clone()));
        }
        let bytes = tokio::fs::read(&file).await.map_err(|cause| Unusable::Read { path: path.clone(), cause })?;
        let bytes: Arc<[u8]> = bytes.into();
        self.recent.keep(path.clone(), Arc::clone(&bytes));
        Ok(bytes)
    }
}

fn describe(path: StorePath, derivation: &Derivation) -> Result<GraphDerivation, Unusable> {
    let features =
        derivation.required_system_features().map_err(|cause| Unusable::Options { path: path.clone(), cause })?;
    check_words(&path, &derivation.platform, &features)?;
    if derivation.input_drvs.len() + derivation.input_srcs.len() > REFERENCES_MAX {
        return Err(Unusable::References(path));
    }
    let outputs = derivation.outputs.iter().map(|(name, output)| GraphOutput {
        name: name.clone(),
        path: output.path().cloned(),
        fixed_hash: output.fixed_address().map(ToString::to_string),
    });
    Ok(GraphDerivation {
        name: derivation.name.clone(),
        system: derivation.platform.clone(),
        required_features: features.into_iter().collect(),
        outputs: outputs.collect(),
        inputs: derivation
            .input_drvs
            .iter()
            .map(|(input, outputs)| (input.clone(), outputs.iter().cloned().collect()))
            .collect(),
        sources: derivation.input_srcs.iter().cloned().collect(),
        available: false,
        path_length: 1,
        drv_path: path,
    })
}

/// Systems and features are compared with those of nodes, and are keys in the database.
fn check_words(path: &StorePath, system: &str, features: &BTreeSet<String>) -> Result<(), Unusable> {
    let is_word = |feature: &String| {
        !feature.is_empty()
            && feature.len() <= WORD_BYTES_MAX
            && !feature.contains(|character: char| character.is_whitespace() || character.is_control())
    };
    if let Some(feature) = features.iter().find(|feature| !is_word(feature)) {
        let feature = feature.chars().take(WORD_BYTES_MAX).collect();
        return Err(Unusable::Feature { path: path.clone(), feature });
    }
    if features.len() > FEATURES_MAX || features.iter().map(String::len).sum::<usize>() > FEATURES_BYTES_MAX {
        return Err(Unusable::Features(path.clone()));
    }
    if system.len() > WORD_BYTES_MAX {
        return Err(Unusable::System(path.clone()));
    }
    Ok(())
}

/// Paths that a derivation names: what it costs to hold what its file says.
fn names(derivation: &GraphDerivation) -> usize {
    derivation.inputs.len() + derivation.sources.len() + derivation.outputs.len()
}
