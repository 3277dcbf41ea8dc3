//! The guarded state machine, and constraints.

use harmonia_core::JobStatus;
use harmonia_db::testing::{TestDatabase, pool};
use harmonia_db::{DbError, DbOptions};

use crate::world::{World, graph};

#[tokio::test]
async fn wrong_urls_are_told_apart() {
    let test = TestDatabase::empty().await;
    let connect = |url: String| async move {
        let url = url.parse().expect("a URL");
        harmonia_db::Db::connect(&DbOptions { url, max_connections: 1 }).await.expect_err("cannot work")
    };
    assert!(matches!(connect("postgres://u@127.0.0.1/x?sslmode=nonsense".to_owned()).await, DbError::Url { .. }));
    let absent = test.url.replace("harmonia_test_", "no_such_");
    assert!(matches!(connect(absent).await, DbError::NoDatabase { .. }));
    let unreachable = connect("postgres://u@127.0.0.1:1/x".to_owned()).await;
    assert!(unreachable.is_transient(), "{unreachable:?}");
    test.db.ping().await.expect("the right one answers");
}

#[tokio::test]
async fn the_database_and_core_have_the_same_transitions() {
    let test = TestDatabase::new().await;
    for from in JobStatus::ALL {
        for to in JobStatus::ALL {
            let may = sqlx::query_scalar!(r#"SELECT job_may_become($1, $2) AS "may!""#, from.as_str(), to.as_str())
                .fetch_one(pool(&test.db))
                .await
                .expect("ask");
            assert_eq!(may, from.may_become(*to), "{from} → {to}");
        }
    }
}

/// Every pair of states, tried on a real row past all functions.
#[tokio::test]
async fn the_trigger_refuses_every_other_transition() {
    let world = World::new().await;
    let eval = world.evaluation("main").await;
    world.insert(&eval, &graph(&[&[]]), &[0]).await.expect("insert");
    let claimed = world.claim_only(0).await;
    for from in JobStatus::ALL {
        for to in JobStatus::ALL.iter().filter(|to| *to != from) {
            let mut transaction = pool(&world.db).begin().await.expect("begin");
            // The row is put into its state past the trigger, then moved with it.
            sqlx::query!("SET LOCAL session_replication_role = replica").execute(&mut *transaction).await.expect("set");
            force(&mut transaction, claimed.job.0, *from).await.expect("any state can be forced");
            sqlx::query!("SET LOCAL session_replication_role = origin").execute(&mut *transaction).await.expect("set");
            let moved = force(&mut transaction, claimed.job.0, *to).await;
            assert_eq!(moved.is_ok(), from.may_become(*to), "{from} → {to}: {moved:?}");
            transaction.rollback().await.expect("rollback");
        }
    }
}

async fn force(connection: &mut sqlx::PgConnection, job: i64, status: JobStatus) -> Result<(), sqlx::Error> {
    let attempt = sqlx::query!("SELECT id, token_hash, node FROM build_attempts WHERE job_id = $1", job)
        .fetch_one(&mut *connection)
        .await?;
    let held = status.is_claimed();
    sqlx::query!(
        "UPDATE build_jobs SET status = $2, failure_kind = CASE WHEN $2 = 'failed' THEN 'build' END,
             finished_at = CASE WHEN $3 THEN now() END, claimed_by = $4, claim_incarnation = $5, claim_token_hash = $6,
             attempt_id = $7
         WHERE id = $1",
        job,
        status.as_str(),
        status.is_terminal(),
        held.then_some(attempt.node),
        held.then_some(1_i64),
        held.then_some(attempt.token_hash),
        held.then_some(attempt.id),
    )
    .execute(&mut *connection)
    .await
    .map(|_| ())
}

#[tokio::test]
async fn constraints_refuse_impossible_rows() {
    let world = World::new().await;
    let eval = world.evaluation("main").await;
    world.insert(&eval, &graph(&[&[], &[]]), &[0, 1]).await.expect("insert");
    let claimed = world.claim(1).await.remove(0);
    let pool = pool(&world.db);
    let job = claimed.job.0;
    // A claim that changes hands, a second running attempt, a counter below zero or without waiting, a kind without failure.
    let other = vec![1_u8; 32];
    let stolen =
        sqlx::query!("UPDATE build_jobs SET claim_token_hash = $2 WHERE id = $1", job, other).execute(pool).await;
    assert!(stolen.is_err());
    let second = sqlx::query!(
        "INSERT INTO build_attempts (job_id, token_hash, node, incarnation, timeout_s, max_silent_s, output_bytes_max)
         VALUES ($1, $2, 'n', 1, 1, 1, 1)",
        job,
        other
    );
    assert!(second.execute(pool).await.is_err());
    // An attempt that is born ended, a token that is too short.
    for (outcome, token) in [("succeeded", other.clone()), ("running", vec![1; 31])] {
        let born = sqlx::query!(
            "INSERT INTO build_attempts (job_id, token_hash, node, incarnation, timeout_s, max_silent_s, output_bytes_max,
                 outcome, finished_at)
             VALUES (77, $1, 'n', 1, 1, 1, 1, $2, CASE WHEN $2 <> 'running' THEN now() END)",
            token,
            outcome
        );
        assert!(born.execute(pool).await.is_err(), "{outcome}");
    }
    // A claim without what it is held by, and one of a job that is not ready.
    for unmet in [0, 1] {
        let bare = sqlx::query!(
            "UPDATE build_jobs SET unmet_deps = $1, status = 'building', claimed_by = 'n', claim_incarnation = 1,
                 claim_token_hash = $2, attempt_id = CASE WHEN $1 = 1 THEN 1 END WHERE status = 'pending'",
            unmet,
            other
        );
        assert!(bare.execute(pool).await.is_err(), "{unmet} unmet");
    }
    assert!(sqlx::query!("UPDATE build_jobs SET priority = -1").execute(pool).await.is_err());
    assert!(sqlx::query!("UPDATE build_jobs SET unmet_deps = -1").execute(pool).await.is_err());
    assert!(sqlx::query!("UPDATE build_jobs SET unmet_deps = 1 WHERE id = $1", job).execute(pool).await.is_err());
    assert!(
        sqlx::query!("UPDATE build_jobs SET failure_kind = 'build' WHERE id = $1", job).execute(pool).await.is_err()
    );
    assert!(sqlx::query!("UPDATE build_attempts SET token_hash = $1", other).execute(pool).await.is_err());
}

