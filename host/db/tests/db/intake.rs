//! From deliveries to evaluations: one for each commit that a branch is at, superseding, closing, reuse of trees; pull
//! requests, approvals and permissions in `pull_requests`.

pub(crate) mod pull_requests;
mod storm;

use std::time::Duration;

use harmonia_core::JobStatus::{Building, Cancelled, Pending};
use harmonia_core::forge::{Delivery, Event, ForgeRepository, Push, Reference, RepositoryRef};
use harmonia_core::intake::Wanted;
use harmonia_core::{EvalId, ProjectId};
use harmonia_db::testing::{pool, random_token};
use harmonia_db::{
    BranchKey, BranchState, Db, DeliveryRowId, EvaluationRequest, NewDelivery, Recorded, RepositoryFilter, Requested,
};

use crate::world::{Eval, World, graph};

pub(crate) const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
pub(crate) const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

/// A world with a forge's repository that is a project.
pub(crate) struct Forge {
    pub(crate) world: World,
    pub(crate) db: Db,
    pub(crate) project: ProjectId,
}

pub(crate) fn repository() -> RepositoryRef {
    RepositoryRef { id: "r1".to_owned(), full_name: "o/r".to_owned() }
}

fn forge_repository() -> ForgeRepository {
    ForgeRepository {
        id: "r1".to_owned(),
        owner: "o".to_owned(),
        name: "r".to_owned(),
        full_name: "o/r".to_owned(),
        clone_url: "https://forge.invalid/o/r.git".to_owned(),
        html_url: "https://forge.invalid/o/r".to_owned(),
        default_branch: "main".to_owned(),
        is_private: false,
        is_archived: false,
        topics: Vec::new(),
    }
}

impl Forge {
    pub(crate) async fn new() -> Self {
        let world = World::new().await;
        world.db.upsert_repositories("forge", &[forge_repository()]).await.expect("a repository");
        let id = world.db.repository("forge", "o/r").await.expect("look").expect("there");
        let (project, _) = world.db.enable_repository(id, &["r".to_owned()], "me").await.expect("enable");
        Self { db: world.db.clone(), world, project }
    }

    pub(crate) fn branch(&self, name: &str) -> BranchKey {
        BranchKey { project: self.project, branch: name.to_owned(), is_tag: false, pull_request: None }
    }

    pub(crate) fn wanted(branch: &str, commit: &str) -> Wanted {
        Wanted {
            branch: branch.to_owned(),
            commit: commit.to_owned(),
            title: Some("Fix it".to_owned()),
            author: Some("me".to_owned()),
            is_tag: false,
            supersede: true,
            pull_request: None,
        }
    }

    /// A request as after asking the forge.
    pub(crate) async fn request(&self, branch: &str, commit: &str) -> EvaluationRequest {
        let asked = self.db.branch_state(&self.branch(branch)).await.expect("state");
        self.request_as_of(branch, commit, asked)
    }

    pub(crate) fn request_as_of(&self, branch: &str, commit: &str, asked: BranchState) -> EvaluationRequest {
        EvaluationRequest {
            project: self.project,
            url: "https://forge.invalid/o/r.git".to_owned(),
            wanted: Self::wanted(branch, commit),
            tree_hash: None,
            reuse_key: None,
            delivery: None,
            new_attempt: false,
            asked: Some(asked),
        }
    }

    pub(crate) async fn evaluate(&self, branch: &str, commit: &str) -> Requested {
        self.db.request_evaluation(&self.request(branch, commit).await).await.expect("request")
    }

    /// Claims the evaluation that is queued.
    pub(crate) async fn claim(&self) -> Eval {
        let token = random_token();
        let claimed = self.db.claim_evaluation(&self.world.node, self.world.run, &token).await.expect("claim");
        Eval { id: claimed.expect("one is queued").id, token }
    }

