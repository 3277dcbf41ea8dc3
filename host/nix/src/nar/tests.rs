//! The grammar: round trips of generated trees, every kind of bad archive, archives that end too early. Those against Nix
//! are in `tests/nar_nix.rs`.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use cap_std::ambient_authority;
use cap_std::fs::Dir;
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

use super::*;

const LIMITS: Limits = Limits { nar_bytes_max: 1 << 20, depth_max: 16, nodes_max: 100 };

#[derive(Debug, Clone, PartialEq)]
enum Tree {
    File { executable: bool, bytes: Vec<u8> },
    Link(Vec<u8>),
    Directory(BTreeMap<Vec<u8>, Tree>),
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 1..12)
        .prop_map(|mut name| {
            name.iter_mut().filter(|byte| matches!(**byte, 0 | b'/')).for_each(|byte| *byte = b'x');
            name
        })
        .prop_filter("a file system has these already", |name| name != b"." && name != b"..")
}

fn tree() -> impl Strategy<Value = Tree> {
    let leaf = prop_oneof![
        (any::<bool>(), vec(any::<u8>(), 0..40)).prop_map(|(executable, bytes)| Tree::File { executable, bytes }),
        name().prop_map(Tree::Link),
    ];
    leaf.prop_recursive(4, 24, 5, |inner| btree_map(name(), inner, 0..5).prop_map(Tree::Directory))
}

fn write_tree(writer: &mut NarWriter<&mut Vec<u8>>, tree: &Tree) {
    match tree {
        Tree::File { executable, bytes } => {
            let mut buffer = [0; 7];
            writer
                .regular(*executable, bytes.len() as u64, bytes.as_slice(), &mut buffer, "")
                .expect("memory takes all");
        }
        Tree::Link(target) => writer.symlink(target).expect("memory takes all"),
        Tree::Directory(entries) => {
            writer.directory().expect("memory takes all");
            for (name, tree) in entries {
                writer.entry(name).expect("a valid name");
                write_tree(writer, tree);
                writer.entry_end().expect("memory takes all");
            }
            writer.directory_end().expect("memory takes all");
        }
    }
}

fn archive(tree: &Tree) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = NarWriter::new(&mut bytes).expect("memory takes all");
    write_tree(&mut writer, tree);
    bytes
}

fn tree_on_disk(path: &Path) -> Tree {
    let metadata = fs::symlink_metadata(path).expect("it was unpacked");
    if metadata.is_symlink() {
        Tree::Link(fs::read_link(path).expect("a symlink").into_os_string().into_vec())
    } else if metadata.is_dir() {
        let entries = fs::read_dir(path).expect("a directory").map(|entry| {
            let entry = entry.expect("an entry");
            (entry.file_name().into_vec(), tree_on_disk(&entry.path()))
        });
        Tree::Directory(entries.collect())
    } else {
        let mode = metadata.permissions().mode() & 0o7777;
        assert!(mode == 0o444 || mode == 0o555, "{mode:o}");
        Tree::File { executable: mode == 0o555, bytes: fs::read(path).expect("a file") }
    }
}

fn scratch() -> (tempfile::TempDir, Dir) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let dir = Dir::open_ambient_dir(folder.path(), ambient_authority()).expect("it is there");
    (folder, dir)
}

