//! Commands that only read, and the two that ask for one change: status, queue, nodes, evals, rebuild, cancel.

use harmonia_core::api::{Build, Changed, Evaluation, JobCounts, Node, Queue, QueuedJob, ServerStatus};
use harmonia_core::{EvalId, Timestamp};
use serde::Serialize;

use crate::cli::{QueueArgs, Reading, Target};
use crate::client::{CallError, Client};
use crate::exit::Failure;
use crate::table::{Table, ago, clean};

fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(|error| Failure::failed(error.to_string()))?;
    outln!("{text}");
    Ok(())
}

/// `status`.
pub(crate) async fn status(args: &Reading) -> Result<(), Failure> {
    let status: ServerStatus = Client::find(&args.server)?.get("/api/v1/status").await?;
    if args.json {
        return print_json(&status);
    }
    outln!("harmonia-ci {}   cache {}", status.version, status.cache_url);
    for key in &status.public_keys {
        outln!("public key {key}");
    }
    outln!("evaluations: {} queued, {} running", status.evaluations_queued, status.evaluations_running);
    outln!("jobs: {}", counts(&status.jobs));
    outln!("");
    out!("{}", nodes_table(&status.nodes));
    outln!("");
    out!("{}", evals_table(&status.evaluations));
    Ok(())
}

/// `nodes`.
pub(crate) async fn nodes(args: &Reading) -> Result<(), Failure> {
    let nodes: Vec<Node> = Client::find(&args.server)?.get("/api/v1/nodes").await?;
    if args.json {
        return print_json(&nodes);
    }
    out!("{}", nodes_table(&nodes));
    Ok(())
}

/// `evals`.
pub(crate) async fn evals(args: &Reading) -> Result<(), Failure> {
    let evaluations: Vec<Evaluation> = Client::find(&args.server)?.get("/api/v1/evaluations?limit=30").await?;
    if args.json {
        return print_json(&evaluations);
    }
    out!("{}", evals_table(&evaluations));
    Ok(())
}

/// `queue`, and `queue --why JOB`.
pub(crate) async fn queue(args: &QueueArgs) -> Result<(), Failure> {
    let client = Client::find(&args.output.server)?;
    if let Some(job) = &args.why {
        let build = find_build(&client, job).await?;
        if args.output.json {
            return print_json(&build);
        }
        out!("{}", explain(&build));
        return Ok(());
    }
    let queue: Queue = client.get(&format!("/api/v1/queue?limit={}", args.limit)).await?;
    if args.output.json {
        return print_json(&queue);
    }
    outln!("{}", counts(&queue.counts));
    if !queue.running.is_empty() {
        outln!("\nbuilding");
        out!("{}", jobs_table(&queue.running));
    }
    if !queue.waiting.is_empty() {
        outln!("\nwaiting");
        out!("{}", jobs_table(&queue.waiting));
    }
    Ok(())
}

/// `rebuild` and `cancel`.
pub(crate) async fn change(args: &Target, verb: Verb) -> Result<(), Failure> {
    let client = Client::find(&args.output.server)?;
    let path = match (&args.job, args.eval) {
        (_, Some(eval)) => verb.evaluation_path(eval),
        (Some(job), None) => {
            let id = find_build(&client, job).await?.id;
            format!("/api/v1/builds/{id}/{}", verb.word())
        }
        (None, None) => return Err(Failure::usage("name a job, or an evaluation with --eval")),
    };
    let changed: Changed = client.post(&path, &serde_json::json!({})).await?;
    if args.output.json {
        return print_json(&changed);
    }
    match changed.changed {
        0 => outln!("nothing to {}: it already stands so", verb.word()),
        1 => outln!("1 job {}", verb.done()),
        n => outln!("{n} jobs {}", verb.done()),
    }
    Ok(())
}

/// What [`change`] does.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Verb {
    Rebuild,
    Cancel,
}

impl Verb {
    const fn word(self) -> &'static str {
        match self {
            Self::Rebuild => "rebuild",
            Self::Cancel => "cancel",
        }
    }

    const fn done(self) -> &'static str {
        match self {
            Self::Rebuild => "queued again",
            Self::Cancel => "cancelled",
        }
    }

    fn evaluation_path(self, eval: EvalId) -> String {
        match self {
            Self::Rebuild => format!("/api/v1/evaluations/{eval}/rebuild-failed"),
            Self::Cancel => format!("/api/v1/evaluations/{eval}/cancel"),
        }
    }
}

/// The job that `text` names: an id, a derivation path or an attribute.
pub(crate) async fn find_build(client: &Client, text: &str) -> Result<Build, Failure> {
    let query: String = url::form_urlencoded::Serializer::new(String::new()).append_pair("q", text).finish();
    client.get(&format!("/api/v1/builds/find?{query}")).await.map_err(|error| match error {
        CallError::Refused { status: 404, error } => Failure::usage(format!("'{text}': {}", error.message)),
        error => error.into(),
    })
}

/// Jobs by status in one line, without those that are none.
pub(crate) fn counts(counts: &JobCounts) -> String {
    let parts = [
        (counts.building, "building"),
        (counts.uploading, "uploading"),
        (counts.pending, "waiting"),
        (counts.succeeded, "succeeded"),
        (counts.failed, "failed"),
        (counts.dep_failed, "failed by a dependency"),
        (counts.cancelled, "cancelled"),
    ];
    let parts: Vec<String> = parts.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")).collect();
    if parts.is_empty() { "no jobs".to_owned() } else { parts.join(", ") }
}

