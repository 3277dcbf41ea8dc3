//! Plain Nix as the engine. Start at [`enumerate`], then [`evaluate`].
//!
//! [`evaluate`] deals the attributes out to a few processes, each of which evaluates its share one after the other and
//! prints as it goes (see `expression.rs`). An attribute's error ends its process: its text and trace become that
//! attribute's error, and another process takes over behind it. So errors cost a start each, and attributes that
//! succeed cost nothing twice. A process that *dies* (memory, a crash) may have died of what it evaluated before: its
//! attribute is tried again first thing in a fresh process, and only when that dies, too, is it to blame.

use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::try_join_all;
use harmonia_core::project_config::print_attr_path;
use tokio::sync::mpsc;

use super::line::{EngineLine, parse_line};
use super::output::{Names, Output, Printed};
use super::process::{Ended, Process};
use super::{ATTRS_MAX, DEPTH_MAX, Engine, EngineError, EngineEvent, expression, tell};

/// The names to evaluate.
#[derive(Debug, Default)]
pub(crate) struct Enumeration {
    /// Attribute paths, in order.
    pub(crate) attrs: Vec<Vec<String>>,
    /// Systems that have attributes and were left out because nobody wants them.
    pub(crate) left_out: BTreeSet<String>,
    /// All outputs of the flake, for error messages.
    pub(crate) outputs: Vec<String>,
    /// Prefixes that the flake does not have (or that are neither sets nor derivations).
    pub(crate) missing: Vec<Vec<String>>,
}

pub(super) async fn enumerate(
    engine: &Engine,
    prefixes: &[Vec<String>],
    systems: Option<&[String]>,
    events: &mpsc::Sender<EngineEvent>,
) -> Result<Enumeration, EngineError> {
    let nonce = nonce();
    let text = expression::enumerator(&nonce, &engine.flake, prefixes, systems);
    let mut process = Process::start(engine, &engine.nix_instantiate, engine.nix_arguments(), text)?;
    let mut output = Output::new(&nonce);
    let mut answer = None;
    while let Some(line) = process.stderr.next().await? {
        match output.take(&line) {
            Printed::Marker('e', json) => answer = Some(json),
            Printed::Log(text) => tell(events, EngineEvent::Log(text)).await?,
            Printed::Marker(..) | Printed::Held => {}
        }
    }
    let last_words = output.last_words();
    let ended = process.ended(&last_words).await?;
    let Some(json) = answer else {
        return Err(EngineError::Failed(describe_end(engine, &ended, &last_words)));
    };
    let names: Names = serde_json::from_str(&json)
        .map_err(|error| EngineError::Failed(format!("the engine printed names that cannot be read: {error}")))?;
    gather(prefixes, names)
}

pub(super) async fn try_out(engine: &Engine) -> Result<(), EngineError> {
    let mut process = Process::start(engine, &engine.nix_instantiate, engine.nix_arguments(), "1".to_owned())?;
    let mut output = Output::new("");
    while let Some(line) = process.stderr.next().await? {
        output.take(&line);
    }
    let last_words = output.last_words();
    match process.ended(&last_words).await? {
        Ended::Exited(0) => Ok(()),
        ended => Err(EngineError::Failed(describe_end(engine, &ended, &last_words))),
    }
}

fn gather(prefixes: &[Vec<String>], names: Names) -> Result<Enumeration, EngineError> {
    let mut found = Enumeration { outputs: names.outputs, ..Enumeration::default() };
    let below = |path: &[String], name: String| path.iter().cloned().chain([name]).collect::<Vec<String>>();
    for (prefix, answer) in prefixes.iter().zip(names.prefixes) {
        match answer.kind.as_str() {
            "derivation" => found.attrs.push(prefix.clone()),
            "set" => {}
            _ => found.missing.push(prefix.clone()),
        }
        found.attrs.extend(answer.names.into_iter().map(|name| below(prefix, name)));
        for system in answer.systems {
            let path = below(prefix, system.name);
            if system.kind == "derivation" {
                found.attrs.push(path);
            } else {
                found.attrs.extend(system.names.into_iter().map(|name| below(&path, name)));
            }
        }
        found.left_out.extend(answer.left_out);
    }
    // Prefixes may overlap; each attribute is evaluated once.
    let mut seen = BTreeSet::new();
    found.attrs.retain(|attr| seen.insert(attr.clone()));
    if found.attrs.len() > ATTRS_MAX {
        return Err(EngineError::TooMany);
    }
    Ok(found)
}

pub(super) async fn evaluate(
    engine: &Engine,
    attrs: Vec<Vec<String>>,
    events: &mpsc::Sender<EngineEvent>,
) -> Result<BTreeSet<Vec<String>>, EngineError> {
    let workers = engine.workers.clamp(1, attrs.len().max(1));
    // In turns, like cards: neighbours in the alphabet tend to cost the same.
    let mut shares = vec![VecDeque::new(); workers];
    let count = AtomicUsize::new(attrs.len());
    for (index, attr) in attrs.into_iter().enumerate() {
        shares[index % workers].push_back(attr);
    }
    let done = try_join_all(
        shares.into_iter().map(|queue| Share { engine, events, queue, done: Vec::new(), count: &count }.work()),
    )
    .await?;
    Ok(done.into_iter().flatten().collect())
}

/// What one line of processes works through.
struct Share<'a> {
    engine: &'a Engine,
    events: &'a mpsc::Sender<EngineEvent>,
    /// The front is what is being evaluated.
    queue: VecDeque<Vec<String>>,
    /// Those that got a line.
    done: Vec<Vec<String>>,
    /// All attributes of the evaluation, over all shares.
    count: &'a AtomicUsize,
}

