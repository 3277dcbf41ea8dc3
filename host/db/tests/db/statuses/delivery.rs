//! Who sends what, and what is remembered of it.

use std::time::Duration;

use harmonia_core::forge::StatusState;
use harmonia_core::status::DeadLetterKind;
use harmonia_core::status::delivery::Next;
use harmonia_core::{FailureKind, NodeId};
use harmonia_db::testing::{pool, time_passes};
use harmonia_db::{Answer, PauseKind};

use super::{COMMIT, LEASE, PROGRESS, Reported};
use crate::world::graph;

const AWAY: Answer<'static> =
    Answer { next: Next::Again { after: Duration::from_secs(40), is_ambiguous: true }, error: "away" };
const DENIED: Answer<'static> = Answer { next: Next::Denied { after: Duration::from_mins(10) }, error: "refused" };
const DEAD: Answer<'static> = Answer { next: Next::Dead, error: "makes no sense" };

/// A running evaluation whose status waits to be sent.
async fn with_one_due() -> Reported {
    let it = Reported::new().await;
    it.evaluation("main").await;
    it.compute().await;
    it
}

#[tokio::test]
async fn only_one_sends_and_only_changes_are_sent() {
    let it = with_one_due().await;
    let due = it.claim("one").await;
    assert_eq!(due.len(), 1);
    let status = &due[0].status;
    assert_eq!((status.repository.id.as_str(), status.repository.full_name.as_str()), ("17", "o/r"));
    assert_eq!((status.commit.as_str(), status.context.as_str()), (COMMIT, "harmonia-ci/nix-eval"));
    assert_eq!((status.state, status.description.as_str()), (StatusState::Pending, "evaluating"));
    assert_eq!(status.target_url.as_deref(), Some("https://ci.invalid/ci/r/eval/1"));
    assert_eq!(it.claim("two").await, []);
    assert!(it.db.status_delivered(&due[0]).await.expect("store"));
    assert_eq!(it.claim("two").await, []);
    // Computed again, nothing is different, nothing is sent.
    super::mark(&it).await;
    assert_eq!(it.compute().await, 0);
    assert_eq!(it.claim("two").await, []);
}

#[tokio::test]
async fn what_changes_while_it_is_sent_is_sent_again() {
    let it = Reported::new().await;
    let eval = it.evaluation("main").await;
    it.compute().await;
    let due = it.claim("one").await;
    it.db.fail_evaluation(eval.id, &eval.token, "error: no").await.expect("fail");
    it.compute().await;
    let others = it.claim("two").await;
    assert!(others.iter().all(|other| other.status.context != due[0].status.context), "it is leased: {others:?}");
    assert!(it.db.status_delivered(&due[0]).await.expect("store"));
    let again = it.claim("two").await;
    assert_eq!(again.iter().map(|due| due.status.state).collect::<Vec<_>>(), [StatusState::Failure]);
}

#[tokio::test]
async fn a_lost_answer_leads_to_another_assertion() {
    let it = with_one_due().await;
    let due = it.claim("one").await;
    assert!(it.db.status_failed(&due[0], AWAY).await.expect("store"));
    assert_eq!(it.claim("one").await, [], "not yet");
    time_passes(&it.db, Duration::from_secs(41)).await;
    let due = it.claim("two").await;
    assert_eq!(due[0].failures, 1);
    assert!(it.db.status_delivered(&due[0]).await.expect("store"));
    assert_eq!(it.claim("two").await, []);

    // Also when the rows went back to what was delivered before: nobody knows what the forge shows.
    it.db.create_evaluation(&crate::world::new_evaluation(it.project, "other")).await.expect("queue");
    it.compute().await;
    time_passes(&it.db, PROGRESS).await;
    let due = it.claim("one").await;
    it.db.status_failed(&due[0], AWAY).await.expect("store");
    sqlx::query!("UPDATE commit_statuses SET desired_digest = delivered_digest, desired_state = delivered_state")
        .execute(pool(&it.db))
        .await
        .expect("back again");
    time_passes(&it.db, Duration::from_secs(41)).await;
    assert_eq!(it.claim("two").await.len(), 1);
}

