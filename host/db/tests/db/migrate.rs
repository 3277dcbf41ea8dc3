//! Migrating: from nothing, from older functions, from what cannot be migrated.

use harmonia_db::DbError;
use harmonia_db::testing::{TestDatabase, pool};

use crate::world::World;

#[tokio::test]
async fn migrations_apply_to_an_empty_database_once_even_when_two_nodes_start_together() {
    let test = TestDatabase::empty().await;
    let missing = test.db.check_schema().await.expect_err("nothing is there");
    assert!(matches!(&missing, DbError::SchemaTooOld { missing } if missing.len() > 5), "{missing:?}");
    let (one, two) = tokio::join!(test.db.migrate(), test.db.migrate());
    let (one, two) = (one.expect("migrate").applied, two.expect("migrate").applied);
    assert!(!one.is_empty() || !two.is_empty());
    test.db.check_schema().await.expect("current");
    assert_eq!(test.db.migrate().await.expect("again").applied, Vec::<String>::new());

    sqlx::query!("UPDATE schema_info SET oldest_binary = '999.0.0'").execute(pool(&test.db)).await.expect("update");
    let newer = test.db.check_schema().await.expect_err("too new");
    assert!(newer.to_string().contains("999.0.0"), "{newer}");
}

/// Functions, triggers and rights as the database has them.
async fn catalog(db: &harmonia_db::Db) -> Vec<String> {
    sqlx::query_scalar!(
        r#"SELECT line AS "line!" FROM (
            SELECT pg_get_functiondef(p.oid) || coalesce(p.proacl::text, 'default') AS line FROM pg_proc p
            WHERE p.pronamespace = 'public'::regnamespace
            UNION ALL SELECT pg_get_triggerdef(t.oid) || t.tgenabled::text FROM pg_trigger t WHERE NOT t.tgisinternal
            UNION ALL SELECT c.relname || coalesce((SELECT string_agg(a::text, ',' ORDER BY a::text) FROM unnest(c.relacl) a
                WHERE a::text NOT LIKE (current_user || '=%')), '')
            FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'v', 'S')
            UNION ALL SELECT a.attrelid::regclass || '.' || a.attname || (SELECT string_agg(x::text, ',' ORDER BY x::text) FROM unnest(a.attacl) x)
            FROM pg_attribute a WHERE cardinality(a.attacl) > 0
            UNION ALL SELECT functions_digest || functions_version || functions::text FROM schema_info
        ) l ORDER BY line COLLATE "C""#
    )
    .fetch_all(pool(db))
    .await
    .expect("the catalog")
}

async fn change(db: &harmonia_db::Db, statements: &'static str) {
    sqlx::raw_sql(statements).execute(pool(db)).await.expect(statements);
}

/// What an older version may have left: a body, something superfluous, something missing, and rights of other days.
const OLDER: &str = "
    CREATE OR REPLACE FUNCTION is_live_root(p_drv text) RETURNS boolean LANGUAGE sql STABLE AS 'SELECT false';
    CREATE FUNCTION superfluous() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
    CREATE TRIGGER superfluous AFTER INSERT ON settings FOR EACH ROW EXECUTE FUNCTION superfluous();
    CREATE TRIGGER other_days AFTER UPDATE ON nodes FOR EACH ROW EXECUTE FUNCTION superfluous();
    DROP TRIGGER build_jobs_refuse_count ON build_jobs;
    CREATE TRIGGER former_name BEFORE UPDATE ON store_paths FOR EACH ROW EXECUTE FUNCTION guard_store_path();
    DROP FUNCTION void_claims, drv_available(text, boolean);
    GRANT SELECT ON api_tokens TO harmonia_builder;
    GRANT SELECT (token_hash) ON build_attempts TO harmonia_evaluator;
    GRANT EXECUTE ON FUNCTION sweep_invariants TO harmonia_builder;
    REVOKE EXECUTE ON FUNCTION claim_jobs FROM harmonia_builder;
    REVOKE SELECT ON nodes FROM harmonia_signer;
    UPDATE schema_info SET functions_digest = 'older', functions_version = '0.0.9', functions = functions || '{superfluous()}'";

