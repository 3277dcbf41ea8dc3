use super::*;
use proptest::prelude::*;

const TEXT: &str = "\
StorePath: /nix/store/0mdqa9w1p6cmli6976v4wi0sw9r4p5pr-hello-1.0
URL: nar/1w1fff338fvdw53sqgamddn1b2xgds473pv6y13gizdbqjv4i5p3.nar.zst
Compression: zstd
FileHash: sha256:1w1fff338fvdw53sqgamddn1b2xgds473pv6y13gizdbqjv4i5p3
FileSize: 4029176
NarHash: sha256:0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73
NarSize: 18735072
References: 0mdqa9w1p6cmli6976v4wi0sw9r4p5pr-hello-1.0 7gx4kiv5m0i7d7qkixq2cwzbr10lvxwc-glibc-2.27
Deriver: 0mdqa9w1p6cmli6976v4wi0sw9r4p5pr-hello-1.0.drv
CA: fixed:r:sha256:0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73
";

fn key(name: &str) -> SecretKey {
    SecretKey::from_seed(name, &[9; 32]).expect("valid name")
}

#[test]
fn reads_and_writes() {
    let mut info = NarInfo::parse(TEXT).expect("valid");
    assert_eq!(info.to_string(), TEXT);
    assert_eq!(
        info.fingerprint(),
        "1;/nix/store/0mdqa9w1p6cmli6976v4wi0sw9r4p5pr-hello-1.0;\
         sha256:0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73;18735072;\
         /nix/store/0mdqa9w1p6cmli6976v4wi0sw9r4p5pr-hello-1.0,\
         /nix/store/7gx4kiv5m0i7d7qkixq2cwzbr10lvxwc-glibc-2.27"
    );
    info.sign(&key("a-1"));
    info.sign(&key("b-1"));
    info.sign(&key("a-1"));
    assert_eq!(info.signatures.len(), 2);
    let mut read = NarInfo::parse(&info.to_string()).expect("own text");
    assert_eq!(read, info);
    assert!(read.is_signed_by(&[key("x-1").public_key(), key("a-1").public_key()]));
    assert!(!read.is_signed_by(&[key("x-1").public_key()]));
    read.nar_size += 1;
    assert!(!read.is_signed_by(&[key("a-1").public_key()]));
}

#[test]
fn order_and_strange_fields_do_not_matter() {
    let expected = NarInfo::parse(TEXT).expect("valid");
    let mut lines: Vec<&str> = TEXT.lines().rev().collect();
    lines.extend(["Fancy: new", "System: x86_64-linux", "Sig: of another kind", "Sig: a:b"]);
    assert_eq!(NarInfo::parse(&lines.join("\n")), Ok(expected));
}

#[test]
fn little_is_needed() {
    let text = "StorePath: /nix/store/0mdqa9w1p6cmli6976v4wi0sw9r4p5pr-x\nURL: x\nNarSize: 1\nReferences:\n\
        Deriver: unknown-deriver\n\
        NarHash: sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\n";
    let info = NarInfo::parse(text).expect("valid");
    assert_eq!((info.compression.as_str(), info.file_hash, info.deriver), ("bzip2", None, None));
    assert!(info.references.is_empty());
    for field in ["StorePath", "URL", "NarSize", "NarHash"] {
        let without: Vec<&str> = text.lines().filter(|line| !line.starts_with(field)).collect();
        assert_eq!(NarInfo::parse(&without.join("\n")), Err(NarInfoError::Missing(field)));
    }
}

#[test]
fn refusals() {
    let replaced = |from: &str, to: &str| NarInfo::parse(&TEXT.replace(from, to));
    let value = |line, field, cause| Err(NarInfoError::Value { line, field, cause });
    assert_eq!(replaced("URL: nar/", "URL nar/"), Err(NarInfoError::Line(2)));
    assert_eq!(replaced("URL: nar/", "URL:nar/"), Err(NarInfoError::Line(2)));
    assert_eq!(replaced("NarSize: 18735072", "NarSize: 0"), value(7, "NarSize", NarInfoValueError::Number));
    assert_eq!(replaced("NarSize: 1", "NarSize: +1"), value(7, "NarSize", NarInfoValueError::Number));
    assert_eq!(
        replaced("FileSize: 4", "FileSize: 99999999999999999994"),
        value(5, "FileSize", NarInfoValueError::Number)
    );
    assert_eq!(replaced("Compression: zstd", "Compression: "), value(3, "Compression", NarInfoValueError::Empty));
    assert_eq!(replaced("Compression: zstd", "URL: x"), Err(NarInfoError::Repeated { line: 3, field: "URL" }));
    assert!(matches!(replaced(" 7gx", " /7gx"), Err(NarInfoError::Value { line: 8, field: "References", .. })));
    assert!(matches!(replaced("CA: fixed:r", "CA: f"), Err(NarInfoError::Value { line: 10, field: "CA", .. })));
    assert_eq!(NarInfo::parse(&" ".repeat(TEXT_BYTES_MAX + 1)), Err(NarInfoError::TooLarge));
    let signature = format!("Sig: {}\n", key("a-1").sign(b""));
    let signed = |count| NarInfo::parse(&format!("{TEXT}{}", signature.repeat(count)));
    assert_eq!(signed(SIGNATURES_MAX).map(|info| info.signatures.len()), Ok(SIGNATURES_MAX));
    assert_eq!(signed(SIGNATURES_MAX + 1), Err(NarInfoError::TooManySignatures));
}

proptest! {
    #[test]
    fn mutations_are_answered(
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)
    ) {
        let mut bytes = TEXT.as_bytes().to_vec();
        for (index, byte) in edits {
            let index = index.index(bytes.len());
            bytes[index] = byte;
        }
        if let Ok(info) = NarInfo::parse(&String::from_utf8_lossy(&bytes)) {
            prop_assert_eq!(NarInfo::parse(&info.to_string()), Ok(info));
        }
    }
}
