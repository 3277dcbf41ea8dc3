//! Applying migrations, and refusing schemas that this binary does not understand.

use std::collections::HashSet;
use std::time::Duration;

use sqlx::Connection as _;
use sqlx::migrate::Migrator;

use crate::connection::Db;
use crate::error::DbError;

/// All migrations, embedded.
pub(crate) static MIGRATOR: Migrator = sqlx::migrate!("../../migrations");

/// What a migration run did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Migrated {
    /// Names of the migrations applied just now, in order.
    pub applied: Vec<String>,
}

impl Db {
    /// Applies what is missing. Two nodes that start at once do not race: the second waits, then finds nothing to do.
    pub async fn migrate(&self) -> Result<Migrated, DbError> {
        let mut connection = sqlx::PgConnection::connect_with(&self.connect)
            .await
            .map_err(|source| DbError::from_sqlx("connect for the migration", source))?;
        // Waiting for the other node's migration is no lock to give up on.
        sqlx::query!("SET lock_timeout = 0")
            .execute(&mut connection)
            .await
            .map_err(|source| DbError::from_sqlx("prepare the migration", source))?;
        sqlx::query!("SELECT pg_advisory_lock(hashtext('harmonia-ci migrate'))")
            .execute(&mut connection)
            .await
            .map_err(|source| DbError::from_sqlx("lock the migrations", source))?;
        let before = self.applied_versions().await?;
        // A newer binary may have migrated further; `check_schema` says whether we may stay.
        let mut migrator = Migrator { migrations: MIGRATOR.migrations.clone(), ..Migrator::DEFAULT };
        migrator.set_ignore_missing(true).set_locking(false);
        let run =
            tokio::time::timeout(Duration::from_hours(1), migrator.run_direct(None, &mut connection, false)).await;
        match run {
            Ok(Ok(())) => {}
            Ok(Err(source)) => return Err(DbError::Migrate { source }),
            Err(_) => return Err(DbError::Refused { reason: "the migration did not end within an hour".to_owned() }),
        }
        // Closing the connection releases the lock.
        connection.close().await.map_err(|source| DbError::from_sqlx("end the migration", source))?;
        let after = self.applied_versions().await?;
        let applied = MIGRATOR
            .iter()
            .filter(|m| after.contains(&m.version) && !before.contains(&m.version))
            .map(migration_name)
            .collect();
        Ok(Migrated { applied })
    }

    /// Refuses a schema that is older than this binary needs, or that no longer supports it.
    pub async fn check_schema(&self) -> Result<(), DbError> {
        let applied = self.applied_versions().await?;
        let missing: Vec<String> =
            MIGRATOR.iter().filter(|m| !applied.contains(&m.version)).map(migration_name).collect();
        if !missing.is_empty() {
            return Err(DbError::SchemaTooOld { missing });
        }
        let oldest_binary = self
            .run("read the schema's version", || {
                sqlx::query_scalar!("SELECT oldest_binary FROM schema_info").fetch_one(&self.pool)
            })
            .await?;
        if version(env!("CARGO_PKG_VERSION")) < version(&oldest_binary) {
            return Err(DbError::SchemaTooNew { oldest_binary });
        }
        Ok(())
    }

    async fn applied_versions(&self) -> Result<HashSet<i64>, DbError> {
        let exists = self
            .run("look for migrations", || {
                sqlx::query_scalar!(r#"SELECT to_regclass('_sqlx_migrations') IS NOT NULL AS "exists!""#)
                    .fetch_one(&self.pool)
            })
            .await?;
        if !exists {
            return Ok(HashSet::new());
        }
        // The table is sqlx's own and not part of our migrations, so the macro cannot check this one.
        let versions: Vec<i64> = self
            .run("read applied migrations", || {
                sqlx::query_scalar("SELECT version FROM _sqlx_migrations WHERE success").fetch_all(&self.pool)
            })
            .await?;
        Ok(versions.into_iter().collect())
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