/// A sender that was thought dead comes back: it changes no row, and what it may have done to the forge is undone.
#[tokio::test]
async fn two_frontends_never_reorder() {
    let it = Reported::new().await;
    let eval = it.evaluation("main").await;
    it.compute().await;
    let slow = it.claim("slow").await;
    it.db.fail_evaluation(eval.id, &eval.token, "error: no").await.expect("fail");
    it.compute().await;
    time_passes(&it.db, LEASE).await;
    let quick = it.claim("quick").await;
    let quick = quick.iter().find(|due| due.id == slow[0].id).expect("the lease is over");
    assert_eq!(quick.status.state, StatusState::Failure);
    assert!(it.db.status_delivered(quick).await.expect("store"));
    // The old holder's call reaches the forge only now.
    assert!(!it.db.status_delivered(&slow[0]).await.expect("store"));
    assert!(!it.db.status_failed(&slow[0], AWAY).await.expect("store"));
    for round in 0..2 {
        time_passes(&it.db, Duration::from_secs(31)).await;
        let again: Vec<_> = it.claim("quick").await.into_iter().filter(|due| due.id == slow[0].id).collect();
        assert_eq!(again.len(), 1, "round {round}: asserted once more");
        assert_eq!(again[0].status.state, StatusState::Failure);
        it.db.status_delivered(&again[0]).await.expect("store");
    }
    time_passes(&it.db, Duration::from_secs(31)).await;
    assert!(it.claim("quick").await.iter().all(|due| due.id != slow[0].id), "and then it is good");
}

#[tokio::test]
async fn a_sender_that_died_is_replaced_and_its_word_asserted_twice() {
    let it = with_one_due().await;
    assert_eq!(it.claim("dies").await.len(), 1);
    time_passes(&it.db, LEASE).await;
    let due = it.claim("heir").await;
    it.db.status_delivered(&due[0]).await.expect("store");
    assert_eq!(it.claim("heir").await, []);
    time_passes(&it.db, Duration::from_secs(31)).await;
    let again = it.claim("heir").await;
    assert_eq!(again.len(), 1);
    it.db.status_delivered(&again[0]).await.expect("store");
    time_passes(&it.db, Duration::from_mins(10)).await;
    assert_eq!(it.claim("heir").await, []);
}

