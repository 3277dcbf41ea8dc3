//! One thing that goes wrong at a time.

use std::time::Duration;

use harmonia_coordinator::report::{self, Stepped};
use harmonia_core::forge::ForgeError;
use harmonia_core::status::DeadLetterKind;
use harmonia_db::testing::time_passes;

use crate::world::{Act, World};

fn away() -> Act {
    Act::Refuse(ForgeError::Unavailable("connection refused".to_owned()))
}

/// A call's lease is over.
const LEASE: Duration = Duration::from_mins(1);

#[tokio::test]
async fn from_a_push_to_green_with_nothing_sent_twice() {
    let world = World::new().await;
    world.forge.reporters(&["chat"]);
    let one = world.frontend("one");
    world.request("main").await;
    assert_eq!(report::step(&one).await.expect("step").statuses, 1, "the first sign of life comes at once");
    let eval = world.claim_evaluation().await.expect("queued");
    world.insert(&eval, &[0, 1, 2]).await.expect("insert");
    world.db.finish_evaluation(eval.claimed.id, &eval.token).await.expect("finish");
    assert!(report::step(&one).await.expect("step").is_idle(), "a burst is waited for");
    world.step(&one).await;
    assert_eq!(world.forge.states(), ["nix-build: pending", "nix-eval: success"]);
    for job in world.claim(3).await {
        world.complete(&job).await.expect("complete");
    }
    let done = world.step(&one).await;
    assert_eq!((done.computed, done.statuses), (1, 1), "three jobs, one computation, one call");
    assert_eq!(world.forge.states(), ["nix-build: success", "nix-eval: success"]);
    assert_eq!(world.forge.seen().told, ["evaluation-1", "builds-1-1"]);
    let calls = world.forge.seen().calls.len();
    world.settle(&one).await;
    assert_eq!(world.forge.seen().calls.len(), calls);
    world.assert_agreed("at the end").await;
}

#[tokio::test]
async fn a_failure_is_shown_and_repaired_by_a_rebuild() {
    let world = World::new().await;
    let one = world.frontend("one");
    let eval = world.evaluated("main", &[0, 1]).await;
    for (n, job) in world.claim(2).await.iter().enumerate() {
        if n == 0 {
            world.fail(job).await.expect("fail");
        } else {
            world.complete(job).await.expect("complete");
        }
    }
    world.step(&one).await;
    assert_eq!(world.forge.states(), ["nix-build: failure", "nix-build/a0: failure", "nix-eval: success"]);
    world.db.rebuild_failed(eval, "me").await.expect("rebuild");
    world.step(&one).await;
    assert_eq!(world.forge.states(), ["nix-build: pending", "nix-build/a0: pending", "nix-eval: success"]);
    for job in world.claim(1).await {
        world.complete(&job).await.expect("complete");
    }
    world.step(&one).await;
    assert_eq!(world.forge.states(), ["nix-build: success", "nix-build/a0: success", "nix-eval: success"]);
}

#[tokio::test]
async fn a_crash_between_computing_and_sending_loses_nothing() {
    let world = World::new().await;
    world.forge.reporters(&["chat"]);
    world.evaluated("main", &[0]).await;
    let done = report::compute(&world.frontend("dies")).await.expect("compute");
    assert_eq!((done.changed, done.statuses), (2, 0));
    assert_eq!(world.forge.states(), Vec::<String>::new());
    world.step(&world.frontend("heir")).await;
    assert_eq!(world.forge.states(), ["nix-build: pending", "nix-eval: success"]);
    assert_eq!(world.forge.seen().told, ["evaluation-1"]);
}

