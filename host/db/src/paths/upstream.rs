//! What is known of upstream caches, and walks below what they turned out not to have. Statements are in
//! `migrations/functions/upstream.sql`. Start at [`Db::upstream_memo`] and [`Db::claim_walk`].

use harmonia_core::{AttemptId, ClaimToken, EvalId, Incarnation, NodeId};
use harmonia_nix::StorePath;

use super::{parse_all, strings};
use crate::connection::{Db, hash};
use crate::error::{DbError, parse};

/// What a cache answered about a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamAnswer {
    /// The path.
    pub path: StorePath,
    /// The cache: its URL without credentials.
    pub cache: String,
    /// Whether it has it.
    pub present: bool,
}

/// What a builder could not get from an upstream cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamFault {
    /// The path.
    pub path: StorePath,
    /// The cache: its URL without credentials.
    pub cache: String,
    /// Inputs of the job whose closures have the path.
    pub roots: Vec<StorePath>,
    /// What is wrong, for people.
    pub reason: String,
}

/// Derivations to be walked in the name of an evaluation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimedWalk {
    /// The evaluation, which may have ended.
    pub eval: EvalId,
    /// What of it waits for the walk.
    pub drvs: Vec<StorePath>,
}

/// An upstream cache that gives an evaluator nothing, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamTrouble {
    /// The evaluator.
    pub node: NodeId,
    /// The cache: its URL without credentials.
    pub cache: String,
    /// Why.
    pub trouble: String,
}

impl Db {
    /// What is remembered of these paths and has not expired.
    pub async fn upstream_memo(&self, paths: &[StorePath]) -> Result<Vec<UpstreamAnswer>, DbError> {
        let wanted = strings(paths);
        let rows = self
            .run("read the upstream memo", || {
                sqlx::query!(
                    "SELECT path, cache, present FROM upstream_paths WHERE path = ANY ($1) AND expires_at + '0 s' > now()",
                    &wanted
                )
                .fetch_all(&self.pool)
            })
            .await?;
        let answer =
            |path: &str, cache, present| Ok(UpstreamAnswer { path: parse("store path", path)?, cache, present });
        rows.into_iter().map(|row| answer(&row.path, row.cache, row.present)).collect()
    }

    /// Remembers answers: presence for a day, absence for ten minutes. What was there and is gone becomes a job.
    pub async fn remember_upstream(
        &self,
        eval: EvalId,
        token: &ClaimToken,
        answers: &[UpstreamAnswer],
    ) -> Result<(), DbError> {
        let paths: Vec<String> = answers.iter().map(|answer| answer.path.to_string()).collect();
        let caches: Vec<String> = answers.iter().map(|answer| answer.cache.clone()).collect();
        let present: Vec<bool> = answers.iter().map(|answer| answer.present).collect();
        self.run("remember upstream paths", || {
            sqlx::query!("SELECT remember_upstream($1, $2, $3, $4, $5)", eval.0, hash(token), &paths, &caches, &present)
                .execute(&self.pool)
        })
        .await
        .map(|_| ())
    }

    /// Which caches (with a digest of the keys that count there) this evaluator asks from now on.
    pub async fn register_upstreams(
        &self,
        node: &NodeId,
        incarnation: Incarnation,
        caches: &[(String, String)],
    ) -> Result<(), DbError> {
        let (names, keys): (Vec<String>, Vec<String>) = caches.iter().cloned().unzip();
        self.run("register upstream caches", || {
            sqlx::query!("SELECT register_upstreams($1, $2, $3, $4)", node.0, incarnation.0, &names, &keys)
                .execute(&self.pool)
        })
        .await
        .map(|_| ())
    }

    /// Why a cache gives this evaluator nothing; `None`: it does.
    pub async fn note_upstream(
        &self,
        node: &NodeId,
        incarnation: Incarnation,
        cache: &str,
        trouble: Option<&str>,
    ) -> Result<(), DbError> {
        self.run("note the state of an upstream cache", || {
            sqlx::query!("SELECT note_upstream($1, $2, $3, $4)", node.0, incarnation.0, cache, trouble)
                .execute(&self.pool)
        })
        .await
        .map(|_| ())
    }

    /// Caches that give their evaluators nothing, by node.
    pub async fn upstream_troubles(&self) -> Result<Vec<UpstreamTrouble>, DbError> {
        let rows = self
            .run("list troubles with upstream caches", || {
                sqlx::query!(
                    r#"SELECT c.node, c.cache, c.trouble AS "trouble!" FROM upstream_caches c
                       WHERE c.trouble IS NOT NULL ORDER BY c.node, c.cache LIMIT 1000"#
                )
                .fetch_all(&self.pool)
            })
            .await?;
        let trouble = |node, cache, trouble| UpstreamTrouble { node: NodeId(node), cache, trouble };
        Ok(rows.into_iter().map(|row| trouble(row.node, row.cache, row.trouble)).collect())
    }

