//! Applying migrations and, after them, the functions, and refusing schemas that this binary does not understand.

pub(crate) mod functions;

use std::collections::HashMap;
use std::time::Duration;

use sqlx::migrate::Migrator;
use sqlx::{Connection as _, PgConnection};

use crate::connection::Db;
use crate::error::DbError;

/// The tables: all migrations, embedded.
pub(crate) static MIGRATOR: Migrator = sqlx::migrate!("../../migrations");

/// What a migration run did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Migrated {
    /// Names of the migrations applied just now, in order, and at the end [`FUNCTIONS`] if those changed.
    pub applied: Vec<String>,
}

/// What [`Migrated`] and [`DbError::SchemaTooOld`] call functions, triggers and grants.
const FUNCTIONS: &str = "functions";

/// Applies missing migrations, then the functions if they differ; says whether they did.
pub(crate) async fn apply(connection: &mut PgConnection) -> Result<bool, DbError> {
    // A newer binary may have migrated further; `check_schema` says whether we may stay.
    let mut migrator = Migrator { migrations: MIGRATOR.migrations.clone(), ..Migrator::DEFAULT };
    migrator.set_ignore_missing(true).set_locking(false);
    migrator.run_direct(None, connection, false).await.map_err(|source| DbError::Migrate { source })?;
    functions::apply(connection).await.map_err(|source| DbError::from_sqlx("replace the functions", source))
}

impl Db {
    /// Applies what is missing. Two nodes that start at once do not race: the second waits, then finds nothing to do.
    pub async fn migrate(&self) -> Result<Migrated, DbError> {
        let mut connection = sqlx::PgConnection::connect_with(&self.connect)
            .await
            .map_err(|source| DbError::from_sqlx("connect for the migration", source))?;
        // Waiting for the other node's migration is no lock to give up on.
        sqlx::query!("SELECT set_config('lock_timeout', '0', false) AS locks, set_config('statement_timeout', '0', false) AS statements")
            .fetch_one(&mut connection)
            .await
            .map_err(|source| DbError::from_sqlx("prepare the migration", source))?;
        sqlx::query!("SELECT pg_advisory_lock(hashtext('harmonia-ci migrate'))")
            .execute(&mut connection)
            .await
            .map_err(|source| DbError::from_sqlx("lock the migrations", source))?;
        let before = self.applied().await?;
        let run = tokio::time::timeout(Duration::from_hours(1), apply(&mut connection)).await;
        let replaced = run.unwrap_or_else(|_| {
            Err(DbError::Refused { reason: "the migration did not end within an hour".to_owned() })
        })?;
        // Closing the connection releases the lock.
        connection.close().await.map_err(|source| DbError::from_sqlx("end the migration", source))?;
        let after = self.applied().await?;
        let new = MIGRATOR.iter().filter(|m| after.contains_key(&m.version) && !before.contains_key(&m.version));
        let applied = new.map(migration_name).chain(replaced.then(|| FUNCTIONS.to_owned())).collect();
        Ok(Migrated { applied })
    }

    /// Refuses a schema that is older than this binary needs, or that no longer supports it.
    pub async fn check_schema(&self) -> Result<(), DbError> {
        let applied = self.applied().await?;
        let mut missing: Vec<String> =
            MIGRATOR.iter().filter(|m| !applied.contains_key(&m.version)).map(migration_name).collect();
        if !missing.is_empty() {
            missing.push(FUNCTIONS.to_owned());
            return Err(DbError::SchemaTooOld { missing });
        }
        let info = self
            .run("read the schema's version", || {
                sqlx::query!("SELECT oldest_binary, functions_digest, functions_version FROM schema_info")
                    .fetch_one(&self.pool)
            })
            .await?;
        if functions::are_missing(info.functions_digest.as_deref(), info.functions_version.as_deref()) {
            return Err(DbError::SchemaTooOld { missing: vec![FUNCTIONS.to_owned()] });
        }
        let oldest_binary = info.oldest_binary;
        if version(env!("CARGO_PKG_VERSION")) < version(&oldest_binary) {
            return Err(DbError::SchemaTooNew { oldest_binary });
        }
        Ok(())
    }

    /// Versions and checksums of the migrations that were applied. Refuses a database whose tables were made by other
    /// migrations under our names: it is of a development version, and nothing leads from there to here.
    async fn applied(&self) -> Result<HashMap<i64, Vec<u8>>, DbError> {
        let exists = self
            .run("look for migrations", || {
                sqlx::query_scalar!(r#"SELECT to_regclass('_sqlx_migrations') IS NOT NULL AS "exists!""#)
                    .fetch_one(&self.pool)
            })
            .await?;
        if !exists {
            return Ok(HashMap::new());
        }
        // The table is sqlx's own and not part of our migrations, so the macro cannot check this one.
        let rows: Vec<(i64, Vec<u8>)> = self
            .run("read applied migrations", || {
                sqlx::query_as("SELECT version, checksum FROM _sqlx_migrations WHERE success").fetch_all(&self.pool)
            })
            .await?;
        let applied: HashMap<i64, Vec<u8>> = rows.into_iter().collect();
        let differs = |m: &&sqlx::migrate::Migration| applied.get(&m.version).is_some_and(|sum| *sum != *m.checksum);
        match MIGRATOR.iter().find(differs) {
            Some(other) => Err(DbError::OtherLayout { migration: migration_name(other) }),
            None => Ok(applied),
        }
    }
}

fn migration_name(migration: &sqlx::migrate::Migration) -> String {
    [&migration.version.to_string(), " ", &migration.description].concat()
}

/// Numbers of `1.2.3`, so that 0.10 is newer than 0.9.
fn version(text: &str) -> Vec<u64> {
    text.split(['.', '-', '+']).map_while(|part| part.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::version;

    #[test]
    fn versions_compare_by_number() {
        assert!(version("0.9.1") < version("0.10.0"));
        assert!(version("1.0.0") <= version("1.0.0"));
        assert!(version("2.0.0") > version("1.99.99"));
    }
}
