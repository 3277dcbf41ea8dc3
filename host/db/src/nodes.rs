//! Nodes: who lives, with which capabilities, and which run of its process speaks.

use std::time::Duration;

use harmonia_core::api;
use harmonia_core::limits::{LOST_NODES_MAX, SYSTEMS_KNOWN_FOR};
use harmonia_core::{Capability, Incarnation, NodeId, NodeSecret};

use crate::connection::{Db, incarnation, interval};
use crate::error::DbError;

/// What a node says of itself at start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeRegistration {
    /// Its name, unique in the cluster.
    pub id: NodeId,
    /// This run of its process.
    pub incarnation: Incarnation,
    /// What it keeps for itself, on its disk: nobody without it may take its name.
    pub secret: NodeSecret,
    /// What it does.
    pub capabilities: Vec<Capability>,
    /// URL under which other nodes reach it.
    pub endpoint: Option<String>,
    /// Systems it builds.
    pub systems: Vec<String>,
    /// Features it offers.
    pub features: Vec<String>,
    /// Build slots.
    pub max_jobs: u32,
    /// Evaluations side by side.
    pub max_evals: u32,
    /// Version of its binary.
    pub version: String,
}

/// What a former run of the node held.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Released {
    /// Jobs that are pending again, or failed because they lost too many nodes. Those whose outputs were accepted stay for a signer to finish.
    pub jobs: u64,
    /// Evaluations that are queued again, or failed likewise.
    pub evaluations: u64,
}

/// What a node hears when it reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeartbeatAnswer {
    /// `false`: another process took this node's name. Stop working.
    pub current: bool,
    /// Finish what runs, claim nothing.
    pub draining: bool,
}

/// A signer one can talk to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignerNode {
    /// Its name.
    pub id: NodeId,
    /// URL of its API.
    pub endpoint: String,
}

impl Db {
    /// Takes the node's name for this run of the process, and gives back what a former run held. If that did not say goodbye,
    /// it counts: what was held so by too many is an infrastructure failure.
    pub async fn register_node(&self, node: &NodeRegistration) -> Result<Released, DbError> {
        let capabilities: Vec<String> = node.capabilities.iter().map(ToString::to_string).collect();
        let row = self
            .run("register the node", || {
                sqlx::query!(
                    r#"SELECT jobs AS "jobs!", evaluations AS "evaluations!"
                       FROM register_node($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)"#,
                    node.id.0,
                    incarnation(node.incarnation),
                    &capabilities,
                    node.endpoint.as_deref(),
                    &node.systems,
                    &node.features,
                    i32::try_from(node.max_jobs).unwrap_or(i32::MAX),
                    i32::try_from(node.max_evals).unwrap_or(i32::MAX),
                    node.version,
                    LOST_NODES_MAX as i32,
                    &node.secret.0[..],
                )
                .fetch_one(&self.pool)
            })
            .await?;
        if row.evaluations > 0 {
            self.go_on_with_withdrawals().await;
        }
        Ok(Released { jobs: row.jobs as u64, evaluations: row.evaluations as u64 })
    }

    /// Says that the node lives. `paused`: why it claims nothing at the moment.
    pub async fn heartbeat(
        &self,
        node: &NodeId,
        run: Incarnation,
        paused: Option<&str>,
    ) -> Result<HeartbeatAnswer, DbError> {
        let row = self
            .run("report the node alive", || {
                sqlx::query!(
                    r#"SELECT is_current AS "current!", is_draining AS "draining!" FROM heartbeat($1, $2, $3)"#,
                    node.0,
                    incarnation(run),
                    paused
                )
                .fetch_one(&self.pool)
            })
            .await?;
        Ok(HeartbeatAnswer { current: row.current, draining: row.draining })
    }

    /// A clean goodbye: what the node holds goes back, uncounted. Does nothing when another run took the name.
    pub async fn deregister_node(&self, node: &NodeId, run: Incarnation) -> Result<(), DbError> {
        self.run("deregister the node", || {
            sqlx::query!("SELECT deregister_node($1, $2)", node.0, incarnation(run)).execute(&self.pool)
        })
        .await
        .map(|_| ())
    }

    /// This node takes nothing more and ends when its work has ended (or goes on after all); it is shown so. `false`: this
    /// run is over, or another process has the name.
    pub async fn set_draining(&self, node: &NodeId, run: Incarnation, draining: bool) -> Result<bool, DbError> {
        self.run("drain the node", || {
            sqlx::query_scalar!(r#"SELECT set_draining($1, $2, $3) AS "known!""#, node.0, incarnation(run), draining)
                .fetch_one(&self.pool)
        })
        .await
    }

    /// Signers heard of within `silent_after`, most recently heard first.
    pub async fn live_signers(&self, silent_after: Duration) -> Result<Vec<SignerNode>, DbError> {
        let rows = self
            .run("list signers", || {
                sqlx::query!(
                    r#"SELECT id, endpoint AS "endpoint!" FROM nodes
                       WHERE 'signer' = ANY (capabilities) AND endpoint IS NOT NULL AND NOT stopped
                           AND last_seen > now() - $1::interval
                       ORDER BY last_seen DESC, id"#,
                    interval(silent_after)
                )
                .fetch_all(&self.pool)
            })
            .await?;
        Ok(rows.into_iter().map(|row| SignerNode { id: NodeId(row.id), endpoint: row.endpoint }).collect())
    }

    /// Base URLs of live frontends, the freshest first.
    pub async fn live_frontends(&self, silent_after: Duration) -> Result<Vec<String>, DbError> {
        self.run("list frontends", || {
            sqlx::query_scalar!(
                r#"SELECT endpoint AS "endpoint!" FROM nodes
                   WHERE 'frontend' = ANY (capabilities) AND endpoint IS NOT NULL AND NOT stopped
                       AND last_seen > now() - $1::interval
                   ORDER BY last_seen DESC, id"#,
                interval(silent_after)
            )
            .fetch_all(&self.pool)
        })
        .await
    }

    /// Every node that has not said goodbye, by name.
    pub async fn nodes(&self, silent_after: Duration) -> Result<Vec<api::Node>, DbError> {
        let rows = self
            .run("list nodes", || {
                sqlx::query!(
                    r#"SELECT n.id, n.capabilities, n.systems, n.features, n.max_jobs, n.draining, n.version, n.paused,
                           n.policy_error, n.last_seen, n.last_seen > now() - $1::interval AS "online!",
                           (SELECT count(*) FROM build_jobs j
                               WHERE j.claimed_by = n.id AND j.status || '' IN ('building', 'uploading')) AS "running!"
                       FROM nodes n WHERE NOT n.stopped ORDER BY n.id"#,
                    interval(silent_after)
                )
                .fetch_all(&self.pool)
            })
            .await?;
        Ok(rows
            .into_iter()
            .map(|row| api::Node {
                id: row.id,
                capabilities: row.capabilities,
                systems: row.systems,
                features: row.features,
                max_jobs: row.max_jobs as u32,
                running: row.running as u32,
                draining: row.draining,
                online: row.online,
                version: row.version,
                paused: row.paused,
                policy_error: row.policy_error,
                last_seen: row.last_seen,
            })
            .collect())
    }

    /// Systems that some builder offered within the last weeks, there now or not, sorted.
    pub async fn builder_systems(&self) -> Result<Vec<String>, DbError> {
        self.run("list systems", || {
            sqlx::query_scalar!(
                "SELECT system FROM builder_systems WHERE last_seen > now() - $1::interval ORDER BY system",
                interval(SYSTEMS_KNOWN_FOR)
            )
            .fetch_all(&self.pool)
        })
        .await
    }
}
