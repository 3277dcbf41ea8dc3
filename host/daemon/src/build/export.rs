//! `exportReferencesGraph`: the closures of some inputs, for builders that copy or describe them. Start at [`closure`].

use std::collections::BTreeSet;
use std::fmt::Write as _;

use harmonia_nix::derivation::Derivation;
use harmonia_nix::store_path::StorePath;
use harmonia_nix::worker_protocol::BuildStatus;
use serde_json::{Value, json};

use super::attributes::{rejected, words};
use super::{BuildFailure, BuildRequest};

/// The files that `exportReferencesGraph` asks for, of a derivation without structured attributes: (name, text).
pub(super) fn files(request: &BuildRequest, attribute: &[u8]) -> Result<Vec<(String, Vec<u8>)>, BuildFailure> {
    let words = words(attribute);
    if !words.len().is_multiple_of(2) {
        let text = String::from_utf8_lossy(attribute);
        return Err(rejected(format!("odd number of tokens in 'exportReferencesGraph': '{text}'")));
    }
    let mut files = Vec::new();
    for pair in words.chunks(2) {
        let (name, path) = (&pair[0], &pair[1]);
        if !is_file_name(name) {
            return Err(rejected(format!("invalid file name '{name}' in 'exportReferencesGraph'")));
        }
        let paths = closure(request, [store_path_of(path)?])?;
        files.push((name.clone(), registration(request, &paths)));
    }
    Ok(files)
}

/// The same in structured attributes: what the builder is told of each path.
pub(super) fn described(request: &BuildRequest, paths: &[String]) -> Result<Value, BuildFailure> {
    let roots = paths.iter().map(|path| store_path_of(path)).collect::<Result<Vec<_>, _>>()?;
    let described = closure(request, roots)?.into_iter().map(|path| {
        let input = &request.inputs[&path];
        let size: u64 = reached(request, [path.clone()]).iter().map(|path| request.inputs[path].nar_size_bytes).sum();
        let mut value = json!({
            "path": path.as_str(),
            "narHash": input.nar_hash.to_string(),
            "narSize": input.nar_size_bytes,
            "references": input.references.iter().map(StorePath::as_str).collect::<Vec<_>>(),
            "closureSize": size,
        });
        if let Some(address) = &input.content_address {
            value["ca"] = address.to_string().into();
        }
        value
    });
    Ok(Value::Array(described.collect()))
}

fn is_file_name(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}

/// The store path that a path is or is below.
fn store_path_of(path: &str) -> Result<StorePath, BuildFailure> {
    let base_name = path.strip_prefix("/nix/store/").and_then(|rest| rest.split('/').next());
    base_name
        .and_then(|base_name| StorePath::from_base_name(base_name).ok())
        .ok_or_else(|| rejected(format!("'exportReferencesGraph' contains a non-store path '{path}'")))
}

/// All that the roots, which must be inputs, refer to; of derivations among it their outputs, too.
fn closure(
    request: &BuildRequest,
    roots: impl IntoIterator<Item = StorePath>,
) -> Result<BTreeSet<StorePath>, BuildFailure> {
    let roots: Vec<StorePath> = roots.into_iter().collect();
    let missing = |path: &StorePath| {
        BuildFailure::new(
            BuildStatus::InputRejected,
            format!(
                "cannot export references of path '{path}' because it is not in the input closure of the derivation"
            ),
        )
    };
    if let Some(path) = roots.iter().find(|path| !request.inputs.contains_key(*path)) {
        return Err(missing(path));
    }
    let mut paths = reached(request, roots);
    let mut outputs = Vec::new();
    for path in paths.iter().filter(|path| path.is_derivation()) {
        let real = &request.inputs[path].real;
        let text =
            std::fs::read(real).map_err(|cause| BuildFailure::machine(format!("read {}", real.display()), cause))?;
        let derivation = Derivation::from_file(path, &text)
            .map_err(|cause| BuildFailure::machine(format!("read the derivation {path}"), cause))?;
        for (name, output) in derivation.output_paths() {
            let output = output.ok_or_else(|| {
                rejected(format!(
                    "cannot export the references of output '{name}' of '{path}', whose path is not known"
                ))
            })?;
            outputs.push(output.clone());
        }
    }
    if let Some(path) = outputs.iter().find(|path| !request.inputs.contains_key(*path)) {
        return Err(missing(path));
    }
    paths.extend(reached(request, outputs));
    Ok(paths)
}

/// What inputs reach by references.
pub(super) fn reached(request: &BuildRequest, roots: impl IntoIterator<Item = StorePath>) -> BTreeSet<StorePath> {
    let mut left: Vec<StorePath> = roots.into_iter().collect();
    let mut reached = BTreeSet::new();
    while let Some(path) = left.pop() {
        let Some(input) = request.inputs.get(&path) else { continue };
        if reached.insert(path) {
            left.extend(input.references.iter().cloned());
        }
    }
    reached
}

/// What `nix-store --register-validity` reads, without derivers and hashes.
fn registration(request: &BuildRequest, paths: &BTreeSet<StorePath>) -> Vec<u8> {
    let mut text = String::new();
    for path in paths {
        let references = &request.inputs[path].references;
        let _never_fails = write!(text, "{path}\n\n{}\n", references.len());
        for reference in references {
            let _never_fails = writeln!(text, "{reference}");
        }
    }
    text.into_bytes()
}