#[tokio::test]
async fn refused_for_good_is_dead_until_it_changes_or_is_replayed() {
    let it = Reported::new().await;
    let eval = it.evaluation("main").await;
    it.compute().await;
    let due = it.claim("one").await;
    it.db.status_failed(&due[0], DEAD).await.expect("store");
    time_passes(&it.db, Duration::from_hours(24)).await;
    assert_eq!(it.claim("one").await, []);
    let letters = it.db.dead_letters(10).await.expect("list");
    assert_eq!(letters.len(), 1);
    let letter = &letters[0];
    assert_eq!((letter.kind, letter.target.as_str()), (DeadLetterKind::Status, "forge"));
    assert_eq!(letter.subject, "o/r 000000000000 harmonia-ci/nix-eval");
    assert_eq!((letter.error.as_deref(), letter.dead_at.is_some()), (Some("makes no sense"), true));

    assert!(it.db.replay_dead_letter(letter.kind, letter.id, "bob").await.expect("replay"));
    assert!(!it.db.replay_dead_letter(letter.kind, letter.id, "bob").await.expect("replay"), "once");
    let due = it.claim("one").await;
    assert_eq!((due.len(), due[0].failures), (1, 0));
    // Another state is another letter: it is tried, also when it came while the old one was refused.
    it.db.fail_evaluation(eval.id, &eval.token, "error: no").await.expect("fail");
    it.compute().await;
    it.db.status_failed(&due[0], DEAD).await.expect("store");
    assert!(it.claim("one").await.iter().any(|again| again.id == due[0].id));
    let noted = sqlx::query_scalar!(r#"SELECT count(*) AS "n!" FROM audit_log WHERE action = 'replay'"#);
    assert_eq!(noted.fetch_one(pool(&it.db)).await.expect("count"), 1);
}

#[tokio::test]
async fn what_is_refused_again_and_again_is_seen_and_still_tried() {
    let it = with_one_due().await;
    for failures in 1..=3 {
        assert_eq!(it.db.dead_letters(10).await.expect("list"), [], "before failure {failures}: it may pass by itself");
        let due = it.claim("one").await;
        it.db.status_failed(&due[0], AWAY).await.expect("store");
        time_passes(&it.db, Duration::from_mins(1)).await;
    }
    let letters = it.db.dead_letters(10).await.expect("list");
    assert_eq!((letters.len(), letters[0].attempts, letters[0].dead_at), (1, 3, None));
    let due = it.claim("one").await;
    it.db.status_delivered(&due[0]).await.expect("store");
    assert_eq!(it.db.dead_letters(10).await.expect("list"), []);
}

/// Whoever has to give a grant or a credential sees at the first refusal that something waits for it.
#[tokio::test]
async fn what_is_denied_is_seen_at_once_until_it_is_taken_or_fails_otherwise() {
    let it = with_one_due().await;
    owe(&it, 7, "a").await;
    let node = NodeId("one".to_owned());
    let claim_comment = async || it.db.claim_comments(&node, "forge", 9, LEASE).await.expect("claim").remove(0);
    let shown = async || {
        let all = it.db.dead_letters(10).await.expect("list");
        let letters = all.into_iter().map(|letter| (letter.kind, letter.attempts, letter.error.unwrap_or_default()));
        letters.collect::<Vec<_>>()
    };
    let status = it.claim("one").await.remove(0);
    it.db.status_failed(&status, DENIED).await.expect("store");
    it.db.comment_failed(&claim_comment().await, DENIED).await.expect("store");
    let mut letters = shown().await;
    letters.sort_by_key(|(kind, ..)| kind.to_string());
    let refused = || "refused".to_owned();
    assert_eq!(letters, [(DeadLetterKind::Comment, 1, refused()), (DeadLetterKind::Status, 1, refused())]);

    // Replayed, it is as if it was never tried; another failure is no denial.
    time_passes(&it.db, Duration::from_mins(11)).await;
    let comment = claim_comment().await;
    assert!(it.db.replay_dead_letter(DeadLetterKind::Comment, comment.id, "me").await.expect("replay"));
    assert_eq!(shown().await, [(DeadLetterKind::Status, 1, refused())]);
    it.db.comment_failed(&comment, AWAY).await.expect("store");
    assert_eq!(shown().await, [(DeadLetterKind::Status, 1, refused())]);
    it.db.status_delivered(&it.claim("one").await[0]).await.expect("store");
    assert_eq!(shown().await, []);
}

#[tokio::test]
async fn a_forge_that_wants_to_be_left_alone_is_and_others_are_not() {
    let it = with_one_due().await;
    let pause = |seconds| it.db.pause_deliveries(PauseKind::Forge, "forge", Duration::from_secs(seconds), "429");
    pause(60).await.expect("pause");
    pause(10).await.expect("a shorter one changes nothing");
    it.db.pause_deliveries(PauseKind::Reporter, "forge", Duration::from_hours(1), "429").await.expect("another kind");
    time_passes(&it.db, Duration::from_secs(30)).await;
    assert_eq!(it.claim("one").await, []);
    time_passes(&it.db, Duration::from_secs(31)).await;
    assert_eq!(it.claim("one").await.len(), 1);
}

#[tokio::test]
async fn a_repository_that_is_gone_is_quiet_and_speaks_again_when_it_is_back() {
    let it = with_one_due().await;
    sqlx::query!("UPDATE repositories SET removed_at = now()").execute(pool(&it.db)).await.expect("remove");
    assert_eq!(it.claim("one").await, []);
    it.db.sweep_reports(Duration::from_hours(1)).await.expect("sweep");
    sqlx::query!("UPDATE repositories SET removed_at = NULL").execute(pool(&it.db)).await.expect("restore");
    time_passes(&it.db, Duration::from_hours(1)).await;
    assert_eq!(it.claim("one").await.len(), 1);
    assert_eq!(it.db.claim_statuses(&NodeId("one".to_owned()), "elsewhere", 9, LEASE).await.expect("claim"), []);
}

#[tokio::test]
async fn progress_is_sent_now_and_then_and_the_end_at_once() {
    let it = Reported::new().await;
    let eval = it.evaluation("main").await;
    it.world.insert(&eval, &graph(&[&[], &[], &[]]), &[0, 1, 2]).await.expect("insert");
    it.db.finish_evaluation(eval.id, &eval.token).await.expect("finish");
    let jobs = it.world.claim(3).await;
    it.compute().await;
    for due in it.claim("one").await {
        it.db.status_delivered(&due).await.expect("store");
    }
    it.world.complete(&jobs[0]).await.expect("complete");
    it.compute().await;
    assert_eq!(it.claim("one").await, [], "a little progress, a moment ago");
    time_passes(&it.db, PROGRESS).await;
    let due = it.claim("one").await;
    assert_eq!(due.iter().map(|due| due.status.description.as_str()).collect::<Vec<_>>(), ["1/3 done"]);
    it.db.status_delivered(&due[0]).await.expect("store");
    it.world.complete(&jobs[1]).await.expect("complete");
    it.compute().await;
    it.world.fail(&jobs[2], Some(FailureKind::Build)).await.expect("fail");
    it.compute().await;
    let due = it.claim("one").await;
    let mut said: Vec<_> = due.iter().map(|due| due.status.description.as_str()).collect();
    said.sort_unstable();
    assert_eq!(said, ["1 failed: a2", "failed: it broke"]);
}

async fn owe(it: &Reported, number: i64, key: &str) {
    sqlx::query!(
        "INSERT INTO forge_comments (repository_id, number, key, body) SELECT id, $1, $2, 'the head changed' FROM repositories",
        number,
        key
    )
    .execute(pool(&it.db))
    .await
    .expect("owe");
}

#[tokio::test]
async fn comments_go_out_in_order_and_once() {
    let it = Reported::new().await;
    let node = NodeId("one".to_owned());
    for (number, key) in [(7, "a"), (7, "b"), (8, "c")] {
        owe(&it, number, key).await;
    }
    let claim = async || it.db.claim_comments(&node, "forge", 9, LEASE).await.expect("claim");
    let keys = |due: &[harmonia_db::OwedComment]| due.iter().map(|due| due.key.clone()).collect::<Vec<_>>();
    let mut due = claim().await;
    due.sort_by_key(|due| due.id);
    assert_eq!(keys(&due), ["a", "c"], "b has to wait for a");
    assert_eq!((due[0].number, due[0].repository.id.as_str()), (7, "17"));
    assert!(it.db.comment_delivered(&due[0]).await.expect("store"));
    assert!(it.db.comment_failed(&due[1], DEAD).await.expect("store"));
    let letters = it.db.dead_letters(10).await.expect("list");
    assert_eq!((letters.len(), letters[0].kind, letters[0].subject.as_str()), (1, DeadLetterKind::Comment, "o/r #8"));
    let due = claim().await;
    assert_eq!(keys(&due), ["b"]);
    // The lease ends; the late answer counts for nothing.
    time_passes(&it.db, LEASE).await;
    let heir = claim().await;
    assert_eq!(keys(&heir), ["b"]);
    assert!(!it.db.comment_delivered(&due[0]).await.expect("store"));
    assert!(it.db.comment_delivered(&heir[0]).await.expect("store"));
    assert!(it.db.replay_dead_letter(letters[0].kind, letters[0].id, "bob").await.expect("replay"));
    assert_eq!(keys(&claim().await), ["c"]);
}
