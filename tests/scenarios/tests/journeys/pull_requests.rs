//! Pull requests: whose code runs, and when.

use std::time::Duration;

use harmonia_fake_forges::{CommentAction, Event, Permission, PullRequestAction};

use crate::forge::{Forge, REPOSITORY, journeys};
use crate::world::World;

journeys! {
    both: a_collaborator_needs_nobody, a_stranger_waits_and_is_told_so, an_edited_comment_does_not_approve,
        a_deleted_comment_does_not_approve, an_approval_counts_for_one_head_only,
        a_push_between_reading_and_approving_runs_nothing, an_approval_by_hash_of_what_is_not_the_head_runs_nothing,
        a_comment_that_is_delivered_again_approves_nothing_more, a_collaborators_push_replaces_the_one_before,
        a_draft_waits_until_it_is_ready, a_closed_pull_request_wants_nothing_any_more,
        rights_that_were_taken_away_count, a_collaborators_pull_request_of_a_strangers_branch_waits_for_each_push,
        a_head_that_arrived_a_moment_before_the_comment_has_to_be_named,
        a_copy_of_a_pull_request_takes_nothing_from_it, a_commit_that_is_branch_and_pull_request_shows_the_worst;
    github: ;
    gitea: ;
}

/// A pull request, opened and delivered; gives its number and head.
async fn opened(world: &World, author: &str) -> (u64, String) {
    let number = {
        let mut forge = world.forge.world();
        let fork = format!("{author}/site");
        forge.open_pull_request(REPOSITORY, &fork, "topic", author)
    };
    happens(world, number, PullRequestAction::Opened).await;
    (number, head(world, number))
}

fn head(world: &World, number: u64) -> String {
    world.forge.world().repository(REPOSITORY).pull_requests[&number].head_commit.clone()
}

async fn happens(world: &World, number: u64, action: PullRequestAction<'_>) {
    world.happens(Forge::of_pull_request(number, action)).await;
}

/// A comment, written and delivered.
async fn comments(world: &World, number: u64, author: &str, text: &str) -> u64 {
    let id = world.forge.world().add_comment(REPOSITORY, number, author, text);
    world.happens(Event::Comment { repository: REPOSITORY, id, action: CommentAction::Created }).await;
    id
}

/// A push to the pull request that is not delivered yet; gives the head before and the new one.
fn pushed(world: &World, number: u64) -> (String, String) {
    let before = head(world, number);
    let after = world.forge.world().push_to_pull_request(REPOSITORY, number, "More");
    (before, after)
}

async fn a_collaborator_needs_nobody(world: &World) {
    let (number, head) = opened(world, "ada").await;
    let taken = world.claim_evaluation().await.expect("queued");
    let pull = taken.claimed.pull_request.clone().expect("of a pull request");
    assert_eq!((pull.number, pull.base_branch.as_str()), (number, "main"));
    assert_eq!(taken.claimed.commit.as_deref(), Some(head.as_str()));
    assert_eq!(pull.head_ref.as_deref(), Some(format!("refs/pull/{number}/head").as_str()));
    world.finish(&taken, &[1]).await;
    world.built(&[]).await;
    world.settle().await;
    world.assert_shown(&head, "success", "success");
}

async fn a_stranger_waits_and_is_told_so(world: &World) {
    let (number, head) = opened(world, "eve").await;
    assert!(world.claim_evaluation().await.is_none(), "nothing of a stranger runs");
    let shown = world.shown(&head);
    assert_eq!(shown.get("nix-eval").map(String::as_str), Some("pending"), "{}", world.explain(&head).await);
    // Neither the author nor another stranger can approve, nor can a quotation.
    comments(world, number, "eve", "/ci run").await;
    comments(world, number, "mallory", "/ci run").await;
    comments(world, number, "ada", "> /ci run\n\nNo, not yet.").await;
    assert!(world.claim_evaluation().await.is_none());
    comments(world, number, "ada", "Looks harmless.\n/ci run").await;
    assert_eq!(world.queued_commits().await, [head]);
}

async fn an_edited_comment_does_not_approve(world: &World) {
    let (number, _) = opened(world, "eve").await;
    let id = comments(world, number, "ada", "Hm.").await;
    {
        let mut forge = world.forge.world();
        let comment = forge.repository_mut(REPOSITORY).comments.iter_mut().find(|comment| comment.id == id);
        "/ci run".clone_into(&mut comment.expect("there").body);
    }
    world.happens(Event::Comment { repository: REPOSITORY, id, action: CommentAction::Edited { from: "Hm." } }).await;
    assert!(world.claim_evaluation().await.is_none());
}

