use proptest::collection::{btree_map, btree_set, vec};
use proptest::prelude::*;
use proptest::sample::Index;

use super::*;
use crate::content_address::{ContentAddress, ContentAddressMethod};
use crate::hash::{Hash, HashAlgorithm};

fn any_bytes() -> impl Strategy<Value = BString> {
    prop_oneof![vec(any::<u8>(), 0..20).prop_map(BString::from), "[\"\\\\\n\r\tab/$ü]{0,20}".prop_map(BString::from)]
}

fn any_path(name: &'static str) -> impl Strategy<Value = StorePath> {
    (any::<[u8; 20]>(), name).prop_map(|(hash, name)| StorePath::from_parts(&hash, &name).expect("valid name"))
}

fn any_hash() -> impl Strategy<Value = (ContentAddressMethod, Hash)> {
    let method = prop::sample::select(vec![
        ContentAddressMethod::Text,
        ContentAddressMethod::Flat,
        ContentAddressMethod::Recursive,
    ]);
    let algorithm = prop::sample::select(HashAlgorithm::ALL.to_vec());
    (method, algorithm, any::<u64>())
        .prop_map(|(method, algorithm, seed)| (method, Hash::of(algorithm, &seed.to_le_bytes())))
}

fn any_output() -> impl Strategy<Value = DerivationOutput> {
    (0..5, any_path("[a-z]{1,9}"), any_hash()).prop_map(|(kind, path, (method, hash))| {
        let algorithm = hash.algorithm();
        match kind {
            0 => DerivationOutput::InputAddressed(path),
            1 => DerivationOutput::Fixed { path, address: ContentAddress { method, hash } },
            2 => DerivationOutput::Floating { method, algorithm },
            3 => DerivationOutput::Deferred,
            _ => DerivationOutput::Impure { method, algorithm },
        }
    })
}

fn any_derivation() -> impl Strategy<Value = Derivation> {
    let outputs = btree_map("[a-z]{1,4}", any_output(), 0..4);
    let input_drvs = btree_map(any_path("[a-z]{1,9}\\.drv"), btree_set("[a-z]{1,4}", 0..4), 0..4);
    let input_srcs = btree_set(any_path("[a-z+_?=0-9-][a-z.+_?=0-9-]{0,9}"), 0..4);
    let args = vec(any_bytes(), 0..4);
    let env = btree_map(any_bytes(), any_bytes(), 0..6);
    (outputs, input_drvs, input_srcs, "[a-z0-9_-]{0,9}", any_bytes(), args, env).prop_map(
        |(outputs, input_drvs, input_srcs, platform, builder, args, env)| Derivation {
            name: "any".to_owned(),
            outputs,
            input_drvs,
            input_srcs,
            platform,
            builder,
            args,
            env,
        },
    )
}

fn example() -> Derivation {
    let path = StorePath::from_parts(&[0; 20], "placeholder-path").expect("valid name");
    let mut example = Derivation {
        name: "example".to_owned(),
        outputs: BTreeMap::from([("out".to_owned(), DerivationOutput::InputAddressed(path))]),
        input_drvs: BTreeMap::new(),
        input_srcs: BTreeSet::new(),
        platform: "x86_64-linux".to_owned(),
        builder: "/bin/sh".into(),
        args: vec![],
        env: BTreeMap::from([("name".into(), "example".into()), ("out".into(), BString::default())]),
    };
    settle(&mut example, |_| None);
    example
}

/// Declares the computed output paths, in the outputs and in the environment.
fn settle(derivation: &mut Derivation, input: impl FnMut(&StorePath) -> Option<ModuloHash>) {
    for (name, path) in derivation.compute_output_paths(input).expect("computable") {
        let path = path.expect("known");
        derivation.env.insert(name.as_str().into(), path.as_str().into());
        derivation.outputs.insert(name, DerivationOutput::InputAddressed(path));
    }
}

fn modulo(seed: &[u8], is_deferred: bool) -> ModuloHash {
    ModuloHash { hash: Sha256Hash::of(seed), is_deferred }
}

