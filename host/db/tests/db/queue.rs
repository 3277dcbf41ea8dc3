//! Claims, completion, failures, retries, cancel and rebuild, one story each.

use harmonia_core::JobStatus::{Building, Cancelled, DepFailed, Failed, Pending, Succeeded, Uploading};
use harmonia_core::signer_api::AttemptUsage;
use harmonia_core::{FailureKind, Incarnation, NodeId};
use harmonia_db::testing::{pool, random_token};
use harmonia_db::{DbError, FailOutcome, LogTail, RetryPolicy};

use crate::world::{World, batch, drv_path, graph, new_paths, number_of, out_path, registration};

#[tokio::test]
async fn a_diamond_is_built_dependencies_first() {
    let world = World::new().await;
    let graph = graph(&[&[], &[0], &[0], &[1, 2]]);
    let eval = world.evaluation("main").await;
    let outcome = world.insert(&eval, &graph, &[3]).await.expect("insert");
    assert_eq!((outcome.new_jobs, outcome.missing.len()), (4, 0));
    assert_eq!(world.jobs().await.values().map(|job| job.unmet).collect::<Vec<_>>(), [0, 1, 1, 2]);

    let zero = world.claim_only(0).await;
    assert_eq!(zero.name, "d0");
    assert_eq!((zero.limits.timeout_s, zero.limits.log_bytes_max), (14_400, 64 << 20));
    assert_eq!(world.complete(&zero).await.expect("complete"), 2);
    let both = world.claim(10).await;
    assert_eq!(both.len(), 2);
    assert_eq!(world.complete(&both[0]).await.expect("complete"), 0);
    assert!(world.claim(10).await.is_empty(), "3 still waits");
    assert_eq!(world.complete(&both[1]).await.expect("complete"), 1);
    let top = world.claim_only(3).await;
    world.complete(&top).await.expect("complete");
    assert!(world.statuses().await.iter().all(|(_, status)| *status == Succeeded));
    // Idempotent: a second signer finds nothing left to do.
    let again = world.db.publish_outputs(top.job, &[out_path(3)], &AttemptUsage::default(), None).await.expect("again");
    assert_eq!(again.readied, 0);
    world.assert_sound().await;

    // The same graph again builds nothing, and the attribute is cached.
    let second = world.evaluation("other").await;
    let walked = world.walk(&second, &graph, &[3]).await.expect("walk");
    assert!(walked.derivations.is_empty());
    world.insert_batch(&second, &walked).await.expect("insert");
    let cached = sqlx::query_scalar!("SELECT cached FROM eval_attrs WHERE eval_id = $1", second.id.0)
        .fetch_one(pool(&world.db))
        .await
        .expect("the attribute");
    assert!(cached);
}

#[tokio::test]
async fn what_completes_a_job_holds_its_current_token() {
    let world = World::new().await;
    let eval = world.evaluation("main").await;
    world.insert(&eval, &graph(&[&[]]), &[0]).await.expect("insert");
    let first = world.claim_only(0).await;
    world.db.release_attempt(first.attempt, &first.token, "drained").await.expect("release");
    let second = world.claim_only(0).await;
    // The void token is refused at every step, also together with the new attempt's id.
    for attempt in [first.attempt, second.attempt] {
        let stale = &first.token;
        assert!(matches!(world.db.attempt_uploading(attempt, stale).await, Err(DbError::StaleClaim)));
        let outputs = new_paths(&world.db, &second, 1).await;
        assert!(matches!(
            world.db.claim_outputs(attempt, stale, &outputs, &harmonia_db::Alongside::default()).await,
            Err(DbError::StaleClaim)
        ));
        assert!(matches!(world.db.release_attempt(attempt, stale, "").await, Err(DbError::StaleClaim)));
        assert!(matches!(world.db.attempt_scope(attempt, stale).await, Err(DbError::StaleClaim)));
        assert!(matches!(
            world.db.report_missing_path(attempt, stale, &out_path(0), false).await,
            Err(DbError::StaleClaim)
        ));
        let usage = AttemptUsage::default();
        let failed = world.db.fail_attempt(attempt, stale, &crate::world::failure(None), &usage, None).await;
        assert!(matches!(failed, Err(DbError::StaleClaim)));
    }
    let held = [(first.attempt, first.token.clone()), (second.attempt, second.token.clone())];
    assert_eq!(world.db.void_claims(&held).await.expect("void"), [first.attempt]);
    world.complete(&second).await.expect("complete");
    // Nothing is published without a claim of all outputs.
    assert_eq!(world.status(0).await, Succeeded);
}

