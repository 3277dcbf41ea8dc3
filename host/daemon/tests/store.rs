//! Our store and stock Nix's `nix-store` on the same files: what one does the other accepts, keeps and waits for.

#[path = "store/place.rs"]
mod place;

use std::collections::BTreeSet;
use std::fs;
use std::io::BufReader;

use harmonia_daemon::store::{AddOptions, KeepOptions, Verified};
use harmonia_nix::nar::pack_path;
use harmonia_nix::store_path::References;
use harmonia_nix::worker_protocol::{GcAction, GcRequest, PathInfo, ValidPathInfo};
use harmonia_nix::{ContentAddress, ContentAddressMethod, Hash, HashAlgorithm, NarHash, StorePath};
use place::{Place, until};

const KEEP: KeepOptions = KeepOptions { outputs: false, derivations: true };

fn tree(place: &Place) -> std::path::PathBuf {
    let dir = place.path("tree");
    fs::create_dir_all(dir.join("sub/deeper")).expect("made");
    fs::write(dir.join("file"), "one\n").expect("written");
    fs::write(dir.join("sub/program"), "#!/bin/sh\n").expect("written");
    std::os::unix::fs::symlink("../file", dir.join("sub/link")).expect("linked");
    std::os::unix::fs::symlink("/nowhere", dir.join("sub/deeper/broken")).expect("linked");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(dir.join("sub/program"), mode).expect("executable");
    // More than is held in memory.
    fs::write(dir.join("large"), vec![b'x'; 3 << 20]).expect("written");
    dir
}

fn archive(path: &std::path::Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    pack_path(path, &mut bytes).expect("packed");
    bytes
}

#[test]
fn what_we_add_is_what_stock_nix_adds() {
    let place = Place::new();
    let (store, tree) = (place.store(), tree(&place));
    let roots = store.temp_roots();
    let none = BTreeSet::new();
    let options = AddOptions::default();
    let nar = archive(&tree);
    let recursive = |algorithm| (ContentAddressMethod::Recursive, algorithm);
    for (algorithm, flag) in [(HashAlgorithm::Sha256, "sha256"), (HashAlgorithm::Sha1, "sha1")] {
        let ours =
            store.add_content(&roots, "tree", recursive(algorithm), &none, nar.as_slice(), options).expect("added");
        let args = ["--add-fixed", "--recursive", flag, tree.to_str().expect("text")];
        assert_eq!(place.other_stock(&args).trim(), ours.path.as_str());
        for kind in [HashAlgorithm::Md5, HashAlgorithm::Sha512] {
            let flat = (ContentAddressMethod::Flat, kind);
            let ours = store.add_content(&roots, "file", flat, &none, &b"one\n"[..], options).expect("added");
            let (kind, file) = (kind.to_string(), tree.join("file").display().to_string());
            assert_eq!(place.other_stock(&["--add-fixed", &kind, &file]).trim(), ours.path.as_str());
        }
    }
    assert_eq!(place.rows(), place.other_rows());
    assert_eq!(place.metadata("nix/store"), place.other_metadata("nix/store"), "modes, times and owners");
    place.stock(&["--verify", "--check-contents"]);
}

#[test]
fn derivations_are_registered_with_their_outputs_and_refused_when_these_are_not_theirs() {
    let place = Place::new();
    let store = place.store();
    let roots = store.temp_roots();
    let expression = r#"let d = name: more: derivation ({ inherit name; system = "x"; builder = "b"; } // more);
        in d "top" { outputs = [ "out" "dev" ]; input = d "below" {}; }"#;
    let drv: StorePath = place.instantiate(expression).parse().expect("a path");
    let mut closure: Vec<(StorePath, PathInfo)> = place.other_closure(&drv);
    for (path, info) in &closure {
        let text = fs::read(place.other_real(path)).expect("a derivation");
        let added = store.add_text(&roots, path.name(), &text, &info.references, AddOptions::default()).expect("added");
        assert_eq!(added.path, *path);
    }
    assert_eq!(place.rows(), place.other_rows());
    let outputs = store.derivation_outputs(&drv).expect("outputs");
    assert_eq!(outputs.keys().collect::<Vec<_>>(), ["dev", "out"]);
    assert_eq!(store.valid_derivers(&outputs["dev"]).expect("derivers"), BTreeSet::from([drv.clone()]));

    let (_, info) = closure.pop().expect("the top");
    let text = fs::read_to_string(place.other_real(&drv)).expect("text");
    let forged = text.replace(outputs["dev"].as_str(), "/nix/store/00000000000000000000000000000000-top-dev");
    let error = store.add_text(&roots, "top.drv", forged.as_bytes(), &info.references, AddOptions::default());
    assert!(error.expect_err("forged").to_string().contains("has incorrect outputs"));
    assert_eq!(place.rows(), place.other_rows(), "nothing of it is valid");
    place.stock(&["--verify", "--check-contents"]);
}

