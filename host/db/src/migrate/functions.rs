//! The SQL functions, triggers and grants: applied whole, in one transaction, whenever the files differ from what the
//! database has. `docs/decisions/0012-functions-in-one-place.md` says why.

use std::fmt::Write as _;

use sha2::{Digest as _, Sha256};
use sqlx::error::DatabaseError;
use sqlx::{Connection as _, PgConnection};

use super::version;
use crate::error::lost_to_another_transaction;

/// The binary that these functions belong to.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// How often replacing is tried when it met other transactions crosswise.
const TRIES: u32 = 12;

macro_rules! files {
    ($($name:literal)*) => {
        &[$(($name, include_str!(concat!("../../../../migrations/functions/", $name, ".sql")))),*]
    };
}

/// `migrations/functions`, in any order: bodies are checked when all are there.
const FILES: &[(&str, &str)] = files! {
    "accounts" "builders" "claims" "counts" "evaluations" "graph" "guards" "healing" "intake" "jobs" "maintenance" "nodes"
    "plugin_kv" "rebuilds" "reporting" "repositories" "roles" "states" "store_paths" "upstream" "visibility" "wanted"
    "withdrawals"
};

const GRANTS: &str = include_str!("../../../../migrations/grants.sql");

/// Makes room for functions whose parameters or result changed: all that was made the last time goes, and the triggers that
/// call it. What else would depend on a function (a view, a default, an index) is none of these files and refuses.
const DROP_ALL: &str = "DO $$
DECLARE
    v_functions oid[] := ARRAY(SELECT to_regprocedure(f)::oid FROM schema_info, unnest(functions) AS f
        WHERE to_regprocedure(f) IS NOT NULL);
    v_trigger record;
BEGIN
    FOR v_trigger IN SELECT tgname, tgrelid::regclass AS of_table FROM pg_trigger
        WHERE NOT tgisinternal AND tgfoid = ANY (v_functions)
    LOOP
        EXECUTE format('DROP TRIGGER %I ON %s', v_trigger.tgname, v_trigger.of_table);
    END LOOP;
    IF cardinality(v_functions) > 0 THEN
        EXECUTE 'DROP FUNCTION ' || (SELECT string_agg(f::regprocedure::text, ', ') FROM unnest(v_functions) AS f);
    END IF;
END
$$";

/// Whatever this transaction has not written is in no file any more. Then every body is checked, and the list kept.
const DROP_STALE: &str = "DO $$
DECLARE
    v_now text[] := ARRAY(SELECT oid::regprocedure::text FROM pg_proc
        WHERE pronamespace = 'public'::regnamespace AND xmin = pg_current_xact_id()::xid ORDER BY 1);
    v_before text[] := (SELECT functions FROM schema_info);
    v_stale record;
BEGIN
    FOR v_stale IN SELECT tgname, tgrelid::regclass AS of_table FROM pg_trigger
        WHERE NOT tgisinternal AND xmin <> pg_current_xact_id()::xid
            AND tgfoid::regprocedure::text = ANY (v_now || v_before)
    LOOP
        EXECUTE format('DROP TRIGGER %I ON %s', v_stale.tgname, v_stale.of_table);
    END LOOP;
    FOR v_stale IN SELECT f AS name FROM unnest(v_before) AS f WHERE f <> ALL (v_now) AND to_regprocedure(f) IS NOT NULL LOOP
        EXECUTE 'DROP FUNCTION ' || v_stale.name;
    END LOOP;
    SET LOCAL check_function_bodies = on;
    PERFORM CASE l.lanname WHEN 'sql' THEN fmgr_sql_validator(p.oid) ELSE plpgsql_validator(p.oid) END
    FROM unnest(v_now) AS f JOIN pg_proc p ON p.oid = f::regprocedure JOIN pg_language l ON l.oid = p.prolang;
    UPDATE schema_info SET functions = v_now;
END
$$";