#[tokio::test]
async fn a_build_failure_fails_all_that_is_above_and_names_the_cause() {
    let world = World::new().await;
    let graph = graph(&[&[], &[0], &[1], &[], &[2, 3]]);
    let eval = world.evaluation("main").await;
    world.insert(&eval, &graph, &[4]).await.expect("insert");
    let claimed = world.claim(10).await;
    let zero = claimed.iter().find(|c| number_of(c.drv_path.as_str()) == 0).expect("0 is ready");
    let outcome = world.fail(zero, Some(FailureKind::Build)).await.expect("fail");
    assert_eq!(outcome, FailOutcome::Failed { dependents: 3 });
    let jobs = world.jobs().await;
    assert_eq!(jobs[&0].status, Failed);
    for number in [1, 2, 4] {
        assert_eq!((jobs[&number].status, jobs[&number].cause), (DepFailed, Some(jobs[&0].id)));
    }
    assert_eq!(jobs[&3].status, Building);
    world.assert_sound().await;

    // A new evaluation keeps the failure, and what it adds above is dep-failed at once.
    let bigger = crate::world::graph(&[&[], &[0], &[1], &[], &[2, 3], &[0]]);
    let second = world.evaluation("other").await;
    world.insert(&second, &bigger, &[5, 4]).await.expect("insert");
    assert_eq!(world.status(0).await, Failed);
    assert_eq!(world.jobs().await[&5].cause, Some(jobs[&0].id));
    assert_eq!(world.status(4).await, DepFailed);
    world.assert_sound().await;

    // Rebuilding an attribute resets what it failed for, with everything above, at priority 100.
    assert_eq!(world.db.rebuild_job(jobs[&4].id, "me").await.expect("rebuild"), 5);
    let jobs = world.jobs().await;
    for number in [0, 1, 2, 4, 5] {
        assert_eq!((jobs[&number].status, jobs[&number].priority), (Pending, 100), "{number}");
    }
    world.assert_sound().await;
    let zero = world.claim_only(0).await;
    world.complete(&zero).await.expect("complete");
    assert_eq!(world.claim(10).await.len(), 2, "1 and 5 are ready");
}

#[tokio::test]
async fn transient_failures_are_tried_three_times_then_count_as_infrastructure() {
    let world = World::new().await;
    let eval = world.evaluation("main").await;
    world.insert(&eval, &graph(&[&[], &[0]]), &[1]).await.expect("insert");
    for retry in 0..2 {
        let claimed = world.claim_only(0).await;
        assert_eq!(claimed.retry_count, retry);
        assert!(matches!(world.fail(&claimed, None).await.expect("fail"), FailOutcome::Retried { .. }));
    }
    let claimed = world.claim_only(0).await;
    assert_eq!(world.fail(&claimed, None).await.expect("fail"), FailOutcome::Failed { dependents: 1 });
    assert_eq!(world.jobs().await[&0].kind, Some(FailureKind::Infrastructure));
    world.assert_sound().await;
    // The next evaluation tries again.
    let second = world.evaluation("other").await;
    let outcome = world.insert(&second, &graph(&[&[], &[0]]), &[1]).await.expect("insert");
    assert_eq!(outcome.revived, 2);
    let jobs = world.jobs().await;
    assert_eq!((jobs[&0].status, jobs[&0].retries, jobs[&1].status, jobs[&1].unmet), (Pending, 0, Pending, 1));
    world.assert_sound().await;
}

