//! What can go wrong with the database, told apart by what the caller should do.

use sqlx::error::DatabaseError;

/// Raised by our SQL functions (`migrations/functions`): a claim that is no longer held.
const STALE_CLAIM: &str = "HC001";
/// Raised by our SQL functions: no such row.
const NOT_FOUND: &str = "HC002";
/// Raised by our SQL functions: understood, but not allowed as things stand.
const REFUSED: &str = "HC003";

/// An error of the database layer.
#[derive(Debug, thiserror::Error)]
pub enum DbError {
    /// PostgreSQL cannot be reached, is starting or stopping, or the connection broke. Try again later.
    #[error("{}", unavailable(source))]
    Unavailable {
        /// What the driver said.
        #[source]
        source: sqlx::Error,
    },
    /// The server refuses this user or password.
    #[error("PostgreSQL refuses the login: check user, password and pg_hba.conf")]
    Credentials {
        /// What the server said.
        #[source]
        source: sqlx::Error,
    },
    /// The server has no such database.
    #[error("the database does not exist: create it (createdb) and run `harmonia-ci migrate`")]
    NoDatabase {
        /// What the server said.
        #[source]
        source: sqlx::Error,
    },
    /// The URL is none.
    #[error("the database URL is malformed: expected postgres://user@host/database")]
    Url {
        /// Where it goes wrong.
        #[source]
        source: sqlx::Error,
    },
    /// The claim token is void: another holder, reaped, cancelled or ended. Drop the work.
    #[error("the claim is no longer held: drop this work")]
    StaleClaim,
    /// No such row.
    #[error("{what} does not exist")]
    NotFound {
        /// What was looked for.
        what: String,
    },
    /// Understood, but not possible as things stand.
    #[error("{reason}")]
    Refused {
        /// Why, and what to do instead.
        reason: String,
    },
    /// Migrations are missing.
    #[error("the database schema is too old, {} migration(s) are missing (first: {}): run `harmonia-ci migrate`", missing.len(), missing.first().map_or("", String::as_str))]
    SchemaTooOld {
        /// Migrations to apply, in order.
        missing: Vec<String>,
    },
    /// The schema moved on beyond this binary.
    #[error("the database schema needs harmonia-ci {oldest_binary} or newer, this is {}: upgrade this node", env!("CARGO_PKG_VERSION"))]
    SchemaTooNew {
        /// The oldest version that may use it.
        oldest_binary: String,
    },
    /// The tables are those of a development version, from before what is there now.
    #[error(
        "the database was made by a development version of harmonia-ci (its migration {migration} differs) and cannot be brought up to date: use an empty database"
    )]
    OtherLayout {
        /// The first that differs.
        migration: String,
    },
    /// A migration did not apply.
    #[error("could not migrate the database")]
    Migrate {
        /// Which, and why.
        #[source]
        source: sqlx::migrate::MigrateError,
    },
    /// A row holds what this program never writes.
    #[error("unexpected value in the database: {what}")]
    Corrupt {
        /// Where, and what.
        what: String,
    },
    /// Any other failure of a statement: a bug, or a missing grant.
    #[error("could not {what}")]
    Query {
        /// What was being done.
        what: &'static str,
        /// What the driver or the server said.
        #[source]
        source: sqlx::Error,
    },
}

impl DbError {
    /// Sorts what the driver says; `what` completes the sentence "could not …".
    pub(crate) fn from_sqlx(what: &'static str, source: sqlx::Error) -> Self {
        if matches!(
            source,
            sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed | sqlx::Error::WorkerCrashed
        ) || matches!(source, sqlx::Error::Tls(_) | sqlx::Error::Protocol(_))
        {
            return Self::Unavailable { source };
        }
        if matches!(source, sqlx::Error::Configuration(_)) {
            return Self::Url { source };
        }
        let message = || source.as_database_error().map(|e| e.message().to_owned()).unwrap_or_default();
        let code = source.as_database_error().and_then(DatabaseError::code).map(std::borrow::Cow::into_owned);
        match code.as_deref() {
            Some(STALE_CLAIM) => Self::StaleClaim,
            Some(NOT_FOUND) => Self::NotFound { what: message() },
            Some(REFUSED) => Self::Refused { reason: message() },
            Some("3D000") => Self::NoDatabase { source },
            Some(code) if code.starts_with("28") => Self::Credentials { source },
            // Connection failures, shutdown and start-up, too many connections, read-only standby, disk full.
            Some(code)
                if code.starts_with("08") || code.starts_with("57P") || code.starts_with("53") || code == "25006" =>
            {
                Self::Unavailable { source }
            }
            _ => Self::Query { what, source },
        }
    }

    /// Whether the same call may succeed later without anybody doing anything.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unavailable { .. } => true,
            Self::Query { source, .. } => lost_to_another_transaction(source),
            _ => false,
        }
    }
}

impl DbError {
    /// Whether the values are refused: the same call with others may succeed, and with these it never will.
    pub fn refuses_values(&self) -> bool {
        match self {
            Self::Refused { .. } => true,
            Self::Query { source, .. } => {
                let code = source.as_database_error().and_then(DatabaseError::code);
                // Data exceptions, constraints, limits of the program (such as the size of a key).
                code.is_some_and(|code| ["22", "23", "54"].iter().any(|class| code.starts_with(class)))
            }
            _ => false,
        }
    }
}

/// The pool gives up in the same way when every connection is in use as when none can be made.
fn unavailable(source: &sqlx::Error) -> &'static str {
    match source {
        sqlx::Error::PoolTimedOut => {
            "no connection to PostgreSQL came free within 10 seconds: either all that this node may open are in use \
             (database.max_connections), or PostgreSQL cannot be reached"
        }
        _ => "PostgreSQL cannot be reached: check that it runs and that the database URL is right",
    }
}

/// Whether the statement lost against a concurrent one (deadlock, serialization failure, lock timeout) and had no effect.
pub(crate) fn lost_to_another_transaction(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(DatabaseError::code);
    matches!(code.as_deref(), Some("40P01" | "40001" | "55P03"))
}

/// A value of the database that should have been readable.
pub(crate) fn parse<T: std::str::FromStr>(what: &str, text: &str) -> Result<T, DbError> {
    text.parse().map_err(|_| DbError::Corrupt { what: [what, " '", text, "'"].concat() })
}
