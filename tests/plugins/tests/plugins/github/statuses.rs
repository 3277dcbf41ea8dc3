//! Check runs and commit statuses, and comments: each once, whatever answers are lost.

use harmonia_core::forge::{Annotation, AnnotationLevel, CommitStatus, ForgeError, StatusState};
use harmonia_fake_forges::{CheckRun, Effect, When};

use super::setup::Github;
use crate::bench::status;

const NAME: &str = "harmonia-ci/nix-build";

fn runs(github: &Github) -> Vec<CheckRun> {
    github.fake.world().repository("acme/site").check_runs.clone()
}

fn annotation(line: u32) -> Annotation {
    let message = format!("attribute {line} does not evaluate");
    Annotation { path: "flake.nix".to_owned(), line, level: AnnotationLevel::Failure, message }
}

#[tokio::test]
async fn a_check_run_is_made_once_and_kept_up_to_date() {
    let github = Github::start().await;
    let (site, _, head) = github.add("acme/site");
    let queued = CommitStatus { started_at: None, ..status(&site, &head, StatusState::Pending) };
    github.report(&queued).await.expect("a status");
    assert_eq!((runs(&github).len(), runs(&github)[0].status.as_str()), (1, "queued"));
    let running = status(&site, &head, StatusState::Pending);
    for done in ["1/3 done", "2/3 done"] {
        let progress = CommitStatus { description: done.to_owned(), ..running.clone() };
        github.report(&progress).await.expect("a status");
        let now = runs(&github);
        assert_eq!((now.len(), now[0].status.as_str(), now[0].title.as_deref()), (1, "in_progress", Some(done)));
    }
    let failed =
        CommitStatus { annotations: vec![annotation(3), annotation(7)], ..status(&site, &head, StatusState::Failure) };
    github.report(&failed).await.expect("a status");
    // Said again, as after a crash of ours: nothing is doubled.
    github.report(&failed).await.expect("a status");
    let more = CommitStatus { annotations: vec![annotation(3), annotation(7), annotation(9)], ..failed.clone() };
    github.report(&more).await.expect("a status");
    let now = runs(&github);
    assert_eq!(now.len(), 1);
    let run = &now[0];
    assert_eq!((run.name.as_str(), run.head_sha.as_str()), (NAME, head.as_str()));
    assert_eq!((run.status.as_str(), run.conclusion.as_deref()), ("completed", Some("failure")));
    assert_eq!(run.details_url.as_deref(), Some("https://ci.example.org/evaluations/7"));
    assert_eq!(run.summary.as_deref(), Some("## Summary\n\n*two* jobs"));
    assert_eq!(run.started_at.as_deref(), Some("2026-11-22T11:58:00Z"));
    assert_eq!(run.completed_at.as_deref(), Some("2026-11-22T11:59:01Z"));
    let lines: Vec<_> = run.annotations.iter().map(|annotation| annotation["start_line"].as_u64()).collect();
    assert_eq!(lines, [Some(3), Some(7), Some(9)]);
    assert_eq!(run.annotations[0]["annotation_level"], "failure");
    assert_eq!(github.count("GET", "/check-runs"), 1, "looked for once, remembered then");

    // A rebuild that succeeds repairs it in place; Re-run begins a new one beside it.
    github.report(&status(&site, &head, StatusState::Success)).await.expect("a status");
    assert_eq!((runs(&github).len(), runs(&github)[0].conclusion.as_deref()), (1, Some("success")));
    github.report(&running).await.expect("a status");
    github.report(&status(&site, &head, StatusState::Error)).await.expect("a status");
    let now = runs(&github);
    assert_eq!(now.len(), 2);
    assert_eq!((now[0].conclusion.as_deref(), now[1].conclusion.as_deref()), (Some("success"), Some("cancelled")));

    let other = CommitStatus { context: "harmonia-ci/nix-eval".to_owned(), ..running };
    github.report(&other).await.expect("a status");
    assert_eq!(github.fake.check_runs("acme/site", &head).len(), 2, "one for each context");
    github.finish();
}

