//! Statuses as desired state: what leaves marks, what is computed from rows, who may send it, and what is left when a
//! sender or a computation meets another. Real rows, real transitions; forges are in the coordinator's tests.

mod delivery;
mod several;

use std::time::Duration;

use harmonia_core::forge::StatusState;
use harmonia_core::status::{self, CommitReport, StatusOptions};
use harmonia_core::{Capability, FailureKind, NodeId, ProjectId};
use harmonia_db::testing::{pool, time_passes};
use harmonia_db::{ComputedReport, Db, DueStatus, ReportOutcome, ReportTarget};

use crate::world::{Eval, World, graph, new_evaluation};

pub(crate) const BURST: Duration = Duration::from_secs(5);
pub(crate) const PROGRESS: Duration = Duration::from_secs(30);
pub(crate) const LEASE: Duration = Duration::from_mins(1);
/// What [`new_evaluation`] evaluates.
pub(crate) const COMMIT: &str = "0000000000000000000000000000000000000000";

/// A world with a project of a forge.
pub(crate) struct Reported {
    pub(crate) world: World,
    pub(crate) db: Db,
    pub(crate) project: ProjectId,
}

impl Reported {
    pub(crate) async fn new() -> Self {
        let world = World::new().await;
        let project = sqlx::query_scalar!(
            "WITH repository AS (
                 INSERT INTO repositories (forge, external_id, owner, name, full_name, clone_url, is_private, default_branch)
                 VALUES ('forge', '17', 'o', 'r', 'o/r', 'https://forge.invalid/o/r', false, 'main') RETURNING id
             ) INSERT INTO projects (name, kind, repository_id) SELECT 'r', 'forge', id FROM repository RETURNING id"
        )
        .fetch_one(pool(&world.db))
        .await
        .expect("a project");
        Self { db: world.db.clone(), world, project: ProjectId(project) }
    }

    pub(crate) async fn evaluation(&self, branch: &str) -> Eval {
        self.world.evaluation_of(self.project, branch).await
    }

    pub(crate) fn target(&self) -> ReportTarget {
        ReportTarget { project: self.project, commit: COMMIT.to_owned() }
    }

    /// Computes all that is marked, as if the burst were over.
    pub(crate) async fn compute(&self) -> u64 {
        compute(&self.db, &[]).await.0
    }

    /// `context: state description`, in order.
    pub(crate) async fn desired(&self) -> Vec<String> {
        desired(&self.db).await
    }

    pub(crate) async fn claim(&self, node: &str) -> Vec<DueStatus> {
        claim(&self.db, node).await
    }
}

pub(crate) async fn desired(db: &Db) -> Vec<String> {
    let rows = sqlx::query!(
        r#"SELECT context || ': ' || desired_state || ' ' || desired_description AS "line!" FROM commit_statuses ORDER BY context"#
    );
    let rows = rows.fetch_all(pool(db)).await.expect("read");
    rows.into_iter().map(|row| row.line.replace("harmonia-ci/", "")).collect()
}

pub(crate) async fn claim(db: &Db, node: &str) -> Vec<DueStatus> {
    db.claim_statuses(&NodeId(node.to_owned()), "forge", 100, LEASE).await.expect("claim")
}

pub(crate) fn decide(report: &CommitReport) -> ComputedReport {
    let options = StatusOptions::new("https://ci.invalid");
    ComputedReport {
        statuses: status::desired(report, &options),
        told: status::notifications(report, &options),
        settled: status::is_settled(report),
    }
}

/// Computes all that is due; returns how many statuses changed and how many notifications are new.
pub(crate) async fn compute(db: &Db, reporters: &[&str]) -> (u64, u64) {
    compute_as(db, db, reporters).await
}

/// As `db`'s role, while time passes by the owner's hand.
async fn compute_as(owner: &Db, db: &Db, reporters: &[&str]) -> (u64, u64) {
    let reporters: Vec<String> = reporters.iter().map(|name| (*name).to_owned()).collect();
    while db.take_job_marks().await.expect("take marks") > 0 {}
    time_passes(owner, BURST).await;
    let mut sum = (0, 0);
    for target in db.due_reports(BURST, 1_000).await.expect("due") {
        match db.compute_report(&target, &reporters, PROGRESS, decide).await.expect("compute") {
            ReportOutcome::Done { changed, notified } => sum = (sum.0 + changed, sum.1 + notified),
            other => assert_eq!(other, ReportOutcome::Nothing, "{target:?}"),
        }
    }
    sum
}

