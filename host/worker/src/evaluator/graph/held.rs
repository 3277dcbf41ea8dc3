//! What a walk holds of each derivation: its path and which others it needs, not what its file says. That is read again when
//! its turn comes to be inserted, so that graphs of a million derivations fit into memory: some 250 bytes each with a dozen
//! inputs, of which what the file says would take more than 3,000. Start at [`Held`].

use std::collections::HashMap;

use harmonia_nix::StorePath;

use super::GraphError;

/// What a path costs beside its text, and an input; with what is put in order beside them, and rounded up (see the test).
const NODE_BYTES: u64 = 240;
const INPUT_BYTES: u64 = 12;
/// What is remembered of a derivation that cannot be built: why.
const UNUSABLE_BYTES: u64 = 600;

/// A place in [`Held`].
pub(super) type Id = u32;

/// What a derivation is to a walk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// Another one needs it: that is all so far.
    Named,
    /// It is to be looked at.
    Queued,
    /// It needs a job.
    Built,
    /// Upstream caches have it.
    Available,
    /// Signers need its file.
    OnlyFile,
}

/// A derivation that is to be inserted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Planned {
    pub(crate) drv_path: StorePath,
    /// Upstream caches have it.
    pub(crate) available: bool,
    /// As in [`harmonia_db::GraphDerivation`].
    pub(crate) path_length: u32,
    /// Paths that it names: what it costs to hold what its file says.
    pub(crate) references: u32,
}

#[derive(Debug)]
struct Node {
    path: StorePath,
    /// Not those that the walk leaves alone.
    inputs: Box<[Id]>,
    references: u32,
    role: Role,
}

/// The graph of one walk.
#[derive(Debug)]
pub(super) struct Held {
    ids: HashMap<StorePath, Id>,
    nodes: Vec<Node>,
    bytes: u64,
    bytes_max: u64,
}

impl Held {
    pub(super) fn new(bytes_max: u64) -> Self {
        Self { ids: HashMap::new(), nodes: Vec::new(), bytes: 0, bytes_max }
    }

    fn charge(&mut self, bytes: u64) -> Result<(), GraphError> {
        self.bytes += bytes;
        if self.bytes > self.bytes_max { Err(GraphError::TooLarge(self.bytes_max)) } else { Ok(()) }
    }

    /// Something that cannot be built was met.
    pub(super) fn charge_unusable(&mut self) -> Result<(), GraphError> {
        self.charge(UNUSABLE_BYTES)
    }

    /// The place of a path.
    pub(super) fn name(&mut self, path: &StorePath) -> Result<Id, GraphError> {
        if let Some(id) = self.ids.get(path) {
            return Ok(*id);
        }
        self.charge(NODE_BYTES + path.as_str().len() as u64)?;
        let id = Id::try_from(self.nodes.len()).map_err(|_| GraphError::TooLarge(self.bytes_max))?;
        self.ids.insert(path.clone(), id);
        self.nodes.push(Node { path: path.clone(), inputs: Box::default(), references: 0, role: Role::Named });
        Ok(id)
    }

    /// Whether it is to be looked at now: nobody did yet.
    pub(super) fn queue(&mut self, id: Id) -> bool {
        let node = &mut self.nodes[id as usize];
        let is_new = node.role == Role::Named;
        if is_new {
            node.role = Role::Queued;
        }
        is_new
    }

    /// What was found out about a derivation.
    pub(super) fn hold(
        &mut self,
        path: &StorePath,
        role: Role,
        inputs: Vec<Id>,
        references: usize,
    ) -> Result<(), GraphError> {
        let id = self.name(path)?;
        self.charge(INPUT_BYTES * inputs.len() as u64)?;
        let node = &mut self.nodes[id as usize];
        node.inputs = inputs.into();
        node.references = u32::try_from(references).unwrap_or(u32::MAX);
        node.role = role;
        Ok(())
    }

    pub(super) fn id(&self, path: &StorePath) -> Option<Id> {
        self.ids.get(path).copied()
    }

    pub(super) fn path(&self, id: Id) -> &StorePath {
        &self.nodes[id as usize].path
    }

    pub(super) fn role(&self, id: Id) -> Role {
        self.nodes[id as usize].role
    }

    /// What the walk holds, dependencies first, and otherwise by path, so that equal graphs give equal batches.
    fn order(&self) -> Vec<Id> {
        let is_held = |id: &Id| !matches!(self.role(*id), Role::Named | Role::Queued);
        let mut roots: Vec<Id> = (0..).take(self.nodes.len()).filter(is_held).collect();
        roots.sort_unstable_by_key(|id| self.path(*id));
        let mut order = Vec::with_capacity(roots.len());
        // Not recursive: chains of derivations are longer than stacks. An entry seen for the second time has its inputs
        // behind it. (Store paths are hashes of what they contain, so there are no cycles.)
        let mut stack: Vec<(Id, bool)> = Vec::new();
        let mut opened = vec![false; self.nodes.len()];
        for root in roots {
            stack.push((root, false));
            while let Some((id, inputs_done)) = stack.pop() {
                if inputs_done {
                    order.push(id);
                } else if !std::mem::replace(&mut opened[id as usize], true) && is_held(&id) {
                    stack.push((id, true));
                    let inputs = self.nodes[id as usize].inputs.iter();
                    stack.extend(inputs.filter(|input| !opened[**input as usize]).map(|input| (*input, false)));
                }
            }
        }
        order
    }

