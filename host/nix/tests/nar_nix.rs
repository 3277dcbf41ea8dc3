//! NAR archives against stock Nix: the same bytes, trees that come back, the same listings.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use cap_std::ambient_authority;
use cap_std::fs::Dir;
use harmonia_nix::nar::{Limits, check_listing, listing_of, pack_path, unpack_nar, write_nar};

const LIMITS: Limits = Limits::of_size(64 << 20);

/// One tree with everything that an archive can hold.
fn make_tree(root: &Path) {
    fs::create_dir_all(root.join("empty")).expect("a folder");
    fs::create_dir_all(root.join("deep/er/and/deeper")).expect("folders");
    fs::write(root.join("deep/er/and/deeper/file"), "at the bottom").expect("a file");
    fs::write(root.join("nothing"), "").expect("a file");
    for length in [1_usize, 7, 8, 9, 4096] {
        fs::write(root.join(format!("of-{length}")), vec![b'a'; length]).expect("a file");
    }
    fs::write(root.join("run"), "#!/bin/sh\n").expect("a file");
    fs::set_permissions(root.join("run"), fs::Permissions::from_mode(0o755)).expect("its mode");
    // Executable for others only is not executable for Nix.
    fs::write(root.join("almost"), "").expect("a file");
    fs::set_permissions(root.join("almost"), fs::Permissions::from_mode(0o645)).expect("its mode");
    symlink("run", root.join("link")).expect("a symlink");
    symlink("/nowhere/at all", root.join("dangling")).expect("a symlink");
    symlink("../../../../..", root.join("empty-up")).expect("a symlink");
    // Order by bytes: capitals first, then a name that is the start of another.
    for name in ["Z", "a", "a.b", "a b", "ab", "zażółć", "日本語", "new\nline", "-dash"] {
        fs::write(root.join(name), name).expect("a file");
    }
    // More than any buffer, not a multiple of 8.
    let large: Vec<u8> = (0_u32..(9 << 20) / 4).flat_map(|n| n.wrapping_mul(0x9e37_79b9).to_le_bytes()).collect();
    fs::write(root.join("large"), &large[..large.len() - 3]).expect("a file");
}

fn dump(path: &Path) -> Vec<u8> {
    let output = Command::new("nix-store").arg("--dump").arg(path).output().expect("nix-store is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn pack(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    let size = pack_path(path, &mut bytes).expect("a sound tree");
    assert_eq!(size, bytes.len() as u64);
    bytes
}

#[track_caller]
fn assert_same(ours: &[u8], theirs: &[u8]) {
    // Not assert_eq, which would print megabytes.
    let differ = ours.iter().zip(theirs).position(|(a, b)| a != b);
    assert!(ours == theirs, "lengths {} and {}, first difference at {differ:?}", ours.len(), theirs.len());
}

#[test]
fn archives_are_those_of_nix() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let root = folder.path().join("tree");
    make_tree(&root);
    // Nix dumps such names, although its evaluator and store have trouble with them.
    fs::write(root.join(OsStr::from_bytes(b"not \xff\xfe utf8")), "x").expect("a file");
    symlink(OsStr::from_bytes(b"\xff"), root.join("link to no utf8")).expect("a symlink");
    assert_same(&pack(&root), &dump(&root));
    for name in ["empty", "nothing", "run", "almost", "link", "dangling", "large", "of-8", "of-9", "new\nline"] {
        assert_same(&pack(&root.join(name)), &dump(&root.join(name)));
    }
    let dir = Dir::open_ambient_dir(folder.path(), ambient_authority()).expect("it is there");
    let mut bytes = Vec::new();
    write_nar(&dir, "tree", &mut bytes).expect("a sound tree");
    assert_same(&bytes, &dump(&root));
}

