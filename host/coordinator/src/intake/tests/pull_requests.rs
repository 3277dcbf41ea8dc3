//! Pull requests of collaborators and of strangers, approvals, drafts.

use std::sync::Arc;

use harmonia_core::api::ProjectChanges;
use harmonia_core::forge::CommentAction;
use harmonia_core::forge::PullRequestAction::{Closed, Edited, Opened, Other, Pushed, Ready, Reopened};
use harmonia_core::forge::{Event, ForgeFeature, Permission, PullRequestTrust, Rerun};
use harmonia_core::trust::{WAITS_AS_DRAFT, WAITS_FOR_APPROVAL};

use super::*;

/// A stranger's pull request that waits, and a maintainer.
async fn waiting_world() -> World {
    let world = World::new().await;
    world.forge.permit("maintainer", Permission::Write);
    world.forge.permit("reader", Permission::Read);
    world.forge.pull(&pull(7, "stranger", A));
    world.deliver("opened", pull_event(Opened, &pull(7, "stranger", A))).await;
    world.heads_are_known().await;
    assert_eq!(world.evaluations().await, Vec::<String>::new());
    assert_eq!(world.waiting(7).await.as_deref(), Some(WAITS_FOR_APPROVAL));
    world
}

async fn set(world: &World, changes: ProjectChanges) {
    world.db.set_project(PROJECT, &changes, "me").await.expect("set");
}

#[tokio::test]
async fn a_collaborator_is_trusted_as_long_as_the_forge_says_so() {
    let world = World::new().await;
    world.forge.permit("friend", Permission::Write);
    world.forge.pull(&pull(7, "friend", A));
    world.deliver("1", pull_event(Opened, &pull(7, "friend", A))).await;
    assert_eq!(world.evaluations().await, ["pull/7 a queued"]);
    assert_eq!(world.waiting(7).await, None);
    world.forge.pull(&pull(7, "friend", B));
    world.deliver("2", pull_event(Pushed, &pull(7, "friend", B))).await;
    assert_eq!(world.evaluations().await, ["pull/7 a cancelled <2", "pull/7 b queued"]);
    assert_eq!(world.forge.asked(), ["pull 7", "permission friend", "pull 7"], "remembered for five minutes");
    // No friend any more: the event clears what was remembered.
    world.forge.permit("friend", Permission::Read);
    world.deliver("3", Event::PermissionsChanged(Some(repository()))).await;
    world.forge.pull(&pull(7, "friend", C));
    let outcome = world.deliver("4", pull_event(Pushed, &pull(7, "friend", C))).await;
    assert!(outcome.contains(WAITS_FOR_APPROVAL), "{outcome}");
    assert_eq!(world.forge.asked(), ["pull 7", "permission friend"]);
    assert_eq!(world.evaluations().await.len(), 2);
    assert_eq!(world.waiting(7).await.as_deref(), Some(WAITS_FOR_APPROVAL));
    world.assert_sound().await;
}

#[tokio::test]
async fn a_strangers_head_runs_when_a_collaborator_says_so_and_no_other_head_does() {
    let world = waiting_world().await;
    let outcome = world.deliver("c1", comment("maintainer", "fine\n/ci run")).await;
    assert!(outcome.contains("approved by maintainer"), "{outcome}");
    assert_eq!(world.evaluations().await, ["pull/7 a queued"]);
    assert_eq!(world.waiting(7).await, None);
    // A later push needs a new approval; what was approved goes on.
    world.forge.pull(&pull(7, "stranger", B));
    world.deliver("p2", pull_event(Pushed, &pull(7, "stranger", B))).await;
    assert_eq!(world.evaluations().await, ["pull/7 a queued"]);
    assert_eq!(world.waiting(7).await.as_deref(), Some(WAITS_FOR_APPROVAL));
    world.heads_are_known().await;
    world.deliver("c2", comment("maintainer", "/ci run")).await;
    assert_eq!(world.evaluations().await, ["pull/7 a cancelled <2", "pull/7 b queued"]);
    // Back to the head that was approved: it still is.
    world.forge.pull(&pull(7, "stranger", A));
    world.deliver("p3", pull_event(Pushed, &pull(7, "stranger", A))).await;
    assert_eq!(world.evaluations().await.last().map(String::as_str), Some("pull/7 a queued"));
    assert_eq!(world.replies().await, Vec::<String>::new());
    world.assert_sound().await;
}

