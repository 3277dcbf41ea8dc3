//! What forges say: deliveries, evaluations asked for, pull requests.

use std::time::Duration;

use harmonia_core::forge::{
    Delivery, Event, Permission, PullRequest, PullRequestAction, PullRequestEvent, Push, Reference, RepositoryRef,
};
use harmonia_core::intake::Wanted;
use harmonia_core::{NodeId, ProjectId};
use harmonia_db::testing::pool;
use harmonia_db::{BranchKey, Db, DeliveryRowId, EvaluationRequest, NewDelivery, Recorded, Requested};

use super::{Meter, READS_EACH};

const FORGE: &str = "forge";
/// Deliveries that others process or that are put off, see `queue.sql`.
const NOT_DUE: u64 = 200;
/// Attributes of the evaluation that a new one replaces, and inputs of each.
const PAST_ATTRS: u64 = 40;
const INPUTS: u64 = 4;
const LEASE: Duration = Duration::from_mins(1);
const PULL: u64 = 7;

fn commit(digit: &str) -> String {
    digit.repeat(40)
}

fn repository() -> RepositoryRef {
    RepositoryRef { id: "r25".to_owned(), full_name: "o/r25".to_owned() }
}

fn pull_request() -> PullRequest {
    PullRequest {
        number: PULL,
        title: "t".to_owned(),
        author: "a".to_owned(),
        is_open: true,
        is_draft: false,
        labels: Vec::new(),
        head_commit: commit("c"),
        head_branch: "b".to_owned(),
        head_repository: None,
        base_branch: "main".to_owned(),
        base_commit: commit("b"),
        head_ref: "refs/pull/7/head".to_owned(),
    }
}

/// In a database as `calls::all` leaves it.
pub(super) async fn all(meter: &mut Meter) {
    let (project, repository) = sqlx::query_as::<_, (i64, i64)>(
        "SELECT p.id, p.repository_id FROM projects p JOIN repositories r ON r.id = p.repository_id WHERE r.external_id = 'r25'",
    )
    .fetch_one(pool(&meter.db))
    .await
    .expect("a project of a forge");
    deliveries(meter).await;
    evaluations(meter, ProjectId(project)).await;
    pull_requests(meter, ProjectId(project), repository).await;
}

async fn deliveries(meter: &mut Meter) {
    let push = Event::Push(Push {
        repository: repository(),
        reference: Reference::Branch("main".to_owned()),
        commit: commit("a"),
        deleted: false,
        author: "a".to_owned(),
        message: "m".to_owned(),
    });
    let pull = Event::PullRequest(PullRequestEvent {
        repository: repository(),
        action: PullRequestAction::Pushed,
        pull_request: pull_request(),
    });
    let delivery = |id: &str, event: Event| Delivery { id: id.to_owned(), events: vec![event] };
    let both = [delivery("pushed", push), delivery("pulled", pull)];
    let rows: Vec<_> = both.iter().map(|delivery| NewDelivery { forge: FORGE, delivery, duration_ms: 1 }).collect();
    let recorded = meter
        .call("record_deliveries", &[(2, "deliveries"), (1, "head")], async |db: &Db| db.record_deliveries(&rows).await)
        .await;
    assert!(recorded.iter().all(|recorded| matches!(recorded, Recorded::New(_))), "{recorded:?}");
    let again = meter
        .call("record_deliveries, again", &[(2, "deliveries")], async |db: &Db| db.record_deliveries(&rows).await)
        .await;
    assert_eq!(again, [Recorded::Duplicate, Recorded::Duplicate]);
    let changed = delivery(
        "changed",
        Event::PermissionsChanged(Some(RepositoryRef { id: "r3".to_owned(), full_name: "o/r3".to_owned() })),
    );
    let changed = NewDelivery { forge: FORGE, delivery: &changed, duration_ms: 1 };
    meter
        .call("record_delivery, of permissions", &[(1, "delivery"), (100, "permissions")], async |db: &Db| {
            db.record_delivery(&changed).await
        })
        .await;

    let node = NodeId("n".to_owned());
    let asked = [(8, "deliveries"), (NOT_DUE / READS_EACH, "that are older and not due, each read once")];
    let claimed =
        meter.call("claim_deliveries", &asked, async |db: &Db| db.claim_deliveries(&node, 8, LEASE).await).await;
    assert_eq!(claimed.len(), 8);
    let one = [(1, "delivery")];
    assert!(meter.call("delivery_done", &one, async |db: &Db| db.delivery_done(&claimed[0], "nothing").await).await);
    assert!(
        meter.call("delivery_retry", &one, async |db: &Db| db.delivery_retry(&claimed[1], "away", LEASE).await).await
    );
    assert!(meter.call("delivery_dead", &one, async |db: &Db| db.delivery_dead(&claimed[2], "no").await).await);
    let dead = claimed[2].id.0;
    assert!(meter.call("replay_delivery", &one, async |db: &Db| db.replay_delivery(dead, "somebody").await).await);
    let listed = [(50, "deliveries")];
    meter
        .call("recent_deliveries, of all", &listed, async |db: &Db| db.recent_deliveries(None, false, None, 50).await)
        .await;
    meter
        .call("recent_deliveries, of a forge", &listed, async |db: &Db| {
            db.recent_deliveries(Some(FORGE), false, None, 50).await
        })
        .await;
    meter
        .call("recent_deliveries, the dead", &listed, async |db: &Db| db.recent_deliveries(None, true, None, 50).await)
        .await;
    meter
        .call("replay_dead_deliveries", &[(300, "dead deliveries")], async |db: &Db| {
            db.replay_dead_deliveries(Some(FORGE), "somebody").await
        })
        .await;
}