#[tokio::test]
async fn a_delayed_retry_is_not_claimable_before_its_time() {
    let world = World::new().await;
    let eval = world.evaluation("main").await;
    world.insert(&eval, &graph(&[&[]]), &[0]).await.expect("insert");
    let claimed = world.claim_only(0).await;
    let slow = world.db.clone().with_retry_policy(RetryPolicy::default());
    let failure = crate::world::failure(None);
    let outcome = slow.fail_attempt(claimed.attempt, &claimed.token, &failure, &AttemptUsage::default(), None).await;
    assert!(matches!(outcome, Ok(FailOutcome::Retried { .. })));
    assert!(world.claim(1).await.is_empty());
    assert!(
        world.db.claim_jobs(&world.node, world.run, &[claimed.job], &[random_token()]).await.expect("claim").is_empty()
    );
}

#[tokio::test]
async fn a_retry_prefers_another_node() {
    let world = World::new().await;
    world.db.register_node(&registration("m", 1)).await.expect("register");
    let eval = world.evaluation("main").await;
    world.insert(&eval, &graph(&[&[]]), &[0]).await.expect("insert");
    let claimed = world.claim_only(0).await;
    world.fail(&claimed, None).await.expect("fail");
    assert!(world.claim(1).await.is_empty(), "m could take it");
    let other = NodeId("m".to_owned());
    let tokens = [random_token()];
    let taken = world.db.claim_jobs(&other, Incarnation(1), &[claimed.job], &tokens).await.expect("claim");
    assert_eq!(taken.len(), 1);
}

#[tokio::test]
async fn a_node_claims_only_what_it_offers_and_only_in_its_current_run() {
    let world = World::new().await;
    let mut graph = graph(&[&[], &[], &[], &[]]);
    graph[1].system = "aarch64-linux";
    graph[2].features = vec!["kvm".to_owned()];
    graph[3].system = "builtin";
    let eval = world.evaluation("main").await;
    world.insert(&eval, &graph, &[0, 1, 2, 3]).await.expect("insert");
    let ids: Vec<_> = world.jobs().await.values().map(|job| job.id).collect();
    // Asked for by id, past the classes.
    let tokens: Vec<_> = (0..4).map(|_| random_token()).collect();
    let refused = world.db.claim_jobs(&world.node, Incarnation(2), &ids, &tokens).await;
    assert!(matches!(refused, Err(DbError::Refused { .. })), "{refused:?}");
    let unknown = world.db.claim_jobs(&NodeId("who".to_owned()), world.run, &ids, &tokens).await;
    assert!(matches!(unknown, Err(DbError::Refused { .. })), "{unknown:?}");
    world.db.set_draining(&world.node, world.run, true).await.expect("drain");
    assert!(world.db.claim_jobs(&world.node, world.run, &ids, &tokens).await.expect("claim").is_empty());
    world.db.set_draining(&world.node, world.run, false).await.expect("undrain");
    let claimed = world.db.claim_jobs(&world.node, world.run, &ids, &tokens).await.expect("claim");
    assert_eq!(claimed.iter().map(|c| number_of(c.drv_path.as_str())).collect::<Vec<_>>(), [0, 2, 3]);
    // And each got its own token, in order.
    assert_eq!(
        claimed.iter().map(|c| c.token.to_hex()).collect::<Vec<_>>(),
        tokens[..3].iter().map(harmonia_core::ClaimToken::to_hex).collect::<Vec<_>>()
    );
}

