//! Pull requests, approvals in the order of arrival, permissions, replies.

use std::time::Duration;

use harmonia_core::forge::{Event, Permission, PullRequest, PullRequestAction, PullRequestEvent, RepositoryRef};
use harmonia_core::intake::wanted_of;
use harmonia_db::testing::{pool, projects_time_passes};
use harmonia_db::{AskedPermission, BranchKey, DeliveryRowId, EvaluationRequest, Requested};

use super::{A, B, Forge, queued, repository};

const FIVE_MINUTES: Duration = Duration::from_mins(5);

pub(crate) fn pull(head: &str) -> PullRequest {
    PullRequest {
        number: 7,
        title: "Add a thing".to_owned(),
        author: "stranger".to_owned(),
        is_open: true,
        is_draft: false,
        labels: vec!["new".to_owned()],
        head_commit: head.to_owned(),
        head_branch: "thing".to_owned(),
        head_repository: None,
        base_branch: "main".to_owned(),
        base_commit: B.to_owned(),
        head_ref: "refs/pull/7/head".to_owned(),
    }
}

fn event(action: PullRequestAction, head: &str) -> Event {
    Event::PullRequest(PullRequestEvent { repository: repository(), action, pull_request: pull(head) })
}

impl Forge {
    pub(crate) fn pull_key(&self) -> BranchKey {
        BranchKey { pull_request: Some(7), ..self.branch("pull/7") }
    }

    async fn request_pull(&self, now: &PullRequest) -> EvaluationRequest {
        let asked = self.db.branch_state(&self.pull_key()).await.expect("state");
        EvaluationRequest { wanted: wanted_of(now), ..self.request_as_of("pull/7", "", asked) }
    }

    pub(crate) async fn evaluate_pull(&self, now: &PullRequest) -> Requested {
        self.db.request_evaluation(&self.request_pull(now).await).await.expect("request")
    }

    async fn waiting(&self) -> Option<String> {
        self.db.pull_request(self.project, 7).await.expect("read").expect("there").waiting
    }
}

#[tokio::test]
async fn head_and_base_are_recorded_and_a_new_base_is_evaluated_again() {
    let forge = Forge::new().await;
    // A branch of the same name has nothing to do with it.
    let branch = queued(&forge.evaluate("pull/7", A).await);
    let first = forge.evaluate_pull(&pull(A)).await;
    assert_eq!(first, Requested::Queued { id: queued(&first), unfinished: Vec::new() });
    let row = sqlx::query!(
        "SELECT commit_sha, pr_number, pr_author, pr_head_sha, pr_head_ref, pr_base_branch, pr_base_sha FROM evaluations
         WHERE id = $1",
        queued(&first).0
    )
    .fetch_one(pool(&forge.db))
    .await
    .expect("read");
    assert_eq!(
        (row.commit_sha.as_deref(), row.pr_number, row.pr_author.as_deref()),
        (Some(A), Some(7), Some("stranger"))
    );
    assert_eq!((row.pr_head_sha.as_deref(), row.pr_head_ref.as_deref()), (Some(A), Some("refs/pull/7/head")));
    assert_eq!((row.pr_base_branch.as_deref(), row.pr_base_sha.as_deref()), (Some("main"), Some(B)));
    // A base that moved on does not by itself.
    assert_eq!(
        forge.evaluate_pull(&PullRequest { base_commit: A.to_owned(), ..pull(A) }).await,
        Requested::Existing(queued(&first))
    );
    let onto = forge.evaluate_pull(&PullRequest { base_branch: "next".to_owned(), ..pull(A) }).await;
    assert_eq!(onto, Requested::Queued { id: queued(&onto), unfinished: vec![queued(&first)] });
    // Closed, with all of its evaluations, and only those.
    assert_eq!(forge.db.close_evaluations(&forge.pull_key(), DeliveryRowId(1), "closed").await.expect("close"), 1);
    assert_eq!(forge.row(branch).await.0, "queued");
    queued(&forge.evaluate_pull(&PullRequest { base_branch: "next".to_owned(), ..pull(A) }).await);
    forge.world.assert_sound().await;
}

#[tokio::test]
async fn an_answer_from_before_the_closing_is_not_acted_upon() {
    let forge = Forge::new().await;
    let request = forge.request_pull(&pull(A)).await;
    forge.deliver("edited", vec![event(PullRequestAction::Edited, A)]).await;
    let closed = vec![event(PullRequestAction::Closed, A)];
    forge.deliver("closed", closed).await;
    assert_eq!(forge.db.request_evaluation(&request).await.expect("request"), Requested::Moved);
}

#[tokio::test]
async fn a_pull_request_says_why_it_waits_until_it_is_evaluated() {
    let forge = Forge::new().await;
    let seen = DeliveryRowId;
    forge.db.save_pull_request(forge.project, &pull(A), Some("waits"), seen(3)).await.expect("save");
    let saved = forge.db.pull_request(forge.project, 7).await.expect("read").expect("there");
    assert_eq!((saved.pull_request, saved.waiting.as_deref()), (pull(A), Some("waits")));
    // What was known earlier is not written over what is known later.
    forge.db.save_pull_request(forge.project, &pull(B), None, seen(2)).await.expect("save");
    assert_eq!(forge.waiting().await.as_deref(), Some("waits"));
    queued(&forge.evaluate_pull(&pull(A)).await);
    assert_eq!(forge.waiting().await, None);
    // Somebody slower, who saw it wait.
    forge.db.save_pull_request(forge.project, &pull(A), Some("waits"), seen(3)).await.expect("save");
    assert_eq!(forge.waiting().await, None);
    // A newer head waits again.
    forge.db.save_pull_request(forge.project, &pull(B), Some("waits"), seen(4)).await.expect("save");
    assert_eq!(forge.waiting().await.as_deref(), Some("waits"));
    assert_eq!(forge.db.pull_request(forge.project, 8).await.expect("read"), None);
}