#[tokio::test]
async fn what_does_not_approve() {
    let world = waiting_world().await;
    let cases = [
        ("c1", comment("stranger", "/ci run"), "nobody approves their own"),
        ("c2", comment("reader", "/ci run"), "only somebody who may push"),
        ("c3", comment("unknown", "/ci run"), "only somebody who may push"),
        ("c4", comment("maintainer", "> /ci run"), "no command"),
        ("c5", comment("maintainer", "```\n/ci run\n```"), "no command"),
        ("c6", commented(CommentAction::Edited, "maintainer", "/ci run"), "edited or deleted"),
        ("c7", commented(CommentAction::Deleted, "maintainer", "/ci run"), "edited or deleted"),
        ("c8", comment("reader", "/ci run aaaaaaa"), "only somebody who may push"),
    ];
    for (id, event, why) in cases {
        let outcome = world.deliver(id, event).await;
        assert!(outcome.contains(why), "{id}: {outcome}");
    }
    // Not even an author who may push, where everybody needs an approval.
    world.forge.permit("stranger", Permission::Admin);
    set(&world, ProjectChanges { pr_trust: Some(PullRequestTrust::None), ..ProjectChanges::default() }).await;
    world.deliver("c9", comment("Stranger", "/ci run")).await;
    assert_eq!(world.evaluations().await, Vec::<String>::new());
    assert_eq!(world.replies().await, Vec::<String>::new(), "strangers do not make us talk");
    assert_eq!(world.waiting(7).await.as_deref(), Some(WAITS_FOR_APPROVAL));
}

#[tokio::test]
async fn a_push_before_the_approval_was_handled_runs_nothing_and_is_answered() {
    let world = waiting_world().await;
    // The push is at the forge; its delivery comes after the comment's.
    world.record("c1", vec![comment("maintainer", "/ci run")]).await;
    world.forge.pull(&pull(7, "stranger", B));
    world.record("p2", vec![pull_event(Pushed, &pull(7, "stranger", B))]).await;
    world.intake.step().await.expect("step");
    assert_eq!(world.evaluations().await, Vec::<String>::new());
    let replies = world.replies().await;
    assert_eq!(replies.len(), 1);
    assert!(replies[0].starts_with("The head changed, comment again"), "{replies:?}");
    assert_eq!(world.waiting(7).await.as_deref(), Some(WAITS_FOR_APPROVAL));
    // The same comment, delivered once more: no second reply.
    world.heads_are_known().await;
    world.deliver("c1 again", comment("maintainer", "fine\n/ci run")).await;
    assert_eq!(world.evaluations().await, ["pull/7 b queued"], "another comment, after the push arrived");
    assert_eq!(world.replies().await, Vec::<String>::new());
}

#[tokio::test]
async fn a_push_while_the_approval_is_handled_runs_nothing_and_is_answered() {
    let world = waiting_world().await;
    world.record("c1", vec![comment("maintainer", "/ci run")]).await;
    let (forge, db) = (Arc::clone(&world.forge), world.db.clone());
    let other = Intake::new(options(&db, &forge, "other"));
    // A is reported; then another frontend evaluates something newer of the pull request before we act on A.
    world.forge.state().meanwhile.push_back(Box::pin(async move {
        forge.pull(&pull(7, "stranger", B));
        let named = comment("maintainer", &["/ci run ", B].concat());
        let delivery = Delivery { id: "c2".to_owned(), events: vec![named] };
        db.record_delivery(&NewDelivery { forge: "forge", delivery: &delivery, duration_ms: 1 }).await.expect("record");
        other.step().await.expect("step");
    }));
    world.intake.step().await.expect("step");
    assert_eq!(world.evaluations().await, ["pull/7 b queued"]);
    let replies = world.replies().await;
    assert!(replies.len() == 1 && replies[0].starts_with("The head changed"), "{replies:?}");
}

