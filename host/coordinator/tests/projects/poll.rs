//! Polling of forges' projects and of plain git projects.

use std::time::Duration;

use harmonia_coordinator::poll;
use harmonia_core::api::ProjectChanges;
use harmonia_core::forge::{Event, ForgeError, PullRequestAction};
use harmonia_core::ports::RemoteHead;
use harmonia_db::ClaimedDelivery;

use crate::world::{MAIN, World, pull_request};

const URL: &str = "https://git.example/x.git";

async fn step(world: &World) -> u64 {
    poll::step(&world.options).await.expect("no trouble with the database")
}

async fn poll_error(world: &World, name: &str) -> Option<String> {
    world.db().projects_settings(Some(name), None, false, 1).await.expect("listed").remove(0).poll_error
}

/// Evaluations of the git project as (commit, branch, whether it is live), the oldest first.
async fn evaluations(world: &World) -> Vec<(String, String, bool)> {
    let mut all = world.db().view_evaluations(Some("git/x"), None, 50).await.expect("listed");
    all.reverse();
    all.into_iter().map(|e| (e.commit.expect("known"), e.branch, e.superseded_by.is_none())).collect()
}

fn row(commit: &str, branch: &str, live: bool) -> (String, String, bool) {
    (commit.repeat(40), branch.to_owned(), live)
}

#[tokio::test]
async fn a_git_project_is_evaluated_when_its_head_moves() {
    let world = World::new().await;
    world.db().add_git_project("git/x", URL, None, 60, "me").await.expect("added");
    let at = |commit: &str| {
        let head = RemoteHead { branch: MAIN.to_owned(), commit: commit.repeat(40) };
        world.remotes.0.lock().expect("lock").insert(URL.to_owned(), Ok(head));
    };
    assert_eq!(step(&world).await, 1, "due at once");
    assert_eq!(poll_error(&world, "git/x").await.as_deref(), Some("no such repository"));
    assert_eq!(step(&world).await, 0, "then every minute");
    at("a");
    world.later().await;
    step(&world).await;
    assert_eq!(poll_error(&world, "git/x").await, None);
    assert_eq!(evaluations(&world).await, [row("a", MAIN, true)]);
    world.later().await;
    step(&world).await;
    assert_eq!(evaluations(&world).await.len(), 1, "the head did not move");
    for commit in ["b", "a"] {
        at(commit);
        world.later().await;
        step(&world).await;
    }
    let expected = [row("a", MAIN, false), row("b", MAIN, false), row("a", MAIN, true)];
    assert_eq!(evaluations(&world).await, expected, "back to the older commit is news too");
    world.db().disable_project("git/x", "me").await.expect("disabled");
    at("c");
    world.later().await;
    assert_eq!(step(&world).await, 0);
    // Another branch, of which the remote says nothing yet.
    let changes = ProjectChanges { enabled: Some(true), default_branch: Some("next".to_owned()), ..Default::default() };
    world.db().set_project("git/x", &changes, "me").await.expect("changed");
    assert_eq!(step(&world).await, 1, "settings count at once");
    assert_eq!(evaluations(&world).await.last(), Some(&row("c", "next", true)));
}

async fn deliveries(world: &World) -> Vec<ClaimedDelivery> {
    let claimed = world.db().claim_deliveries(&world.options.node, 50, Duration::from_mins(1)).await.expect("claimed");
    for delivery in &claimed {
        world.db().delivery_done(delivery, "seen").await.expect("done");
    }
    claimed
}

/// The events of the next poll, in words.
async fn events(world: &World) -> Vec<String> {
    world.later().await;
    step(world).await;
    let words = |event: &Event| match event {
        Event::Push(push) => format!("push {}", push.commit),
        Event::PullRequest(event) => {
            format!("{:?} {} {}", event.action, event.pull_request.number, event.pull_request.head_commit)
        }
        other => format!("{other:?}"),
    };
    deliveries(world).await.iter().flat_map(|delivery| &delivery.delivery.events).map(words).collect()
}

async fn polled(pull_requests: bool) -> World {
    let world = World::new().await;
    world.project("1", "o/a").await;
    let changes = ProjectChanges {
        poll_interval_s: Some(60),
        poll_pull_requests: Some(pull_requests),
        ..ProjectChanges::default()
    };
    world.db().set_project("o/a", &changes, "me").await.expect("set");
    head(&world, "c1");
    world
}