    pub(crate) async fn deliver(&self, id: &str, events: Vec<Event>) -> DeliveryRowId {
        let delivery = Delivery { id: id.to_owned(), events };
        let new = NewDelivery { forge: "forge", delivery: &delivery, duration_ms: 1 };
        match self.db.record_delivery(&new).await.expect("record") {
            Recorded::New(id) => id,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn attempts(&self, commit: &str) -> Vec<i32> {
        sqlx::query_scalar!("SELECT attempt FROM evaluations WHERE commit_sha = $1 ORDER BY id", commit)
            .fetch_all(pool(&self.db))
            .await
            .expect("read")
    }

    pub(crate) async fn row(&self, id: EvalId) -> (String, bool, Option<i64>) {
        let row = sqlx::query!(
            r#"SELECT status, closed_at IS NOT NULL AS "closed!", superseded_by FROM evaluations WHERE id = $1"#,
            id.0
        )
        .fetch_one(pool(&self.db))
        .await
        .expect("read");
        (row.status, row.closed, row.superseded_by)
    }
}

pub(crate) fn queued(requested: &Requested) -> EvalId {
    match requested {
        Requested::Queued { id, .. } => *id,
        other => panic!("not queued: {other:?}"),
    }
}

fn push(branch: &str, deleted: bool) -> Event {
    Event::Push(Push {
        repository: repository(),
        reference: Reference::Branch(branch.to_owned()),
        commit: A.to_owned(),
        deleted,
        author: String::new(),
        message: String::new(),
    })
}

#[tokio::test]
async fn a_redelivery_changes_nothing_whatever_became_of_the_first() {
    let forge = Forge::new().await;
    let first = queued(&forge.evaluate("main", A).await);
    assert_eq!(forge.evaluate("main", A).await, Requested::Existing(first));
    let eval = forge.claim().await;
    assert_eq!(forge.evaluate("main", A).await, Requested::Existing(first), "running");
    forge.db.fail_evaluation(eval.id, &eval.token, "broken").await.expect("fail");
    assert_eq!(forge.evaluate("main", A).await, Requested::Existing(first), "failed");
    forge.db.cancel_evaluation(first, "me").await.expect("cancel");
    assert_eq!(forge.evaluate("main", A).await, Requested::Existing(first));
    assert_eq!(forge.attempts(A).await, [1]);
    forge.world.assert_sound().await;
}

#[tokio::test]
async fn a_commit_that_comes_back_gets_a_new_attempt() {
    let forge = Forge::new().await;
    let first = queued(&forge.evaluate("main", A).await);
    let second = forge.evaluate("main", B).await;
    assert_eq!(second, Requested::Queued { id: queued(&second), unfinished: vec![first] });
    let third = forge.evaluate("main", A).await;
    assert_eq!(third, Requested::Queued { id: queued(&third), unfinished: vec![queued(&second)] });
    assert_eq!(forge.attempts(A).await, [1, 2]);
    // Also when the first one had failed, and so was superseded by nothing.
    let eval = forge.claim().await;
    assert_eq!(eval.id, queued(&third));
    forge.db.fail_evaluation(eval.id, &eval.token, "broken").await.expect("fail");
    queued(&forge.evaluate("main", B).await);
    queued(&forge.evaluate("main", A).await);
    assert_eq!((forge.attempts(A).await, forge.attempts(B).await), (vec![1, 2, 3], vec![1, 2]));
    forge.world.assert_sound().await;
}

#[tokio::test]
async fn two_frontends_with_one_push_make_one_evaluation() {
    let forge = Forge::new().await;
    for (round, commit) in [A, B, A, B].into_iter().enumerate() {
        let asked = forge.db.branch_state(&forge.branch("main")).await.expect("state");
        let tasks: Vec<_> = (0..8)
            .map(|_| {
                let (db, request) = (forge.db.clone(), forge.request_as_of("main", commit, asked));
                tokio::spawn(async move { db.request_evaluation(&request).await.expect("request") })
            })
            .collect();
        let mut got = Vec::new();
        for task in tasks {
            got.push(task.await.expect("joined"));
        }
        let made: Vec<EvalId> =
            got.iter().filter_map(|r| if let Requested::Queued { id, .. } = r { Some(*id) } else { None }).collect();
        assert_eq!(made.len(), 1, "round {round}: {got:?}");
        assert_eq!(got.iter().filter(|r| **r == Requested::Existing(made[0])).count(), 7, "round {round}: {got:?}");
    }
    forge.world.assert_sound().await;
}

#[tokio::test]
async fn two_pushes_that_meet_leave_the_newer_one() {
    // Both asked the forge before either wrote; the one with the old answer is told to ask again.
    for newer_first in [true, false] {
        let forge = Forge::new().await;
        let asked = forge.db.branch_state(&forge.branch("main")).await.expect("state");
        let (first, second) = if newer_first { (B, A) } else { (A, B) };
        queued(&forge.db.request_evaluation(&forge.request_as_of("main", first, asked)).await.expect("request"));
        let again = forge.db.request_evaluation(&forge.request_as_of("main", second, asked)).await.expect("request");
        assert_eq!(again, Requested::Moved);
        // It asks: B is the head.
        forge.evaluate("main", B).await;
        let live = sqlx::query_scalar!(
            r#"SELECT commit_sha AS "commit!" FROM evaluations WHERE id IN (SELECT id FROM live_evaluations)"#
        );
        assert_eq!(live.fetch_all(pool(&forge.db)).await.expect("read"), [B.to_owned()]);
        forge.world.assert_sound().await;
    }
}

#[tokio::test]
async fn an_answer_from_before_a_deletion_is_not_acted_upon() {
    let forge = Forge::new().await;
    let request = forge.request("release/1", A).await;
    forge.deliver("other", vec![push("release/2", true), push("release/1", false)]).await;
    let beside = forge.db.request_evaluation(&forge.request_as_of("release/3", A, request.asked.expect("asked"))).await;
    queued(&beside.expect("request"));
    forge.deliver("gone", vec![push("release/1", true)]).await;
    assert_eq!(forge.db.request_evaluation(&request).await.expect("request"), Requested::Moved);
    // Asked again, it is there again.
    queued(&forge.evaluate("release/1", A).await);
}

#[tokio::test]
async fn without_a_forge_to_ask_the_order_of_arrival_decides() {
    let forge = Forge::new().await;
    let request = |delivery, commit: &str| EvaluationRequest {
        delivery: Some(DeliveryRowId(delivery)),
        asked: None,
        ..forge.request_as_of("main", commit, BranchState { newest: None, seen: DeliveryRowId(0), is_active: true })
    };
    queued(&forge.db.request_evaluation(&request(7, B)).await.expect("request"));
    assert_eq!(forge.db.request_evaluation(&request(5, A)).await.expect("request"), Requested::Late);
    queued(&forge.db.request_evaluation(&request(8, A)).await.expect("request"));
}

#[tokio::test]
async fn superseding_withdraws_jobs_and_lets_the_building_ones_finish() {
    let forge = Forge::new().await;
    let graph = graph(&[&[], &[0], &[]]);
    queued(&forge.evaluate("main", A).await);
    let old = forge.claim().await;
    forge.world.insert(&old, &graph, &[1, 2]).await.expect("insert");
    forge.evaluate("topic", A).await;
    let other = forge.claim().await;
    forge.world.insert(&other, &graph, &[2]).await.expect("insert");
    let running = forge.world.claim(1).await.remove(0);
    let newer = forge.evaluate("main", B).await;
    assert_eq!(newer, Requested::Queued { id: queued(&newer), unfinished: vec![old.id] });
    assert_eq!(forge.world.statuses().await, [(0, Building), (1, Cancelled), (2, Pending)]);
    assert!(!forge.db.evaluation_held(old.id, &old.token).await.expect("held"));
    forge.world.complete(&running).await.expect("complete");
    assert_eq!(forge.row(old.id).await, ("cancelled".to_owned(), false, Some(queued(&newer).0)));
    forge.world.assert_sound().await;
}

#[tokio::test]
async fn only_what_had_not_come_to_an_end_is_said_to_be_replaced() {
    let forge = Forge::new().await;
    let graph = graph(&[&[]]);
    let done = queued(&forge.evaluate("main", A).await);
    let eval = forge.claim().await;
    forge.world.insert(&eval, &graph, &[0]).await.expect("insert");
    forge.db.finish_evaluation(eval.id, &eval.token).await.expect("finish");
    let job = forge.world.claim_only(0).await;
    forge.world.complete(&job).await.expect("complete");
    let second = forge.evaluate("main", B).await;
    assert_eq!(second, Requested::Queued { id: queued(&second), unfinished: Vec::new() });
    assert_eq!(forge.row(done).await, ("succeeded".to_owned(), false, Some(queued(&second).0)), "it is superseded");

    // Evaluated, and its build still waits.
    let eval = forge.claim().await;
    forge.world.insert(&eval, &crate::world::graph(&[&[], &[]]), &[1]).await.expect("insert");
    forge.db.finish_evaluation(eval.id, &eval.token).await.expect("finish");
    let third = forge.evaluate("main", A).await;
    assert_eq!(third, Requested::Queued { id: queued(&third), unfinished: vec![queued(&second)] });
    let fourth = forge.evaluate("main", B).await;
    assert_eq!(fourth, Requested::Queued { id: queued(&fourth), unfinished: vec![queued(&third)] }, "it was queued");
    forge.world.assert_sound().await;
}

#[tokio::test]
async fn unique_merge_states_never_supersede_each_other() {
    let forge = Forge::new().await;
    let merge = |request: EvaluationRequest| EvaluationRequest {
        wanted: Wanted { supersede: false, ..request.wanted },
        ..request
    };
    let first = forge.db.request_evaluation(&merge(forge.request("staging", A).await)).await.expect("request");
    let second = forge.db.request_evaluation(&merge(forge.request("staging", B).await)).await.expect("request");
    assert_eq!(second, Requested::Queued { id: queued(&second), unfinished: Vec::new() });
    // Both are there, in whatever order they are told of again.
    let again = forge.db.request_evaluation(&merge(forge.request("staging", A).await)).await.expect("request");
    assert_eq!(again, Requested::Existing(queued(&first)));
    assert_eq!(forge.row(queued(&first)).await, ("queued".to_owned(), false, None));
}

#[tokio::test]
async fn a_tag_and_a_branch_of_one_name_have_nothing_to_do_with_each_other() {
    let forge = Forge::new().await;
    let branch = queued(&forge.evaluate("v1", A).await);
    let mut request = forge.request("v1", A).await;
    request.wanted.is_tag = true;
    request.asked = None;
    let tag = forge.db.request_evaluation(&request).await.expect("request");
    assert_eq!(tag, Requested::Queued { id: queued(&tag), unfinished: Vec::new() });
    let key = BranchKey { is_tag: true, ..forge.branch("v1") };
    assert_eq!(forge.db.close_evaluations(&key, DeliveryRowId(9), "gone").await.expect("close"), 1);
    assert_eq!(forge.row(branch).await, ("queued".to_owned(), false, None));
}

#[tokio::test]
async fn closing_a_branch_ends_what_runs_and_keeps_results() {
    let forge = Forge::new().await;
    let graph = graph(&[&[], &[0]]);
    let key = forge.branch("topic");
    queued(&forge.evaluate("topic", A).await);
    let eval = forge.claim().await;
    forge.world.insert(&eval, &graph, &[1]).await.expect("insert");
    assert_eq!(forge.db.close_evaluations(&key, DeliveryRowId(1), "the branch is gone").await.expect("close"), 1);
    assert_eq!(forge.row(eval.id).await, ("cancelled".to_owned(), true, None));
    assert!(!forge.db.evaluation_held(eval.id, &eval.token).await.expect("held"), "its evaluator stops");
    assert_eq!(forge.world.statuses().await, [(0, Cancelled), (1, Cancelled)]);
    forge.world.assert_sound().await;
    assert_eq!(forge.db.close_evaluations(&key, DeliveryRowId(1), "again").await.expect("close"), 0);

    // There again, with the same commit: evaluated again.
    let again = queued(&forge.evaluate("topic", A).await);
    assert_eq!(forge.attempts(A).await, [1, 2]);
    let eval = forge.claim().await;
    assert_eq!(eval.id, again);
    forge.world.insert(&eval, &graph, &[1]).await.expect("insert");
    assert!(forge.db.finish_evaluation(eval.id, &eval.token).await.expect("finish").complete);
    let running = forge.world.claim(1).await.remove(0);
    assert_eq!(forge.db.close_evaluations(&key, DeliveryRowId(2), "gone").await.expect("close"), 1);
    assert_eq!(forge.row(eval.id).await, ("succeeded".to_owned(), true, None), "its result stays");
    assert_eq!(forge.world.statuses().await, [(0, Building), (1, Cancelled)], "what builds may finish");
    forge.world.complete(&running).await.expect("complete");
    forge.world.assert_sound().await;
}

#[tokio::test]
async fn closing_leaves_what_a_later_delivery_asked_for() {
    let forge = Forge::new().await;
    let later = EvaluationRequest { delivery: Some(DeliveryRowId(9)), ..forge.request("topic", A).await };
    let id = queued(&forge.db.request_evaluation(&later).await.expect("request"));
    let key = forge.branch("topic");
    assert_eq!(forge.db.close_evaluations(&key, DeliveryRowId(8), "gone").await.expect("close"), 0);
    assert_eq!(forge.row(id).await.0, "queued");
    assert_eq!(forge.db.close_evaluations(&key, DeliveryRowId(9), "gone").await.expect("close"), 1);
}

#[tokio::test]
async fn a_tree_is_reused_only_when_nothing_in_it_depends_on_the_commit() {
    let forge = Forge::new().await;
    let graph = graph(&[&[], &[0]]);
    let with_tree = |request: EvaluationRequest, key: Option<&str>| EvaluationRequest {
        tree_hash: Some("t1".to_owned()),
        reuse_key: key.map(str::to_owned),
        ..request
    };
    let request = with_tree(forge.request("main", A).await, Some("k"));
    let first = queued(&forge.db.request_evaluation(&request).await.expect("request"));
    let eval = forge.claim().await;
    forge.world.insert(&eval, &graph, &[1]).await.expect("insert");
    assert!(forge.db.finish_evaluation(eval.id, &eval.token).await.expect("finish").complete);

    let cases = [
        // embeds the commit?, its key, the key asked for, reused
        (None, None, Some("k"), false), // not examined
        (Some(true), Some("k"), Some("k"), false),
        (Some(false), Some("other"), Some("k"), false),
        (Some(false), Some("k"), None, false),
        (Some(false), Some("k"), Some("k"), true),
    ];
    for (index, (embeds, key, asked_key, reused)) in cases.into_iter().enumerate() {
        sqlx::query!("UPDATE evaluations SET embeds_commit = $2, reuse_key = $3 WHERE id = $1", first.0, embeds, key)
            .execute(pool(&forge.db))
            .await
            .expect("set");
        let commit = format!("{index:040}");
        let request = with_tree(forge.request(&format!("b{index}"), &commit).await, asked_key);
        let got = forge.db.request_evaluation(&request).await.expect("request");
        assert_eq!(matches!(got, Requested::Reused { .. }), reused, "case {index}: {got:?}");
        let forced = EvaluationRequest { new_attempt: true, ..request };
        if reused {
            // The second time it is there already; by hand it is evaluated.
            let Requested::Reused { id, .. } = got else { unreachable!() };
            let again = EvaluationRequest { new_attempt: false, ..forced.clone() };
            assert_eq!(forge.db.request_evaluation(&again).await.expect("request"), Requested::Existing(id));
        }
    }
    // A reusing evaluation counts as live: when main moves on, its jobs stay wanted by the other branch.
    queued(&forge.evaluate("main", B).await);
    assert_eq!(forge.world.statuses().await, [(0, Pending), (1, Pending)]);
    forge.world.assert_sound().await;
    // And when that branch moves on too, nobody wants them.
    queued(&forge.evaluate("b4", B).await);
    assert_eq!(forge.world.statuses().await, [(0, Cancelled), (1, Cancelled)]);
    // What was withdrawn is not reused: it is evaluated, and so wanted again.
    let request = with_tree(forge.request("b5", A).await, Some("k"));
    queued(&forge.db.request_evaluation(&request).await.expect("request"));
    forge.world.assert_sound().await;
}

#[tokio::test]
async fn by_hand_there_is_a_new_attempt_once_for_each_asking() {
    let forge = Forge::new().await;
    let first = queued(&forge.evaluate("main", A).await);
    let again =
        EvaluationRequest { new_attempt: true, delivery: Some(DeliveryRowId(5)), ..forge.request("main", A).await };
    assert_eq!(
        forge.db.request_evaluation(&again).await.expect("request"),
        Requested::Existing(first),
        "it has not ended"
    );
    let eval = forge.claim().await;
    forge.db.fail_evaluation(eval.id, &eval.token, "broken").await.expect("fail");
    let candidates = forge.db.rerun_candidates(forge.project, A).await.expect("candidates");
    assert_eq!(candidates.iter().map(|c| (c.id, c.key.branch.as_str())).collect::<Vec<_>>(), [(first, "main")]);
    let second = queued(&forge.db.request_evaluation(&again).await.expect("request"));
    let eval = forge.claim().await;
    forge.db.fail_evaluation(eval.id, &eval.token, "broken").await.expect("fail");
    // The same delivery, processed once more after a crash.
    let retried = EvaluationRequest { asked: forge.request("main", A).await.asked, ..again };
    assert_eq!(forge.db.request_evaluation(&retried).await.expect("request"), Requested::Existing(second));
    assert_eq!(forge.attempts(A).await, [1, 2]);
    queued(&forge.evaluate("main", B).await);
    queued(&forge.evaluate("topic", A).await);
    let candidates = forge.db.rerun_candidates(forge.project, A).await.expect("candidates");
    assert_eq!(candidates.first().map(|c| c.key.branch.as_str()), Some("topic"));
}

#[tokio::test]
async fn nothing_is_evaluated_of_what_is_disabled_or_gone() {
    let forge = Forge::new().await;
    assert!(forge.db.branch_state(&forge.branch("main")).await.expect("state").is_active);
    forge.db.repositories_removed("forge", &[repository()]).await.expect("remove");
    assert!(!forge.db.branch_state(&forge.branch("main")).await.expect("state").is_active);
    assert_eq!(forge.evaluate("main", A).await, Requested::Inactive);
    assert_eq!(
        forge.db.repositories(RepositoryFilter { limit: 5, ..RepositoryFilter::default() }).await.expect("list"),
        []
    );

    let forge = Forge::new().await;
    forge.db.disable_project("r", "me").await.expect("disable");
    assert_eq!(forge.evaluate("main", A).await, Requested::Inactive);
}

#[tokio::test]
async fn what_is_gone_wants_nothing_and_what_had_ended_stays() {
    let forge = Forge::new().await;
    let failed = queued(&forge.evaluate("old", A).await);
    let eval = forge.claim().await;
    forge.db.fail_evaluation(eval.id, &eval.token, "broken").await.expect("fail");
    queued(&forge.evaluate("main", A).await);
    let running = forge.claim().await;
    let waits = queued(&forge.evaluate("topic", B).await);
    assert_eq!(forge.db.repositories_removed("forge", &[repository()]).await.expect("remove"), 1);
    for id in [running.id, waits] {
        assert_eq!(forge.row(id).await, ("cancelled".to_owned(), true, None));
        let seen = forge.db.view_evaluation_head(id).await.expect("look").expect("there");
        assert!(seen.error.is_some_and(|error| error.contains("repository is gone")));
    }
    assert_eq!(forge.row(failed).await, ("failed".to_owned(), false, None));
    assert!(forge.db.finish_evaluation(running.id, &running.token).await.is_err(), "nobody holds it");
    // It comes back, and its heads are asked for anew.
    assert_eq!(forge.db.repositories_removed("forge", &[repository()]).await.expect("again"), 0);
    forge.db.upsert_repositories("forge", &[forge_repository()]).await.expect("back");
    queued(&forge.evaluate("topic", B).await);
    assert_eq!(forge.attempts(B).await, [1, 2]);
    forge.world.assert_sound().await;
}

#[tokio::test]
async fn a_frontend_needs_no_more_than_its_role() {
    let forge = Forge::new().await;
    let db = forge.world.test.connect_as(harmonia_core::Capability::Frontend).await;
    let key = forge.branch("main");
    let asked = db.branch_state(&key).await.expect("state");
    queued(&db.request_evaluation(&forge.request_as_of("main", A, asked)).await.expect("request"));
    queued(
        &db.request_evaluation(&EvaluationRequest { asked: None, ..forge.request("main", B).await }).await.expect("b"),
    );
    db.close_evaluations(&key, DeliveryRowId(1), "gone").await.expect("close");
    db.rerun_candidates(forge.project, A).await.expect("candidates");
    db.known_permission(1, "x", Duration::from_mins(5)).await.expect("permission");
    assert!(db.is_first_of_comment(forge.project, "c", DeliveryRowId(5)).await.expect("first"));
    queued(&forge.evaluate("main", A).await);
    db.repositories_removed("forge", &[repository()]).await.expect("removed");
    forge.world.assert_sound().await;
}

#[tokio::test]
async fn a_busy_forge_is_left_out_when_deliveries_are_claimed() {
    let forge = Forge::new().await;
    forge.deliver("1", vec![Event::Discover]).await;
    let node = harmonia_core::NodeId("n".to_owned());
    let lease = Duration::from_mins(1);
    let busy = ["forge".to_owned()];
    let without = forge.db.claim_deliveries_except(&node, 9, lease, &busy).await.expect("claim");
    assert_eq!(without, []);
    let other = ["other".to_owned()];
    let claimed = forge.db.claim_deliveries_except(&node, 9, lease, &other).await.expect("claim");
    assert_eq!(claimed.len(), 1);
}