#[tokio::test]
async fn an_answer_that_is_lost_does_not_leave_two_runs() {
    let github = Github::start().await;
    let (site, _, head) = github.add("acme/site");
    let pending = status(&site, &head, StatusState::Pending);
    let lost = |method, effect| github.fake.faults().add(When::request(method, "/check-runs").times(1), effect);
    for effect in [Effect::DropAfter, Effect::CutOff, Effect::Gibberish, Effect::DropBefore] {
        let commit = github.fake.world().push("acme/site", "main", "Next");
        let before = runs(&github).len();
        let pending = status(&site, &commit, StatusState::Pending);
        lost("POST", effect.clone());
        let answer = github.report(&pending).await;
        assert!(matches!(answer, Err(ForgeError::Unavailable(_) | ForgeError::Invalid(_))), "{effect:?}: {answer:?}");
        github.report(&pending).await.expect("a status");
        github.report(&status(&site, &commit, StatusState::Success)).await.expect("a status");
        assert_eq!(runs(&github).len(), before + 1, "{effect:?}");
    }

    // The same when it begins again.
    github.report(&status(&site, &head, StatusState::Failure)).await.expect("a status");
    let before = runs(&github).len();
    lost("POST", Effect::DropAfter);
    assert!(matches!(github.report(&pending).await, Err(ForgeError::Unavailable(_))));
    github.report(&pending).await.expect("a status");
    github.report(&status(&site, &head, StatusState::Success)).await.expect("a status");
    assert_eq!(runs(&github).len(), before + 1);

    // Annotations are added by every update; those of a lost one are there already.
    let failed =
        CommitStatus { annotations: vec![annotation(3), annotation(7)], ..status(&site, &head, StatusState::Failure) };
    lost("PATCH", Effect::DropAfter);
    assert!(matches!(github.report(&failed).await, Err(ForgeError::Unavailable(_))));
    github.report(&failed).await.expect("a status");
    let run = github.fake.check_runs("acme/site", &head).remove(NAME).expect("it is there");
    assert_eq!((run.conclusion.as_deref(), run.annotations.len()), (Some("failure"), 2));
    github.finish();
}

#[tokio::test]
async fn commit_statuses_where_they_are_wanted() {
    let github = Github::start_with(|harness| harness.setting("status_kind", "statuses")).await;
    let (site, _, head) = github.add("acme/site");
    for state in [StatusState::Pending, StatusState::Success, StatusState::Failure, StatusState::Error] {
        github.report(&status(&site, &head, state)).await.expect("a status");
        let shown = github.fake.statuses("acme/site", &head);
        assert_eq!((shown.len(), shown[NAME].state.as_str()), (1, state.as_str()));
        assert_eq!(shown[NAME].target_url, "https://ci.example.org/evaluations/7");
    }
    let long = CommitStatus { description: "é".repeat(300), ..status(&site, &head, StatusState::Success) };
    github.report(&long).await.expect("a status");
    github.fake.faults().add(When::request("POST", "/statuses").times(1), Effect::DropAfter);
    assert!(matches!(github.report(&long).await, Err(ForgeError::Unavailable(_))));
    github.report(&long).await.expect("a status");
    assert_eq!(github.fake.statuses("acme/site", &head)[NAME].description.chars().count(), 140);
    assert_eq!(runs(&github).len(), 0);
    github.finish();
}

#[tokio::test]
async fn a_status_kind_that_does_not_exist_is_refused_by_name() {
    let github = Github::start_with(|harness| harness.setting("status_kind", "emoji")).await;
    let (site, _, head) = github.add("acme/site");
    let refused = github.report(&status(&site, &head, StatusState::Success)).await;
    assert!(matches!(&refused, Err(ForgeError::Denied(why)) if why.contains("status_kind")), "{refused:?}");
    github.finish();
}

#[tokio::test]
async fn a_comment_is_written_once_for_its_key() {
    let github = Github::start().await;
    let (site, installation, _) = github.add("acme/site");
    let number = github.fake.world().open_pull_request("acme/site", "mallory/site", "patch", "mallory");
    let comments = || {
        let world = github.fake.world();
        world.repository("acme/site").comments.iter().map(|comment| comment.body.clone()).collect::<Vec<_>>()
    };
    github.comment(&site, number, "head-changed/abc", "The head changed.").await.expect("a comment");
    github.comment(&site, number, "head-changed/abc", "The head changed.").await.expect("it is there");
    assert_eq!(comments().len(), 1);
    assert!(comments()[0].starts_with("The head changed."), "{:?}", comments());
    github.fake.faults().add(When::request("POST", "/comments").times(1), Effect::DropAfter);
    let lost = github.comment(&site, number, "head-changed/abcd", "The head changed.").await;
    assert!(matches!(lost, Err(ForgeError::Unavailable(_))), "{lost:?}");
    github.comment(&site, number, "head-changed/abcd", "The head changed.").await.expect("it is there");
    assert_eq!(comments().len(), 2, "a longer key is another one");
    // Behind more than a page of what others say.
    for _ in 0..150 {
        github.fake.world().add_comment("acme/site", number, "mallory", "noise");
    }
    github.comment(&site, number, "late", "Late.").await.expect("a comment");
    github.comment(&site, number, "late", "Late.").await.expect("it is there");
    assert_eq!(comments().len(), 153);
    assert_eq!(github.comment(&site, 4711, "key", "body").await.err(), Some(ForgeError::NotFound));
    let permissions = |level: &str| {
        let mut world = github.fake.world();
        let of = &mut world.installations.get_mut(&installation).expect("it is there").permissions;
        of.insert("pull_requests".to_owned(), level.to_owned());
    };
    permissions("read");
    let refused = github.comment(&site, number, "another", "Another.").await;
    assert!(matches!(refused, Err(ForgeError::Denied(_))), "{refused:?}");
    github.finish();
}