#[tokio::test]
async fn heads_come_from_every_project_that_has_any_and_boosts_come_first() {
    let world = World::new().await;
    let graph = graph(&[&[], &[], &[], &[], &[0]]);
    let kind = harmonia_db::ProjectKind::Local;
    let other =
        world.db.ensure_project(&harmonia_db::NewProject { name: "q".to_owned(), kind }).await.expect("a project");
    let eval = world.evaluation("main").await;
    world.insert(&eval, &graph, &[0, 1, 2]).await.expect("insert");
    let second = world.evaluation_of(other, "main").await;
    world.insert(&second, &graph, &[3, 4]).await.expect("insert");
    let two = world.job_id(2).await;
    sqlx::query!("UPDATE build_jobs SET priority = 100 WHERE id = $1", two.0)
        .execute(pool(&world.db))
        .await
        .expect("boost");
    let classes = world.db.resolve_classes(&[crate::world::SYSTEM.to_owned()], &[]).await.expect("classes");
    let heads = world.db.queue_heads(&classes, 2).await.expect("heads");
    let jobs = world.jobs().await;
    let mut numbers: Vec<usize> =
        heads.candidates.iter().map(|c| *jobs.iter().find(|(_, job)| job.id == c.job).expect("known").0).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [0, 2, 3], "two of p, the boosted one among them; the only ready one of q");
    assert_eq!(heads.projects.len(), 2);
}

#[tokio::test]
async fn cancelling_a_job_takes_what_waits_for_it_and_what_only_it_needed() {
    let world = World::new().await;
    // 2 needs 0 and 1; 3 needs 2; 4 needs 1 alone.
    let graph = graph(&[&[], &[], &[0, 1], &[2], &[1]]);
    let eval = world.evaluation("main").await;
    world.insert(&eval, &graph, &[3, 4]).await.expect("insert");
    let job = world.job_id(2).await;
    assert_eq!(world.db.cancel_job(job, "me").await.expect("cancel"), 3, "2, 3 above, 0 below");
    assert_eq!(world.statuses().await, [(0, Cancelled), (1, Pending), (2, Cancelled), (3, Cancelled), (4, Pending)]);
    world.assert_sound().await;
    assert_eq!(world.db.cancel_job(job, "me").await.expect("cancel"), 0, "it is over");

    // Rebuilding the attribute brings back what it needs.
    assert_eq!(world.db.rebuild_failed(eval.id, "me").await.expect("rebuild"), 3);
    assert!(world.statuses().await.iter().all(|(_, status)| *status == Pending));
    world.assert_sound().await;
    // Wanted by a second branch, it is not for one to cancel.
    let second = world.evaluation("other").await;
    world.insert(&second, &graph, &[2]).await.expect("insert");
    let refused = world.db.cancel_job(job, "me").await.expect_err("refused");
    assert!(refused.to_string().contains("local/p main, local/p other"), "{refused}");
    assert!(matches!(world.db.cancel_job(harmonia_core::JobId(999), "me").await, Err(DbError::NotFound { .. })));
}

#[tokio::test]
async fn a_cancelled_running_build_is_voided_but_not_one_whose_outputs_are_accepted() {
    let world = World::new().await;
    let eval = world.evaluation("main").await;
    world.insert(&eval, &graph(&[&[], &[]]), &[0, 1]).await.expect("insert");
    let claimed = world.claim(2).await;
    let outputs = new_paths(&world.db, &claimed[1], 1).await;
    world
        .db
        .claim_outputs(claimed[1].attempt, &claimed[1].token, &outputs, &harmonia_db::Alongside::default())
        .await
        .expect("claim outputs");
    // Evaluation 1 and job 0.
    assert_eq!(world.db.cancel_evaluation(eval.id, "me").await.expect("cancel"), 2);
    assert_eq!(world.statuses().await, [(0, Cancelled), (1, Uploading)]);
    let held: Vec<_> = claimed.iter().map(|c| (c.attempt, c.token.clone())).collect();
    assert_eq!(world.db.void_claims(&held).await.expect("void"), [claimed[0].attempt]);
    assert!(!world.db.evaluation_held(eval.id, &eval.token).await.expect("held"));
    let refused = world.fail(&claimed[1], None).await;
    assert!(matches!(refused, Err(DbError::Refused { .. })), "{refused:?}");
    // Any signer finishes it.
    let unfinished = world.db.unfinished_publications(10).await.expect("unfinished");
    assert_eq!(unfinished.iter().map(|u| (u.job, u.rows.len())).collect::<Vec<_>>(), [(claimed[1].job, 1)]);
    world.db.publish_outputs(claimed[1].job, &[out_path(1)], &AttemptUsage::default(), None).await.expect("publish");
    assert_eq!(world.status(1).await, Succeeded);
    world.assert_sound().await;
}