#[test]
fn nix_restores_ours_and_we_restore_theirs() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let root = folder.path().join("tree");
    make_tree(&root);
    fs::write(root.join(OsStr::from_bytes(b"not \xff\xfe utf8")), "x").expect("a file");
    let theirs = dump(&root);

    let dir = Dir::open_ambient_dir(folder.path(), ambient_authority()).expect("it is there");
    let size = unpack_nar(theirs.as_slice(), &dir, "ours", LIMITS).expect("an archive of Nix");
    assert_eq!(size, theirs.len() as u64);
    assert_same(&dump(&folder.path().join("ours")), &theirs);

    let mut restore = Command::new("nix-store")
        .arg("--restore")
        .arg(folder.path().join("theirs"))
        .stdin(Stdio::piped())
        .spawn()
        .expect("nix-store is installed");
    pack_path(&root, restore.stdin.take().expect("it is a pipe")).expect("nix-store reads all");
    assert!(restore.wait().expect("it is our child").success());
    assert_same(&pack(&folder.path().join("theirs")), &theirs);
}

#[test]
fn listings_are_those_of_a_binary_cache() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    make_tree(&folder.path().join("tree"));
    fs::write(folder.path().join("single"), "one file").expect("a file");
    symlink("single", folder.path().join("alias")).expect("a symlink");
    let conf = folder.path().join("conf");
    fs::create_dir(&conf).expect("a folder");
    fs::write(conf.join("nix.conf"), "experimental-features = nix-command\nsubstituters =\nbuild-users-group =\n")
        .expect("a file");
    let store = format!("local?root={}/root", folder.path().display());
    let nix = |program: &str, args: &[&str]| {
        let mut command = Command::new(program);
        command.current_dir(folder.path()).env("NIX_CONF_DIR", &conf).env("HOME", folder.path()).args(args);
        let output = command.output().expect("Nix is installed");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    };
    for name in ["tree", "single", "alias"] {
        let path = nix("nix-store", &["--store", &store, "--add", name]);
        let path = path.trim_end();
        let cache = format!("file://{}/cache?write-nar-listing=1", folder.path().display());
        nix("nix", &["--store", &store, "copy", "--to", &cache, path]);
        let hash_part = path.strip_prefix("/nix/store/").and_then(|name| name.get(..32)).expect("a store path");
        let theirs = fs::read(folder.path().join(format!("cache/{hash_part}.ls"))).expect("Nix wrote it");
        // Nix before 2.9 writes the same with its keys in another order.
        let theirs: serde_json::Value = serde_json::from_slice(&theirs).expect("JSON");
        let ours = listing_of(pack(&folder.path().join(name)).as_slice(), LIMITS, usize::MAX).expect("a sound archive");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&ours).expect("JSON"), theirs, "{name}");
        check_listing(&ours).expect("a listing");
    }
}

/// As deep as a path can be, less what comes before it: nothing on the way recurses or opens a file for each level.
#[test]
fn a_tree_of_any_depth_is_what_nix_makes_of_it() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let make = |name: &str, depth: usize| {
        let root = folder.path().join(name);
        // Each level by itself: `create_dir_all` recurses.
        let mut path = root.clone();
        for _ in 0..depth {
            fs::create_dir(&path).expect("a folder");
            path.push("d");
        }
        fs::write(&path, "bottom").expect("a file");
        root
    };
    // Nix 2.26 looks at all that is above each level, which takes minutes for the deepest tree that there can be.
    let less = make("less", 500);
    let theirs = Command::new("nix-store").arg("--dump").arg(&less).output().expect("nix-store is installed");
    if theirs.status.success() {
        assert_same(&pack(&less), &theirs.stdout);
    } else {
        // Since Nix 2.33 or so.
        let words = String::from_utf8_lossy(&theirs.stderr);
        assert!(words.contains("exceeds maximum NAR directory depth"), "{words}");
    }
    let depth = (4_096 - folder.path().as_os_str().len() - 64) / 2;
    let ours = pack(&make("deep", depth));

    let dir = Dir::open_ambient_dir(folder.path(), cap_std::ambient_authority()).expect("a folder");
    unpack_nar(ours.as_slice(), &dir, "back", LIMITS).expect("its own archive");
    assert_same(&pack(&folder.path().join("back")), &ours);

    let listing = listing_of(ours.as_slice(), LIMITS, usize::MAX).expect("a sound archive");
    assert_eq!(listing.matches("\"d\":").count(), depth);
    check_listing(&listing).expect("a listing");
}
