//! From the engine's events to the database, in batches, so that builds start while evaluation goes on. Start at
//! [`Inserter::take_all`].

use std::collections::BTreeSet;
use std::time::Duration;

use harmonia_core::project_config::print_attr_path;
use harmonia_core::{ClaimToken, EvalId};
use harmonia_db::{AttrResult, Db, DbError, GraphAttr, GraphBatch, GraphDerivation};
use harmonia_nix::StorePath;
use harmonia_nix::worker_protocol::ClientError;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::Settings;
use super::engine::{EngineEvent, EngineLine};
use super::graph::{GraphError, Walker};
use super::traces::TraceSearch;
use super::upload::{UploadError, Uploader};
use crate::store_daemon::Connection;

/// A batch is full with that many attributes,
const BATCH_ATTRS: usize = 50;
/// or that many derivations,
const BATCH_DERIVATIONS: usize = 5_000;
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
    lines: Vec<EngineLine>,
    log: String,
    warnings: Vec<String>,
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
            walker: Walker::new(&options.db, eval, token, root.clone(), &settings.upstream),
            uploader: Uploader::new(&options.db, &options.signer, eval, token, root, settings.scratch_dir()),
            traces,
            lines: Vec::new(),
            log: String::new(),
            warnings: Vec::new(),
        }
    }

    /// Whether something of what was inserted contains the commit's hash or date, if that was looked for and is known.
    pub(super) fn embeds_commit(&self) -> Option<bool> {
        self.traces.as_ref()?.embeds_commit()
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
                    self.flush_lines().await?;
                    batch_due = Instant::now() + far;
                    continue;
                }
            };
            match event {
                None => break,
                Some(EngineEvent::Line(line)) => {
                    if let Ok(found) = &line.result {
                        // At once: the process that instantiated it may end any moment, and its own roots with it.
                        self.connection.add_temp_root(&found.drv_path).await.map_err(InsertError::Daemon)?;
                    }
                    if self.lines.is_empty() {
                        batch_due = Instant::now() + BATCH_AGE;
                    }
                    self.lines.push(line);
                    if self.lines.len() >= BATCH_ATTRS {
                        self.flush_lines().await?;
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
        self.flush_lines().await
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

    async fn flush_lines(&mut self) -> Result<(), InsertError> {
        let lines = std::mem::take(&mut self.lines);
        let mut roots: Vec<StorePath> = Vec::new();
        let mut attrs = Vec::with_capacity(lines.len());
        let mut timeouts = Vec::new();
        for line in lines {
            let attr = print_attr_path(&line.attr_path);
            let result = match line.result {
                // What an attribute calls its derivation need not be one.
                Ok(found) if self.walker.check(&found.drv_path).await.is_err() => {
                    AttrResult::Error(format!("error: {} is no derivation in the store", found.drv_path))
                }
                Ok(found) => {
                    roots.push(found.drv_path.clone());
                    if found.timeout_s.is_some() || found.max_silent_s.is_some() {
                        timeouts.push(found.clone());
                    }
                    AttrResult::Derivation { drv_path: found.drv_path }
                }
                Err(error) => AttrResult::Error(error),
            };
            attrs.push(GraphAttr { attr, result });
        }
        if attrs.is_empty() {
            return Ok(());
        }
        if let Some(traces) = &mut self.traces {
            traces.search_texts(attrs.iter().map(|attr| attr.attr.as_str()));
        }
        let mut walked = self.walker.walk(&roots, false).await?;
        for found in timeouts {
            for derivation in walked.derivations.iter_mut().filter(|derivation| derivation.drv_path == found.drv_path) {
                derivation.timeout_s = found.timeout_s;
                derivation.max_silent_s = found.max_silent_s;
            }
        }
        self.uploader.derivations(&self.walker, walked.only_files.iter()).await?;
        let mut rest = walked.derivations;
        while rest.len() > BATCH_DERIVATIONS {
            let tail = rest.split_off(BATCH_DERIVATIONS);
            self.insert(std::mem::replace(&mut rest, tail), Vec::new()).await?;
        }
        self.insert(rest, attrs).await?;
        // Nothing waits for this: what was inserted is built meanwhile.
        if let Some(traces) = &mut self.traces {
            traces.search(roots).await;
        }
        Ok(())
    }

    /// What jobs lean on that wait for it (see [`super::walks`]): no attributes.
    pub(super) async fn insert_below(&mut self, roots: &[StorePath]) -> Result<(), InsertError> {
        let walked = self.walker.walk(roots, true).await?;
        self.uploader.derivations(&self.walker, walked.only_files.iter()).await?;
        let mut rest = walked.derivations;
        while rest.len() > BATCH_DERIVATIONS {
            let tail = rest.split_off(BATCH_DERIVATIONS);
            self.insert(std::mem::replace(&mut rest, tail), Vec::new()).await?;
        }
        if rest.is_empty() { Ok(()) } else { self.insert(rest, Vec::new()).await }
    }

    /// Uploads, then inserts, what belongs together; completes it with whatever the database misses.
    async fn insert(&mut self, derivations: Vec<GraphDerivation>, attrs: Vec<GraphAttr>) -> Result<(), InsertError> {
        self.upload(&derivations).await?;
        let mut batch = GraphBatch { derivations, attrs, holds: Vec::new() };
        for _ in 0..MISSING_ROUNDS_MAX {
            let outcome = self.db.insert_batch(self.eval, self.token, &batch).await?;
            let Some(missing) = outcome.missing.first().cloned() else {
                self.walker.settle(&batch.derivations);
                return Ok(());
            };
            // Something was available when it was asked for and is not any more (or a job was withdrawn meanwhile).
            let more = self.walker.walk(&outcome.missing, true).await?;
            if more.derivations.is_empty() {
                return Err(InsertError::Missing(missing));
            }
            self.uploader.derivations(&self.walker, more.only_files.iter()).await?;
            self.upload(&more.derivations).await?;
            let known: BTreeSet<StorePath> =
                more.derivations.iter().map(|derivation| derivation.drv_path.clone()).collect();
            batch.derivations.retain(|derivation| !known.contains(&derivation.drv_path));
            batch.derivations.splice(0..0, more.derivations);
        }
        let first = batch.derivations.swap_remove(0).drv_path;
        Err(InsertError::Missing(first))
    }

    async fn upload(&mut self, derivations: &[GraphDerivation]) -> Result<(), InsertError> {
        self.uploader.derivations(&self.walker, derivations.iter().map(|derivation| &derivation.drv_path)).await?;
        let sources: BTreeSet<StorePath> = derivations
            .iter()
            .filter(|derivation| !derivation.available)
            .flat_map(|derivation| derivation.sources.iter().cloned())
            .collect();
        Ok(self.uploader.sources(&mut self.connection, sources).await?)
    }
}

/// A line by which Nix or nixpkgs warns.
fn warning_in(text: &str) -> Option<String> {
    let line = text.lines().next()?.trim();
    let line = line.strip_prefix("trace: ").unwrap_or(line);
    ["warning: ", "evaluation warning: "].iter().find_map(|prefix| line.strip_prefix(prefix)).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::warning_in;

    #[test]
    fn warnings_are_found() {
        assert_eq!(warning_in("trace: warning: old option\n").as_deref(), Some("old option"));
        assert_eq!(warning_in("evaluation warning: x\n").as_deref(), Some("x"));
        assert_eq!(warning_in("building '/nix/store/x'...\n"), None);
    }
}