#[tokio::test]
async fn a_named_head_is_approved_and_nothing_else() {
    let world = waiting_world().await;
    // Reviewed A, while B is pushed.
    world.forge.pull(&pull(7, "stranger", B));
    world.deliver("p2", pull_event(Pushed, &pull(7, "stranger", B))).await;
    world.deliver("c1", comment("maintainer", &["/ci run ", A].concat())).await;
    assert_eq!(world.evaluations().await, Vec::<String>::new());
    assert!(world.replies().await[0].starts_with("The head changed"));
    world.deliver("c2", comment("maintainer", "/ci run bbbbbbb")).await;
    let replies = world.replies().await;
    assert!(replies[0].contains("full hash") && replies[0].contains(B), "{replies:?}");
    world.deliver("c3", comment("maintainer", &["/ci run ", B].concat())).await;
    assert_eq!(world.evaluations().await, ["pull/7 b queued"]);
}

#[tokio::test]
async fn a_head_that_arrived_a_moment_before_the_comment_has_to_be_named() {
    let world = waiting_world().await;
    world.forge.pull(&pull(7, "stranger", B));
    world.deliver("p2", pull_event(Pushed, &pull(7, "stranger", B))).await;
    world.deliver("c1", comment("maintainer", "/ci run")).await;
    assert_eq!(world.evaluations().await, Vec::<String>::new(), "it may have been meant for A");
    let replies = world.replies().await;
    assert!(replies[0].contains("less than a minute") && replies[0].contains(&["/ci run ", B].concat()), "{replies:?}");
    world.deliver("c2", comment("maintainer", &["/ci run ", B].concat())).await;
    assert_eq!(world.evaluations().await, ["pull/7 b queued"]);
}

#[tokio::test]
async fn a_strangers_branch_is_not_trusted_for_the_collaborator_who_opened_its_pull_request() {
    let world = World::new().await;
    world.forge.permit("friend", Permission::Write);
    world.forge.permit("maintainer", Permission::Write);
    let of = |owner: &str, head: &str| PullRequest {
        head_repository: Some(RepositoryRef { id: "r2".to_owned(), full_name: format!("{owner}/r") }),
        ..pull(7, "friend", head)
    };
    world.forge.pull(&of("stranger", A));
    world.deliver("1", pull_event(Opened, &of("stranger", A))).await;
    assert_eq!(world.evaluations().await, Vec::<String>::new());
    assert_eq!(world.waiting(7).await.as_deref(), Some(WAITS_FOR_APPROVAL));
    assert_eq!(world.forge.asked(), ["pull 7", "permission friend", "permission stranger"]);
    // Approved, it runs; what the stranger pushes afterwards does not, nor when the stranger's repository is gone then.
    world.deliver("2", comment("maintainer", &["/ci run ", A].concat())).await;
    assert_eq!(world.evaluations().await, ["pull/7 a queued"]);
    let gone = PullRequest { head_repository: None, ..of("stranger", B) };
    for (id, now) in [("3", of("stranger", B)), ("4", gone)] {
        world.forge.pull(&now);
        world.deliver(id, pull_event(Pushed, &now)).await;
        assert_eq!(world.evaluations().await, ["pull/7 a queued"], "{now:?}");
    }
    // Of another collaborator, and of the repository itself, it runs.
    let own = PullRequest { head_repository: Some(repository()), ..pull(7, "friend", C) };
    for (id, now, expected) in [("5", of("maintainer", B), "pull/7 b queued"), ("6", own, "pull/7 c queued")] {
        world.forge.pull(&now);
        world.deliver(id, pull_event(Pushed, &now)).await;
        assert_eq!(world.evaluations().await.last().map(String::as_str), Some(expected));
    }
    world.assert_sound().await;
}

