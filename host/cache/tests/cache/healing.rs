//! Bytes that rot in the bucket: found out by whoever reads them, looked at by a signer, and replaced.

use std::path::{Path, PathBuf};

use harmonia_cache::keys;
use harmonia_core::Viewer;
use harmonia_core::signer_api::{BuildCompleteAnswer, Holder};
use harmonia_db::{MissingPath, PathState};
use harmonia_nix::{NarInfo, Sha256Hash, StorePath};

use crate::world::{Drv, Nar, World};

/// The file of an object, below the endpoint's folder.
fn file_of(folder: &Path, name: &str) -> PathBuf {
    let mut open = vec![folder.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder).expect("folder") {
            let path = entry.expect("entry").path();
            if path.is_dir() {
                open.push(path);
            } else if path.file_name().is_some_and(|file| file.to_string_lossy().starts_with(name)) {
                return path;
            }
        }
    }
    panic!("no file of {name}");
}

/// Other bytes, and nothing else: size and what the store knows of it stay.
fn rot(world: &World, name: &str) {
    let file = file_of(world.bucket.folder.path(), name);
    let mut bytes = std::fs::read(&file).expect("object");
    let middle = bytes.len() / 2;
    for byte in &mut bytes[middle..middle + 8] {
        *byte ^= 0x5a;
    }
    std::fs::write(&file, bytes).expect("object");
}

fn large(text: &str) -> Nar {
    let lines: Vec<String> =
        (0..2_000_u32).map(|line| format!("{text} {}", line.wrapping_mul(2_654_435_761))).collect();
    Nar::file(&lines.join("\n"))
}

async fn narinfo(world: &World, path: &StorePath) -> Option<NarInfo> {
    let text = world.second_reader().narinfo(Viewer::Token, path.hash_part()).await.expect("known")?;
    Some(NarInfo::parse(std::str::from_utf8(&text).expect("UTF-8")).expect("a narinfo"))
}

#[tokio::test]
async fn rotten_bytes_are_deleted_and_the_path_built_again() {
    let world = World::start().await;
    let lib = Drv::new("lib", &["out"], &[]);
    let app = Drv::new("app", &["out"], &[&lib]);
    world.insert(&[&lib, &app], &[]).await;
    let path = lib.output("out").clone();
    let nar = large("lib");
    let (attempt, mut call) = world.built(&lib, &[("out", &nar, &[])]).await;
    call.outputs[0].info.listing =
        Some(r#"{"root":{"narOffset":96,"size":3,"type":"regular"},"version":1}"#.to_owned());
    world.signer.build_complete(&attempt.token, call).await.expect("accepted");
    assert!(world.reader.listing(Viewer::Token, path.hash_part()).await.expect("known").is_some());

    let user = world.claim(&app).await;
    let report = || world.db().report_missing_path(user.id, &user.token, &path, true);
    report().await.expect("reported");
    assert_eq!(world.signer.check_reported_paths().await.expect("looked"), 0, "one builder's word is not enough");
    let key = keys::nar(&Sha256Hash::of(&nar.compressed));
    rot(&world, key.strip_prefix("nar/").expect("below nar/"));
    report().await.expect("reported");
    assert_eq!(world.signer.check_reported_paths().await.expect("looked"), 1);
    assert_eq!(world.signer.check_reported_paths().await.expect("looked"), 0, "once");
    let rows = world.db().path_rows(std::slice::from_ref(&path)).await.expect("answers");
    assert_eq!(rows[0].state, PathState::Lost);
    assert!(narinfo(&world, &path).await.is_none());

    // The same bytes again: what rotted must not be taken for them. And no listing comes along.
    let attempt = world.claim(&lib).await;
    let call = lib.complete(&attempt, &[("out", &nar, &[])]);
    let uploaded =
        world.upload(&attempt.token, Holder::Attempt(attempt.id), &[(&call.outputs[0].info, &nar)], None).await;
    assert_eq!(uploaded, 1);
    let answer = world.signer.build_complete(&attempt.token, call).await.expect("accepted");
    assert_eq!(answer, BuildCompleteAnswer::Published);
    assert_eq!(narinfo(&world, &path).await.expect("published").nar_hash, nar.hash());
    let served = world.bucket.store.get_bytes(&key, 1 << 20).await.expect("reads").expect("there");
    assert_eq!(served, nar.compressed);
    let listing = world.second_reader().listing(Viewer::Token, path.hash_part()).await.expect("known");
    assert_eq!(listing, None, "that of the first generation is gone");
}

#[tokio::test]
async fn a_damaged_narinfo_is_written_again() {
    let world = World::start().await;
    let lib = Drv::new("lib", &["out"], &[]);
    world.insert(&[&lib], &[]).await;
    let path = lib.output("out").clone();
    let nar = large("lib");
    let (attempt, call) = world.built(&lib, &[("out", &nar, &[])]).await;
    world.signer.build_complete(&attempt.token, call).await.expect("accepted");
    let sound = narinfo(&world, &path).await.expect("published");
    rot(&world, &format!("{}.narinfo", path.hash_part()));
    // Whoever reads it next finds it out, or, where the text still parses, a builder does by its signature.
    if world.second_reader().narinfo(Viewer::Token, path.hash_part()).await.is_ok() {
        let user = Drv::new("user", &["out"], &[&lib]);
        world.insert(&[&user], &[]).await;
        let user = world.claim(&user).await;
        world.db().report_missing_path(user.id, &user.token, &path, true).await.expect("reported");
    }
    assert_eq!(world.db().missing_paths(10).await.expect("reports").len(), 1);
    assert_eq!(world.signer.check_reported_paths().await.expect("looked"), 0, "nothing is lost");
    assert_eq!(narinfo(&world, &path).await, Some(sound));
    assert!(world.db().missing_paths(10).await.expect("reports").is_empty());
}

/// What an upstream cache was said to have is for evaluators: to a signer nothing is lost.
#[tokio::test]
async fn a_path_that_was_never_ours_is_not_lost() {
    let world = World::start().await;
    let lib = Drv::new("lib", &["out"], &[]);
    let app = Drv::new("app", &["out"], &[&lib]);
    world.insert(&[&app], &[&lib]).await;
    let path = lib.output("out");
    assert!(world.db().path_rows(std::slice::from_ref(path)).await.expect("answers").is_empty());
    let user = world.claim(&app).await;
    for damaged in [false, true] {
        world.db().report_missing_path(user.id, &user.token, path, damaged).await.expect("an input");
        let reports = world.db().missing_paths(10).await.expect("reports");
        assert_eq!(reports, [MissingPath { path: path.clone(), damaged }]);
        assert_eq!(world.signer.check_reported_paths().await.expect("looked"), 0);
        assert!(world.db().missing_paths(10).await.expect("reports").is_empty(), "and nobody looks again");
    }
    // Nor does anything wait for it.
    world.db().release_attempt(user.id, &user.token, "the input was not there").await.expect("released");
    world.claim(&app).await;
}
