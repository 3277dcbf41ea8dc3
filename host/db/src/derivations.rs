//! Derivations as signers register them. Start at [`Db::register_derivations`].
//!
//! What a derivation makes and needs decides what is green and what can be built, for every project that ever reaches it. So
//! these rows come from nobody's word: a signer writes them from the bytes of the `.drv` file, after it has recomputed the
//! file's path and its output paths; evaluators link to them.

use std::collections::HashMap;

use harmonia_nix::Derivation;
use harmonia_nix::store_path::StorePath;
use serde_json::{Value, json};

use crate::connection::Db;
use crate::error::{DbError, parse};
use crate::evaluations::GraphOutput;
use crate::paths::{parse_all, strings};
use crate::queue::text;

/// A derivation whose file was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckedDerivation {
    /// Its path.
    pub drv_path: StorePath,
    /// Hash modulo fixed outputs, in Nix's text form: what paths of outputs above are checked against.
    pub modulo_hash: String,
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
}

impl CheckedDerivation {
    /// What the file says. Requirements that cannot be read are left out: an evaluator makes no job of such a derivation.
    pub fn of(drv_path: &StorePath, derivation: &Derivation, modulo_hash: String) -> Self {
        let outputs = derivation.outputs.iter().map(|(name, output)| GraphOutput {
            name: name.clone(),
            path: output.path().cloned(),
            fixed_hash: output.fixed_address().map(ToString::to_string),
        });
        let inputs =
            derivation.input_drvs.iter().map(|(input, outputs)| (input.clone(), outputs.iter().cloned().collect()));
        Self {
            drv_path: drv_path.clone(),
            modulo_hash,
            name: derivation.name.clone(),
            system: derivation.platform.clone(),
            required_features: derivation.required_system_features().unwrap_or_default().into_iter().collect(),
            outputs: outputs.collect(),
            inputs: inputs.collect(),
            sources: derivation.input_srcs.iter().cloned().collect(),
        }
    }
}

/// A recordset a table.
#[derive(Default)]
struct Rows {
    derivations: Vec<Value>,
    outputs: Vec<Value>,
    inputs: Vec<Value>,
    sources: Vec<Value>,
}

impl Rows {
    fn of(derivations: &[CheckedDerivation]) -> Self {
        let mut rows = Self::default();
        for derivation in derivations {
            let drv = derivation.drv_path.as_str();
            let mut features: Vec<String> = derivation.required_features.iter().map(|feature| text(feature)).collect();
            features.sort_unstable();
            features.dedup();
            rows.derivations.push(json!({
                "drv_path": drv, "name": text(&derivation.name), "system": text(&derivation.system),
                "required_features": features, "modulo_hash": derivation.modulo_hash,
            }));
            rows.outputs.extend(derivation.outputs.iter().map(|output| {
                json!({
                    "drv_path": drv, "output_name": text(&output.name),
                    "output_path": output.path.as_ref().map(StorePath::as_str), "fixed_hash": output.fixed_hash,
                })
            }));
            rows.inputs.extend(derivation.inputs.iter().map(|(input, outputs)| {
                let outputs: Vec<String> = outputs.iter().map(|output| text(output)).collect();
                json!({ "referrer": drv, "input_drv": input.as_str(), "outputs": outputs })
            }));
            let sources = derivation.sources.iter();
            rows.sources.extend(sources.map(|source| json!({ "referrer": drv, "path": source.as_str() })));
        }
        rows
    }
}

impl Db {
    /// Registers derivations. Only signers may. Returns those that are known as something else, which should never be: of
    /// these nothing was changed, and the difference is recorded.
    pub async fn register_derivations(&self, derivations: &[CheckedDerivation]) -> Result<Vec<StorePath>, DbError> {
        let Rows { derivations, outputs, inputs, sources } = Rows::of(derivations);
        let (derivations, outputs) = (Value::Array(derivations), Value::Array(outputs));
        let (inputs, sources) = (Value::Array(inputs), Value::Array(sources));
        let differing = self
            .run("register derivations", || {
                sqlx::query_scalar!(
                    r#"SELECT d AS "drv!" FROM register_derivations($1, $2, $3, $4) AS d"#,
                    derivations,
                    outputs,
                    inputs,
                    sources
                )
                .fetch_all(&self.pool)
            })
            .await?;
        parse_all(&differing)
    }

    /// Hashes modulo fixed outputs of those that are registered.
    pub async fn modulo_hashes(&self, drvs: &[StorePath]) -> Result<HashMap<StorePath, String>, DbError> {
        let wanted = strings(drvs);
        let rows = self
            .run("read derivation hashes", || {
                sqlx::query!("SELECT drv_path, modulo_hash FROM derivations WHERE drv_path = ANY ($1)", &wanted)
                    .fetch_all(&self.pool)
            })
            .await?;
        rows.into_iter().map(|row| Ok((parse("derivation", &row.drv_path)?, row.modulo_hash))).collect()
    }
}
