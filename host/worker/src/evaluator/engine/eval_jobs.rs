//! nix-eval-jobs as the engine. Start at [`evaluate`].
//!
//! It is given an expression of ours (`expression.rs`) and evaluates that purely, in every run. Each attribute gives a
//! line: what is neither a derivation nor a set comes as an error that only that expression can have written. So a line
//! that is not there was lost. A worker that dies ends a whole run and loses what lies behind, so runs are repeated with
//! what is missing, for as long as they answer something. Where one answers nothing, its first attribute is asked for
//! alone, and when it gets no line then, it is to blame.

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsString;
use std::path::Path;

use harmonia_core::project_config::print_attr_path;
use harmonia_egress::Refusal;
use tokio::sync::mpsc;

use super::driver::{is_memory_short, log, nonce, unreadable_limits, with_refusals};
use super::expression::{NAMES_MEMBER, TASK_PREFIX, member_name};
use super::line::{EngineLine, Evaluated, Limits, evaluated, no_derivation, parse_line};
use super::names::{Members, NoDerivation, Task, empty, judge_value, read_json, too_deep, too_many};
use super::output::{Output, presentable};
use super::process::{HowEnded, Process};
use super::{ATTRS_MAX, DEPTH_MAX, Engine, EngineError, EngineEvent, expression, tell};

/// Names in one command line, in bytes: Linux takes 128 KiB as one argument.
const NAMES_BYTES_MAX: usize = 80 << 10;
/// The error of an attribute for which there was not enough memory: what C++ calls it, and nothing besides, which no author
/// can write.
const OUT_OF_MEMORY: &str = "std::bad_alloc";

pub(super) async fn evaluate(
    engine: &Engine,
    program: &Path,
    tasks: Vec<Task>,
    events: &mpsc::Sender<EngineEvent>,
) -> Result<(), EngineError> {
    let asked: HashSet<Vec<String>> = tasks.iter().map(|task| task.path.clone()).collect();
    let open = tasks.into_iter().map(|task| (task.path.clone(), task)).collect();
    let mut runs = Runs { engine, program, events, count: asked.len(), asked, open, done: HashSet::new(), sets: 0 };
    while !runs.open.is_empty() {
        for chunk in chunks(runs.open.values().cloned().collect()) {
            let known = runs.known();
            runs.run(&chunk).await?;
            if runs.known() > known {
                continue;
            }
            let Some(first) = chunk.first() else { continue };
            let end = runs.run(std::slice::from_ref(first)).await?;
            if runs.known() > known {
                continue;
            }
            if let Some(task) = runs.open.remove(&first.path) {
                runs.done.insert(task.path.clone());
                let error = with_refusals(presentable(&end.error()), &end.refused);
                runs.line(task.path, Err(error)).await?;
            }
        }
    }
    Ok(())
}

/// As many as one command line holds.
fn chunks(tasks: Vec<Task>) -> Vec<Vec<Task>> {
    let mut chunks: Vec<Vec<Task>> = Vec::new();
    let mut bytes = NAMES_BYTES_MAX;
    for task in tasks {
        // Escapes double a name at most; the rest is what stands around it.
        let more = task.path.iter().map(|name| 2 * name.len() + 3).sum::<usize>() + 40;
        if bytes + more > NAMES_BYTES_MAX {
            chunks.push(Vec::new());
            bytes = 0;
        }
        bytes += more;
        if let Some(chunk) = chunks.last_mut() {
            chunk.push(task);
        }
    }
    chunks
}

struct RunEnd {
    /// Exit code 0.
    is_clean: bool,
    last_words: String,
    /// Of its memory, in MiB, when it had used so much that this may be why it ended.
    used: Option<u64>,
    refused: Vec<Refusal>,
}

impl RunEnd {
    /// Of an attribute that had a run of its own and got no line.
    fn error(&self) -> String {
        if self.is_clean {
            "error: nix-eval-jobs gave neither a result nor an error for this attribute, also when it was asked for it alone"
                .to_owned()
        } else {
            let used = self.used.map(|used| format!(" when it had used {used} MiB of memory")).unwrap_or_default();
            format!("error: nix-eval-jobs died while this was evaluated alone{used}\n{}", self.last_words)
        }
    }
}