/// The account of its author is gone: there is nobody whom a forge could be asked about.
#[tokio::test]
async fn nobody_is_asked_about_an_author_who_is_gone() {
    let world = World::new().await;
    world.forge.permit("", Permission::Admin);
    let ghosts = PullRequest { head_repository: Some(repository()), ..pull(7, "", A) };
    world.forge.pull(&ghosts);
    let outcome = world.deliver("1", pull_event(Opened, &ghosts)).await;
    assert!(outcome.contains(WAITS_FOR_APPROVAL), "{outcome}");
    assert_eq!(world.forge.asked(), ["pull 7"], "no permission of nobody");
    assert_eq!(world.evaluations().await, Vec::<String>::new());
}

#[tokio::test]
async fn a_head_that_no_delivery_told_of_has_to_be_named() {
    // Opened before the project was enabled.
    let world = World::new().await;
    world.forge.permit("maintainer", Permission::Write);
    world.forge.pull(&pull(7, "stranger", A));
    world.deliver("c1", comment("maintainer", "/ci run")).await;
    assert!(world.replies().await[0].contains(&["/ci run ", A].concat()));
    assert_eq!(world.evaluations().await, Vec::<String>::new());
    world.deliver("c2", comment("maintainer", &["/ci run ", A].concat())).await;
    assert_eq!(world.evaluations().await, ["pull/7 a queued"]);
}

#[tokio::test]
async fn drafts_wait_until_they_are_ready() {
    let world = World::new().await;
    world.forge.permit("friend", Permission::Write);
    let draft = PullRequest { is_draft: true, ..pull(7, "friend", A) };
    world.forge.pull(&draft);
    world.deliver("1", pull_event(Opened, &draft)).await;
    assert_eq!(world.waiting(7).await.as_deref(), Some(WAITS_AS_DRAFT));
    world.forge.pull(&pull(7, "friend", A));
    world.deliver("2", pull_event(Ready, &pull(7, "friend", A))).await;
    assert_eq!(world.evaluations().await, ["pull/7 a queued"]);

    let world = World::new().await;
    set(&world, ProjectChanges { build_drafts: Some(true), ..ProjectChanges::default() }).await;
    world.forge.permit("friend", Permission::Write);
    world.forge.pull(&draft);
    world.deliver("1", pull_event(Opened, &draft)).await;
    assert_eq!(world.evaluations().await, ["pull/7 a queued"]);
}

#[tokio::test]
async fn whom_the_project_trusts() {
    for (pr_trust, pr_enabled, runs) in [
        (PullRequestTrust::All, true, true),
        (PullRequestTrust::None, true, false),
        (PullRequestTrust::All, false, false),
    ] {
        let world = World::new().await;
        set(
            &world,
            ProjectChanges { pr_trust: Some(pr_trust), pr_enabled: Some(pr_enabled), ..ProjectChanges::default() },
        )
        .await;
        world.forge.permit("friend", Permission::Admin);
        world.forge.permit("maintainer", Permission::Admin);
        world.forge.pull(&pull(7, "friend", A));
        world.deliver("1", pull_event(Opened, &pull(7, "friend", A))).await;
        assert_eq!(world.evaluations().await.len(), usize::from(runs), "{pr_trust:?} {pr_enabled}");
        assert_eq!(world.forge.asked(), ["pull 7"], "nothing depends on a permission");
        world.heads_are_known().await;
        world.deliver("2", comment("maintainer", "/ci run")).await;
        assert_eq!(world.evaluations().await.len(), usize::from(pr_enabled), "{pr_trust:?} {pr_enabled}");
    }
}

#[tokio::test]
async fn a_closed_pull_request_is_closed_and_reopened_it_runs_again() {
    let world = World::new().await;
    set(&world, ProjectChanges { pr_trust: Some(PullRequestTrust::All), ..ProjectChanges::default() }).await;
    let open = pull(7, "stranger", A);
    let closed = PullRequest { is_open: false, ..open.clone() };
    world.forge.pull(&open);
    world.deliver("1", pull_event(Opened, &open)).await;
    // A closing that is told of late, after it was opened again.
    world.deliver("2", pull_event(Closed, &closed)).await;
    assert_eq!(world.evaluations().await, ["pull/7 a queued"]);
    world.forge.pull(&closed);
    world.deliver("3", pull_event(Closed, &closed)).await;
    assert_eq!(world.evaluations().await, ["pull/7 a cancelled"]);
    // A push that is told of late, after it was closed.
    world.deliver("4", pull_event(Pushed, &open)).await;
    assert_eq!(world.evaluations().await, ["pull/7 a cancelled"]);
    world.forge.pull(&open);
    world.deliver("5", pull_event(Reopened, &open)).await;
    assert_eq!(world.evaluations().await, ["pull/7 a cancelled", "pull/7 a queued"]);
    // Gone altogether.
    world.forge.state().pulls.clear();
    world.deliver("6", pull_event(Edited, &open)).await;
    assert_eq!(world.evaluations().await, ["pull/7 a cancelled", "pull/7 a cancelled"]);
    world.assert_sound().await;
}

