//! Notifications: told once each, in order, to those who were there.

use std::time::Duration;

use harmonia_core::reporter::NotificationKind;
use harmonia_core::status::DeadLetterKind;
use harmonia_core::status::delivery::Next;
use harmonia_core::{FailureKind, NodeId};
use harmonia_db::testing::time_passes;
use harmonia_db::{Answer, Db, DueNotification, NewProject, ProjectKind};

use crate::statuses::{LEASE, Reported, compute};
use crate::world::{Eval, graph};

const AWAY: Answer<'static> =
    Answer { next: Next::Again { after: Duration::from_secs(5), is_ambiguous: true }, error: "away" };

async fn claim(db: &Db, reporter: &str) -> Vec<DueNotification> {
    db.claim_notifications(&NodeId("one".to_owned()), reporter, 10, LEASE).await.expect("claim")
}

fn keys(due: &[DueNotification]) -> Vec<&str> {
    due.iter().map(|due| due.notification.key.as_str()).collect()
}

/// An evaluation of one attribute, finished, whose build fails.
async fn failing(it: &Reported) -> Eval {
    let eval = it.evaluation("main").await;
    it.world.insert(&eval, &graph(&[&[]]), &[0]).await.expect("insert");
    it.db.finish_evaluation(eval.id, &eval.token).await.expect("finish");
    let job = it.world.claim_only(0).await;
    it.world.fail(&job, Some(FailureKind::Build)).await.expect("fail");
    eval
}

#[tokio::test]
async fn each_reporter_hears_each_thing_in_order() {
    let it = Reported::new().await;
    let eval = failing(&it).await;
    assert_eq!(compute(&it.db, &["chat", "mail"]).await.1, 4);
    assert_eq!(compute(&it.db, &["chat", "mail"]).await.1, 0);
    let first = claim(&it.db, "chat").await;
    assert_eq!(keys(&first), ["evaluation-1"]);
    assert_eq!(first[0].notification.kind, NotificationKind::EvaluationSucceeded);
    assert_eq!(keys(&claim(&it.db, "mail").await), ["evaluation-1"], "reporters do not wait for each other");
    assert_eq!(claim(&it.db, "chat").await, []);
    // Not told, so that what came later waits, whatever time passes.
    it.db.notification_failed(&first[0], AWAY).await.expect("store");
    assert_eq!(claim(&it.db, "chat").await, []);
    time_passes(&it.db, Duration::from_secs(6)).await;
    let first = claim(&it.db, "chat").await;
    assert_eq!((keys(&first), first[0].failures), (vec!["evaluation-1"], 1));
    assert!(it.db.notification_delivered(&first[0]).await.expect("store"));
    let second = claim(&it.db, "chat").await;
    let told = &second[0].notification;
    assert_eq!((told.kind, told.failed, told.failures[0].attr.as_str()), (NotificationKind::BuildsFailed, 1, "a0"));
    assert_eq!((told.project.as_str(), told.branch.as_str(), told.failed_before), ("r", "main", None));
    assert!(it.db.notification_delivered(&second[0]).await.expect("store"));

    // A rebuild repairs it: that is news.
    it.db.rebuild_failed(eval.id, "me").await.expect("rebuild");
    compute(&it.db, &["chat"]).await;
    let job = it.world.claim_only(0).await;
    it.world.complete(&job).await.expect("complete");
    assert_eq!(compute(&it.db, &["chat"]).await.1, 1);
    let third = claim(&it.db, "chat").await;
    assert_eq!(third[0].notification.kind, NotificationKind::BuildsSucceeded);
    it.db.notification_delivered(&third[0]).await.expect("store");

    // And the next evaluation knows how it was before.
    let next = it.evaluation("main").await;
    it.db.fail_evaluation(next.id, &next.token, "error: no").await.expect("fail");
    compute(&it.db, &["chat"]).await;
    let told = claim(&it.db, "chat").await;
    assert_eq!(told[0].notification.kind, NotificationKind::EvaluationFailed);
    assert_eq!(told[0].notification.failed_before, Some(false));
    assert_eq!(told[0].notification.failures[0].message, "no");
}