/// Feeds an archive in pieces of `step` bytes.
fn decode(bytes: &[u8], step: usize, limits: Limits) -> Result<Vec<(Token, Vec<u8>)>, NarError> {
    let mut decoder = Decoder::new(limits);
    let mut tokens: Vec<(Token, Vec<u8>)> = Vec::new();
    for piece in bytes.chunks(step) {
        let mut left = piece;
        while !left.is_empty() {
            if decoder.is_done() {
                return Err(NarError::TrailingData { offset: decoder.offset() });
            }
            let step = decoder.push(left)?;
            let (used, rest) = left.split_at(step.consumed);
            left = rest;
            match (step.token, tokens.last_mut()) {
                (Some(Token::Contents), Some((Token::Contents, bytes))) => bytes.extend_from_slice(used),
                (Some(token), _) => tokens.push((token, used.to_vec())),
                (None, _) => {}
            }
        }
    }
    decoder.finish()?;
    // What was used up for other tokens depends on the pieces.
    Ok(tokens
        .into_iter()
        .map(|(token, bytes)| if token == Token::Contents { (token, bytes) } else { (token, Vec::new()) })
        .collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn what_is_packed_comes_back(tree in tree()) {
        let bytes = archive(&tree);
        let (folder, dir) = scratch();
        let size = unpack_nar(bytes.as_slice(), &dir, "tree", LIMITS).expect("our own archive");
        prop_assert_eq!(size, bytes.len() as u64);
        prop_assert_eq!(&tree_on_disk(&folder.path().join("tree")), &tree);
        let mut again = Vec::new();
        prop_assert_eq!(write_nar(&dir, "tree", &mut again).expect("a sound tree"), size);
        prop_assert!(again == bytes);
    }

    #[test]
    fn every_prefix_fails_as_truncated_and_pieces_do_not_matter(tree in tree(), step in 1_usize..64) {
        let bytes = archive(&tree);
        prop_assert_eq!(
            decode(&bytes, step, LIMITS).expect("in pieces"),
            decode(&bytes, bytes.len(), LIMITS).expect("as a whole")
        );
        for end in 0..bytes.len() {
            let error = decode(&bytes[..end], step, LIMITS).expect_err("it is not complete");
            prop_assert!(matches!(error, NarError::Truncated { offset } if offset == end as u64), "{}: {:?}", end, error);
        }
    }

    #[test]
    fn a_changed_byte_is_an_error_or_another_tree(tree in tree(), at in any::<prop::sample::Index>(), by in 1_u8..) {
        let mut bytes = archive(&tree);
        let at = at.index(bytes.len());
        bytes[at] ^= by;
        let (folder, dir) = scratch();
        if unpack_nar(bytes.as_slice(), &dir, "tree", LIMITS).is_ok() {
            // Canonical: what is accepted is what would be written.
            let mut again = Vec::new();
            write_nar(&dir, "tree", &mut again).expect("a sound tree");
            prop_assert!(again == bytes);
        }
        let beside = fs::read_dir(folder.path()).expect("our folder").filter(|e| e.as_ref().expect("entry").file_name() != "tree");
        prop_assert_eq!(beside.count(), 0);
    }

    #[test]
    fn noise_never_panics(bytes in vec(any::<u8>(), 0..200)) {
        prop_assert!(decode(&bytes, 200, LIMITS).is_err());
    }
}

/// Strings as the format has them, from a list of words.
fn words(words: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in words {
        bytes.extend_from_slice(&(word.len() as u64).to_le_bytes());
        bytes.extend_from_slice(word);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
    }
    bytes
}

/// A directory with entries that are given as name and words of the node.
fn directory(entries: &[(&[u8], &[&[u8]])]) -> Vec<u8> {
    let mut all: Vec<&[u8]> = vec![b"nix-archive-1", b"(", b"type", b"directory"];
    for (name, node) in entries {
        all.extend([b"entry".as_slice(), b"(", b"name", name, b"node"]);
        all.extend(*node);
        all.push(b")");
    }
    all.push(b")");
    words(&all)
}

const LINK: &[&[u8]] = &[b"(", b"type", b"symlink", b"target", b"t", b")"];
const EMPTY_DIRECTORY: &[&[u8]] = &[b"(", b"type", b"directory", b")"];

#[test]
fn each_bad_archive_has_its_own_error() {
    let link = |target: &[u8]| words(&[b"nix-archive-1", b"(", b"type", b"symlink", b"target", target, b")"]);
    let file = |declared: u64, rest: &[u8]| {
        let mut bytes = words(&[b"nix-archive-1", b"(", b"type", b"regular", b"contents"]);
        bytes.extend_from_slice(&declared.to_le_bytes());
        bytes.extend_from_slice(rest);
        bytes
    };
    let mut trailing = link(b"t");
    trailing.push(0);
    let mut tag_padding = link(b"t");
    tag_padding[8 + 13] = 1;
    let deep = {
        let mut all: Vec<&[u8]> = vec![b"nix-archive-1"];
        for _ in 0..17 {
            all.extend([b"(".as_slice(), b"type", b"directory", b"entry", b"(", b"name", b"d", b"node"]);
        }
        words(&all)
    };
    let many_names: Vec<Vec<u8>> = (0..101).map(|n| format!("{n:03}").into_bytes()).collect();
    let many: Vec<(&[u8], &[&[u8]])> = many_names.iter().map(|name| (name.as_slice(), LINK)).collect();
    let long_name = [b'n'; 256];
    let long_target = [b't'; 4097];
    let two = |first: &[u8], second: &[u8]| directory(&[(first, LINK), (second, LINK)]);

    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("empty", vec![], "the archive ends too early, after 0 bytes"),
        (
            "magic",
            words(&[b"nix-archive-2"]),
            "expected \"nix-archive-1\" at byte 0 of the archive, found \"nix-archive-2\"",
        ),
        (
            "type",
            words(&[b"nix-archive-1", b"(", b"type", b"socket"]),
            "expected \"regular\", \"directory\" or \"symlink\" at byte 56 of the archive, found \"socket\"",
        ),
        ("no parenthesis", words(&[b"nix-archive-1", b"["]), "expected \"(\" at byte 24 of the archive, found \"[\""),
        (
            "no contents",
            words(&[b"nix-archive-1", b"(", b"type", b"regular", b")"]),
            "expected \"contents\" or \"executable\" at byte 72 of the archive, found \")\"",
        ),
        (
            "executable with text",
            words(&[b"nix-archive-1", b"(", b"type", b"regular", b"executable", b"yes"]),
            "expected an empty string at byte 96 of the archive, found \"yes\"",
        ),
        (
            "executable twice",
            words(&[b"nix-archive-1", b"(", b"type", b"regular", b"executable", b"", b"executable"]),
            "expected \"contents\" at byte 104 of the archive, found \"executable\"",
        ),
        (
            "long word",
            words(&[b"nix-archive-1", b"(", b"type", &[b'a'; 14]]),
            "a word of the format at byte 56 of the archive declares 14 bytes, at most 13 are allowed",
        ),
        ("word padding", tag_padding, "padding before byte 24 of the archive is not zero"),
        ("contents padding", file(1, b"x\0\0\0\0\0\0\x01"), "padding before byte 104 of the archive is not zero"),
        ("huge file", file(u64::MAX, b""), "the archive is larger than the allowed 1048576 bytes"),
        ("large file", file(1 << 20, b""), "the archive is larger than the allowed 1048576 bytes"),
        ("trailing", trailing, "something follows the end of the archive at byte 120"),
        ("empty name", directory(&[(b"", LINK)]), "an entry before byte 136 of the archive has an empty name"),
        ("dot", directory(&[(b".", LINK)]), "an entry before byte 144 of the archive is called \".\""),
        ("dot dot", directory(&[(b"..", LINK)]), "an entry before byte 144 of the archive is called \"..\""),
        ("slash", directory(&[(b"../up", LINK)]), "the name \"../up\" before byte 144 of the archive holds a slash"),
        ("absolute", directory(&[(b"/etc", LINK)]), "the name \"/etc\" before byte 144 of the archive holds a slash"),
        ("NUL in name", directory(&[(b"a\0b", LINK)]), "a file name before byte 144 of the archive holds a NUL byte"),
        (
            "long name",
            directory(&[(&long_name, LINK)]),
            "a file name at byte 128 of the archive declares 256 bytes, at most 255 are allowed",
        ),
        ("duplicate", two(b"a", b"a"), "the entry \"a\" is twice in one directory"),
        ("unsorted", two(b"b", b"a"), "the entry \"a\" stands after \"b\": entries must be sorted by bytes"),
        (
            "unsorted by bytes",
            two("\u{e9}".as_bytes(), b"z"),
            "the entry \"z\" stands after \"\\xc3\\xa9\": entries must be sorted by bytes",
        ),
        ("empty target", link(b""), "a symlink before byte 96 of the archive has an empty target"),
        ("NUL in target", link(b"a\0"), "a symlink target before byte 104 of the archive holds a NUL byte"),
        (
            "long target",
            link(&long_target),
            "a symlink target at byte 88 of the archive declares 4097 bytes, at most 4096 are allowed",
        ),
        ("deep", deep, "directories are nested deeper than 16"),
        ("many", directory(&many), "the archive holds more than the allowed 100 files"),
        (
            "name after node",
            words(&[b"nix-archive-1", b"(", b"type", b"directory", b"entry", b"(", b"node"]),
            "expected \"name\" at byte 112 of the archive, found \"node\"",
        ),
        (
            "two roots",
            words(&[b"nix-archive-1", b"(", b"type", b"directory", b")", b"("]),
            "something follows the end of the archive at byte 96",
        ),
    ];
    for (case, bytes, message) in cases {
        let (folder, dir) = scratch();
        let error = unpack_nar(bytes.as_slice(), &dir, "tree", LIMITS).expect_err(case);
        assert_eq!(error.to_string(), message, "{case}");
        let listed = listing_of(bytes.as_slice(), LIMITS, usize::MAX).expect_err(case);
        assert_eq!(listed.to_string(), message, "{case}");
        let names: Vec<_> =
            fs::read_dir(folder.path()).expect("our folder").map(|e| e.expect("entry").file_name()).collect();
        assert!(names.iter().all(|name| name == "tree"), "{case}: {names:?}");
    }
}