#[test]
fn a_changed_derivation_is_not_verified() {
    let good = example();
    let verified = good.verify_outputs(|_| None).expect("settled");
    assert_eq!(verified.paths["out"].as_ref(), good.outputs["out"].path());

    let mut other_builder = good.clone();
    other_builder.builder = "/bin/evil".into();
    let error = other_builder.verify_outputs(|_| None).expect_err("another path");
    assert!(matches!(error, VerifyOutputsError::Output { mismatch: OutputMismatch::Path { .. }, .. }), "{error:?}");

    for value in [None, Some("/nix/store/elsewhere")] {
        let mut other_variable = good.clone();
        other_variable.env.remove(bstr::BStr::new("out"));
        if let Some(value) = value {
            other_variable.env.insert("out".into(), value.into());
        } else {
            // A missing variable is another text, hence another path: declare that one.
            let paths = other_variable.compute_output_paths(|_| None).expect("computable");
            let path = paths["out"].clone().expect("known");
            other_variable.outputs.insert("out".to_owned(), DerivationOutput::InputAddressed(path));
        }
        let error = other_variable.verify_outputs(|_| None).expect_err("wrong variable");
        let is_environment = |mismatch: &OutputMismatch| matches!(mismatch, OutputMismatch::Environment(_));
        assert!(matches!(&error, VerifyOutputsError::Output { mismatch, .. } if is_environment(mismatch)), "{error:?}");
    }

    let mut fixed = good.clone();
    let address = ContentAddress::flat(Hash::of(HashAlgorithm::Sha1, b"content"));
    let output = DerivationOutput::fixed("example", "out", address).expect("valid");
    let path = output.path().expect("fixed outputs have one").clone();
    fixed.env.insert("out".into(), path.as_str().into());
    fixed.outputs.insert("out".to_owned(), output);
    assert_eq!(fixed.verify_outputs(|_| None).expect("right").paths["out"], Some(path.clone()));
    let wrong = ContentAddress::flat(Hash::of(HashAlgorithm::Sha1, b"other"));
    fixed.outputs.insert("out".to_owned(), DerivationOutput::Fixed { path, address: wrong });
    let error = fixed.verify_outputs(|_| None).expect_err("the path is not that of the hash");
    assert!(matches!(error, VerifyOutputsError::Output { mismatch: OutputMismatch::Path { .. }, .. }), "{error:?}");
}

#[test]
fn inputs_must_be_known_and_their_hashes_matter() {
    let mut derivation = example();
    let input = StorePath::from_parts(&[1; 20], "input.drv").expect("valid name");
    derivation.input_drvs.insert(input.clone(), BTreeSet::from(["out".to_owned()]));
    assert_eq!(derivation.hash_modulo(|_| None), Err(ModuloError::UnknownInput(input.clone())));
    settle(&mut derivation, |_| Some(modulo(b"one", false)));
    derivation.verify_outputs(|_| Some(modulo(b"one", false))).expect("settled");
    derivation.verify_outputs(|_| Some(modulo(b"two", false))).expect_err("another input");
    let error = derivation.verify_outputs(|_| Some(modulo(b"one", true))).expect_err("not knowable");
    assert!(matches!(error, VerifyOutputsError::Output { mismatch: OutputMismatch::NotKnowable(_), .. }), "{error:?}");
    derivation.outputs.insert("out".to_owned(), DerivationOutput::Deferred);
    let verified = derivation.verify_outputs(|_| Some(modulo(b"one", true))).expect("deferred");
    assert_eq!(verified.paths["out"], None);
    assert!(verified.modulo.is_deferred);
}

#[test]
fn kinds() {
    let mut derivation = example();
    assert_eq!(derivation.kind(), Ok(DerivationKind::InputAddressed));
    derivation.outputs.insert("dev".to_owned(), DerivationOutput::Deferred);
    assert_eq!(derivation.kind(), Err(DerivationKindError::Mixed));
    derivation.outputs.clear();
    assert_eq!(derivation.kind(), Err(DerivationKindError::None));
    let fixed =
        DerivationOutput::fixed("x", "dev", ContentAddress::flat(Hash::of(HashAlgorithm::Md5, b""))).expect("valid");
    derivation.outputs.insert("dev".to_owned(), fixed);
    assert_eq!(derivation.kind(), Err(DerivationKindError::FixedNotOut));
    assert_eq!(derivation.hash_modulo(|_| None), Err(ModuloError::Kind(DerivationKindError::FixedNotOut)));
}