fn explain(build: &Build) -> String {
    let mut lines =
        vec![format!("job {} {} ({}, {})", build.id, build.name, build.system, build.status), build.drv_path.clone()];
    lines.extend(build.why.iter().map(|why| format!("  waits: {why}")));
    if let Some(kind) = build.failure_kind {
        lines.push(format!("  failed ({kind}): {}", build.message.as_deref().unwrap_or("no message")));
    }
    if let Some(cause) = &build.root_cause {
        lines.push(format!("  because job {} ({}) failed", cause.job, cause.name));
    }
    for attempt in &build.attempts {
        let message = attempt.message.as_deref().unwrap_or("");
        lines.push(format!("  attempt {} on {}: {} {message}", attempt.id, attempt.node, attempt.outcome));
    }
    lines.iter().map(|line| clean(line) + "\n").collect()
}

fn nodes_table(nodes: &[Node]) -> Table {
    let mut table = Table::new(&["NODE", "STATE", "DOES", "SYSTEMS", "JOBS", "VERSION"]);
    for node in nodes {
        let state = match (node.online, node.draining, &node.paused) {
            (false, ..) => format!("offline since {}", ago(now(), node.last_seen)),
            (_, true, _) => "draining".to_owned(),
            (_, _, Some(reason)) => format!("paused: {reason}"),
            _ => "online".to_owned(),
        };
        table.row([
            node.id.clone(),
            state,
            node.capabilities.join(" "),
            node.systems.join(" "),
            format!("{}/{}", node.running, node.max_jobs),
            node.version.clone(),
        ]);
    }
    table
}

fn evals_table(evaluations: &[Evaluation]) -> Table {
    let mut table = Table::new(&["EVAL", "PROJECT", "BRANCH", "COMMIT", "STATE", "ATTRIBUTES", "ASKED FOR"]);
    for evaluation in evaluations {
        let c = &evaluation.counts;
        let verdict = serde_json::to_value(evaluation.verdict).ok();
        table.row([
            evaluation.id.to_string(),
            evaluation.project.clone(),
            evaluation.branch.clone(),
            evaluation.commit.as_deref().unwrap_or("").chars().take(10).collect(),
            verdict.as_ref().and_then(|v| v.as_str()).unwrap_or("").to_owned(),
            format!("{}/{} built, {} failed", c.succeeded, c.total, c.failed + c.dep_failed + c.eval_errors),
            format!("{} ago", ago(now(), evaluation.created_at)),
        ]);
    }
    table
}

fn jobs_table(jobs: &[QueuedJob]) -> Table {
    let mut table = Table::new(&["JOB", "NAME", "SYSTEM", "STATE", "SINCE", "WHERE, OR WHY NOT"]);
    for job in jobs {
        let place = job.node.clone().map_or_else(|| job.why.join("; "), |node| format!("on {node}"));
        table.row([
            job.id.to_string(),
            job.name.clone(),
            job.system.clone(),
            job.status.to_string(),
            ago(now(), job.started_at.unwrap_or(job.queued_at)),
            place,
        ]);
    }
    table
}

fn now() -> Timestamp {
    use harmonia_core::Clock as _;
    harmonia_core::SystemClock.now()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What repositories, builds and other servers wrote cannot move the cursor, begin a line or turn text around.
    #[test]
    fn foreign_text_stays_within_its_line() {
        let odd = "x\u{1b}[2J\n\u{202e}error: fake\u{7}";
        let build = serde_json::json!({
            "id": 7, "project": "p", "drv_path": "/nix/store/x.drv", "name": odd, "system": odd, "required_features": [],
            "status": "failed", "failure_kind": "build", "message": odd, "exit_code": 1, "priority": 0, "outputs": {},
            "attrs": [odd], "root_cause": { "job": 8, "name": odd }, "why": [odd],
            "attempts": [{ "id": 1, "node": odd, "outcome": "failed", "failure_kind": "build", "message": odd, "exit_code": 1,
                "log_key": null, "started_at": "2026-01-01T00:00:00Z", "finished_at": null }],
            "queued_at": "2026-01-01T00:00:00Z", "started_at": null, "finished_at": null
        });
        let text = explain(&serde_json::from_value(build).expect("a build"));
        assert_eq!(text.lines().count(), 6, "{text:?}");
        let evaluation = serde_json::json!({
            "id": 1, "project": odd, "commit": odd, "branch": odd, "attempt": 1, "title": odd, "author": odd, "dirty": false,
            "status": "queued", "verdict": "running", "complete": false, "error": null,
            "counts": harmonia_core::api::AttrCounts::default(), "superseded_by": null,
            "created_at": "2026-01-01T00:00:00Z", "started_at": null, "finished_at": null
        });
        let evals = evals_table(&[serde_json::from_value(evaluation).expect("an evaluation")]).to_string();
        let job = serde_json::json!({
            "id": 1, "project": odd, "name": odd, "system": odd, "status": "pending", "why": [odd], "node": null,
            "unmet_deps": 0, "queued_at": "2026-01-01T00:00:00Z", "started_at": null
        });
        let jobs = jobs_table(&[serde_json::from_value(job).expect("a job")]).to_string();
        for table in [&evals, &jobs] {
            assert_eq!(table.lines().count(), 2, "{table:?}");
        }
        for text in [text, evals, jobs] {
            assert!(text.contains("x error: fake"), "{text:?}");
            assert!(!text.contains(['\u{1b}', '\u{7}', '\u{202e}']), "{text:?}");
        }
    }
}
