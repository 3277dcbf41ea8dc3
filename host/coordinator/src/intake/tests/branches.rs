//! Pushes, tags, merge queues, re-runs.

use std::sync::Arc;

use harmonia_core::api::ProjectChanges;
use harmonia_core::forge::{Event, ForgeFeature, MergeGroup, Permission, Reference, Rerun};

use super::*;

fn group(branch: &str, commit: &str, destroyed: bool) -> Event {
    Event::MergeGroup(MergeGroup {
        repository: repository(),
        branch: branch.to_owned(),
        commit: commit.to_owned(),
        base_branch: "main".to_owned(),
        base_commit: C.to_owned(),
        destroyed,
    })
}

fn rerun(commit: &str, context: Option<&str>, user: &str) -> Event {
    Event::Rerun(Rerun {
        repository: repository(),
        commit: commit.to_owned(),
        context: context.map(str::to_owned),
        user: user.to_owned(),
    })
}

#[tokio::test]
async fn a_push_becomes_an_evaluation_and_others_say_why_not() {
    let world = World::new().await;
    world.forge.head("main", A);
    let outcome = world.deliver("1", push("main", A)).await;
    assert!(outcome.contains("is queued"), "{outcome}");
    let outcome = world.deliver("2", push("topic", A)).await;
    assert!(outcome.contains("neither the default branch"), "{outcome}");
    let outcome = world.deliver("3", pushed(Reference::Tag("v1".to_owned()), A, false)).await;
    assert!(outcome.contains("does not build tags"), "{outcome}");
    assert_eq!(world.evaluations().await, ["main a queued"]);
    assert_eq!(world.forge.asked(), ["head main"], "what does not evaluate costs the forge nothing");
    world.assert_sound().await;
}

#[tokio::test]
async fn what_a_push_ended_is_named_and_what_had_ended_is_not() {
    let world = World::new().await;
    world.forge.head("main", A);
    world.deliver("1", push("main", A)).await;
    world.forge.head("main", B);
    let outcome = world.deliver("2", push("main", B)).await;
    assert!(outcome.ends_with("evaluation 2 is queued, in place of 1"), "{outcome}");
    world.finish_evaluation().await;
    world.forge.head("main", C);
    let outcome = world.deliver("3", push("main", C)).await;
    assert!(outcome.ends_with("evaluation 3 is queued"), "{outcome}");
}

#[tokio::test]
async fn a_redelivery_changes_nothing_also_under_another_id() {
    let world = World::new().await;
    world.forge.head("main", A);
    world.deliver("1", push("main", A)).await;
    assert_eq!(world.record("1", vec![push("main", A)]).await, Recorded::Duplicate);
    assert_eq!(world.intake.step().await.expect("step"), 0);
    world.fail_evaluation().await;
    world.deliver("2", push("main", A)).await;
    assert_eq!(world.evaluations().await, ["main a failed"]);
}

#[tokio::test]
async fn a_late_delivery_does_not_cancel_the_newer_push() {
    let world = World::new().await;
    world.forge.head("main", B);
    world.deliver("2", push("main", B)).await;
    let outcome = world.deliver("1", push("main", A)).await;
    assert!(outcome.contains("by now"), "{outcome}");
    assert_eq!(world.evaluations().await, ["main b queued"]);
    // One that comes while the newer one's is still in flight, or lost.
    world.forge.head("main", C);
    world.deliver("3", push("main", A)).await;
    world.deliver("4", push("main", C)).await;
    assert_eq!(world.evaluations().await, ["main b cancelled <2", "main c queued"]);
    world.assert_sound().await;
}

#[tokio::test]
async fn a_commit_that_comes_back_is_evaluated_again() {
    let world = World::new().await;
    for (id, commit) in [("1", A), ("2", B), ("3", A)] {
        world.forge.head("main", commit);
        world.deliver(id, push("main", commit)).await;
    }
    assert_eq!(world.evaluations().await, ["main a cancelled <2", "main b cancelled <3", "main a queued"]);
}

