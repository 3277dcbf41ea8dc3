//! From the engine's events to the database, in batches, so that builds start while evaluation goes on. Start at
//! [`Inserter::take_all`].
//!
//! What is wrong with an attribute is its own error, whoever finds it: a batch that is refused for what it says is queued
//! again attribute by attribute, and only those that are refused alone have the refusal as their error.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::Duration;

use harmonia_core::project_config::AttrName;
use harmonia_core::{ClaimToken, EvalId, chain};
use harmonia_db::{AskedLimits, AttrResult, Db, DbError, GraphAttr, GraphBatch, GraphDerivation};
use harmonia_nix::StorePath;
use harmonia_nix::worker_protocol::ClientError;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::Settings;
use super::engine::{EngineEvent, EngineLine, Evaluated, shorten_error};
use super::graph::{GraphError, Planned, WalkBounds, Walker};
use super::traces::TraceSearch;
use super::upload::{UploadError, Uploader};
use crate::store_daemon::Connection;

/// A batch is full with that many attributes when nothing more has come meanwhile,
const BATCH_ATTRS: usize = 50;
/// or with that many, or errors of so many bytes, when the engine is ahead: what a batch costs whatever is in it, a
/// transaction and calls, is shared by more then.
const BATCH_ATTRS_MAX: usize = 400;
const BATCH_ERRORS_BYTES: usize = 4 << 20;
/// or that many derivations, or those that name so many paths together,
const BATCH_DERIVATIONS: usize = 5_000;
const BATCH_REFERENCES: usize = 200_000;
/// or when its first attribute has waited that long.
const BATCH_AGE: Duration = Duration::from_secs(2);
/// The engine's output reaches the page in pieces of about that size or age.
const LOG_BYTES: usize = 32 << 10;
const LOG_AGE: Duration = Duration::from_millis(500);
/// How often a batch is completed with what the database says is missing.
const MISSING_ROUNDS_MAX: usize = 5;

