//! Statuses: as check runs (with summary, annotations and a Re-run button), or as commit statuses.
//!
//! GitHub makes a new check run with every `POST`, so the run that we made is remembered in the store, and looked for when
//! it is not there: an answer that was lost must not leave two.

use harmonia_plugin::forge::Error;
use harmonia_plugin::forge::statuses::{AnnotationLevel, State, Status};
use harmonia_plugin::serde_json::Value;
use harmonia_plugin::{http, json, kv, settings, time};
use serde::{Deserialize, Serialize};

use crate::api::Api;

/// How long a run is remembered.
const KEPT_S: u32 = 7 * 24 * 3600;
/// Longest description of a commit status.
const DESCRIPTION_CHARS_MAX: usize = 140;
/// Most annotations of one request.
const ANNOTATIONS_MAX: usize = 50;
/// Longest summary, in bytes, with room to spare below GitHub's 65,535 characters.
const SUMMARY_BYTES_MAX: usize = 60_000;
/// Longest key part of a context.
const CONTEXT_BYTES_MAX: usize = 300;

/// Makes GitHub show it.
pub(crate) fn report(api: &Api, status: &Status) -> Result<(), Error> {
    match settings::get("status_kind").as_deref() {
        None | Some("check-runs") => check_run(api, status),
        Some("statuses") => {
            let url = api.repository_url(&status.repository, &["statuses", &status.commit])?;
            api.post(&url, &commit_status(status)).map(drop)
        }
        Some(other) => {
            Err(Error::denied(format!("the setting status_kind is `{other}`; it may be check-runs or statuses")))
        }
    }
}

/// A run as we remember it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Run {
    id: u64,
    completed: bool,
}

#[derive(Deserialize)]
struct Found {
    id: u64,
    status: String,
}

#[derive(Deserialize)]
struct FoundRuns {
    check_runs: Vec<Found>,
}

fn check_run(api: &Api, status: &Status) -> Result<(), Error> {
    let key = key(status);
    let known = match kv::get_json(&key)? {
        Some(run) => Some(run),
        None => find(api, status)?,
    };
    let body = run_body(status);
    // A run that is over stays as it is in the history: what begins again is a new one.
    let again = known.filter(|run| !run.completed || status.state != State::Pending);
    let mut answer = None;
    if let Some(run) = again {
        let url = api.repository_url(&status.repository, &["check-runs", &run.id.to_string()])?;
        answer = match api.patch(&url, &body) {
            Ok(updated) => Some(updated),
            Err(Error::NotFound) => None,
            Err(error) => return Err(error),
        };
    }
    let answer = if let Some(updated) = answer {
        updated
    } else {
        let mut body = body;
        body["head_sha"] = json!(status.commit);
        api.post(&api.repository_url(&status.repository, &["check-runs"])?, &body)?
    };
    let Found { id, status } = answer.json()?;
    kv::set_json(&key, &Run { id, completed: status == "completed" }, Some(KEPT_S))?;
    Ok(())
}

/// The newest run of ours with this name.
fn find(api: &Api, status: &Status) -> Result<Option<Run>, Error> {
    let url = api.repository_url(&status.repository, &["commits", &status.commit, "check-runs"])?;
    let url = http::query(&url, &[("check_name", &status.context), ("filter", "latest"), ("per_page", "100")]);
    // A token of an App sees all runs of that name; those of others we may not change, and `app_id` wants the numeric id.
    let url = match settings::required("app_id")? {
        id if id.bytes().all(|byte| byte.is_ascii_digit()) => http::query(&url, &[("app_id", &id)]),
        _ => url,
    };
    let found: FoundRuns = api.get(&url)?.json()?;
    Ok(found
        .check_runs
        .iter()
        .max_by_key(|run| run.id)
        .map(|run| Run { id: run.id, completed: run.status == "completed" }))
}

fn key(status: &Status) -> String {
    let mut end = status.context.len().min(CONTEXT_BYTES_MAX);
    while !status.context.is_char_boundary(end) {
        end -= 1;
    }
    format!("run/{}/{}/{}-{:x}", status.repository.id, status.commit, &status.context[..end], fnv(&status.context))
}