async fn a_deleted_comment_does_not_approve(world: &World) {
    let (number, _) = opened(world, "eve").await;
    let id = world.forge.world().add_comment(REPOSITORY, number, "ada", "/ci run");
    world.happens(Event::Comment { repository: REPOSITORY, id, action: CommentAction::Deleted }).await;
    assert!(world.claim_evaluation().await.is_none());
}

async fn an_approval_counts_for_one_head_only(world: &World) {
    let (number, first) = opened(world, "eve").await;
    comments(world, number, "ada", "/ci run").await;
    assert_eq!(world.queued_commits().await, [first]);
    let (before, after) = pushed(world, number);
    happens(world, number, PullRequestAction::Synchronize { before: &before }).await;
    assert!(world.claim_evaluation().await.is_none(), "a later push needs a new approval");
    comments(world, number, "ada", &format!("/ci run {after}")).await;
    assert_eq!(world.queued_commits().await, [after]);
}

async fn a_push_between_reading_and_approving_runs_nothing(world: &World) {
    let (number, _) = opened(world, "eve").await;
    // The head moves; the comment arrives before the push is delivered.
    let (before, after) = pushed(world, number);
    comments(world, number, "ada", "/ci run").await;
    assert!(world.claim_evaluation().await.is_none(), "the head that ada saw is not the head");
    let texts = world.comments(number);
    assert!(texts.iter().any(|text| text.contains("head changed") && text.contains("comment again")), "{texts:?}");
    happens(world, number, PullRequestAction::Synchronize { before: &before }).await;
    assert!(world.claim_evaluation().await.is_none());
    comments(world, number, "ada", "/ci run").await;
    assert_eq!(world.queued_commits().await, [after]);
}

async fn an_approval_by_hash_of_what_is_not_the_head_runs_nothing(world: &World) {
    let (number, first) = opened(world, "eve").await;
    let (before, _) = pushed(world, number);
    happens(world, number, PullRequestAction::Synchronize { before: &before }).await;
    comments(world, number, "ada", &format!("/ci run {first}")).await;
    assert!(world.claim_evaluation().await.is_none());
}

/// Gitea gives a delivery that is sent again another id; GitHub does not.
async fn a_comment_that_is_delivered_again_approves_nothing_more(world: &World) {
    let (number, first) = opened(world, "eve").await;
    let id = comments(world, number, "ada", "/ci run").await;
    assert_eq!(world.queued_commits().await, [first]);
    let (before, _) = pushed(world, number);
    happens(world, number, PullRequestAction::Synchronize { before: &before }).await;
    world.happens(Event::Comment { repository: REPOSITORY, id, action: CommentAction::Created }).await;
    assert!(world.claim_evaluation().await.is_none(), "ada never saw this head");
}

async fn a_collaborators_push_replaces_the_one_before(world: &World) {
    let (number, _) = opened(world, "ada").await;
    let (before, after) = pushed(world, number);
    happens(world, number, PullRequestAction::Synchronize { before: &before }).await;
    assert_eq!(world.queued_commits().await, [after]);
}

async fn a_collaborators_pull_request_of_a_strangers_branch_waits_for_each_push(world: &World) {
    let number = world.forge.world().open_pull_request(REPOSITORY, "eve/site", "topic", "ada");
    happens(world, number, PullRequestAction::Opened).await;
    assert!(world.claim_evaluation().await.is_none(), "eve can push to it whatever she likes");
    world.forge.world().add_user("bob");
    world.forge.world().repository_mut(REPOSITORY).collaborators.insert("bob".to_owned(), Permission::Write);
    comments(world, number, "bob", "/ci run").await;
    assert_eq!(world.queued_commits().await, [head(world, number)]);
    let (before, _) = pushed(world, number);
    happens(world, number, PullRequestAction::Synchronize { before: &before }).await;
    assert!(world.claim_evaluation().await.is_none(), "bob never saw this");
}