/// Why results cannot be queued.
#[derive(Debug, thiserror::Error)]
pub(super) enum InsertError {
    /// The claim was lost.
    #[error("the evaluation was cancelled or given to another evaluator")]
    Lost,
    /// The database.
    #[error("the database failed")]
    Database(#[source] DbError),
    /// Uploading.
    #[error(transparent)]
    Upload(#[from] UploadError),
    /// Reading derivations.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// The daemon does not hold what was instantiated.
    #[error("could not keep derivations from the store's garbage collector")]
    Daemon(#[source] ClientError),
    /// Something below cannot be built.
    #[error("{0}")]
    Unusable(String),
    /// The database goes on asking.
    #[error("inputs of derivations are missing again and again ({0}, for one)")]
    Missing(StorePath),
}

impl From<DbError> for InsertError {
    fn from(error: DbError) -> Self {
        match error {
            DbError::StaleClaim => Self::Lost,
            other => Self::Database(other),
        }
    }
}

impl InsertError {
    /// Whether it is about what was to be queued, and not about whom that was said to: then the same attribute would be
    /// refused again, and others need not be.
    fn is_about_content(&self) -> bool {
        match self {
            Self::Lost => false,
            Self::Database(error) => error.refuses_values(),
            Self::Upload(error) => error.is_about_content(),
            Self::Graph(error) => error.is_about_content(),
            Self::Daemon(error) => matches!(error, ClientError::Daemon(_)),
            Self::Unusable(_) | Self::Missing(_) => true,
        }
    }
}

/// What an attribute evaluated to, under the name by which it is kept.
#[derive(Clone)]
struct Answer {
    attr: String,
    result: Result<Evaluated, String>,
}

impl Answer {
    fn of(line: EngineLine) -> Self {
        let name = AttrName::of(&line.attr_path);
        let result = match name.problem() {
            Some(problem) => Err(format!("error: {problem}")),
            None => line.result,
        };
        Self { attr: name.text, result }
    }
}

/// Inserts for one evaluation.
pub(super) struct Inserter<'a> {
    db: &'a Db,
    eval: EvalId,
    token: &'a ClaimToken,
    /// Holds the temporary roots of everything that was instantiated, as long as it lasts.
    connection: Connection,
    walker: Walker<'a>,
    uploader: Uploader<'a>,
    /// Where results may be shown for other commits.
    traces: Option<TraceSearch>,
    answers: Vec<Answer>,
    log: String,
    warnings: Vec<String>,
    /// Names that must have a result or an error in the end: told before any is evaluated, and taken back only when the
    /// engine says that they are sets, or nothing to build.
    expected: BTreeSet<String>,
    /// What was taken back. Engines of several processes tell in no order: it may be named as a member only then.
    taken_back: HashSet<String>,
}

impl<'a> Inserter<'a> {
    pub(super) fn new(
        settings: &'a Settings,
        eval: EvalId,
        token: &'a ClaimToken,
        connection: Connection,
        traces: Option<TraceSearch>,
    ) -> Self {
        let options = &settings.options;
        let root = options.store_root.clone();
        Self {
            db: &options.db,
            eval,
            token,
            connection,
            walker: Walker::new(
                &options.db,
                eval,
                token,
                root.clone(),
                &settings.upstream,
                WalkBounds {
                    derivations_max: options.bounds.derivations_max,
                    bytes_max: options.bounds.graph_bytes_max / (options.max_evals as u64 + 1),
                },
            ),
            uploader: Uploader::new(
                &options.db,
                &options.signer,
                eval,
                token,
                root,
                settings.scratch_dir(),
                options.bounds.source_bytes_max,
            ),
            traces,
            answers: Vec::new(),
            log: String::new(),
            warnings: Vec::new(),
            expected: BTreeSet::new(),
            taken_back: HashSet::new(),
        }
    }

    /// Whether something of what was inserted contains the commit's hash or date, if that was looked for and is known.
    pub(super) fn embeds_commit(&self) -> Option<bool> {
        self.traces.as_ref()?.embeds_commit()
    }

    /// Names for which there must be a result or an error.
    pub(super) fn expected(&self) -> &BTreeSet<String> {
        &self.expected
    }

    /// Takes events until the engine is done, and inserts everything.
    pub(super) async fn take_all(&mut self, mut events: mpsc::Receiver<EngineEvent>) -> Result<(), InsertError> {
        let far = Duration::from_hours(24);
        let (mut batch_due, mut log_due) = (Instant::now() + far, Instant::now() + far);
        loop {
            let event = tokio::select! {
                event = events.recv() => event,
                () = tokio::time::sleep_until(log_due) => {
                    self.flush_log().await?;
                    log_due = Instant::now() + far;
                    continue;
                }
                () = tokio::time::sleep_until(batch_due) => {
                    self.flush_answers().await?;
                    batch_due = Instant::now() + far;
                    continue;
                }
            };
            match event {
                None => break,
                Some(EngineEvent::Expected(names)) => self.expect(&names),
                Some(EngineEvent::Set { path, members }) => {
                    self.take_back(&path);
                    self.expect(&members);
                }
                Some(EngineEvent::LeftOut { path, warning }) => {
                    self.take_back(&path);
                    self.warnings.extend(warning);
                    log_due = log_due.min(Instant::now() + LOG_AGE);
                }
                Some(EngineEvent::Line(line)) => {
                    let mut answer = Answer::of(line);
                    if let Ok(found) = &answer.result {
                        // At once: the process that instantiated it may end any moment, and its own roots with it.
                        match self.connection.add_temp_root(&found.drv_path).await {
                            Ok(()) => {}
                            Err(ClientError::Daemon(error)) => answer.result = Err(format!("error: {}", chain(&error))),
                            Err(error) => return Err(InsertError::Daemon(error)),
                        }
                    }
                    if self.answers.is_empty() {
                        batch_due = Instant::now() + BATCH_AGE;
                    }
                    self.answers.push(answer);
                    if is_full(&self.answers, !events.is_empty()) {
                        self.flush_answers().await?;
                        batch_due = Instant::now() + far;
                    }
                }
                Some(EngineEvent::Log(text)) => {
                    if self.log.is_empty() {
                        log_due = Instant::now() + LOG_AGE;
                    }
                    if let Some(warning) = warning_in(&text) {
                        self.warnings.push(warning);
                    }
                    self.log.push_str(&text);
                    if self.log.len() >= LOG_BYTES {
                        self.flush_log().await?;
                    }
                }
                Some(EngineEvent::Warning(warning)) => {
                    self.warnings.push(warning);
                    log_due = log_due.min(Instant::now() + LOG_AGE);
                }
            }
        }
        self.flush_log().await?;
        self.flush_answers().await
    }

    fn expect(&mut self, names: &[Vec<String>]) {
        let names = names.iter().map(|path| AttrName::of(path).text);
        self.expected.extend(names.filter(|name| !self.taken_back.contains(name)));
    }

    fn take_back(&mut self, path: &[String]) {
        let name = AttrName::of(path).text;
        self.expected.remove(&name);
        self.taken_back.insert(name);
    }

    async fn flush_log(&mut self) -> Result<(), InsertError> {
        if !self.log.is_empty() {
            let text = std::mem::take(&mut self.log);
            self.db.append_evaluation_log(self.eval, self.token, &text).await?;
        }
        if !self.warnings.is_empty() {
            let warnings = std::mem::take(&mut self.warnings);
            self.db.add_warnings(self.eval, self.token, &warnings).await?;
        }
        Ok(())
    }

    async fn flush_answers(&mut self) -> Result<(), InsertError> {
        let answers = std::mem::take(&mut self.answers);
        let refusal = match self.queue(&answers).await {
            Err(error) if error.is_about_content() => error,
            other => return other,
        };
        if let [answer] = &answers[..] {
            return self.queue(&[refused(answer, &refusal)]).await;
        }
        for answer in &answers {
            match self.queue(std::slice::from_ref(answer)).await {
                Err(error) if error.is_about_content() => self.queue(&[refused(answer, &error)]).await?,
                other => other?,
            }
        }
        Ok(())
    }

    /// Attributes with everything below them; all or, apart from what is below, none.
    async fn queue(&mut self, answers: &[Answer]) -> Result<(), InsertError> {
        if answers.is_empty() {
            return Ok(());
        }
        let mut problems: HashMap<StorePath, String> = HashMap::new();
        let mut roots: Vec<StorePath> = Vec::new();
        let mut asked: Vec<(StorePath, AskedLimits)> = Vec::new();
        let found = || answers.iter().filter_map(|answer| answer.result.as_ref().ok());
        self.walker.prefetch(found().map(|found| found.drv_path.clone()).collect()).await;
        for found in found() {
            // What an attribute calls its derivation need not be one.
            match self.walker.check(&found.drv_path).await {
                None => {
                    roots.push(found.drv_path.clone());
                    asked.push((found.drv_path.clone(), asked_limits(found)));
                }
                Some(problem) => drop(problems.insert(found.drv_path.clone(), problem)),
            }
        }
        let walked = self.walker.walk(&roots, &asked, false).await?;
        problems.extend(walked.refused);
        roots.retain(|root| !problems.contains_key(root));
        let mut attrs = Vec::with_capacity(answers.len());
        for Answer { attr, result } in answers {
            let result = match result {
                Err(error) => AttrResult::Error(error.clone()),
                Ok(found) => match problems.get(&found.drv_path) {
                    Some(problem) => AttrResult::Error(format!("error: {problem}")),
                    None => AttrResult::Derivation { drv_path: found.drv_path.clone(), limits: asked_limits(found) },
                },
            };
            attrs.push(GraphAttr { attr: attr.clone(), result });
        }
        if let Some(traces) = &mut self.traces {
            traces.search_texts(attrs.iter().map(|attr| attr.attr.as_str()));
        }
        self.uploader.derivations(&mut self.walker, walked.only_files.iter()).await?;
        let last = self.insert_before(walked.derivations, &asked).await?;
        self.insert(last, attrs, &asked).await?;
        // Nothing waits for this: what was inserted is built meanwhile.
        if let Some(traces) = &mut self.traces {
            traces.search(roots).await;
        }
        Ok(())
    }

    /// What jobs lean on that wait for it (see [`super::walks`]): no attributes.
    pub(super) async fn insert_below(&mut self, roots: &[StorePath]) -> Result<(), InsertError> {
        let walked = self.walker.walk(roots, &[], true).await?;
        if let Some((_, problem)) = walked.refused.into_iter().next() {
            return Err(InsertError::Unusable(problem));
        }
        self.uploader.derivations(&mut self.walker, walked.only_files.iter()).await?;
        let last = self.insert_before(walked.derivations, &[]).await?;
        if last.is_empty() { Ok(()) } else { self.insert(last, Vec::new(), &[]).await }
    }

    /// Inserts all but the last batch, which is returned.
    async fn insert_before(
        &mut self,
        planned: Vec<Planned>,
        asked: &[(StorePath, AskedLimits)],
    ) -> Result<Vec<Planned>, InsertError> {
        let mut batches = batches(planned);
        let last = batches.pop().unwrap_or_default();
        for batch in batches {
            self.insert(batch, Vec::new(), asked).await?;
        }
        Ok(last)
    }

    /// Uploads, then inserts, what belongs together; completes it with whatever the database misses.
    async fn insert(
        &mut self,
        planned: Vec<Planned>,
        attrs: Vec<GraphAttr>,
        asked: &[(StorePath, AskedLimits)],
    ) -> Result<(), InsertError> {
        let derivations = self.walker.read_planned(&planned).await?;
        self.upload(&derivations).await?;
        let mut batch = GraphBatch { derivations, attrs, holds: Vec::new(), asked: asked.to_vec() };
        for _ in 0..MISSING_ROUNDS_MAX {
            let outcome = self.db.insert_batch(self.eval, self.token, &batch).await?;
            let Some(missing) = outcome.missing.first().cloned() else {
                self.walker.settle(&batch.derivations);
                return Ok(());
            };
            // Something was available when it was asked for and is not any more (or a job was withdrawn meanwhile).
            let more = self.walker.walk(&outcome.missing, asked, true).await?;
            if let Some((_, problem)) = more.refused.into_iter().next() {
                return Err(InsertError::Unusable(problem));
            }
            if more.derivations.is_empty() {
                return Err(InsertError::Missing(missing));
            }
            self.uploader.derivations(&mut self.walker, more.only_files.iter()).await?;
            let known: BTreeSet<StorePath> = more.derivations.iter().map(|planned| planned.drv_path.clone()).collect();
            batch.derivations.retain(|derivation| !known.contains(&derivation.drv_path));
            // Few as a rule; all but the last batch of many go first, as they would have.
            let last = Box::pin(self.insert_before(more.derivations, asked)).await?;
            let last = self.walker.read_planned(&last).await?;
            self.upload(&last).await?;
            batch.derivations.splice(0..0, last);
        }
        let first = batch.derivations.swap_remove(0).drv_path;
        Err(InsertError::Missing(first))
    }

    async fn upload(&mut self, derivations: &[GraphDerivation]) -> Result<(), InsertError> {
        self.uploader.derivations(&mut self.walker, derivations.iter().map(|derivation| &derivation.drv_path)).await?;
        let sources: BTreeSet<StorePath> = derivations
            .iter()
            .filter(|derivation| !derivation.available)
            .flat_map(|derivation| derivation.sources.iter().cloned())
            .collect();
        Ok(self.uploader.sources(&mut self.connection, sources).await?)
    }
}

/// So many at a time as are held in memory with all that their files say.
fn batches(planned: Vec<Planned>) -> Vec<Vec<Planned>> {
    let mut batches: Vec<Vec<Planned>> = Vec::new();
    let mut references = 0;
    for derivation in planned {
        references += derivation.references as usize;
        match batches.last_mut() {
            Some(batch) if batch.len() < BATCH_DERIVATIONS && references <= BATCH_REFERENCES => batch.push(derivation),
            _ => {
                references = derivation.references as usize;
                batches.push(vec![derivation]);
            }
        }
    }
    batches
}

/// Whether these attributes are a batch, with more to come at once or not.
fn is_full(answers: &[Answer], is_more_there: bool) -> bool {
    let error_bytes =
        || answers.iter().filter_map(|answer| answer.result.as_ref().err()).map(String::len).sum::<usize>();
    answers.len() >= if is_more_there { BATCH_ATTRS_MAX } else { BATCH_ATTRS }
        || (answers.len() >= BATCH_ATTRS && error_bytes() >= BATCH_ERRORS_BYTES)
}

/// What an attribute asks for its own derivation.
fn asked_limits(found: &Evaluated) -> AskedLimits {
    AskedLimits { timeout_s: found.timeout_s, max_silent_s: found.max_silent_s }
}

fn refused(answer: &Answer, refusal: &InsertError) -> Answer {
    Answer { attr: answer.attr.clone(), result: Err(shorten_error(&format!("error: {}", chain(refusal)))) }
}

/// A line by which Nix or nixpkgs warns.
fn warning_in(text: &str) -> Option<String> {
    let line = text.lines().next()?.trim();
    let line = line.strip_prefix("trace: ").unwrap_or(line);
    let warning = ["warning: ", "evaluation warning: "].iter().find_map(|prefix| line.strip_prefix(prefix))?;
    // Nix says so when its processes wait for each other, which they do all the time: that is in the log, and for nobody.
    let is_of_nix = warning.strip_prefix("error: ").unwrap_or(warning).starts_with("SQLite database ");
    (!(is_of_nix && warning.contains("' is busy"))).then(|| warning.to_owned())
}

#[cfg(test)]
mod tests {
    use harmonia_nix::StorePath;

    use super::{
        Answer, BATCH_ATTRS, BATCH_ATTRS_MAX, BATCH_DERIVATIONS, BATCH_REFERENCES, Planned, batches, is_full,
        warning_in,
    };

    #[test]
    fn batches_hold_so_many_derivations_and_so_much_of_each() {
        let lengths = |references: &[u32]| -> Vec<usize> {
            let planned = |references: &u32| Planned {
                drv_path: StorePath::from_base_name(&format!("{:032}-x.drv", 0)).expect("a path"),
                available: false,
                path_length: 1,
                references: *references,
            };
            batches(references.iter().map(planned).collect()).iter().map(Vec::len).collect()
        };
        assert!(lengths(&[]).is_empty());
        assert_eq!(lengths(&vec![1; BATCH_DERIVATIONS + 2]), [BATCH_DERIVATIONS, 2]);
        let half = u32::try_from(BATCH_REFERENCES / 2).expect("fits");
        assert_eq!(lengths(&[half, half, 1, half, half + 1, 5 * half, 1]), [2, 2, 1, 1, 1]);
    }

    #[test]
    fn batches_are_larger_when_the_engine_is_ahead() {
        let answers = |count: usize, bytes: usize| -> Vec<Answer> {
            let answer = |number| Answer { attr: format!("a{number}"), result: Err("x".repeat(bytes)) };
            (0..count).map(answer).collect()
        };
        assert!(!is_full(&answers(BATCH_ATTRS - 1, 1), false) && is_full(&answers(BATCH_ATTRS, 1), false));
        assert!(!is_full(&answers(BATCH_ATTRS_MAX - 1, 1), true) && is_full(&answers(BATCH_ATTRS_MAX, 1), true));
        assert!(is_full(&answers(BATCH_ATTRS + 14, 64 << 10), true), "long errors");
    }

    #[test]
    fn warnings_are_found() {
        assert_eq!(warning_in("trace: warning: old option\n").as_deref(), Some("old option"));
        assert_eq!(warning_in("evaluation warning: x\n").as_deref(), Some("x"));
        assert_eq!(warning_in("warning: error: SQLite database '/r/db.sqlite' is busy\n"), None);
        assert_eq!(warning_in("warning: SQLite database '/r/db.sqlite' is busy (SQLITE_PROTOCOL)\n"), None);
        assert_eq!(warning_in("warning: the database is busy\n").as_deref(), Some("the database is busy"));
        assert_eq!(warning_in("building '/nix/store/x'...\n"), None);
    }
}
