//! A database of its own for each test, on the cluster that `HARMONIA_TEST_POSTGRES_URL` names.
//!
//! Start at [`TestDatabase::new`]. The migrated schema is built once a cluster and version of `migrations/` and cloned
//! from then on. Dropping the value drops the database. [`played`] plays the nodes that work on it.

pub mod fake_node;
pub mod way;

use std::str::FromStr;

use harmonia_core::{Capability, ClaimToken, EvalId};
use harmonia_nix::StorePath;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

use crate::connection::{Db, Patience};
use crate::error::DbError;
use crate::migrate::{self, MIGRATOR};
use crate::{BatchOutcome, CheckedDerivation, GraphBatch, GraphDerivation};

/// Jobs that one transaction of a withdrawal looks at.
pub const WITHDRAWAL_BATCH: usize = crate::withdrawals::BATCH;

/// The variable that names the cluster.
pub const POSTGRES_URL_VARIABLE: &str = "HARMONIA_TEST_POSTGRES_URL";

/// A fresh database with the current schema; gone when dropped.
#[derive(Debug)]
pub struct TestDatabase {
    /// The database.
    pub db: Db,
    /// Its URL, for tests that start processes.
    pub url: String,
    name: String,
    admin: PgConnectOptions,
}

/// The pool behind a [`Db`], to look at rows and to try what its role must not do.
pub fn pool(db: &Db) -> &sqlx::PgPool {
    &db.pool
}

/// A new claim token.
pub fn random_token() -> ClaimToken {
    ClaimToken::from_random(rand::random())
}

/// Nobody reads or writes attributes of evaluations while this is held.
#[derive(Debug)]
pub struct HeldAttributes(sqlx::Transaction<'static, sqlx::Postgres>);

impl HeldAttributes {
    /// Takes hold of them.
    ///
    /// # Panics
    /// When the database does not answer.
    pub async fn hold(db: &Db) -> Self {
        let mut transaction = db.pool.begin().await.expect("a connection");
        sqlx::query!("LOCK TABLE eval_attrs").execute(&mut *transaction).await.expect("locked");
        Self(transaction)
    }

    /// Lets go.
    ///
    /// # Panics
    /// When the database does not answer.
    pub async fn release(self) {
        self.0.rollback().await.expect("released");
    }
}

/// Lets time pass for everything that waits to be reported, delivered, synced or polled, by moving it into the past.
///
/// # Panics
/// When the database does not answer.
pub async fn time_passes(db: &Db, time: std::time::Duration) {
    // What dies in the middle of a transaction may hold rows for a moment, and wait for ours.
    db.run("let time pass", || {
        sqlx::query!(
            "WITH marks AS (UPDATE report_marks SET marked_at = marked_at - $1::interval),
                 jobs AS (UPDATE job_marks SET marked_at = marked_at - $1::interval),
                 computed AS (UPDATE commit_reports SET computed_at = computed_at - $1::interval),
                 pauses AS (UPDATE delivery_pauses SET until = until - $1::interval),
                 statuses AS (UPDATE commit_statuses SET next_attempt_at = next_attempt_at - $1::interval,
                     leased_until = leased_until - $1::interval, delivered_at = delivered_at - $1::interval, desired_at = desired_at - $1::interval),
                 comments AS (UPDATE forge_comments SET next_attempt_at = next_attempt_at - $1::interval, leased_until = leased_until - $1::interval),
                 evaluations AS (UPDATE evaluations SET not_before = not_before - $1::interval, waiting_since = waiting_since - $1::interval
                     WHERE not_before IS NOT NULL),
                 notifications AS (UPDATE outbox SET next_attempt_at = next_attempt_at - $1::interval, leased_until = leased_until - $1::interval)
             SELECT 1 AS one",
            crate::connection::interval(time)
        )
        .fetch_one(&db.pool)
    })
    .await
    .expect("time passes");
}

/// Lets time pass for deliveries, syncs, polls, webhooks, what was said of permissions and the heads of pull requests: what
/// waits for it is due.
///
/// # Panics
/// When the database does not answer.
pub async fn projects_time_passes(db: &Db, time: std::time::Duration) {
    let by = crate::connection::interval(time);
    sqlx::query!(
        "WITH deliveries AS (UPDATE webhook_deliveries SET next_attempt_at = next_attempt_at - $1::interval,
                 leased_until = leased_until - $1::interval),
             syncs AS (UPDATE forge_syncs SET wanted_at = wanted_at - $1::interval, not_before = not_before - $1::interval,
                 leased_until = leased_until - $1::interval),
             permissions AS (UPDATE forge_permissions SET asked_at = asked_at - $1::interval),
             heads AS (UPDATE pull_request_heads SET arrived_at = arrived_at - $1::interval)
         UPDATE projects SET next_poll_at = next_poll_at - $1::interval, hook_next_at = hook_next_at - $1::interval,
             leased_until = leased_until - $1::interval, hook_leased_until = hook_leased_until - $1::interval",
        by
    )
    .execute(&db.pool)
    .await
    .expect("time passes");
}