async fn a_head_that_arrived_a_moment_before_the_comment_has_to_be_named(world: &World) {
    let (number, _) = opened(world, "eve").await;
    let (before, after) = pushed(world, number);
    // Ada writes about what she read; the push arrives first, and is known to the forge as well.
    let event = Forge::of_pull_request(number, PullRequestAction::Synchronize { before: &before });
    assert_eq!(world.deliver(&world.forge.delivery(event)).await, 202);
    comments(world, number, "ada", "/ci run").await;
    assert!(world.claim_evaluation().await.is_none());
    let texts = world.comments(number);
    let named = format!("/ci run {after}");
    assert!(texts.iter().any(|text| text.contains("less than a minute") && text.contains(&named)), "{texts:?}");
    comments(world, number, "ada", &named).await;
    assert_eq!(world.queued_commits().await, [after]);
}

async fn a_copy_of_a_pull_request_takes_nothing_from_it(world: &World) {
    let (_, head) = opened(world, "ada").await;
    world.evaluated(&[1]).await;
    world.built(&[]).await;
    world.settle().await;
    world.assert_shown(&head, "success", "success");
    // Anybody can open another one of the same commit.
    let copy = {
        let mut forge = world.forge.world();
        let number = forge.open_pull_request(REPOSITORY, "eve/site", "topic", "eve");
        let commit = forge.repository(REPOSITORY).commits[&head].clone();
        forge.repository_mut("eve/site").commits.insert(head.clone(), commit);
        forge.repository_mut(REPOSITORY).pull_request_mut(number).head_commit.clone_from(&head);
        number
    };
    happens(world, copy, PullRequestAction::Opened).await;
    assert!(world.claim_evaluation().await.is_none());
    world.assert_shown(&head, "success", "success");
    // Nobody evaluates it any more for the one that is closed; the other one still waits.
    world.forge.world().repository_mut(REPOSITORY).pull_request_mut(1).open = false;
    happens(world, 1, PullRequestAction::Closed).await;
    assert_eq!(world.shown(&head)["nix-eval"], "pending", "{}", world.explain(&head).await);
}

async fn a_draft_waits_until_it_is_ready(world: &World) {
    let number = {
        let mut forge = world.forge.world();
        let number = forge.open_pull_request(REPOSITORY, "ada/site", "topic", "ada");
        forge.repository_mut(REPOSITORY).pull_request_mut(number).draft = true;
        number
    };
    happens(world, number, PullRequestAction::Opened).await;
    assert!(world.claim_evaluation().await.is_none());
    world.forge.world().repository_mut(REPOSITORY).pull_request_mut(number).draft = false;
    happens(world, number, PullRequestAction::ReadyForReview).await;
    assert_eq!(world.queued_commits().await, [head(world, number)]);
}

async fn a_closed_pull_request_wants_nothing_any_more(world: &World) {
    let (number, _) = opened(world, "ada").await;
    world.forge.world().repository_mut(REPOSITORY).pull_request_mut(number).open = false;
    happens(world, number, PullRequestAction::Closed).await;
    assert!(world.queued_commits().await.is_empty());
}

/// At once where the forge tells, within five minutes where it does not.
async fn rights_that_were_taken_away_count(world: &World) {
    let (_, first) = opened(world, "ada").await;
    assert_eq!(world.queued_commits().await, [first]);
    let told = world.forge.dismisses_ada();
    if told.is_empty() {
        world.pass(Duration::from_mins(5)).await;
    }
    for delivery in told {
        assert_eq!(world.deliver(&delivery).await, 202);
    }
    let (before, after) = pushed(world, 1);
    let event = Forge::of_pull_request(1, PullRequestAction::Synchronize { before: &before });
    assert_eq!(world.deliver(&world.forge.delivery(event)).await, 202);
    world.step(&world.frontend).await;
    assert!(world.claim_evaluation().await.is_none(), "ada is a stranger now");
    world.settle().await;
    assert_eq!(world.shown(&after)["nix-eval"], "pending", "it waits for somebody's approval");
}

async fn a_commit_that_is_branch_and_pull_request_shows_the_worst(world: &World) {
    let commit = world.pushed("release/3").await;
    world.evaluated(&[1]).await;
    world.built(&[]).await;
    world.settle().await;
    assert_eq!(world.shown(&commit)["nix-build"], "success");
    let number = world.forge.world().open_pull_request(REPOSITORY, REPOSITORY, "release/3", "ada");
    happens(world, number, PullRequestAction::Opened).await;
    world.evaluated(&[2]).await;
    world.built(&[2]).await;
    world.settle().await;
    assert_eq!(world.shown(&commit)["nix-build"], "failure");
}
