//! The connections to `db.sqlite`: many readers, one writer of ours at a time, and other processes beside us.

use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;
use std::{fs, io};

use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior};

use super::layout::SCHEMA;
use super::{Layout, StoreError};

/// Connections that stay open when nobody uses them.
const IDLE_MAX: usize = 4;

/// How long another process may hold the database. Stock Nix waits as long.
const BUSY: Duration = Duration::from_hours(1);

/// Pages in the write-ahead log before it is folded into the database, as in stock Nix.
const CHECKPOINT_PAGES: u32 = 40_000;

/// The tables of schema 10. Both Nix and we must find the same ones.
const TABLES: &str = "
create table if not exists ValidPaths (
    id               integer primary key autoincrement not null,
    path             text unique not null,
    hash             text not null,
    registrationTime integer not null,
    deriver          text,
    narSize          integer,
    ultimate         integer,
    sigs             text,
    ca               text
);
create table if not exists Refs (
    referrer  integer not null,
    reference integer not null,
    primary key (referrer, reference),
    foreign key (referrer) references ValidPaths(id) on delete cascade,
    foreign key (reference) references ValidPaths(id) on delete restrict
);
create index if not exists IndexReferrer on Refs(referrer);
create index if not exists IndexReference on Refs(reference);
create trigger if not exists DeleteSelfRefs before delete on ValidPaths
  begin
    delete from Refs where referrer = old.id and reference = old.id;
  end;
create table if not exists DerivationOutputs (
    drv  integer not null,
    id   text not null,
    path text not null,
    primary key (drv, id),
    foreign key (drv) references ValidPaths(id) on delete cascade
);
create index if not exists IndexDerivationOutputs on DerivationOutputs(path);
";

/// The database of valid paths.
#[derive(Debug)]
pub(super) struct Database {
    path: PathBuf,
    fsync_metadata: bool,
    idle: Mutex<Vec<Connection>>,
    /// Our own writers wait here, in turn, and not in SQLite, which polls.
    writing: Mutex<()>,
}

impl Database {
    /// Opens it; makes the tables of a new store.
    pub(super) fn open(layout: &Layout, fsync_metadata: bool) -> Result<Self, StoreError> {
        let schema_file = layout.db_dir().join("schema");
        let database = Self {
            path: layout.db_dir().join("db.sqlite"),
            fsync_metadata,
            idle: Mutex::default(),
            writing: Mutex::default(),
        };
        match fs::read_to_string(&schema_file) {
            Ok(found) if found.trim() == SCHEMA.to_string() => {
                database.keep(database.connect()?);
            }
            Ok(found) => {
                let found = found.trim().chars().take(20).collect();
                return Err(StoreError::Schema { path: schema_file, found, known: SCHEMA });
            }
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => {
                let mut connection = database.connect()?;
                let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
                transaction.execute_batch(TABLES)?;
                transaction.commit()?;
                database.keep(connection);
                fs::write(&schema_file, SCHEMA.to_string()).map_err(StoreError::io("write", &schema_file))?;
            }
            Err(cause) => return Err(StoreError::io("read", &schema_file)(cause)),
        }
        Ok(database)
    }

    /// Reads one consistent state of the database.
    pub(super) fn read<T>(&self, query: impl FnOnce(&Connection) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let mut connection = self.take()?;
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Deferred)?;
        let answer = query(&transaction);
        drop(transaction);
        self.keep(connection);
        answer
    }

    /// One transaction: all of it, or nothing when `change` fails.
    pub(super) fn write<T>(
        &self,
        change: impl FnOnce(&Transaction<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut connection = self.take()?;
        let turn = self.writing.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        // Immediate: a transaction that read first could not wait for another process any more.
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let answer = change(&transaction)?;
        transaction.commit()?;
        drop(turn);
        self.keep(connection);
        Ok(answer)
    }

    fn take(&self) -> Result<Connection, StoreError> {
        let idle = self.idle.lock().unwrap_or_else(std::sync::PoisonError::into_inner).pop();
        idle.map_or_else(|| self.connect(), Ok)
    }

    fn keep(&self, connection: Connection) {
        let mut idle = self.idle.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if idle.len() < IDLE_MAX {
            idle.push(connection);
        }
    }

    fn connect(&self) -> Result<Connection, StoreError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&self.path, flags)?;
        connection.busy_timeout(BUSY)?;
        connection.set_prepared_statement_cache_capacity(32);
        connection.pragma_update(None, "foreign_keys", true)?;
        let mode: String = connection.pragma_query_value(None, "journal_mode", |row| row.get(0))?;
        if mode != "wal" {
            connection.pragma_update_and_check(None, "journal_mode", "wal", |_| Ok(()))?;
        }
        connection.pragma_update(None, "synchronous", if self.fsync_metadata { "normal" } else { "off" })?;
        connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
        // In KiB: readers come and go, and the kernel caches the file anyway.
        connection.pragma_update(None, "cache_size", -512)?;
        Ok(connection)
    }
}
