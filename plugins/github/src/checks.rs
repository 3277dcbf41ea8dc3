//! Statuses: as check runs (with summary, annotations and a Re-run button), or as commit statuses.
//!
//! GitHub makes a new check run with every `POST`, so the run that we made is remembered in the store, and looked for when
//! it is not there: an answer that was lost must not leave two.

use harmonia_plugin::forge::Error;
use harmonia_plugin::forge::statuses::{Annotation, AnnotationLevel, State, Status};
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Run {
    id: u64,
    completed: bool,
    /// Fingerprints of the annotations that it shows: GitHub adds to them what an update brings.
    annotations: Vec<u32>,
}

#[derive(Deserialize)]
struct Found {
    id: u64,
    status: String,
    output: Option<FoundOutput>,
    app: Option<FoundApp>,
}

#[derive(Deserialize)]
struct FoundOutput {
    #[serde(default)]
    annotations_count: usize,
}

#[derive(Deserialize)]
struct FoundApp {
    id: u64,
    client_id: Option<String>,
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
    // A run that is over stays as it is in the history: what begins again is a new one.
    let known = known.filter(|run: &Run| !run.completed || status.state != State::Pending);
    let shown = known.as_ref().map(|run| run.annotations.clone()).unwrap_or_default();
    let new: Vec<&Annotation> =
        annotations(status).filter(|annotation| !shown.contains(&fingerprint(annotation))).collect();
    if known.is_none() || !new.is_empty() {
        // Done twice, this leaves two. Should its answer be lost, the next attempt looks instead of remembering.
        kv::delete(&key)?;
    }
    let mut updated = None;
    if let Some(run) = &known {
        let url = api.repository_url(&status.repository, &["check-runs", &run.id.to_string()])?;
        updated = match api.patch(&url, &run_body(status, &new)) {
            Ok(answer) => Some(answer),
            Err(Error::NotFound) => None,
            Err(error) => return Err(error),
        };
    }
    let (answer, shown) = if let Some(answer) = updated {
        (answer, shown.into_iter().chain(new.into_iter().map(fingerprint)).collect())
    } else {
        kv::delete(&key)?;
        let all: Vec<&Annotation> = annotations(status).collect();
        let mut body = run_body(status, &all);
        body["head_sha"] = json!(status.commit);
        let answer = api.post(&api.repository_url(&status.repository, &["check-runs"])?, &body)?;
        (answer, all.into_iter().map(fingerprint).collect())
    };
    let Found { id, status, .. } = answer.json()?;
    let run = Run { id, completed: status == "completed", annotations: shown };
    kv::set_json(&key, &run, Some(KEPT_S))?;
    Ok(())
}

/// The newest run of ours with this name.
fn find(api: &Api, status: &Status) -> Result<Option<Run>, Error> {
    let app = settings::required("app_id")?;
    let url = api.repository_url(&status.repository, &["commits", &status.commit, "check-runs"])?;
    let url = http::query(&url, &[("check_name", &status.context), ("filter", "latest"), ("per_page", "100")]);
    // A token of an App sees all runs of that name; those of others we may not change. `app_id` wants the numeric id.
    let url = match &app {
        id if id.bytes().all(|byte| byte.is_ascii_digit()) => http::query(&url, &[("app_id", id)]),
        _ => url,
    };
    let is_ours = |run: &&Found| {
        let by = run.app.as_ref();
        by.is_none_or(|by| by.id.to_string() == app || by.client_id.as_deref().is_none_or(|id| id == app))
    };
    let found: FoundRuns = api.get(&url)?.json()?;
    Ok(found.check_runs.iter().filter(is_ours).max_by_key(|run| run.id).map(|run| {
        // Sent in this order; which they are is not told.
        let shown = run.output.as_ref().map_or(0, |output| output.annotations_count);
        Run {
            id: run.id,
            completed: run.status == "completed",
            annotations: annotations(status).take(shown).map(fingerprint).collect(),
        }
    }))
}

fn annotations(status: &Status) -> impl Iterator<Item = &Annotation> {
    status.annotations.iter().take(ANNOTATIONS_MAX)
}

fn fingerprint(annotation: &Annotation) -> u32 {
    let Annotation { path, line, level, message } = annotation;
    (fnv(&format!("{path}\n{line}\n{level:?}\n{message}")) >> 32) as u32
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

fn run_body(status: &Status, annotations: &[&Annotation]) -> Value {
    let mut body = json!({
        "name": status.context,
        "output": {
            "title": status.description,
            "summary": cut(&status.summary, SUMMARY_BYTES_MAX),
            "annotations": annotations.iter().map(|annotation| annotation_body(annotation)).collect::<Vec<_>>(),
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

fn annotation_body(annotation: &Annotation) -> Value {
    let level = match annotation.level {
        AnnotationLevel::Notice => "notice",
        AnnotationLevel::Warning => "warning",
        AnnotationLevel::Failure => "failure",
    };
    json!({
        "path": annotation.path,
        "start_line": annotation.line,
        "end_line": annotation.line,
        "annotation_level": level,
        "message": cut(&annotation.message, SUMMARY_BYTES_MAX),
    })
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
            let status = status(state);
            let body = run_body(&status, &annotations(&status).collect::<Vec<_>>());
            assert_eq!(body["status"], said);
            assert_eq!(body.get("conclusion").and_then(Value::as_str), conclusion);
            assert_eq!(body.get("completed_at").is_some(), conclusion.is_some());
            assert_eq!(body["output"]["annotations"].as_array().map(Vec::len), Some(50));
            assert_eq!(body["output"]["summary"].as_str().map(str::len), Some(60_000));
        }
        let queued = Status { started_at_ms: None, finished_at_ms: None, ..status(State::Pending) };
        assert_eq!(run_body(&queued, &[])["status"], "queued");
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
