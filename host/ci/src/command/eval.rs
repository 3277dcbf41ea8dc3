//! `eval`: asks for an evaluation of a local repository or a git URL, and with `--wait` watches it to its end.
//!
//! A local repository travels as a git bundle ([`repository`]): the server never reads the client's paths.

mod folders;
pub(crate) mod progress;
pub(crate) mod repository;

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use harmonia_core::api::{
    Attr, AttrCounts, AttrState, BundleStored, EvaluationCreated, EvaluationDetail, EvaluationHead, EvaluationWaits,
    JobCounts, NewEvaluation, Source, Verdict,
};
use harmonia_core::git::{self, Location};
use harmonia_core::{EvalId, EvalStatus};
use harmonia_core::{log_text, project_name};
use tokio_util::io::ReaderStream;
use url::Url;

use crate::cli::EvalArgs;
use crate::client::{CallError, Client, default_data_dir};
use crate::exit::Failure;
use crate::table::clean;
use progress::{Lines, Progress, Screen};

/// How often the server is asked while waiting.
const POLL_EVERY: Duration = Duration::from_millis(300);
/// How long `--wait` puts up with a server that does not answer (it may be restarting).
const PATIENCE: Duration = Duration::from_mins(1);
/// How long nothing may happen before the server is asked why, and how often after that.
const WHY_AFTER: Duration = Duration::from_secs(5);
const WHY_EVERY: Duration = Duration::from_secs(10);
/// Waiting jobs whose reasons are shown.
const WHY_JOBS: u32 = 3;
/// Attributes that are read with one call at the end.
const ATTRS_AT_ONCE: u32 = 5_000;
/// Lines of a failed build's log that are printed at the end.
const LOG_TAIL_LINES: usize = 15;

/// Asks, and waits if told to.
pub(crate) async fn run(args: &EvalArgs) -> Result<(), Failure> {
    let client = Client::find(&args.output.server)?;
    let wanted = describe(args, &client).await?;
    let created: EvaluationCreated = client.post("/api/v1/evaluations", &wanted).await?;
    let page = client.url(&created.page);
    if !args.wait {
        if args.output.json {
            print_json(&created)?;
        } else {
            outln!("evaluation {} queued: {page}", created.id);
        }
        return Ok(());
    }
    let interactive = std::io::stderr().is_terminal() && !args.output.json;
    eprintln!("evaluation {}: {page}", created.id);
    let detail = if interactive {
        watch(&client, created.id, &mut Screen::new()).await?
    } else {
        watch(&client, created.id, &mut Lines::default()).await?
    };
    if args.output.json {
        print_json(&detail)?;
    } else {
        report(&client, &detail).await;
    }
    match detail.evaluation.verdict {
        Verdict::Succeeded => Ok(()),
        Verdict::Cancelled => Err(Failure::failed(match detail.evaluation.superseded_by {
            Some(newer) => format!("evaluation {} was superseded by evaluation {newer}", created.id),
            None => format!("evaluation {} was cancelled", created.id),
        })),
        Verdict::Failed | Verdict::Running => Err(Failure::failed(summary(&detail))),
    }
}