#[tokio::test]
async fn an_answer_that_was_overtaken_is_asked_for_again() {
    let world = World::new().await;
    world.forge.head("main", A);
    // While the answer "A" is on its way, B is pushed and another frontend works that delivery off.
    world.record("1", vec![push("main", A)]).await;
    let (forge, db) = (Arc::clone(&world.forge), world.db.clone());
    let other = Intake::new(options(&db, &forge, "other"));
    world.forge.state().meanwhile.push_back(Box::pin(async move {
        forge.head("main", B);
        let delivery = Delivery { id: "2".to_owned(), events: vec![push("main", B)] };
        db.record_delivery(&NewDelivery { forge: "forge", delivery: &delivery, duration_ms: 1 }).await.expect("record");
        other.step().await.expect("step");
        // Unless the first frontend took it in its own look for more, while this one still waits for the forge.
        while db.recent_deliveries(Some("forge"), false, None, 1).await.expect("list")[0].state != "done" {
            tokio::task::yield_now().await;
        }
    }));
    world.intake.step().await.expect("step");
    assert_eq!(world.evaluations().await, ["main b queued"]);
    assert_eq!(world.forge.asked(), ["head main", "head main", "head main"]);
    world.assert_sound().await;
}

#[tokio::test]
async fn two_frontends_make_one_evaluation_of_a_push() {
    let world = World::new().await;
    let other = Intake::new(options(&world.db, &world.forge, "other"));
    for round in 0..5 {
        let commit = if round % 2 == 0 { A } else { B };
        world.forge.head("main", commit);
        // The same push, told of twice.
        world.record(&format!("{round}a"), vec![push("main", commit)]).await;
        world.record(&format!("{round}b"), vec![push("main", commit)]).await;
        let (one, two) = tokio::join!(world.intake.step(), other.step());
        assert_eq!(one.expect("step") + two.expect("step"), 2);
        assert_eq!(world.evaluations().await.len(), round + 1);
    }
    world.assert_sound().await;
}

#[tokio::test]
async fn a_deleted_branch_is_closed_unless_it_is_there_again() {
    let world = World::new().await;
    world.forge.head("release/1", A);
    world.deliver("1", push("release/1", A)).await;
    // Deleted and made again before the delivery of the deletion came.
    world.deliver("2", deleted("release/1", A)).await;
    assert_eq!(world.evaluations().await, ["release/1 a queued"]);
    world.forge.state().heads.clear();
    world.deliver("3", deleted("release/1", A)).await;
    assert_eq!(world.evaluations().await, ["release/1 a cancelled"]);
    // Late: the branch is gone.
    let outcome = world.deliver("4", push("release/1", A)).await;
    assert!(outcome.contains("gone"), "{outcome}");
    world.forge.asked();
    let outcome = world.deliver("5", deleted("topic", A)).await;
    assert!(outcome.contains("no evaluation of it"), "{outcome}");
    assert_eq!(world.forge.asked(), Vec::<String>::new(), "most branches that go were never evaluated");
    world.forge.head("release/1", A);
    world.deliver("6", push("release/1", A)).await;
    assert_eq!(world.evaluations().await, ["release/1 a cancelled", "release/1 a queued"]);
    world.assert_sound().await;
}

#[tokio::test]
async fn tags_evaluate_when_the_project_says_so() {
    let world = World::new().await;
    let changes = ProjectChanges { build_tags: Some(true), ..ProjectChanges::default() };
    world.db.set_project(PROJECT, &changes, "me").await.expect("set");
    let tag = |commit, deleted| pushed(Reference::Tag("v1".to_owned()), commit, deleted);
    world.deliver("1", tag(A, false)).await;
    world.deliver("2", tag(B, false)).await;
    assert_eq!(world.evaluations().await, ["v1 a cancelled <2", "v1 b queued"]);
    world.deliver("3", tag(B, true)).await;
    assert_eq!(world.evaluations().await, ["v1 a cancelled <2", "v1 b cancelled"]);
}