async fn marks(db: &Db) -> (i64, i64) {
    let row = sqlx::query!(
        r#"SELECT (SELECT count(*) FROM report_marks) AS "reports!", (SELECT count(*) FROM job_marks) AS "jobs!""#
    );
    let row = row.fetch_one(pool(db)).await.expect("count");
    (row.reports, row.jobs)
}

#[tokio::test]
async fn what_is_put_off_says_why_until_somebody_takes_it_again() {
    let it = Reported::new().await;
    let eval = it.evaluation("main").await;
    it.compute().await;
    assert_eq!(it.desired().await, ["nix-eval: pending evaluating"]);
    it.db
        .defer_evaluation(eval.id, &eval.token, std::time::Duration::ZERO, "git.example.org answered 503")
        .await
        .expect("put off");
    it.compute().await;
    assert_eq!(it.desired().await, ["nix-eval: pending put off: git.example.org answered 503"]);
    let token = harmonia_db::testing::random_token();
    it.db.claim_evaluation(&it.world.node, it.world.run, &token).await.expect("claim").expect("due again");
    it.compute().await;
    assert_eq!(it.desired().await, ["nix-eval: pending evaluating"]);
}

#[tokio::test]
async fn from_queued_to_green_by_rows_alone() {
    let it = Reported::new().await;
    it.db.create_evaluation(&new_evaluation(it.project, "main")).await.expect("queue");
    // The first sign of life does not wait for a burst to end.
    assert_eq!(it.db.due_reports(BURST, 10).await.expect("due"), [it.target()]);
    it.compute().await;
    assert_eq!(it.desired().await, ["nix-eval: pending waits for an evaluator"]);

    let token = harmonia_db::testing::random_token();
    let claimed = it.db.claim_evaluation(&it.world.node, it.world.run, &token).await.expect("claim").expect("queued");
    let eval = Eval { id: claimed.id, token };
    assert_eq!(it.db.due_reports(BURST, 10).await.expect("due"), [], "a burst is over after a while");
    let graph = graph(&[&[], &[0], &[]]);
    it.world.insert(&eval, &graph, &[1, 2]).await.expect("insert");
    assert_eq!(it.compute().await, 2);
    assert_eq!(it.desired().await, ["nix-build: pending 0/2 done, still evaluating", "nix-eval: pending evaluating"]);

    it.db.finish_evaluation(eval.id, &eval.token).await.expect("finish");
    for claimed in it.world.claim(2).await {
        it.world.complete(&claimed).await.expect("complete");
    }
    it.compute().await;
    assert_eq!(it.desired().await, ["nix-build: pending 1/2 done", "nix-eval: success 2 attributes"]);
    for claimed in it.world.claim(2).await {
        it.world.complete(&claimed).await.expect("complete");
    }
    it.compute().await;
    let green = ["nix-build: success 2 attributes built or available", "nix-eval: success 2 attributes"];
    assert_eq!(it.desired().await, green);
    assert_eq!(marks(&it.db).await, (0, 0));
    assert_eq!(it.db.sweep_reports(Duration::ZERO).await.expect("sweep"), 0, "it is settled");
    assert_eq!(it.compute().await, 0);
}

#[tokio::test]
async fn a_rebuild_repairs_what_it_had_broken_even_of_a_commit_that_was_left_behind() {
    let it = Reported::new().await;
    let graph = graph(&[&[], &[0], &[]]);
    let eval = it.evaluation("main").await;
    it.world.insert(&eval, &graph, &[1, 2]).await.expect("insert");
    it.db.finish_evaluation(eval.id, &eval.token).await.expect("finish");
    for claimed in it.world.claim(2).await {
        match crate::world::number_of(claimed.drv_path.as_str()) {
            0 => drop(it.world.fail(&claimed, Some(FailureKind::Build)).await.expect("fail")),
            _ => drop(it.world.complete(&claimed).await.expect("complete")),
        }
    }
    it.compute().await;
    let red = [
        "nix-build: failure 1 failed: a1",
        "nix-build/a1: failure the dependency d0 failed",
        "nix-eval: success 2 attributes",
    ];
    assert_eq!(it.desired().await, red);

    // The branch moves on; the commit's result stands.
    let newer = harmonia_db::NewEvaluationRow { commit: Some("1".repeat(40)), ..new_evaluation(it.project, "main") };
    it.db.create_evaluation(&newer).await.expect("queue");
    it.compute().await;
    assert_eq!(it.desired().await[..3], red);

    it.db.rebuild_failed(eval.id, "somebody").await.expect("rebuild");
    for _ in 0..2 {
        for claimed in it.world.claim(2).await {
            it.world.complete(&claimed).await.expect("complete");
        }
    }
    it.compute().await;
    let green = [
        "nix-build: success 2 attributes built or available",
        "nix-build/a1: success built",
        "nix-eval: success 2 attributes",
    ];
    assert_eq!(it.desired().await.into_iter().filter(|line| !line.contains("waits")).collect::<Vec<_>>(), green);
}

