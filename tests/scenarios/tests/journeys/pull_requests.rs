//! Pull requests: whose code runs, and when.

use harmonia_fake_forges::{CommentAction, Event, PullRequestAction};

use crate::world::{REPOSITORY, World};

/// A pull request, opened and delivered; gives its number and head.
async fn opened(world: &World, author: &str) -> (u64, String) {
    let number = {
        let mut forge = world.github.world();
        let fork = format!("{author}/site");
        forge.open_pull_request(REPOSITORY, &fork, "topic", author)
    };
    happens(world, number, PullRequestAction::Opened).await;
    (number, head(world, number))
}

fn head(world: &World, number: u64) -> String {
    world.github.world().repository(REPOSITORY).pull_requests[&number].head_commit.clone()
}

async fn happens(world: &World, number: u64, action: PullRequestAction<'_>) {
    world.happens(Event::PullRequest { repository: REPOSITORY, number, action }).await;
}

/// A comment, written and delivered.
async fn comments(world: &World, number: u64, author: &str, text: &str) -> u64 {
    let id = world.github.world().add_comment(REPOSITORY, number, author, text);
    world.happens(Event::Comment { repository: REPOSITORY, id, action: CommentAction::Created }).await;
    id
}

/// A push to the pull request that is not delivered yet; gives the head before and the new one.
fn pushed(world: &World, number: u64) -> (String, String) {
    let before = head(world, number);
    let after = world.github.world().push_to_pull_request(REPOSITORY, number, "More");
    (before, after)
}

#[tokio::test]
async fn a_collaborator_needs_nobody() {
    let world = World::start().await;
    let (number, head) = opened(&world, "ada").await;
    let taken = world.claim_evaluation().await.expect("queued");
    let pull = taken.claimed.pull_request.clone().expect("of a pull request");
    assert_eq!((pull.number, pull.base_branch.as_str()), (number, "main"));
    assert_eq!(taken.claimed.commit.as_deref(), Some(head.as_str()));
    assert_eq!(pull.head_ref.as_deref(), Some(format!("refs/pull/{number}/head").as_str()));
    world.finish(&taken, &[1]).await;
    world.built(&[]).await;
    world.settle().await;
    let shown = world.shown(&head);
    assert_eq!((shown["nix-eval"].as_str(), shown["nix-build"].as_str()), ("success", "success"));
    world.assert_well_behaved();
}

#[tokio::test]
async fn a_stranger_waits_and_is_told_so() {
    let world = World::start().await;
    let (number, head) = opened(&world, "eve").await;
    assert!(world.claim_evaluation().await.is_none(), "nothing of a stranger runs");
    let shown = world.shown(&head);
    assert_eq!(shown.get("nix-eval").map(String::as_str), Some("queued"), "{}", world.explain(&head).await);
    // Neither the author nor another stranger can approve, nor can a quotation.
    comments(&world, number, "eve", "/ci run").await;
    comments(&world, number, "mallory", "/ci run").await;
    comments(&world, number, "ada", "> /ci run\n\nNo, not yet.").await;
    assert!(world.claim_evaluation().await.is_none());
    comments(&world, number, "ada", "Looks harmless.\n/ci run").await;
    assert_eq!(world.queued_commits().await, [head]);
    world.assert_well_behaved();
}

#[tokio::test]
async fn an_edited_comment_does_not_approve() {
    let world = World::start().await;
    let (number, _) = opened(&world, "eve").await;
    let id = comments(&world, number, "ada", "Hm.").await;
    {
        let mut forge = world.github.world();
        let comment = forge.repository_mut(REPOSITORY).comments.iter_mut().find(|comment| comment.id == id);
        "/ci run".clone_into(&mut comment.expect("there").body);
    }
    world.happens(Event::Comment { repository: REPOSITORY, id, action: CommentAction::Edited { from: "Hm." } }).await;
    assert!(world.claim_evaluation().await.is_none());
    world.assert_well_behaved();
}

#[tokio::test]
async fn an_approval_counts_for_one_head_only() {
    let world = World::start().await;
    let (number, first) = opened(&world, "eve").await;
    comments(&world, number, "ada", "/ci run").await;
    assert_eq!(world.queued_commits().await, [first]);
    let (before, after) = pushed(&world, number);
    happens(&world, number, PullRequestAction::Synchronize { before: &before }).await;
    assert!(world.claim_evaluation().await.is_none(), "a later push needs a new approval");
    comments(&world, number, "ada", &format!("/ci run {after}")).await;
    assert_eq!(world.queued_commits().await, [after]);
    world.assert_well_behaved();
}

