//! What a component is, without running it for anybody: `plugin inspect`.

use std::path::Path;
use std::sync::Arc;

use harmonia_core::plugin::PluginKind;
use serde::Serialize;

use crate::call::Network;
use crate::description::{self, Description};
use crate::error::LoadError;
use crate::plugin::{self, World};
use crate::registry::PluginHost;
use crate::spec::PluginSpec;
use crate::stats::Stats;
use crate::wasi::WasiGrant;

/// What a component is and could ever do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Inspection {
    /// What it is for.
    pub kind: PluginKind,
    /// Packages and tracks of the contract that it speaks (`harmonia:forge@0.1`).
    pub tracks: Vec<String>,
    /// Interfaces that it exports.
    pub exports: Vec<String>,
    /// Interfaces that it imports: what is not here it can never do.
    pub imports: Vec<String>,
    /// Whether it can only be loaded with a WASI.
    pub needs_wasi: bool,
    /// Imports that no configuration grants, with the reason.
    pub refused: Vec<String>,
    /// Bytes of the file.
    pub size_bytes: u64,
    /// SHA-256 of the file in lower-case hex.
    pub sha256: String,
    /// Whether its instances come from the pool (some microseconds) or are made one by one.
    pub is_pooled: bool,
    /// What it says of itself; `None` when it does not get that far: see `problem`.
    pub description: Option<Description>,
    /// Why it could not be asked.
    pub problem: Option<String>,
}

impl PluginHost {
    /// Looks at a component file, and asks it what it is, with nothing granted but an empty WASI if it needs one.
    pub async fn inspect(&self, path: &Path) -> Result<Inspection, LoadError> {
        let mut spec = PluginSpec::new("inspected", path);
        spec.wasi = WasiGrant::Empty;
        let program = self.program(&spec).await?;
        let contract = &program.contract;
        let refused = crate::loader::import_problems(&program.imports, contract.kind, WasiGrant::Empty, "inspected");
        let mut inspection = Inspection {
            kind: contract.kind,
            tracks: contract.tracks.clone(),
            exports: program.exports.clone(),
            imports: program.imports.clone(),
            needs_wasi: contract.wants_wasi,
            refused: refused.iter().map(ToString::to_string).collect(),
            size_bytes: program.size_bytes,
            sha256: program.sha256.clone(),
            is_pooled: program.is_pooled,
            description: None,
            problem: None,
        };
        let world = World { network: Network::Closed, ..self.world().clone() };
        let described = match plugin::link(&world, &spec, program, Arc::new(Stats::default())) {
            Ok(caller) => description::describe(&caller).await.map_err(|error| LoadError::Describe(Box::new(error))),
            Err(error) => Err(error),
        };
        match described {
            Ok(description) => inspection.description = Some(description),
            Err(error) => inspection.problem = Some(harmonia_core::chain(&error)),
        }
        Ok(inspection)
    }
}