/// A path with an archive of one file.
fn valid(name: &str, contents: &str, references: &[&StorePath]) -> (ValidPathInfo, Vec<u8>) {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("x");
    fs::write(&file, contents).expect("written");
    let nar = archive(&file);
    let hash = NarHash::of(&nar);
    let path = StorePath::make_output(name, "out", NarHash::of(name.as_bytes())).expect("a name");
    let mut info = PathInfo::new(hash, nar.len() as u64);
    info.references = references.iter().copied().cloned().collect();
    (ValidPathInfo { path, info }, nar)
}

#[test]
fn archives_that_are_not_what_was_announced_leave_nothing() {
    let place = Place::new();
    let store = place.store();
    let roots = store.temp_roots();
    let options = AddOptions { unsigned: true, ..AddOptions::default() };
    let (good, nar) = valid("good", "content", &[]);
    let add = |valid: &ValidPathInfo, nar: &[u8], options| {
        store.add_nar(&roots, valid, BufReader::new(nar), options).map_err(|error| error.to_string())
    };
    let refused = |valid: &ValidPathInfo, nar: &[u8], options, expected: &str| {
        let error = add(valid, nar, options).expect_err(expected);
        assert!(error.contains(expected), "{error}");
        assert!(!store.is_valid(&valid.path).expect("an answer"));
        assert!(!store.real_path(&valid.path).exists(), "{expected}: files are left");
    };
    refused(&good, &nar, AddOptions::default(), "lacks a valid signature");
    let mut other = good.clone();
    other.info.nar_hash = NarHash::of(b"another");
    refused(&other, &nar, options, "hash mismatch importing path");
    let mut longer = good.clone();
    longer.info.nar_size_bytes += 8;
    refused(&longer, &nar, options, "size mismatch importing path");
    refused(&good, &nar[..nar.len() - 1], options, "cannot unpack the archive");
    let (missing, _) = valid("missing", "x", &[]);
    let (needy, needy_nar) = valid("needy", "y", &[&missing.path]);
    let error = add(&needy, &needy_nar, options).expect_err("a reference is missing");
    assert_eq!(error, format!("path '{}' is not valid", missing.path));
    assert!(!store.is_valid(&needy.path).expect("an answer"));
    // Says that it is content-addressed, and its path follows from that, but the content is another.
    let address = ContentAddress::flat(Hash::of(HashAlgorithm::Sha256, b"something else"));
    let path = StorePath::make_fixed_output("liar", address, &References::default()).expect("a path");
    let mut liar = ValidPathInfo { path, info: good.info.clone() };
    liar.info.content_address = Some(address);
    refused(&liar, &nar, AddOptions::default(), "ca hash mismatch importing path");
    let mut pretender = good.clone();
    pretender.info.content_address = Some(address);
    let error = add(&pretender, &nar, options).expect_err("another path");
    assert!(
        error.contains("claims to be content-addressed but isn't") || error.contains("ca hash mismatch"),
        "{error}"
    );
    add(&good, &nar, options).expect("added");
    // Valid: the archive is not even read.
    add(&good, b"garbage", options).expect("there already");
    drop(roots);
    let report = store.collect_garbage(&GcRequest::delete_dead(), KEEP, &|_| ()).expect("collected");
    assert!(report.paths.len() >= 2, "{report:?}");
    assert_eq!(place.names_in_store(), [".links"], "no staging, no lock is left");
}