#[tokio::test]
async fn a_push_between_reading_and_approving_runs_nothing() {
    let world = World::start().await;
    let (number, _) = opened(&world, "eve").await;
    // The head moves; the comment arrives before the push is delivered.
    let (before, after) = pushed(&world, number);
    comments(&world, number, "ada", "/ci run").await;
    assert!(world.claim_evaluation().await.is_none(), "the head that ada saw is not the head");
    let texts = world.comments(number);
    assert!(texts.iter().any(|text| text.contains("head changed") && text.contains("comment again")), "{texts:?}");
    happens(&world, number, PullRequestAction::Synchronize { before: &before }).await;
    assert!(world.claim_evaluation().await.is_none());
    comments(&world, number, "ada", "/ci run").await;
    assert_eq!(world.queued_commits().await, [after]);
    world.assert_well_behaved();
}

#[tokio::test]
async fn an_approval_by_hash_of_what_is_not_the_head_runs_nothing() {
    let world = World::start().await;
    let (number, first) = opened(&world, "eve").await;
    let (before, _) = pushed(&world, number);
    happens(&world, number, PullRequestAction::Synchronize { before: &before }).await;
    comments(&world, number, "ada", &format!("/ci run {first}")).await;
    assert!(world.claim_evaluation().await.is_none());
    world.assert_well_behaved();
}

#[tokio::test]
async fn a_collaborators_push_replaces_the_one_before() {
    let world = World::start().await;
    let (number, _) = opened(&world, "ada").await;
    let (before, after) = pushed(&world, number);
    happens(&world, number, PullRequestAction::Synchronize { before: &before }).await;
    assert_eq!(world.queued_commits().await, [after]);
    world.assert_well_behaved();
}

#[tokio::test]
async fn a_draft_waits_until_it_is_ready() {
    let world = World::start().await;
    let number = {
        let mut forge = world.github.world();
        let number = forge.open_pull_request(REPOSITORY, "ada/site", "topic", "ada");
        forge.repository_mut(REPOSITORY).pull_request_mut(number).draft = true;
        number
    };
    happens(&world, number, PullRequestAction::Opened).await;
    assert!(world.claim_evaluation().await.is_none());
    world.github.world().repository_mut(REPOSITORY).pull_request_mut(number).draft = false;
    happens(&world, number, PullRequestAction::ReadyForReview).await;
    assert_eq!(world.queued_commits().await, [head(&world, number)]);
    world.assert_well_behaved();
}

#[tokio::test]
async fn a_closed_pull_request_wants_nothing_any_more() {
    let world = World::start().await;
    let (number, _) = opened(&world, "ada").await;
    world.github.world().repository_mut(REPOSITORY).pull_request_mut(number).open = false;
    happens(&world, number, PullRequestAction::Closed).await;
    assert!(world.queued_commits().await.is_empty());
    world.assert_well_behaved();
}

#[tokio::test]
async fn rights_that_were_taken_away_count_at_once() {
    let world = World::start().await;
    let (_, first) = opened(&world, "ada").await;
    assert_eq!(world.queued_commits().await, [first]);
    world.github.world().repository_mut(REPOSITORY).collaborators.remove("ada");
    world.happens(Event::Member { repository: REPOSITORY, user: "ada", action: "removed" }).await;
    let (before, _) = pushed(&world, 1);
    happens(&world, 1, PullRequestAction::Synchronize { before: &before }).await;
    assert!(world.claim_evaluation().await.is_none(), "ada is a stranger now");
    world.assert_well_behaved();
}

#[tokio::test]
async fn a_commit_that_is_branch_and_pull_request_shows_the_worst() {
    let world = World::start().await;
    let commit = world.pushed("release/3").await;
    world.evaluated(&[1]).await;
    world.built(&[]).await;
    world.settle().await;
    assert_eq!(world.shown(&commit)["nix-build"], "success");
    let number = world.github.world().open_pull_request(REPOSITORY, REPOSITORY, "release/3", "ada");
    happens(&world, number, PullRequestAction::Opened).await;
    world.evaluated(&[2]).await;
    world.built(&[2]).await;
    world.settle().await;
    assert_eq!(world.shown(&commit)["nix-build"], "failure");
    world.assert_well_behaved();
}