/// Follows one evaluation until it and its builds have ended: by its head, and what changed since the last one. All of it is read
/// once, at the end.
pub(crate) async fn watch(
    client: &Client,
    id: EvalId,
    progress: &mut dyn Progress,
) -> Result<EvaluationDetail, Failure> {
    let mut silent_since: Option<Instant> = None;
    let mut standstill = Standstill::new(Instant::now());
    let mut seen: Option<i64> = None;
    loop {
        let since = seen.map_or_else(String::new, |revision| format!("?since={revision}"));
        let looked = client.get::<EvaluationHead>(&format!("/api/v1/evaluations/{id}/head{since}")).await;
        // What it came to, when it is over.
        let ended = match looked {
            Ok(head) => {
                seen = Some(head.revision);
                progress.show(&head);
                let is_over = head.evaluation.verdict != Verdict::Running;
                if !is_over && standstill.asks_why(&head, Instant::now()) {
                    let path = format!("/api/v1/evaluations/{id}/waits?limit={WHY_JOBS}");
                    // Not to know why is no reason to stop watching.
                    if let Ok(waits) = client.get::<EvaluationWaits>(&path).await {
                        progress.waits(&waits);
                    }
                }
                // Perhaps somebody had it built again meanwhile.
                let is_still_over = |detail: &EvaluationDetail| detail.evaluation.verdict != Verdict::Running;
                if is_over {
                    whole(client, id).await.map(|detail| Some(detail).filter(is_still_over))
                } else {
                    Ok(None)
                }
            }
            Err(error) => Err(error),
        };
        match ended {
            Ok(None) => silent_since = None,
            Ok(Some(detail)) => {
                progress.end();
                return Ok(detail);
            }
            // A restart of the server loses nothing: wait for it.
            Err(error @ (CallError::Unreachable(_) | CallError::Refused { status: 503, .. })) => {
                let since = *silent_since.get_or_insert_with(Instant::now);
                if since.elapsed() > PATIENCE {
                    progress.end();
                    return Err(error.into());
                }
            }
            Err(error) => {
                progress.end();
                return Err(error.into());
            }
        }
        tokio::time::sleep(POLL_EVERY).await;
    }
}

/// An evaluation with all of its attributes.
async fn whole(client: &Client, id: EvalId) -> Result<EvaluationDetail, CallError> {
    let path = format!("/api/v1/evaluations/{id}?limit={ATTRS_AT_ONCE}");
    let mut detail = client.get::<EvaluationDetail>(&path).await?;
    while let Some(after) = detail.next.take() {
        let after: String = url::form_urlencoded::byte_serialize(after.as_bytes()).collect();
        let page = client.get::<EvaluationDetail>(&format!("{path}&after={after}")).await?;
        detail.attrs.extend(page.attrs);
        detail.next = page.next;
    }
    Ok(detail)
}

/// Notices that nothing goes on.
struct Standstill {
    /// Everything that changes when something goes on.
    last: Option<(EvalStatus, AttrCounts, JobCounts)>,
    next: Instant,
}

impl Standstill {
    fn new(now: Instant) -> Self {
        Self { last: None, next: now + WHY_AFTER }
    }

    /// Whether it is time to ask why nothing happens: something waits, nothing of it is worked on, for [`WHY_AFTER`] already.
    fn asks_why(&mut self, head: &EvaluationHead, now: Instant) -> bool {
        let (evaluation, jobs) = (&head.evaluation, &head.jobs);
        let state = (evaluation.status, evaluation.counts, *jobs);
        let is_worked_on = evaluation.status == EvalStatus::Running || jobs.building + jobs.uploading > 0;
        if is_worked_on || self.last.replace(state) != Some(state) {
            self.next = now + WHY_AFTER;
            return false;
        }
        if now < self.next {
            return false;
        }
        self.next = now + WHY_EVERY;
        true
    }
}

async fn describe(args: &EvalArgs, client: &Client) -> Result<NewEvaluation, Failure> {
    let attrs = (!args.attrs.is_empty()).then(|| args.attrs.clone());
    let location = git::parse_location(&args.flake).map_err(|flaw| Failure::usage(flaw.to_string()))?;
    if let Some(Location { url, branch }) = location {
        if args.dirty {
            return Err(Failure::usage("--dirty is for a local repository, and this is a URL"));
        }
        let name = || Url::parse(&url).map_or_else(|_| "git/unnamed".to_owned(), |url| project_name::for_git_url(&url));
        return Ok(NewEvaluation {
            project: args.project.clone().unwrap_or_else(name),
            source: Source::Git { url },
            commit: None,
            branch,
            attrs,
            dirty: false,
            title: None,
            author: None,
        });
    }
    let snapshot = repository::snapshot(std::path::Path::new(&args.flake), args.dirty).await?;
    if snapshot.ignored_changes {
        eprintln!("note: uncommitted changes are not evaluated; --dirty includes them");
    }
    let project = if let Some(name) = &args.project {
        name.clone()
    } else {
        let data_dir = args.output.server.data_dir.clone().map_or_else(default_data_dir, Ok)?;
        let plain = project_name::for_folder(&snapshot.name, &snapshot.flake_dir);
        folders::project_of(&data_dir, client.url("").as_str(), plain, &snapshot.top)
    };
    let bundle = upload(client, &snapshot).await?;
    Ok(NewEvaluation {
        project,
        source: Source::Bundle { bundle },
        commit: Some(snapshot.commit),
        branch: Some(snapshot.branch),
        attrs,
        dirty: snapshot.dirty,
        title: snapshot.title,
        author: snapshot.author,
    })
}