#[test]
fn a_repaired_path_is_replaced_and_equal_files_are_linked() {
    use std::os::unix::fs::MetadataExt;
    let place = Place::new();
    let store = place.store();
    let roots = store.temp_roots();
    let options = AddOptions { unsigned: true, optimise: true, ..AddOptions::default() };
    let paths: Vec<(ValidPathInfo, Vec<u8>)> = ["a", "b", "c"].map(|name| valid(name, "the same", &[])).into();
    for (valid, nar) in &paths {
        store.add_nar(&roots, valid, nar.as_slice(), options).expect("added");
    }
    let real = |index: usize| store.real_path(&paths[index].0.path);
    let found = fs::metadata(real(0)).expect("there");
    assert_eq!((found.ino(), found.nlink(), found.mtime()), (fs::metadata(real(2)).expect("there").ino(), 4, 1));
    place.stock(&["--verify", "--check-contents"]);
    // Somebody changes one, and with it all: the repair has to get the content from the archive, not from the links.
    fs::set_permissions(real(0), std::os::unix::fs::PermissionsExt::from_mode(0o644)).expect("mode");
    fs::write(real(0), "changed!").expect("written");
    assert!(!store.is_sound(&paths[1].0.path).expect("an answer"));
    let verified = store.verify(true, true, &|_, _| ()).expect("verified");
    assert_eq!(verified.damaged.len(), 3);
    for (valid, nar) in &paths {
        store.add_nar(&roots, valid, nar.as_slice(), AddOptions { repair: true, ..options }).expect("repaired");
        assert!(store.is_sound(&valid.path).expect("an answer"));
    }
    place.stock(&["--verify", "--check-contents"]);
}

#[test]
fn optimising_links_what_stock_nix_would() {
    let place = Place::new();
    let (store, tree) = (place.store(), tree(&place));
    fs::copy(tree.join("file"), tree.join("sub/copy")).expect("copied");
    fs::write(tree.join("empty"), "").expect("written");
    let roots = store.temp_roots();
    let kind = (ContentAddressMethod::Recursive, HashAlgorithm::Sha256);
    let add = |name| {
        let nar = archive(&tree);
        store.add_content(&roots, name, kind, &BTreeSet::new(), nar.as_slice(), AddOptions::default()).expect("added");
    };
    add("one");
    add("two");
    for name in ["one", "two"] {
        place.other_stock_named(&tree, name);
    }
    let ours = store.optimise(&roots, &|_, _| ()).expect("optimised");
    assert_eq!(ours.files, 8, "{ours:?}");
    place.other_stock(&["--optimise"]);
    assert_eq!(place.metadata("nix/store"), place.other_metadata("nix/store"));
    assert_eq!(place.link_counts(), place.other_link_counts());
    place.stock(&["--verify", "--check-contents"]);
    assert_eq!(store.optimise(&roots, &|_, _| ()).expect("again").files, 0);
}

#[test]
fn stock_nix_waits_for_a_path_that_we_write() {
    let place = Place::new();
    let store = place.store();
    let roots = store.temp_roots();
    let file = place.path("file");
    fs::write(&file, "content").expect("written");
    let path: StorePath = place.other_stock(&["--add", file.to_str().expect("text")]).trim().parse().expect("a path");
    let locks = store.lock_paths(&roots, &BTreeSet::from([path.clone()])).expect("locked");
    let mut adding = place.stock_command(&["--add", file.to_str().expect("text")]).spawn().expect("started");
    until("nix-store waits for the lock", || place::waits_for_a_lock(adding.id()));
    assert!(!store.is_valid(&path).expect("an answer"));
    assert!(adding.try_wait().expect("a state").is_none());
    drop(locks);
    assert!(adding.wait().expect("an end").success());
    assert!(store.is_valid(&path).expect("an answer"));
}