#[test]
fn too_long_names_have_no_paths() {
    let mut derivation = example();
    derivation.name = "x".repeat(211);
    assert!(derivation.drv_path().is_err());
    let output = DerivationOutput::Deferred;
    derivation.outputs = BTreeMap::from([("out".to_owned(), output.clone()), ("dev".to_owned(), output)]);
    assert!(
        matches!(derivation.compute_output_paths(|_| None), Err(ModuloError::Name { output, .. }) if output == "dev")
    );
}

#[test]
fn a_file_belongs_to_its_path() {
    let derivation = example();
    let (path, text) = (derivation.drv_path().expect("valid name"), derivation.to_aterm());
    assert_eq!(Derivation::from_file(&path, &text).expect("own text"), derivation);
    let elsewhere = StorePath::from_parts(&[2; 20], "example.drv").expect("valid name");
    assert!(matches!(Derivation::from_file(&elsewhere, &text), Err(DerivationFileError::Path { .. })));
    let no_drv = StorePath::from_parts(&[2; 20], "example").expect("valid name");
    assert!(matches!(Derivation::from_file(&no_drv, &text), Err(DerivationFileError::NotADerivation(_))));
    assert!(matches!(Derivation::from_file(&path, b"Derive"), Err(DerivationFileError::Parse { .. })));
}