#[tokio::test]
async fn what_was_superseded_while_it_built_says_so() {
    let it = Reported::new().await;
    let eval = it.evaluation("main").await;
    it.world.insert(&eval, &graph(&[&[]]), &[0]).await.expect("insert");
    it.compute().await;
    let newer = harmonia_db::NewEvaluationRow { commit: Some("1".repeat(40)), ..new_evaluation(it.project, "main") };
    it.db.create_evaluation(&newer).await.expect("queue");
    it.compute().await;
    let old: Vec<String> = sqlx::query_scalar!(
        "SELECT desired_state || ' ' || desired_description FROM commit_statuses WHERE commit_sha = $1 ORDER BY context",
        COMMIT
    )
    .fetch_all(pool(&it.db))
    .await
    .expect("read")
    .into_iter()
    .flatten()
    .collect();
    assert_eq!(old, ["error superseded by a newer push", "error superseded by a newer push"]);
}

#[tokio::test]
async fn a_pull_request_that_waits_is_pending_until_it_is_closed() {
    let it = Reported::new().await;
    let save = async |waiting: Option<&str>, head: &str, open: bool| {
        sqlx::query!(
            "INSERT INTO pull_requests (project_id, number, title, author, head_commit, head_branch, head_ref, base_branch,
                 base_commit, is_open, is_draft, waiting)
             VALUES ($1, 7, 't', 'a', $2, 'b', 'refs/x', 'main', 'c', $3, false, $4)
             ON CONFLICT (project_id, number) DO UPDATE
                 SET head_commit = excluded.head_commit, is_open = excluded.is_open, waiting = excluded.waiting",
            it.project.0,
            head,
            open,
            waiting
        )
        .execute(pool(&it.db))
        .await
        .expect("save");
    };
    save(Some("waits for a collaborator's /ci run"), COMMIT, true).await;
    assert_eq!(it.db.due_reports(BURST, 10).await.expect("due"), [it.target()], "at once");
    it.compute().await;
    assert_eq!(it.desired().await, ["nix-eval: pending waits for a collaborator's /ci run"]);
    let other = "2".repeat(40);
    save(Some("waits for a collaborator's /ci run"), &other, true).await;
    it.compute().await;
    assert_eq!(
        it.desired().await,
        [
            "nix-eval: error nothing evaluates this commit any more",
            "nix-eval: pending waits for a collaborator's /ci run"
        ]
    );
    save(None, &other, false).await;
    it.compute().await;
    assert!(it.desired().await.iter().all(|line| line.starts_with("nix-eval: error")));
}

#[tokio::test]
async fn marks_live_and_die_with_their_transaction() {
    let it = Reported::new().await;
    let eval = it.evaluation("main").await;
    it.world.insert(&eval, &graph(&[&[], &[0]]), &[1]).await.expect("insert");
    it.db.finish_evaluation(eval.id, &eval.token).await.expect("finish");
    it.compute().await;
    assert_eq!(marks(&it.db).await, (0, 0));
    let job = it.world.claim_only(0).await;
    assert_eq!(marks(&it.db).await, (0, 0), "a claim is nothing to tell of");

    let slow = it.world.test.single_connection().await;
    sqlx::query!("BEGIN").execute(pool(&slow)).await.expect("begin");
    slow.cancel_job(job.job, "me").await.expect("cancel");
    assert_eq!((marks(&slow).await.1, marks(&it.db).await), (2, (0, 0)));
    sqlx::query!("ROLLBACK").execute(pool(&slow)).await.expect("roll back");
    assert_eq!(marks(&it.db).await, (0, 0));

    // A job that no attribute is: it concerns no commit.
    it.world.complete(&job).await.expect("complete");
    assert_eq!(marks(&it.db).await, (0, 1));
    assert_eq!(it.db.take_job_marks().await.expect("take"), 1);
    assert_eq!(marks(&it.db).await, (0, 0));
}

