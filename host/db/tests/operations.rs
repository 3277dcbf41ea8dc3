//! What operations need of the database: claims whose answer was lost, and limits from the configuration.

#[path = "db/world.rs"]
mod world;

use harmonia_core::JobStatus::{Building, Cancelled, Pending};
use harmonia_core::{Capability, ClaimToken, FailureKind, Incarnation, JobId, NodeId};
use harmonia_db::testing::{pool, random_token};
use harmonia_db::{Db, DbError, JobLimits, NodeRegistration};

use world::{World, graph, new_evaluation, registration};

/// How each attempt at a job ended, in order.
async fn outcomes(world: &World, job: JobId) -> Vec<String> {
    sqlx::query_scalar!("SELECT outcome FROM build_attempts WHERE job_id = $1 ORDER BY id", job.0)
        .fetch_all(pool(&world.db))
        .await
        .expect("read attempts")
}

async fn claim_as(db: &Db, node: &NodeId, jobs: &[JobId], tokens: &[ClaimToken]) -> usize {
    db.claim_jobs(node, Incarnation(1), jobs, tokens).await.expect("claim").len()
}

#[tokio::test]
async fn jobs_claimed_by_a_lost_answer_are_given_back_once_and_nothing_is_counted() {
    let world = World::new().await;
    let eval = world.evaluation("main").await;
    world.insert(&eval, &graph(&[&[], &[], &[0], &[]]), &[1, 2, 3]).await.expect("insert");
    let other = NodeId("other".to_owned());
    world.db.register_node(&registration("other", 1)).await.expect("register");
    let (zero, one, three) = (world.job_id(0).await, world.job_id(1).await, world.job_id(3).await);
    let lost = [random_token(), random_token(), random_token()];
    let (kept, foreign) = (random_token(), random_token());
    assert_eq!(claim_as(&world.db, &world.node, &[zero], &lost).await, 1);
    assert_eq!(claim_as(&world.db, &world.node, &[one], std::slice::from_ref(&kept)).await, 1);
    assert_eq!(claim_as(&world.db, &other, &[three], std::slice::from_ref(&foreign)).await, 1);

    // A node gives back its own claims only, whatever it names; and only those that it names.
    assert_eq!(world.db.revoke_claims(&other, Incarnation(1), &lost).await.expect("revoke"), 0);
    assert_eq!(world.status(0).await, Building);
    let named = [lost.as_slice(), std::slice::from_ref(&foreign)].concat();
    assert_eq!(world.db.revoke_claims(&world.node, world.run, &named).await.expect("revoke"), 1);
    assert_eq!(world.statuses().await, [(0, Pending), (1, Building), (2, Pending), (3, Building)]);
    assert_eq!(outcomes(&world, zero).await, ["aborted"]);
    let job = world.jobs().await.remove(&0).expect("a job");
    assert_eq!((job.retries, job.unmet, world.jobs().await[&2].unmet), (0, 0, 1));
    world.assert_sound().await;

    // Again, and nothing at all, and tokens that never claimed: fine.
    assert_eq!(world.db.revoke_claims(&world.node, world.run, &lost).await.expect("again"), 0);
    assert_eq!(world.db.revoke_claims(&world.node, world.run, &[]).await.expect("nothing"), 0);
    assert_eq!(world.db.revoke_claims(&world.node, world.run, &[random_token()]).await.expect("unknown"), 0);

    // It can be claimed again, at once.
    let again = world.claim_only(0).await;
    world.complete(&again).await.expect("complete");
    assert_eq!(outcomes(&world, zero).await, ["aborted", "succeeded"]);
    assert_eq!(world.db.revoke_claims(&world.node, world.run, &[again.token]).await.expect("ended"), 0);
    world.assert_sound().await;
}

#[tokio::test]
async fn a_claim_that_arrives_after_it_was_revoked_takes_nothing() {
    let world = World::new().await;
    let eval = world.evaluation("main").await;
    world.insert(&eval, &graph(&[&[], &[]]), &[0, 1]).await.expect("insert");
    let jobs = [world.job_id(0).await, world.job_id(1).await];
    let tokens = [random_token(), random_token()];
    assert_eq!(world.db.revoke_claims(&world.node, world.run, &tokens[1..]).await.expect("revoke"), 0);
    assert_eq!(claim_as(&world.db, &world.node, &jobs, &tokens).await, 0, "one of the tokens is void");
    assert_eq!(world.statuses().await, [(0, Pending), (1, Pending)]);

    world.db.create_evaluation(&new_evaluation(world.project, "late")).await.expect("queue");
    let token = random_token();
    assert!(!world.db.revoke_evaluation(&world.node, world.run, &token).await.expect("revoke"));
    assert_eq!(world.db.claim_evaluation(&world.node, world.run, &token).await.expect("claim"), None);
    assert!(world.db.claim_evaluation(&world.node, world.run, &random_token()).await.expect("claim").is_some());
}

