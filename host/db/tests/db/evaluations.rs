//! Evaluations: superseding, completeness, interest in jobs, bundles.

use std::time::Duration;

use harmonia_core::JobStatus::{Building, Cancelled, Pending, Succeeded};
use harmonia_core::{Capability, EvalStatus, Incarnation, NodeId, reuse};
use harmonia_db::testing::{pool, random_token, time_passes};
use harmonia_db::{
    AttrResult, BranchKey, CommitFacts, DbError, DeliveryRowId, GraphAttr, GraphBatch, NewProject, NodeRegistration,
    ProjectKind,
};

use crate::world::{Eval, World, batch, drv_path, graph, new_evaluation, registration};

async fn status(world: &World, eval: &Eval) -> EvalStatus {
    sqlx::query_scalar!("SELECT status FROM evaluations WHERE id = $1", eval.id.0)
        .fetch_one(pool(&world.db))
        .await
        .expect("read")
        .parse()
        .expect("a status")
}

#[tokio::test]
async fn a_newer_evaluation_supersedes_and_jobs_that_nobody_else_wants_are_cancelled() {
    let world = World::new().await;
    let graph = graph(&[&[], &[0], &[], &[]]);
    let old = world.evaluation("main").await;
    world.insert(&old, &graph, &[1, 2, 3]).await.expect("insert");
    let feature = world.evaluation("feature").await;
    world.insert(&feature, &graph, &[2]).await.expect("insert");
    let running = world.claim(1).await.remove(0); // 0
    let created = world.db.create_evaluation(&new_evaluation(world.project, "main")).await.expect("create");
    assert_eq!(created.superseded, [old.id]);
    assert_eq!(status(&world, &old).await, EvalStatus::Cancelled);
    assert!(!world.db.evaluation_held(old.id, &old.token).await.expect("held"));
    // 0 builds and may finish; 1 and 3 are not wanted; 2 is by the other branch.
    assert_eq!(world.statuses().await, [(0, Building), (1, Cancelled), (2, Pending), (3, Cancelled)]);
    world.complete(&running).await.expect("complete");
    world.assert_sound().await;

    // The new one wants them again.
    let token = random_token();
    let claimed = world.db.claim_evaluation(&world.node, world.run, &token).await.expect("claim").expect("one");
    assert_eq!((claimed.id, claimed.attempt), (created.id, 2));
    let new = Eval { id: claimed.id, token };
    let outcome = world.insert(&new, &graph, &[1, 3]).await.expect("insert");
    assert_eq!((outcome.new_jobs, outcome.revived), (0, 2));
    assert_eq!(world.jobs().await[&1].unmet, 0);
    world.assert_sound().await;
}

#[tokio::test]
async fn an_evaluation_is_complete_when_every_expected_name_has_an_answer() {
    let world = World::new().await;
    let graph = graph(&[&[]]);
    let eval = world.evaluation("main").await;
    let refused = world.db.finish_evaluation(eval.id, &eval.token).await.expect_err("no attributes");
    assert!(matches!(refused, DbError::Refused { .. }), "{refused}");
    world.db.expect_attrs(eval.id, &eval.token, &["a0".to_owned(), "bad".to_owned()]).await.expect("expect");
    world.insert(&eval, &graph, &[0]).await.expect("insert");
    let finished = world.db.finish_evaluation(eval.id, &eval.token).await.expect("ask");
    assert_eq!((finished.complete, finished.missing.as_slice()), (false, &["bad".to_owned()][..]));
    assert_eq!(status(&world, &eval).await, EvalStatus::Running);
    let bad = GraphAttr { attr: "bad".to_owned(), result: AttrResult::Error("boom\0".to_owned()) };
    let errors = GraphBatch { attrs: vec![bad], ..GraphBatch::default() };
    world.insert_batch(&eval, &errors).await.expect("insert");
    let finished = world.db.finish_evaluation(eval.id, &eval.token).await.expect("finish");
    assert_eq!((finished.complete, finished.attrs), (true, 2));
    assert_eq!(status(&world, &eval).await, EvalStatus::Succeeded);
    assert!(matches!(world.insert(&eval, &graph, &[0]).await, Err(DbError::StaleClaim)));
    world.assert_sound().await;

    let empty = world.evaluation("empty").await;
    world.db.allow_empty_evaluation(empty.id, &empty.token).await.expect("allow");
    assert!(world.db.finish_evaluation(empty.id, &empty.token).await.expect("finish").complete);
    world.assert_sound().await;
}