    /// For each place whether `is_wrong`, and if it is not, one that is and that it needs.
    pub(super) fn wrong_below(&self, is_wrong: impl Fn(&StorePath) -> bool) -> HashMap<Id, Id> {
        let mut wrong: HashMap<Id, Id> = HashMap::new();
        for id in self.order() {
            let below = |input: &Id| {
                if is_wrong(self.path(*input)) { Some(*input) } else { wrong.get(input).copied() }
            };
            if let Some(reason) = self.nodes[id as usize].inputs.iter().find_map(below) {
                wrong.insert(id, reason);
            }
        }
        wrong
    }

    /// What is to be inserted, and the files that signers need besides. Dependencies come first.
    pub(super) fn into_plan(self) -> (Vec<Planned>, Vec<StorePath>) {
        let order = self.order();
        let lengths = self.path_lengths(&order);
        let (mut derivations, mut only_files) = (Vec::new(), Vec::new());
        for id in order {
            let node = &self.nodes[id as usize];
            if node.role == Role::OnlyFile {
                only_files.push(node.path.clone());
            } else {
                derivations.push(Planned {
                    drv_path: node.path.clone(),
                    available: node.role == Role::Available,
                    path_length: lengths[id as usize],
                    references: node.references,
                });
            }
        }
        (derivations, only_files)
    }

    /// How long the longest chain above each is, itself included.
    fn path_lengths(&self, order: &[Id]) -> Vec<u32> {
        let mut lengths = vec![1; self.nodes.len()];
        for id in order.iter().rev() {
            let node = &self.nodes[*id as usize];
            // What is available is not built, and nothing waits for it nor, through it, for what is below.
            if node.role == Role::Built {
                let length = lengths[*id as usize];
                for input in &node.inputs {
                    let below: &mut u32 = &mut lengths[*input as usize];
                    *below = (*below).max(length.saturating_add(1));
                }
            }
        }
        lengths
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(name: usize) -> StorePath {
        StorePath::from_base_name(&format!("{name:032}-x.drv")).expect("a store path")
    }

    fn held(nodes: impl IntoIterator<Item = (usize, Vec<usize>)>, available: &[usize]) -> Held {
        let mut held = Held::new(u64::MAX);
        for (name, inputs) in nodes {
            let inputs = inputs.iter().map(|input| held.name(&path(*input)).expect("room")).collect();
            let role = if available.contains(&name) { Role::Available } else { Role::Built };
            held.hold(&path(name), role, inputs, 0).expect("room");
        }
        held
    }

    #[test]
    fn dependencies_come_first_in_graphs_of_any_depth() {
        let depth = 100_000;
        let chain = (0..depth).map(|name| (name, if name + 1 < depth { vec![name + 1] } else { vec![] }));
        let (order, _) = held(chain, &[]).into_plan();
        assert_eq!(order.len(), depth);
        assert!(order.windows(2).all(|pair| pair[0].drv_path > pair[1].drv_path));

        let diamond = [(1, vec![2, 3]), (2, vec![4, 9]), (3, vec![4]), (4, vec![])];
        let (order, _) = held(diamond, &[]).into_plan();
        let place = |name| order.iter().position(|found| found.drv_path == path(name)).expect("there");
        assert_eq!(order.len(), 4, "9 is outside");
        assert!(place(4) < place(2) && place(4) < place(3) && place(2) < place(1) && place(3) < place(1));
    }

    #[test]
    fn the_longest_chain_above_counts() {
        let lengths = |held: Held| -> HashMap<StorePath, u32> {
            held.into_plan().0.into_iter().map(|node| (node.drv_path, node.path_length)).collect()
        };
        // 1 → 2 → 4 → 5, 1 → 5, 3 → 4; 9 is outside.
        let graph = [(1, vec![2, 5, 9]), (2, vec![4]), (3, vec![4]), (4, vec![5]), (5, vec![])];
        let expected: HashMap<_, _> = [(1, 1), (2, 2), (3, 1), (4, 3), (5, 4)].map(|(n, l)| (path(n), l)).into();
        assert_eq!(lengths(held(graph.clone(), &[])), expected);
        // Nothing waits below what an upstream cache has.
        assert_eq!(lengths(held(graph, &[2]))[&path(4)], 2);
    }

    #[test]
    fn what_is_wrong_is_wrong_for_all_above_and_for_nobody_else() {
        let held = held([(1, vec![2]), (2, vec![3, 4]), (5, vec![3]), (3, vec![])], &[]);
        let wrong = held.wrong_below(|found| *found == path(4));
        let reason = |name| wrong.get(&held.id(&path(name)).expect("held")).map(|id| held.path(*id).clone());
        assert_eq!([1, 2, 3, 5].map(reason), [Some(path(4)), Some(path(4)), None, None]);
    }

    fn resident_bytes() -> u64 {
        let pages = std::fs::read_to_string("/proc/self/statm").expect("statm");
        let pages: u64 = pages.split(' ').nth(1).expect("resident").parse().expect("a number");
        pages * 4096
    }

    /// The bound is one of memory: what is counted must not be less than what is taken.
    #[test]
    fn what_a_walk_holds_is_what_is_counted() {
        let (nodes, inputs) = (50_000, 12);
        let before = resident_bytes();
        let mut held = Held::new(u64::MAX);
        for name in 0..nodes {
            // As they are read: every file has texts of its own.
            let inputs: Vec<Id> =
                (1..=inputs).map(|step| held.name(&path((name + step * 31) % nodes)).expect("room")).collect();
            held.hold(&path(name), Role::Built, inputs, 0).expect("room");
        }
        let counted = held.bytes;
        let plan = held.into_plan();
        let taken = resident_bytes() - before;
        assert_eq!(plan.0.len(), nodes);
        assert!(taken <= counted, "{taken} bytes are taken, {counted} are counted");
        assert!(counted <= taken * 3, "{taken} bytes are taken, {counted} are counted: half of the memory lies idle");
    }
}