/// A claim that the server is still working on when its connection breaks: what it takes is found.
#[tokio::test]
async fn a_claim_that_is_in_flight_ends_before_it_is_revoked() {
    let world = World::new().await;
    let eval = world.evaluation("main").await;
    world.insert(&eval, &graph(&[&[]]), &[0]).await.expect("insert");
    let job = world.job_id(0).await;
    let token = random_token();
    let slow = world.test.single_connection().await;
    sqlx::query!("BEGIN").execute(pool(&slow)).await.expect("begin");
    assert_eq!(claim_as(&slow, &world.node, &[job], std::slice::from_ref(&token)).await, 1);

    let (db, node, run) = (world.db.clone(), world.node.clone(), world.run);
    let revoking = tokio::spawn(async move { db.revoke_claims(&node, run, &[token]).await });
    until_it_waits(&world, &revoking).await;
    sqlx::query!("COMMIT").execute(pool(&slow)).await.expect("commit");
    assert_eq!(revoking.await.expect("no panic").expect("revoke"), 1);
    assert_eq!(world.status(0).await, Pending);

    // The other way round: the claim comes while its token is being revoked.
    let token = random_token();
    sqlx::query!("BEGIN").execute(pool(&slow)).await.expect("begin");
    let revoked = slow.revoke_claims(&world.node, run, std::slice::from_ref(&token)).await;
    assert_eq!(revoked.expect("revoke"), 0);
    let (db, node) = (world.db.clone(), world.node.clone());
    let claiming = tokio::spawn(async move { claim_as(&db, &node, &[job], &[token]).await });
    until_it_waits(&world, &claiming).await;
    sqlx::query!("COMMIT").execute(pool(&slow)).await.expect("commit");
    assert_eq!(claiming.await.expect("no panic"), 0);
    assert_eq!(world.status(0).await, Pending);
    world.assert_sound().await;
}