pub(crate) async fn upload(client: &Client, snapshot: &repository::Snapshot) -> Result<i64, Failure> {
    let read = |error: std::io::Error| Failure::failed(format!("could not read the git bundle: {error}"));
    let file = tokio::fs::File::open(&snapshot.bundle).await.map_err(read)?;
    let length = file.metadata().await.map_err(read)?.len();
    let limit = harmonia_core::limits::BUNDLE_BYTES_MAX;
    if length > limit {
        let message = format!(
            "the repository's history is {} MiB, more than the {} MiB a server takes",
            length >> 20,
            limit >> 20
        );
        return Err(Failure::usage(message).hint("push it somewhere and evaluate its git URL"));
    }
    let request = client
        .request(reqwest::Method::POST, "/api/v1/bundles")
        .header("content-type", "application/x-git-bundle")
        .header("content-length", length)
        .body(reqwest::Body::wrap_stream(ReaderStream::new(file)));
    let stored: BundleStored = Client::json(client.send(request).await?).await?;
    Ok(stored.bundle)
}

fn print_json(value: &impl serde::Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(|error| Failure::failed(error.to_string()))?;
    outln!("{text}");
    Ok(())
}

/// One line about what went wrong.
fn summary(detail: &EvaluationDetail) -> String {
    let evaluation = &detail.evaluation;
    if let Some(error) = &evaluation.error {
        return format!("evaluation {} failed: {}", evaluation.id, log_text::clean(error));
    }
    let c = &evaluation.counts;
    let parts: Vec<String> = [
        (c.failed, "failed to build"),
        (c.dep_failed, "failed because of a dependency"),
        (c.eval_errors, "did not evaluate"),
        (c.cancelled, "cancelled"),
    ]
    .iter()
    .filter(|(n, _)| *n > 0)
    .map(|(n, what)| format!("{n} {what}"))
    .collect();
    format!("evaluation {}: of {} attributes {}", evaluation.id, c.total, parts.join(", "))
}

/// A program's output as standard output shows it: coloured on a terminal, unless the user wants none (no-color.org).
fn printed(text: &str) -> String {
    let colors = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    if colors { log_text::colored(text) } else { log_text::clean(text) }
}

/// What failed and why, with the end of the logs; then the count.
async fn report(client: &Client, detail: &EvaluationDetail) {
    for attr in detail.attrs.iter().filter(|attr| matches!(attr.state, AttrState::Failed | AttrState::Error)) {
        outln!("\n✗ {} {}", clean(&attr.attr), progress::word(attr.state));
        if let Some(error) = &attr.error {
            for line in printed(error).lines() {
                outln!("    {line}");
            }
        }
        print_log_tail(client, attr).await;
    }
    // Last, where they are seen: what a flake warns of scrolls away above a failure's log.
    if !detail.warnings.is_empty() {
        let number = detail.warnings.len();
        eprintln!("\n{number} warning{}:", if number == 1 { "" } else { "s" });
        for warning in &detail.warnings {
            eprintln!("warning: {}", log_text::clean(warning));
        }
    }
    if let Some(count) = count(&detail.evaluation.counts) {
        outln!("\n{count}");
    }
}

