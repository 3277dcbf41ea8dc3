//! One claimed job from claim to end, whatever happens. Start at [`run`].
//!
//! Every way out either was reported (published, failed), or gives the job back, or needs no report because the claim is
//! void. A panic is a failure like others. Nothing here can take the claim loop down.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use harmonia_core::signer_api::{AttemptUsage, BuildFailed, Failure};
use harmonia_db::{ClaimedJob, DbError};
use harmonia_nix::BasicDerivation;
use tokio_util::sync::CancellationToken;

use super::connections::Lent;
use super::failure::{Trouble, chain, transient, transient_error};
use super::inputs::Prepared;
use super::roots::AttemptRoots;
use super::spool::{OpenLog, log_blob};
use super::upload::{compressed_log, log_request};
use super::{Node, Slot, build, inputs, persist, upload};
use crate::signer_client::{SignerError, Upload, UploadSource};

/// Giving a job back when the node stops may take this long; afterwards the reaper does it.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(4);

/// Outputs up to this size are packed so fast that the database need not hear before that the build is over.
const UNTOLD_BYTES_MAX: u64 = 1 << 20;

/// Pauses between tries to give back a job whose end the database does not take.
const GIVE_BACK_PAUSE: Duration = Duration::from_secs(1);
const GIVE_BACK_PAUSE_MAX: Duration = Duration::from_mins(5);

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Published,
    Failed,
    Void,
    Aborted,
}

/// Works on a claimed job until it ended.
pub(super) async fn run(node: Arc<Node>, job: ClaimedJob, slot: Slot, abort: CancellationToken) {
    let started = Instant::now();
    let hold = node.held.add(job.attempt, &job.token);
    let work = AssertUnwindSafe(attempt(&node, &job, slot)).catch_unwind();
    // Dropping the work closes the daemon connection, which kills the build's processes.
    let end = tokio::select! {
        biased;
        () = hold.void.cancelled() => End::Void,
        () = abort.cancelled() => {
            release(&node, &job).await;
            End::Aborted
        }
        end = work => match end {
            Ok(end) => end,
            Err(panic) => {
                let message = format!("internal error in the builder: {}", panic_text(&*panic));
                tracing::error!(job.id = %job.job, attempt = %job.attempt, message, "A build task panicked");
                fail(&node, &job, &transient(message), &AttemptUsage::default()).await
            }
        },
    };
    tracing::info!(
        job.id = %job.job, attempt = %job.attempt, drv = %job.drv_path, end = ?end,
        seconds = started.elapsed().as_secs_f64(), "Attempt {} of {} ended: {end:?}", job.attempt, job.name
    );
}

async fn attempt(node: &Node, job: &ClaimedJob, slot: Slot) -> End {
    let mut usage = AttemptUsage::default();
    let log = match node.spool.start(job.attempt, job.limits.log_bytes_max) {
        Ok(log) => log,
        Err(error) => {
            let failure = transient(format!("could not open a log in {}: {error}", node.spool.dir().display()));
            return fail(node, job, &failure, &usage).await;
        }
    };
    match steps(node, job, slot, &log, &mut usage).await {
        Ok(()) => End::Published,
        Err(Trouble::Void) => End::Void,
        Err(Trouble::GivenBack(reason)) => {
            give_back(node, job, &reason).await;
            End::Aborted
        }
        Err(Trouble::Failed(failure)) => report(node, job, &failure, &usage, &log).await,
        Err(Trouble::Unacknowledged(failure)) => fail(node, job, &failure, &usage).await,
    }
}

async fn steps(
    node: &Node,
    job: &ClaimedJob,
    slot: Slot,
    log: &OpenLog,
    usage: &mut AttemptUsage,
) -> Result<(), Trouble> {
    let roots = node
        .roots
        .attempt(job.attempt)
        .map_err(|error| transient(format!("could not register garbage collector roots: {error}")))?;
    let (derivation, connection) = prepare(node, job, &roots, log).await?;
    let began = Instant::now();
    let built = build::build(node, job, &derivation, connection, log.shared()).await;
    usage.build_seconds = began.elapsed().as_secs_f64();
    let (built, mut connection) = built?;
    usage.cpu_seconds = built.cpu_seconds;
    let infos = upload::output_infos(&mut connection, job, &derivation, usage);
    let infos = in_time(node.options.prepare_timeout, "the store daemon did not tell of its outputs", infos).await?;
    connection.give_back();

    let turn = node.uploads.try_acquire().ok();
    // What is small and need not wait goes up at once, and the signer that is asked where to says the same.
    if turn.is_none() || usage.output_bytes > UNTOLD_BYTES_MAX {
        match persist(|| node.options.db.attempt_uploading(job.attempt, &job.token)).await {
            Ok(()) => {}
            Err(DbError::StaleClaim) => return Err(Trouble::Void),
            Err(error) => return Err(transient_error(&error).into()),
        }
    }
    // From here on the next job may build.
    let uploading = slot.into_uploading();
    let publish = async {
        let _turn = match turn {
            Some(turn) => Some(turn),
            None => node.uploads.acquire().await.ok(),
        };
        upload::publish(node, job, &derivation, &infos, &roots, log, usage).await
    };
    let result = in_time(node.options.upload_timeout, "its outputs were not published", publish).await;
    drop(uploading);
    result
}

