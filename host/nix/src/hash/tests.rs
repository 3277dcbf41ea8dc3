use super::*;
use proptest::prelude::*;

#[test]
fn known_values() {
    let nothing: Vec<String> =
        HashAlgorithm::ALL.into_iter().map(|algorithm| Hash::of(algorithm, b"").to_prefixed_base16()).collect();
    assert_eq!(
        nothing,
        [
            "md5:d41d8cd98f00b204e9800998ecf8427e",
            "sha1:da39a3ee5e6b4b0d3255bfef95601890afd80709",
            "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "sha512:cf83e1357eefb8bdf1542850d66d8007d620e4050b5715dc83f4a921d36ce9ce47d0d13c5d85f2b0ff8318d2877eec2f\
             63b931bd47417a81a538327af927da3e",
        ]
    );
}

#[test]
fn every_form_is_read() {
    for algorithm in HashAlgorithm::ALL {
        let hash = Hash::of(algorithm, b"harmonia");
        for digits in [hash.to_base16(), hash.to_base16().to_uppercase(), hash.to_base32(), hash.to_base64()] {
            assert_eq!(Hash::parse(&format!("{algorithm}:{digits}")), Ok(hash));
            assert_eq!(Hash::parse_as(algorithm, &digits), Ok(hash));
            assert_eq!(Hash::parse(&digits), Err(HashError::NoAlgorithm));
        }
        assert_eq!(Hash::parse(&hash.to_sri()), Ok(hash));
        assert_eq!(Hash::parse(&hash.to_string()), Ok(hash));
        assert_eq!(Hash::from_bytes(algorithm, hash.as_bytes()), Some(hash));
        assert_eq!(Hash::from_bytes(algorithm, &hash.as_bytes()[1..]), None);
    }
}

#[test]
fn refusals() {
    let base16 = Sha256Hash::of(b"").to_base16();
    assert_eq!(Hash::parse("sha3:00"), Err(HashError::Algorithm("sha3".to_owned())));
    assert_eq!(Hash::parse("sha256:00"), Err(HashError::Length { algorithm: HashAlgorithm::Sha256, length: 2 }));
    // SRI is base64 only.
    assert!(matches!(Hash::parse(&format!("sha256-{base16}")), Err(HashError::Length { length: 64, .. })));
    assert_eq!(Hash::parse(&format!("sha256:{}g", &base16[1..])), Err(HashError::Base16(63)));
    let wrong = HashError::WrongAlgorithm { expected: HashAlgorithm::Sha256, found: HashAlgorithm::Sha1 };
    let sha1 = Hash::of(HashAlgorithm::Sha1, b"");
    assert_eq!(Hash::parse_as(HashAlgorithm::Sha256, &sha1.to_string()), Err(wrong.clone()));
    assert_eq!(Sha256Hash::try_from(sha1), Err(wrong));
    // The last base64 digit has bits that belong to no byte.
    assert_eq!(Hash::parse("md5:AAAAAAAAAAAAAAAAAAAAAB=="), Err(HashError::Base64));
    assert!(matches!(Hash::parse(&format!("sha256:{}", "z".repeat(52))), Err(HashError::Base32(_))));
}

#[test]
fn serde_form_is_the_printed_one() {
    let hash = Sha256Hash::of(b"x");
    let json = serde_json::to_string(&hash).expect("serialises");
    assert_eq!(json, format!("\"{hash}\""));
    assert_eq!(serde_json::from_str::<Sha256Hash>(&json).expect("parses"), hash);
    assert!(serde_json::from_str::<Sha256Hash>("\"sha256:\"").is_err());
}

#[test]
fn folding() {
    let bytes: Vec<u8> = (0..32).collect();
    let folded = compress_hash(&bytes);
    assert_eq!(folded[0], 20);
    assert_eq!(folded[11], 0x0b ^ 0x1f);
    assert_eq!(folded[12], 12);
}

proptest! {
    #[test]
    fn pieces_do_not_matter(data in proptest::collection::vec(any::<u8>(), 0..300), cut in any::<prop::sample::Index>()) {
        for algorithm in HashAlgorithm::ALL {
            let (head, tail) = data.split_at(cut.index(data.len() + 1));
            let mut hasher = Hasher::new(algorithm);
            hasher.update(head);
            hasher.update(tail);
            prop_assert_eq!(hasher.finish(), Hash::of(algorithm, &data));
        }
    }

    #[test]
    fn any_text_is_answered(text in "(md5|sha1|sha256|sha512)?[:-]?\\PC{0,130}") {
        if let Ok(hash) = Hash::parse(&text) {
            prop_assert_eq!(Hash::parse(&hash.to_string()), Ok(hash));
        }
    }
}