#[tokio::test]
async fn a_store_path_never_changes_within_a_generation() {
    let world = World::new().await;
    let eval = world.evaluation("main").await;
    world.insert(&eval, &graph(&[&[]]), &[0]).await.expect("insert");
    let claimed = world.claim_only(0).await;
    world.complete(&claimed).await.expect("complete");
    let pool = pool(&world.db);
    assert!(sqlx::query!("UPDATE store_paths SET nar_hash = 'sha256:other'").execute(pool).await.is_err());
    assert!(sqlx::query!("UPDATE store_paths SET refs = '{x}'").execute(pool).await.is_err());
    assert!(sqlx::query!("UPDATE store_paths SET producing_attempt = 77").execute(pool).await.is_err());
    assert!(sqlx::query!("UPDATE store_paths SET state = 'claimed'").execute(pool).await.is_err());
    assert!(sqlx::query!("UPDATE store_paths SET generation = 2").execute(pool).await.is_err());
    assert!(sqlx::query!("UPDATE store_paths SET leased_until = now()").execute(pool).await.is_ok());
}

#[tokio::test]
async fn api_tokens_are_found_by_hash_and_replaced_by_name() {
    let test = TestDatabase::new().await;
    test.db.create_api_token("cli", [1; 32]).await.expect("create");
    assert_eq!(test.db.api_token_name([1; 32]).await.expect("find"), Some("cli".to_owned()));
    test.db.create_api_token("cli", [2; 32]).await.expect("replace");
    assert_eq!(test.db.api_token_name([1; 32]).await.expect("find"), None);
}