#[test]
fn we_wait_for_a_path_that_somebody_else_writes() {
    let place = Place::new();
    let (store, other) = (place.store(), place.store());
    let (roots, other_roots) = (store.temp_roots(), other.temp_roots());
    let (valid, nar) = valid("a", "content", &[]);
    let paths = BTreeSet::from([valid.path.clone()]);
    let held = other.lock_paths(&other_roots, &paths).expect("locked");
    assert!(store.try_lock_paths(&roots, &paths).expect("tried").is_none());
    std::thread::scope(|scope| {
        let adding = scope.spawn(|| {
            let options = AddOptions { unsigned: true, ..AddOptions::default() };
            store.add_nar(&roots, &valid, nar.as_slice(), options)
        });
        until("we wait for the lock", || place::waits_for_a_lock(std::process::id()));
        assert!(!adding.is_finished());
        drop(held);
        adding.join().expect("no panic").expect("added");
    });
    assert!(other.is_valid(&valid.path).expect("an answer"));
}

#[tokio::test]
async fn many_who_want_one_path_get_it_one_after_the_other() {
    let place = Place::new();
    let store = place.store();
    let (valid, _) = valid("a", "content", &[]);
    let holders = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let (store, holders, path) = (store.clone(), holders.clone(), valid.path.clone());
        tasks.spawn(async move {
            let roots = std::sync::Arc::new(store.temp_roots());
            let locks = store.lock_paths_soon(&roots, &BTreeSet::from([path])).await.expect("locked");
            assert_eq!(holders.fetch_add(1, std::sync::atomic::Ordering::SeqCst), 0, "two have the lock");
            tokio::task::yield_now().await;
            holders.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
            drop(locks);
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.expect("no panic");
    }
}

#[test]
fn stock_nix_keeps_what_our_connections_need() {
    let place = Place::new();
    let store = place.store();
    let (roots, others) = (store.temp_roots(), store.temp_roots());
    let options = AddOptions::default();
    let added = store.add_text(&roots, "text", b"needed", &BTreeSet::new(), options).expect("added");
    let lost = store.add_text(&others, "text", b"not needed", &BTreeSet::new(), options).expect("added");
    drop(others);
    place.stock(&["--gc"]);
    assert!(store.is_valid(&added.path).expect("an answer"));
    assert!(!store.is_valid(&lost.path).expect("an answer"));
    drop(roots);
    place.stock(&["--gc"]);
    assert!(!store.is_valid(&added.path).expect("an answer"));
    assert_eq!(fs::read_dir(place.path("root/nix/var/nix/temproots")).expect("listed").count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn we_keep_what_connections_of_stock_nix_need() {
    let place = Place::new();
    let store = place.store();
    let added = store.add_text(&store.temp_roots(), "text", b"x", &BTreeSet::new(), AddOptions::default());
    let path = added.expect("added").path;
    let daemon = place.stock_daemon();
    let mut client = daemon.connect().await;
    client.add_temp_root(&path).await.expect("a root");
    let collect = || store.collect_garbage(&GcRequest::delete_dead(), KEEP, &|_| ()).expect("collected");
    assert_eq!(collect().paths, Vec::<String>::new());
    let roots = store.find_roots(false).expect("roots");
    let links: Vec<String> = roots[&path].iter().map(|link| String::from_utf8_lossy(link).into_owned()).collect();
    assert!(links.iter().all(|link| link.starts_with("{temp:")), "{links:?}");
    drop(client);
    until("the connection has ended", || collect().paths == [path.to_string()]);
}

#[test]
fn a_collection_of_stock_nix_hears_of_our_new_roots() {
    let place = Place::new();
    let store = place.store();
    let added = store.add_text(&store.temp_roots(), "text", b"x", &BTreeSet::new(), AddOptions::default());
    let path = added.expect("added").path;
    let mut collecting = place.paused_collection();
    // It has looked for roots and goes on when it has read from the pipe.
    let roots = store.temp_roots();
    roots.add(&path).expect("told");
    collecting.go_on();
    assert!(store.is_valid(&path).expect("an answer"), "it was deleted although it is needed");
    drop(roots);
    place.stock(&["--gc"]);
    assert!(!store.is_valid(&path).expect("an answer"));
}

#[test]
fn what_may_go_is_what_stock_nix_says() {
    let place = Place::new();
    let store = place.store();
    let options = AddOptions { unsigned: true, ..AddOptions::default() };
    {
        let roots = store.temp_roots();
        let (a, a_nar) = valid("a", "a", &[]);
        let (b, b_nar) = valid("b", "b", &[&a.path]);
        let (mut c, c_nar) = valid("c", "c", &[&b.path]);
        c.info.references.insert(c.path.clone());
        let (d, d_nar) = valid("d", "d", &[&a.path]);
        for (valid, nar) in [(&a, a_nar), (&b, b_nar), (&c, c_nar), (&d, d_nar)] {
            store.add_nar(&roots, valid, nar.as_slice(), options).expect("added");
        }
        let link = place.path("result");
        store.add_perm_root(&roots, &b.path, &link).expect("a root");
        assert!(store.add_perm_root(&roots, &a.path, &place.path("tmp")).is_err(), "a directory is in the way");
    }
    let ask = |action| {
        let request = GcRequest { action, ..GcRequest::delete_dead() };
        store.collect_garbage(&request, KEEP, &|_| ()).expect("asked").paths
    };
    let stock = |flag: &str| -> Vec<String> {
        let mut lines: Vec<String> = place.stock(&["--gc", flag]).lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(ask(GcAction::ReturnLive), stock("--print-live"));
    assert_eq!(ask(GcAction::ReturnDead), stock("--print-dead"));
    assert_eq!(ask(GcAction::ReturnDead).len(), 2);
    let path_of = |name: &str| valid(name, "", &[]).0.path;
    let delete = |name: &str| {
        let request = GcRequest::delete(BTreeSet::from([path_of(name)]));
        store.collect_garbage(&request, KEEP, &|_| ()).map(|report| report.paths.len())
    };
    assert!(delete("a").expect_err("needed").to_string().contains("since it is still alive"));
    assert_eq!(delete("d").expect("deleted"), 1);
    fs::write(place.path("root/nix/store/garbage"), "x").expect("written");
    assert_eq!(ask(GcAction::DeleteDead).len(), 2, "c, and what is no path");
    fs::remove_file(place.path("result")).expect("removed");
    assert_eq!(ask(GcAction::DeleteDead).len(), 2);
    assert_eq!(place.names_in_store(), [".links"]);
    assert_eq!(place.stock(&["--gc", "--print-roots"]), "");
}

#[test]
fn what_is_missing_is_noticed_and_what_is_changed_too() {
    let place = Place::new();
    let store = place.store();
    let roots = store.temp_roots();
    let options = AddOptions { unsigned: true, ..AddOptions::default() };
    let (a, a_nar) = valid("a", "a", &[]);
    let (b, b_nar) = valid("b", "b", &[&a.path]);
    let (lonely, lonely_nar) = valid("lonely", "l", &[]);
    for (valid, nar) in [(&a, &a_nar), (&b, &b_nar), (&lonely, &lonely_nar)] {
        store.add_nar(&roots, valid, nar.as_slice(), options).expect("added");
    }
    let check = || store.verify(true, false, &|_, _| ()).expect("verified");
    assert_eq!(check(), Verified::default());
    fs::remove_file(store.real_path(&a.path)).expect("removed");
    fs::remove_file(store.real_path(&lonely.path)).expect("removed");
    assert_eq!(check().damaged, BTreeSet::from([a.path.clone()]));
    assert!(!store.is_valid(&lonely.path).expect("an answer"), "nothing refers to it");
    fs::write(store.real_path(&a.path), "A").expect("written");
    let mut told = std::cell::RefCell::new(Vec::new());
    store.verify(true, false, &|level, text| told.borrow_mut().push((level, text.to_owned()))).expect("verified");
    let errors: Vec<_> = told.get_mut().iter().filter(|(level, _)| *level == 0).collect();
    assert!(errors.len() == 1 && errors[0].1.contains("was modified! expected hash"), "{errors:?}");
}

#[test]
fn leftovers_of_additions_are_swept_but_not_what_is_going_on() {
    let place = Place::new();
    let store = place.store();
    let roots = store.temp_roots();
    let going_on = store.staging(&roots).expect("staging");
    let left = store.real_path(&StorePath::from_parts(&[7; 20], "harmonia-staging").expect("a name"));
    fs::create_dir_all(left.join("x/y")).expect("made");
    store.sweep().expect("swept");
    assert!(going_on.dir().exists() && !left.exists());
}
