//! One evaluation from claim to end. Start at [`evaluate`].

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use harmonia_core::api::Source;
use harmonia_core::project_config::{ParsedConfig, directory, parse_attr_path, print_attr_path};
use harmonia_core::reuse::{self, Traces};
use harmonia_core::{ClaimToken, EvalId};
use harmonia_db::{ClaimedEvaluation, CommitFacts, Db, DbError};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::Settings;
use super::credential::{CredentialError, clone_credential};
use super::engine::{Engine, EngineError, EngineEvent, EngineLine, Enumeration, Missing, Task, tell};
use super::insert::{InsertError, Inserter};
use super::source::{self, AddTreeError, Checkout, GitError, MergeWanted, Origin, ReadConfigError, Wanted};
use super::traces::TraceSearch;
use super::upload::UploadError;
use crate::signer_client::SignerError;
use crate::store_daemon::{ConnectError, Connection};

/// What the engine may be ahead of the database.
const EVENTS_MAX: usize = 256;
/// Names that are told at once.
const EXPECTED_AT_ONCE: usize = 1_000;

/// How long an evaluation waits for a submodule's server that is away before it goes on without.
const SUBMODULE_PATIENCE: Duration = Duration::from_mins(15);

/// Why an evaluation as a whole failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum EvaluateError {
    /// The claim was lost: nothing more to do or say.
    #[error("the evaluation was cancelled or given to another evaluator")]
    Lost,
    /// The database is away: the evaluation goes back to the queue.
    #[error("the database failed")]
    Database(#[source] DbError),
    /// The bundle is gone or broken.
    #[error("the bundle that was sent is {0}: run the command again")]
    Bundle(&'static str),
    /// Temporary files.
    #[error("could not write temporary files; is the disk full?")]
    Disk(#[source] std::io::Error),
    /// The commit cannot be had.
    #[error("could not get the commit")]
    Git(#[from] GitError),
    /// The evaluator has other things to do.
    #[error("the repository could not be fetched within {} s; a big one may need a longer eval.fetch_timeout", .0.as_secs())]
    SlowServer(Duration),
    /// A stranger's code on a machine without walls.
    #[error(
        "pull requests are only evaluated in a sandbox, and this machine denies one; the evaluator's log says which wall is missing"
    )]
    NoSandbox,
    /// A private repository, and nobody gives the credential.
    #[error("could not get a credential for the repository")]
    Credential(#[source] CredentialError),
    /// The project's file.
    #[error("the project's configuration cannot be used")]
    Config(#[from] ReadConfigError),
    /// The folder that was sent along.
    #[error("the folder of the flake {0}")]
    FlakeDir(String),
    /// The attributes asked for.
    #[error("'{attr}' {problem}")]
    Attr { attr: String, problem: harmonia_core::project_config::ParseAttrPathError },
    /// The store daemon.
    #[error("could not reach the store daemon")]
    Connect(#[from] ConnectError),
    /// The source tree.
    #[error("could not add the source tree to the store")]
    AddTree(#[from] AddTreeError),
    /// The engine.
    #[error("the flake could not be evaluated")]
    Engine(#[from] EngineError),
    /// Nothing to build.
    #[error("{0}")]
    Nothing(String),
    /// Uploading or inserting.
    #[error("could not queue what was evaluated")]
    Insert(#[from] InsertError),
    /// Time is over.
    #[error("the evaluation took longer than {} s and was stopped; raise 'eval-timeout' or the operator's [eval] timeout", .0.as_secs())]
    Timeout(Duration),
    /// Time is over before there was anything to evaluate.
    #[error("fetching the commit took longer than the {} s that an evaluation may take; raise the operator's [eval] timeout, or mend the connection to its git server", .0.as_secs())]
    FetchTimeout(Duration),
    /// The engine left out names that it was asked for.
    #[error("the engine gave neither a result nor an error for {0}")]
    Incomplete(String),
}

impl From<DbError> for EvaluateError {
    fn from(error: DbError) -> Self {
        match error {
            DbError::StaleClaim => Self::Lost,
            other => Self::Database(other),
        }
    }
}

impl EvaluateError {
    /// Sorts out what says nothing about the commit.
    pub(super) fn disposition(&self) -> Disposition {
        match self {
            Self::Lost
            | Self::Insert(InsertError::Lost | InsertError::Upload(UploadError::Signer(SignerError::StaleClaim)))
            | Self::Credential(CredentialError::Lost) => Disposition::Drop,
            Self::Database(error)
            | Self::Insert(InsertError::Database(error))
            | Self::Credential(CredentialError::Database(error))
                if error.is_transient() =>
            {
                Disposition::Release
            }
            Self::Git(GitError::Unavailable { retry_after, .. }) => Disposition::PutOff { asked: *retry_after },
            // So it has the slot for half of the time at most.
            Self::SlowServer(taken) => Disposition::PutOff { asked: Some(*taken) },
            Self::Credential(error) if error.is_temporary() => Disposition::PutOff { asked: error.retry_after() },
            Self::Insert(InsertError::Upload(UploadError::Signer(error))) if error.is_transient() => {
                Disposition::PutOff { asked: None }
            }
            // What the daemon refuses is the error of an attribute; anything else is that it is not there any more.
            Self::Connect(_) | Self::Insert(InsertError::Daemon(_) | InsertError::Upload(UploadError::Daemon(_))) => {
                Disposition::PutOff { asked: None }
            }
            _ => Disposition::Fail,
        }
    }
}

/// What becomes of an evaluation that did not come to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Disposition {
    /// Nothing: it is not ours any more.
    Drop,
    /// Back to the queue, for anybody.
    Release,
    /// Back to the queue, for later: something that it needs is away.
    PutOff {
        /// The pause that the other side asked for.
        asked: Option<Duration>,
    },
    /// Failed.
    Fail,
}

/// Fetches, evaluates and queues. Dropping the future stops the engine at once.
pub(super) async fn evaluate(
    settings: &Settings,
    claimed: &ClaimedEvaluation,
    token: &ClaimToken,
) -> Result<(), EvaluateError> {
    let (options, eval) = (&settings.options, claimed.id);
    let db = &options.db;
    if claimed.pull_request.is_some() && settings.confinement.helper.is_none() {
        return Err(EvaluateError::NoSandbox);
    }
    let start = Instant::now();
    let (origin, _bundle) = origin(settings, claimed).await?;
    let time = match &origin {
        Origin::Url(_) => options.fetch_timeout.min(options.timeout),
        Origin::Bundle(_) => options.timeout,
    };
    let checkout = match tokio::time::timeout(time, fetch(settings, claimed, token, &origin)).await {
        Ok(fetched) => fetched?,
        Err(_) if time < options.timeout => return Err(EvaluateError::SlowServer(time)),
        Err(_) => return Err(EvaluateError::FetchTimeout(options.timeout)),
    };
    let mut parsed = source::read_config(checkout.dir.path())?;
    if let Some(merged) = &checkout.merged {
        source::bind_to_base(&mut parsed, merged.base_config.as_ref());
    }
    let ParsedConfig { mut config, mut warnings } = parsed;
    if let Some(sent) = &checkout.flake_dir {
        config.flake_dir = directory(sent.clone()).map_err(EvaluateError::FlakeDir)?;
    }
    warnings.extend(checkout.warnings.iter().cloned());
    if !warnings.is_empty() {
        db.add_warnings(eval, token, &warnings).await?;
    }
    if claimed.has_forge && db.set_tree_branches(eval, token, &config.branches).await? {
        tracing::info!(project = %claimed.project_name, branches = ?config.branches, "The tree names other branches to build");
    }
    if super::skip::skip(settings, claimed, token, &checkout.commit, &config.paths).await? {
        return Ok(());
    }
    let timeout = config.eval_timeout.map_or(options.timeout, |asked| asked.min(options.timeout));
    let work = async {
        let mut connection = settings.daemon.connect().await?;
        let tree = source::add_tree(&mut connection, checkout.dir.path()).await?;
        // Errors name files below this path; reports show them as files of the repository.
        db.set_evaluation_source(eval, token, &tree.path).await?;
        let commit = Some(checkout.commit.as_str()).filter(|commit| commit.len() == 40 && !claimed.dirty);
        let flake = source::pin(
            &mut connection,
            &tree,
            checkout.dir.path(),
            &config.flake_dir,
            commit,
            checkout.committed_at_s,
        )
        .await?;
        let engine = settings.engine(flake, config.allow_ifd);
        let prefixes: Vec<Vec<String>> = match &claimed.attrs {
            None => config.attrs.clone(),
            Some(attrs) => attrs
                .iter()
                .map(|attr| {
                    parse_attr_path(attr)
                        .map_err(|problem| EvaluateError::Attr { attr: attr.chars().take(100).collect(), problem })
                })
                .collect::<Result<_, _>>()?,
        };
        let traces = may_be_reused(claimed)
            .then(|| Traces::of(&checkout.commit, checkout.committed_at_s))
            .and_then(|traces| TraceSearch::new(&traces, options.store_root.clone()));
        let is_named = config.attrs_are_named || claimed.attrs.is_some();
        let allow_empty = config.allow_empty;
        let run = Run { settings, claimed, token, engine, prefixes, is_named, allow_empty, traces };
        run.run(config.systems.clone(), connection).await
    };
    // What the operator allows is for all of it, fetching included; what the tree asks for, for what it can know of.
    let left = timeout.min(options.timeout.saturating_sub(start.elapsed()));
    tokio::time::timeout(left, work).await.map_err(|_| EvaluateError::Timeout(timeout))?
}

/// Whether a frontend would show the results for another commit with the same tree, so that it is worth looking whether they
/// depend on the commit.
fn may_be_reused(claimed: &ClaimedEvaluation) -> bool {
    claimed.has_forge
        && claimed.reuse_trees
        && claimed.pull_request.is_none()
        && claimed.attrs.is_none()
        && !claimed.dirty
        && matches!(claimed.source, Source::Git { .. })
}

/// The commit's files; of a pull request its head merged onto its base. What was fetched is recorded.
async fn fetch(
    settings: &Settings,
    claimed: &ClaimedEvaluation,
    token: &ClaimToken,
    origin: &Origin,
) -> Result<Checkout, EvaluateError> {
    let (options, eval) = (&settings.options, claimed.id);
    let db = &options.db;
    let credential = if claimed.has_forge {
        let asked = clone_credential(&options.http, db, eval, token, options.silent_after).await;
        asked.map_err(EvaluateError::Credential)?
    } else {
        None
    };
    let merge = claimed.pull_request.as_ref().map(|pull| MergeWanted {
        head_ref: pull.head_ref.as_deref(),
        base_branch: &pull.base_branch,
        base_commit: pull.base_commit.as_deref(),
    });
    let wanted = Wanted {
        commit: claimed.commit.as_deref(),
        branch: &claimed.branch,
        is_tag: claimed.is_tag,
        merge,
        credential: credential.as_ref(),
        // A stranger's pull request must not name repositories that the stranger cannot read, nor may what everybody sees
        // have them in it.
        private_submodules: claimed.pull_request.is_none() && !claimed.is_public,
        waits_for_submodules: claimed.waited < SUBMODULE_PATIENCE,
    };
    let checkout = source::checkout(&settings.git_sources(), origin, &wanted).await?;
    let pushed = checkout.merged.as_ref().map_or(&checkout.commit, |merged| &merged.head);
    let facts = CommitFacts {
        commit: pushed.clone(),
        tree_hash: Some(checkout.tree_hash.clone()),
        title: Some(checkout.title.clone()).filter(|title| !title.is_empty()),
        author: Some(checkout.author.clone()).filter(|author| !author.is_empty()),
    };
    db.set_evaluation_commit(eval, token, &facts).await?;
    if let Some(merged) = &checkout.merged {
        db.set_evaluation_merge(eval, token, &merged.head, &merged.base, &checkout.commit).await?;
    }
    Ok(checkout)
}

struct Run<'a> {
    settings: &'a Settings,
    claimed: &'a ClaimedEvaluation,
    token: &'a ClaimToken,
    engine: Engine,
    prefixes: Vec<Vec<String>>,
    /// Somebody named them: each must be there.
    is_named: bool,
    allow_empty: bool,
    traces: Option<TraceSearch>,
}

impl Run<'_> {
    async fn run(mut self, systems: Option<Vec<String>>, connection: Connection) -> Result<(), EvaluateError> {
        let (db, eval) = (&self.settings.options.db, self.claimed.id);
        let mut warnings = Vec::new();
        let built = db.builder_systems().await?;
        let named_systems = systems.clone().unwrap_or_default();
        let reuse_key = self.traces.is_some().then(|| reuse::key(&self.settings.engine_id, &built));
        let systems = match systems {
            Some(named) => Systems::Named(named),
            None if built.is_empty() => {
                warnings.push("no builder was here within 30 days: every system of the flake is evaluated".to_owned());
                Systems::All
            }
            None => Systems::Offered(built),
        };
        let (events, received) = mpsc::channel(EVENTS_MAX);
        let mut inserter = Inserter::new(self.settings, eval, self.token, connection, self.traces.take());
        let work = async {
            let prefixes = self.prefixes.iter().cloned().map(|path| self.task(path)).collect();
            let mut names = self.engine.enumerate(prefixes, systems.wanted(), &events).await?;
            warnings.extend(left_out(&names, &systems));
            if !warnings.is_empty() {
                db.add_warnings(eval, self.token, &warnings).await?;
            }
            if names.tasks.is_empty() && names.refused.is_empty() {
                self.nothing(&mut names, &systems)?;
            }
            let mut lines = std::mem::take(&mut names.refused);
            lines.append(&mut names.failed);
            if self.is_named {
                lines.extend(names.missing.iter().map(|missing| in_error(&missing.path, &missing.sentence())));
            }
            lines.extend(missing_systems(&names, &self.prefixes, &named_systems));
            for some in names.tasks.chunks(EXPECTED_AT_ONCE) {
                let some = some.iter().map(|task| task.path.clone()).collect();
                tell(&events, EngineEvent::Expected(some)).await?;
            }
            for some in lines.chunks(EXPECTED_AT_ONCE) {
                let some = some.iter().map(|line| line.attr_path.clone()).collect();
                tell(&events, EngineEvent::Expected(some)).await?;
            }
            for line in lines {
                tell(&events, EngineEvent::Line(line)).await?;
            }
            self.engine.evaluate(names.tasks, &events).await?;
            drop(events);
            Ok::<_, EvaluateError>(())
        };
        let insert = async { inserter.take_all(received).await.map_err(EvaluateError::from) };
        // Whichever fails first ends the other.
        tokio::try_join!(work, insert)?;
        conclude(db, (eval, self.token), inserter, self.allow_empty, reuse_key).await
    }

    fn task(&self, path: Vec<String>) -> Task {
        if self.is_named { Task::named(path) } else { Task::found(path) }
    }

    /// An error that says why there is nothing, unless nothing is fine.
    fn nothing(&self, names: &mut Enumeration, systems: &Systems) -> Result<(), EvaluateError> {
        // Nothing could be completed: what the engine said is the evaluation's error.
        if let Some(Err(error)) = names.failed.pop().map(|line| line.result) {
            return Err(EngineError::Failed(error).into());
        }
        // What was named and is not there is an error of its own.
        if self.allow_empty {
            return Ok(());
        }
        let asked: Vec<String> = self.prefixes.iter().map(|prefix| print_attr_path(prefix)).collect();
        let mut text = format!("nothing to build: no attributes below '{}'", asked.join("', '"));
        for remark in names.missing.iter().map(Missing::sentence).chain(left_out(names, systems)) {
            text.push_str("; ");
            text.push_str(&remark);
        }
        text.push_str(". Name the outputs to build with 'attrs' in .harmonia-ci.toml, or set 'allow-empty = true'");
        Err(EvaluateError::Nothing(text))
    }
}

/// The evaluation is complete when each name that was told before it was evaluated has a result or an error. Engines see
/// to that themselves; whatever else loses one, it is not taken for green.
pub(super) async fn conclude(
    db: &Db,
    (eval, token): (EvalId, &ClaimToken),
    inserter: Inserter<'_>,
    allow_empty: bool,
    reuse_key: Option<String>,
) -> Result<(), EvaluateError> {
    let names: Vec<String> = inserter.expected().iter().cloned().collect();
    for chunk in names.chunks(5_000) {
        db.expect_attrs(eval, token, chunk).await?;
    }
    if names.is_empty() {
        if !allow_empty {
            return Err(EvaluateError::Nothing("none of the names evaluates to a derivation".to_owned()));
        }
        db.allow_empty_evaluation(eval, token).await?;
    }
    // What shows nothing has nothing to show elsewhere.
    if let Some(reuse_key) = reuse_key.filter(|_| !names.is_empty()) {
        db.set_evaluation_reuse(eval, token, &reuse_key, inserter.embeds_commit()).await?;
    }
    let finished = db.finish_evaluation(eval, token).await?;
    if !finished.complete {
        return Err(EvaluateError::Incomplete(finished.missing.into_iter().take(10).collect::<Vec<_>>().join(", ")));
    }
    Ok(())
}

/// Which systems are evaluated.
enum Systems {
    /// Those that the tree names.
    Named(Vec<String>),
    /// Those that some builder offered lately, there now or not.
    Offered(Vec<String>),
    /// Whatever the flake has.
    All,
}

impl Systems {
    fn wanted(&self) -> Option<&[String]> {
        match self {
            Self::Named(systems) | Self::Offered(systems) => Some(systems),
            Self::All => None,
        }
    }
}

/// What the page says about systems that are not built.
fn left_out(names: &Enumeration, systems: &Systems) -> Option<String> {
    if names.left_out.is_empty() {
        return None;
    }
    let left_out: Vec<&str> = names.left_out.iter().map(String::as_str).collect();
    let (left_out, wanted) = (left_out.join(", "), systems.wanted().unwrap_or_default().join(", "));
    Some(match systems {
        Systems::Offered(_) => {
            format!("left out, since no builder offered them within 30 days: {left_out} (offered: {wanted})")
        }
        Systems::Named(_) | Systems::All => {
            format!("left out, since 'systems' in .harmonia-ci.toml names only {wanted}: {left_out}")
        }
    })
}

/// Systems that the tree names although none of its outputs has them. (Of outputs that are not ordered by system nothing can
/// be said.)
fn missing_systems(names: &Enumeration, prefixes: &[Vec<String>], named: &[String]) -> Vec<EngineLine> {
    let there: Vec<&str> = names.systems.iter().chain(&names.left_out).map(String::as_str).collect();
    let Some(prefix) = prefixes.iter().find(|prefix| prefix.len() == 1).filter(|_| !there.is_empty()) else {
        return Vec::new();
    };
    let missing = named.iter().filter(|system| !names.systems.contains(*system));
    missing
        .map(|system| {
            let path: Vec<String> = prefix.iter().cloned().chain([system.clone()]).collect();
            let problem = format!("'systems' names {system}, but the outputs to build have only {}", there.join(", "));
            in_error(&path, &problem)
        })
        .collect()
}

fn in_error(path: &[String], problem: &str) -> EngineLine {
    EngineLine { attr_path: path.to_vec(), result: Err(format!("error: {problem}")) }
}

/// A bundle is put together on disk first; the file lives as long as what is returned.
async fn origin(
    settings: &Settings,
    claimed: &ClaimedEvaluation,
) -> Result<(Origin, Option<tempfile::NamedTempFile>), EvaluateError> {
    let bundle = match &claimed.source {
        Source::Git { url } => return Ok((Origin::Url(url.clone()), None)),
        Source::Bundle { bundle } => *bundle,
    };
    let db = &settings.options.db;
    let Some((size, _)) = db.bundle_digest(bundle).await? else { return Err(EvaluateError::Bundle("gone")) };
    let place: PathBuf = settings.scratch_dir();
    let mut file = tempfile::Builder::new().prefix("bundle-").tempfile_in(place).map_err(EvaluateError::Disk)?;
    let mut written = 0;
    for seq in 0.. {
        let Some(bytes) = db.read_bundle(bundle, seq).await? else { break };
        written += bytes.len() as u64;
        file.write_all(&bytes).map_err(EvaluateError::Disk)?;
    }
    if written != size {
        return Err(EvaluateError::Bundle("incomplete"));
    }
    Ok((Origin::Bundle(file.path().to_owned()), Some(file)))
}

/// What the page of a failed evaluation says.
pub(super) fn explain(error: &EvaluateError) -> String {
    let mut parts: Vec<String> = vec![error.to_string()];
    let mut seen: BTreeSet<String> = parts.iter().cloned().collect();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let text = error.to_string();
        // Transparent errors repeat their cause.
        if seen.insert(text.clone()) {
            parts.push(text);
        }
        cause = error.source();
    }
    let multiline = parts.iter().any(|part| part.contains('\n'));
    super::engine::shorten_error(&parts.join(if multiline { ":\n" } else { ": " }))
}
