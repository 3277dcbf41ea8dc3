//! Forges that fail, repositories that move and go, and the loop itself.

use harmonia_core::forge::ForgeError;
use harmonia_core::forge::PullRequestAction::Opened;
use harmonia_core::{Clock as _, SystemClock};
use harmonia_db::RepositoryFilter;
use tokio_util::sync::CancellationToken;

use super::forge::TwoForges;
use super::*;

#[tokio::test]
async fn a_forge_that_is_down_is_asked_again_and_what_is_done_is_not_done_again() {
    let world = World::new().await;
    world.forge.head("main", A);
    world.forge.head("release/1", B);
    world
        .forge
        .state()
        .failures
        .extend([ForgeError::Unavailable("down".to_owned()), ForgeError::Plugin("trapped".to_owned())]);
    // Of two events, the first fails twice, the second succeeds at once.
    world.record("1", vec![push("main", A), push("release/1", B)]).await;
    assert_eq!(world.intake.step().await.expect("step"), 2, "a second try did it");
    let delivery = world.delivery("1").await;
    assert_eq!((delivery.state.as_str(), delivery.attempts), ("done", 2));
    let mut evaluations = world.evaluations().await;
    evaluations.sort();
    assert_eq!(evaluations, ["main a queued", "release/1 b queued"]);
    world.assert_sound().await;
}

#[tokio::test]
async fn a_forge_that_asks_to_wait_is_left_alone() {
    let world = World::new().await;
    world.forge.head("main", A);
    world.forge.state().failures.push_back(ForgeError::RetryAfter(600));
    world.record("1", vec![push("main", A)]).await;
    assert_eq!(world.intake.step().await.expect("step"), 1);
    let delivery = world.delivery("1").await;
    assert_eq!(delivery.state, "queued");
    let wait = delivery.next_attempt_at.expect("a next try") - SystemClock.now();
    assert!((500..=600).contains(&wait.whole_seconds()), "{wait}");
    assert!(delivery.error.expect("visible").contains("600 s"));
    // Absurd waits are bounded.
    world.forge.state().failures.push_back(ForgeError::RetryAfter(u32::MAX));
    world.record("2", vec![push("main", A)]).await;
    world.intake.step().await.expect("step");
    let wait = world.delivery("2").await.next_attempt_at.expect("a next try") - SystemClock.now();
    assert!(wait <= super::super::WAIT_MAX, "{wait}");
}

#[tokio::test]
async fn patience_ends_and_leaves_a_dead_letter_that_can_be_replayed() {
    let world = World::new().await;
    world.forge.head("main", A);
    let down = || ForgeError::Unavailable("no route to host".to_owned());
    world.forge.state().failures.extend([down(), down(), down(), down()]);
    world.record("1", vec![push("main", A)]).await;
    assert_eq!(world.intake.step().await.expect("step"), 4);
    let delivery = world.delivery("1").await;
    assert_eq!(delivery.state, "dead");
    let error = delivery.error.expect("why");
    assert!(error.contains("after 4 tries") && error.contains("no route to host"), "{error}");
    assert!(world.db.replay_delivery(delivery.id, "admin").await.expect("replay"));
    world.intake.step().await.expect("step");
    assert_eq!(world.delivery("1").await.state, "done");
    assert_eq!(world.evaluations().await, ["main a queued"]);
}

#[test]
fn the_real_patience_outlasts_a_day() {
    let retries = super::super::INTAKE_RETRIES;
    let waits = |tries: u32| (1..=tries).filter_map(|tries| retries.after_failure(tries, 0.0)).sum::<Duration>();
    assert!(waits(retries.tries_max) > Duration::from_hours(24), "{:?}", waits(retries.tries_max));
    assert!(waits(4) < Duration::from_mins(10), "short outages cost little");
}

