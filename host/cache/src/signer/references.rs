//! What an archive that is read may refer to, see `docs/decisions/0018-references-of-archives.md`. Start at
//! [`Signer::possible_references`].

use std::collections::BTreeSet;

use harmonia_nix::{Derivation, StorePath};

use super::content::References;
use super::error::SignError;
use super::rows::Row;
use super::wire::Upload;
use super::{Outputs, Signer};

/// Most paths that one archive is searched for, beside those that it is declared to refer to.
const CANDIDATES_MAX: usize = 50_000;

impl Signer {
    /// What the references of this path are held against: as Nix does it, the outputs of the same derivation, and its
    /// inputs with all that they refer to, as far as that was published here.
    pub(super) async fn possible_references(&self, upload: &Upload) -> Result<References, SignError> {
        // A source: its path is computed from its references.
        let Some(deriver) = &upload.deriver else { return Ok(References::Bound) };
        let Some(derivation) = self.load_derivation(deriver).await? else {
            return Ok(References::Among(BTreeSet::new()));
        };
        if discards(&derivation, &upload.path) {
            return Ok(References::Among(BTreeSet::new()));
        }
        let mut candidates = paths_of(&derivation.outputs);
        let inputs = self.direct_inputs(&derivation).await?;
        let mut frontier: Vec<StorePath> = inputs.iter().cloned().collect();
        candidates.extend(inputs);
        while !frontier.is_empty() && candidates.len() < CANDIDATES_MAX {
            let rows = self.rows(&frontier).await?;
            let below = rows.into_values().filter(Row::is_held).flat_map(|row| row.upload.references);
            frontier = below.filter(|path| candidates.insert(path.clone())).collect();
        }
        Ok(References::Among(candidates))
    }

    async fn direct_inputs(&self, derivation: &Derivation) -> Result<BTreeSet<StorePath>, SignError> {
        let drvs: Vec<StorePath> = derivation.input_drvs.keys().cloned().collect();
        let outputs = self.db().derivation_outputs(&drvs).await?;
        let is_input = |drv: &StorePath, output: &str| {
            derivation.input_drvs.get(drv).is_some_and(|outputs| outputs.contains(output))
        };
        let made = outputs.into_iter().filter(|(drv, output, _)| is_input(drv, output)).filter_map(|(.., path)| path);
        Ok(made.chain(derivation.input_srcs.iter().cloned()).collect())
    }
}

fn paths_of(outputs: &Outputs) -> BTreeSet<StorePath> {
    outputs.values().filter_map(|output| output.path().cloned()).collect()
}

fn discards(derivation: &Derivation, path: &StorePath) -> bool {
    let mut outputs = derivation.outputs.iter();
    let name = outputs.find_map(|(name, output)| (output.path() == Some(path)).then_some(name));
    name.is_some_and(|name| derivation.discards_references(name))
}