#[tokio::test]
async fn a_crash_between_sending_and_remembering_leads_to_another_assertion() {
    let world = World::new().await;
    world.request("main").await;
    world.forge.next([Act::Hang]);
    let mut dies = world.frontend("dies");
    dies.call_timeout = Duration::from_mins(10);
    let lease = dies.call_timeout * 3;
    let dying = tokio::spawn(async move { report::step(&dies).await });
    world.forge.reached.notified().await;
    dying.abort();
    assert!(dying.await.expect_err("it ended half-way").is_cancelled());
    assert_eq!(world.forge.states(), ["nix-eval: pending"], "the forge heard it");

    let heir = world.frontend("heir");
    // Meanwhile the world moves on, but the row is held until its lease ends.
    let eval = world.claim_evaluation().await.expect("queued");
    world.db.fail_evaluation(eval.claimed.id, &eval.token, "error: no").await.expect("fail");
    world.step(&heir).await;
    assert_eq!(world.forge.states(), ["nix-build: error", "nix-eval: pending"]);
    time_passes(&world.db, lease).await;
    world.step(&heir).await;
    assert_eq!(world.forge.states(), ["nix-build: error", "nix-eval: failure"]);
    let before = world.forge.seen().calls.len();
    world.settle(&heir).await;
    let after = world.forge.seen().calls[before..].to_vec();
    assert_eq!(after.iter().map(|call| call.0.as_str()).collect::<Vec<_>>(), ["harmonia-ci/nix-eval"], "once more");
    world.assert_agreed("at the end").await;
}

#[tokio::test]
async fn answers_that_are_lost_or_never_come_are_asked_for_again() {
    for act in [Act::LoseAnswer, Act::Hang, Act::Refuse(ForgeError::Plugin("trapped".to_owned()))] {
        let world = World::new().await;
        let one = world.frontend("one");
        world.request("main").await;
        world.forge.next([act.clone()]);
        let done = world.step(&one).await;
        assert_eq!((done.statuses, done.failed), (0, 1), "{act:?}");
        assert!(report::step(&one).await.expect("step").is_idle(), "{act:?}: not at once");
        time_passes(&world.db, LEASE).await;
        assert_eq!(world.step(&one).await.statuses, 1, "{act:?}");
        world.settle(&one).await;
        world.assert_agreed(&format!("{act:?}")).await;
    }
}

#[tokio::test]
async fn a_plugin_that_breaks_takes_nothing_with_it() {
    let world = World::new().await;
    let one = world.frontend("one");
    world.evaluated("main", &[0]).await;
    world.forge.next([Act::Panic]);
    assert_eq!(world.step(&one).await.statuses, 1, "the other one arrives");
    time_passes(&world.db, LEASE).await;
    world.settle(&one).await;
    world.assert_agreed("after the lease").await;
}

#[tokio::test]
async fn a_forge_that_is_down_for_an_hour_hears_the_last_word_and_few_calls() {
    let world = World::new().await;
    let one = world.frontend("one");
    world.forge.otherwise(away());
    world.request("main").await;
    world.step(&one).await;
    let eval = world.claim_evaluation().await.expect("queued");
    world.insert(&eval, &(0..20).collect::<Vec<_>>()).await.expect("insert");
    world.db.finish_evaluation(eval.claimed.id, &eval.token).await.expect("finish");
    for _minute in 0..60 {
        for job in world.claim(1).await {
            world.fail(&job).await.expect("fail");
        }
        time_passes(&world.db, Duration::from_secs(55)).await;
        world.step(&one).await;
    }
    let attempts = world.forge.seen().attempts;
    assert!(world.forge.seen().calls.is_empty() && attempts < 22 * 20, "{attempts} calls in an hour for 22 statuses");
    let letters = world.db.dead_letters(100).await.expect("list");
    assert!(letters.iter().all(|letter| letter.dead_at.is_none()), "nothing is given up: {letters:?}");
    assert!(!letters.is_empty(), "and it is seen");

    world.forge.otherwise(Act::Well);
    world.settle(&one).await;
    assert_eq!(world.forge.seen().calls.len(), 22, "each once");
    world.assert_agreed("when it is back").await;
    assert_eq!(world.db.dead_letters(100).await.expect("list"), []);
}

#[tokio::test]
async fn a_forge_that_says_429_is_left_alone_as_long_as_it_wants() {
    let world = World::new().await;
    let mut one = world.frontend("one");
    one.calls_at_once = 1;
    let two = world.frontend("two");
    world.evaluated("main", &[0]).await;
    world.forge.next([Act::Refuse(ForgeError::RetryAfter(120))]);
    let done = world.step(&one).await;
    assert_eq!((done.statuses, done.failed, world.forge.seen().attempts), (0, 1, 1), "the other one waits as well");
    time_passes(&world.db, Duration::from_mins(1)).await;
    assert_eq!(world.step(&two).await, Stepped::default(), "another frontend neither");
    time_passes(&world.db, Duration::from_mins(1)).await;
    assert_eq!(world.step(&two).await.statuses, 2);
    world.assert_agreed("afterwards").await;
}

