//! Plain Nix, process after process, until a queue is worked through. Start at [`drive`].
//!
//! A process evaluates the queue one after the other and prints as it goes (see `expression.rs`). An error ends it: its
//! message and trace become that attribute's error, and another process takes over behind it. So errors cost a start
//! each, and attributes that succeed cost nothing twice. A process that *dies* may have died of what it evaluated before:
//! its attribute is tried again first thing in a fresh process, and only when that dies, too, is it to blame.
//!
//! What was printed decides nothing, since builds and authors print what they like. Whether memory ran short is what the
//! kernel says: a signal, or how much the process had used.

use std::collections::VecDeque;

use harmonia_core::project_config::print_attr_path;
use harmonia_egress::Refusal;
use tokio::sync::mpsc;

use super::line::{Evaluated, Limits, evaluated, no_derivation};
use super::names::{Task, read_json};
use super::output::Output;
use super::process::{Ended, HowEnded, Process};
use super::{Engine, EngineError, EngineEvent, tell};

/// Processes in a row that come to no attribute before it is the flake's or the machine's fault.
const FRUITLESS_MAX: u32 = 2;

/// Takes what processes say.
pub(super) trait Answers {
    /// What a process is given.
    fn expression(&self, engine: &Engine, nonce: &str, queue: &VecDeque<Task>) -> String;

    /// A marker for the task that was at the front.
    async fn answer(&mut self, task: Task, tag: char, json: &[u8]) -> Result<Next, EngineError>;

    /// The task evaluated to a derivation, or to what pretends to be one.
    async fn derivation(&mut self, task: Task, found: Result<Evaluated, String>) -> Result<(), EngineError>;

    /// The task has this error.
    async fn failed(&mut self, task: Task, error: String) -> Result<(), EngineError>;
}

/// How it goes on behind an answer.
#[derive(Debug, Default)]
pub(super) struct Next {
    /// What the process turns to now.
    pub(super) tasks: Vec<Task>,
    /// It turns to something else: another process is needed.
    pub(super) is_other: bool,
}

/// Where in an attribute a process was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Between attributes.
    Outside,
    /// In its value.
    Value,
    /// In something that is no part of what is wanted.
    Doubtful,
    /// In `meta`, with the derivation known.
    Limits,
}

/// How a process came to its end.
struct End {
    ended: Ended,
    stage: Stage,
    /// Attributes that it dealt with.
    answered: usize,
    /// What it printed last.
    error: Option<String>,
    last_words: String,
    /// What it was not let to on the network.
    refused: Vec<Refusal>,
}

/// Works through the queue.
pub(super) async fn drive(
    engine: &Engine,
    events: &mpsc::Sender<EngineEvent>,
    mut queue: VecDeque<Task>,
    answers: &mut impl Answers,
) -> Result<(), EngineError> {
    let mut died_at: Option<Vec<String>> = None;
    let mut fruitless = 0;
    while !queue.is_empty() {
        let Some((end, found)) = run_one(engine, events, &mut queue, answers).await? else { continue };
        let Some(task) = queue.front() else { break };
        let is_again = died_at.as_ref() == Some(&task.path);
        if end.stage == Stage::Outside {
            fruitless = if end.answered == 0 { fruitless + 1 } else { 0 };
            // Not at an attribute: the flake as a whole, or the engine, is broken.
            if matches!(end.ended.how, HowEnded::Exited(_)) && end.answered == 0 || fruitless >= FRUITLESS_MAX {
                return Err(EngineError::Failed(describe(engine, &end)));
            }
            continue;
        }
        fruitless = 0;
        let may_be_of_others = match end.ended.how {
            HowEnded::Signal(_) => true,
            HowEnded::Exited(_) => end.error.is_none() || (end.answered > 0 && is_memory_short(engine, &end.ended)),
        };
        if may_be_of_others && !is_again {
            let reason = describe(engine, &end);
            let text = format!("{}: {reason}; trying it again in a fresh process\n", print_attr_path(&task.path));
            died_at = Some(task.path.clone());
            tell(events, EngineEvent::Log(text)).await?;
            continue;
        }
        if let (Stage::Doubtful, false) = (end.stage, task.is_set) {
            if let Some(task) = queue.front_mut() {
                task.is_set = true;
            }
            continue;
        }
        let Some(task) = queue.pop_front() else { break };
        let reason = describe(engine, &end);
        if let (Stage::Limits, Some(found)) = (end.stage, found) {
            tell(events, EngineEvent::Warning(unreadable_limits(&task, &reason))).await?;
            answers.derivation(task, evaluated(Some(found), &Limits::default()).map_err(no_derivation)).await?;
        } else {
            let error = match end.error {
                Some(_) => reason,
                None => format!("error: {reason}, twice, while this attribute was evaluated"),
            };
            answers.failed(task, error).await?;
        }
    }
    Ok(())
}

