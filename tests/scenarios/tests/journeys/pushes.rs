//! Branches: pushes, force pushes, merge queues, deletions, redeliveries.

use harmonia_fake_forges::{Event, RepositoryAction};

use crate::world::{REPOSITORY, World, push_event};

#[tokio::test]
async fn a_push_turns_the_commit_green() {
    let world = World::start().await;
    let commit = world.pushed("main").await;
    let shown = world.shown(&commit);
    assert!(["queued", "in_progress"].contains(&shown["nix-eval"].as_str()), "{shown:?}");
    assert!(!shown.contains_key("nix-build"), "{shown:?}");
    let taken = world.evaluated(&[1, 2]).await;
    assert_eq!(taken.claimed.commit.as_deref(), Some(commit.as_str()));
    world.settle().await;
    let shown = world.shown(&commit);
    assert_eq!(shown["nix-eval"], "success");
    assert!(["queued", "in_progress"].contains(&shown["nix-build"].as_str()), "{shown:?}");
    world.built(&[]).await;
    world.settle().await;
    let shown = world.shown(&commit);
    assert_eq!((shown["nix-eval"].as_str(), shown["nix-build"].as_str()), ("success", "success"));
    assert_eq!((world.runs(&commit, "nix-eval"), world.runs(&commit, "nix-build")), (1, 1));
    world.assert_well_behaved();
}

#[tokio::test]
async fn a_failed_build_is_red_by_name_until_a_rebuild_repairs_it() {
    let world = World::start().await;
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
    world.assert_well_behaved();
}

#[tokio::test]
async fn a_redelivery_changes_nothing() {
    let world = World::start().await;
    let (before, after) = world.push("main");
    let delivery = world.github.delivery(push_event("refs/heads/main", &before, &after));
    for _ in 0..3 {
        assert_eq!(world.deliver(&delivery).await, 202);
        world.settle().await;
    }
    assert_eq!(world.queued_commits().await, [after]);
    world.assert_well_behaved();
}

#[tokio::test]
async fn only_what_the_forge_signed_is_taken() {
    let world = World::start().await;
    let (before, after) = world.push("main");
    let event = push_event("refs/heads/main", &before, &after);
    let forged = world.github.delivery_signed_with("another secret", event);
    assert_eq!(world.deliver(&forged).await, 401);
    let mut tampered = world.github.delivery(event);
    tampered.body.push(b' ');
    assert_eq!(world.deliver(&tampered).await, 401);
    let mut unsigned = world.github.delivery(event);
    unsigned.headers.retain(|(name, _)| !name.eq_ignore_ascii_case("x-hub-signature-256"));
    assert_eq!(world.deliver(&unsigned).await, 401);
    world.settle().await;
    assert!(world.queued_commits().await.is_empty());
}

#[tokio::test]
async fn a_newer_push_supersedes_the_older_one_and_a_late_delivery_does_not() {
    let world = World::start().await;
    let (before, first) = world.push("main");
    let (_, second) = world.push("main");
    // The newer delivery comes first.
    world.happens(push_event("refs/heads/main", &first, &second)).await;
    world.happens(push_event("refs/heads/main", &before, &first)).await;
    assert_eq!(world.queued_commits().await, [second]);
    world.assert_well_behaved();
}

#[tokio::test]
async fn a_force_push_replaces_what_was_queued() {
    let world = World::start().await;
    let first = world.pushed("main").await;
    let forced = world.pushed("main").await;
    assert_eq!(world.queued_commits().await, [forced]);
    let shown = world.shown(&first);
    assert_eq!(shown["nix-eval"], "cancelled", "{shown:?}");
    world.assert_well_behaved();
}

#[tokio::test]
async fn a_commit_that_comes_back_is_evaluated_again() {
    let world = World::start().await;
    let (before, a) = world.push("main");
    world.happens(push_event("refs/heads/main", &before, &a)).await;
    let (_, b) = world.push("main");
    world.happens(push_event("refs/heads/main", &a, &b)).await;
    {
        let mut forge = world.github.world();
        forge.repository_mut(REPOSITORY).branches.insert("main".to_owned(), a.clone());
    }
    world.happens(push_event("refs/heads/main", &b, &a)).await;
    assert_eq!(world.queued_commits().await, [a]);
    world.assert_well_behaved();
}

#[tokio::test]
async fn branches_that_nobody_asked_for_are_not_built() {
    let world = World::start().await;
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
    world.github.world().repository_mut(REPOSITORY).tags.insert("v1".to_owned(), commit.clone());
    world.happens(tag).await;
    assert!(world.queued_commits().await.is_empty(), "tags are not built unless configured");
    world.assert_well_behaved();
}

#[tokio::test]
async fn a_deleted_branch_wants_nothing_any_more() {
    let world = World::start().await;
    let commit = world.pushed("release/2").await;
    world.github.world().repository_mut(REPOSITORY).branches.remove("release/2");
    world.happens(push_event("refs/heads/release/2", &commit, &"0".repeat(40))).await;
    assert!(world.queued_commits().await.is_empty());
    world.assert_well_behaved();
}

#[tokio::test]
async fn states_of_a_merge_queue_are_built_beside_each_other() {
    let world = World::start().await;
    let base = world.github.world().repository(REPOSITORY).head("main").to_owned();
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
    world.assert_well_behaved();
}

#[tokio::test]
async fn a_renamed_repository_keeps_its_project() {
    let world = World::start().await;
    world.github.world().rename(REPOSITORY, "acme/place");
    world
        .happens(Event::Repository { repository: "acme/place", action: RepositoryAction::Renamed { from: "site" } })
        .await;
    let (before, after) = {
        let mut forge = world.github.world();
        let before = forge.repository("acme/place").head("main").to_owned();
        (before, forge.push("acme/place", "main", "After the move"))
    };
    world
        .happens(Event::Push {
            repository: "acme/place",
            reference: "refs/heads/main",
            before: &before,
            after: &after,
            pusher: "ada",
        })
        .await;
    assert_eq!(world.queued_commits().await, [after]);
    world.assert_well_behaved();
}
