//! Branches: pushes, force pushes, merge queues, deletions, redeliveries.

use harmonia_fake_forges::Event;

use crate::forge::{REPOSITORY, journeys};
use crate::world::{World, push_event};

journeys! {
    both: a_push_turns_the_commit_green, a_failed_build_is_red_by_name_until_a_rebuild_repairs_it,
        a_redelivery_changes_nothing, only_what_the_forge_signed_is_taken,
        a_newer_push_supersedes_the_older_one_and_a_late_delivery_does_not, a_force_push_replaces_what_was_queued,
        a_commit_that_comes_back_is_evaluated_again, branches_that_nobody_asked_for_are_not_built,
        a_deleted_branch_wants_nothing_any_more, a_branch_that_is_there_again_is_built_again;
    github: states_of_a_merge_queue_are_built_beside_each_other;
    gitea: ;
}

async fn a_push_turns_the_commit_green(world: &World) {
    let commit = world.pushed("main").await;
    let shown = world.shown(&commit);
    assert_eq!(shown["nix-eval"], "pending", "{shown:?}");
    assert!(!shown.contains_key("nix-build"), "{shown:?}");
    let taken = world.evaluated(&[1, 2]).await;
    assert_eq!(taken.claimed.commit.as_deref(), Some(commit.as_str()));
    world.settle().await;
    world.assert_shown(&commit, "success", "pending");
    world.built(&[]).await;
    world.settle().await;
    world.assert_shown(&commit, "success", "success");
    assert_eq!(world.forge.repetitions(&commit), 0);
}

async fn a_failed_build_is_red_by_name_until_a_rebuild_repairs_it(world: &World) {
    let commit = world.pushed("main").await;
    let taken = world.evaluated(&[1, 2]).await;
    world.built(&[2]).await;
    world.settle().await;
    let shown = world.shown(&commit);
    assert_eq!(shown["nix-build"], "failure", "{shown:?}");
    let failed: Vec<_> = shown.keys().filter(|name| name.contains("a2")).collect();
    assert_eq!(failed.len(), 1, "the failed attribute has a status of its own: {shown:?}");
    world.db.rebuild_failed(taken.claimed.id, "ada").await.expect("asks for a rebuild");
    world.built(&[]).await;
    world.settle().await;
    let shown = world.shown(&commit);
    assert_eq!((shown["nix-eval"].as_str(), shown["nix-build"].as_str()), ("success", "success"), "{shown:?}");
    assert!(shown.values().all(|state| state == "success"), "{shown:?}");
}

async fn a_redelivery_changes_nothing(world: &World) {
    let (before, after) = world.push("main");
    let event = push_event("refs/heads/main", &before, &after);
    let delivery = world.forge.delivery(event);
    for _ in 0..3 {
        world.delivered(std::slice::from_ref(&delivery)).await;
    }
    // Some forges give it another id when somebody has it sent again.
    world.happens(event).await;
    assert_eq!(world.queued_commits().await, [after]);
}

async fn only_what_the_forge_signed_is_taken(world: &World) {
    let (before, after) = world.push("main");
    let event = push_event("refs/heads/main", &before, &after);
    let forged = world.forge.forged(event);
    assert_eq!(world.deliver(&forged).await, 401);
    let mut tampered = world.forge.delivery(event);
    tampered.body.push(b' ');
    assert_eq!(world.deliver(&tampered).await, 401);
    let mut unsigned = world.forge.delivery(event);
    unsigned.headers.retain(|(name, _)| !name.eq_ignore_ascii_case(world.forge.signature()));
    assert_eq!(world.deliver(&unsigned).await, 401);
    world.settle().await;
    assert!(world.queued_commits().await.is_empty());
}

async fn a_newer_push_supersedes_the_older_one_and_a_late_delivery_does_not(world: &World) {
    let (before, first) = world.push("main");
    let (_, second) = world.push("main");
    // The newer delivery comes first.
    world.happens(push_event("refs/heads/main", &first, &second)).await;
    world.happens(push_event("refs/heads/main", &before, &first)).await;
    assert_eq!(world.queued_commits().await, [second]);
}

async fn a_force_push_replaces_what_was_queued(world: &World) {
    let first = world.pushed("main").await;
    let forced = world.pushed("main").await;
    assert_eq!(world.queued_commits().await, [forced]);
    let shown = world.shown(&first);
    assert_eq!(shown["nix-eval"], "error", "cancelled: {shown:?}");
}

async fn a_commit_that_comes_back_is_evaluated_again(world: &World) {
    let (before, a) = world.push("main");
    world.happens(push_event("refs/heads/main", &before, &a)).await;
    let (_, b) = world.push("main");
    world.happens(push_event("refs/heads/main", &a, &b)).await;
    {
        let mut forge = world.forge.world();
        forge.repository_mut(REPOSITORY).branches.insert("main".to_owned(), a.clone());
    }
    world.happens(push_event("refs/heads/main", &b, &a)).await;
    assert_eq!(world.queued_commits().await, [a]);
}

async fn branches_that_nobody_asked_for_are_not_built(world: &World) {
    for (branch, built) in [("topic", false), ("release/1.0", true), ("main", true)] {
        let commit = world.pushed(branch).await;
        let expected: Vec<String> = built.then_some(commit).into_iter().collect();
        assert_eq!(world.queued_commits().await, expected, "{branch}");
    }
    let (_, commit) = world.push("main");
    let tag = Event::Push {
        repository: REPOSITORY,
        reference: "refs/tags/v1",
        before: &"0".repeat(40),
        after: &commit,
        pusher: "ada",
    };
    world.forge.world().repository_mut(REPOSITORY).tags.insert("v1".to_owned(), commit.clone());
    world.happens(tag).await;
    assert!(world.queued_commits().await.is_empty(), "tags are not built unless configured");
}

async fn a_deleted_branch_wants_nothing_any_more(world: &World) {
    world.pushed("release/2").await;
    world.delivered(&world.forge.deletes_branch("release/2")).await;
    assert!(world.queued_commits().await.is_empty());
}

async fn a_branch_that_is_there_again_is_built_again(world: &World) {
    let commit = world.pushed("release/2").await;
    let gone = world.forge.deletes_branch("release/2");
    world.forge.world().repository_mut(REPOSITORY).branches.insert("release/2".to_owned(), commit.clone());
    let back = world.forge.delivery(push_event("refs/heads/release/2", &"0".repeat(40), &commit));
    world.delivered(&[back]).await;
    // The end of the branch is told late.
    world.delivered(&gone).await;
    assert_eq!(world.queued_commits().await, [commit]);
}

async fn states_of_a_merge_queue_are_built_beside_each_other(world: &World) {
    let base = world.forge.world().repository(REPOSITORY).head("main").to_owned();
    let mut expected = Vec::new();
    for number in 1..=2 {
        let branch = format!("gh-readonly-queue/main/pr-{number}");
        let (_, commit) = world.push(&branch);
        world
            .happens(Event::MergeGroup {
                repository: REPOSITORY,
                branch: &branch,
                commit: &commit,
                base_branch: "main",
                base_commit: &base,
                destroyed: None,
            })
            .await;
        expected.push(commit);
    }
    assert_eq!(world.queued_commits().await, expected);
}