/// The heart of it: a change that is under way while its commit is computed shows afterwards.
#[tokio::test]
async fn a_change_that_commits_during_a_computation_is_not_lost() {
    let it = Reported::new().await;
    let eval = it.evaluation("main").await;
    it.world.insert(&eval, &graph(&[&[], &[]]), &[0, 1]).await.expect("insert");
    it.db.finish_evaluation(eval.id, &eval.token).await.expect("finish");
    let jobs = it.world.claim(2).await;
    it.compute().await;
    let slow = it.world.test.single_connection().await;
    for (round, job) in jobs.iter().enumerate() {
        sqlx::query!("BEGIN").execute(pool(&slow)).await.expect("begin");
        slow.attempt_uploading(job.attempt, &job.token).await.expect("upload");
        let outputs = crate::world::new_paths(&it.world.db, job, 1).await;
        slow.claim_outputs(job.attempt, &job.token, &outputs, &harmonia_db::Alongside::default())
            .await
            .expect("claim outputs");
        let paths: Vec<_> = outputs.into_iter().map(|output| output.path).collect();
        slow.publish_outputs(job.job, &paths, &harmonia_core::signer_api::AttemptUsage::default(), None)
            .await
            .expect("publish");
        // Somebody else has marked the commit; what is not committed is not seen, and its mark is not taken.
        mark(&it).await;
        it.compute().await;
        assert!(it.desired().await[0].contains(&format!("{round}/2 done")), "{:?}", it.desired().await);
        sqlx::query!("COMMIT").execute(pool(&slow)).await.expect("commit");
        assert_eq!(it.compute().await, 1);
    }
    assert_eq!(it.desired().await[0], "nix-build: success 2 attributes built or available");
}

async fn mark(it: &Reported) {
    sqlx::query!("INSERT INTO report_marks (project_id, commit_sha) VALUES ($1, $2)", it.project.0, COMMIT)
        .execute(pool(&it.db))
        .await
        .expect("mark");
}

#[tokio::test]
async fn one_computation_a_project_at_a_time_and_none_twice() {
    let it = Reported::new().await;
    it.evaluation("main").await;
    let slow = it.world.test.single_connection().await;
    sqlx::query!("BEGIN").execute(pool(&slow)).await.expect("begin");
    sqlx::query!("SELECT pg_advisory_xact_lock(hashtext('harmonia-ci report'), hashtext($1))", it.project.to_string())
        .execute(pool(&slow))
        .await
        .expect("lock");
    let busy = it.db.compute_report(&it.target(), &[], PROGRESS, decide).await.expect("compute");
    assert_eq!(busy, ReportOutcome::Busy);
    sqlx::query!("ROLLBACK").execute(pool(&slow)).await.expect("roll back");
    let target = it.target();
    let (one, two) = tokio::join!(
        it.db.compute_report(&target, &[], PROGRESS, decide),
        it.db.compute_report(&target, &[], PROGRESS, decide)
    );
    let outcomes = [one.expect("compute"), two.expect("compute")];
    let done = outcomes.iter().filter(|outcome| matches!(outcome, ReportOutcome::Done { .. })).count();
    assert_eq!(done, 1, "{outcomes:?}");
    assert_eq!(it.compute().await, 0);
}

/// A computation that ends before its commit leaves everything as it was, marks too.
#[tokio::test]
async fn a_computation_that_breaks_is_done_again() {
    let it = Reported::new().await;
    it.evaluation("main").await;
    let target = it.target();
    let db = it.db.clone();
    let broken = tokio::spawn(async move {
        db.compute_report(&target, &[], PROGRESS, |_| panic!("the process ends here")).await.map(|_| ())
    });
    assert!(broken.await.expect_err("it broke").is_panic());
    assert_eq!(it.desired().await, Vec::<String>::new());
    assert_eq!(it.compute().await, 1);
}