/// The names are for whoever finishes it. What ended is told by its attributes, and how many they were.
#[tokio::test]
async fn what_an_evaluation_was_to_answer_for_is_forgotten_when_it_ends() {
    let world = World::new().await;
    let graph = graph(&[&[], &[]]);
    let names = ["a0".to_owned(), "a1".to_owned()];
    let expected = async |eval: &Eval| {
        sqlx::query_scalar!(r#"SELECT count(*) AS "n!" FROM eval_expected_attrs WHERE eval_id = $1"#, eval.id.0)
            .fetch_one(pool(&world.db))
            .await
            .expect("count")
    };
    let begun = async |branch: &str| {
        let eval = world.evaluation(branch).await;
        world.db.expect_attrs(eval.id, &eval.token, &names).await.expect("expect");
        world.insert(&eval, &graph, &[0, 1]).await.expect("insert");
        assert_eq!(expected(&eval).await, 2);
        eval
    };
    let finished = begun("finished").await;
    assert!(world.db.finish_evaluation(finished.id, &finished.token).await.expect("finish").complete);
    let skipped = begun("skipped").await;
    assert!(world.db.skip_evaluation(skipped.id, &skipped.token, finished.id, "as before").await.expect("skip"));
    let failed = begun("failed").await;
    world.db.fail_evaluation(failed.id, &failed.token, "boom").await.expect("fail");
    let cancelled = begun("cancelled").await;
    world.db.cancel_evaluation(cancelled.id, "me").await.expect("cancel");
    let closed = begun("closed").await;
    let branch = BranchKey { project: world.project, branch: "closed".to_owned(), is_tag: false, pull_request: None };
    let closing = world.db.close_evaluations(&branch, DeliveryRowId(i64::MAX), "its branch is gone").await;
    assert_eq!(closing.expect("close"), 1);
    let superseded = begun("superseded").await;
    let newer = world.evaluation("superseded").await;
    world.db.release_evaluation(newer.id, &newer.token).await.expect("release");
    for eval in [&finished, &skipped, &failed, &cancelled, &closed, &superseded, &newer] {
        assert_eq!(expected(eval).await, 0, "{:?}", status(&world, eval).await);
    }
    world.assert_sound().await;

    // One that lost an attribute is found out all the same.
    sqlx::query!("DELETE FROM eval_attrs WHERE eval_id = $1 AND attr = 'a1'", finished.id.0)
        .execute(pool(&world.db))
        .await
        .expect("lose an attribute");
    let violations = world.db.sweep_invariants().await.expect("sweep");
    let words = format!("evaluation {} is complete with 2 attributes, but has 1", finished.id);
    assert!(violations.iter().any(|v| v.invariant == 5 && v.detail == words), "{violations:?}");
}

#[tokio::test]
async fn a_partly_inserted_closure_is_held_until_the_evaluation_ends() {
    let world = World::new().await;
    let graph = graph(&[&[], &[0], &[1]]);
    let eval = world.evaluation("main").await;
    // Only the lower part of 2's closure is in.
    world.insert_batch(&eval, &batch(&graph, &[0, 1], &[])).await.expect("insert");
    let other = world.evaluation("other").await;
    world.insert(&other, &graph, &[1]).await.expect("insert");
    world.db.cancel_evaluation(other.id, "me").await.expect("cancel");
    assert_eq!(world.statuses().await, [(0, Pending), (1, Pending)], "main holds them");
    // Back to the queue and claimed again: still held.
    world.db.release_evaluation(eval.id, &eval.token).await.expect("release");
    let token = random_token();
    world.db.claim_evaluation(&world.node, world.run, &token).await.expect("claim").expect("one");
    let error = GraphAttr { attr: "x".to_owned(), result: AttrResult::Error("gone".to_owned()) };
    let errors = GraphBatch { attrs: vec![error], ..GraphBatch::default() };
    world.insert_batch(&Eval { id: eval.id, token: token.clone() }, &errors).await.expect("insert");
    assert_eq!(world.statuses().await, [(0, Pending), (1, Pending)]);
    assert!(world.db.finish_evaluation(eval.id, &token).await.expect("finish").complete);
    assert_eq!(world.statuses().await, [(0, Cancelled), (1, Cancelled)], "no attribute came");
    world.assert_sound().await;
}

/// A walk passes through what nobody knew yet, also when that is there: nothing leads from it to the jobs below.
#[tokio::test]
async fn jobs_below_what_is_there_go_with_the_evaluation_that_brought_them() {
    let world = World::new().await;
    let mut graph = graph(&[&[], &[], &[1]]);
    graph[2].outputs = vec![0];
    let maker = world.evaluation("maker").await;
    world.insert(&maker, &graph, &[0]).await.expect("insert");
    world.complete(&world.claim_only(0).await).await.expect("complete");
    let eval = world.evaluation("main").await;
    let outcome = world.insert(&eval, &graph, &[2]).await.expect("insert");
    assert_eq!(outcome.new_jobs, 1, "2 is there, and 1 below it is not");
    assert_eq!(world.statuses().await, [(0, Succeeded), (1, Pending)]);
    world.db.create_evaluation(&new_evaluation(world.project, "main")).await.expect("supersede");
    assert_eq!(world.statuses().await, [(0, Succeeded), (1, Cancelled)]);
    world.assert_sound().await;
}

#[tokio::test]
async fn a_failed_evaluation_leaves_nothing_behind() {
    let world = World::new().await;
    let eval = world.evaluation("main").await;
    world.insert(&eval, &graph(&[&[], &[0]]), &[1]).await.expect("insert");
    world.db.append_evaluation_log(eval.id, &eval.token, &"x".repeat(1 << 20)).await.expect("log");
    world.db.append_evaluation_log(eval.id, &eval.token, "more").await.expect("log");
    let kept = sqlx::query_scalar!(r#"SELECT sum(length(text))::bigint AS "n!" FROM evaluation_log_chunks"#)
        .fetch_one(pool(&world.db))
        .await;
    assert!((1 << 20..(1 << 20) + 100).contains(&kept.expect("sum")));
    let twice = ["careful".to_owned(), "careful".to_owned()];
    world.db.add_warnings(eval.id, &eval.token, &twice).await.expect("warn");
    world.db.add_warnings(eval.id, &eval.token, &twice[..1]).await.expect("warn");
    world.db.fail_evaluation(eval.id, &eval.token, "the engine died").await.expect("fail");
    let row =
        sqlx::query!("SELECT status, error, warnings FROM evaluations").fetch_one(pool(&world.db)).await.expect("read");
    assert_eq!((row.status.as_str(), row.error.as_deref(), row.warnings.len()), ("failed", Some("the engine died"), 1));
    assert_eq!(world.statuses().await, [(0, Cancelled), (1, Cancelled)]);
    world.assert_sound().await;
}

#[tokio::test]
async fn a_limit_of_one_project_does_not_bind_another_that_allows_more() {
    let world = World::new().await;
    let graph = graph(&[&[]]);
    let eval = world.evaluation("main").await;
    world.insert(&eval, &graph, &[0]).await.expect("insert");
    let claimed = world.claim_only(0).await;
    world.fail(&claimed, Some(harmonia_core::FailureKind::Timeout)).await.expect("fail");
    let same = world.evaluation("other").await;
    assert_eq!(world.insert(&same, &graph, &[0]).await.expect("insert").revived, 0);
    let big = world
        .db
        .ensure_project(&NewProject { name: "big".to_owned(), kind: ProjectKind::Local })
        .await
        .expect("a project");
    sqlx::query!("UPDATE projects SET timeout_s = 50000 WHERE id = $1", big.0)
        .execute(pool(&world.db))
        .await
        .expect("allow more");
    let more = world.evaluation_of(big, "main").await;
    assert_eq!(world.insert(&more, &graph, &[0]).await.expect("insert").revived, 1);
    assert_eq!(world.claim_only(0).await.limits.timeout_s, 50_000);
}

#[tokio::test]
async fn an_old_build_failure_is_tried_again_where_a_project_says_so() {
    let world = World::new().await;
    let graph = graph(&[&[]]);
    let eval = world.evaluation("main").await;
    world.insert(&eval, &graph, &[0]).await.expect("insert");
    let claimed = world.claim_only(0).await;
    world.fail(&claimed, Some(harmonia_core::FailureKind::Build)).await.expect("fail");
    sqlx::query!("UPDATE build_jobs SET finished_at = now() - interval '2 hours'")
        .execute(pool(&world.db))
        .await
        .expect("time");
    assert_eq!(world.insert(&eval, &graph, &[0]).await.expect("insert").revived, 0);
    sqlx::query!("UPDATE projects SET failure_ttl_s = 3600").execute(pool(&world.db)).await.expect("set");
    assert_eq!(world.insert(&eval, &graph, &[0]).await.expect("insert").revived, 1);
    world.assert_sound().await;
}

#[tokio::test]
async fn what_a_public_project_reaches_becomes_public() {
    let world = World::new().await;
    let graph = graph(&[&[], &[0]]);
    let private = world
        .db
        .ensure_project(&NewProject { name: "private".to_owned(), kind: ProjectKind::Local })
        .await
        .expect("a project");
    sqlx::query!("UPDATE projects SET is_public = false WHERE id = $1", private.0)
        .execute(pool(&world.db))
        .await
        .expect("set");
    let secret = world.evaluation_of(private, "main").await;
    world.insert(&secret, &graph, &[1]).await.expect("insert");
    let zero = world.claim_only(0).await;
    world.complete(&zero).await.expect("complete");
    let public = || async {
        sqlx::query_scalar!("SELECT public FROM store_paths ORDER BY path")
            .fetch_all(pool(&world.db))
            .await
            .expect("read")
    };
    assert_eq!(public().await, [false]);
    // The walk goes on through what only private projects reached.
    let open = world.evaluation("main").await;
    world.insert(&open, &graph, &[1]).await.expect("insert");
    assert_eq!(public().await, [true]);
    let one = world.claim_only(1).await;
    world.complete(&one).await.expect("complete");
    assert_eq!(public().await, [true, true]);
    let again = world.evaluation("other").await;
    assert!(world.walk(&again, &graph, &[1]).await.expect("walk").derivations.is_empty());
}

#[tokio::test]
async fn a_commit_learned_late_gets_its_place_among_the_attempts() {
    let world = World::new().await;
    let first = world.evaluation("main").await;
    let mut unknown = new_evaluation(world.project, "main");
    unknown.commit = None;
    world.db.create_evaluation(&unknown).await.expect("create");
    let token = random_token();
    let claimed = world.db.claim_evaluation(&world.node, world.run, &token).await.expect("claim").expect("one");
    assert_eq!((claimed.commit.as_deref(), claimed.attempt), (None, 1));
    let facts = CommitFacts { commit: "0".repeat(40), title: Some("a title".to_owned()), ..CommitFacts::default() };
    world.db.set_evaluation_commit(claimed.id, &token, &facts).await.expect("set");
    let row = sqlx::query!("SELECT attempt, commit_title FROM evaluations WHERE id = $1", claimed.id.0)
        .fetch_one(pool(&world.db))
        .await;
    let row = row.expect("read");
    assert_eq!((row.attempt, row.commit_title.as_deref()), (2, Some("a title")));
    assert_ne!(first.id, claimed.id);
}

#[tokio::test]
async fn bundles_come_back_whole_and_go_with_their_evaluation() {
    let world = World::new().await;
    let bundle = world.db.begin_bundle().await.expect("begin");
    assert!(matches!(world.db.append_bundle(bundle, 0, &[]).await, Err(DbError::Refused { .. })));
    assert!(matches!(world.db.append_bundle(bundle, 0, &vec![0; (1 << 20) + 1]).await, Err(DbError::Refused { .. })));
    world.db.append_bundle(bundle, 1, b"bundle").await.expect("append");
    assert!(
        matches!(world.db.finish_bundle(bundle, 6, [9; 32]).await, Err(DbError::Refused { .. })),
        "chunk 0 is missing"
    );
    world.db.append_bundle(bundle, 0, b"git ").await.expect("append");
    assert!(matches!(world.db.finish_bundle(bundle, 9, [9; 32]).await, Err(DbError::Refused { .. })), "10 bytes");
    assert_eq!(world.db.read_bundle(bundle, 0).await.expect("read"), None, "not finished");
    let mut new = new_evaluation(world.project, "main");
    new.source = harmonia_core::api::Source::Bundle { bundle };
    assert!(matches!(world.db.create_evaluation(&new).await, Err(DbError::NotFound { .. })), "not finished");
    world.db.finish_bundle(bundle, 10, [9; 32]).await.expect("finish");
    assert_eq!(world.db.bundle_digest(bundle).await.expect("digest"), Some((10, [9; 32])));
    assert_eq!(world.db.read_bundle(bundle, 1).await.expect("read").as_deref(), Some(&b"bundle"[..]));
    assert_eq!(world.db.read_bundle(bundle, 2).await.expect("read"), None);
    assert!(matches!(world.db.append_bundle(bundle, 2, b"late").await, Err(DbError::NotFound { .. })));

    let created = world.db.create_evaluation(&new).await.expect("create");
    let zero = std::time::Duration::ZERO;
    assert_eq!(world.db.delete_stale(zero).await.expect("delete").bundles, 0, "it is queued");
    world.db.cancel_evaluation(created.id, "me").await.expect("cancel");
    assert_eq!(world.db.delete_stale(std::time::Duration::from_hours(24)).await.expect("delete").bundles, 1);
}

#[tokio::test]
async fn a_job_cancelled_between_walk_and_insertion_is_named_missing() {
    let world = World::new().await;
    let graph = graph(&[&[], &[0]]);
    let first = world.evaluation("main").await;
    world.insert(&first, &graph, &[0]).await.expect("insert");
    let second = world.evaluation("other").await;
    let walked = world.walk(&second, &graph, &[1]).await.expect("walk");
    assert_eq!(walked.derivations.len(), 1, "0 has a job, so the walk stopped there");
    world.db.cancel_evaluation(first.id, "me").await.expect("cancel");
    let outcome = world.insert_batch(&second, &walked).await.expect("insert");
    assert_eq!(outcome.missing, [drv_path(0)]);
    let outcome = world.insert(&second, &graph, &[1]).await.expect("walk and insert again");
    assert_eq!((outcome.new_jobs, outcome.revived, outcome.missing.len()), (1, 1, 0));
    world.assert_sound().await;
}

#[tokio::test]
async fn what_is_put_off_waits_for_its_time_and_holds_up_nobody() {
    let world = World::new().await;
    let first = world.evaluation("first").await;
    world.insert(&first, &graph(&[&[]]), &[0]).await.expect("insert");
    let db = world.test.connect_as(Capability::Evaluator).await;
    let delay = Duration::from_mins(10);
    db.defer_evaluation(first.id, &first.token, delay, "the forge\0 is away").await.expect("put off");
    let stale = db.defer_evaluation(first.id, &first.token, delay, "again").await;
    assert!(matches!(stale, Err(DbError::StaleClaim)), "{stale:?}");
    assert_eq!(status(&world, &first).await, EvalStatus::Queued);
    assert_eq!(world.statuses().await, [(0, Pending)], "what it reached stays wanted");
    let waiting = world.db.view_evaluation_head(first.id).await.expect("read").expect("there").waiting.expect("waits");
    assert_eq!(waiting.reason, "the forge\u{fffd} is away");
    assert_eq!(waiting.until - waiting.since, delay);

    // Others go on; when its time has come it is before those that were asked for later.
    let second = world.evaluation("second").await;
    world.db.fail_evaluation(second.id, &second.token, "done").await.expect("fail");
    let claim = async || {
        let token = random_token();
        let claimed = world.db.claim_evaluation(&world.node, world.run, &token).await.expect("claim")?;
        Some((claimed, token))
    };
    assert!(claim().await.is_none(), "nothing else is queued");
    time_passes(&world.db, delay).await;
    let third = world.db.create_evaluation(&new_evaluation(world.project, "third")).await.expect("create").id;
    let (claimed, token) = claim().await.expect("its time has come");
    assert_eq!((claimed.id, claimed.waits), (first.id, 1));
    assert!(claimed.waited >= delay && claimed.waited < delay * 2, "{:?}", claimed.waited);
    let view = world.db.view_evaluation_head(first.id).await.expect("read").expect("there");
    assert_eq!((view.status, view.waiting), (EvalStatus::Running, None));

    // Behind what was asked for before the time at which it is due again.
    db.defer_evaluation(first.id, &token, Duration::ZERO, "still away").await.expect("put off");
    let (next, token) = claim().await.expect("queued");
    assert_eq!((next.id, next.waits, next.waited), (third, 0, Duration::ZERO));
    let (again, _) = claim().await.expect("due at once");
    assert_eq!((again.id, again.waits), (first.id, 2));
    world.db.release_evaluation(third, &token).await.expect("release");
    world.assert_sound().await;
}

#[tokio::test]
async fn results_hold_while_all_evaluators_evaluate_by_the_same_rules() {
    let world = World::new().await;
    let live = Duration::from_mins(2);
    let key = async || world.db.reuse_key(live).await.expect("read");
    let evaluator = |id: &str, run: i64| NodeRegistration {
        capabilities: vec![Capability::Evaluator],
        systems: Vec::new(),
        ..registration(id, run)
    };
    let say = async |id: &str, run: i64, engine: &str| {
        let db = world.test.connect_as(Capability::Evaluator).await;
        db.set_evaluator_engine(&NodeId(id.to_owned()), Incarnation(run), engine).await
    };
    assert_eq!(key().await, None, "nobody said anything");
    world.db.set_evaluator_engine(&world.node, world.run, "nix 2.8").await.expect("say");
    let expected = Some(reuse::key("nix 2.8", &["x86_64-linux".to_owned()]));
    assert_eq!(key().await, expected);

    let db = world.test.connect_as(Capability::Evaluator).await;
    db.register_node(&evaluator("other", 1)).await.expect("register");
    assert_eq!(key().await, None, "who knows what the other has");
    say("other", 1, "nix 2.9").await.expect("say");
    assert_eq!(key().await, None, "they differ");
    say("other", 1, "nix 2.8").await.expect("say");
    assert_eq!(key().await, expected);
    // Another run may be another version.
    db.register_node(&evaluator("other", 2)).await.expect("register");
    assert_eq!(key().await, None);
    let late = say("other", 1, "nix 2.8").await;
    assert!(matches!(late, Err(DbError::Refused { .. })), "{late:?}");
    say("other", 2, "nix 2.8").await.expect("say");
    assert_eq!(key().await, expected);
    // Who is silent evaluates nothing.
    say("other", 2, "nix 2.9").await.expect("say");
    sqlx::query!("UPDATE nodes SET last_seen = now() - interval '1 hour' WHERE id = 'other'")
        .execute(pool(&world.db))
        .await
        .expect("time");
    assert_eq!(key().await, expected);

    // What was said of an evaluation is forgotten when it is evaluated anew.
    let eval = world.evaluation("main").await;
    world.db.set_evaluation_reuse(eval.id, &eval.token, "k", Some(false)).await.expect("say");
    let row = async || {
        let row = sqlx::query!("SELECT reuse_key, embeds_commit FROM evaluations WHERE id = $1", eval.id.0);
        let row = row.fetch_one(pool(&world.db)).await.expect("read");
        (row.reuse_key, row.embeds_commit)
    };
    assert_eq!(row().await, (Some("k".to_owned()), Some(false)));
    world.db.release_evaluation(eval.id, &eval.token).await.expect("release");
    world.db.claim_evaluation(&world.node, world.run, &random_token()).await.expect("claim").expect("one");
    assert_eq!(row().await, (None, None));
}
