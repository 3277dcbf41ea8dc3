//! Derivations against what `nix-instantiate` writes and `nix-build` resolves.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;

use harmonia_nix::derivation::{
    DerivationKind, ModuloHash, VerifiedOutputs, VerifyOutputsError, hash_placeholder, upstream_output_placeholder,
};
use harmonia_nix::{Derivation, StorePath};

use crate::nix::{Nix, store_path};

/// Verifies derivations, inputs first, as far as their inputs are there. Gives what was verified and, for the
/// others, nothing.
pub(crate) fn verify_all(
    derivations: &BTreeMap<StorePath, Derivation>,
) -> HashMap<StorePath, Result<VerifiedOutputs, VerifyOutputsError>> {
    let mut results = HashMap::new();
    loop {
        let before = results.len();
        for (path, derivation) in derivations {
            let is_ready = derivation.input_drvs.keys().all(|input| matches!(results.get(input), Some(Ok(_))));
            // The hash of a fixed output needs no inputs.
            if !results.contains_key(path) && (is_ready || derivation.kind() == Ok(DerivationKind::Fixed)) {
                let result = derivation.verify_outputs(|input| modulo_of(&results, input));
                results.insert(path.clone(), result);
            }
        }
        if results.len() == before {
            return results;
        }
    }
}

fn modulo_of(
    results: &HashMap<StorePath, Result<VerifiedOutputs, VerifyOutputsError>>,
    path: &StorePath,
) -> Option<ModuloHash> {
    match results.get(path) {
        Some(Ok(verified)) => Some(verified.modulo),
        _ => None,
    }
}

/// The store of all derivations of `derivations.nix`.
fn instantiated() -> (Nix, BTreeMap<StorePath, Derivation>) {
    let nix = Nix::new();
    nix.write("latin1", b"caf\xe9\n");
    let expression = nix.write("derivations.nix", include_bytes!("derivations.nix")).display().to_string();
    nix.run("nix-instantiate", &[&expression]);
    let mut derivations = BTreeMap::new();
    for entry in fs::read_dir(nix.path("root/nix/store")).expect("the store") {
        let entry = entry.expect("an entry of the store");
        let name = entry.file_name().into_string().expect("ASCII");
        if entry.path().extension().is_some_and(|extension| extension == "drv") {
            let path = StorePath::from_base_name(&name).expect("a store path");
            let text = fs::read(entry.path()).expect("a derivation");
            let derivation = Derivation::from_file(&path, &text).unwrap_or_else(|error| panic!("{path}: {error:?}"));
            assert_eq!(derivation.to_aterm(), text, "{path}");
            derivations.insert(path, derivation);
        }
    }
    (nix, derivations)
}

fn named<'a>(derivations: &'a BTreeMap<StorePath, Derivation>, name: &str) -> (&'a StorePath, &'a Derivation) {
    let mut found = derivations.iter().filter(|(_, derivation)| derivation.name == name);
    found.next().unwrap_or_else(|| panic!("no derivation is called {name}"))
}

#[test]
fn texts_and_paths_are_those_of_nix() {
    let (_nix, derivations) = instantiated();
    assert_eq!(derivations.len(), 54, "all of derivations.nix");
    let results = verify_all(&derivations);
    assert_eq!(results.len(), derivations.len(), "every input is there");
    let mut count_of_kind: BTreeMap<String, u32> = BTreeMap::new();
    for (path, result) in &results {
        let derivation = &derivations[path];
        let verified = result.as_ref().unwrap_or_else(|error| panic!("{path}: {error:?}"));
        let declared = derivation.output_paths().map(|(name, path)| (name.to_owned(), path.cloned())).collect();
        assert_eq!(verified.paths, declared, "{path}");
        *count_of_kind.entry(format!("{:?}", derivation.kind().expect("valid"))).or_default() += 1;
    }
    let counted: Vec<(&str, u32)> = count_of_kind.iter().map(|(kind, count)| (kind.as_str(), *count)).collect();
    assert_eq!(counted, [("Deferred", 2), ("Fixed", 8), ("Floating", 3), ("Impure", 2), ("InputAddressed", 39)]);
}