#[test]
fn the_whole_size_is_bounded() {
    let bytes = archive(&Tree::File { executable: false, bytes: vec![1; 100] });
    let size = bytes.len() as u64;
    let limits = |max| Limits { nar_bytes_max: max, ..LIMITS };
    assert!(decode(&bytes, 9, limits(size)).is_ok());
    for max in 0..size {
        let error = decode(&bytes, 9, limits(max)).expect_err("one byte too many");
        assert!(matches!(error, NarError::TooLarge { max: said } if said == max), "{max}: {error:?}");
    }
}

#[test]
fn a_file_under_a_symlink_is_not_written_through_it() {
    let (outside, _) = scratch();
    let target = outside.path().as_os_str().as_bytes();
    let link: &[&[u8]] = &[b"(", b"type", b"symlink", b"target", target, b")"];
    // The same name first as a link out and then as a directory; and a directory that is a link from before.
    let twice = directory(&[(b"d", link), (b"d", EMPTY_DIRECTORY)]);
    let (folder, dir) = scratch();
    let error = unpack_nar(twice.as_slice(), &dir, "tree", LIMITS).expect_err("a duplicate");
    assert!(matches!(error, NarError::DuplicateName { .. }), "{error:?}");

    symlink(outside.path(), folder.path().join("planted")).expect("a symlink");
    let inner: &[&[u8]] = &[b"(", b"type", b"directory", b")"];
    let error = unpack_nar(directory(&[(b"f", inner)]).as_slice(), &dir, "planted", LIMITS).expect_err("it exists");
    assert_eq!(error.to_string(), "could not create the directory planted");
    let error =
        unpack_nar(archive(&Tree::File { executable: false, bytes: vec![1] }).as_slice(), &dir, "planted", LIMITS);
    assert_eq!(error.expect_err("it exists").to_string(), "could not create the file planted");
    for name in ["", ".", "..", "a/b", "../x"] {
        unpack_nar(archive(&Tree::Link(b"t".to_vec())).as_slice(), &dir, name, LIMITS).expect_err(name);
    }
    assert_eq!(fs::read_dir(outside.path()).expect("the folder").count(), 0, "something was written outside");
}

