//! Sends what is due to one forge or reporter. Start at [`everything`].
//!
//! A call and what is remembered of it are two steps: between them the process may end. So a row is leased before the
//! call and released with the answer; a lease that nobody releases ends by itself, and the row is sent again.

use std::future::Future;
use std::time::Duration;

use harmonia_core::chain;
use harmonia_core::forge::ForgeError;
use harmonia_core::reporter::ReportError;
use harmonia_core::status::delivery::{Next, TRIES_MAX, after_forge_error, after_report_error};
use harmonia_db::{Answer, DbError, DueNotification, DueStatus, OwedComment, PauseKind};
use tokio::task::JoinSet;
use tracing::{debug, error, info, warn};

use super::{Outlet, ReportOptions, Stepped};

/// Batches of one step: what comes meanwhile has its turn in the next.
const BATCHES_MAX: u32 = 1_000;
/// After so many calls without an answer, one after the other, a forge is left alone for a while.
const SILENCE_MAX: u32 = 3;

/// Sends until nothing is due there any more, or it does not answer.
pub(super) async fn everything(options: &ReportOptions, outlet: &Outlet) -> Result<Stepped, DbError> {
    let mut done = Stepped::default();
    let mut silence = 0;
    for _ in 0..BATCHES_MAX {
        let ended = match outlet {
            Outlet::Statuses(forge) => statuses(options, forge).await?,
            Outlet::Comments(forge) => comments(options, forge).await?,
            Outlet::Reporter(name) => notifications(options, name).await?,
        };
        if ended.is_empty() {
            break;
        }
        for how in ended {
            match how {
                Ended::Sent => {
                    silence = 0;
                    match outlet {
                        Outlet::Statuses(_) => done.statuses += 1,
                        Outlet::Comments(_) => done.comments += 1,
                        Outlet::Reporter(_) => done.notifications += 1,
                    }
                }
                Ended::Refused => done.failed += 1,
                Ended::Silent => {
                    done.failed += 1;
                    silence += 1;
                }
            }
        }
        if silence >= SILENCE_MAX {
            let (kind, name) = match outlet {
                Outlet::Statuses(name) | Outlet::Comments(name) => (PauseKind::Forge, name),
                Outlet::Reporter(name) => (PauseKind::Reporter, name),
            };
            let during = options.pause_after_silence;
            warn!(name, calls = silence, "{name} does not answer; it is left alone for {during:?}");
            options.db.pause_deliveries(kind, name, during, "it does not answer").await?;
            break;
        }
    }
    Ok(done)
}

/// How one call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    Sent,
    /// With an answer, and it was no.
    Refused,
    /// Without an answer.
    Silent,
}

/// Makes the calls of a batch at once; pairs each thing with its answer. One whose call panicked is left out: its lease
/// ends by itself.
async fn call_all<T, E, F>(
    things: Vec<T>,
    timeout: Duration,
    call: impl Fn(&T) -> F,
) -> Vec<(T, Result<Result<(), E>, ()>)>
where
    T: Send + 'static,
    E: Send + 'static,
    F: Future<Output = Result<(), E>> + Send + 'static,
{
    let mut calls = JoinSet::new();
    for thing in things {
        let answer = call(&thing);
        calls.spawn(async move { (thing, tokio::time::timeout(timeout, answer).await.map_err(|_| ())) });
    }
    let mut answers = Vec::new();
    while let Some(ended) = calls.join_next().await {
        match ended {
            Ok(answer) => answers.push(answer),
            Err(error) => error!(error = %chain(&error), "A call to a plugin broke"),
        }
    }
    answers
}

fn no_answer(options: &ReportOptions) -> String {
    format!("no answer within {} s", options.call_timeout.as_secs())
}

