//! What a statement costs does not grow with what it is not asked about: neither with what a server has behind it nor with
//! what else waits, whatever the statistics of the planner say. Start at [`cost_follows_what_is_asked`].
//!
//! Counted is what a call reads, not how long it takes: rows and index entries, and pages. The database is filled to the shape
//! of a server that has run for long (`cost/past.sql`) and is busy (`cost/queue.sql`). Beside each call stands what it is
//! asked about.

mod calls;
mod forges;
mod lost;

use std::fmt::Write as _;

use harmonia_db::testing::{TestDatabase, pool};
use harmonia_db::{Db, DbError};
use sqlx::Row as _;

use crate::world::World;

/// How many rows and index entries a call may read for each thing that it is asked about: it is found, locked, looked at
/// with what it leans on, changed and told of, by statements that each look for it again.
const READS_EACH: u64 = 40;
/// And how many pages: a row is found through the levels of an index, and a changed one is entered into each index of its
/// table.
const PAGES_EACH: u64 = 150;

/// What was read so far on a connection.
#[derive(Debug, Clone, Copy)]
struct Reads {
    rows: i64,
    pages: i64,
}

/// Counts what calls read.
struct Meter {
    db: Db,
    when: String,
    report: String,
    exceeded: Vec<String>,
}

impl Meter {
    /// Makes a call that is asked about so many things.
    async fn call<T>(
        &mut self,
        name: &str,
        asked: &[(u64, &str)],
        call: impl AsyncFnOnce(&Db) -> Result<T, DbError>,
    ) -> T {
        let before = self.reads().await;
        let answer = call(&self.db).await.unwrap_or_else(|error| panic!("{}: {name}: {error:?}", self.when));
        let after = self.reads().await;
        let (rows, pages) = (after.rows - before.rows, after.pages - before.pages);
        let things: u64 = asked.iter().map(|(number, _)| number).sum();
        let (rows_max, pages_max) = (things * READS_EACH, things * PAGES_EACH);
        let mut line =
            format!("{}: {name}: {rows} rows (at most {rows_max}), {pages} pages (at most {pages_max}) for", self.when);
        for (number, what) in asked {
            let _ = write!(line, " {number} {what}");
        }
        if rows.cast_unsigned() > rows_max || pages.cast_unsigned() > pages_max {
            self.exceeded.push(line.clone());
        }
        let _ = writeln!(self.report, "{line}");
        answer
    }

    async fn reads(&self) -> Reads {
        let run = async |statement| sqlx::query(statement).fetch_one(pool(&self.db)).await.expect("read the counters");
        // What this connection counted is there for others once this has ended.
        run("SELECT pg_stat_force_next_flush()::text").await;
        let row = run("SELECT (SELECT sum(seq_tup_read) FROM pg_stat_user_tables)::bigint
                 + (SELECT sum(idx_tup_read) FROM pg_stat_user_indexes)::bigint,
                 (SELECT sum(heap_blks_hit + heap_blks_read + coalesce(idx_blks_hit + idx_blks_read, 0))
                     FROM pg_statio_user_tables)::bigint")
        .await;
        Reads { rows: row.get(0), pages: row.get(1) }
    }
}

/// What the planner may know of the tables.
#[derive(Debug, Clone, Copy)]
enum Statistics {
    /// What is there.
    Fresh,
    /// What was there before anything waited: the normal state of a server that has run for long.
    OfAnEmptyQueue,
    /// Nothing.
    None,
}

async fn run(db: &Db, statements: &'static str) {
    sqlx::raw_sql(statements).execute(pool(db)).await.expect("the statements run");
}

/// A project and a node as tests have them, in a database with a past and a queue; statistics are of before the queue.
async fn aged() -> World {
    let world = World::new().await;
    let db = world.test.single_connection().await;
    run(&db, include_str!("cost/past.sql")).await;
    run(&db, "ANALYZE").await;
    run(&db, include_str!("cost/queue.sql")).await;
    db.close().await;
    world
}

const FORGET_STATISTICS: &str = "
    DELETE FROM pg_statistic WHERE starelid IN (SELECT oid FROM pg_class WHERE relnamespace = 'public'::regnamespace);
    UPDATE pg_class SET reltuples = -1, relpages = 0, relallvisible = 0
    WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'i')";

#[tokio::test]
async fn cost_follows_what_is_asked() {
    let world = aged().await;
    let (mut report, mut exceeded) = (String::new(), Vec::new());
    for statistics in [Statistics::Fresh, Statistics::OfAnEmptyQueue, Statistics::None] {
        // A statement that is prepared is planned for its arguments at first, and later for any.
        for plans in ["SET plan_cache_mode = force_custom_plan", "SET plan_cache_mode = force_generic_plan"] {
            let test = TestDatabase::copy_of(&world.test).await;
            let db = test.single_connection().await;
            match statistics {
                Statistics::Fresh => run(&db, "ANALYZE").await,
                Statistics::OfAnEmptyQueue => {}
                Statistics::None => run(&db, FORGET_STATISTICS).await,
            }
            run(&db, plans).await;
            let when = format!("{statistics:?}, {}", plans.rsplit(' ').next().unwrap_or_default());
            let mut meter = Meter { db, when, report: String::new(), exceeded: Vec::new() };
            calls::all(&mut meter, world.project).await;
            forges::all(&mut meter).await;
            lost::all(&mut meter, world.project).await;
            report.push_str(&meter.report);
            exceeded.extend(meter.exceeded);
            meter.db.close().await;
        }
    }
    println!("{report}");
    assert!(exceeded.is_empty(), "these read more than what they are asked about:\n{}", exceeded.join("\n"));
}