fn head(world: &World, commit: &str) {
    world.script(|script| script.heads.insert(("o/a".to_owned(), MAIN.to_owned()), commit.to_owned()));
}

#[tokio::test]
async fn what_a_poll_finds_becomes_a_delivery() {
    let world = polled(false).await;
    assert_eq!(events(&world).await, ["push c1"]);
    assert_eq!(events(&world).await, Vec::<String>::new(), "nothing moved");
    assert_eq!(world.forge.calls(), ["head o/a main", "head o/a main"], "nobody asked for pull requests");
    head(&world, "c2");
    assert_eq!(events(&world).await, ["push c2"]);
    head(&world, "c1");
    assert_eq!(events(&world).await, ["push c1"], "back to an older commit is another delivery");
}

#[tokio::test]
async fn pull_requests_are_followed_from_their_opening_to_their_end() {
    let world = polled(true).await;
    world.script(|script| script.pulls = (1..=5).map(|n| pull_request(n, &format!("h{n}"))).collect());
    let opened: Vec<String> = (1..=5).map(|n| format!("{:?} {n} h{n}", PullRequestAction::Opened)).collect();
    assert_eq!(events(&world).await[1..], opened, "over all pages");
    assert_eq!(events(&world).await, Vec::<String>::new());
    world.script(|script| {
        script.pulls[0].head_commit = "h1b".to_owned();
        script.pulls[1].is_draft = true;
        script.pulls[2].base_branch = "next".to_owned();
        script.pulls[3].is_open = false;
    });
    assert_eq!(events(&world).await, ["Pushed 1 h1b", "Edited 2 h2", "Edited 3 h3", "Closed 4 h4"]);
    world.script(|script| {
        script.pulls[1].is_draft = false;
        script.pulls[3].is_open = true;
    });
    assert_eq!(events(&world).await, ["Ready 2 h2", "Opened 4 h4"], "opened again with the same head");
    assert_eq!(events(&world).await, Vec::<String>::new());
}

#[tokio::test]
async fn a_crash_between_telling_and_remembering_tells_once() {
    let world = polled(false).await;
    events(&world).await;
    head(&world, "c2");
    // A node told of the new head and died before it could remember.
    world.later().await;
    let forges = [crate::world::FORGE.to_owned()];
    let due = world.db().due_polls(&world.options.node, &forges, true, 1, Duration::ZERO).await;
    let target = due.expect("taken").remove(0);
    let delivery = harmonia_core::forge::Delivery {
        id: target.delivery_id("branch/main", "c2"),
        events: vec![Event::PermissionsChanged(None)],
    };
    let new = harmonia_db::NewDelivery { forge: crate::world::FORGE, delivery: &delivery, duration_ms: 0 };
    world.db().record_delivery(&new).await.expect("recorded");
    assert_eq!(deliveries(&world).await.len(), 1);
    assert_eq!(events(&world).await, Vec::<String>::new(), "the same delivery");
    head(&world, "c3");
    assert_eq!(events(&world).await, ["push c3"], "and it goes on");
}

#[tokio::test]
async fn errors_of_a_poll_are_shown_and_forges_obeyed() {
    let world = polled(false).await;
    world.script(|script| script.errors.push_back(ForgeError::Denied("the token expired".to_owned())));
    assert_eq!(events(&world).await, Vec::<String>::new());
    let error = poll_error(&world, "o/a").await.expect("shown");
    assert_eq!(error, "could not ask for the head of the default branch: refused: the token expired");
    assert_eq!(events(&world).await, ["push c1"]);
    assert_eq!(poll_error(&world, "o/a").await, None);
    // Longer than the project's own interval.
    world.script(|script| script.errors.push_back(ForgeError::RetryAfter(4_000)));
    world.later().await;
    step(&world).await;
    let changes = ProjectChanges { poll_interval_s: Some(1), ..ProjectChanges::default() };
    world.forge.calls();
    assert_eq!(step(&world).await, 0);
    assert_eq!(world.forge.calls(), Vec::<String>::new());
    world.db().set_project("o/a", &changes, "me").await.expect("set");
}
