//! The graph that an evaluation inserts: where the walk stops, and batches of derivations, jobs and attributes.

use std::collections::HashMap;

use harmonia_core::limits::{ATTR_BYTES_MAX, ERROR_BYTES_MAX};
use harmonia_core::{ClaimToken, EvalId};
use harmonia_nix::store_path::StorePath;

use crate::connection::{Db, hash};
use crate::error::{DbError, parse};
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
}

/// One derivation.
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
    /// An upstream cache has all outputs: no job.
    pub available: bool,
    /// Hash modulo fixed outputs, when computed. Signers do not trust it.
    pub modulo: Option<String>,
    /// `meta.timeout`, in seconds.
    pub timeout_s: Option<u64>,
    /// `meta.maxSilent`, in seconds.
    pub max_silent_s: Option<u64>,
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

/// The batch as columns for `unnest`; numbers are 1-based places of derivations.
#[derive(Default)]
struct Columns {
    drvs: Vec<String>,
    names: Vec<String>,
    systems: Vec<String>,
    features: Vec<String>,
    available: Vec<bool>,
    modulo: Vec<Option<String>>,
    timeouts: Vec<Option<i64>>,
    silents: Vec<Option<i64>>,
    path_lengths: Vec<i32>,
    output_drvs: Vec<i32>,
    output_names: Vec<String>,
    output_paths: Vec<Option<String>>,
    output_hashes: Vec<Option<String>>,
    input_drvs: Vec<i32>,
    input_paths: Vec<String>,
    input_outputs: Vec<String>,
    source_drvs: Vec<i32>,
    source_paths: Vec<String>,
    attrs: Vec<String>,
    attr_drvs: Vec<Option<String>>,
    attr_errors: Vec<Option<String>>,
    holds: Vec<String>,
}

impl Columns {
    fn of(batch: &GraphBatch) -> Result<Self, DbError> {
        let mut columns = Self { holds: strings(&batch.holds), ..Self::default() };
        for (index, derivation) in batch.derivations.iter().enumerate() {
            columns.derivation(i32::try_from(index + 1).unwrap_or(i32::MAX), derivation)?;
        }
        for GraphAttr { attr, result } in &batch.attrs {
            if attr.is_empty() || attr.len() > ATTR_BYTES_MAX {
                return Err(refused(&["an attribute path has 1 to ", &ATTR_BYTES_MAX.to_string(), " bytes"]));
            }
            columns.attrs.push(text(attr));
            let (drv, error) = match result {
                AttrResult::Derivation { drv_path } => (Some(drv_path.to_string()), None),
                AttrResult::Error(error) => (None, Some(text(&shorten(error)))),
            };
            columns.attr_drvs.push(drv);
            columns.attr_errors.push(error);
        }
        Ok(columns)
    }

    fn derivation(&mut self, place: i32, derivation: &GraphDerivation) -> Result<(), DbError> {
        // Joined by spaces below, so a space inside would become two.
        let words =
            derivation.required_features.iter().chain(derivation.inputs.iter().flat_map(|(_, outputs)| outputs));
        if let Some(word) = words.clone().find(|word| word.is_empty() || word.contains([' ', '\0'])) {
            return Err(refused(&[derivation.drv_path.as_str(), ": '", word, "' is no feature or output name"]));
        }
        self.drvs.push(derivation.drv_path.to_string());
        self.names.push(text(&derivation.name));
        self.systems.push(text(&derivation.system));
        self.features.push(derivation.required_features.join(" "));
        self.available.push(derivation.available);
        self.modulo.push(derivation.modulo.clone());
        self.timeouts.push(derivation.timeout_s.map(|s| size(s.max(1))));
        self.silents.push(derivation.max_silent_s.map(|s| size(s.max(1))));
        self.path_lengths.push(i32::try_from(derivation.path_length.max(1)).unwrap_or(i32::MAX));
        for output in &derivation.outputs {
            self.output_drvs.push(place);
            self.output_names.push(text(&output.name));
            self.output_paths.push(output.path.as_ref().map(ToString::to_string));
            self.output_hashes.push(output.fixed_hash.clone());
        }
        if derivation.available {
            return Ok(()); // nobody walks below it
        }
        for (input, outputs) in &derivation.inputs {
            self.input_drvs.push(place);
            self.input_paths.push(input.to_string());
            self.input_outputs.push(outputs.join(" "));
        }
        for source in &derivation.sources {
            self.source_drvs.push(place);
            self.source_paths.push(source.to_string());
        }
        Ok(())
    }
}

impl Db {
    /// For each derivation, in the given order: whether the walk goes on below it.
    pub async fn classify_derivations(
        &self,
        eval: EvalId,
        token: &ClaimToken,
        drvs: &[StorePath],
    ) -> Result<Vec<(StorePath, Walk)>, DbError> {
        let wanted = strings(drvs);
        let rows = self
            .run("classify derivations", || {
                sqlx::query!(
                    r#"SELECT drv_path AS "drv_path!", descend AS "descend!" FROM classify_derivations($1, $2, $3)"#,
                    eval.0,
                    hash(token),
                    &wanted
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

    /// Inserts part of a graph in one transaction: derivations, jobs with their counts, attributes.
    pub async fn insert_batch(
        &self,
        eval: EvalId,
        token: &ClaimToken,
        batch: &GraphBatch,
    ) -> Result<BatchOutcome, DbError> {
        let c = Columns::of(batch)?;
        let row = self
            .run("insert a batch of the graph", || {
                sqlx::query!(
                    r#"SELECT new_jobs AS "new_jobs!", revived AS "revived!", missing AS "missing!"
                       FROM insert_batch($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18,
                           $19, $20, $21, $22, $23, $24)"#,
                    eval.0,
                    hash(token),
                    &c.drvs,
                    &c.names,
                    &c.systems,
                    &c.features,
                    &c.available,
                    &c.modulo as &[Option<String>],
                    &c.timeouts as &[Option<i64>],
                    &c.silents as &[Option<i64>],
                    &c.path_lengths,
                    &c.output_drvs,
                    &c.output_names,
                    &c.output_paths as &[Option<String>],
                    &c.output_hashes as &[Option<String>],
                    &c.input_drvs,
                    &c.input_paths,
                    &c.input_outputs,
                    &c.source_drvs,
                    &c.source_paths,
                    &c.attrs,
                    &c.attr_drvs as &[Option<String>],
                    &c.attr_errors as &[Option<String>],
                    &c.holds,
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

    /// The evaluators' hashes modulo fixed outputs, for known derivations that have one.
    pub async fn evaluator_modulo(&self, drvs: &[StorePath]) -> Result<HashMap<StorePath, String>, DbError> {
        let wanted = strings(drvs);
        let rows = self
            .run("read derivation hashes", || {
                sqlx::query!(
                    r#"SELECT drv_path, modulo_hash AS "hash!" FROM derivations
                       WHERE drv_path = ANY ($1) AND modulo_hash IS NOT NULL"#,
                    &wanted
                )
                .fetch_all(&self.pool)
            })
            .await?;
        rows.into_iter().map(|row| Ok((parse("derivation", &row.drv_path)?, row.hash))).collect()
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
