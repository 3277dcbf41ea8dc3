//! Hashes and base32 against `nix hash`.

use harmonia_nix::{Hash, HashAlgorithm, Sha256Hash, base32};

use crate::nix::Nix;

#[test]
fn hashes_of_files_and_their_forms() {
    let nix = Nix::new();
    for data in [&b""[..], b"harmonia", &[0xff; 1000]] {
        let file = nix.write("data", data).display().to_string();
        for algorithm in HashAlgorithm::ALL {
            let hash = Hash::of(algorithm, data);
            for (form, ours) in [
                ("--base16", hash.to_base16()),
                ("--base32", hash.to_base32()),
                ("--base64", hash.to_base64()),
                ("--sri", hash.to_sri()),
            ] {
                let theirs = nix.run("nix", &["hash", "file", form, "--type", algorithm.name(), &file]);
                assert_eq!(ours, theirs);
                assert_eq!(Hash::parse_as(algorithm, &theirs), Ok(hash));
            }
        }
    }
}

#[test]
fn every_prefixed_form_means_the_same_to_nix() {
    let nix = Nix::new();
    for algorithm in HashAlgorithm::ALL {
        let hash = Hash::of(algorithm, b"form");
        for form in
            [hash.to_string(), hash.to_prefixed_base16(), format!("{algorithm}:{}", hash.to_base64()), hash.to_sri()]
        {
            assert_eq!(nix.run("nix", &["hash", "to-sri", &form]), hash.to_sri());
            assert_eq!(Hash::parse(&form), Ok(hash));
        }
    }
}

#[test]
fn base32_of_many_bytes() {
    let nix = Nix::new();
    let hashes: Vec<Sha256Hash> = (0..200_u8).map(|seed| Sha256Hash::of(&[seed])).collect();
    let mut arguments = vec!["hash".to_owned(), "to-base32".to_owned()];
    arguments.extend(hashes.iter().map(Sha256Hash::to_sri));
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let theirs = nix.run("nix", &arguments);
    assert_eq!(theirs.lines().count(), hashes.len());
    for (hash, theirs) in hashes.iter().zip(theirs.lines()) {
        assert_eq!(hash.to_base32(), theirs);
        assert_eq!(base32::decode(theirs.as_bytes()).as_deref(), Ok(&hash.as_bytes()[..]));
    }
}

#[test]
fn what_we_refuse_nix_refuses() {
    let nix = Nix::new();
    let superfluous_bits = format!("sha256:z{}", "0".repeat(51));
    for text in [&superfluous_bits, "sha256:00", "sha3:00", "sha256-00", "sha256:"] {
        assert!(Hash::parse(text).is_err(), "{text}");
        let status = nix.command("nix").args(["hash", "to-sri", text]).output().expect("nix runs").status;
        assert!(!status.success(), "nix takes {text}");
    }
}
