//! The derivations below attributes: read natively, walked as far as the database says, in an order in which
//! dependencies come first. Start at [`Walker::walk`].

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::time::Duration;

use harmonia_core::limits::DRV_BYTES_MAX;
use harmonia_core::{ClaimToken, EvalId};
use harmonia_db::{Db, DbError, GraphDerivation, GraphOutput, Walk};
use harmonia_nix::{Derivation, StorePath};

use super::upstream::{Asker, Upstream};
use crate::pack::physical_path;

/// Derivations asked of the database at once.
const CLASSIFY_MAX: usize = 2_000;
/// Derivations of one walk; more are refused rather than held in memory.
const WALK_MAX: usize = 1_000_000;
/// Derivations remembered as settled, over all walks of an evaluation. Beyond that they are simply asked for again.
const SETTLED_MAX: usize = 400_000;
/// Newer evaluators may say a `.drv` path a moment before they have written the file.
const DRV_PATIENCE: Duration = Duration::from_secs(2);

/// Why a derivation cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GraphError {
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
    #[error("the derivation {path} is malformed")]
    Parse {
        path: StorePath,
        #[source]
        cause: harmonia_nix::derivation::DerivationFileError,
    },
    /// Its requirements cannot be read.
    #[error("the requirements of the derivation {path} cannot be read")]
    Options {
        path: StorePath,
        #[source]
        cause: harmonia_nix::derivation::DerivationOptionsError,
    },
    /// More than a walk holds.
    #[error("an attribute depends on more than {WALK_MAX} derivations that are not built yet")]
    TooMany,
    /// The database.
    #[error("could not look up derivations")]
    Database(#[from] DbError),
}

/// What a walk found.
#[derive(Debug, Default)]
pub(crate) struct Walked {
    /// To be inserted, dependencies first.
    pub(crate) derivations: Vec<GraphDerivation>,
    /// Further derivations whose files signers need to check those: below what upstream caches have. Dependencies first,
    /// to be uploaded before the others.
    pub(crate) only_files: Vec<StorePath>,
}

/// Walks for one evaluation.
pub(crate) struct Walker<'a> {
    db: &'a Db,
    eval: EvalId,
    token: &'a ClaimToken,
    store_root: Option<PathBuf>,
    upstream: &'a Upstream,
    /// Inserted, or found to need nothing.
    settled: HashSet<StorePath>,
    /// Uploaded although they are in no batch.
    files_known: HashSet<StorePath>,
}

impl<'a> Walker<'a> {
    pub(crate) fn new(
        db: &'a Db,
        eval: EvalId,
        token: &'a ClaimToken,
        store_root: Option<PathBuf>,
        upstream: &'a Upstream,
    ) -> Self {
        Self { db, eval, token, store_root, upstream, settled: HashSet::new(), files_known: HashSet::new() }
    }

    /// What has to be inserted for these derivations. `again`: the database says that they are missing, whatever we
    /// remember.
    pub(crate) async fn walk(&mut self, roots: &[StorePath], again: bool) -> Result<Walked, GraphError> {
        if again {
            for root in roots {
                self.settled.remove(root);
            }
        }
        if self.settled.len() > SETTLED_MAX {
            self.settled.clear();
        }
        let mut found: HashMap<StorePath, GraphDerivation> = HashMap::new();
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
            let asked = std::mem::replace(&mut frontier, rest);
            let mut descend = Vec::new();
            for (path, walk) in self.db.classify_derivations(self.eval, self.token, &asked).await? {
                match walk {
                    Walk::Stop => drop(self.settled.insert(path)),
                    Walk::Descend => {
                        let derivation = self.read(&path).await?;
                        descend.push((describe(path.clone(), &derivation)?, path));
                    }
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
                found.insert(path, derivation);
                if found.len() > WALK_MAX {
                    return Err(GraphError::TooMany);
                }
            }
        }
        let only_files = self.files_below(below_available, &found).await?;
        Ok(Walked { derivations: in_order(found), only_files })
    }

    /// These are in the database now.
    pub(crate) fn settle(&mut self, derivations: &[GraphDerivation]) {
        self.settled.extend(derivations.iter().map(|derivation| derivation.drv_path.clone()));
    }

    async fn files_below(
        &mut self,
        roots: Vec<StorePath>,
        found: &HashMap<StorePath, GraphDerivation>,
    ) -> Result<Vec<StorePath>, GraphError> {
        let mut graph: HashMap<StorePath, GraphDerivation> = HashMap::new();
        let mut todo = roots;
        while let Some(path) = todo.pop() {
            if found.contains_key(&path) || self.settled.contains(&path) || !self.files_known.insert(path.clone()) {
                continue;
            }
            if self.files_known.len() > WALK_MAX {
                return Err(GraphError::TooMany);
            }
            let derivation = describe(path.clone(), &self.read(&path).await?)?;
            // The hash of a fixed output does not depend on inputs.
            if derivation.outputs.iter().all(|output| output.fixed_hash.is_none()) {
                todo.extend(derivation.inputs.iter().map(|(input, _)| input.clone()));
            }
            graph.insert(path, derivation);
        }
        Ok(in_order(graph).into_iter().map(|derivation| derivation.drv_path).collect())
    }

    async fn read(&self, path: &StorePath) -> Result<Derivation, GraphError> {
        let bytes = self.read_file(path).await?;
        Derivation::from_file(path, &bytes).map_err(|cause| GraphError::Parse { path: path.clone(), cause })
    }

    /// Whether that is a derivation in the store at all.
    pub(crate) async fn check(&self, path: &StorePath) -> Result<(), GraphError> {
        if self.settled.contains(path) {
            return Ok(());
        }
        describe(path.clone(), &self.read(path).await?).map(drop)
    }

    /// The bytes of a `.drv` file.
    pub(crate) async fn read_file(&self, path: &StorePath) -> Result<Vec<u8>, GraphError> {
        let file = physical_path(self.store_root.as_deref(), path);
        let deadline = tokio::time::Instant::now() + DRV_PATIENCE;
        let length = loop {
            match tokio::fs::symlink_metadata(&file).await {
                Ok(metadata) if metadata.is_file() => break metadata.len(),
                Ok(_) => {
                    let cause = std::io::Error::other("it is not a file");
                    return Err(GraphError::Read { path: path.clone(), cause });
                }
                Err(error)
                    if error.kind() == std::io::ErrorKind::NotFound && tokio::time::Instant::now() < deadline =>
                {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Err(cause) => return Err(GraphError::Read { path: path.clone(), cause }),
            }
        };
        if length > DRV_BYTES_MAX as u64 {
            return Err(GraphError::TooLarge(path.clone()));
        }
        tokio::fs::read(&file).await.map_err(|cause| GraphError::Read { path: path.clone(), cause })
    }
}

fn describe(path: StorePath, derivation: &Derivation) -> Result<GraphDerivation, GraphError> {
    let features =
        derivation.required_system_features().map_err(|cause| GraphError::Options { path: path.clone(), cause })?;
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
        modulo: None,
        timeout_s: None,
        max_silent_s: None,
        path_length: 1,
        drv_path: path,
    })
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
            modulo: None,
            timeout_s: None,
            max_silent_s: None,
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