#[tokio::test]
async fn the_first_writer_of_a_path_wins_and_the_difference_is_recorded() {
    let world = World::new().await;
    // 1 shares its output path with 0 and has another beside it.
    let mut graph = graph(&[&[], &[], &[1]]);
    graph[1].outputs = vec![0, 1];
    let eval = world.evaluation("main").await;
    world.insert(&eval, &graph, &[0, 2]).await.expect("insert");
    let claimed = world.claim(2).await;
    world.complete(&claimed[0]).await.expect("complete");
    assert_eq!(world.status(1).await, Building, "one of its outputs is still missing");
    let wrong = world
        .db
        .claim_outputs(
            claimed[1].attempt,
            &claimed[1].token,
            &new_paths(&world.db, &claimed[0], 2).await,
            &harmonia_db::Alongside::default(),
        )
        .await;
    assert!(matches!(wrong, Err(DbError::Refused { .. })), "not all of its outputs: {wrong:?}");
    let answer = world
        .db
        .claim_outputs(
            claimed[1].attempt,
            &claimed[1].token,
            &new_paths(&world.db, &claimed[1], 2).await,
            &harmonia_db::Alongside::default(),
        )
        .await
        .expect("claim");
    assert_eq!(answer.divergent, [out_path(0)]);
    let variant = |path| answer.rows.iter().find(|row| row.path == path).expect("a row").nar_hash.ends_with('1');
    assert!(variant(out_path(0)) && !variant(out_path(1)));
    let paths = [out_path(0), out_path(1)];
    world.db.publish_outputs(claimed[1].job, &paths, &AttemptUsage::default(), None).await.expect("publish");
    let findings = sqlx::query_scalar!(r#"SELECT count(*) AS "n!" FROM reproducibility_findings"#)
        .fetch_one(pool(&world.db))
        .await;
    assert_eq!(findings.expect("count"), 1);
    world.assert_sound().await;
}

#[tokio::test]
async fn a_pending_job_succeeds_when_its_output_turns_up_by_another_derivation() {
    let world = World::new().await;
    let mut graph = graph(&[&[], &[0], &[1]]);
    graph[1].outputs = vec![0]; // the same path, another way to get it
    graph[0].deps = vec![];
    let eval = world.evaluation("main").await;
    world.insert(&eval, &graph, &[2]).await.expect("insert");
    let zero = world.claim_only(0).await;
    assert_eq!(world.complete(&zero).await.expect("complete"), 2, "1 was ready for a moment, then 2");
    assert_eq!(world.statuses().await, [(0, Succeeded), (1, Succeeded), (2, Pending)]);
    world.claim_only(2).await;
    world.assert_sound().await;
}

#[tokio::test]
async fn log_tails_are_bounded_and_kept_for_held_attempts_only() {
    let world = World::new().await;
    let eval = world.evaluation("main").await;
    world.insert(&eval, &graph(&[&[]]), &[0]).await.expect("insert");
    let claimed = world.claim_only(0).await;
    let tail = |token| LogTail { attempt: claimed.attempt, token, start_offset: 10, bytes: vec![b'x'; 70_000] };
    world.db.write_log_tails(&world.node, &[tail(random_token())]).await.expect("write");
    let read = || async {
        sqlx::query!("SELECT start_offset, length(bytes) AS \"length!\" FROM build_log_tails")
            .fetch_optional(pool(&world.db))
            .await
            .expect("read")
            .map(|row| (row.start_offset, row.length))
    };
    assert_eq!(read().await, None, "the token is not its");
    world.db.write_log_tails(&world.node, &[tail(claimed.token.clone())]).await.expect("write");
    assert_eq!(read().await, Some((10 + 70_000 - 65_536, 65_536)));
}

#[tokio::test]
async fn a_batch_that_leans_on_what_nobody_has_is_refused_whole() {
    let world = World::new().await;
    let graph = graph(&[&[], &[0]]);
    let eval = world.evaluation("main").await;
    let outcome = world.insert_batch(&eval, &batch(&graph, &[1], &[1])).await.expect("insert");
    assert_eq!(outcome.missing, [drv_path(0)]);
    assert!(world.jobs().await.is_empty());
    let attrs = sqlx::query_scalar!(r#"SELECT count(*) AS "n!" FROM eval_attrs"#).fetch_one(pool(&world.db)).await;
    assert_eq!(attrs.expect("count"), 0);
    // What an upstream cache has needs no job, and is no hindrance.
    let mut with_upstream = batch(&graph, &[0, 1], &[1]);
    with_upstream.derivations[0].available = true;
    // Nobody takes the evaluator's word for it.
    let registered = [harmonia_db::testing::checked(&with_upstream.derivations[0])];
    world.db.register_derivations(&registered).await.expect("registers");
    let outcome = world.db.insert_batch(eval.id, &eval.token, &with_upstream).await.expect("refused");
    assert_eq!(outcome.missing, [drv_path(0)]);
    crate::upstream::remember(&world, &eval, &[(0, true)]).await;
    let outcome = world.db.insert_batch(eval.id, &eval.token, &with_upstream).await.expect("insert");
    assert_eq!((outcome.new_jobs, outcome.missing.len()), (1, 0));
    world.claim_only(1).await;
    world.assert_sound().await;
}

#[tokio::test]
async fn jobs_are_counted_right_before_and_after_their_marks_are_taken() {
    let world = World::new().await;
    let eval = world.evaluation("main").await;
    let chain = graph(&[&[], &[0], &[], &[]]);
    world.insert(&eval, &chain, &[1, 2, 3]).await.expect("insert");
    world.assert_sound().await;
    let claimed = world.claim(3).await;
    world.complete(&claimed[0]).await.expect("complete");
    world.fail(&claimed[1], Some(FailureKind::Build)).await.expect("fail");
    world.assert_sound().await;
    assert!(world.db.take_job_marks().await.expect("take") > 0);
    world.assert_sound().await;
    let failed = claimed[1].job;
    world.db.rebuild_job(failed, "somebody").await.expect("rebuild");
    world.db.cancel_job(claimed[2].job, "somebody").await.expect("cancel");
    world.assert_sound().await;
    world.db.take_job_marks().await.expect("take");
    world.assert_sound().await;
    sqlx::query!("DELETE FROM eval_attrs").execute(pool(&world.db)).await.expect("delete");
    sqlx::query!("DELETE FROM build_jobs WHERE id = $1", failed.0).execute(pool(&world.db)).await.expect("delete");
    world.assert_sound().await;
}

#[tokio::test]
async fn the_queue_tells_of_each_job_what_its_own_page_tells() {
    let world = World::new().await;
    let none: &[usize] = &[];
    let apart = graph(&[none; 9]);
    let other = harmonia_db::NewProject { name: "local/other".to_owned(), kind: harmonia_db::ProjectKind::Local };
    let other = world.db.ensure_project(&other).await.expect("a project");
    let eval = world.evaluation("main").await;
    world.insert(&eval, &apart, &[0, 1, 2]).await.expect("insert");
    let second = world.evaluation_of(other, "main").await;
    world.insert(&second, &apart, &[3, 4]).await.expect("insert");
    world.insert(&eval, &apart, &[5, 6, 7, 8]).await.expect("insert");
    for number in [4, 7] {
        let job = world.job_id(number).await;
        world.db.cancel_job(job, "somebody").await.expect("cancel");
        world.db.rebuild_job(job, "somebody").await.expect("boost");
    }
    let now = time::OffsetDateTime::now_utc();
    let queue = world.db.view_queue(100, now).await.expect("the queue");
    assert_eq!(queue.waiting.len(), 9);
    assert_eq!(queue.waiting[8].why, ["8 jobs that came first are ready for the same nodes"]);
    for job in queue.waiting {
        let own = world.db.why(&[job.id], now).await.expect("why").remove(&job.id).expect("it waits");
        assert_eq!(job.why, own, "{}", job.name);
    }
}