#[test]
fn declared_lengths_cost_no_memory() {
    // All of it is allowed by the limits, none of it is there.
    let mut bytes = words(&[b"nix-archive-1", b"(", b"type", b"regular", b"contents"]);
    bytes.extend_from_slice(&(1_u64 << 60).to_le_bytes());
    let mut decoder = Decoder::new(Limits::of_size(u64::MAX));
    let mut left = bytes.as_slice();
    while !left.is_empty() {
        left = &left[decoder.push(left).expect("so far it is fine").consumed..];
    }
    let megabyte = vec![0; 1 << 20];
    for _ in 0..64 {
        assert_eq!(decoder.push(&megabyte).expect("contents").consumed, megabyte.len());
    }
    assert!(decoder.buffered_bytes() <= 64, "{}", decoder.buffered_bytes());
}

#[test]
fn archives_in_a_row_are_read_one_by_one() {
    let trees = [Tree::Link(b"one".to_vec()), Tree::File { executable: true, bytes: b"two".to_vec() }];
    let bytes: Vec<u8> = trees.iter().flat_map(archive).chain(*b"rest").collect();
    let (folder, dir) = scratch();
    let mut input = std::io::BufReader::with_capacity(5, bytes.as_slice());
    for (index, tree) in trees.iter().enumerate() {
        let name = format!("{index}");
        unpack_next(&mut NarReader::new(&mut input, LIMITS), &dir, &name).expect("a whole archive");
        assert_eq!(&tree_on_disk(&folder.path().join(name)), tree);
    }
    let mut rest = String::new();
    std::io::Read::read_to_string(&mut input, &mut rest).expect("what follows");
    assert_eq!(rest, "rest");
}

#[test]
fn names_that_are_not_utf8_cannot_be_listed() {
    let bytes = directory(&[(b"\xff", LINK)]);
    let error = listing_of(bytes.as_slice(), LIMITS, usize::MAX).expect_err("no JSON for it");
    assert_eq!(error.to_string(), "the file name \"\\xff\" is not UTF-8 and cannot be listed");
}

#[test]
fn what_an_archive_cannot_hold_is_refused() {
    let (folder, dir) = scratch();
    fs::create_dir(folder.path().join("tree")).expect("a folder");
    let socket = std::os::unix::net::UnixListener::bind(folder.path().join("tree/socket")).expect("a socket");
    let error = write_nar(&dir, "tree", Vec::new()).expect_err("a socket");
    assert_eq!(
        error.to_string(),
        "tree/socket is a socket: only regular files, directories and symlinks can be archived"
    );
    drop(socket);
    fs::remove_file(folder.path().join("tree/socket")).expect("it is there");
    rustix::fs::mknodat(rustix::fs::CWD, folder.path().join("tree/pipe"), rustix::fs::FileType::Fifo, 0o600.into(), 0)
        .expect("a pipe");
    let error = write_nar(&dir, "tree", Vec::new()).expect_err("a pipe");
    assert_eq!(error.to_string(), "tree/pipe is a pipe: only regular files, directories and symlinks can be archived");
    let error = pack_path(Path::new("/dev/null"), Vec::new()).expect_err("a device");
    assert_eq!(
        error.to_string(),
        "null is a character device: only regular files, directories and symlinks can be archived"
    );
    let error = write_nar(&dir, "absent", Vec::new()).expect_err("nothing");
    assert_eq!(error.to_string(), "could not look at absent");
}
