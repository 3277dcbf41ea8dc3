//! The recorded derivations of real evaluations, by a newer Nix than the installed one.

use std::collections::BTreeMap;

use harmonia_fixtures::{Archive, file_name, recording};
use harmonia_nix::{Derivation, StorePath};

use crate::derivations::verify_all;

/// The files whose name ends so, with their bytes.
fn recorded_files(ending: &str) -> Vec<(String, Vec<u8>)> {
    recording(Archive::NixEvalJobs).into_iter().filter(|(path, _)| path.ends_with(ending)).collect()
}

fn recorded_derivations() -> BTreeMap<StorePath, Derivation> {
    let mut derivations = BTreeMap::new();
    for (file, text) in recorded_files(".drv") {
        let path = StorePath::from_base_name(file_name(&file)).expect("files are named as in the store");
        let derivation = Derivation::from_file(&path, &text).unwrap_or_else(|error| panic!("{path}: {error:?}"));
        assert_eq!(derivation.to_aterm(), text, "{path}");
        assert_eq!(derivation.drv_path().expect("valid name"), path);
        derivations.insert(path, derivation);
    }
    derivations
}

#[test]
fn recorded_derivations_are_understood() {
    let derivations = recorded_derivations();
    assert!(derivations.len() >= 100, "only {} recorded derivations found", derivations.len());
    let results = verify_all(&derivations);
    for (path, result) in &results {
        let verified = result.as_ref().unwrap_or_else(|error| panic!("{path}: {error:?}"));
        let declared = derivations[path].output_paths().map(|(name, path)| (name.to_owned(), path.cloned())).collect();
        assert_eq!(verified.paths, declared, "{path}");
    }
    // Some recordings left out inputs; what could not be verified must be for that reason.
    for (path, derivation) in derivations.iter().filter(|(path, _)| !results.contains_key(*path)) {
        assert!(derivation.input_drvs.keys().any(|input| !results.contains_key(input)), "{path}");
    }
    println!("{} of {} derivations verified", results.len(), derivations.len());
    assert!(results.len() * 10 >= derivations.len() * 9, "{} of {}", results.len(), derivations.len());
    for (path, derivation) in &derivations {
        derivation.options().unwrap_or_else(|error| panic!("{path}: {error:?}"));
    }
}

#[test]
fn the_evaluator_reported_what_we_read() {
    let derivations = recorded_derivations();
    let mut compared = 0;
    for (_, bytes) in recorded_files(".jsonl") {
        let text = String::from_utf8(bytes).expect("UTF-8");
        // A line may be cut off where the recording ended.
        let lines = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        for line in lines {
            let Some(path) = line["drvPath"].as_str() else { continue };
            let Some(derivation) = derivations.get(&StorePath::parse(path).expect("a store path")) else { continue };
            assert_eq!(line["system"].as_str(), Some(derivation.platform.as_str()), "{path}");
            assert_eq!(line["name"].as_str(), Some(derivation.name.as_str()), "{path}");
            for (name, output) in line["outputs"].as_object().expect("outputs") {
                let read = derivation.outputs[name].path().map(StorePath::as_str);
                assert_eq!(output.as_str(), read, "{path} {name}");
            }
            compared += 1;
        }
    }
    assert!(compared >= 100, "only {compared} lines compared");
}