#[tokio::test]
async fn two_frontends_at_once_send_everything_once() {
    let world = World::new().await;
    world.forge.reporters(&["chat", "mail"]);
    let (one, two) = (world.frontend("one"), world.frontend("two"));
    let numbers: Vec<usize> = (0..12).collect();
    world.evaluated("main", &numbers).await;
    for (n, job) in world.claim(12).await.iter().enumerate() {
        if n % 2 == 0 {
            world.fail(job).await.expect("fail");
        } else {
            world.complete(job).await.expect("complete");
        }
        if n % 4 == 3 {
            tokio::join!(world.step(&one), world.step(&two));
        }
    }
    for _ in 0..3 {
        tokio::join!(world.step(&one), world.step(&two));
    }
    world.settle(&one).await;
    world.assert_agreed("at the end").await;
    let seen = world.forge.seen();
    let mut calls = seen.calls.clone();
    calls.sort();
    calls.dedup();
    assert_eq!(calls.len(), seen.calls.len(), "nothing twice: {:?}", seen.calls);
    assert_eq!(seen.told.len(), 4, "{:?}", seen.told);
}

#[tokio::test]
async fn refused_for_good_is_a_dead_letter_and_can_be_replayed() {
    let world = World::new().await;
    world.forge.reporters(&["chat"]);
    let one = world.frontend("one");
    world.evaluated("main", &[0]).await;
    world.forge.otherwise(Act::Refuse(ForgeError::Invalid("no such commit".to_owned())));
    assert_eq!(world.step(&one).await.failed, 3);
    world.settle(&one).await;
    let letters = world.db.dead_letters(10).await.expect("list");
    let kinds: Vec<_> = letters.iter().map(|letter| letter.kind).collect();
    assert_eq!(kinds.iter().filter(|kind| **kind == DeadLetterKind::Status).count(), 2, "{letters:?}");
    assert_eq!(kinds.len(), 3);
    world.forge.otherwise(Act::Well);
    for letter in letters {
        assert_eq!(
            letter.error.as_deref(),
            Some("makes no sense: no such commit")
                .filter(|_| letter.kind == DeadLetterKind::Status)
                .or(Some("nobody will take this: no such commit"))
        );
        assert!(world.db.replay_dead_letter(letter.kind, letter.id, "me").await.expect("replay"));
    }
    world.settle(&one).await;
    world.assert_agreed("after the replay").await;
    assert_eq!(world.forge.seen().told, ["evaluation-1"]);
}

#[tokio::test]
async fn denied_is_tried_now_and_then() {
    let world = World::new().await;
    let one = world.frontend("one");
    world.request("main").await;
    world.forge.otherwise(Act::Refuse(ForgeError::Denied("the token has expired".to_owned())));
    for _ in 0..60 {
        time_passes(&world.db, Duration::from_secs(55)).await;
        world.step(&one).await;
    }
    let attempts = world.forge.seen().attempts;
    assert!((5..=8).contains(&attempts), "{attempts} tries in an hour");
    world.forge.otherwise(Act::Well);
    world.settle(&one).await;
    world.assert_agreed("with a new token").await;
}

#[tokio::test]
async fn a_reporter_hears_in_order_whatever_happens() {
    let world = World::new().await;
    world.forge.reporters(&["chat"]);
    let one = world.frontend("one");
    world.step(&one).await;
    let lost = ForgeError::Unavailable("away".to_owned());
    for round in 0..4 {
        world.evaluated(&format!("b{round}"), &[round]).await;
        for job in world.claim(1).await {
            world.complete(&job).await.expect("complete");
        }
        report::compute(&one).await.expect("compute");
        world.forge.next([Act::Refuse(lost.clone()), Act::Refuse(ForgeError::RetryAfter(3)), Act::Well]);
        world.step(&one).await;
    }
    world.settle(&one).await;
    let told = world.forge.seen().told.clone();
    let mut sorted = told.clone();
    sorted.sort_by_key(|key| {
        let number = key.trim_start_matches("evaluation-").trim_start_matches("builds-").split('-').next();
        (number.and_then(|number| number.parse::<u32>().ok()), key.starts_with("builds"))
    });
    assert_eq!(told, sorted);
    assert_eq!(told.len(), 8, "{told:?}");
}
