//! `eval`: asks for an evaluation of a local repository or a git URL, and with `--wait` watches it to its end.
//!
//! A local repository travels as a git bundle ([`repository`]): the server never reads the client's paths.

mod folders;
pub(crate) mod progress;
pub(crate) mod repository;

use std::io::IsTerminal as _;
use std::time::Duration;

use harmonia_core::EvalId;
use harmonia_core::api::{
    Attr, AttrState, BundleStored, EvaluationCreated, EvaluationDetail, NewEvaluation, Source, Verdict,
};
use harmonia_core::git::{self, Location};
use harmonia_core::project_name;
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

/// Follows one evaluation until it and its builds have ended.
pub(crate) async fn watch(
    client: &Client,
    id: EvalId,
    progress: &mut dyn Progress,
) -> Result<EvaluationDetail, Failure> {
    let mut silent_since: Option<std::time::Instant> = None;
    loop {
        match client.get::<EvaluationDetail>(&format!("/api/v1/evaluations/{id}")).await {
            Ok(detail) => {
                silent_since = None;
                progress.show(&detail);
                if detail.evaluation.verdict != Verdict::Running {
                    progress.end();
                    return Ok(detail);
                }
            }
            // A restart of the server loses nothing: wait for it.
            Err(error @ (CallError::Unreachable(_) | CallError::Refused { status: 503, .. })) => {
                let since = *silent_since.get_or_insert_with(std::time::Instant::now);
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
        return format!("evaluation {} failed: {}", evaluation.id, clean_lines(error));
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

/// Text from a repository for a terminal: lines stay, other control characters go.
fn clean_lines(text: &str) -> String {
    text.lines().map(clean).collect::<Vec<_>>().join("\n")
}

/// What failed and why, with the end of the logs; then the count.
async fn report(client: &Client, detail: &EvaluationDetail) {
    for warning in &detail.warnings {
        eprintln!("warning: {}", clean_lines(warning));
    }
    for attr in detail.attrs.iter().filter(|attr| matches!(attr.state, AttrState::Failed | AttrState::Error)) {
        outln!("\n✗ {} {}", clean(&attr.attr), progress::word(attr.state));
        if let Some(error) = &attr.error {
            for line in error.lines() {
                outln!("    {}", clean(line));
            }
        }
        print_log_tail(client, attr).await;
    }
    let c = &detail.evaluation.counts;
    // Where nothing was evaluated, the error says it all.
    if c.total > 0 {
        outln!("\n{} of {} attributes succeeded", c.succeeded, c.total);
    }
}

async fn print_log_tail(client: &Client, attr: &Attr) {
    let Some(job) = attr.job.filter(|_| attr.state == AttrState::Failed) else { return };
    let request = client.request(reqwest::Method::GET, &format!("/api/v1/builds/{job}/log"));
    let Ok(answer) = client.send(request).await else { return };
    let text = answer.text().await.unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    if lines.is_empty() {
        return;
    }
    outln!("    last lines of the log (`harmonia-ci log {job}` prints all):");
    for line in &lines[lines.len().saturating_sub(LOG_TAIL_LINES)..] {
        outln!("    │ {}", clean(line));
    }
}