/// Inserts a batch after a signer has registered its derivations and, of those that it calls available, an upstream cache was
/// found to have the outputs.
///
/// # Panics
/// When a derivation is known as something else.
pub async fn insert_graph(
    db: &Db,
    eval: EvalId,
    token: &ClaimToken,
    batch: &GraphBatch,
) -> Result<BatchOutcome, DbError> {
    let rows: Vec<CheckedDerivation> = batch.derivations.iter().map(checked).collect();
    let differing = db.register_derivations(&rows).await?;
    assert_eq!(differing, [], "known as something else");
    let available = batch.derivations.iter().filter(|derivation| derivation.available);
    upstream_has(db, available.flat_map(|derivation| &derivation.outputs).filter_map(|output| output.path.as_ref()))
        .await;
    db.insert_batch(eval, token, batch).await
}

/// A derivation as if a signer had read it from its file.
pub fn checked(derivation: &GraphDerivation) -> CheckedDerivation {
    CheckedDerivation {
        drv_path: derivation.drv_path.clone(),
        modulo_hash: "played".to_owned(),
        name: derivation.name.clone(),
        system: derivation.system.clone(),
        required_features: derivation.required_features.clone(),
        outputs: derivation.outputs.clone(),
        inputs: derivation.inputs.clone(),
        sources: derivation.sources.clone(),
    }
}

/// An upstream cache was found to have these paths.
///
/// # Panics
/// When the database does not answer.
pub async fn upstream_has(db: &Db, paths: impl Iterator<Item = &StorePath>) {
    let paths: Vec<String> = paths.map(ToString::to_string).collect();
    sqlx::query!(
        "INSERT INTO upstream_paths (path, cache, present, expires_at)
         SELECT DISTINCT p, 'https://up.example/', true, now() + interval '1 day' FROM unnest($1::text[]) AS p ORDER BY p
         ON CONFLICT (path, cache) DO UPDATE SET present = true, fault = NULL, expires_at = excluded.expires_at",
        &paths
    )
    .execute(&db.pool)
    .await
    .expect("an upstream cache has these");
}

/// As if builders that offer this system had been away for longer than evaluations count it.
///
/// # Panics
/// When the database does not answer.
pub async fn long_ago(db: &Db, system: &str) {
    for (table, matches) in
        [("job_classes", "system = $1"), ("builder_systems", "system = $1"), ("nodes", "$1 = ANY (systems)")]
    {
        let statement = format!("UPDATE {table} SET last_seen = now() - interval '31 days' WHERE {matches}");
        sqlx::query(AssertSqlSafe(statement)).bind(system).execute(&db.pool).await.expect("time passes");
    }
}

/// The node was last heard of that long ago.
///
/// # Panics
/// When the database does not answer.
pub async fn falls_silent(db: &Db, node: &str, since: std::time::Duration) {
    sqlx::query!(
        "UPDATE nodes SET last_seen = now() - $2::interval WHERE id = $1",
        node,
        crate::connection::interval(since)
    )
    .execute(&db.pool)
    .await
    .expect("time passes");
}

/// From now on nodes of this capability may not call this function: the database refuses it, and not for a while only.
///
/// # Panics
/// When there is no such function, or the database does not answer.
pub async fn forbid(db: &Db, capability: Capability, function: &str) {
    let statement = format!("REVOKE EXECUTE ON FUNCTION {function} FROM harmonia_{}", capability.as_str());
    sqlx::query(AssertSqlSafe(statement)).execute(&db.pool).await.expect("revoked");
}

/// Cancels an evaluation as somebody who crashes before any of its jobs is cancelled.
///
/// # Panics
/// When the database does not answer, or the evaluation was over.
pub async fn cancel_and_crash(db: &Db, eval: EvalId) {
    let said = sqlx::query("SELECT 1 WHERE cancel_evaluation($1, 'who crashed')").bind(eval.0).fetch_optional(&db.pool);
    said.await.expect("cancel").expect("it was live");
}