#[tokio::test]
async fn what_makes_no_sense_is_a_dead_letter_and_the_other_events_are_done() {
    let world = World::new().await;
    world.forge.head("main", A);
    world.forge.head("release/1", B);
    world.forge.state().failures.push_back(ForgeError::Invalid("no".to_owned()));
    world.record("1", vec![push("main", A), push("release/1", B)]).await;
    assert_eq!(world.intake.step().await.expect("step"), 1);
    let delivery = world.delivery("1").await;
    assert_eq!(delivery.state, "dead");
    assert!(delivery.error.expect("why").contains("makes no sense: no"));
    assert_eq!(world.evaluations().await, ["release/1 b queued"]);
}

#[tokio::test]
async fn a_token_that_expired_and_is_replaced_loses_no_push() {
    let world = World::new().await;
    world.forge.head("main", A);
    let refused = || ForgeError::Denied("HTTP 401: token expired".to_owned());
    world.forge.state().failures.extend([refused(), refused()]);
    world.record("1", vec![push("main", A)]).await;
    assert_eq!(world.intake.step().await.expect("step"), 3);
    let delivery = world.delivery("1").await;
    assert_eq!((delivery.state.as_str(), delivery.attempts), ("done", 3));
    assert_eq!(world.evaluations().await, ["main a queued"]);
}

#[tokio::test]
async fn what_is_refused_for_good_ends_as_a_dead_letter_and_all_are_replayed_at_once() {
    let world = World::new().await;
    world.forge.head("main", A);
    world.forge.head("release/1", B);
    let refused = || ForgeError::Denied("the App lacks contents:read".to_owned());
    world.forge.state().failures.extend((0..8).map(|_| refused()));
    world.record("1", vec![push("main", A)]).await;
    world.record("2", vec![push("release/1", B)]).await;
    world.record("3", vec![Event::Ping]).await;
    world.intake.step().await.expect("step");
    for id in ["1", "2"] {
        let delivery = world.delivery(id).await;
        assert_eq!((delivery.state.as_str(), delivery.attempts), ("dead", 4), "not for ever");
        let error = delivery.error.expect("why");
        assert!(error.contains("after 4 tries") && error.contains("refused: the App lacks contents:read"), "{error}");
    }
    assert_eq!(world.db.replay_dead_deliveries(Some("other"), "admin").await.expect("replay"), 0);
    assert_eq!(world.db.replay_dead_deliveries(None, "admin").await.expect("replay"), 2);
    assert_eq!(world.intake.step().await.expect("step"), 2, "what went well is not done again");
    let mut evaluations = world.evaluations().await;
    evaluations.sort();
    assert_eq!(evaluations, ["main a queued", "release/1 b queued"]);
    assert_eq!(world.db.replay_dead_deliveries(None, "admin").await.expect("replay"), 0);
}

#[tokio::test]
async fn a_commit_that_is_none_is_a_dead_letter() {
    let world = World::new().await;
    world.forge.head("main", "--upload-pack=x");
    world.record("1", vec![push("main", "--upload-pack=x")]).await;
    world.intake.step().await.expect("step");
    let delivery = world.delivery("1").await;
    assert_eq!(delivery.state, "dead");
    assert!(delivery.error.expect("why").contains("not a full hash"));
    assert_eq!(world.evaluations().await, Vec::<String>::new());
}

#[tokio::test]
async fn a_forge_whose_plugin_is_missing_is_waited_for() {
    let world = World::new().await;
    let mut without = options(&world.db, &world.forge, "n");
    without.plugins = Arc::new(harmonia_core::ports::NoPlugins);
    without.retries.first_delay = Duration::from_secs(5);
    without.retries.delay_max = Duration::from_secs(5);
    world.record("1", vec![push("main", A)]).await;
    Intake::new(without).step().await.expect("step");
    let delivery = world.delivery("1").await;
    assert_eq!(delivery.state, "queued");
    assert!(delivery.error.expect("why").contains("'forge' is not configured"));
}

