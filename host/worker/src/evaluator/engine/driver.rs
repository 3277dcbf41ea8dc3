//! Plain Nix, process after process, until a queue is worked through. Start at [`drive`].
//!
//! A process evaluates the queue one after the other and prints as it goes (see `expression.rs`). An error ends it: its
//! message and trace become that attribute's error, and another process takes over behind it, one that goes on past errors
//! where Nix lets it (`jobset.rs`). So attributes that succeed cost nothing twice, and errors cost one start. A process that
//! *dies* may have died of what it evaluated before: its attribute is tried again first thing in a fresh process, and only
//! when that dies, too, is it to blame.
//!
//! Whether Nix goes on as it should shows while it does: an attribute without a result is followed by its error and then by
//! the next one's beginning. Wherever that is not so the old way is taken, which can tell the error.
//!
//! What was printed decides nothing, since builds and authors print what they like. Whether memory ran short is what the
//! kernel says: a signal, or how much the process had used.

use std::collections::{BTreeMap, VecDeque};

use harmonia_core::project_config::print_attr_path;
use harmonia_egress::Refusal;
use tokio::sync::mpsc;

use super::jobset::Jobset;
use super::line::{Evaluated, Limits, evaluated, no_derivation};
use super::names::{Task, read_json};
use super::output::{Output, Printed};
use super::process::{Ended, HowEnded, Process};
use super::{Engine, EngineError, EngineEvent, tell};

/// Processes in a row that come to no attribute before it is the flake's or the machine's fault.
const FRUITLESS_MAX: u32 = 2;

/// Takes what processes say.
pub(super) trait Answers {
    /// Whether its tasks are those of [`Jobset`].
    const IS_OF_JOBSET: bool;

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

/// How a process came to its end, or to the end of one attribute past whose error it went.
struct End {
    ended: Ended,
    stage: Stage,
    /// The derivation of the attribute, if that was known.
    found: Option<String>,
    /// Attributes that it dealt with before.
    answered: usize,
    /// What it printed last.
    error: Option<String>,
    last_words: String,
    /// What it was not let to on the network.
    refused: Vec<Refusal>,
    /// It goes on past errors, and may be further than what was read of it.
    goes_on: bool,
}

/// What a process evaluates.
#[derive(Default)]
struct Agenda {
    /// In this order; the first is at hand.
    queue: VecDeque<Task>,
    /// In an order of its own: by what it calls them.
    by_id: BTreeMap<Vec<u32>, Task>,
    /// What it calls the one at hand.
    id: Vec<u32>,
    /// To be evaluated by another process, first thing,
    first_of_another: Vec<Task>,
    /// and at any time.
    of_another: Vec<Task>,
}

impl Agenda {
    fn in_order(queue: VecDeque<Task>) -> Self {
        Self { queue, ..Self::default() }
    }

    fn by_number(tasks: VecDeque<Task>) -> Self {
        Self { by_id: (0..).map(|number| vec![number]).zip(tasks).collect(), ..Self::default() }
    }

    /// It begins with this one; `false`: nobody asked for it.
    fn begin(&mut self, json: &[u8]) -> bool {
        let Ok((id, _)) = read_json::<String>(json) else { return !self.queue.is_empty() };
        let Ok(id) = id.split('.').map(str::parse).collect::<Result<Vec<u32>, _>>() else { return false };
        let Some(task) = self.by_id.remove(&id) else { return false };
        self.queue.push_front(task);
        self.id = id;
        true
    }

    /// It turns to the members of the set that was at hand.
    fn add(&mut self, members: Vec<Task>, goes_on: bool) {
        if goes_on {
            let member = |number: u32| self.id.iter().copied().chain([number]).collect();
            self.by_id.extend((0..).map(member).zip(members));
        } else {
            for task in members.into_iter().rev() {
                self.queue.push_front(task);
            }
        }
    }

    /// Another process is to look at it.
    fn put_off(&mut self, task: Task) {
        if task.has_died { &mut self.first_of_another } else { &mut self.of_another }.push(task);
    }

    /// What is not done.
    fn left(self) -> VecDeque<Task> {
        let first = self.first_of_another.into_iter().chain(self.queue);
        first.chain(self.by_id.into_values()).chain(self.of_another).collect()
    }
}

/// Works through the queue.
pub(super) async fn drive<A: Answers>(
    engine: &Engine,
    events: &mpsc::Sender<EngineEvent>,
    mut queue: VecDeque<Task>,
    answers: &mut A,
) -> Result<(), EngineError> {
    let may_go_on = A::IS_OF_JOBSET && engine.nix.is_some();
    let mut driver = Driver { engine, events, answers, fruitless: 0, has_erred: false, may_go_on };
    while let Some(front) = queue.front() {
        // What is tried again must come first, which a process that goes on has no order for.
        let goes_on = driver.may_go_on && driver.has_erred && !front.has_died && queue.len() > 1;
        queue = if goes_on { driver.run_past_errors(queue).await? } else { driver.run(queue).await? };
    }
    Ok(())
}

struct Driver<'a, A> {
    engine: &'a Engine,
    events: &'a mpsc::Sender<EngineEvent>,
    answers: &'a mut A,
    fruitless: u32,
    /// Some attribute has an error, so others may.
    has_erred: bool,
    may_go_on: bool,
}