/// Between 0 and 1, another one for each row and try, the same for the same: what failed together comes back apart.
fn jitter(id: i64, failures: u32) -> f64 {
    let mixed = (id as u64 ^ (u64::from(failures) << 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    f64::from((mixed >> 48) as u16) / f64::from(u16::MAX)
}

fn is_silence(next: Next) -> Ended {
    match next {
        Next::Again { is_ambiguous: true, .. } => Ended::Silent,
        Next::Again { .. } | Next::Denied { .. } | Next::Pause { .. } | Next::Dead => Ended::Refused,
    }
}

async fn statuses(options: &ReportOptions, name: &str) -> Result<Vec<Ended>, DbError> {
    let db = &options.db;
    // Asked for each batch: a reload may have put another one in its place.
    let Some(forge) = options.plugins.forge(name) else { return Ok(Vec::new()) };
    let due = db.claim_statuses(&options.node, name, options.calls_at_once, options.lease()).await?;
    let report = |due: &DueStatus| {
        let (forge, status) = (forge.clone(), due.status.clone());
        async move { forge.report(status).await }
    };
    let mut ended = Vec::new();
    for (due, answer) in call_all(due, options.call_timeout, report).await {
        let answer = answer.unwrap_or_else(|()| Err(ForgeError::Unavailable(no_answer(options))));
        let (repository, context) = (&due.status.repository.full_name, &due.status.context);
        let Err(error) = answer else {
            let held = db.status_delivered(&due).await?;
            if due.failures > 0 || !held {
                info!(forge = name, repository, context, failures = due.failures, held, "A status arrived after all");
            } else {
                debug!(forge = name, repository, context, state = due.status.state.as_str(), "A status arrived");
            }
            ended.push(Ended::Sent);
            continue;
        };
        let next = after_forge_error(&error, due.failures, None, jitter(due.id, due.failures));
        let error = chain(&error);
        db.status_failed(&due, Answer { next, error: &error }).await?;
        pause(options, PauseKind::Forge, name, next, &error).await?;
        failed(name, &format!("status {context} of {repository} at {}", due.status.commit), due.failures, next, &error);
        ended.push(is_silence(next));
    }
    Ok(ended)
}

async fn comments(options: &ReportOptions, name: &str) -> Result<Vec<Ended>, DbError> {
    let db = &options.db;
    let Some(forge) = options.plugins.forge(name) else { return Ok(Vec::new()) };
    let due = db.claim_comments(&options.node, name, options.calls_at_once, options.lease()).await?;
    let comment = |due: &OwedComment| {
        let (forge, due) = (forge.clone(), due.clone());
        async move { forge.comment(due.repository, due.number, due.key, due.body).await }
    };
    let mut ended = Vec::new();
    for (due, answer) in call_all(due, options.call_timeout, comment).await {
        let Err(error) = answer.unwrap_or_else(|()| Err(ForgeError::Unavailable(no_answer(options)))) else {
            db.comment_delivered(&due).await?;
            ended.push(Ended::Sent);
            continue;
        };
        let next = after_forge_error(&error, due.failures, Some(TRIES_MAX), jitter(due.id, due.failures));
        let error = chain(&error);
        db.comment_failed(&due, Answer { next, error: &error }).await?;
        pause(options, PauseKind::Forge, name, next, &error).await?;
        failed(name, &format!("comment on {} #{}", due.repository.full_name, due.number), due.failures, next, &error);
        ended.push(is_silence(next));
    }
    Ok(ended)
}

async fn notifications(options: &ReportOptions, name: &str) -> Result<Vec<Ended>, DbError> {
    let db = &options.db;
    let Some(reporter) = options.plugins.reporter(name) else { return Ok(Vec::new()) };
    let due = db.claim_notifications(&options.node, name, options.calls_at_once, options.lease()).await?;
    let report = |due: &DueNotification| {
        let (reporter, notification) = (reporter.clone(), due.notification.clone());
        async move { reporter.report(notification).await }
    };
    let mut ended = Vec::new();
    for (due, answer) in call_all(due, options.call_timeout, report).await {
        let Err(error) = answer.unwrap_or_else(|()| Err(ReportError::Unavailable(no_answer(options)))) else {
            db.notification_delivered(&due).await?;
            ended.push(Ended::Sent);
            continue;
        };
        let next = after_report_error(&error, due.failures, jitter(due.id, due.failures));
        let error = chain(&error);
        db.notification_failed(&due, Answer { next, error: &error }).await?;
        pause(options, PauseKind::Reporter, name, next, &error).await?;
        failed(name, &format!("notification {}", due.notification.key), due.failures, next, &error);
        ended.push(is_silence(next));
    }
    Ok(ended)
}

async fn pause(options: &ReportOptions, kind: PauseKind, name: &str, next: Next, error: &str) -> Result<(), DbError> {
    match next {
        Next::Pause { during } => options.db.pause_deliveries(kind, name, during, error).await,
        Next::Again { .. } | Next::Denied { .. } | Next::Dead => Ok(()),
    }
}

/// Loud at the first failure and at the last; what lies between is on the list of dead letters.
fn failed(name: &str, what: &str, failures: u32, next: Next, error: &str) {
    match next {
        Next::Dead => error!(name, error, failures, "Gave up the {what}: replay it once the cause is gone"),
        Next::Pause { during } => info!(name, error, "{name} asks to be left alone for {during:?}"),
        Next::Again { after, .. } | Next::Denied { after } if failures == 0 => {
            warn!(name, error, "Could not deliver the {what}; next try in {after:?}");
        }
        Next::Again { after, .. } | Next::Denied { after } => {
            debug!(name, error, failures, "Could not deliver the {what}; next try in {after:?}");
        }
    }
}
