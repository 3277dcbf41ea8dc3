//! When something is broken: the forge, a frontend, an answer on its way.

use std::time::Duration;

use harmonia_coordinator::report;
use harmonia_fake_forges::{Effect, Event, When};

use crate::forge::{Forge, Kind, REPOSITORY, journeys};
use crate::world::{World, push_event};

journeys! {
    both: a_forge_that_is_down_for_an_hour_hears_the_last_word, a_token_that_expired_loses_no_push,
        a_forge_that_asks_to_wait_is_left_alone,
        an_answer_that_is_lost_leaves_the_last_word, a_frontend_that_dies_between_computing_and_sending_loses_nothing,
        two_frontends_at_once_do_everything_once;
    github: pressing_re_run_tries_again_what_failed;
    gitea: ;
}

/// A commit that is green in our database while nothing could be said to the forge.
async fn green_unacknowledged(world: &World) -> String {
    let commit = world.pushed("main").await;
    world.evaluated(&[1]).await;
    world.built(&[]).await;
    commit
}

async fn a_forge_that_is_down_for_an_hour_hears_the_last_word(world: &World) {
    let (before, commit) = world.push("main");
    assert_eq!(world.deliver(&world.forge.delivery(push_event("refs/heads/main", &before, &commit))).await, 202);
    world.forge.faults().down();
    world.forge.forget();
    for _ in 0..60 {
        world.pass(Duration::from_mins(1)).await;
        world.step(&world.frontend).await;
    }
    assert!(world.shown(&commit).is_empty());
    let asked = world.forge.requests().len();
    assert!((1..200).contains(&asked), "{asked} requests in an hour");
    world.forge.faults().clear();
    world.pass(Duration::from_mins(20)).await;
    world.settle().await;
    world.evaluated(&[1]).await;
    world.built(&[]).await;
    world.settle().await;
    world.assert_shown(&commit, "success", "success");
    let shown = world.shown(&commit);
    assert!(shown.values().all(|state| state == "success"), "{shown:?}");
}

async fn a_token_that_expired_loses_no_push(world: &World) {
    let (before, commit) = world.push("main");
    assert_eq!(world.deliver(&world.forge.delivery(push_event("refs/heads/main", &before, &commit))).await, 202);
    world.forge.faults().add(When::always(), Effect::Status(401));
    world.forge.forget();
    for _ in 0..60 {
        world.pass(Duration::from_mins(1)).await;
        world.step(&world.frontend).await;
    }
    let asked = world.forge.requests().len();
    assert!((2..100).contains(&asked), "{asked} requests in an hour");
    let (whole, public) = world.plugin_error();
    assert!(whole.contains("refused") && whole.contains("401"), "{whole}");
    assert!(public.contains("refused: a credential or permission is missing or has expired"), "{public}");
    // Whoever runs the server gives it another token.
    world.forge.faults().clear();
    world.pass(Duration::from_mins(20)).await;
    world.settle().await;
    world.evaluated(&[1]).await;
    world.built(&[]).await;
    world.settle().await;
    world.assert_shown(&commit, "success", "success");
}

async fn a_forge_that_asks_to_wait_is_left_alone(world: &World) {
    let commit = green_unacknowledged(world).await;
    world.forge.faults().add(When::always().times(1), Effect::TooManyRequests { retry_after: 600 });
    world.forge.forget();
    for _ in 0..9 {
        world.pass(Duration::from_mins(1)).await;
        world.step(&world.frontend).await;
    }
    let asked = world.forge.requests().len();
    // Two statuses may be on their way at once when the first hears of it.
    assert!(asked <= 2, "{asked} requests while the forge asked for ten minutes' rest");
    world.pass(Duration::from_mins(10)).await;
    world.settle().await;
    assert_eq!(world.shown(&commit)["nix-build"], "success");
}

async fn an_answer_that_is_lost_leaves_the_last_word(world: &World) {
    let (before, commit) = world.push("main");
    assert_eq!(world.deliver(&world.forge.delivery(push_event("refs/heads/main", &before, &commit))).await, 202);
    world.forge.faults().add(world.forge.status_requests().times(2), Effect::DropAfter);
    world.settle().await;
    world.evaluated(&[1]).await;
    world.built(&[]).await;
    world.settle().await;
    world.assert_shown(&commit, "success", "success");
    // A check run made twice would stay; a commit status said twice is as if it were said once.
    if world.forge.kind() == Kind::Github {
        assert_eq!(world.forge.repetitions(&commit), 0);
    }
}

async fn a_frontend_that_dies_between_computing_and_sending_loses_nothing(world: &World) {
    let commit = green_unacknowledged(world).await;
    let dying = world.another_frontend("dying");
    world.pass(dying.report.burst * 2).await;
    report::compute(&dying.report).await.expect("computes");
    drop(dying);
    assert_ne!(world.shown(&commit).get("nix-build").map(String::as_str), Some("success"), "nothing was sent yet");
    world.settle().await;
    assert_eq!(world.shown(&commit)["nix-build"], "success");
}

async fn two_frontends_at_once_do_everything_once(world: &World) {
    let other = world.another_frontend("frontend-2");
    let (before, commit) = world.push("main");
    let delivery = world.forge.delivery(push_event("refs/heads/main", &before, &commit));
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
    assert_eq!(world.forge.repetitions(&commit), 0);
    assert_eq!(world.shown(&commit)["nix-build"], "success");
}

async fn pressing_re_run_tries_again_what_failed(world: &World) {
    let commit = world.pushed("main").await;
    world.evaluated(&[1]).await;
    world.built(&[1]).await;
    world.settle().await;
    assert_eq!(world.shown(&commit)["nix-build"], "failure");
    let Forge::Github(fake) = &world.forge else { panic!("only GitHub has a button") };
    let run = fake.check_runs(REPOSITORY, &commit)["harmonia-ci/nix-build"].id;
    // A stranger may press, and nothing happens.
    world.happens(Event::CheckRunRerequested { repository: REPOSITORY, id: run, user: "eve" }).await;
    world.built(&[]).await;
    world.settle().await;
    assert_eq!(world.shown(&commit)["nix-build"], "failure");
    world.happens(Event::CheckRunRerequested { repository: REPOSITORY, id: run, user: "ada" }).await;
    world.built(&[]).await;
    world.settle().await;
    assert_eq!(world.shown(&commit)["nix-build"], "success");
}