/// Until it is dropped, nobody gets through a sweep of the invariants.
///
/// # Panics
/// When the database does not answer.
pub async fn hold_up_sweeps(db: &Db) -> impl Drop + use<> {
    let mut held = db.pool.begin().await.expect("begin");
    sqlx::query!("LOCK TABLE eval_expected_attrs IN ACCESS EXCLUSIVE MODE").execute(&mut *held).await.expect("lock");
    held
}

/// What forges should show: (commit, context, state, description), in order.
///
/// # Panics
/// When the database does not answer.
pub async fn desired_statuses(db: &Db) -> Vec<(String, String, String, String)> {
    let rows = sqlx::query!(
        "SELECT commit_sha, context, desired_state, desired_description FROM commit_statuses ORDER BY commit_sha, context"
    );
    let rows = rows.fetch_all(&db.pool).await.expect("read desired statuses");
    rows.into_iter().map(|row| (row.commit_sha, row.context, row.desired_state, row.desired_description)).collect()
}

impl TestDatabase {
    /// Makes one with the schema applied.
    ///
    /// # Panics
    /// When the cluster is missing or does not answer: a test cannot go on without.
    pub async fn new() -> Self {
        let (admin_url, admin) = admin_options();
        let mut connection = connect(&admin).await;
        let template = template(&mut connection, &admin).await;
        let name = random_name();
        // Shared, so that nobody drops the template meanwhile.
        run(&mut connection, "SELECT pg_advisory_lock_shared(hashtext('harmonia test template'))").await;
        create_database(&mut connection, &name, Some(&template)).await;
        connection.close().await.expect("close the admin connection");
        Self::open(&admin_url, admin, name).await
    }

    /// Makes an empty one, without any schema.
    ///
    /// # Panics
    /// As [`Self::new`].
    pub async fn empty() -> Self {
        let (admin_url, admin) = admin_options();
        let name = random_name();
        let mut connection = connect(&admin).await;
        create_database(&mut connection, &name, None).await;
        connection.close().await.expect("close the admin connection");
        Self::open(&admin_url, admin, name).await
    }

    /// Copies a database, rows and all. Closes its connections, since PostgreSQL copies only what nobody uses.
    ///
    /// # Panics
    /// As [`Self::new`].
    pub async fn copy_of(source: &Self) -> Self {
        source.db.close().await;
        let (admin_url, admin) = admin_options();
        let mut connection = connect(&admin).await;
        let name = random_name();
        create_database(&mut connection, &name, Some(&source.name)).await;
        connection.close().await.expect("close the admin connection");
        Self::open(&admin_url, admin, name).await
    }

    /// Another handle on the database with a single connection: `BEGIN` on its pool makes all that follows one transaction.
    ///
    /// # Panics
    /// When the server is away.
    pub async fn single_connection(&self) -> Db {
        let options = self.admin.clone().database(&self.name);
        let pool = PgPoolOptions::new().max_connections(1).idle_timeout(None).max_lifetime(None);
        Db::connect_with(options, pool, Patience::default()).await.expect("connect to the test database")
    }

    async fn open(admin_url: &str, admin: PgConnectOptions, name: String) -> Self {
        let options = admin.clone().database(&name);
        let db = Db::connect_with(options, PgPoolOptions::new().max_connections(16), Patience::default())
            .await
            .expect("connect to the test database");
        Self { db, url: with_database(admin_url, &name), name, admin }
    }

    /// Connects as the role of one capability, to try what it must not do.
    ///
    /// # Panics
    /// When the role does not exist or the server is away.
    pub async fn connect_as(&self, capability: Capability) -> Db {
        let role = ["harmonia_", capability.as_str()].concat();
        let pool = PgPoolOptions::new().max_connections(4).after_connect(move |connection, _| {
            let role = role.clone();
            Box::pin(async move {
                sqlx::query_scalar!("SELECT set_config('session_authorization', $1, false)", role)
                    .fetch_one(connection)
                    .await
                    .map(|_| ())
            })
        });
        let options = self.admin.clone().database(&self.name);
        Db::connect_with(options, pool, Patience::default()).await.expect("connect as a role")
    }
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        let (name, admin) = (self.name.clone(), self.admin.clone());
        // A runtime of its own, since a test's runtime may be gone or single-threaded by now.
        let dropper = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let mut connection = connect(&admin).await;
                let statement =
                    sqlx::query_scalar!("SELECT format('DROP DATABASE IF EXISTS %I WITH (FORCE)', $1::text)", name)
                        .fetch_one(&mut connection)
                        .await
                        .expect("quote a name")
                        .expect("text");
                sqlx::query(AssertSqlSafe(statement)).execute(&mut connection).await.expect("drop the test database");
            });
        });
        let dropped = dropper.join().is_ok();
        assert!(dropped || std::thread::panicking(), "the test database {} was not dropped", self.name);
    }
}