/// FNV-1a, so that long contexts which differ at their ends have different keys.
fn fnv(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

fn run_body(status: &Status) -> Value {
    let mut body = json!({
        "name": status.context,
        "output": {
            "title": status.description,
            "summary": cut(&status.summary, SUMMARY_BYTES_MAX),
            "annotations": annotations(status),
        },
    });
    match status.state {
        State::Pending if status.started_at_ms.is_none() => body["status"] = json!("queued"),
        State::Pending => body["status"] = json!("in_progress"),
        ended => {
            body["status"] = json!("completed");
            body["conclusion"] = json!(match ended {
                State::Success => "success",
                State::Failure => "failure",
                State::Pending | State::Error => "cancelled",
            });
            let ended_ms = status.finished_at_ms.unwrap_or_else(time::now_ms);
            body["completed_at"] = json!(time::format_rfc3339(ended_ms));
        }
    }
    if let Some(started) = status.started_at_ms {
        body["started_at"] = json!(time::format_rfc3339(started));
    }
    if let Some(url) = &status.target_url {
        body["details_url"] = json!(url);
    }
    body
}

fn annotations(status: &Status) -> Vec<Value> {
    let level = |level: AnnotationLevel| match level {
        AnnotationLevel::Notice => "notice",
        AnnotationLevel::Warning => "warning",
        AnnotationLevel::Failure => "failure",
    };
    status
        .annotations
        .iter()
        .take(ANNOTATIONS_MAX)
        .map(|annotation| {
            json!({
                "path": annotation.path,
                "start_line": annotation.line,
                "end_line": annotation.line,
                "annotation_level": level(annotation.level),
                "message": cut(&annotation.message, SUMMARY_BYTES_MAX),
            })
        })
        .collect()
}

fn commit_status(status: &Status) -> Value {
    let state = match status.state {
        State::Pending => "pending",
        State::Success => "success",
        State::Failure => "failure",
        State::Error => "error",
    };
    let description: String = status.description.chars().take(DESCRIPTION_CHARS_MAX).collect();
    let mut body = json!({ "state": state, "context": status.context, "description": description });
    if let Some(url) = &status.target_url {
        body["target_url"] = json!(url);
    }
    body
}

fn cut(text: &str, bytes_max: usize) -> &str {
    let mut end = text.len().min(bytes_max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;
    use harmonia_plugin::forge::RepositoryRef;
    use harmonia_plugin::forge::statuses::Annotation;

    fn status(state: State) -> Status {
        Status {
            repository: RepositoryRef { id: "1".to_owned(), full_name: "o/r".to_owned() },
            commit: "c".repeat(40),
            context: "harmonia-ci/nix-build".to_owned(),
            state,
            description: "3/42 done".to_owned(),
            target_url: Some("https://ci.example.org/x".to_owned()),
            summary: "é".repeat(50_000),
            annotations: (1..=60)
                .map(|line| Annotation {
                    path: "flake.nix".to_owned(),
                    line,
                    level: AnnotationLevel::Failure,
                    message: "wrong".to_owned(),
                })
                .collect(),
            started_at_ms: Some(1_795_308_300_000),
            finished_at_ms: Some(1_795_308_360_000),
        }
    }

    #[test]
    fn every_state_has_its_run() {
        for (state, said, conclusion) in [
            (State::Pending, "in_progress", None),
            (State::Success, "completed", Some("success")),
            (State::Failure, "completed", Some("failure")),
            (State::Error, "completed", Some("cancelled")),
        ] {
            let body = run_body(&status(state));
            assert_eq!(body["status"], said);
            assert_eq!(body.get("conclusion").and_then(Value::as_str), conclusion);
            assert_eq!(body.get("completed_at").is_some(), conclusion.is_some());
            assert_eq!(body["output"]["annotations"].as_array().map(Vec::len), Some(50));
            assert_eq!(body["output"]["summary"].as_str().map(str::len), Some(60_000));
        }
        let queued = Status { started_at_ms: None, finished_at_ms: None, ..status(State::Pending) };
        assert_eq!(run_body(&queued)["status"], "queued");
    }

    #[test]
    fn keys_are_short_and_differ() {
        let long = |end: &str| Status { context: format!("{}{end}", "é".repeat(400)), ..status(State::Pending) };
        let (a, b) = (key(&long("a")), key(&long("b")));
        assert!(a != b && a.len() < 512, "{a}");
    }

    #[test]
    fn commit_statuses_are_one_line() {
        let long = Status { description: "é".repeat(200), ..status(State::Error) };
        let body = commit_status(&long);
        assert_eq!(body["state"], "error");
        assert_eq!(body["description"].as_str().map(|text| text.chars().count()), Some(140));
    }
}