struct Runs<'a> {
    engine: &'a Engine,
    program: &'a Path,
    events: &'a mpsc::Sender<EngineEvent>,
    /// What is evaluated under its own name, so not once more as a member.
    asked: HashSet<Vec<String>>,
    /// All attributes so far.
    count: usize,
    /// Without an answer.
    open: BTreeMap<Vec<String>, Task>,
    done: HashSet<Vec<String>>,
    /// Attributes that are to be asked for as sets.
    sets: usize,
}

impl Runs<'_> {
    /// Grows with whatever is found out.
    fn known(&self) -> usize {
        self.done.len() + self.sets
    }

    async fn run(&mut self, tasks: &[Task]) -> Result<RunEnd, EngineError> {
        let nonce = nonce();
        let text = expression::selection(&nonce, &self.engine.flake, DEPTH_MAX, tasks);
        let mut arguments = self.arguments();
        arguments.extend(["--expr".into(), text.into()]);
        let mut process = Process::start(self.engine, self.program, arguments, String::new()).await?;
        let mut output = Output::hiding(&nonce);
        let mut number = 0;
        let (mut stdout_open, mut stderr_open) = (true, true);
        while stdout_open || stderr_open {
            let (is_result, line) = tokio::select! {
                line = process.stdout.next(), if stdout_open => (true, line?),
                line = process.stderr.next(), if stderr_open => (false, line?),
            };
            match (is_result, line) {
                (true, None) => stdout_open = false,
                (false, None) => stderr_open = false,
                (true, Some(line)) => {
                    number += 1;
                    match parse_line(number, &line) {
                        Ok(line) => self.take(&nonce, tasks, line, &process.refused()).await?,
                        // Whichever attribute it was of is missing, and asked for again.
                        Err(error) => {
                            let text = format!("nix-eval-jobs: {}", harmonia_core::chain(&error));
                            tell(self.events, EngineEvent::Warning(text)).await?;
                        }
                    }
                }
                (false, Some(line)) => log(self.events, output.take(&line).log).await?,
            }
        }
        log(self.events, output.release()).await?;
        let last_words = output.last_words();
        let ended = process.ended(&last_words).await?;
        let used = ended.peak_bytes.filter(|_| is_memory_short(self.engine, &ended)).map(|peak| peak >> 20);
        Ok(RunEnd { is_clean: ended.how == HowEnded::Exited(0), last_words, used, refused: process.refused() })
    }

    async fn take(
        &mut self,
        nonce: &str,
        tasks: &[Task],
        line: EngineLine,
        refused: &[Refusal],
    ) -> Result<(), EngineError> {
        let mut path = line.attr_path.into_iter();
        let root = path.next().and_then(|name| tasks.get(name.strip_prefix(TASK_PREFIX)?.parse::<usize>().ok()?));
        let Some(root) = root else { return Ok(()) };
        let mut names: Vec<String> = path.collect();
        if names.last().is_some_and(|name| name == NAMES_MEMBER) {
            names.pop();
        }
        let path: Vec<String> = root.path.iter().cloned().chain(names.iter().map(|name| member_name(name))).collect();
        // Lines of several workers are in no order: what lies below an open set may come before the set's own line.
        let is_wanted = (0..=path.len()).rev().any(|length| self.open.contains_key(&path[..length]));
        if !is_wanted || self.done.contains(&path) {
            return Ok(());
        }
        let mut task = self.open.remove(&path).unwrap_or_else(|| Task::found(path.clone()));
        if line.result.as_ref().is_err_and(|error| error.trim() == OUT_OF_MEMORY) {
            let most = self.engine.memory_bytes_max >> 20;
            let reason = format!("the evaluator ran out of memory, of which it may use {most} MiB");
            if tasks.len() == 1 && root.path == path {
                self.done.insert(path.clone());
                return self.line(path, Err(format!("error: {reason}"))).await;
            }
            // What was evaluated before may have left too little.
            let text = format!("{}: {reason}; trying it again in a fresh process", print_attr_path(&path));
            self.open.insert(path, task);
            return log(self.events, vec![text]).await;
        }
        let heard = line.result.as_ref().err().and_then(|error| said(nonce, error));
        if matches!(heard, Some(('t', _))) && !task.is_set {
            task.is_set = true;
            self.sets += 1;
            self.open.insert(path, task);
            return Ok(());
        }
        self.done.insert(path.clone());
        match (heard, &line.result) {
            (Some(('l', json)), Err(error)) => {
                let warning = unreadable_limits(&task, &presentable(error));
                tell(self.events, EngineEvent::Warning(warning)).await?;
                self.derivation(path, json.as_bytes()).await
            }
            (Some((tag, json)), _) => self.no_derivation(task, tag, json.as_bytes()).await,
            (None, Err(error)) => {
                // The process evaluates others, too: what belongs to this one is what its error names.
                let its = |refusal: &&Refusal| error.contains(&refusal.target.host.to_string());
                let refused: Vec<Refusal> = refused.iter().filter(its).cloned().collect();
                self.line(path, Err(with_refusals(presentable(error), &refused))).await
            }
            (None, Ok(found)) => self.line(path, Ok(found.clone())).await,
        }
    }

    /// Of a `drvPath`, which may be anything.
    async fn derivation(&self, path: Vec<String>, json: &[u8]) -> Result<(), EngineError> {
        let drv_path = read_json::<String>(json).map(|(path, _)| path).ok();
        self.line(path, evaluated(drv_path, &Limits::default()).map_err(no_derivation)).await
    }

    async fn no_derivation(&mut self, task: Task, tag: char, json: &[u8]) -> Result<(), EngineError> {
        let path = task.path.clone();
        match tag {
            'n' => match read_json::<Vec<String>>(json) {
                Ok((names, is_utf8)) => self.set(task, names, is_utf8).await,
                Err(error) => self.line(path, Err(format!("error: its names cannot be read: {error}"))).await,
            },
            'd' => self.line(path, Err(too_deep(&task))).await,
            'r' => self.derivation(path, json).await,
            'v' => match judge_value(&task, &read_json::<String>(json).unwrap_or_default().0) {
                NoDerivation::Error(error) => self.line(path, Err(error)).await,
                NoDerivation::Warning(warning) => self.leave_out(path, Some(warning)).await,
                NoDerivation::Silent => self.leave_out(path, None).await,
            },
            'x' => self.leave_out(path, None).await,
            _ => self.line(path, Err(format!("error: nix-eval-jobs said what nobody asked for ({tag})"))).await,
        }
    }

    async fn set(&mut self, task: Task, names: Vec<String>, is_utf8: bool) -> Result<(), EngineError> {
        if names.is_empty() {
            let warning = empty(&task);
            return self.leave_out(task.path, Some(warning)).await;
        }
        if self.count + names.len() > ATTRS_MAX {
            let error = too_many(&task, names.len());
            return self.line(task.path, Err(error)).await;
        }
        self.count += names.len();
        let Members { tasks, refused } = Members::of(&task.path, names, is_utf8, &self.asked);
        let members =
            tasks.iter().map(|task| &task.path).chain(refused.iter().map(|(path, _)| path)).cloned().collect();
        tell(self.events, EngineEvent::Set { path: task.path, members }).await?;
        for task in tasks {
            if !self.done.contains(&task.path) {
                self.open.entry(task.path.clone()).or_insert(task);
            }
        }
        for (path, error) in refused {
            if self.done.insert(path.clone()) {
                self.line(path, Err(error)).await?;
            }
        }
        Ok(())
    }

    async fn line(&self, attr_path: Vec<String>, result: Result<Evaluated, String>) -> Result<(), EngineError> {
        tell(self.events, EngineEvent::Line(EngineLine { attr_path, result })).await
    }

    async fn leave_out(&self, path: Vec<String>, warning: Option<String>) -> Result<(), EngineError> {
        tell(self.events, EngineEvent::LeftOut { path, warning }).await
    }

    fn arguments(&self) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = ["--meta", "--force-recurse", "--show-trace"].map(OsString::from).to_vec();
        arguments.extend(["--workers".into(), self.engine.workers.max(1).to_string().into()]);
        // Where it starts a fresh worker for the next attribute, which is to have room.
        let enough = self.engine.memory_bytes_max / 2;
        arguments.extend(["--max-memory-size".into(), (enough >> 20).to_string().into()]);
        let ifd = if self.engine.allow_ifd { "true" } else { "false" };
        arguments.extend(["--option", "allow-import-from-derivation", ifd].map(OsString::from));
        // It is pure of itself for `--flake` only.
        arguments.extend(["--option", "pure-eval", "true"].map(OsString::from));
        arguments
    }
}

/// What our expression said in an error: only it knows the nonce.
fn said<'a>(nonce: &str, error: &'a str) -> Option<(char, &'a str)> {
    let (_, rest) = error.split_once(nonce)?;
    let (tag, json) = rest.lines().next()?.split_once(' ')?;
    Some((tag.chars().next()?, json.trim_end()))
}