impl<A: Answers> Driver<'_, A> {
    /// One process that ends at the first error.
    async fn run(&mut self, queue: VecDeque<Task>) -> Result<VecDeque<Task>, EngineError> {
        let (engine, nonce) = (self.engine, nonce());
        let text = self.answers.expression(engine, &nonce, &queue);
        let process = Process::start(engine, &engine.nix_instantiate, engine.nix_arguments(), text).await?;
        let mut run = Run::new(process, Output::new(&nonce), Agenda::in_order(queue), false);
        if let Some(end) = self.follow(&mut run).await? {
            self.conclude(&mut run.agenda, end).await?;
        }
        Ok(run.agenda.left())
    }

    /// One process that goes on past errors.
    async fn run_past_errors(&mut self, queue: VecDeque<Task>) -> Result<VecDeque<Task>, EngineError> {
        let (engine, nonce) = (self.engine, nonce());
        let Some(program) = &engine.nix else { return Ok(queue) };
        let jobset = match Jobset::store(engine, &nonce, &queue).await {
            Ok(jobset) => jobset,
            Err(error) => {
                let text = format!("Nix is started anew behind each error: {}", harmonia_core::chain(&error));
                self.may_go_on = false;
                log(self.events, vec![text]).await?;
                return Ok(queue);
            }
        };
        let process = Process::start(engine, program, jobset.arguments(engine), String::new()).await?;
        let output = Output::of_jobset(&nonce, jobset.place.clone());
        let mut run = Run::new(process, output, Agenda::by_number(queue), true);
        if let Some(end) = self.follow(&mut run).await? {
            if end.stage == Stage::Outside && end.answered == 0 {
                // Not as it should be with this Nix. Whatever is wrong shows in the other way, too.
                self.may_go_on = false;
                let reason = describe(self.engine, &end);
                let reason = reason.lines().next().unwrap_or_default();
                log(self.events, vec![format!("Nix is started anew behind each error: {reason}")]).await?;
            } else {
                self.conclude(&mut run.agenda, end).await?;
            }
        }
        Ok(run.agenda.left())
    }

    /// Reads what a process says until it ends. `None`: its work is done, or another process is needed.
    async fn follow(&mut self, run: &mut Run) -> Result<Option<End>, EngineError> {
        while let Some(line) = run.process.stderr.next().await? {
            let mut printed = run.output.take(&line);
            if matches!(printed.marker, Some(('b', _))) && run.stage != Stage::Outside {
                let is_over = self.went_past_error(run, &mut printed).await?;
                log(self.events, printed.log).await?;
                if is_over {
                    return Ok(None);
                }
            } else {
                log(self.events, printed.log).await?;
            }
            match printed.marker {
                Some(('b', json)) => {
                    if !run.agenda.begin(&json) {
                        return Err(answered_too_much());
                    }
                    run.stage = Stage::Value;
                }
                Some(('u', _)) => run.stage = Stage::Value,
                Some(('t', _)) => run.stage = Stage::Doubtful,
                Some(('r', json)) => {
                    let text = |_| String::from_utf8_lossy(&json).into_owned();
                    run.found = Some(read_json(&json).map_or_else(text, |(path, _)| path));
                    run.stage = Stage::Limits;
                }
                Some((tag, json)) if self.answered(run, tag, &json).await? => {
                    log(self.events, run.output.release()).await?;
                    return Ok(None);
                }
                None | Some(_) => {}
            }
        }
        let last_words = run.output.last_words();
        let ended = run.process.ended(&last_words).await?;
        let error = run.output.error().filter(|_| matches!(ended.how, HowEnded::Exited(code) if code != 0));
        if error.is_none() || is_memory_short(self.engine, &ended) {
            log(self.events, run.output.release()).await?;
        }
        let is_done = run.agenda.queue.is_empty() && run.agenda.by_id.is_empty();
        Ok(Some(run.end(ended, error, last_words)).filter(|_| !is_done))
    }

    /// A marker that ends the attribute at hand. `true`: the process goes on with something else.
    async fn answered(&mut self, run: &mut Run, tag: char, json: &[u8]) -> Result<bool, EngineError> {
        let Some(task) = run.agenda.queue.pop_front() else { return Err(answered_too_much()) };
        run.stage = Stage::Outside;
        run.answered += 1;
        if let Some(drv_path) = run.found.take() {
            let limits = read_json(json).map(|(limits, _)| limits).unwrap_or_default();
            self.answers.derivation(task, evaluated(Some(drv_path), &limits).map_err(no_derivation)).await?;
            return Ok(false);
        }
        let next = self.answers.answer(task, tag, json).await?;
        run.agenda.add(next.tasks, run.goes_on);
        Ok(next.is_other)
    }

    /// It turned to another attribute, so that at hand has an error. `true`: it is to be stopped.
    async fn went_past_error(&mut self, run: &mut Run, printed: &mut Printed) -> Result<bool, EngineError> {
        let error = printed.before.take().map(|error| run.output.present(&error));
        if error.is_some() {
            printed.log.clear();
        } else {
            // Not as it should be with this Nix; another process tells what the error is.
            self.may_go_on = false;
        }
        let ended = Ended { how: HowEnded::Exited(1), peak_bytes: run.process.peak_bytes().await? };
        let end = run.end(ended, error, String::new());
        run.stage = Stage::Outside;
        let Some(task) = run.agenda.queue.pop_front() else { return Err(answered_too_much()) };
        match self.judge(task, end).await? {
            None => run.answered += 1,
            Some(task) => {
                let is_over = task.has_died;
                run.agenda.put_off(task);
                return Ok(is_over);
            }
        }
        Ok(false)
    }

    /// What a process that ended before its work was done leaves.
    async fn conclude(&mut self, agenda: &mut Agenda, end: End) -> Result<(), EngineError> {
        if end.stage == Stage::Outside {
            self.fruitless = if end.answered == 0 { self.fruitless + 1 } else { 0 };
            // Not at an attribute: the flake as a whole, or the engine, is broken.
            if matches!(end.ended.how, HowEnded::Exited(_)) && end.answered == 0 || self.fruitless >= FRUITLESS_MAX {
                return Err(EngineError::Failed(describe(self.engine, &end)));
            }
            return Ok(());
        }
        self.fruitless = 0;
        let Some(task) = agenda.queue.pop_front() else { return Ok(()) };
        if let Some(task) = self.judge(task, end).await? {
            agenda.put_off(task);
        }
        Ok(())
    }

    /// Whose fault it is that evaluating this task came to an end like that. `Some`: another process is to evaluate it.
    async fn judge(&mut self, mut task: Task, end: End) -> Result<Option<Task>, EngineError> {
        self.has_erred = true;
        let is_first = end.answered == 0;
        let may_be_of_others = match end.ended.how {
            HowEnded::Signal(_) => true,
            HowEnded::Exited(_) => {
                end.error.is_none() || (!is_first && is_memory_short(self.engine, &end.ended)) || end.shares_refusals()
            }
        };
        if may_be_of_others && !(task.has_died && is_first) {
            let reason = describe(self.engine, &end);
            let text = format!("{}: {reason}; trying it again in a fresh process\n", print_attr_path(&task.path));
            task.has_died = true;
            tell(self.events, EngineEvent::Log(text)).await?;
            return Ok(Some(task));
        }
        if end.stage == Stage::Doubtful && !task.is_set {
            return Ok(Some(Task { is_set: true, has_died: false, ..task }));
        }
        let reason = describe(self.engine, &end);
        if let (Stage::Limits, Some(found)) = (end.stage, end.found) {
            tell(self.events, EngineEvent::Warning(unreadable_limits(&task, &reason))).await?;
            self.answers.derivation(task, evaluated(Some(found), &Limits::default()).map_err(no_derivation)).await?;
        } else {
            let error = match end.error {
                Some(_) => reason,
                None => format!("error: {reason}, twice, while this attribute was evaluated"),
            };
            self.answers.failed(task, error).await?;
        }
        Ok(None)
    }
}