/// Until a statement waits for a lock.
async fn until_it_waits<T>(world: &World, statement: &tokio::task::JoinHandle<T>) {
    loop {
        let waiting = sqlx::query_scalar!(
            r#"SELECT EXISTS (SELECT FROM pg_stat_activity
               WHERE datname = current_database() AND wait_event_type = 'Lock') AS "waits!""#
        );
        if waiting.fetch_one(pool(&world.db)).await.expect("look") {
            return;
        }
        assert!(!statement.is_finished(), "it does not wait for the other transaction");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn what_was_cancelled_meanwhile_stays_cancelled() {
    let world = World::new().await;
    let eval = world.evaluation("main").await;
    world.insert(&eval, &graph(&[&[]]), &[0]).await.expect("insert");
    let lost = world.claim_only(0).await;
    world.db.cancel_job(lost.job, "somebody").await.expect("cancel");
    assert_eq!(world.db.revoke_claims(&world.node, world.run, &[lost.token]).await.expect("revoke"), 0);
    assert_eq!(world.status(0).await, Cancelled);
    world.assert_sound().await;
}

#[tokio::test]
async fn an_evaluation_claimed_by_a_lost_answer_is_queued_again() {
    let world = World::new().await;
    let lost = world.evaluation("main").await;
    world.db.register_node(&registration("other", 1)).await.expect("register");
    let other = NodeId("other".to_owned());
    assert!(!world.db.revoke_evaluation(&other, Incarnation(1), &lost.token).await.expect("another node's"));
    assert!(world.db.evaluation_held(lost.id, &lost.token).await.expect("held"));
    assert!(world.db.revoke_evaluation(&world.node, world.run, &lost.token).await.expect("revoke"));
    assert!(!world.db.revoke_evaluation(&world.node, world.run, &lost.token).await.expect("again"));
    assert!(!world.db.evaluation_held(lost.id, &lost.token).await.expect("held"));
    let claimed = world.db.claim_evaluation(&other, Incarnation(1), &random_token()).await.expect("claim");
    let claimed = claimed.expect("it is queued");
    assert_eq!((claimed.id, claimed.lost_count), (lost.id, 0));
    world.assert_sound().await;
}

#[tokio::test]
async fn only_the_current_process_of_a_node_revokes() {
    let world = World::new().await;
    let eval = world.evaluation("main").await;
    world.insert(&eval, &graph(&[&[]]), &[0]).await.expect("insert");
    let claimed = world.claim_only(0).await;
    let former = world.db.revoke_claims(&world.node, Incarnation(7), std::slice::from_ref(&claimed.token)).await;
    assert!(matches!(former, Err(DbError::Refused { .. })), "{former:?}");
    let former = world.db.revoke_evaluation(&world.node, Incarnation(7), &eval.token).await;
    assert!(matches!(former, Err(DbError::Refused { .. })), "{former:?}");
    assert_eq!(world.status(0).await, Building);

    // Each by its own role.
    for (capability, builds) in [(Capability::Builder, true), (Capability::Evaluator, false)] {
        let db = world.test.connect_as(capability).await;
        let name = NodeId(capability.to_string());
        let node = NodeRegistration { capabilities: vec![capability], ..registration(&name.0, 1) };
        db.register_node(&node).await.expect("register");
        let claims = db.revoke_claims(&name, Incarnation(1), &[random_token()]).await;
        let evaluation = db.revoke_evaluation(&name, Incarnation(1), &random_token()).await;
        assert_eq!((claims.is_ok(), evaluation.is_ok()), (builds, !builds), "{claims:?} {evaluation:?}");
    }
}

const CONFIGURED: JobLimits =
    JobLimits { timeout_s: 100, max_silent_s: 20, output_bytes_max: 3_000, log_bytes_max: 400 };

#[tokio::test]
async fn configured_limits_hold_for_projects_without_their_own() {
    let world = World::new().await;
    let frontend = world.test.connect_as(Capability::Frontend).await;
    let graph = graph(&[&[], &[], &[]]);
    let eval = world.evaluation("main").await;
    world.insert(&eval, &graph, &[0]).await.expect("insert");
    frontend.set_default_limits(&CONFIGURED).await.expect("set");
    // The project is older than these limits; its next job has them.
    world.insert(&eval, &graph, &[1]).await.expect("insert");
    sqlx::query!("UPDATE projects SET timeout_s = 5000, log_bytes_max = 7 WHERE id = $1", world.project.0)
        .execute(pool(&world.db))
        .await
        .expect("limits of its own");
    world.insert(&eval, &graph, &[2]).await.expect("insert");
    let limits: Vec<JobLimits> = world.claim(3).await.into_iter().map(|job| job.limits).collect();
    let initial =
        JobLimits { timeout_s: 14_400, max_silent_s: 1_800, output_bytes_max: 4 << 30, log_bytes_max: 64 << 20 };
    assert_eq!(limits, [initial, CONFIGURED, JobLimits { timeout_s: 5_000, log_bytes_max: 7, ..CONFIGURED }]);

    let nothing = frontend.set_default_limits(&JobLimits { max_silent_s: 0, ..CONFIGURED }).await;
    assert!(matches!(nothing, Err(DbError::Refused { .. })), "{nothing:?}");
    for capability in [Capability::Builder, Capability::Evaluator, Capability::Signer] {
        let db = world.test.connect_as(capability).await;
        assert!(db.set_default_limits(&CONFIGURED).await.is_err(), "{capability} sets limits");
    }
}

#[tokio::test]
async fn higher_configured_limits_reopen_what_failed_by_the_lower_ones() {
    let world = World::new().await;
    world.db.set_default_limits(&CONFIGURED).await.expect("set");
    let graph = graph(&[&[], &[], &[]]);
    let eval = world.evaluation("main").await;
    world.insert(&eval, &graph, &[0, 1, 2]).await.expect("insert");
    let kinds = [FailureKind::Timeout, FailureKind::Limit, FailureKind::Build];
    for (claimed, kind) in world.claim(3).await.iter().zip(kinds) {
        world.fail(claimed, Some(kind)).await.expect("fail");
    }
    let revived = async |branch: &str| {
        let eval = world.evaluation(branch).await;
        world.insert(&eval, &graph, &[0, 1, 2]).await.expect("insert").revived
    };
    assert_eq!(revived("same").await, 0);
    let lower = JobLimits { timeout_s: 10, max_silent_s: 10, output_bytes_max: 10, log_bytes_max: 10 };
    world.db.set_default_limits(&lower).await.expect("set");
    assert_eq!(revived("lower").await, 0);
    world.db.set_default_limits(&JobLimits { max_silent_s: 30, ..CONFIGURED }).await.expect("set");
    assert_eq!(revived("silence").await, 1);
    world.db.set_default_limits(&JobLimits { output_bytes_max: 5_000, ..CONFIGURED }).await.expect("set");
    assert_eq!(revived("size").await, 1);
    let limits: Vec<JobLimits> = world.claim(3).await.into_iter().map(|job| job.limits).collect();
    // Of each the most generous that live evaluations ask: the last one names what still waits.
    let large = JobLimits { output_bytes_max: 5_000, ..CONFIGURED };
    assert_eq!(limits, [JobLimits { max_silent_s: 30, ..large }, large]);
    world.assert_sound().await;
}
