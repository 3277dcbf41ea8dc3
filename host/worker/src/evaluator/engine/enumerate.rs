//! The names below the prefixes that are asked for, before anything that they name is evaluated. Start at [`enumerate`].

use std::collections::{BTreeSet, HashSet, VecDeque};

use serde::Deserialize;
use tokio::sync::mpsc;

use super::driver::{Answers, Next, drive};
use super::line::{EngineLine, Evaluated};
use super::names::{Members, Missing, PathSet, Task, read_json, too_many};
use super::{ATTRS_MAX, Engine, EngineError, EngineEvent, expression};

/// What there is to evaluate.
#[derive(Debug, Default)]
pub(crate) struct Enumeration {
    /// Attributes, in order, each once.
    pub(crate) tasks: Vec<Task>,
    /// Attributes that cannot be asked for, with their errors.
    pub(crate) refused: Vec<EngineLine>,
    /// Prefixes and system sets that are in error themselves.
    pub(crate) failed: Vec<EngineLine>,
    /// Systems that have attributes and were left out because nobody wants them,
    pub(crate) left_out: BTreeSet<String>,
    /// and those that are wanted.
    pub(crate) systems: BTreeSet<String>,
    /// Prefixes that the flake does not have.
    pub(crate) missing: Vec<Missing>,
}

/// What an engine says of one prefix that is a set.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Names {
    #[serde(rename = "names")]
    others: Vec<String>,
    systems: Vec<String>,
    left_out: Vec<String>,
}

#[derive(Deserialize)]
struct NotThere {
    found: Vec<String>,
    names: Vec<String>,
}

pub(super) async fn enumerate(
    engine: &Engine,
    prefixes: Vec<Task>,
    systems: Option<&[String]>,
    events: &mpsc::Sender<EngineEvent>,
) -> Result<Enumeration, EngineError> {
    let mut gathering = Gathering { systems, found: Enumeration::default(), seen: PathSet::default() };
    let mut queue: VecDeque<Task> = VecDeque::with_capacity(prefixes.len());
    for prefix in prefixes {
        if !queue.iter().any(|known| known.path == prefix.path) {
            queue.push_back(prefix);
        }
    }
    drive(engine, events, queue, &mut gathering).await?;
    Ok(gathering.found)
}

struct Gathering<'a> {
    systems: Option<&'a [String]>,
    found: Enumeration,
    /// Prefixes may overlap; each attribute is evaluated once.
    seen: PathSet,
}

impl Gathering<'_> {
    fn add(&mut self, task: Task) {
        if self.seen.insert(&task.path) {
            self.found.tasks.push(task);
        } else if task.is_named {
            self.found.tasks.iter_mut().filter(|known| known.path == task.path).for_each(|known| known.is_named = true);
        }
    }

    fn fail(&mut self, task: &Task, error: String) {
        self.found.failed.push(EngineLine { attr_path: task.path.clone(), result: Err(error) });
    }
}

impl Answers for Gathering<'_> {
    const IS_OF_JOBSET: bool = false;

    fn expression(&self, engine: &Engine, nonce: &str, queue: &VecDeque<Task>) -> String {
        expression::enumerator(nonce, &engine.flake, self.systems, queue)
    }

    async fn answer(&mut self, task: Task, tag: char, json: &[u8]) -> Result<Next, EngineError> {
        let unreadable = |error: serde_json::Error| format!("error: its names cannot be read: {error}");
        match tag {
            'm' => match read_json::<NotThere>(json) {
                Ok((NotThere { found, names }, _)) => {
                    self.found.missing.push(Missing { path: task.path, found, names });
                }
                Err(error) => self.fail(&task, unreadable(error)),
            },
            'p' => match read_json::<Names>(json) {
                Ok((names, is_utf8)) => {
                    let count = names.others.len();
                    if self.found.tasks.len() + count > ATTRS_MAX {
                        self.fail(&task, too_many(&task, count));
                    } else {
                        let members = Members::of(&task.path, names.others, is_utf8, &HashSet::new());
                        members.tasks.into_iter().for_each(|task| self.add(task));
                        let refused = members.refused.into_iter();
                        self.found.refused.extend(
                            refused
                                .filter(|(path, _)| self.seen.insert(path))
                                .map(|(attr_path, error)| EngineLine { attr_path, result: Err(error) }),
                        );
                    }
                    self.found.left_out.extend(names.left_out);
                    self.found.systems.extend(names.systems.iter().cloned());
                    let below = |system| Task::found(task.path.iter().cloned().chain([system]).collect());
                    return Ok(Next { tasks: names.systems.into_iter().map(below).collect(), is_other: false });
                }
                Err(error) => {
                    self.fail(&task, unreadable(error));
                    // Its systems would follow.
                    return Ok(Next { tasks: Vec::new(), is_other: true });
                }
            },
            _ => self.add(task),
        }
        Ok(Next::default())
    }

    async fn derivation(&mut self, task: Task, _: Result<Evaluated, String>) -> Result<(), EngineError> {
        self.add(task);
        Ok(())
    }

    async fn failed(&mut self, task: Task, error: String) -> Result<(), EngineError> {
        self.fail(&task, error);
        Ok(())
    }
}