#[tokio::test]
async fn a_forge_that_hangs_does_not_hold_up_another() {
    let world = World::new().await;
    // A second forge at the same node, with a repository of its own.
    world.db.upsert_repositories("other", &[forge_repository("o/r")]).await.expect("a repository");
    let id = world.db.repository("other", "o/r").await.expect("look").expect("there");
    world.db.enable_repository(id, &["other".to_owned()], "me").await.expect("enable");
    world.forge.head("main", A);
    let (released, release) = tokio::sync::watch::channel(false);
    for index in 0..40 {
        let mut release = release.clone();
        world.forge.state().meanwhile.push_back(Box::pin(async move {
            release.wait_for(|done| *done).await.expect("the test ends it");
        }));
        world.record(&index.to_string(), vec![push("main", A)]).await;
    }
    let shutdown = CancellationToken::new();
    let mut options = options(&world.db, &world.forge, "n");
    let quick = Arc::new(FakeForge::default());
    quick.head("main", B);
    options.plugins = Arc::new(TwoForges(Arc::clone(&world.forge), quick));
    let task = tokio::spawn(super::super::run(options, shutdown.clone()));
    let mut changes = world.db.listen(&[harmonia_db::Channel::Evaluations]).await.expect("listen");
    let delivery = Delivery { id: "o".to_owned(), events: vec![push("main", B)] };
    let new = NewDelivery { forge: "other", delivery: &delivery, duration_ms: 1 };
    world.db.record_delivery(&new).await.expect("record");
    tokio::time::timeout(Duration::from_secs(30), changes.next()).await.expect("the other forge's is evaluated");
    assert_eq!(world.evaluations().await, Vec::<String>::new());
    released.send(true).expect("somebody waits");
    tokio::time::timeout(Duration::from_secs(30), changes.next()).await.expect("and then the slow one's");
    shutdown.cancel();
    tokio::time::timeout(Duration::from_secs(30), task).await.expect("it stops").expect("well");
    assert_eq!(world.evaluations().await, ["main a queued"]);
}

#[tokio::test]
async fn a_pull_request_waits_visibly_while_its_forge_does_not_answer() {
    let world = World::new().await;
    world.forge.pull(&pull(8, "friend", B));
    let forge = Arc::clone(&world.forge);
    world.forge.state().meanwhile.push_back(Box::pin(async move {
        forge.state().failures.push_back(ForgeError::RetryAfter(600));
    }));
    world.record("8", vec![pull_event(Opened, &pull(8, "friend", B))]).await;
    world.intake.step().await.expect("step");
    assert_eq!(world.waiting(8).await.as_deref(), Some(harmonia_core::trust::WAITS_FOR_FORGE));
    world.forge.asked();

    world.forge.pull(&pull(7, "friend", A));
    world.forge.permit("friend", harmonia_core::forge::Permission::Write);
    // The pull request is answered, the permission is not; then both.
    {
        let mut state = world.forge.state();
        let forge = Arc::clone(&world.forge);
        state.meanwhile.push_back(Box::pin(async move {
            forge.state().failures.push_back(ForgeError::Unavailable("down".to_owned()));
        }));
    }
    world.deliver("1", pull_event(Opened, &pull(7, "friend", A))).await;
    assert_eq!(world.evaluations().await, ["pull/7 a queued"]);
    assert_eq!(world.forge.asked(), ["pull 7", "permission friend", "pull 7", "permission friend"]);
}

#[tokio::test]
async fn a_renamed_repository_keeps_its_project() {
    let world = World::new().await;
    world.forge.head("main", A);
    world.deliver("1", Event::RepositoriesChanged(vec![forge_repository("o/new")])).await;
    let renamed = RepositoryRef { full_name: "o/new".to_owned(), ..repository() };
    let Event::Push(mut event) = push("main", A) else { unreachable!() };
    event.repository = renamed;
    world.deliver("2", Event::Push(event)).await;
    assert_eq!(world.evaluations().await, ["main a queued"]);
    let project = world.db.forge_project("forge", &repository()).await.expect("read").expect("there");
    assert_eq!((project.name.as_str(), project.repository.full_name.as_str()), (PROJECT, "o/new"));
}

