//! From a derivation with input derivations to one with plain input paths. Start at [`Derivation::resolve`].

use std::collections::{BTreeMap, HashMap};

use bstr::{BStr, BString, ByteSlice as _};

use super::placeholder::{PLACEHOLDER_BYTES, upstream_output_placeholder};
use super::{BasicDerivation, Derivation, ModuloError};
use crate::store_path::StorePath;

/// Why the inputs of a derivation cannot be turned into paths.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// The caller knows no path of an input.
    #[error("the path of output '{output}' of the input {drv_path} is not known")]
    UnknownInput {
        /// Which derivation.
        drv_path: StorePath,
        /// Which output of it.
        output: String,
    },
    /// The paths of deferred outputs cannot be computed.
    #[error("the output paths of the resolved derivation cannot be computed")]
    Outputs(#[source] ModuloError),
}

impl Derivation {
    /// Replaces the input derivations by the paths of their outputs, which `output_path` gives, and placeholders
    /// of floating inputs by these paths. Deferred outputs get their paths.
    pub fn resolve(
        &self,
        mut output_path: impl FnMut(&StorePath, &str) -> Option<StorePath>,
    ) -> Result<BasicDerivation, ResolveError> {
        let mut input_srcs = self.input_srcs.clone();
        let mut rewrites = HashMap::new();
        for (drv_path, output_names) in &self.input_drvs {
            for output in output_names {
                let path = output_path(drv_path, output)
                    .ok_or_else(|| ResolveError::UnknownInput { drv_path: drv_path.clone(), output: output.clone() })?;
                if let Some(placeholder) = upstream_output_placeholder(drv_path, output) {
                    rewrites.insert(BString::from(placeholder), path.clone());
                }
                input_srcs.insert(path);
            }
        }
        let rewrite = |text: &BString| rewrite(text, &rewrites);
        let basic = BasicDerivation {
            name: self.name.clone(),
            outputs: self.outputs.clone(),
            input_srcs,
            platform: self.platform.clone(),
            builder: rewrite(&self.builder),
            args: self.args.iter().map(rewrite).collect(),
            env: self.env.iter().map(|(key, value)| (rewrite(key), rewrite(value))).collect(),
        };
        basic.complete_deferred_outputs().map_err(ResolveError::Outputs)
    }

    /// The inputs dropped but for sources. Only right if there are no input derivations.
    pub(super) fn into_basic(self) -> BasicDerivation {
        let Self { name, outputs, input_drvs: _, input_srcs, platform, builder, args, env } = self;
        BasicDerivation { name, outputs, input_srcs, platform, builder, args, env }
    }
}

impl From<BasicDerivation> for Derivation {
    fn from(basic: BasicDerivation) -> Self {
        let BasicDerivation { name, outputs, input_srcs, platform, builder, args, env } = basic;
        Self { name, outputs, input_drvs: BTreeMap::new(), input_srcs, platform, builder, args, env }
    }
}

/// Replaces each placeholder in one pass, so that the time does not grow with their number.
fn rewrite(text: &BString, rewrites: &HashMap<BString, StorePath>) -> BString {
    let mut rewritten = Vec::new();
    let mut kept_to = 0;
    let mut offset = 0;
    while let Some(slash) = text[offset..].find_byte(b'/') {
        let start = offset + slash;
        let path = text.get(start..start + PLACEHOLDER_BYTES).and_then(|found| rewrites.get(BStr::new(found)));
        offset = start + 1;
        if let Some(path) = path {
            rewritten.extend_from_slice(&text[kept_to..start]);
            rewritten.extend_from_slice(path.as_str().as_bytes());
            kept_to = start + PLACEHOLDER_BYTES;
            offset = kept_to;
        }
    }
    rewritten.extend_from_slice(&text[kept_to..]);
    rewritten.into()
}
