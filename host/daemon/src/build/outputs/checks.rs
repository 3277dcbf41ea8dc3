//! What a derivation allows its outputs to refer to and to take. Start at [`check`].

use std::collections::{BTreeMap, BTreeSet};

use harmonia_nix::store_path::StorePath;
use harmonia_nix::worker_protocol::BuildStatus;
use serde_json::Value;

use crate::build::attributes::{Attributes, rejected};
use crate::build::{BuildFailure, BuildRequest, BuiltPath};

/// What is asked of one output.
#[derive(Default)]
struct Checks {
    ignore_self: bool,
    size_max: Option<u64>,
    closure_size_max: Option<u64>,
    allowed_references: Option<Vec<String>>,
    allowed_requisites: Option<Vec<String>>,
    disallowed_references: Option<Vec<String>>,
    disallowed_requisites: Option<Vec<String>>,
}

/// Holds each output to what is asked of it.
pub(in crate::build) fn check(
    request: &BuildRequest,
    attributes: &Attributes<'_>,
    built: &[BuiltPath],
) -> Result<(), BuildFailure> {
    for output in built {
        if let Some(checks) = checks_of(request, attributes, &output.output)? {
            Checking { request, built, output }.apply(&checks)?;
        }
    }
    Ok(())
}

fn checks_of(
    request: &BuildRequest,
    attributes: &Attributes<'_>,
    output: &str,
) -> Result<Option<Checks>, BuildFailure> {
    let Some(structured) = &attributes.structured else {
        return Ok(Some(Checks {
            ignore_self: true,
            allowed_references: attributes.strings("allowedReferences")?,
            allowed_requisites: attributes.strings("allowedRequisites")?,
            disallowed_references: attributes.strings("disallowedReferences")?,
            disallowed_requisites: attributes.strings("disallowedRequisites")?,
            ..Checks::default()
        }));
    };
    let Some(checks) = structured.get("outputChecks").and_then(|checks| checks.get(output)) else { return Ok(None) };
    let strings = |name: &str| checks.get(name).map(|value| attributes.strings_of(name, value)).transpose();
    let number = |name: &str| match checks.get(name).map(Value::as_u64) {
        Some(None) => {
            Err(rejected(format!("attribute '{name}' of derivation '{}' must be a number of bytes", request.drv_path)))
        }
        Some(number) => Ok(number),
        None => Ok(None),
    };
    Ok(Some(Checks {
        ignore_self: false,
        size_max: number("maxSize")?,
        closure_size_max: number("maxClosureSize")?,
        allowed_references: strings("allowedReferences")?,
        allowed_requisites: strings("allowedRequisites")?,
        disallowed_references: strings("disallowedReferences")?,
        disallowed_requisites: strings("disallowedRequisites")?,
    }))
}

struct Checking<'a> {
    request: &'a BuildRequest,
    built: &'a [BuiltPath],
    output: &'a BuiltPath,
}

impl Checking<'_> {
    fn apply(&self, checks: &Checks) -> Result<(), BuildFailure> {
        let path = &self.output.path;
        let size = self.output.nar_size_bytes;
        if let Some(max) = checks.size_max.filter(|max| size > *max) {
            return Err(refused(format!("path '{path}' is too large at {size} bytes; limit is {max} bytes")));
        }
        if let Some(max) = checks.closure_size_max {
            let size: u64 = self.closure().values().sum();
            if size > max {
                return Err(refused(format!(
                    "closure of path '{path}' is too large at {size} bytes; limit is {max} bytes"
                )));
            }
        }
        self.references(checks, checks.allowed_references.as_deref(), true, false)?;
        self.references(checks, checks.allowed_requisites.as_deref(), true, true)?;
        self.references(checks, checks.disallowed_references.as_deref(), false, false)?;
        self.references(checks, checks.disallowed_requisites.as_deref(), false, true)
    }

    fn references(
        &self,
        checks: &Checks,
        specifiers: Option<&[String]>,
        allowed: bool,
        recursive: bool,
    ) -> Result<(), BuildFailure> {
        let Some(specifiers) = specifiers else { return Ok(()) };
        let named = specifiers.iter().map(|specifier| self.meant(specifier)).collect::<Result<BTreeSet<_>, _>>()?;
        let mut used = if recursive { self.closure().into_keys().collect() } else { self.output.references.clone() };
        if recursive && checks.ignore_self {
            used.remove(&self.output.path);
        }
        let bad: Vec<&StorePath> = used.iter().filter(|path| named.contains(*path) != allowed).collect();
        if bad.is_empty() {
            return Ok(());
        }
        let list = bad.iter().fold(String::new(), |list, path| list + "\n  " + path.as_str());
        Err(refused(format!("output '{}' is not allowed to refer to the following paths:{list}", self.output.path)))
    }

    /// A store path, or the name of an output.
    fn meant(&self, specifier: &str) -> Result<StorePath, BuildFailure> {
        if let Ok(path) = StorePath::parse(specifier) {
            return Ok(path);
        }
        let output = self.request.derivation.outputs.get(specifier).and_then(|output| output.path());
        output
            .cloned()
            .ok_or_else(|| refused(format!("derivation contains an illegal reference specifier '{specifier}'")))
    }

    /// All that the output needs, itself among it, with their sizes.
    fn closure(&self) -> BTreeMap<StorePath, u64> {
        let mut left = vec![self.output.path.clone()];
        let mut closure = BTreeMap::new();
        while let Some(path) = left.pop() {
            if closure.contains_key(&path) {
                continue;
            }
            let new = self.built.iter().find(|built| built.path == path);
            let valid = || {
                let outputs = &self.request.derivation.outputs;
                let mut valid = self.request.valid_outputs.iter();
                let output = valid.find(|(name, _)| outputs.get(*name).and_then(|output| output.path()) == Some(&path));
                output.map(|(_, info)| info).or_else(|| self.request.inputs.get(&path))
            };
            let (size, references) = match (new, valid()) {
                (Some(new), _) => (new.nar_size_bytes, Some(&new.references)),
                (None, Some(info)) => (info.nar_size_bytes, Some(&info.references)),
                (None, None) => (0, None),
            };
            left.extend(references.into_iter().flatten().cloned());
            closure.insert(path, size);
        }
        closure
    }
}

/// An output that is not what the derivation allows.
pub(in crate::build) fn refused(message: String) -> BuildFailure {
    BuildFailure::new(BuildStatus::OutputRejected, message)
}
