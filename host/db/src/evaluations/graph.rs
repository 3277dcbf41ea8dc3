//! The graph that an evaluation inserts: where the walk stops, and batches of jobs and attributes. What a derivation is, an
//! evaluator does not say: signers register that, from the bytes that they checked (`derivations`).

use std::collections::HashMap;

use harmonia_core::limits::{ATTR_BYTES_MAX, ERROR_BYTES_MAX};
use harmonia_core::{ClaimToken, EvalId};
use harmonia_nix::store_path::StorePath;
use serde_json::{Value, json};

use crate::connection::{Db, hash};
use crate::error::DbError;
use crate::paths::{parse_all, strings};
use crate::queue::{size, text};

/// Whether the walk goes on below a derivation (database.md, "Wanted is derived").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Walk {
    /// Available, or its job stands as it is. Do not put it into a batch.
    Stop,
    /// Unknown, without a job, or to be looked at again: put it into a batch and walk its inputs.
    Descend,
}

/// Part of a graph.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GraphBatch {
    /// Dependencies before dependents.
    pub derivations: Vec<GraphDerivation>,
    /// Attributes whose derivations are in this batch, or were before.
    pub attrs: Vec<GraphAttr>,
    /// Derivations that this evaluation wants until it ends, although no attribute leads to them yet. The tops of the
    /// batch (what nothing else in it depends on) are held without being named.
    pub holds: Vec<StorePath>,
    /// What attributes of later batches ask for derivations of this one.
    pub asked: Vec<(StorePath, AskedLimits)>,
}

/// What the `meta` of an attribute asks for its derivation; what it does not say is the project's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AskedLimits {
    /// `meta.timeout`, in seconds.
    pub timeout_s: Option<u64>,
    /// `meta.maxSilent`, in seconds.
    pub max_silent_s: Option<u64>,
}

/// One derivation, as a walk finds it. A batch says of it only that it is wanted; the rest is what its signer registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GraphDerivation {
    /// Its path.
    pub drv_path: StorePath,
    /// Name.
    pub name: String,
    /// System.
    pub system: String,
    /// What a node must offer.
    pub required_features: Vec<String>,
    /// Outputs.
    pub outputs: Vec<GraphOutput>,
    /// Input derivations with the outputs that are used.
    pub inputs: Vec<(StorePath, Vec<String>)>,
    /// Input sources.
    pub sources: Vec<StorePath>,
    /// The walk found all outputs in upstream caches: no job. Nobody takes its word for it.
    pub available: bool,
    /// Jobs on the longest known chain of jobs that wait for this one, itself included; at least 1.
    pub path_length: u32,
}

/// One output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GraphOutput {
    /// Name.
    pub name: String,
    /// Path; `None` for floating content-addressed ones.
    pub path: Option<StorePath>,
    /// The hash that a fixed output must have.
    pub fixed_hash: Option<String>,
}

/// One attribute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GraphAttr {
    /// Dotted path.
    pub attr: String,
    /// What it evaluated to.
    pub result: AttrResult,
}

/// What an attribute evaluated to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AttrResult {
    /// A derivation.
    Derivation {
        /// Its path.
        drv_path: StorePath,
        /// What the attribute asks for it.
        limits: AskedLimits,
    },
    /// An error, with its trace.
    Error(String),
}

/// What a batch did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BatchOutcome {
    /// Jobs inserted.
    pub new_jobs: u64,
    /// Jobs made pending again.
    pub revived: u64,
    /// Inputs (or attributes, or holds) outside the batch that have no job that will come to an end, nor available
    /// outputs. If there are any, no job and no attribute was inserted: walk these and call again.
    pub missing: Vec<StorePath>,
}

/// The batch as the rows that `insert_batch` takes.
struct Rows {
    derivations: Value,
    attrs: Value,
    asked: Value,
    holds: Vec<String>,
}

impl Rows {
    fn of(batch: &GraphBatch) -> Result<Self, DbError> {
        let derivations = batch.derivations.iter().map(|derivation| {
            let length = i32::try_from(derivation.path_length.max(1)).unwrap_or(i32::MAX);
            json!({
                "drv_path": derivation.drv_path.as_str(), "path_length": length, "available": derivation.available,
            })
        });
        let mut attrs = Vec::with_capacity(batch.attrs.len());
        let mut asked = batch.asked.clone();
        for GraphAttr { attr, result } in &batch.attrs {
            if attr.is_empty() || attr.len() > ATTR_BYTES_MAX {
                return Err(refused(&["an attribute path has 1 to ", &ATTR_BYTES_MAX.to_string(), " bytes"]));
            }
            attrs.push(match result {
                AttrResult::Derivation { drv_path, limits } => {
                    asked.push((drv_path.clone(), *limits));
                    let (timeout_s, max_silent_s) = limits.seconds();
                    json!({
                        "attr": text(attr), "drv_path": drv_path.as_str(),
                        "timeout_s": timeout_s, "max_silent_s": max_silent_s,
                    })
                }
                AttrResult::Error(error) => json!({ "attr": text(attr), "error": text(&shorten(error)) }),
            });
        }
        Ok(Self {
            derivations: derivations.collect(),
            attrs: Value::Array(attrs),
            asked: asked_rows(&asked),
            holds: strings(&batch.holds),
        })
    }
}