impl Share<'_> {
    async fn work(mut self) -> Result<Vec<Vec<String>>, EngineError> {
        let mut died_at: Option<Vec<String>> = None;
        while !self.queue.is_empty() {
            let Some((attr, death)) = self.run_one_process().await? else { continue };
            match death {
                Death::Error(error) => self.fail(error).await?,
                Death::Killed(reason) if died_at.as_ref() == Some(&attr) => {
                    self.fail(format!("error: {reason}, twice, while this attribute was evaluated")).await?;
                }
                Death::Killed(reason) => {
                    let text = format!("{}: {reason}; trying it again in a fresh process\n", print_attr_path(&attr));
                    tell(self.events, EngineEvent::Log(text)).await?;
                    died_at = Some(attr);
                }
            }
        }
        Ok(self.done)
    }

    async fn fail(&mut self, error: String) -> Result<(), EngineError> {
        let Some(attr_path) = self.queue.pop_front() else { return Ok(()) };
        self.done.push(attr_path.clone());
        tell(self.events, EngineEvent::Line(EngineLine { attr_path, result: Err(error) })).await
    }

    /// One process, until it ends. `None`: everything is done; otherwise the attribute at which it ended, and how.
    async fn run_one_process(&mut self) -> Result<Option<(Vec<String>, Death)>, EngineError> {
        let nonce = nonce();
        let text = expression::worker(&nonce, &self.engine.flake, DEPTH_MAX, &self.queue);
        let engine = self.engine;
        let mut process = Process::start(engine, &engine.nix_instantiate, engine.nix_arguments(), text)?;
        let mut output = Output::new(&nonce);
        let mut began = false;
        let mut number = 0;
        while let Some(line) = process.stderr.next().await? {
            number += 1;
            match output.take(&line) {
                Printed::Marker('b', _) => began = true,
                Printed::Marker(tag, json) => {
                    self.take_marker(number, tag, &json).await?;
                    began = false;
                }
                Printed::Log(text) => tell(self.events, EngineEvent::Log(text)).await?,
                Printed::Held => {}
            }
        }
        let last_words = output.last_words();
        let ended = process.ended(&last_words).await?;
        let Some(attr) = self.queue.front().cloned() else { return Ok(None) };
        let death = match (&ended, output.error()) {
            // Not at an attribute: the flake as a whole, or the engine, is broken.
            _ if !began => return Err(EngineError::Failed(describe_end(engine, &ended, &last_words))),
            (Ended::Exited(code), Some(error)) if *code != 0 && !is_out_of_memory(&error) => Death::Error(error),
            _ => Death::Killed(describe_end(engine, &ended, &last_words)),
        };
        Ok(Some((attr, death)))
    }

    async fn take_marker(&mut self, number: u64, tag: char, json: &str) -> Result<(), EngineError> {
        let Some(attr) = self.queue.pop_front() else {
            return Err(EngineError::Failed(
                "the engine answered for more attributes than it was asked for".to_owned(),
            ));
        };
        match tag {
            'r' => {
                // The name is ours, whatever the derivation pretends to be.
                let line = match parse_line(number, json.as_bytes()) {
                    Ok(line) => EngineLine { attr_path: attr.clone(), ..line },
                    Err(error) => {
                        let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
                        EngineLine { attr_path: attr.clone(), result: Err(format!("error: not a derivation: {cause}")) }
                    }
                };
                self.done.push(attr);
                tell(self.events, EngineEvent::Line(line)).await
            }
            'n' => {
                let names: Vec<String> = serde_json::from_str(json).map_err(|error| {
                    EngineError::Failed(format!("the engine printed names that cannot be read: {error}"))
                })?;
                if self.count.fetch_add(names.len(), Ordering::Relaxed) + names.len() > ATTRS_MAX {
                    return Err(EngineError::TooMany);
                }
                for name in names.into_iter().rev() {
                    self.queue.push_front(attr.iter().cloned().chain([name]).collect());
                }
                Ok(())
            }
            _ => {
                // That switch is no attribute that anybody wants built.
                if attr.last().is_some_and(|name| name == "recurseForDerivations") {
                    return Ok(());
                }
                let reason: String = serde_json::from_str(json).unwrap_or_default();
                let warning = format!("{} {reason}: it is left out", print_attr_path(&attr));
                tell(self.events, EngineEvent::Warning(warning)).await
            }
        }
    }
}

enum Death {
    /// Nix says what is wrong with the attribute.
    Error(String),
    /// The process could not go on.
    Killed(String),
}

fn is_out_of_memory(error: &str) -> bool {
    let first = error.lines().next().unwrap_or_default().to_lowercase();
    ["out of memory", "bad_alloc", "cannot allocate memory"].iter().any(|text| first.contains(text))
}

fn describe_end(engine: &Engine, ended: &Ended, last_words: &str) -> String {
    let memory = format!("(it may use {} MiB of memory)", engine.memory_bytes_max >> 20);
    match ended {
        Ended::Exited(_) if is_out_of_memory(last_words) => format!("the evaluator ran out of memory {memory}"),
        Ended::Exited(_) if !last_words.is_empty() => last_words.to_owned(),
        Ended::Exited(code) => format!("the evaluator ended with exit code {code} and said nothing"),
        Ended::Signal(signal) => format!("the evaluator was killed by signal {signal} {memory}"),
    }
}

/// Unknown to the evaluated code, new for each process.
fn nonce() -> String {
    let random: [u64; 2] = rand::random();
    format!("{:016x}{:016x}", random[0], random[1])
}