#[tokio::test]
async fn what_is_not_settled_is_looked_at_again_without_any_mark() {
    let it = Reported::new().await;
    it.evaluation("main").await;
    it.compute().await;
    assert_eq!(it.db.sweep_reports(Duration::from_mins(10)).await.expect("sweep"), 0);
    time_passes(&it.db, Duration::from_mins(11)).await;
    assert_eq!(it.db.sweep_reports(Duration::from_mins(10)).await.expect("sweep"), 1);
    assert_eq!(it.db.sweep_reports(Duration::from_mins(10)).await.expect("sweep"), 0, "it is marked already");
    // A status that went astray, as nothing here writes it, is put right.
    sqlx::query!("UPDATE commit_statuses SET desired_digest = '', desired_state = 'success'")
        .execute(pool(&it.db))
        .await
        .expect("spoil");
    it.compute().await;
    assert_eq!(it.desired().await, ["nix-eval: pending evaluating"]);
}

#[tokio::test]
async fn a_frontend_may_do_all_this_and_a_builder_nothing_of_it() {
    let it = Reported::new().await;
    let eval = it.evaluation("main").await;
    it.world.insert(&eval, &graph(&[&[]]), &[0]).await.expect("insert");
    let evaluator = it.world.test.connect_as(Capability::Evaluator).await;
    let path = crate::world::out_path(99);
    evaluator.set_evaluation_source(eval.id, &eval.token, &path).await.expect("an evaluator tells its source");
    it.db.finish_evaluation(eval.id, &eval.token).await.expect("finish");
    let frontend = it.world.test.connect_as(Capability::Frontend).await;
    assert_eq!(compute_as(&it.db, &frontend, &["chat"]).await, (2, 1));
    let due = claim(&frontend, "f").await;
    assert_eq!(due.len(), 2);
    assert!(frontend.status_delivered(&due[0]).await.expect("store"));
    frontend.sweep_reports(Duration::ZERO).await.expect("sweep");
    let node = NodeId("f".to_owned());
    assert_eq!(frontend.claim_notifications(&node, "chat", 5, LEASE).await.expect("claim").len(), 1);
    assert_eq!(frontend.claim_comments(&node, "forge", 5, LEASE).await.expect("claim").len(), 0);
    frontend.dead_letters(5).await.expect("list");
    for capability in [Capability::Builder, Capability::Evaluator, Capability::Signer] {
        let db = it.world.test.connect_as(capability).await;
        assert!(db.take_job_marks().await.is_err(), "{capability}");
        assert!(db.due_reports(BURST, 1).await.is_err(), "{capability}");
        assert!(db.claim_statuses(&node, "forge", 1, LEASE).await.is_err(), "{capability}");
        assert!(db.dead_letters(1).await.is_err(), "{capability}");
    }
}

#[tokio::test]
async fn the_worst_of_a_branch_and_a_pull_request_shows() {
    let it = Reported::new().await;
    let branch = it.evaluation("main").await;
    let graph = graph(&[&[], &[]]);
    it.world.insert(&branch, &graph, &[0]).await.expect("insert");
    it.db.finish_evaluation(branch.id, &branch.token).await.expect("finish");
    for claimed in it.world.claim(1).await {
        it.world.complete(&claimed).await.expect("complete");
    }
    it.compute().await;
    assert!(it.desired().await[0].starts_with("nix-build: success"));
    let pull = it.evaluation("pull/7").await;
    sqlx::query!(
        "UPDATE evaluations SET pr_number = 7, pr_head_sha = $2, pr_base_branch = 'main', commit_sha = $3 WHERE id = $1",
        pull.id.0,
        COMMIT,
        "9".repeat(40)
    )
    .execute(pool(&it.db))
    .await
    .expect("a pull request");
    it.compute().await;
    assert!(it.desired().await[0].starts_with("nix-build: pending"), "{:?}", it.desired().await);
    it.world.insert(&pull, &graph, &[1]).await.expect("insert");
    it.db.finish_evaluation(pull.id, &pull.token).await.expect("finish");
    for claimed in it.world.claim(1).await {
        it.world.fail(&claimed, Some(FailureKind::Build)).await.expect("fail");
    }
    it.compute().await;
    assert_eq!(it.desired().await[0], "nix-build: failure 1 failed: a1");
    it.db.cancel_evaluation(pull.id, "me").await.expect("cancel");
    it.compute().await;
    assert_eq!(it.desired().await[0], "nix-build: success 1 attribute built or available");
    let states = |line: &String| line.split(' ').nth(1).map(str::to_owned);
    assert!(it.desired().await.iter().filter_map(states).all(|state| state == StatusState::Success.as_str()));
}
