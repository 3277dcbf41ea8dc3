//! Object keys as file paths and back, in an order-preserving way. Start at [`path_of`].
//!
//! A key is cut at its slashes. Each piece becomes a name of harmless characters (others as `%XX`) with an ending
//! that says what it is: `.d` a directory of keys that go on after a slash, `.o` an object, `.c` a directory of names
//! that begin with these 80 bytes, `.s` a shard: a directory of the names, whole, that begin with these 2 bytes. So `a`
//! (an object) and `a/b` live side by side, no name is `.` or `..`, none is longer than a file system allows, and of a
//! million hashes in base 32 no directory holds more than a thousand or so.

use std::path::{Path, PathBuf};

/// As many bytes of a piece go into one name; tripled by the encoding they still fit into 255.
const CHUNK_BYTES: usize = 80;
/// Names that begin with the same bytes, so many, are together in a shard.
const SHARD_BYTES: usize = 2;
/// The bound of S3 itself.
pub(crate) const KEY_BYTES_MAX: usize = 1024;

/// Where an object lies below its bucket's directory. `None`: a key that S3 does not allow.
pub(crate) fn path_of(key: &str) -> Option<PathBuf> {
    if key.is_empty() || key.len() > KEY_BYTES_MAX {
        return None;
    }
    let mut path = PathBuf::new();
    let mut pieces = key.as_bytes().split(|byte| *byte == b'/').peekable();
    while let Some(piece) = pieces.next() {
        let rest = push_directories(&mut path, piece);
        path.push(encode(rest) + if pieces.peek().is_some() { ".d" } else { ".o" });
    }
    Some(path)
}

/// The inverse of [`path_of`], also of what older versions made of a key, which had no shards.
pub(crate) fn key_of(path: &Path) -> Option<String> {
    let mut key = Vec::new();
    for component in path.components() {
        let (bytes, kind) = decode(component.as_os_str().to_str()?)?;
        if kind != Kind::Shard {
            key.extend(bytes);
        }
    }
    String::from_utf8(key).ok()
}

/// The directory that holds every object whose key begins with `prefix`, and the key bytes that it stands for.
pub(crate) fn deepest_directory(prefix: &[u8]) -> (PathBuf, Vec<u8>) {
    let mut path = PathBuf::new();
    let mut base = Vec::new();
    let mut pieces = prefix.split(|byte| *byte == b'/').peekable();
    while let Some(piece) = pieces.next() {
        let rest = push_directories(&mut path, piece);
        base.extend_from_slice(&piece[..piece.len() - rest.len()]);
        if pieces.peek().is_some() {
            path.push(encode(rest) + ".d");
            base.extend_from_slice(rest);
            base.push(b'/');
        }
    }
    (path, base)
}

/// The directories within which a piece of a key has its last name, which is returned.
fn push_directories<'a>(path: &mut PathBuf, piece: &'a [u8]) -> &'a [u8] {
    if let Some(shard) = piece.get(..SHARD_BYTES) {
        path.push(encode(shard) + ".s");
    }
    let mut rest = piece;
    while let Some((chunk, after)) = rest.split_at_checked(CHUNK_BYTES) {
        path.push(encode(chunk) + ".c");
        rest = after;
    }
    rest
}

/// What a directory entry stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Object,
    Directory,
    /// Of names that begin with these bytes, and have them once more.
    Shard,
}

/// The key bytes that a name adds to those of its directory; with the slash for a `.d`. Those of a shard say which names are
/// in it.
pub(crate) fn decode(name: &str) -> Option<(Vec<u8>, Kind)> {
    let (encoded, ending) = name.split_at_checked(name.len().checked_sub(2)?)?;
    let mut bytes = Vec::with_capacity(encoded.len());
    let mut rest = encoded.as_bytes();
    while let [first, after @ ..] = rest {
        rest = after;
        if *first == b'%' {
            let [high, low, after @ ..] = rest else { return None };
            bytes.push(hex(*high)? << 4 | hex(*low)?);
            rest = after;
        } else {
            bytes.push(*first);
        }
    }
    match ending {
        ".o" => Some((bytes, Kind::Object)),
        ".c" => Some((bytes, Kind::Directory)),
        ".s" => Some((bytes, Kind::Shard)),
        ".d" => {
            bytes.push(b'/');
            Some((bytes, Kind::Directory))
        }
        _ => None,
    }
}

fn encode(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    let mut name = String::with_capacity(bytes.len() + 2);
    for byte in bytes {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'+') {
            name.push(char::from(*byte));
        } else {
            name.push('%');
            name.push(char::from(DIGITS[usize::from(byte >> 4)]));
            name.push(char::from(DIGITS[usize::from(byte & 15)]));
        }
    }
    name
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

#[cfg(test)]
mod tests {
    use std::path::Component;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_key_beside_its_own_directory() {
        assert_eq!(path_of("a").expect("fine"), Path::new("a.o"));
        assert_eq!(path_of("a/b").expect("fine"), Path::new("a.d/b.o"));
        assert_eq!(path_of("nar/0abc").expect("fine"), Path::new("na.s/nar.d/0a.s/0abc.o"));
        assert_eq!(path_of("../x").expect("fine"), Path::new("...s/...d/x.o"));
        assert_eq!(path_of("/").expect("fine"), Path::new(".d/.o"));
        assert_eq!(path_of(""), None);
        assert_eq!(path_of(&"x".repeat(KEY_BYTES_MAX + 1)), None);
    }

    fn any_key() -> impl Strategy<Value = String> {
        prop_oneof!["[ab./%]{1,12}", "[a-c/]{70,170}", "\\PC{1,90}", "[\\x00-\\x7f]{1,30}"]
            .prop_filter("bounded", |key| key.len() <= KEY_BYTES_MAX)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn paths_are_harmless_and_lead_back(key in any_key()) {
            let path = path_of(&key).expect("within bounds");
            prop_assert!(path.components().all(|part| matches!(part, Component::Normal(name) if name.len() <= 255)));
            prop_assert_eq!(key_of(&path), Some(key));
        }

        #[test]
        fn every_object_lies_in_the_directory_of_its_prefix(key in any_key(), cut in 0usize..100) {
            let prefix = &key.as_bytes()[..cut.min(key.len())];
            let (directory, base) = deepest_directory(prefix);
            prop_assert!(path_of(&key).expect("within bounds").starts_with(&directory));
            prop_assert!(prefix.starts_with(&base));
        }
    }
}