    /// This attempt could not get from an upstream cache what that was said to have. An evaluator looks at it; the attempt
    /// goes on to hold its job: end it as a transient failure.
    pub async fn report_upstream_fault(
        &self,
        attempt: AttemptId,
        token: &ClaimToken,
        fault: &UpstreamFault,
    ) -> Result<(), DbError> {
        let roots = strings(&fault.roots);
        self.run("report a fault of an upstream cache", || {
            sqlx::query!(
                "SELECT report_upstream_fault($1, $2, $3, $4, $5, $6)",
                attempt.0,
                hash(token),
                fault.path.as_str(),
                fault.cache,
                &roots,
                fault.reason
            )
            .execute(&self.pool)
        })
        .await
        .map(|_| ())
    }

    /// (path, cache) of what builders reported about these caches, oldest first.
    pub async fn upstream_reports(&self, caches: &[String], limit: u32) -> Result<Vec<(StorePath, String)>, DbError> {
        let rows = self
            .run("list reports about upstream caches", || {
                sqlx::query!(
                    "SELECT path, cache FROM upstream_reports WHERE cache = ANY ($1) ORDER BY reported_at LIMIT $2",
                    caches,
                    i64::from(limit)
                )
                .fetch_all(&self.pool)
            })
            .await?;
        rows.into_iter().map(|row| Ok((parse("store path", &row.path)?, row.cache))).collect()
    }

    /// This evaluator met the fault, too: what needs the path becomes a job.
    pub async fn confirm_upstream_fault(
        &self,
        node: &NodeId,
        incarnation: Incarnation,
        path: &StorePath,
        cache: &str,
        fault: &str,
    ) -> Result<(), DbError> {
        self.run("confirm a fault of an upstream cache", || {
            sqlx::query!(
                "SELECT confirm_upstream_fault($1, $2, $3, $4, $5)",
                node.0,
                incarnation.0,
                path.as_str(),
                cache,
                fault
            )
            .execute(&self.pool)
        })
        .await
        .map(|_| ())
    }

    /// This evaluator got the path without trouble.
    pub async fn dismiss_upstream_report(
        &self,
        node: &NodeId,
        incarnation: Incarnation,
        path: &StorePath,
        cache: &str,
    ) -> Result<(), DbError> {
        self.run("dismiss a report about an upstream cache", || {
            sqlx::query!("SELECT dismiss_upstream_report($1, $2, $3, $4)", node.0, incarnation.0, path.as_str(), cache)
                .execute(&self.pool)
        })
        .await
        .map(|_| ())
    }

    /// The public halves of the keys that this signer signs with.
    pub async fn set_signer_keys(
        &self,
        node: &NodeId,
        incarnation: Incarnation,
        keys: &[String],
    ) -> Result<(), DbError> {
        self.run("record a signer's keys", || {
            sqlx::query!("SELECT set_signer_keys($1, $2, $3)", node.0, incarnation.0, keys).execute(&self.pool)
        })
        .await
        .map(|_| ())
    }

    /// The keys of all signers that were heard of within a month.
    pub async fn signer_keys(&self) -> Result<Vec<String>, DbError> {
        self.run("read the signers' keys", || {
            sqlx::query_scalar!(
                r#"SELECT DISTINCT k.key AS "key!" FROM signer_keys s JOIN nodes n ON n.id = s.node, unnest(s.keys) AS k(key)
                   WHERE n.last_seen > now() - interval '30 days' ORDER BY 1"#
            )
            .fetch_all(&self.pool)
        })
        .await
    }

    /// Jobs that wait until somebody walked below them, of one evaluation; under a lease of ten minutes.
    pub async fn claim_walk(
        &self,
        node: &NodeId,
        incarnation: Incarnation,
        token: &ClaimToken,
    ) -> Result<Option<ClaimedWalk>, DbError> {
        let row = self
            .run("claim a walk", || {
                sqlx::query!("SELECT eval_id, drvs FROM claim_walk($1, $2, $3)", node.0, incarnation.0, hash(token))
                    .fetch_one(&self.pool)
            })
            .await?;
        let Some((eval, drvs)) = row.eval_id.zip(row.drvs) else { return Ok(None) };
        Ok(Some(ClaimedWalk { eval: EvalId(eval), drvs: parse_all(&drvs)? }))
    }

    /// The walk is over; with an error, what was not inserted is tried again, at most three times.
    pub async fn finish_walk(
        &self,
        walk: &ClaimedWalk,
        token: &ClaimToken,
        error: Option<&str>,
    ) -> Result<(), DbError> {
        let drvs = strings(&walk.drvs);
        self.run("finish a walk", || {
            sqlx::query!("SELECT finish_walk($1, $2, $3, $4)", walk.eval.0, hash(token), &drvs, error)
                .execute(&self.pool)
        })
        .await
        .map(|_| ())
    }
}