#[tokio::test]
async fn nothing_evaluates_once_the_installation_is_gone() {
    let world = World::new().await;
    world.forge.head("main", A);
    world.forge.pull(&pull(7, "stranger", A));
    world.deliver("1", Event::RepositoriesRemoved(vec![repository()])).await;
    world.forge.asked();
    let outcome = world.deliver("2", push("main", A)).await;
    assert!(outcome.contains("its repository is gone"), "{outcome}");
    world.deliver("3", deleted("main", A)).await;
    assert_eq!(world.evaluations().await, Vec::<String>::new());
    assert_eq!(world.forge.asked(), Vec::<String>::new(), "it would refuse us");
    let there = world.db.repositories(RepositoryFilter { limit: 5, ..RepositoryFilter::default() }).await;
    assert_eq!(there.expect("list"), []);
    // Back again.
    world.deliver("4", Event::RepositoriesChanged(vec![forge_repository("o/r")])).await;
    world.deliver("5", push("main", A)).await;
    assert_eq!(world.evaluations().await, ["main a queued"]);
}

#[tokio::test]
async fn news_that_ask_for_nothing_are_done() {
    let world = World::new().await;
    world.deliver("1", Event::Discover).await;
    world.deliver("2", Event::PermissionsChanged(None)).await;
    // Disabled in between.
    world.record("3", vec![push("main", A), Event::Ping]).await;
    world.db.disable_project(PROJECT, "me").await.expect("disable");
    world.intake.step().await.expect("step");
    let outcome = world.delivery("3").await.outcome.expect("an outcome");
    assert!(outcome.contains("no enabled project") && outcome.contains("sign of life"), "{outcome}");
}

#[tokio::test]
async fn the_loop_works_off_what_is_recorded_until_it_is_told_to_stop() {
    let world = World::new().await;
    world.forge.head("main", A);
    let shutdown = CancellationToken::new();
    let mut options = options(&world.db, &world.forge, "n");
    options.every = Duration::from_hours(1); // so that only a notice wakes it
    let task = tokio::spawn(super::super::run(options, shutdown.clone()));
    let mut changes = world.db.listen(&[harmonia_db::Channel::Evaluations]).await.expect("listen");
    world.record("1", vec![push("main", A)]).await;
    tokio::time::timeout(Duration::from_secs(30), changes.next()).await.expect("an evaluation is queued");
    shutdown.cancel();
    tokio::time::timeout(Duration::from_secs(30), task).await.expect("it stops").expect("well");
    assert_eq!(world.evaluations().await, ["main a queued"]);
}

#[tokio::test]
async fn the_loop_leaves_a_forge_alone_that_fails_again_and_again() {
    let world = World::new().await;
    let names: Vec<String> = (0..20).map(|number| format!("release/{number}")).collect();
    for name in &names {
        world.forge.head(name, A);
    }
    // More than can be asked before the eighth failure is known.
    let down = || ForgeError::Unavailable("HTTP 503".to_owned());
    world.forge.state().failures.extend(std::iter::repeat_with(down).take(40));
    for name in &names {
        world.record(name, vec![push(name, A)]).await;
    }
    let shutdown = CancellationToken::new();
    let mut options = options(&world.db, &world.forge, "n");
    options.retries.tries_max = 1_000;
    options.every = Duration::from_hours(1); // so that only the end of a pause wakes it
    let mut changes = world.db.listen(&[harmonia_db::Channel::Evaluations]).await.expect("listen");
    let begin = std::time::Instant::now();
    let task = tokio::spawn(super::super::run(options, shutdown.clone()));
    while world.evaluations().await.len() < names.len() {
        let told = tokio::time::timeout(Duration::from_mins(1), changes.next()).await;
        told.expect("it goes on after the pause");
    }
    assert!(begin.elapsed() >= Duration::from_secs(1), "it did not pause");
    shutdown.cancel();
    tokio::time::timeout(Duration::from_secs(30), task).await.expect("it stops").expect("well");
    world.assert_sound().await;
}
