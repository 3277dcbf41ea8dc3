//! When something is broken: the forge, a frontend, an answer on its way.

use std::time::Duration;

use harmonia_coordinator::report;
use harmonia_fake_forges::{Effect, Event, InstallationAction, When};

use crate::world::{REPOSITORY, World, push_event};

/// A commit that is green in our database while nothing could be said to the forge.
async fn green_unheard(world: &World) -> String {
    let commit = world.pushed("main").await;
    world.evaluated(&[1]).await;
    world.built(&[]).await;
    commit
}

#[tokio::test]
async fn a_forge_that_is_down_for_an_hour_hears_the_last_word() {
    let world = World::start().await;
    let (before, commit) = world.push("main");
    assert_eq!(world.deliver(&world.github.delivery(push_event("refs/heads/main", &before, &commit))).await, 202);
    world.github.faults().down();
    world.github.forget();
    for _ in 0..60 {
        world.pass(Duration::from_mins(1)).await;
        world.step(&world.frontend).await;
    }
    assert!(world.shown(&commit).is_empty());
    let asked = world.github.requests().len();
    assert!((1..200).contains(&asked), "{asked} requests in an hour");
    world.github.faults().clear();
    world.pass(Duration::from_mins(20)).await;
    world.settle().await;
    world.evaluated(&[1]).await;
    world.built(&[]).await;
    world.settle().await;
    let shown = world.shown(&commit);
    assert_eq!((shown["nix-eval"].as_str(), shown["nix-build"].as_str()), ("success", "success"), "{shown:?}");
    assert!(shown.values().all(|state| state == "success"), "{shown:?}");
    world.assert_well_behaved();
}

#[tokio::test]
async fn a_forge_that_asks_to_wait_is_left_alone() {
    let world = World::start().await;
    let commit = green_unheard(&world).await;
    world.github.faults().add(When::always().times(1), Effect::TooManyRequests { retry_after: 600 });
    world.github.forget();
    for _ in 0..9 {
        world.pass(Duration::from_secs(60)).await;
        world.step(&world.frontend).await;
    }
    let asked = world.github.requests().len();
    // Two statuses may be on their way at once when the first hears of it.
    assert!(asked <= 2, "{asked} requests while the forge asked for ten minutes' rest");
    world.pass(Duration::from_mins(10)).await;
    world.settle().await;
    assert_eq!(world.shown(&commit)["nix-build"], "success");
    world.assert_well_behaved();
}

#[tokio::test]
async fn an_answer_that_is_lost_does_not_leave_two_check_runs() {
    let world = World::start().await;
    let (before, commit) = world.push("main");
    assert_eq!(world.deliver(&world.github.delivery(push_event("refs/heads/main", &before, &commit))).await, 202);
    world.github.faults().add(When::request("POST", "/check-runs").times(2), Effect::DropAfter);
    world.settle().await;
    world.evaluated(&[1]).await;
    world.built(&[]).await;
    world.settle().await;
    let shown = world.shown(&commit);
    assert_eq!((shown["nix-eval"].as_str(), shown["nix-build"].as_str()), ("success", "success"));
    assert_eq!((world.runs(&commit, "nix-eval"), world.runs(&commit, "nix-build")), (1, 1));
    world.assert_well_behaved();
}

#[tokio::test]
async fn a_frontend_that_dies_between_computing_and_sending_loses_nothing() {
    let world = World::start().await;
    let commit = green_unheard(&world).await;
    let dying = world.another_frontend("dying");
    world.pass(dying.report.burst * 2).await;
    report::compute(&dying.report).await.expect("computes");
    drop(dying);
    assert_ne!(world.shown(&commit).get("nix-build").map(String::as_str), Some("success"), "nothing was sent yet");
    world.settle().await;
    assert_eq!(world.shown(&commit)["nix-build"], "success");
    world.assert_well_behaved();
}

#[tokio::test]
async fn two_frontends_at_once_do_everything_once() {
    let world = World::start().await;
    let other = world.another_frontend("frontend-2");
    let (before, commit) = world.push("main");
    let delivery = world.github.delivery(push_event("refs/heads/main", &before, &commit));
    let answers = tokio::join!(world.deliver(&delivery), world.deliver(&delivery));
    assert_eq!(answers, (202, 202));
    for _ in 0..6 {
        world.pass(Duration::from_secs(40)).await;
        tokio::join!(world.step(&world.frontend), world.step(&other));
    }
    world.evaluated(&[1]).await;
    assert!(world.claim_evaluation().await.is_none(), "one evaluation");
    world.built(&[]).await;
    for _ in 0..6 {
        world.pass(Duration::from_secs(40)).await;
        tokio::join!(world.step(&world.frontend), world.step(&other));
    }
    world.settle().await;
    assert_eq!((world.runs(&commit, "nix-eval"), world.runs(&commit, "nix-build")), (1, 1));
    assert_eq!(world.shown(&commit)["nix-build"], "success");
    world.assert_well_behaved();
}

#[tokio::test]
async fn pressing_re_run_tries_again_what_failed() {
    let world = World::start().await;
    let commit = world.pushed("main").await;
    world.evaluated(&[1]).await;
    world.built(&[1]).await;
    world.settle().await;
    assert_eq!(world.shown(&commit)["nix-build"], "failure");
    let run = world.github.check_runs(REPOSITORY, &commit)["harmonia-ci/nix-build"].id;
    // A stranger may press, and nothing happens.
    world.happens(Event::CheckRunRerequested { repository: REPOSITORY, id: run, user: "eve" }).await;
    world.built(&[]).await;
    world.settle().await;
    assert_eq!(world.shown(&commit)["nix-build"], "failure");
    world.happens(Event::CheckRunRerequested { repository: REPOSITORY, id: run, user: "ada" }).await;
    world.built(&[]).await;
    world.settle().await;
    assert_eq!(world.shown(&commit)["nix-build"], "success");
    world.assert_well_behaved();
}

#[tokio::test]
async fn an_installation_that_is_removed_takes_its_repositories_along() {
    let world = World::start().await;
    let id = {
        let forge = world.github.world();
        *forge.installations.keys().next().expect("installed")
    };
    let (before, after) = world.push("main");
    let push = world.github.delivery(push_event("refs/heads/main", &before, &after));
    world.happens_deleted(id).await;
    // What arrives late concerns nobody any more.
    let status = world.deliver(&push).await;
    assert!([200, 202].contains(&status), "{status}");
    world.settle().await;
    assert!(world.queued_commits().await.is_empty());
    world.assert_well_behaved();
}

impl World {
    /// The app is removed from an account.
    async fn happens_deleted(&self, id: u64) {
        let delivery = self.github.delivery(Event::Installation { id, action: InstallationAction::Deleted });
        self.github.world().uninstall(id);
        assert_eq!(self.deliver(&delivery).await, 202);
        self.settle().await;
    }
}