#[test]
fn options_from_the_environment() {
    let mut derivation = example();
    let options = derivation.options().expect("none stated");
    assert!(options.required_system_features.is_empty() && !options.prefer_local_build && options.allow_substitutes);
    for (key, value) in
        [("requiredSystemFeatures", " kvm\tbig-parallel\n kvm"), ("preferLocalBuild", "1"), ("allowSubstitutes", "")]
    {
        derivation.env.insert(key.into(), value.into());
    }
    let options = derivation.options().expect("valid");
    assert_eq!(options.required_system_features, BTreeSet::from(["big-parallel".to_owned(), "kvm".to_owned()]));
    assert!(options.prefer_local_build && !options.allow_substitutes && !options.has_structured_attrs);
    derivation.env.insert("requiredSystemFeatures".into(), b"\xff".into());
    assert!(matches!(derivation.required_system_features(), Err(DerivationOptionsError::NotUtf8)));
    // With JSON, variables of these names mean nothing.
    let json = r#"{"requiredSystemFeatures":["nixos-test"],"preferLocalBuild":true,"x":{"y":[1]}}"#;
    derivation.env.insert("__json".into(), json.into());
    assert_eq!(derivation.required_system_features().expect("valid"), BTreeSet::from(["nixos-test".to_owned()]));
    let options = derivation.options().expect("valid");
    assert!(options.prefer_local_build && options.allow_substitutes && options.has_structured_attrs);
    for json in ["", "[]", "5", &format!("{{\"x\":{}", "[".repeat(100_000))] {
        derivation.env.insert("__json".into(), json.into());
        assert!(matches!(derivation.prefer_local(), Err(DerivationOptionsError::Json(_))), "{json:.40}");
    }
    // What is not asked for may be as deep as it likes.
    let (open, close) = ("[".repeat(100_000), "]".repeat(100_000));
    derivation.env.insert("__json".into(), format!(r#"{{"deep":{open}{close},"preferLocalBuild":true}}"#).into());
    assert!(derivation.prefer_local().expect("valid"));
}

#[test]
fn options_of_a_wrong_type_are_named() {
    let mut derivation = example();
    let list = "its attribute requiredSystemFeatures must be a list of strings";
    for (json, expected) in [
        (r#"{"requiredSystemFeatures":"kvm"}"#, list),
        (r#"{"requiredSystemFeatures":["kvm",1]}"#, list),
        (r#"{"requiredSystemFeatures":null}"#, list),
        (r#"{"preferLocalBuild":"1"}"#, "its attribute preferLocalBuild must be true or false"),
        (r#"{"allowSubstitutes":1}"#, "its attribute allowSubstitutes must be true or false"),
        (
            &format!(r#"{{"allowSubstitutes":{}{}}}"#, "[".repeat(1_000), "]".repeat(1_000)),
            "its attribute allowSubstitutes must be true or false",
        ),
    ] {
        derivation.env.insert("__json".into(), json.into());
        assert_eq!(derivation.options().expect_err(json).to_string(), expected, "{json:.60}");
    }
}

#[test]
fn references_are_discarded_of_outputs_that_say_so() {
    let mut derivation = example();
    derivation.env.insert("unsafeDiscardReferences".into(), "1".into());
    assert!(!derivation.discards_references("out"), "of structured attributes only");
    for (json, discards) in [
        (r#"{"unsafeDiscardReferences":{"out":true,"dev":false}}"#, true),
        (r#"{"unsafeDiscardReferences":{"dev":true}}"#, false),
        (r#"{"unsafeDiscardReferences":true}"#, false),
        (r#"{"unsafeDiscardReferences":null}"#, false),
        ("{}", false),
        ("", false),
    ] {
        derivation.env.insert("__json".into(), json.into());
        assert_eq!(derivation.discards_references("out"), discards, "{json}");
    }
}

#[test]
fn resolving() {
    let mut derivation = example();
    let input = StorePath::from_parts(&[1; 20], "input.drv").expect("valid name");
    let output = StorePath::from_parts(&[2; 20], "input-dev").expect("valid name");
    let placeholder = upstream_output_placeholder(&input, "dev").expect("a derivation");
    derivation.input_drvs.insert(input.clone(), BTreeSet::from(["dev".to_owned()]));
    derivation.args = vec![format!("/{placeholder}/bin{placeholder}{placeholder}").into(), placeholder[..30].into()];
    derivation.env.insert("P".into(), format!("/nix/{placeholder}").into());
    let unknown = ResolveError::UnknownInput { drv_path: input, output: "dev".to_owned() };
    assert_eq!(derivation.resolve(|_, _| None), Err(unknown));
    let basic = derivation.resolve(|_, name| Some(output.clone()).filter(|_| name == "dev")).expect("known");
    assert_eq!(basic.args[0], format!("/{output}/bin{output}{output}"));
    assert_eq!(basic.args[1], placeholder[..30]);
    assert_eq!(basic.env[bstr::BStr::new("P")], format!("/nix/{output}"));
    assert_eq!(basic.input_srcs, BTreeSet::from([output]));
    assert_eq!(basic.outputs, derivation.outputs);
}

#[test]
fn printed_modulo_hashes_are_read() {
    for hash in [modulo(b"", false), modulo(b"", true)] {
        assert_eq!(hash.to_string().parse(), Ok(hash));
    }
    assert!("".parse::<ModuloHash>().is_err());
    assert!("deferred:00".parse::<ModuloHash>().is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn text_survives(derivation in any_derivation()) {
        let text = derivation.to_aterm();
        let read = Derivation::parse("any", &text);
        prop_assert_eq!(read, Ok(derivation));
    }

    #[test]
    fn mutations_are_answered(
        derivation in any_derivation(),
        edits in vec((any::<Index>(), any::<u8>(), 0..3), 1..6),
    ) {
        let mut text = derivation.to_aterm();
        for (index, byte, how) in edits {
            let index = index.index(text.len());
            match how {
                0 => text[index] = byte,
                1 => text.insert(index, byte),
                _ => { text.remove(index); }
            }
        }
        // Whatever is accepted is what Nix would have written.
        match Derivation::parse("any", &text) {
            Ok(read) => prop_assert_eq!(read.to_aterm(), text),
            Err(error) => prop_assert!(error.offset <= text.len()),
        }
    }

    #[test]
    fn hashing_never_panics(derivation in any_derivation(), name in "[a-z.]{0,220}") {
        let derivation = Derivation { name, ..derivation };
        let _ = derivation.verify_outputs(|_| Some(modulo(b"input", false)));
        let _ = derivation.resolve(|_, _| StorePath::from_parts(&[0; 20], "x").ok());
        let _ = derivation.options();
        let _ = derivation.drv_path();
    }
}
