//! Against the installed Nix: what `nix-store --dump` writes is what we hash, and what zstd unpacks again.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Command;

use super::*;

fn options(dir: &Path) -> PackOptions {
    PackOptions::new(dir.to_owned(), 64 << 20)
}

/// A tree with everything an archive can hold; one file is larger than any buffer on the way.
fn tree(dir: &Path) -> PathBuf {
    let root = dir.join("tree");
    fs::create_dir_all(root.join("bin")).expect("folder");
    fs::create_dir_all(root.join("empty")).expect("folder");
    fs::write(root.join("bin/tool"), "#!/bin/sh\necho hello\n").expect("file");
    fs::set_permissions(root.join("bin/tool"), fs::Permissions::from_mode(0o555)).expect("mode");
    symlink("bin/tool", root.join("link")).expect("symlink");
    fs::write(root.join("nothing"), "").expect("file");
    let big: Vec<u8> = (0..3_000_001_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    fs::write(root.join("big"), big).expect("file");
    root
}

fn dump(path: &Path) -> Vec<u8> {
    let output = Command::new("nix-store").arg("--dump").arg(path).output().expect("nix-store runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

#[tokio::test]
async fn one_pass_gives_what_nix_and_zstd_give() {
    let dir = tempfile::tempdir().expect("folder");
    let root = tree(dir.path());
    let nar = dump(&root);
    for threads in [0, 2] {
        let options = PackOptions { compression_threads: threads, ..options(dir.path()) };
        let packed = pack(root.clone(), options).await.expect("packs");
        assert_eq!(packed.nar_hash, Sha256Hash::of(&nar));
        assert_eq!(packed.nar_size, nar.len() as u64);
        let file = fs::read(&packed.file).expect("file");
        assert_eq!((packed.file_hash, packed.file_size), (Sha256Hash::of(&file), file.len() as u64));
        // The command-line tool is the judge, not the library that wrote it.
        let unpacked = Command::new("zstd").args(["-d", "-c"]).arg(&packed.file).output().expect("zstd runs");
        assert!(unpacked.status.success() && unpacked.stdout == nar, "{threads} threads");

        let listing: serde_json::Value =
            serde_json::from_str(packed.listing.as_deref().expect("listing")).expect("JSON");
        let entries = &listing["root"]["entries"];
        assert_eq!(entries["bin"]["entries"]["tool"]["executable"], true);
        assert_eq!(entries["link"]["target"], "bin/tool");
        let offset = usize::try_from(entries["big"]["narOffset"].as_u64().expect("offset")).expect("fits");
        assert_eq!(nar[offset..offset + 100], fs::read(root.join("big")).expect("file")[..100]);
        drop(packed);
    }
    let left: Vec<_> = fs::read_dir(dir.path()).expect("folder").flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(left, ["tree"], "a packed path that is dropped takes its file along");
}

#[tokio::test]
async fn a_single_file_and_a_symlink_are_paths_too() {
    let dir = tempfile::tempdir().expect("folder");
    let file = dir.path().join("file");
    fs::write(&file, "text").expect("file");
    let link = dir.path().join("link");
    symlink("/nowhere", &link).expect("symlink");
    for path in [file, link] {
        let packed = pack(path.clone(), options(dir.path())).await.expect("packs");
        assert_eq!(packed.nar_hash, Sha256Hash::of(&dump(&path)));
    }
}

#[tokio::test]
async fn a_bound_stops_a_large_path_and_leaves_no_file() {
    let dir = tempfile::tempdir().expect("folder");
    let root = tree(dir.path());
    let size = dump(&root).len() as u64;
    let bound = |nar_bytes_max| PackOptions { nar_bytes_max, ..options(dir.path()) };
    let error = pack(root.clone(), bound(size - 1)).await.expect_err("too large");
    assert!(matches!(error, PackError::TooLarge { max, .. } if max == size - 1), "{error:?}");
    assert_eq!(fs::read_dir(dir.path()).expect("folder").count(), 1);
    pack(root, bound(size)).await.expect("exactly the bound is allowed");
}

#[tokio::test]
async fn what_an_archive_cannot_hold_and_what_is_not_there_are_named() {
    let dir = tempfile::tempdir().expect("folder");
    let root = dir.path().join("tree");
    fs::create_dir(&root).expect("folder");
    let _socket = std::os::unix::net::UnixListener::bind(root.join("socket")).expect("socket");
    let error = pack(root, options(dir.path())).await.expect_err("a socket");
    assert!(matches!(&error, PackError::Tree { cause: NarError::UnsupportedType { .. }, .. }), "{error:?}");

    let error = pack(dir.path().join("absent"), options(dir.path())).await.expect_err("absent");
    assert!(matches!(error, PackError::Tree { .. }), "{error:?}");

    let file = dir.path().join("file");
    fs::write(&file, "x").expect("file");
    let error = pack(file.clone(), options(&dir.path().join("absent"))).await.expect_err("no spool");
    assert!(matches!(error, PackError::Spool { .. }), "{error:?}");
}

#[tokio::test]
async fn names_that_are_no_text_cost_the_listing_only() {
    let dir = tempfile::tempdir().expect("folder");
    let root = dir.path().join("tree");
    fs::create_dir(&root).expect("folder");
    fs::write(root.join(std::ffi::OsStr::from_bytes(b"\xff")), "x").expect("file");
    let packed = pack(root.clone(), options(dir.path())).await.expect("packs");
    assert_eq!(packed.nar_hash, Sha256Hash::of(&dump(&root)));
    assert_eq!(packed.listing, None);
}

/// Most memory that this process ever had, in bytes.
fn peak_memory_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a line of the kernel");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
}

#[tokio::test]
async fn memory_does_not_grow_with_the_path() {
    let dir = tempfile::tempdir().expect("folder");
    let root = dir.path().join("tree");
    fs::create_dir(&root).expect("folder");
    // A hole takes no disk, and is hashed and compressed like other bytes.
    let size = 300 << 20;
    fs::File::create(root.join("hole")).expect("file").set_len(size).expect("length");
    let before = peak_memory_bytes();
    let packed = pack(root, PackOptions::new(dir.path().to_owned(), 1 << 30)).await.expect("packs");
    assert!(packed.nar_size > size && packed.file_size < 1 << 20);
    let grown = peak_memory_bytes() - before;
    assert!(grown < 64 << 20, "{grown} bytes more");
}

#[test]
fn work_that_nobody_wants_ends_at_the_next_piece() {
    let dir = tempfile::tempdir().expect("folder");
    let root = tree(dir.path());
    let error = pack_blocking(&root, &options(dir.path()), &AtomicBool::new(false)).expect_err("not wanted");
    assert!(matches!(error, PackError::Cancelled), "{error:?}");
    assert_eq!(fs::read_dir(dir.path()).expect("folder").count(), 1);
}

#[test]
fn files_live_below_the_root_of_the_store() {
    let path = StorePath::parse("/nix/store/00000000000000000000000000000000-a").expect("path");
    assert_eq!(physical_path(None, &path), Path::new(path.as_str()));
    let under = physical_path(Some(Path::new("/srv/store")), &path);
    assert_eq!(under, Path::new("/srv/store/nix/store/00000000000000000000000000000000-a"));
}
