//! Plain Nix as the engine. Start at [`evaluate`]: it deals the attributes out to a few lines of processes (`driver.rs`),
//! each of which works through its share.

use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::try_join_all;
use tokio::sync::mpsc;

use super::driver::{Answers, Next, drive};
use super::line::{EngineLine, Evaluated};
use super::names::{Members, NoDerivation, Task, empty, judge_value, read_json, too_deep, too_many};
use super::{ATTRS_MAX, DEPTH_MAX, Engine, EngineError, EngineEvent, expression, tell};

pub(super) async fn evaluate(
    engine: &Engine,
    tasks: Vec<Task>,
    events: &mpsc::Sender<EngineEvent>,
) -> Result<(), EngineError> {
    let workers = engine.workers.clamp(1, tasks.len().max(1));
    let asked = asked_within_others(&tasks);
    let count = AtomicUsize::new(tasks.len());
    // In turns, like cards: neighbours in the alphabet tend to cost the same.
    let mut shares = vec![VecDeque::new(); workers];
    for (index, task) in tasks.into_iter().enumerate() {
        shares[index % workers].push_back(task);
    }
    let (asked, count) = (&asked, &count);
    try_join_all(shares.into_iter().map(|queue| async move {
        let mut results = Results { events, asked, count };
        drive(engine, events, queue, &mut results).await
    }))
    .await?;
    Ok(())
}

/// Those that are also members of others, so that both would evaluate them.
fn asked_within_others(tasks: &[Task]) -> HashSet<Vec<String>> {
    let all: HashSet<&[String]> = tasks.iter().map(|task| &task.path[..]).collect();
    let is_within = |path: &[String]| (0..path.len()).any(|length| all.contains(&path[..length]));
    tasks.iter().map(|task| &task.path).filter(|path| is_within(path)).cloned().collect()
}

struct Results<'a> {
    events: &'a mpsc::Sender<EngineEvent>,
    /// What is evaluated under its own name, so not once more as a member.
    asked: &'a HashSet<Vec<String>>,
    /// All attributes of the evaluation, over all shares.
    count: &'a AtomicUsize,
}

impl Results<'_> {
    async fn line(&self, attr_path: Vec<String>, result: Result<Evaluated, String>) -> Result<(), EngineError> {
        tell(self.events, EngineEvent::Line(EngineLine { attr_path, result })).await
    }

    async fn leave_out(&self, task: Task, warning: Option<String>) -> Result<Next, EngineError> {
        tell(self.events, EngineEvent::LeftOut { path: task.path, warning }).await?;
        Ok(Next::default())
    }

    /// The members of a set. Those that are evaluated elsewhere, or cannot be asked for, are none for the process at work.
    async fn set(&mut self, task: Task, json: &[u8]) -> Result<Next, EngineError> {
        let (names, is_utf8) = match read_json::<Vec<String>>(json) {
            Ok(names) => names,
            Err(error) => {
                self.line(task.path, Err(format!("error: its names cannot be read: {error}"))).await?;
                return Ok(Next { tasks: Vec::new(), is_other: true });
            }
        };
        let count = names.len();
        if self.count.fetch_add(count, Ordering::Relaxed) + count > ATTRS_MAX {
            self.count.fetch_sub(count, Ordering::Relaxed);
            let error = too_many(&task, count);
            self.line(task.path, Err(error)).await?;
            return Ok(Next { tasks: Vec::new(), is_other: true });
        }
        if count == 0 {
            let warning = empty(&task);
            return self.leave_out(task, Some(warning)).await;
        }
        let Members { tasks, refused } = Members::of(&task.path, names, is_utf8, self.asked);
        let members =
            tasks.iter().map(|task| &task.path).chain(refused.iter().map(|(path, _)| path)).cloned().collect();
        tell(self.events, EngineEvent::Set { path: task.path, members }).await?;
        for (path, error) in refused {
            self.line(path, Err(error)).await?;
        }
        Ok(Next { is_other: tasks.len() < count, tasks })
    }
}

impl Answers for Results<'_> {
    const IS_OF_JOBSET: bool = true;

    fn expression(&self, engine: &Engine, nonce: &str, queue: &VecDeque<Task>) -> String {
        expression::worker(nonce, &engine.flake, DEPTH_MAX, queue)
    }

    async fn answer(&mut self, task: Task, tag: char, json: &[u8]) -> Result<Next, EngineError> {
        match tag {
            'n' => return self.set(task, json).await,
            'd' => {
                let error = too_deep(&task);
                self.line(task.path, Err(error)).await?;
            }
            'v' => {
                let (kind, _) = read_json::<String>(json).unwrap_or_default();
                match judge_value(&task, &kind) {
                    NoDerivation::Error(error) => self.line(task.path, Err(error)).await?,
                    NoDerivation::Warning(warning) => return self.leave_out(task, Some(warning)).await,
                    NoDerivation::Silent => return self.leave_out(task, None).await,
                }
            }
            _ => return self.leave_out(task, None).await,
        }
        Ok(Next::default())
    }

    async fn derivation(&mut self, task: Task, found: Result<Evaluated, String>) -> Result<(), EngineError> {
        self.line(task.path, found).await
    }

    async fn failed(&mut self, task: Task, error: String) -> Result<(), EngineError> {
        self.line(task.path, Err(error)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_within_others_is_known() {
        let task = |path: &str| Task::found(path.split('.').map(str::to_owned).collect());
        let tasks = ["checks.a", "checks.a.b.c", "checks.ab", "packages", "packages.x", "d"].map(task);
        let mut found: Vec<String> = asked_within_others(&tasks).into_iter().map(|path| path.join(".")).collect();
        found.sort();
        assert_eq!(found, ["checks.a.b.c", "packages.x"]);
    }
}