/// Other results, names and numbers of parameters: what PostgreSQL does not replace.
const OTHER_SIGNATURES: &str = "
    DROP FUNCTION wanted_jobs();
    CREATE FUNCTION wanted_jobs() RETURNS bigint LANGUAGE sql AS 'SELECT 1::bigint';
    DROP FUNCTION cancel_jobs;
    CREATE FUNCTION cancel_jobs(p_ids bigint[], p_running boolean, p_since timestamptz, p_message text) RETURNS bigint
        LANGUAGE sql AS 'SELECT 1::bigint';
    DROP FUNCTION set_draining;
    CREATE FUNCTION set_draining(p_node text) RETURNS void LANGUAGE sql AS '';
    UPDATE schema_info SET functions_digest = 'older', functions = array_remove(functions || '{set_draining(text)}',
        (SELECT f FROM unnest(functions) AS f WHERE f LIKE 'set_draining(%'))";

#[tokio::test]
async fn an_upgrade_from_older_functions_ends_as_a_fresh_database() {
    let fresh = TestDatabase::new().await;
    let expected = catalog(&fresh.db).await;
    for (kind, older) in
        [("bodies", vec![OLDER]), ("signatures", vec![OTHER_SIGNATURES]), ("both", vec![OLDER, OTHER_SIGNATURES])]
    {
        let test = TestDatabase::new().await;
        for statements in older {
            change(&test.db, statements).await;
        }
        assert_ne!(catalog(&test.db).await, expected, "{kind}: it is older");
        let missing = test.db.check_schema().await.expect_err("nodes of this version need their own");
        assert!(matches!(&missing, DbError::SchemaTooOld { missing } if missing == &["functions"]), "{missing:?}");
        // Two nodes at once: one replaces them, the other finds nothing to do.
        let (one, two) = tokio::join!(test.db.migrate(), test.db.migrate());
        let mut applied = [one.expect("migrate").applied, two.expect("migrate").applied];
        applied.sort();
        assert_eq!(applied, [vec![], vec!["functions".to_owned()]], "{kind}");
        let found = catalog(&test.db).await;
        let differing = expected.iter().zip(&found).find(|(expected, found)| expected != found);
        assert!(found == expected, "{kind}: {differing:?}, {} and {} entries", expected.len(), found.len());
        test.db.check_schema().await.expect("current");
    }
}

#[tokio::test]
async fn what_others_made_stays_and_newer_functions_are_left() {
    let test = TestDatabase::new().await;
    change(&test.db, "CREATE FUNCTION of_the_operator() RETURNS integer LANGUAGE sql AS 'SELECT 1'").await;
    change(&test.db, "UPDATE schema_info SET functions_digest = 'older'").await;
    assert_eq!(test.db.migrate().await.expect("migrate").applied, ["functions"]);
    change(&test.db, "SELECT of_the_operator()").await;
    // A node that is upgraded last meets the functions of those before it.
    change(&test.db, "UPDATE schema_info SET functions_digest = 'newer', functions_version = '999.0.0'").await;
    test.db.check_schema().await.expect("those of a newer binary serve an older one");
    assert_eq!(test.db.migrate().await.expect("migrate").applied, Vec::<String>::new());
}

/// Nodes work on while another one brings new functions: they see the old ones or the new ones, never none.
#[tokio::test]
async fn functions_are_replaced_under_those_who_call_them() {
    let world = World::new().await;
    let done = std::sync::atomic::AtomicBool::new(false);
    let calling = async {
        let mut calls = 0;
        while !done.load(std::sync::atomic::Ordering::Relaxed) {
            world.evaluation(&format!("branch-{calls}")).await;
            world.db.sweep_invariants().await.expect("functions are there");
            calls += 1;
        }
        calls
    };
    let replacing = async {
        for _ in 0..5 {
            change(&world.db, "UPDATE schema_info SET functions_digest = 'older'").await;
            world.db.migrate().await.expect("migrate");
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    };
    let (calls, ()) = tokio::join!(calling, replacing);
    assert!(calls > 0);
}

#[tokio::test]
async fn a_database_of_other_tables_is_refused() {
    let test = TestDatabase::new().await;
    change(&test.db, "UPDATE _sqlx_migrations SET checksum = '\\x00' WHERE version = 1").await;
    for refused in [test.db.check_schema().await.expect_err("check"), test.db.migrate().await.expect_err("migrate")] {
        assert!(matches!(&refused, DbError::OtherLayout { migration } if migration == "1 roles"), "{refused:?}");
        assert!(refused.to_string().contains("use an empty database"), "{refused}");
    }
}