#[tokio::test]
async fn a_new_base_is_evaluated_and_a_label_costs_nothing() {
    let world = World::new().await;
    set(&world, ProjectChanges { pr_trust: Some(PullRequestTrust::All), ..ProjectChanges::default() }).await;
    world.forge.pull(&pull(7, "x", A));
    world.deliver("1", pull_event(Opened, &pull(7, "x", A))).await;
    let onto = PullRequest { base_branch: "next".to_owned(), ..pull(7, "x", A) };
    world.forge.pull(&onto);
    world.deliver("2", pull_event(Edited, &onto)).await;
    assert_eq!(world.evaluations().await, ["pull/7 a cancelled <2", "pull/7 a queued"]);
    world.forge.asked();
    world.deliver("3", pull_event(Other, &onto)).await;
    assert_eq!(world.forge.asked(), Vec::<String>::new());
}

#[tokio::test]
async fn a_pull_request_is_run_again_only_at_its_present_head() {
    let world = waiting_world().await;
    world.deliver("c1", comment("maintainer", "/ci run")).await;
    world.fail_evaluation().await;
    let rerun = |user: &str| {
        let (repository, commit, user) = (repository(), A.to_owned(), user.to_owned());
        Event::Rerun(Rerun { repository, commit, context: None, user })
    };
    world.deliver("r1", rerun("stranger")).await;
    assert_eq!(world.evaluations().await, ["pull/7 a failed"]);
    world.deliver("r2", rerun("maintainer")).await;
    assert_eq!(world.evaluations().await, ["pull/7 a failed", "pull/7 a queued"]);
    world.fail_evaluation().await;
    world.forge.pull(&pull(7, "stranger", B));
    let outcome = world.deliver("r3", rerun("maintainer")).await;
    assert!(outcome.contains("another head"), "{outcome}");
    assert_eq!(world.evaluations().await.len(), 2);
}

#[tokio::test]
async fn a_forge_that_knows_neither_permissions_nor_pull_requests_trusts_nobody() {
    let world = World::new().await;
    world.forge.state().lacks.extend([ForgeFeature::PullRequests, ForgeFeature::Permissions]);
    world.deliver("1", pull_event(Opened, &pull(7, "friend", A))).await;
    assert_eq!(world.waiting(7).await.as_deref(), Some(WAITS_FOR_APPROVAL));
    world.deliver("2", comment("maintainer", "/ci run")).await;
    assert_eq!(world.evaluations().await, Vec::<String>::new());
    // With permissions, what deliveries told of takes the place of asking.
    world.forge.state().lacks.remove(&ForgeFeature::Permissions);
    world.forge.permit("maintainer", Permission::Write);
    world.record("3", vec![comment("maintainer", "x\n/ci run")]).await;
    world.record("4", vec![pull_event(Pushed, &pull(7, "friend", B))]).await;
    world.intake.step().await.expect("step");
    assert_eq!(world.evaluations().await, Vec::<String>::new(), "another head is known by now");
    assert_eq!(world.replies().await.len(), 1);
    world.heads_are_known().await;
    world.deliver("5", comment("maintainer", "y\n/ci run")).await;
    assert_eq!(world.evaluations().await, ["pull/7 b queued"]);
    let closed = PullRequest { is_open: false, ..pull(7, "friend", B) };
    world.deliver("6", pull_event(Closed, &closed)).await;
    assert_eq!(world.evaluations().await, ["pull/7 b cancelled"]);
}
