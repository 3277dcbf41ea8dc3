use super::*;
use proptest::prelude::*;

const BASE_NAME: &str = "0mdqa9w1p6cmli6976v4wi0sw9r4p5pr-hello-1.0";

#[test]
fn parts() {
    let path = StorePath::from_base_name(BASE_NAME).expect("valid");
    assert_eq!(path.to_string(), format!("/nix/store/{BASE_NAME}"));
    assert_eq!(path.base_name(), BASE_NAME);
    assert_eq!(path.hash_part(), "0mdqa9w1p6cmli6976v4wi0sw9r4p5pr");
    assert_eq!(path.name(), "hello-1.0");
    assert!(!path.is_derivation());
    assert_eq!(StorePath::parse(path.as_str()), Ok(path.clone()));
    let drv = StorePath::from_base_name(&format!("{BASE_NAME}.drv")).expect("valid");
    assert_eq!(drv.derivation_name(), Some("hello-1.0"));
    assert_eq!(serde_json::to_string(&path).expect("serialises"), format!("\"{path}\""));
    assert_eq!(serde_json::from_str::<StorePath>(&format!("\"{path}\"")).expect("parses"), path);
    assert!(serde_json::from_str::<StorePath>("\"/nix/store/x\"").is_err());
}

#[test]
fn names_as_nix_has_them() {
    for name in ["a", "A+b-c._?=9", ".foo", "..foo", "...", &"x".repeat(211), "a.-"] {
        assert_eq!(check_name(name), Ok(()), "{name}");
    }
    assert_eq!(check_name(""), Err(StorePathNameError::Empty));
    assert_eq!(check_name(&"x".repeat(212)), Err(StorePathNameError::TooLong(212)));
    for name in [".", "..", ".-a", "..-a"] {
        assert_eq!(check_name(name), Err(StorePathNameError::Dots), "{name}");
    }
    for (name, byte, offset) in [("a/b", b'/', 1), ("a b", b' ', 1), ("ab\0", 0, 2), ("ü", 0xc3, 0), ("~", b'~', 0)] {
        assert_eq!(check_name(name), Err(StorePathNameError::Byte { byte, offset }), "{name}");
    }
}

#[test]
fn refusals() {
    for path in ["", "/nix/store", BASE_NAME, "/nix/storex/a", "/gnu/store/a", "nix/store/a"] {
        assert_eq!(StorePath::parse(path), Err(StorePathError::NotInStore(path.to_owned())));
    }
    for base_name in ["", "short-x", "0mdqa9w1p6cmli6976v4wi0sw9r4p5pe-x", "0mdqa9w1p6cmli6976v4wi0sw9r4p5prxx"] {
        assert_eq!(StorePath::from_base_name(base_name), Err(StorePathError::Hash(base_name.to_owned())));
    }
    let below = format!("/nix/store/{BASE_NAME}/bin");
    assert!(matches!(StorePath::parse(&below), Err(StorePathError::Name(StorePathNameError::Byte { .. }))));
    // A character of several bytes across the place where the hash ends must not split the text.
    assert!(StorePath::from_base_name(&format!("{}ü-x", "0".repeat(31))).is_err());
    assert!(is_hash_part(&BASE_NAME[..32]));
    assert!(!is_hash_part(&BASE_NAME[..31]));
    assert!(!is_hash_part("0mdqa9w1p6cmli6976v4wi0sw9r4p5pe"));
}

proptest! {
    #[test]
    fn any_text_is_answered(text in "(/nix/store/)?[0-9a-z]{0,34}\\PC{0,20}") {
        for path in [StorePath::parse(&text), StorePath::from_base_name(&text)].into_iter().flatten() {
            prop_assert_eq!(StorePath::parse(path.as_str()), Ok(path.clone()));
            prop_assert_eq!(format!("{}-{}", path.hash_part(), path.name()), path.base_name());
        }
    }
}