/// One process, until it ends: how, and the derivation of the attribute at which it ended, if that was known. `None`: its
/// queue is done, or another process is needed.
async fn run_one(
    engine: &Engine,
    events: &mpsc::Sender<EngineEvent>,
    queue: &mut VecDeque<Task>,
    answers: &mut impl Answers,
) -> Result<Option<(End, Option<String>)>, EngineError> {
    let nonce = nonce();
    let text = answers.expression(engine, &nonce, queue);
    let mut process = Process::start(engine, &engine.nix_instantiate, engine.nix_arguments(), text).await?;
    let mut output = Output::new(&nonce);
    let (mut stage, mut answered, mut found) = (Stage::Outside, 0, None);
    while let Some(line) = process.stderr.next().await? {
        let printed = output.take(&line);
        log(events, printed.log).await?;
        match printed.marker {
            None => {}
            Some(('b' | 'u', _)) => stage = Stage::Value,
            Some(('t', _)) => stage = Stage::Doubtful,
            Some(('r', json)) => {
                found = Some(
                    read_json(&json).map_or_else(|_| String::from_utf8_lossy(&json).into_owned(), |(path, _)| path),
                );
                stage = Stage::Limits;
            }
            Some((tag, json)) => {
                let Some(task) = queue.pop_front() else {
                    let text = "the engine answered for more attributes than it was asked for";
                    return Err(EngineError::Failed(text.to_owned()));
                };
                stage = Stage::Outside;
                answered += 1;
                if let Some(drv_path) = found.take() {
                    let limits = read_json(&json).map(|(limits, _)| limits).unwrap_or_default();
                    answers.derivation(task, evaluated(Some(drv_path), &limits).map_err(no_derivation)).await?;
                    continue;
                }
                let next = answers.answer(task, tag, &json).await?;
                for task in next.tasks.into_iter().rev() {
                    queue.push_front(task);
                }
                if next.is_other {
                    log(events, output.release()).await?;
                    return Ok(None);
                }
            }
        }
    }
    let last_words = output.last_words();
    let ended = process.ended(&last_words).await?;
    let refused = process.refused();
    let error = output.error().filter(|_| matches!(ended.how, HowEnded::Exited(code) if code != 0));
    if error.is_none() || is_memory_short(engine, &ended) {
        log(events, output.release()).await?;
    }
    Ok(Some((End { ended, stage, answered, error, last_words, refused }, found)).filter(|_| !queue.is_empty()))
}

/// Lines for the log.
pub(super) async fn log(events: &mpsc::Sender<EngineEvent>, lines: Vec<String>) -> Result<(), EngineError> {
    for line in lines {
        tell(events, EngineEvent::Log(format!("{line}\n"))).await?;
    }
    Ok(())
}

/// Whether the process had used so much of its memory that what it did before may have left too little.
pub(super) fn is_memory_short(engine: &Engine, ended: &Ended) -> bool {
    ended.peak_bytes.is_some_and(|peak| peak >= engine.memory_bytes_max / 2)
}

/// The warning of a derivation whose limits have this error.
pub(super) fn unreadable_limits(task: &Task, error: &str) -> String {
    let line = error.lines().next().unwrap_or_default();
    let attr = print_attr_path(&task.path);
    format!("{attr}: its meta.timeout and meta.maxSilent cannot be read and count for nothing: {line}")
}

/// Why a process ended, with what it was refused: its own error may say no more than that something could not be fetched.
fn describe(engine: &Engine, end: &End) -> String {
    with_refusals(describe_end(engine, end), &end.refused)
}

/// An error, and what was refused while it came about.
pub(super) fn with_refusals(mut error: String, refused: &[Refusal]) -> String {
    for refusal in refused.iter().map(ToString::to_string) {
        if !error.contains(&refusal) {
            error.push_str("\n\n");
            error.push_str(&refusal);
        }
    }
    error
}

/// Its own error is shown as it is, whatever the reason.
fn describe_end(engine: &Engine, end: &End) -> String {
    let most = engine.memory_bytes_max >> 20;
    let used = end.ended.peak_bytes.filter(|_| is_memory_short(engine, &end.ended)).map(|peak| peak >> 20);
    match (end.ended.how, &end.error) {
        (HowEnded::Signal(signal), _) => match used {
            Some(used) => {
                format!("the evaluator was killed by signal {signal} when it had used {used} of {most} MiB of memory")
            }
            None => format!("the evaluator was killed by signal {signal} (it may use {most} MiB of memory)"),
        },
        (HowEnded::Exited(_), Some(error)) => match used {
            Some(used) => {
                format!("{error}\n\n(the evaluator had used {used} of the {most} MiB of memory that it may use)")
            }
            None => error.clone(),
        },
        (HowEnded::Exited(_), None) if !end.last_words.is_empty() => end.last_words.clone(),
        (HowEnded::Exited(code), None) => format!("the evaluator ended with exit code {code} and said nothing"),
    }
}

/// Unknown to the evaluated code, new for each process.
pub(super) fn nonce() -> String {
    let random: [u64; 2] = rand::random();
    format!("{:016x}{:016x}", random[0], random[1])
}

/// Whether plain Nix runs at all.
pub(super) async fn try_out(engine: &Engine) -> Result<(), EngineError> {
    let mut process = Process::start(engine, &engine.nix_instantiate, engine.nix_arguments(), "1".to_owned()).await?;
    let mut output = Output::plain();
    while let Some(line) = process.stderr.next().await? {
        output.take(&line);
    }
    let last_words = output.last_words();
    let ended = process.ended(&last_words).await?;
    if ended.how == HowEnded::Exited(0) {
        return Ok(());
    }
    let (error, refused) = (output.error(), process.refused());
    let end = End { ended, stage: Stage::Outside, answered: 0, error, last_words, refused };
    Err(EngineError::Failed(describe(engine, &end)))
}
