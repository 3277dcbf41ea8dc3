//! Store paths of every maker against `nix-store`, `builtins.toFile` and content-addressed rewriting.

use std::collections::BTreeSet;
use std::fs;

use harmonia_nix::store_path::{References, check_name};
use harmonia_nix::{ContentAddress, ContentAddressMethod, Hash, HashAlgorithm, Sha256Hash, StorePath};

use crate::nix::{Nix, store_path};

#[test]
fn fixed_outputs_of_every_algorithm() {
    let nix = Nix::new();
    for algorithm in HashAlgorithm::ALL {
        let hash = Hash::of(algorithm, b"content");
        for (method, flags) in [
            (ContentAddressMethod::Flat, &["--print-fixed-path"][..]),
            (ContentAddressMethod::Recursive, &["--print-fixed-path", "--recursive"]),
        ] {
            let digits = hash.to_base32();
            let theirs = nix.run("nix-store", &[flags, &[algorithm.name(), &digits, "some-name_1.0+x"]].concat());
            let address = ContentAddress { method, hash };
            let ours = StorePath::make_fixed_output("some-name_1.0+x", address, &References::default());
            assert_eq!(ours, Ok(store_path(&theirs)), "{address}");
        }
    }
}

#[test]
fn added_sources_and_texts() {
    let nix = Nix::new();
    fs::create_dir(nix.path("tree")).expect("a folder");
    nix.write("tree/file", b"in the tree");
    let tree = nix.path("tree").display().to_string();
    let nar_hash: Sha256Hash =
        nix.run("nix", &["hash", "path", "--sri", &tree]).parse().expect("nix prints the NAR hash");
    let source = store_path(&nix.run("nix-store", &["--add", &tree]));
    assert_eq!(StorePath::make_source("tree", nar_hash, &References::default()), Ok(source.clone()));
    let same = StorePath::make_fixed_output("tree", ContentAddress::recursive(nar_hash.into()), &References::default());
    assert_eq!(same, Ok(source.clone()));

    // A text that refers to other texts.
    let expression = |tail: &str| {
        format!(
            "let a = builtins.toFile \"a\" \"first\"; b = builtins.toFile \"b.txt\" \"second\"; \
             c = builtins.toFile \"c\" \"${{b}} ${{a}}\"; in {tail}"
        )
    };
    let [a, b, c] = ["a", "b", "c"].map(|name| store_path(&nix.eval(&expression(name))));
    let make = |name, text: &str, references: &[&StorePath]| {
        let references: BTreeSet<StorePath> = references.iter().map(|path| (*path).clone()).collect();
        StorePath::make_text(name, Sha256Hash::of(text.as_bytes()), &references).expect("valid name")
    };
    assert_eq!(make("a", "first", &[]), a);
    assert_eq!(make("b.txt", "second", &[]), b);
    assert_eq!(make("c", &format!("{b} {a}"), &[&a, &b]), c);
}

#[test]
fn content_addressed_paths_with_references() {
    let nix = Nix::new();
    let expression = "let
        make = name: text: derivation {
          inherit name;
          system = builtins.currentSystem;
          builder = \"/bin/sh\";
          args = [ \"-c\" \"echo ${text} > $out\" ];
        };
      in make \"self\" \"$out ${make \"a\" \"a\"} ${make \"b\" \"b\"}\"";
    let built = nix.run("nix-build", &["--no-out-link", "--expr", expression]);
    nix.run("nix", &["store", "make-content-addressed", &built]);
    let infos = nix.path_infos(&["--all"]);
    let mut self_references = 0;
    let mut content_addressed = 0;
    for info in infos.iter().filter(|info| info["ca"].is_string()) {
        let text = |value: &serde_json::Value| value.as_str().expect("a string").to_owned();
        let path = store_path(&text(&info["path"]));
        let address: ContentAddress = text(&info["ca"]).parse().expect("a content address");
        assert_eq!(address.to_string(), text(&info["ca"]));
        let references = info["references"].as_array().expect("a list").iter().map(|path| store_path(&text(path)));
        let references = References::of(&path, references);
        self_references += u32::from(references.to_self);
        content_addressed += 1;
        assert!(path.is_content_addressed_by(address, &references), "{path} {address}");
        let other = References { to_self: !references.to_self, ..references };
        assert!(!path.is_content_addressed_by(address, &other), "{path} {address}");
    }
    // Three derivations, and the three outputs rewritten, one of which refers to itself.
    assert_eq!((content_addressed, self_references), (6, 1));
}

#[test]
fn names_that_we_take_nix_takes() {
    let nix = Nix::new();
    let digits = "0".repeat(52);
    for name in ["a", "A+b-c._?=9", ".foo", "...", &"x".repeat(211), "", &"x".repeat(212), "a b", "a/b", "ü", "a~"] {
        let output = nix.command("nix-store").args(["--print-fixed-path", "sha256", &digits, name]).output();
        let theirs = output.expect("nix-store runs").status.success();
        assert_eq!(check_name(name).is_ok(), theirs, "'{name}'");
    }
}