fn admin_options() -> (String, PgConnectOptions) {
    let url = std::env::var(POSTGRES_URL_VARIABLE).unwrap_or_else(|_| {
        panic!("{POSTGRES_URL_VARIABLE} is not set: run the tests with `./dev test`, which starts a PostgreSQL")
    });
    let options = PgConnectOptions::from_str(&url).expect("HARMONIA_TEST_POSTGRES_URL is a PostgreSQL URL");
    (url, options.application_name("harmonia-test"))
}

fn random_name() -> String {
    format!("harmonia_test_{}_{:016x}", std::process::id(), rand::random::<u64>())
}

/// `postgres://user@host/postgres?host=…` with another database.
fn with_database(url: &str, name: &str) -> String {
    let (base, query) = url.split_once('?').map_or((url, None), |(base, query)| (base, Some(query)));
    let authority = base.find("://").map_or(0, |at| at + 3);
    let end = base[authority..].find('/').map_or(base.len(), |at| authority + at);
    let query = query.map(|query| format!("?{query}")).unwrap_or_default();
    format!("{}/{name}{query}", &base[..end])
}

async fn connect(options: &PgConnectOptions) -> PgConnection {
    PgConnection::connect_with(options)
        .await
        .expect("PostgreSQL of HARMONIA_TEST_POSTGRES_URL answers (see `./dev test`)")
}

async fn run(connection: &mut PgConnection, statement: &'static str) {
    sqlx::query(statement).execute(connection).await.expect(statement);
}

async fn create_database(connection: &mut PgConnection, name: &str, template: Option<&str>) {
    let statement = sqlx::query_scalar!(
        "SELECT format('CREATE DATABASE %I TEMPLATE %I', $1::text, $2::text)",
        name,
        template.unwrap_or("template0")
    )
    .fetch_one(&mut *connection)
    .await
    .expect("quote names")
    .expect("text");
    sqlx::query(AssertSqlSafe(statement)).execute(connection).await.expect("create a database");
}

/// The name of a database with the current schema, made if need be. The name holds a digest of all migrations.
async fn template(connection: &mut PgConnection, admin: &PgConnectOptions) -> String {
    let digest = MIGRATOR
        .iter()
        .flat_map(|m| m.checksum.iter().copied())
        .chain(migrate::functions::digest().into_bytes())
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    let name = format!("harmonia_template_{digest:016x}");
    if database_exists(connection, &name).await {
        return name;
    }
    run(connection, "SELECT pg_advisory_lock(hashtext('harmonia test template'))").await;
    if !database_exists(connection, &name).await {
        // Made under another name, so that one killed half-way is never taken for a template.
        let draft = random_name();
        create_database(connection, &draft, None).await;
        let mut fresh = connect(&admin.clone().database(&draft)).await;
        migrate::apply(&mut fresh).await.expect("migrations apply");
        // Tests look at what they do as anybody does.
        run(&mut fresh, "UPDATE default_limits SET local_public = true").await;
        fresh.close().await.expect("close the template");
        let statement =
            sqlx::query_scalar!("SELECT format('ALTER DATABASE %I RENAME TO %I', $1::text, $2::text)", draft, name)
                .fetch_one(&mut *connection)
                .await
                .expect("quote names")
                .expect("text");
        sqlx::query(AssertSqlSafe(statement)).execute(&mut *connection).await.expect("name the template");
    }
    run(connection, "SELECT pg_advisory_unlock(hashtext('harmonia test template'))").await;
    name
}

async fn database_exists(connection: &mut PgConnection, name: &str) -> bool {
    sqlx::query_scalar!(r#"SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1) AS "exists!""#, name)
        .fetch_one(connection)
        .await
        .expect("list databases")
}

#[cfg(test)]
mod tests {
    use super::with_database;

    #[test]
    fn the_database_is_replaced_and_the_rest_kept() {
        let url = "postgres://u:p@localhost/postgres?host=/tmp/s";
        assert_eq!(with_database(url, "x"), "postgres://u:p@localhost/x?host=/tmp/s");
        assert_eq!(with_database("postgres://h:5432/postgres", "x"), "postgres://h:5432/x");
        assert_eq!(with_database("postgres://h", "x"), "postgres://h/x");
    }
}