#[tokio::test]
async fn who_is_configured_later_hears_nothing_of_the_past() {
    let it = Reported::new().await;
    let eval = failing(&it).await;
    assert_eq!(compute(&it.db, &[]).await.1, 0);
    // The commit is computed again with a reporter: nothing of what was is told.
    it.db.rebuild_failed(eval.id, "me").await.expect("rebuild");
    assert_eq!(compute(&it.db, &["chat"]).await.1, 0);
    let job = it.world.claim_only(0).await;
    it.world.complete(&job).await.expect("complete");
    assert_eq!(compute(&it.db, &["chat"]).await.1, 1, "what happens now is");
}

#[tokio::test]
async fn a_dead_letter_lets_others_pass_and_can_be_replayed() {
    let it = Reported::new().await;
    failing(&it).await;
    compute(&it.db, &["chat"]).await;
    let first = claim(&it.db, "chat").await;
    it.db.notification_failed(&first[0], Answer { next: Next::Dead, error: "no such room" }).await.expect("store");
    assert_eq!(keys(&claim(&it.db, "chat").await), ["builds-1-1"]);
    let letters = it.db.dead_letters(10).await.expect("list");
    let letter = &letters[0];
    assert_eq!(
        (letter.kind, letter.target.as_str(), letter.subject.as_str()),
        (DeadLetterKind::Notification, "chat", "r evaluation-1")
    );
    assert!(it.db.replay_dead_letter(letter.kind, letter.id, "bob").await.expect("replay"));
    assert_eq!(keys(&claim(&it.db, "chat").await), ["evaluation-1"]);
    assert!(!it.db.replay_dead_letter(DeadLetterKind::Notification, 999, "bob").await.expect("replay"));
}

#[tokio::test]
async fn a_denied_notification_is_a_letter_at_once_and_still_tried() {
    let it = Reported::new().await;
    failing(&it).await;
    compute(&it.db, &["chat", "mail"]).await;
    let denied = Answer { next: Next::Denied { after: Duration::from_mins(10) }, error: "chat.invalid is not granted" };
    it.db.notification_failed(&claim(&it.db, "chat").await[0], denied).await.expect("store");
    it.db.notification_failed(&claim(&it.db, "mail").await[0], AWAY).await.expect("store");
    let letters = it.db.dead_letters(10).await.expect("list");
    let told: Vec<_> = letters.iter().map(|letter| (letter.target.as_str(), letter.attempts, letter.dead_at)).collect();
    assert_eq!(told, [("chat", 1, None)], "what may pass by itself is none");
    time_passes(&it.db, Duration::from_mins(11)).await;
    assert_eq!(keys(&claim(&it.db, "chat").await), ["evaluation-1"]);
}

#[tokio::test]
async fn projects_do_not_wait_for_each_other_and_need_no_forge() {
    let it = Reported::new().await;
    failing(&it).await;
    let kind = ProjectKind::Git { url: "https://git.invalid/x".to_owned() };
    let plain = it.db.ensure_project(&NewProject { name: "plain".to_owned(), kind }).await.expect("a project");
    let eval = it.world.evaluation_of(plain, "main").await;
    it.db.fail_evaluation(eval.id, &eval.token, "error: no").await.expect("fail");
    assert_eq!(compute(&it.db, &["chat"]).await.1, 3);
    let due = claim(&it.db, "chat").await;
    assert_eq!(keys(&due), ["evaluation-1", "evaluation-2"]);
    // One whose lease ran out is told again; the late answer counts for nothing.
    time_passes(&it.db, LEASE).await;
    assert_eq!(claim(&it.db, "chat").await.len(), 2);
    assert!(!it.db.notification_delivered(&due[0]).await.expect("store"));
}