/// What all files say.
pub(crate) fn digest() -> String {
    let mut hash = Sha256::new();
    for (name, text) in FILES.iter().chain([&("grants", GRANTS)]) {
        hash.update(name);
        hash.update([0]);
        hash.update(text);
        hash.update([0]);
    }
    hash.finalize().iter().fold(String::new(), |mut hex, byte| {
        // Writing to a String cannot fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

/// Whether the database needs the functions of this binary. Those of a newer binary serve an older one, too.
pub(super) fn are_missing(digest_there: Option<&str>, version_there: Option<&str>) -> bool {
    digest_there != Some(digest().as_str()) && version_there.is_none_or(|there| version(there) <= version(VERSION))
}

/// Replaces them when they differ; says whether they did. Call while nobody else migrates, after the tables are there.
pub(super) async fn apply(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    let there =
        sqlx::query!("SELECT functions_digest, functions_version FROM schema_info").fetch_one(&mut *connection).await?;
    if !are_missing(there.functions_digest.as_deref(), there.functions_version.as_deref()) {
        return Ok(false);
    }
    let mut from_nothing = false;
    let mut tries = 1;
    loop {
        match replace(connection, from_nothing).await {
            Ok(()) => return Ok(true),
            Err(error) if !from_nothing && needs_room(&error) => from_nothing = true,
            // Triggers are replaced under locks of their tables, which others may hold in another order.
            Err(error) if tries < TRIES && lost_to_another_transaction(&error) => tries += 1,
            Err(error) => return Err(error),
        }
    }
}

/// Whether a function is there with another result, other names of parameters, or other parameters.
fn needs_room(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(DatabaseError::code);
    matches!(code.as_deref(), Some("42P13" | "42725" | "2BP01"))
}

async fn replace(connection: &mut PgConnection, from_nothing: bool) -> Result<(), sqlx::Error> {
    let mut transaction = connection.begin().await?;
    // Functions call each other, and a file comes before another.
    sqlx::raw_sql("SET LOCAL search_path = public; SET LOCAL check_function_bodies = off")
        .execute(&mut *transaction)
        .await?;
    if from_nothing {
        sqlx::raw_sql(DROP_ALL).execute(&mut *transaction).await?;
    }
    for (_, file) in FILES {
        sqlx::raw_sql(*file).execute(&mut *transaction).await?;
    }
    sqlx::raw_sql(DROP_STALE).execute(&mut *transaction).await?;
    sqlx::raw_sql(GRANTS).execute(&mut *transaction).await?;
    sqlx::query!("UPDATE schema_info SET functions_digest = $1, functions_version = $2", digest(), VERSION)
        .execute(&mut *transaction)
        .await?;
    transaction.commit().await
}

#[cfg(test)]
mod tests {
    use super::{FILES, VERSION, are_missing, digest};

    #[test]
    fn every_file_of_the_folder_is_applied() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../migrations/functions");
        let mut files: Vec<String> = std::fs::read_dir(folder)
            .expect("the folder")
            .map(|file| file.expect("a file").file_name().into_string().expect("UTF-8"))
            .collect();
        files.sort();
        let listed: Vec<String> = FILES.iter().map(|(name, _)| [name, ".sql"].concat()).collect();
        assert_eq!(files, listed);
    }

    #[test]
    fn each_function_stands_in_one_place() {
        let mut heads: Vec<&str> = FILES
            .iter()
            .flat_map(|(_, text)| text.lines())
            .filter_map(|line| line.strip_prefix("CREATE OR REPLACE FUNCTION "))
            .map(|head| head.split('(').next().unwrap_or(head))
            .collect();
        heads.sort_unstable();
        let twice: Vec<&&str> = heads.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| &pair[0]).collect();
        assert!(heads.len() > 100 && twice.is_empty(), "{twice:?}");
    }

    #[test]
    fn functions_of_a_newer_binary_are_left() {
        let ours = digest();
        let cases = [
            (None, None, true),
            (Some("other"), None, true),
            (Some(ours.as_str()), Some(VERSION), false),
            (Some("other"), Some(VERSION), true),
            (Some("other"), Some("0.0.9"), true),
            (Some("other"), Some("999.0.0"), false),
        ];
        for (digest, version, missing) in cases {
            assert_eq!(are_missing(digest, version), missing, "{digest:?} of {version:?}");
        }
    }
}