impl AskedLimits {
    /// As the database has them: nobody asks for no time at all, nor for more than fits.
    fn seconds(self) -> (Option<i64>, Option<i64>) {
        let seconds = |asked: Option<u64>| asked.filter(|asked| *asked > 0).map(size);
        (seconds(self.timeout_s), seconds(self.max_silent_s))
    }
}

fn asked_rows(asked: &[(StorePath, AskedLimits)]) -> Value {
    asked
        .iter()
        .map(|(drv_path, limits)| {
            let (timeout_s, max_silent_s) = limits.seconds();
            json!({ "drv_path": drv_path.as_str(), "timeout_s": timeout_s, "max_silent_s": max_silent_s })
        })
        .collect()
}

impl Db {
    /// For each derivation, in the given order: whether the walk goes on below it. `asked`: what attributes that are not
    /// inserted yet ask for those they name.
    pub async fn classify_derivations(
        &self,
        eval: EvalId,
        token: &ClaimToken,
        drvs: &[StorePath],
        asked: &[(StorePath, AskedLimits)],
    ) -> Result<Vec<(StorePath, Walk)>, DbError> {
        let (wanted, asked) = (strings(drvs), asked_rows(asked));
        let rows = self
            .run("classify derivations", || {
                sqlx::query!(
                    r#"SELECT drv_path AS "drv_path!", descend AS "descend!" FROM classify_derivations($1, $2, $3, $4)"#,
                    eval.0,
                    hash(token),
                    &wanted,
                    asked
                )
                .fetch_all(&self.pool)
            })
            .await?;
        let walks: HashMap<String, bool> = rows.into_iter().map(|row| (row.drv_path, row.descend)).collect();
        Ok(drvs
            .iter()
            .map(|drv| {
                let descend = walks.get(drv.as_str()).copied().unwrap_or(true);
                (drv.clone(), if descend { Walk::Descend } else { Walk::Stop })
            })
            .collect())
    }

    /// Inserts part of a graph in one transaction: jobs with their counts, attributes. Refused when a derivation is in it that
    /// no signer has registered.
    pub async fn insert_batch(
        &self,
        eval: EvalId,
        token: &ClaimToken,
        batch: &GraphBatch,
    ) -> Result<BatchOutcome, DbError> {
        let rows = Rows::of(batch)?;
        let row = self
            .run("insert a batch of the graph", || {
                sqlx::query!(
                    r#"SELECT new_jobs AS "new_jobs!", revived AS "revived!", missing AS "missing!"
                       FROM insert_batch($1, $2, $3, $4, $5, $6)"#,
                    eval.0,
                    hash(token),
                    rows.derivations,
                    rows.attrs,
                    rows.asked,
                    &rows.holds,
                )
                .fetch_one(&self.pool)
            })
            .await?;
        Ok(BatchOutcome {
            new_jobs: row.new_jobs as u64,
            revived: row.revived as u64,
            missing: parse_all(&row.missing)?,
        })
    }
}

fn refused(parts: &[&str]) -> DbError {
    DbError::Refused { reason: parts.concat() }
}

/// Keeps head and end of an error longer than the bound: the head has the message, the end the place.
fn shorten(error: &str) -> String {
    if error.len() <= ERROR_BYTES_MAX {
        return error.to_owned();
    }
    let half = ERROR_BYTES_MAX / 2 - 32;
    let head = error.floor_char_boundary(half);
    let tail = error.ceil_char_boundary(error.len() - half);
    [&error[..head], "\n[…]\n", &error[tail..]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_errors_keep_both_ends_and_stay_within_the_bound() {
        let error = ["message ", &"ü".repeat(ERROR_BYTES_MAX), " at file:1:2"].concat();
        let short = shorten(&error);
        assert!(short.len() <= ERROR_BYTES_MAX, "{}", short.len());
        assert!(short.starts_with("message ü") && short.ends_with("at file:1:2"));
        assert_eq!(shorten("small"), "small");
    }
}
