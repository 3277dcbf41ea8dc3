//! The derivations below attributes: read natively, walked as far as the database says, in an order in which
//! dependencies come first. Start at [`Walker::walk`]. What is wrong with a derivation is the error of every attribute that
//! leads to it, and of nothing else.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::PathBuf;
use std::time::Duration;

use harmonia_core::limits::{DRV_BYTES_MAX, REFERENCES_MAX};
use harmonia_core::{ClaimToken, EvalId};
use harmonia_db::{AskedLimits, Db, DbError, GraphDerivation, GraphOutput, Walk};
use harmonia_nix::{Derivation, StorePath};

use super::upstream::{Asker, Upstream};
use crate::pack::physical_path;

/// Derivations asked of the database at once.
const CLASSIFY_MAX: usize = 2_000;
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
    /// The database.
    #[error("could not look up derivations")]
    Database(#[from] DbError),
}

impl GraphError {
    /// Whether another graph would do.
    pub(super) fn is_about_content(&self) -> bool {
        match self {
            Self::Unusable(_) | Self::TooMany(_) => true,
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
    pub(crate) derivations: Vec<GraphDerivation>,
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
    /// Derivations of one walk; more are refused rather than held in memory.
    walk_max: usize,
    /// How long to wait yet, over the whole evaluation, for files that are not there.
    patience_left: Duration,
    /// Inserted, or found to need nothing.
    settled: HashSet<StorePath>,
    /// Uploaded although they are in no batch.
    files_known: HashSet<StorePath>,
    /// Those that cannot be built, and why.
    unusable: HashMap<StorePath, String>,
}

/// One look at a graph.
#[derive(Default)]
struct Look {
    found: HashMap<StorePath, GraphDerivation>,
    /// Below what upstream caches have.
    files: HashMap<StorePath, GraphDerivation>,
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
        walk_max: usize,
    ) -> Self {
        Self {
            db,
            eval,
            token,
            store_root,
            upstream,
            walk_max,
            patience_left: DRV_PATIENCE,
            settled: HashSet::new(),
            files_known: HashSet::new(),
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
        let only_files = in_order(look.files).into_iter().map(|derivation| derivation.drv_path).collect::<Vec<_>>();
        self.files_known.extend(only_files.iter().cloned());
        Ok(Walked { derivations: in_order(look.found), only_files, refused })
    }

    async fn look(&mut self, roots: &[StorePath], asked: &[(StorePath, AskedLimits)]) -> Result<Look, GraphError> {
        let mut look = Look::default();
        let mut below_available: Vec<StorePath> = Vec::new();
        let mut seen: HashSet<StorePath> = HashSet::new();
        let mut frontier: Vec<StorePath> = Vec::new();
        for root in roots {
            if !self.settled.contains(root) && seen.insert(root.clone()) {
                frontier.push(root.clone());
            }
        }
        while !frontier.is_empty() {
            let rest = frontier.split_off(frontier.len().min(CLASSIFY_MAX));
            let unknown = std::mem::replace(&mut frontier, rest);
            let mut descend = Vec::new();
            for (path, walk) in self.db.classify_derivations(self.eval, self.token, &unknown, asked).await? {
                match walk {
                    Walk::Stop => drop(self.settled.insert(path)),
                    Walk::Descend => match self.described(&path).await {
                        Some(derivation) => descend.push((derivation, path)),
                        None => look.has_unusable = true,
                    },
                }
            }
            let asker = Asker { db: self.db, eval: self.eval, token: self.token };
            let available = self.upstream.available(asker, descend.iter().map(|(derivation, _)| derivation)).await?;
            for ((mut derivation, path), available) in descend.into_iter().zip(available) {
                derivation.available = available;
                let inputs = derivation.inputs.iter().map(|(input, _)| input.clone());
                if available {
                    below_available.extend(inputs);
                } else {
                    frontier.extend(inputs.filter(|input| !self.settled.contains(input) && seen.insert(input.clone())));
                }
                look.found.insert(path, derivation);
                if look.found.len() > self.walk_max {
                    return Err(GraphError::TooMany(self.walk_max));
                }
            }
        }
        self.look_at_files(below_available, &mut look).await?;
        Ok(look)
    }

    /// The roots that lead to something that cannot be built.
    fn refused(&self, roots: &[StorePath], look: &Look) -> HashMap<StorePath, String> {
        let all = look.found.iter().chain(&look.files).map(|(path, derivation)| (path.clone(), derivation.clone()));
        // What is wrong with each, dependencies first.
        let mut wrong: HashMap<StorePath, &StorePath> = HashMap::new();
        for derivation in in_order(all.collect()) {
            let reason = derivation.inputs.iter().find_map(|(input, _)| {
                self.unusable.get_key_value(input).map(|(path, _)| path).or_else(|| wrong.get(input).copied())
            });
            if let Some(reason) = reason {
                wrong.insert(derivation.drv_path, reason);
            }
        }
        let reason = |root: &StorePath| {
            if let Some(reason) = self.unusable.get(root) {
                return Some(reason.clone());
            }
            let below = self.unusable.get(*wrong.get(root)?)?;
            Some(format!("something that it needs cannot be built: {below}"))
        };
        roots.iter().filter_map(|root| Some((root.clone(), reason(root)?))).collect()
    }

    /// These are in the database now.
    pub(crate) fn settle(&mut self, derivations: &[GraphDerivation]) {
        self.settled.extend(derivations.iter().map(|derivation| derivation.drv_path.clone()));
    }

    async fn look_at_files(&mut self, roots: Vec<StorePath>, look: &mut Look) -> Result<(), GraphError> {
        let mut todo = roots;
        while let Some(path) = todo.pop() {
            let is_known = look.found.contains_key(&path) || look.files.contains_key(&path);
            if is_known || self.settled.contains(&path) || self.files_known.contains(&path) {
                continue;
            }
            if look.files.len() >= self.walk_max {
                return Err(GraphError::TooMany(self.walk_max));
            }
            let Some(derivation) = self.described(&path).await else {
                look.has_unusable = true;
                continue;
            };
            // The hash of a fixed output does not depend on inputs.
            if derivation.outputs.iter().all(|output| output.fixed_hash.is_none()) {
                todo.extend(derivation.inputs.iter().map(|(input, _)| input.clone()));
            }
            look.files.insert(path, derivation);
        }
        Ok(())
    }

    /// What a derivation is; `None` when it cannot be used, with the reason remembered.
    async fn described(&mut self, path: &StorePath) -> Option<GraphDerivation> {
        if self.unusable.contains_key(path) {
            return None;
        }
        match self.read(path).await.and_then(|derivation| describe(path.clone(), &derivation)) {
            Ok(derivation) => Some(derivation),
            Err(reason) => {
                self.unusable.insert(path.clone(), harmonia_core::chain(&reason));
                None
            }
        }
    }

    async fn read(&mut self, path: &StorePath) -> Result<Derivation, Unusable> {
        let bytes = self.read_file(path).await?;
        Derivation::from_file(path, &bytes).map_err(|cause| Unusable::Parse { path: path.clone(), cause })
    }

    /// Why an attribute's derivation cannot be used, whatever the database knows of it: it must be in the node's store.
    pub(crate) async fn check(&mut self, path: &StorePath) -> Option<String> {
        if self.settled.contains(path) || self.described(path).await.is_some() {
            return None;
        }
        self.unusable.get(path).cloned()
    }

    /// The bytes of a `.drv` file.
    pub(crate) async fn read_file(&mut self, path: &StorePath) -> Result<Vec<u8>, Unusable> {
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
        tokio::fs::read(&file).await.map_err(|cause| Unusable::Read { path: path.clone(), cause })
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

/// Dependencies first, and otherwise by path, so that equal graphs give equal batches.
fn in_order(found: HashMap<StorePath, GraphDerivation>) -> Vec<GraphDerivation> {
    let mut left: BTreeMap<StorePath, Option<GraphDerivation>> =
        found.into_iter().map(|(path, derivation)| (path, Some(derivation))).collect();
    let roots: Vec<StorePath> = left.keys().cloned().collect();
    let mut order = Vec::with_capacity(left.len());
    // Not recursive: chains of derivations are longer than stacks. An entry seen for the second time has its inputs
    // behind it. (Store paths are hashes of what they contain, so there are no cycles.)
    let mut stack: Vec<(StorePath, bool)> = Vec::new();
    let mut opened: HashSet<StorePath> = HashSet::new();
    for root in roots {
        stack.push((root, false));
        while let Some((path, inputs_done)) = stack.pop() {
            if inputs_done {
                order.extend(left.get_mut(&path).and_then(Option::take));
            } else if opened.insert(path.clone())
                && let Some(Some(derivation)) = left.get(&path)
            {
                let inputs: Vec<StorePath> = derivation.inputs.iter().map(|(input, _)| input.clone()).collect();
                stack.push((path, true));
                stack.extend(inputs.into_iter().filter(|input| left.contains_key(input)).map(|input| (input, false)));
            }
        }
    }
    note_path_lengths(&mut order);
    order
}

/// How long the longest chain above each is, itself included. Dependencies come first in `order`.
fn note_path_lengths(order: &mut [GraphDerivation]) {
    let places: HashMap<StorePath, usize> =
        order.iter().enumerate().map(|(place, derivation)| (derivation.drv_path.clone(), place)).collect();
    for place in (0..order.len()).rev() {
        // What is available is not built, and nothing waits for it nor, through it, for what is below.
        let (below, rest) = order.split_at_mut(place);
        let derivation = &rest[0];
        if derivation.available {
            continue;
        }
        for (input, _) in &derivation.inputs {
            if let Some(input) = places.get(input).and_then(|input| below.get_mut(*input)) {
                input.path_length = input.path_length.max(derivation.path_length.saturating_add(1));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(name: usize) -> StorePath {
        StorePath::from_base_name(&format!("{name:032}-x.drv")).expect("a store path")
    }

    fn node(name: usize, inputs: &[usize]) -> (StorePath, GraphDerivation) {
        let derivation = GraphDerivation {
            drv_path: path(name),
            name: "x".to_owned(),
            system: "x86_64-linux".to_owned(),
            required_features: Vec::new(),
            outputs: Vec::new(),
            inputs: inputs.iter().map(|input| (path(*input), vec!["out".to_owned()])).collect(),
            sources: Vec::new(),
            available: false,
            path_length: 1,
        };
        (path(name), derivation)
    }

    #[test]
    fn dependencies_come_first_in_graphs_of_any_depth() {
        let depth = 100_000;
        let chain =
            (0..depth).map(|name| node(name, if name + 1 < depth { vec![name + 1] } else { vec![] }.as_slice()));
        let order = in_order(chain.collect());
        assert_eq!(order.len(), depth);
        assert!(order.windows(2).all(|pair| pair[0].drv_path > pair[1].drv_path));

        let diamond = [node(1, &[2, 3]), node(2, &[4, 9]), node(3, &[4]), node(4, &[])];
        let order: Vec<StorePath> =
            in_order(diamond.into_iter().collect()).into_iter().map(|node| node.drv_path).collect();
        let place = |name| order.iter().position(|found| *found == path(name)).expect("there");
        assert_eq!(order.len(), 4);
        assert!(place(4) < place(2) && place(4) < place(3) && place(2) < place(1) && place(3) < place(1));
    }

    #[test]
    fn the_longest_chain_above_counts() {
        let lengths = |nodes: Vec<(StorePath, GraphDerivation)>| -> HashMap<StorePath, u32> {
            in_order(nodes.into_iter().collect()).into_iter().map(|node| (node.drv_path, node.path_length)).collect()
        };
        // 1 → 2 → 4 → 5, 1 → 5, 3 → 4; 9 is outside.
        let graph = vec![node(1, &[2, 5, 9]), node(2, &[4]), node(3, &[4]), node(4, &[5]), node(5, &[])];
        let expected: HashMap<_, _> = [(1, 1), (2, 2), (3, 1), (4, 3), (5, 4)].map(|(n, l)| (path(n), l)).into();
        assert_eq!(lengths(graph.clone()), expected);
        // Nothing waits below what an upstream cache has.
        let mut cut = graph;
        cut[1].1.available = true;
        assert_eq!(lengths(cut)[&path(4)], 2);
    }
}