#[tokio::test]
async fn an_approval_counts_for_the_head_that_arrived_before_it() {
    let forge = Forge::new().await;
    let opened = forge.deliver("1", vec![event(PullRequestAction::Opened, A)]).await;
    let comment = forge.deliver("2", vec![Event::Discover]).await;
    let pushed = forge.deliver("3", vec![event(PullRequestAction::Pushed, B)]).await;
    let later = forge.deliver("4", vec![Event::Discover]).await;
    let cases = [(opened, None), (comment, Some(A)), (pushed, Some(A)), (later, Some(B))];
    for (delivery, head) in cases {
        let got = forge.db.head_before(forge.project, 7, delivery).await.expect("read");
        assert_eq!(got.map(|head| head.commit).as_deref(), head, "before {delivery:?}");
    }
    // Since when it is known counts from the first delivery that told of it, not from one that tells of it again.
    let known = async || forge.db.head_before(forge.project, 7, later).await.expect("read").expect("known").arrived_at;
    let before = known().await;
    projects_time_passes(&forge.db, FIVE_MINUTES).await;
    assert_eq!(before - known().await, FIVE_MINUTES);
    forge.deliver("5", vec![event(PullRequestAction::Edited, B)]).await;
    assert_eq!(before - known().await, FIVE_MINUTES);
    assert!(!forge.db.is_approved(forge.project, 7, A).await.expect("read"));
    assert!(forge.db.approve_pull_request(forge.project, 7, A, "maintainer", "c1").await.expect("approve"));
    assert!(!forge.db.approve_pull_request(forge.project, 7, A, "maintainer", "c1").await.expect("approve"), "once");
    for (number, head, approved) in [(7, A, true), (7, B, false), (8, A, false)] {
        assert_eq!(forge.db.is_approved(forge.project, number, head).await.expect("read"), approved, "{number} {head}");
    }
    let audit = sqlx::query_scalar!(r#"SELECT count(*) AS "n!" FROM audit_log WHERE action = 'approve'"#);
    assert_eq!(audit.fetch_one(pool(&forge.db)).await.expect("read"), 1);
}

#[tokio::test]
async fn a_permission_is_known_for_five_minutes_or_until_it_changes() {
    let forge = Forge::new().await;
    let row = forge.db.forge_project("forge", &repository()).await.expect("read").expect("there").repository_id;
    let ask_within = async |lifetime| match forge.db.known_permission(row, "Someone", lifetime).await.expect("read") {
        AskedPermission::Ask(at) => at,
        AskedPermission::Known(permission) => panic!("known: {permission:?}"),
    };
    let ask = async || ask_within(FIVE_MINUTES).await;
    let known = async || forge.db.known_permission(row, "someone", FIVE_MINUTES).await.expect("read");
    let remember = async |permission, at| {
        forge.db.remember_permission(row, "Someone", permission, at).await.expect("remember");
    };
    let at = ask().await;
    remember(Permission::Write, at).await;
    assert_eq!(known().await, AskedPermission::Known(Permission::Write));
    // Asked longer ago than that.
    ask_within(Duration::ZERO).await;
    for (index, event) in [
        Event::PermissionsChanged(Some(repository())),
        Event::PermissionsChanged(None),
        // We may know the repository under another name than the forge.
        Event::PermissionsChanged(Some(RepositoryRef { id: "r1".to_owned(), full_name: "o/old".to_owned() })),
    ]
    .into_iter()
    .enumerate()
    {
        // The change is told of while the forge answers: the answer may be from before.
        let at = ask_within(Duration::ZERO).await;
        forge.deliver(&format!("p{index}"), vec![Event::Ping, event]).await;
        remember(Permission::Admin, at).await;
        let again = ask().await;
        remember(Permission::Read, again).await;
        assert_eq!(known().await, AskedPermission::Known(Permission::Read));
        // An older answer that comes last does not count.
        remember(Permission::Admin, at).await;
        assert_eq!(known().await, AskedPermission::Known(Permission::Read));
        // Other news leave it.
        forge.deliver(&format!("o{index}"), vec![Event::Discover]).await;
        assert_eq!(known().await, AskedPermission::Known(Permission::Read));
        // And the next one clears it.
        forge.deliver(&format!("q{index}"), vec![Event::PermissionsChanged(None)]).await;
        ask().await;
    }
}

#[tokio::test]
async fn a_reply_is_owed_once() {
    let forge = Forge::new().await;
    let row = forge.db.forge_project("forge", &repository()).await.expect("read").expect("there").repository_id;
    assert!(forge.db.owe_comment(row, 7, "head-changed:1", "The head changed").await.expect("owe"));
    assert!(!forge.db.owe_comment(row, 7, "head-changed:1", "The head changed").await.expect("owe"));
    assert!(forge.db.owe_comment(row, 7, "head-changed:2", "The head changed").await.expect("owe"));
}

#[tokio::test]
async fn a_comment_counts_with_the_delivery_that_brought_it_first() {
    let forge = Forge::new().await;
    let first = async |delivery: i64| {
        forge.db.is_first_of_comment(forge.project, "77", DeliveryRowId(delivery)).await.expect("noted")
    };
    assert!(first(5).await);
    assert!(first(5).await, "tried again after a crash");
    assert!(!first(9).await, "delivered again");
    assert!(first(5).await);
    assert!(forge.db.is_first_of_comment(forge.project, "78", DeliveryRowId(9)).await.expect("another comment"));
}