/// The last line; none where nothing was evaluated, since the error says it all.
fn count(counts: &AttrCounts) -> Option<String> {
    (counts.total > 0).then(|| format!("{} of {} attributes succeeded", counts.succeeded, counts.total))
}

async fn print_log_tail(client: &Client, attr: &Attr) {
    let Some(job) = attr.job.filter(|_| attr.state == AttrState::Failed) else { return };
    let request = client.request(reqwest::Method::GET, &format!("/api/v1/builds/{job}/log"));
    let Ok(answer) = client.send(request).await else { return };
    let text = answer.text().await.unwrap_or_default();
    let (tail, _) = log_text::last_lines(&text, LOG_TAIL_LINES);
    if tail.is_empty() {
        return;
    }
    outln!("    last lines of the log (`harmonia-ci log {job}` prints all):");
    for line in printed(tail).lines() {
        outln!("    │ {line}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn detail(status: EvalStatus, pending: u64, building: u64) -> EvaluationDetail {
        let evaluation = serde_json::json!({
            "id": 1, "project": "p", "commit": null, "branch": "main", "attempt": 1, "title": null, "author": null,
            "dirty": false, "status": status, "verdict": "running", "complete": false, "error": null,
            "counts": AttrCounts::default(), "superseded_by": null, "created_at": "2026-01-01T00:00:00Z",
            "started_at": null, "finished_at": null
        });
        EvaluationDetail {
            evaluation: serde_json::from_value(evaluation).expect("an evaluation"),
            attrs: Vec::new(),
            next: None,
            jobs: JobCounts { pending, building, ..JobCounts::default() },
            warnings: Vec::new(),
        }
    }

    fn head(status: EvalStatus, pending: u64, building: u64) -> EvaluationHead {
        let EvaluationDetail { evaluation, jobs, .. } = detail(status, pending, building);
        EvaluationHead { revision: 1, evaluation, jobs, whole: true, changed: Vec::new() }
    }

    #[test]
    fn a_failed_evaluation_has_its_error_and_nothing_is_counted() {
        let mut failed = detail(EvalStatus::Failed, 0, 0);
        failed.evaluation.error = Some("the flake could not be evaluated:\nerror: \u{1b}[31mno\u{1b}[0m".to_owned());
        assert_eq!(count(&failed.evaluation.counts), None);
        assert_eq!(summary(&failed), "evaluation 1 failed: the flake could not be evaluated:\nerror: no");

        let mut ended = detail(EvalStatus::Succeeded, 0, 0);
        ended.evaluation.counts =
            AttrCounts { total: 5, succeeded: 2, failed: 1, eval_errors: 2, ..AttrCounts::default() };
        assert_eq!(count(&ended.evaluation.counts).as_deref(), Some("2 of 5 attributes succeeded"));
        assert_eq!(summary(&ended), "evaluation 1: of 5 attributes 1 failed to build, 2 did not evaluate");
    }

    #[test]
    fn the_server_is_asked_why_only_while_nothing_goes_on() {
        let start = Instant::now();
        let mut standstill = Standstill::new(start);
        // Seconds since the start, what is there, whether to ask.
        let (queued, running, done) = (EvalStatus::Queued, EvalStatus::Running, EvalStatus::Succeeded);
        for (at, status, pending, building, asks) in [
            (0, queued, 0, 0, false),
            (4, queued, 0, 0, false),
            (5, queued, 0, 0, true),
            (6, queued, 0, 0, false),
            (15, queued, 0, 0, true),
            (16, running, 0, 0, false),
            (60, running, 3, 0, false),
            (61, done, 3, 1, false),
            (90, done, 3, 1, false),
            (91, done, 3, 0, false),
            (95, done, 3, 0, false),
            (96, done, 3, 0, true),
            (97, done, 2, 0, false),
            (101, done, 2, 0, false),
            (102, done, 2, 0, true),
        ] {
            let now = start + Duration::from_secs(at);
            assert_eq!(standstill.asks_why(&head(status, pending, building), now), asks, "at {at}");
        }
    }
}