async fn evaluations(meter: &mut Meter, project: ProjectId) {
    let key = BranchKey { project, branch: "main".to_owned(), is_tag: false, pull_request: None };
    let state = meter.call("branch_state", &[(1, "branch")], async |db: &Db| db.branch_state(&key).await).await;
    assert!(state.is_active && state.newest.is_some(), "{state:?}");
    let request = EvaluationRequest {
        project,
        url: "https://forge.invalid/o/r25".to_owned(),
        wanted: Wanted {
            branch: "main".to_owned(),
            commit: commit("a"),
            title: None,
            author: None,
            is_tag: false,
            supersede: true,
            pull_request: None,
        },
        tree_hash: Some(commit("f")),
        reuse_key: Some("rules".to_owned()),
        delivery: None,
        new_attempt: false,
        asked: Some(state),
    };
    let replaced =
        [(1, "evaluation"), (PAST_ATTRS, "attributes of the one it replaces"), (PAST_ATTRS * INPUTS, "inputs")];
    let requested =
        meter.call("request_evaluation", &replaced, async |db: &Db| db.request_evaluation(&request).await).await;
    assert!(
        matches!(&requested, Requested::Queued { unfinished, .. } if unfinished.is_empty()),
        "its builds had ended: {requested:?}"
    );
    let asked = meter.db.branch_state(&key).await.expect("asked");
    let request = EvaluationRequest { asked: Some(asked), ..request };
    let again = meter
        .call("request_evaluation, again", &[(1, "evaluation")], async |db: &Db| db.request_evaluation(&request).await)
        .await;
    assert!(matches!(again, Requested::Existing(_)), "{again:?}");
    let candidates = meter
        .call("rerun_candidates", &[(1, "commit")], async |db: &Db| db.rerun_candidates(project, &commit("a")).await)
        .await;
    assert_eq!(candidates.len(), 1);
    let closed = meter
        .call(
            "close_evaluations",
            &[(1, "evaluation"), (2, "times 40 evaluations of the branch, each read once")],
            async |db: &Db| db.close_evaluations(&key, asked.seen, "its branch is gone").await,
        )
        .await;
    assert_eq!(closed, 1);
}

async fn pull_requests(meter: &mut Meter, project: ProjectId, repository: i64) {
    let pull = pull_request();
    let one = [(1, "pull request")];
    let seen = DeliveryRowId(40_000);
    meter
        .call("save_pull_request", &one, async |db: &Db| {
            db.save_pull_request(project, &pull, Some("an approval"), seen).await
        })
        .await;
    let saved = meter.call("pull_request", &one, async |db: &Db| db.pull_request(project, PULL).await).await;
    assert!(saved.is_some());
    let head = meter.call("head_before", &one, async |db: &Db| db.head_before(project, PULL, seen).await).await;
    assert!(head.is_some());
    assert!(
        meter
            .call("approve_pull_request", &one, async |db: &Db| {
                db.approve_pull_request(project, PULL, &pull.head_commit, "u1", "c").await
            })
            .await
    );
    assert!(
        meter.call("is_approved", &one, async |db: &Db| db.is_approved(project, PULL, &pull.head_commit).await).await
    );
    meter
        .call("is_first_of_comment", &[(1, "comment")], async |db: &Db| {
            db.is_first_of_comment(project, "c7", seen).await
        })
        .await;
    let user = [(1, "user")];
    meter
        .call("known_permission", &user, async |db: &Db| {
            db.known_permission(repository, "u1", Duration::from_hours(1)).await
        })
        .await;
    meter
        .call("remember_permission", &user, async |db: &Db| {
            db.remember_permission(repository, "u1", Permission::Write, time::OffsetDateTime::now_utc()).await
        })
        .await;
    assert!(
        meter
            .call("owe_comment", &[(1, "comment")], async |db: &Db| {
                db.owe_comment(repository, PULL, "new", "approved").await
            })
            .await
    );
}
