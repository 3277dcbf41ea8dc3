//! What our seven queues have in common: a row that is due is taken by one node for a time, and that node says how it
//! ended. `take!` takes, `end!` ends; both are statements over one of the tables below, checked like all others.
//!
//! A lease is a name that nobody else has, so that who lost it writes nothing. It is longer than the work may take: when
//! it ends without a word, its holder is gone, and the row is taken by another node.

use harmonia_core::NodeId;

/// The right to say how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lease {
    name: String,
    tag_at: usize,
}

impl Lease {
    pub(crate) fn new(node: &NodeId) -> Self {
        Self { name: format!("{node} {:016x}", rand::random::<u64>()), tag_at: node.0.len() + 1 }
    }

    /// Who has it, and which time.
    pub(crate) fn as_str(&self) -> &str {
        &self.name
    }

    /// Which time.
    pub(crate) fn tag(&self) -> &str {
        &self.name[self.tag_at..]
    }
}

/// Where each queue is: its table, the table's key, and what the names of the lease's columns begin with.
macro_rules! queue {
    ($then:ident, deliveries, $($rest:tt)*) => { crate::leased::$then!("webhook_deliveries", "id", "", $($rest)*) };
    ($then:ident, statuses, $($rest:tt)*) => { crate::leased::$then!("commit_statuses", "id", "", $($rest)*) };
    ($then:ident, comments, $($rest:tt)*) => { crate::leased::$then!("forge_comments", "id", "", $($rest)*) };
    ($then:ident, notifications, $($rest:tt)*) => { crate::leased::$then!("outbox", "id", "", $($rest)*) };
    ($then:ident, polls, $($rest:tt)*) => { crate::leased::$then!("projects", "id", "", $($rest)*) };
    ($then:ident, hooks, $($rest:tt)*) => { crate::leased::$then!("projects", "id", "hook_", $($rest)*) };
    ($then:ident, syncs, $($rest:tt)*) => { crate::leased::$then!("forge_syncs", "forge", "", $($rest)*) };
}

/// Takes rows: `take!(db, "what", queue, lease, duration, limit, { of, joins, if, order, set, get }, more arguments)`. `of`
/// names what the joins give besides; `d` is the row while it is looked for, `q` the row when it is taken. Arguments begin
/// with `$4`. Gives the rows.
macro_rules! take {
    ($db:expr, $what:literal, $queue:ident, $($rest:tt)*) => {
        crate::leased::queue!(take_from, $queue, $db, $what, $($rest)*)
    };
}

macro_rules! take_from {
    ($table:literal, $key:literal, $prefix:literal, $db:expr, $what:literal, $lease:expr, $duration:expr, $limit:expr,
        { of: $of:literal, joins: $joins:literal, if: $if:literal, order: $order:literal, set: $set:literal, get: $get:literal }
        $(, $argument:expr)* $(,)?) => {
        $db.run($what, || {
            sqlx::query!(
                "WITH due AS (SELECT d." + $key + " AS leased_key" + $of + " FROM " + $table + " d " + $joins
                    + " WHERE (d." + $prefix + "leased_until IS NULL OR d." + $prefix + "leased_until <= now()) AND "
                    + $if + " ORDER BY " + $order + " LIMIT $3 FOR NO KEY UPDATE OF d SKIP LOCKED) UPDATE "
                    + $table + " q SET " + $prefix + "leased_by = $1, " + $prefix + "leased_until = now() + $2" + $set
                    + " FROM due WHERE q." + $key + " = due.leased_key RETURNING " + $get,
                $lease.as_str(),
                crate::connection::interval($duration),
                i64::from($limit),
                $($argument),*
            )
            .fetch_all(&$db.pool)
        })
        .await
    };
}

/// Ends a lease: `end!(db, "what", queue, (key, lease), "assignments", arguments)`. Arguments begin with `$3`. Gives whether
/// the lease was still held; if not, nothing was written.
macro_rules! end {
    ($db:expr, $what:literal, $queue:ident, $($rest:tt)*) => {
        crate::leased::queue!(end_of, $queue, $db, $what, $($rest)*)
    };
}

macro_rules! end_of {
    ($table:literal, $key:literal, $prefix:literal, $db:expr, $what:literal, ($id:expr, $lease:expr), $set:literal
        $(, $argument:expr)* $(,)?) => {
        $db.run($what, || {
            sqlx::query!(
                "UPDATE " + $table + " SET " + $prefix + "leased_by = NULL, " + $prefix + "leased_until = NULL, " + $set
                    + " WHERE " + $key + " = $1 AND " + $prefix + "leased_by = $2",
                $id,
                $lease.as_str(),
                $($argument),*
            )
            .execute(&$db.pool)
        })
        .await
        .map(|done| done.rows_affected() == 1)
    };
}

pub(crate) use {end, end_of, queue, take, take_from};