/// A process, and how far it is.
struct Run {
    process: Process,
    output: Output,
    agenda: Agenda,
    goes_on: bool,
    stage: Stage,
    answered: usize,
    found: Option<String>,
}

impl Run {
    fn new(process: Process, output: Output, agenda: Agenda, goes_on: bool) -> Self {
        Self { process, output, agenda, goes_on, stage: Stage::Outside, answered: 0, found: None }
    }

    /// It, or the attribute at hand, came to an end.
    fn end(&mut self, ended: Ended, error: Option<String>, last_words: String) -> End {
        let (stage, answered, goes_on) = (self.stage, self.answered, self.goes_on);
        End {
            ended,
            stage,
            found: self.found.take(),
            answered,
            error,
            last_words,
            refused: self.process.refused(),
            goes_on,
        }
    }
}

impl End {
    /// What was refused may have been refused to another attribute.
    fn shares_refusals(&self) -> bool {
        !self.refused.is_empty() && (self.goes_on || self.answered > 0)
    }
}

fn answered_too_much() -> EngineError {
    EngineError::Failed("the engine answered for more attributes than it was asked for".to_owned())
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

/// Unknown to the evaluated code, new for each process. As long as a revision.
pub(super) fn nonce() -> String {
    let (most, rest): (u128, u32) = rand::random();
    format!("{most:032x}{rest:08x}")
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
    let (stage, answered, found, goes_on) = (Stage::Outside, 0, None, false);
    let end = End { ended, stage, found, answered, error, last_words, refused, goes_on };
    Err(EngineError::Failed(describe(engine, &end)))
}