#[test]
fn strings_keep_their_bytes() {
    let (_nix, derivations) = instantiated();
    let (_, strings) = named(&derivations, "strings+1.0_a?=b");
    let variable = |name: &str| strings.env[bstr::BStr::new(name)].clone();
    assert_eq!(variable("latin1"), b"caf\xe9\n");
    assert_eq!(variable("quotes"), "\"quoted\" \\ back\\slash");
    assert_eq!(variable("lines"), "a\nb\r\tc\\n");
    assert_eq!(variable("unicode"), "grün 🚀");
    assert_eq!(variable("with space"), "a variable");
    assert_eq!(strings.args[1], "echo \"$0\" \\\n\t > $out");
}

#[test]
fn options_of_both_kinds_of_attributes() {
    let (_nix, derivations) = instantiated();
    let features = |names: [&str; 2]| names.into_iter().map(str::to_owned).collect::<BTreeSet<_>>();
    for (name, expected, is_structured) in [
        ("structured", features(["kvm", "big-parallel"]), true),
        ("features", features(["kvm", "nixos-test"]), false),
        ("plain", BTreeSet::new(), false),
    ] {
        let (_, derivation) = named(&derivations, name);
        let options = derivation.options().expect("valid attributes");
        assert_eq!(options.required_system_features, expected, "{name}");
        assert_eq!(options.prefer_local_build, name != "plain", "{name}");
        assert_eq!(options.has_structured_attrs, is_structured, "{name}");
    }
}

#[test]
fn placeholders_are_those_of_nix() {
    let (nix, derivations) = instantiated();
    for output in ["out", "dev", "a.b"] {
        assert_eq!(nix.eval(&format!("builtins.placeholder \"{output}\"")), hash_placeholder(output));
    }
    let (floating, _) = named(&derivations, "floating");
    let (_, deferred) = named(&derivations, "deferred");
    let expected = upstream_output_placeholder(floating, "dev").expect("a derivation");
    assert_eq!(deferred.env[bstr::BStr::new("input2")], expected);
}

#[test]
fn resolving_gives_the_derivations_that_nix_builds() {
    let (nix, derivations) = instantiated();
    let expression = nix.path("derivations.nix").display().to_string();
    // What Nix says each output of a floating or deferred derivation came to.
    let mut realised: HashMap<(StorePath, String), StorePath> = HashMap::new();
    for (attribute, name, output) in [
        ("floating.out", "floating", "out"),
        ("floating.dev", "floating", "dev"),
        ("floatingUser", "floating-user", "out"),
        ("deferred.doc", "deferred", "doc"),
    ] {
        let path = store_path(&nix.run("nix-build", &["--no-out-link", &expression, "-A", attribute]));
        assert!(nix.real(&path).exists(), "{path} was built");
        realised.insert((named(&derivations, name).0.clone(), output.to_owned()), path);
    }
    let deferred_more = store_path(&nix.run("nix-build", &["--no-out-link", &expression, "-A", "deferredMore"]));
    for name in ["floating-user", "deferred", "deferred-more"] {
        let (_, derivation) = named(&derivations, name);
        let resolved = derivation
            .resolve(|drv_path, output| realised.get(&(drv_path.clone(), output.to_owned())).cloned())
            .unwrap_or_else(|error| panic!("{name}: {error:?}"));
        let resolved = Derivation::from(resolved);
        let path = resolved.drv_path().expect("valid name");
        let theirs = fs::read(nix.real(&path)).unwrap_or_else(|error| panic!("Nix did not write {path}: {error}"));
        assert_eq!(resolved.to_aterm(), theirs, "{name}");
        let verified = resolved.verify_outputs(|_| None).expect("right paths");
        match name {
            "deferred" => {
                let built = realised.values().find(|path| path.name() == "deferred-doc");
                assert_eq!(verified.paths["doc"].as_ref(), built);
            }
            "deferred-more" => assert_eq!(verified.paths["out"], Some(deferred_more.clone())),
            _ => assert_eq!(verified.paths["out"], None),
        }
    }
}
