//! Keys, signatures and narinfos, each verified in both directions.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::process::Stdio;

use harmonia_nix::{NarInfo, PublicKey, SecretKey, Sha256Hash, Signature, StorePath, narinfo::fingerprint};

use crate::nix::{Nix, store_path};

const CLOSURE: &str = "let
    make = name: text: derivation {
      inherit name;
      system = builtins.currentSystem;
      builder = \"/bin/sh\";
      args = [ \"-c\" \"echo ${text} > $out\" ];
    };
  in make \"top\" \"$out ${make \"a\" \"a\"} ${make \"b\" \"b\"} ${builtins.toFile \"text\" \"text\"}\"";

fn our_key() -> SecretKey {
    SecretKey::from_seed("ours-1", &[42; 32]).expect("valid name")
}

/// What `nix key convert-secret-to-public` makes of a secret key.
fn public_by_nix(nix: &Nix, secret: &str) -> String {
    let mut command = nix.command("nix");
    command.args(["key", "convert-secret-to-public"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("nix starts");
    child.stdin.take().expect("piped").write_all(secret.as_bytes()).expect("nix reads");
    let output = child.wait_with_output().expect("nix ends");
    assert!(output.status.success());
    String::from_utf8(output.stdout).expect("UTF-8").trim_end().to_owned()
}

/// Builds the closure and gives its top.
fn built(nix: &Nix) -> StorePath {
    store_path(&nix.run("nix-build", &["--no-out-link", "--expr", CLOSURE]))
}

/// The narinfos of a binary cache in a folder.
fn narinfos(nix: &Nix, cache: &str) -> Vec<(std::path::PathBuf, NarInfo)> {
    let files = fs::read_dir(nix.path(cache)).expect("a cache").map(|entry| entry.expect("an entry").path());
    let narinfos = files.filter(|path| path.extension().is_some_and(|extension| extension == "narinfo"));
    narinfos
        .map(|path| {
            let text = fs::read_to_string(&path).expect("a narinfo");
            let info = NarInfo::parse(&text).unwrap_or_else(|error| panic!("{text}: {error:?}"));
            assert_eq!(info.to_string(), text);
            (path, info)
        })
        .collect()
}

#[test]
fn keys_of_nix_are_ours_and_ours_are_those_of_nix() {
    let nix = Nix::new();
    let theirs = nix.run("nix", &["key", "generate-secret", "--key-name", "cache.example.org-1"]);
    let key = SecretKey::parse(&theirs).expect("a key of Nix");
    assert_eq!(key.name(), "cache.example.org-1");
    assert_eq!(key.to_secret_text(), theirs);
    assert_eq!(key.public_key().to_string(), public_by_nix(&nix, &theirs));
    let ours = our_key();
    assert_eq!(ours.public_key().to_string(), public_by_nix(&nix, &ours.to_secret_text()));
}

#[test]
fn signatures_of_nix_are_verified_by_us() {
    let nix = Nix::new();
    let top = built(&nix);
    let secret = nix.run("nix", &["key", "generate-secret", "--key-name", "theirs-1"]);
    let key_file = nix.write("key", secret.as_bytes()).display().to_string();
    nix.run("nix", &["store", "sign", "--recursive", "--key-file", &key_file, top.as_str()]);
    let public: PublicKey = public_by_nix(&nix, &secret).parse().expect("a public key");
    let infos = nix.path_infos(&["--recursive", top.as_str()]);
    assert_eq!(infos.len(), 4);
    for info in infos {
        let path = store_path(info["path"].as_str().expect("a path"));
        let nar_hash: Sha256Hash = info["narHash"].as_str().expect("a hash").parse().expect("SHA-256");
        let nar_size = info["narSize"].as_u64().expect("a size");
        let references: BTreeSet<StorePath> = info["references"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|reference| store_path(reference.as_str().expect("a path")))
            .collect();
        let signature: Signature = info["signatures"][0].as_str().expect("signed").parse().expect("a signature");
        let message = fingerprint(&path, &nar_hash, nar_size, &references);
        assert!(public.verify(message.as_bytes(), &signature), "{message}");
        // Ed25519 leaves no choice: with the same key we sign the same.
        let again = SecretKey::parse(&secret).expect("a key").sign(message.as_bytes());
        assert_eq!(again, signature);
        let other = fingerprint(&path, &nar_hash, nar_size + 1, &references);
        assert!(!public.verify(other.as_bytes(), &signature));
    }
}

#[test]
fn narinfos_of_nix_read_and_write_alike() {
    let nix = Nix::new();
    let top = built(&nix);
    let secret = nix.run("nix", &["key", "generate-secret", "--key-name", "theirs-1"]);
    let key_file = nix.write("key", secret.as_bytes()).display().to_string();
    let public: PublicKey = public_by_nix(&nix, &secret).parse().expect("a public key");
    nix.run("nix", &["store", "make-content-addressed", top.as_str()]);
    for (cache, compression) in [("cache-none", "none"), ("cache-xz", "xz"), ("cache-zstd", "zstd")] {
        let url = format!("file://{}?compression={compression}&secret-key={key_file}", nix.path(cache).display());
        nix.run("nix", &["copy", "--all", "--to", &url]);
        let infos = narinfos(&nix, cache);
        // Four derivations and outputs with their rewritten twins, and the text: more than ten in any case.
        assert!(infos.len() >= 10, "{}", infos.len());
        for (file, info) in infos {
            assert!(info.is_signed_by(std::slice::from_ref(&public)), "{}", info.path);
            assert_eq!(info.compression, compression);
            let name = file.file_stem().and_then(|stem| stem.to_str()).expect("ASCII");
            assert_eq!(name, info.path.hash_part());
            let bytes = fs::read(nix.path(cache).join(&info.url)).expect("the NAR");
            assert_eq!((info.file_hash, info.file_size), (Some(Sha256Hash::of(&bytes)), Some(bytes.len() as u64)));
        }
    }
}

#[test]
fn nix_takes_what_we_signed_and_nothing_else() {
    let nix = Nix::new();
    let top = built(&nix);
    let url = format!("file://{}", nix.path("cache").display());
    nix.run("nix", &["copy", "--to", &url, top.as_str()]);
    let key = our_key();
    for (file, mut info) in narinfos(&nix, "cache") {
        assert!(info.signatures.is_empty());
        info.sign(&key);
        fs::write(file, info.to_string()).expect("a narinfo of ours");
    }
    // A store that knows nothing, and takes only what is signed by the key named.
    let copy_to = |receiver: &Nix, trusted: &str| {
        let mut command = receiver.command("nix");
        command.args(["copy", "--from", &url, top.as_str(), "--option", "require-sigs", "true"]);
        command.args(["--option", "trusted-public-keys", trusted]);
        let output = command.output().expect("nix runs");
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.success() && receiver.real(&top).is_file(), errors)
    };
    let trusted = key.public_key().to_string();
    let stranger = SecretKey::from_seed("ours-1", &[43; 32]).expect("valid name").public_key().to_string();
    let receiver = Nix::new();
    let (is_taken, errors) = copy_to(&receiver, &trusted);
    assert!(is_taken, "{errors}");
    for (public, expected) in [(&trusted, true), (&stranger, false)] {
        let arguments =
            ["store", "verify", "--no-contents", "--recursive", "--trusted-public-keys", public, top.as_str()];
        let verified = receiver.command("nix").args(arguments).output().expect("nix runs");
        assert_eq!(verified.status.success(), expected, "{}", String::from_utf8_lossy(&verified.stderr));
    }
    let (is_taken, errors) = copy_to(&Nix::new(), &stranger);
    assert!(!is_taken && errors.contains("signature"), "{errors}");
    // What was changed after signing is not taken.
    for (file, mut info) in narinfos(&nix, "cache").into_iter().filter(|(_, info)| info.path == top) {
        info.references.pop_first().expect("it has references");
        fs::write(file, info.to_string()).expect("a narinfo");
    }
    let (is_taken, errors) = copy_to(&Nix::new(), &trusted);
    assert!(!is_taken && errors.contains("signature"), "{errors}");
}