#[tokio::test]
async fn merge_groups_are_evaluated_each_for_itself() {
    let world = World::new().await;
    let (one, two) = ("gh-readonly-queue/main/pr-1", "gh-readonly-queue/main/pr-2");
    world.forge.head(one, A);
    world.forge.head(two, B);
    // The push and the merge group tell of the same.
    world.deliver("1", group(one, A, false)).await;
    world.deliver("2", push(one, A)).await;
    world.deliver("3", push(two, B)).await;
    world.deliver("4", group(two, B, false)).await;
    let evaluations = world.evaluations().await;
    assert_eq!(evaluations, [format!("{one} a queued"), format!("{two} b queued")]);
    // bors writes one branch again and again.
    for (id, commit) in [("5", A), ("6", B)] {
        world.forge.head("staging", commit);
        world.deliver(id, push("staging", commit)).await;
    }
    assert_eq!(world.evaluations().await[2..], ["staging a queued", "staging b queued"]);
    world.deliver("7", group(one, A, true)).await;
    assert_eq!(world.evaluations().await[0], format!("{one} a cancelled"));
    // Its creation, told of after its end.
    world.forge.state().heads.remove(one);
    world.deliver("8", group(one, A, false)).await;
    assert_eq!(world.evaluations().await.len(), 4);
    world.assert_sound().await;
}

#[tokio::test]
async fn patterns_of_the_project_and_of_its_tree_are_built() {
    let world = World::new().await;
    let changes = ProjectChanges { branch_patterns: Some(vec!["v[0-9]*".to_owned()]), ..ProjectChanges::default() };
    world.db.set_project(PROJECT, &changes, "me").await.expect("set");
    for (id, branch) in [("1", "v2.x"), ("2", "release/1")] {
        world.forge.head(branch, A);
        world.deliver(id, push(branch, A)).await;
    }
    assert_eq!(world.evaluations().await, ["v2.x a queued"]);
}

#[tokio::test]
async fn a_forge_that_cannot_be_asked_is_believed_in_the_order_of_arrival() {
    let world = World::new().await;
    world.forge.state().lacks.insert(ForgeFeature::Branches);
    world.record("1", vec![push("main", A)]).await;
    world.record("2", vec![push("main", B)]).await;
    world.intake.step().await.expect("step");
    let last = world.evaluations().await.pop();
    assert_eq!(last.as_deref(), Some("main b queued"));
    world.deliver("3", deleted("main", B)).await;
    assert!(world.evaluations().await.iter().all(|e| e.contains("cancelled")));
    world.assert_sound().await;
}

#[tokio::test]
async fn rerunning_is_for_those_who_may_push() {
    let world = World::new().await;
    world.forge.head("main", A);
    world.forge.permit("maintainer", Permission::Write);
    world.forge.permit("reader", Permission::Read);
    world.deliver("1", push("main", A)).await;
    let outcome = world.deliver("2", rerun(A, None, "maintainer")).await;
    assert!(outcome.contains("not ended"), "{outcome}");
    world.fail_evaluation().await;
    let outcome = world.deliver("3", rerun(A, None, "reader")).await;
    assert!(outcome.contains("only somebody who may push"), "{outcome}");
    assert_eq!(world.evaluations().await, ["main a failed"]);
    world.deliver("4", rerun(A, Some("harmonia-ci/nix-eval"), "maintainer")).await;
    assert_eq!(world.evaluations().await, ["main a failed", "main a queued"]);
    world.fail_evaluation().await;
    // The branch moved on: a new attempt would cancel what is newer.
    world.forge.head("main", B);
    let outcome = world.deliver("5", rerun(A, None, "maintainer")).await;
    assert!(outcome.contains("another commit by now"), "{outcome}");
    let outcome = world.deliver("6", rerun(C, None, "maintainer")).await;
    assert!(outcome.contains("no evaluation of it"), "{outcome}");
    assert_eq!(world.evaluations().await.len(), 2);
}