/// The inputs are ready within their time, without that for which others use what has to be replaced.
async fn prepare<'a>(
    node: &'a Node,
    job: &ClaimedJob,
    roots: &AttemptRoots,
    log: &OpenLog,
) -> Result<(BasicDerivation, Lent<'a>), Trouble> {
    let time = node.options.prepare_timeout;
    let mut deadline = None;
    loop {
        match in_time(time, "its inputs were not ready", inputs::prepare(node, job, roots, log)).await? {
            Prepared::Ready(derivation, connection) => return Ok((*derivation, connection)),
            Prepared::InUse(in_use) => {
                let deadline = *deadline.get_or_insert_with(|| tokio::time::Instant::now() + time);
                in_use.wait(node, job, log, deadline).await?;
            }
        }
    }
}

/// Whatever hangs (a store daemon, a cache, a signer) holds a job for so long and no longer; then another node may try.
async fn in_time<T>(time: Duration, what: &str, work: impl Future<Output = Result<T, Trouble>>) -> Result<T, Trouble> {
    match tokio::time::timeout(time, work).await {
        Ok(result) => result,
        Err(_) => Err(transient(format!("{what} within {} s", time.as_secs_f64())).into()),
    }
}

/// Tells of a failure through a signer, with the log; or, if none can be reached, without.
async fn report(node: &Node, job: &ClaimedJob, failure: &Failure, usage: &AttemptUsage, log: &OpenLog) -> End {
    // Who reads the log should not have to look elsewhere for what the daemon or we said at the end.
    for line in failure.message.lines() {
        log.line(format!("[harmonia-ci: {line}]").as_bytes());
    }
    match report_to_signer(node, job, failure, usage, log).await {
        Ok(()) => End::Failed,
        Err(SignerError::StaleClaim) => End::Void,
        Err(error) => {
            tracing::warn!(attempt = %job.attempt, error = %chain(&error), "Could not tell a signer of a failed build, its log is lost");
            fail(node, job, failure, usage).await
        }
    }
}

async fn report_to_signer(
    node: &Node,
    job: &ClaimedJob,
    failure: &Failure,
    usage: &AttemptUsage,
    log: &OpenLog,
) -> Result<(), SignerError> {
    let compressed = compressed_log(log).await;
    let blob = compressed.as_ref().map(log_blob);
    let mut uploads = Vec::new();
    if let (Some(compressed), Some(blob)) = (&compressed, blob.as_ref().filter(|blob| blob.bytes_base64.is_none())) {
        let source = UploadSource::File(compressed.file.to_path_buf());
        let request = log_request(job.attempt, blob.clone());
        let upload = Upload { request, sources: Vec::new(), log: Some(source) };
        node.signer.send(&job.token, &upload).await?;
        uploads.push(upload);
    }
    let failed = BuildFailed { attempt: job.attempt, failure: failure.clone(), log: blob, usage: *usage };
    let call = || node.signer.build_failed(&job.token, &failed);
    node.signer.complete(&job.token, &uploads, call).await.map(drop)
}

/// Tells the database of a failure, without a log.
async fn fail(node: &Node, job: &ClaimedJob, failure: &Failure, usage: &AttemptUsage) -> End {
    match persist(|| node.options.db.fail_attempt(job.attempt, &job.token, failure, usage, None)).await {
        Ok(_) => End::Failed,
        // Refused: the outputs were accepted after all, and a signer finishes the job.
        Err(DbError::StaleClaim | DbError::Refused { .. }) => End::Void,
        Err(error) => {
            tracing::error!(attempt = %job.attempt, error = %chain(&error), "Could not record a failed build, it is given back instead");
            give_back(node, job, "its end could not be recorded").await;
            End::Aborted
        }
    }
}

/// Lets go of a job of which the database will hear nothing else. Asks until it is heard: a job that nobody works on must
/// not stay held.
async fn give_back(node: &Node, job: &ClaimedJob, reason: &str) {
    let mut pause = GIVE_BACK_PAUSE;
    loop {
        match node.options.db.release_attempt(job.attempt, &job.token, reason).await {
            Ok(()) | Err(DbError::StaleClaim) => return,
            Err(error) => {
                tracing::error!(attempt = %job.attempt, error = %chain(&error), "Could not give a job back, trying again");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(GIVE_BACK_PAUSE_MAX);
            }
        }
    }
}

/// Gives the job back: nothing is counted against it.
async fn release(node: &Node, job: &ClaimedJob) {
    let release = persist(|| node.options.db.release_attempt(job.attempt, &job.token, "its node stopped"));
    match tokio::time::timeout(RELEASE_TIMEOUT, release).await {
        Ok(Ok(()) | Err(DbError::StaleClaim)) => {}
        Ok(Err(error)) => {
            tracing::warn!(attempt = %job.attempt, error = %chain(&error), "Could not give a job back while stopping");
        }
        Err(_) => {
            tracing::warn!(attempt = %job.attempt, "Could not give a job back while stopping: the database is away");
        }
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("a panic without a message")
}
