//! Our client against a real `nix-daemon` (2.8 or newer) with a store of its own.

#[path = "worker_protocol_daemon/daemon.rs"]
mod daemon;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use daemon::Daemon;
use harmonia_nix::nar::{Limits, pack_path};
use harmonia_nix::worker_protocol::{
    BuildMode, BuildStatus, ClientError, ClientOptions, DerivedPath, GcRequest, LogTarget, OutputNames, PathInfo,
    ValidPathInfo,
};
use harmonia_nix::{BasicDerivation, ContentAddressMethod, DerivationOutput, HashAlgorithm, NarHash, StorePath};

const LIMITS: Limits = Limits::of_size(64 << 20);
const SYSTEM: &str = if cfg!(target_arch = "aarch64") { "aarch64-linux" } else { "x86_64-linux" };

fn store_path(seed: u8, name: &str) -> StorePath {
    StorePath::from_parts(&[seed; 20], name).expect("a good name")
}

/// A derivation with the output `out`, whose builder is a shell script.
fn script(seed: u8, name: &str, text: &str) -> (StorePath, BasicDerivation) {
    let out = store_path(seed, name);
    let env = [("name", name), ("system", SYSTEM), ("builder", "/bin/sh"), ("out", out.as_str())];
    let derivation = BasicDerivation {
        name: name.to_owned(),
        outputs: BTreeMap::from([("out".to_owned(), DerivationOutput::InputAddressed(out.clone()))]),
        input_srcs: BTreeSet::new(),
        platform: SYSTEM.to_owned(),
        builder: "/bin/sh".into(),
        args: vec!["-c".into(), text.into()],
        env: env.into_iter().map(|(name, value)| (name.into(), value.into())).collect(),
    };
    (store_path(seed.wrapping_add(1), &format!("{name}.drv")), derivation)
}

fn make_tree(root: &Path) -> Vec<u8> {
    fs::create_dir_all(root.join("sub/empty")).expect("folders");
    fs::write(root.join("file"), "content").expect("a file");
    fs::write(root.join("large"), vec![7; (9 << 20) + 5]).expect("a file");
    symlink("../file", root.join("sub/link")).expect("a symlink");
    let mut archive = Vec::new();
    pack_path(root, &mut archive).expect("a sound tree");
    archive
}

fn valid(path: StorePath, archive: &[u8], references: &[&StorePath]) -> ValidPathInfo {
    let mut info = PathInfo::new(NarHash::of(archive), archive.len() as u64);
    info.references = references.iter().map(|path| (*path).clone()).collect();
    ValidPathInfo { path, info }
}

#[tokio::test]
async fn paths_go_in_and_come_back() {
    let daemon = Daemon::start().await;
    let mut client = daemon.connect(LogTarget::Discard).await;
    assert!(client.session().daemon_program_version.as_deref().is_some_and(|version| version.starts_with("2.")));
    client.set_options(&ClientOptions::default()).await.expect("options");

    let none = BTreeSet::new();
    let text = client.add_text_to_store("note", b"a note\n", &none, false).await.expect("a text");
    assert_eq!(text.path.name(), "note");
    assert_eq!(text.info.content_address.map(|address| address.method), Some(ContentAddressMethod::Text));
    assert!(client.is_valid_path(&text.path).await.expect("an answer"));
    assert!(!client.is_valid_path(&store_path(9, "absent")).await.expect("an answer"));
    let found = client.query_path_from_hash_part(text.path.hash_part()).await.expect("an answer");
    assert_eq!(found.as_ref(), Some(&text.path));
    assert_eq!(client.query_path_from_hash_part(store_path(9, "x").hash_part()).await.expect("an answer"), None);

    let archive = make_tree(&daemon.folder().join("tree"));
    let (method, algorithm) = (ContentAddressMethod::Recursive, HashAlgorithm::Sha256);
    let tree = client.add_to_store("tree", method, algorithm, &none, false, archive.as_slice()).await.expect("a tree");
    assert_eq!(tree.info.nar_hash, NarHash::of(&archive));
    assert_eq!(tree.info.nar_size_bytes, archive.len() as u64);
    assert_eq!(tree.path.to_string(), daemon.nix_store(&["--add", "tree"]).trim_end());
    let mut back = Vec::new();
    let size = client.nar_from_path(&tree.path, &mut back, LIMITS).await.expect("an archive");
    assert_eq!(size, archive.len() as u64);
    assert!(back == archive);

    let flat = ContentAddressMethod::Flat;
    let file = client.add_to_store("flat", flat, algorithm, &none, false, b"flat".as_slice()).await.expect("a file");
    assert_eq!(fs::read(daemon.real(&file.path)).expect("it is in the store"), b"flat");

    // Not content-addressed: taken because root is trusted and asks not to check signatures.
    let with_reference = valid(store_path(1, "refers"), &archive, &[&text.path]);
    let error = client.add_to_store_nar(&with_reference, archive.as_slice(), false, false).await;
    assert!(matches!(error, Err(ClientError::Daemon(_))), "unsigned paths are refused: {error:?}");
    assert!(client.is_ready(), "an error leaves the connection usable");
    client.add_to_store_nar(&with_reference, archive.as_slice(), false, true).await.expect("a path");
    let info = client.query_path_info(&with_reference.path).await.expect("an answer").expect("it is valid");
    assert_eq!(info.references, BTreeSet::from([text.path.clone()]));
    assert_eq!(
        client.query_referrers(&text.path).await.expect("an answer"),
        BTreeSet::from([with_reference.path.clone()])
    );
    assert_eq!(client.query_path_info(&store_path(9, "absent")).await.expect("an answer"), None);

    let first = valid(store_path(2, "first"), &archive, &[]);
    let second = valid(store_path(3, "second"), &archive, &[&first.path]);
    let both = [(first.clone(), archive.as_slice()), (second.clone(), archive.as_slice())];
    client.add_multiple_to_store(both, false, true).await.expect("two paths");
    let paths = BTreeSet::from([first.path.clone(), second.path.clone(), store_path(9, "absent")]);
    let valid_paths = client.query_valid_paths(&paths, false).await.expect("an answer");
    assert_eq!(valid_paths, BTreeSet::from([first.path.clone(), second.path.clone()]));

    // A wrong hash is refused, and the connection survives.
    let mut wrong = valid(store_path(4, "wrong"), &archive, &[]);
    wrong.info.nar_hash = NarHash::of(b"something else");
    let error = client.add_to_store_nar(&wrong, archive.as_slice(), false, true).await.expect_err("a wrong hash");
    assert!(error.to_string().contains("hash mismatch"), "{error}");

    let signature = format!("test-1:{}==", "A".repeat(86));
    client.add_signatures(&first.path, &BTreeSet::from([signature.clone()])).await.expect("a signature");
    let info = client.query_path_info(&first.path).await.expect("an answer").expect("it is valid");
    assert_eq!(info.signatures, BTreeSet::from([signature]));

    assert_eq!(client.query_all_valid_paths().await.expect("an answer").len(), 6);
    assert!(!client.verify_store(true, false).await.expect("an answer"), "the store has no errors");

    let link = daemon.folder().join("root-link");
    symlink(&second.path, &link).expect("a symlink");
    client.add_indirect_root(&link).await.expect("a root");
    let roots = client.find_roots().await.expect("roots");
    assert!(roots.iter().any(|root| root.target == second.path), "{roots:?}");
    let in_use = client.collect_garbage(&GcRequest::delete(BTreeSet::from([first.path.clone()]))).await;
    assert!(matches!(in_use, Err(ClientError::Daemon(_))), "it is referred to: {in_use:?}");
    // What a connection adds it also protects.
    drop(client);
    let mut client = daemon.connect(LogTarget::Discard).await;
    let report = client.collect_garbage(&GcRequest::delete(BTreeSet::from([file.path.clone()]))).await.expect("free");
    assert_eq!(report.paths, [file.path.to_string()]);
    assert!(!client.is_valid_path(&file.path).await.expect("an answer"));
    client.add_temp_root(&tree.path).await.expect("a temporary root");
    client.collect_garbage(&GcRequest::delete_dead()).await.expect("garbage");
    let left = client.query_all_valid_paths().await.expect("an answer");
    assert_eq!(left, BTreeSet::from([first.path, second.path, tree.path.clone()]));
    client.ensure_path(&tree.path).await.expect("it is valid");
    client.optimise_store().await.expect("links");
}

#[tokio::test]
async fn an_absent_archive_is_an_error() {
    let daemon = Daemon::start().await;
    let mut client = daemon.connect(LogTarget::Discard).await;
    let error = client.nar_from_path(&store_path(9, "absent"), &mut Vec::new(), LIMITS).await.expect_err("no path");
    assert!(matches!(error, ClientError::Daemon(_)), "{error:?}");
    let text = client.add_text_to_store("x", b"x", &BTreeSet::new(), false).await;
    // Stock daemons cannot go on after an archive that broke off; what we must not do is to wait for them for ever.
    assert!(matches!(text, Err(ClientError::Unusable)), "{text:?}");
}

#[tokio::test]
async fn a_build_has_log_lines_and_a_result() {
    let daemon = Daemon::start().await;
    let (sender, mut receiver) = tokio::sync::mpsc::channel(1024);
    let mut client = daemon.connect(LogTarget::Channel(sender)).await;
    let text = "echo one; echo two >&2; echo '\u{1b}[1mthree\u{1b}[0m'; echo made > $out";
    let (path, derivation) = script(10, "builds", text);
    let result = client.build_derivation(&path, &derivation, BuildMode::Normal).await.expect("a result");
    assert_eq!(result.status, BuildStatus::Built, "{}", result.plain_error_message());
    // Daemons of today neither count any more nor say when they began.
    assert!(result.times_built <= 1, "{}", result.times_built);
    assert!(result.stop_time_s >= result.start_time_s);
    let out = &result.built_outputs["out"].path;
    assert_eq!(*out, store_path(10, "builds"));
    assert_eq!(fs::read(daemon.real(out)).expect("it was built"), b"made\n");
    let again = client.build_derivation(&path, &derivation, BuildMode::Normal).await.expect("a result");
    assert_eq!(again.status, BuildStatus::AlreadyValid);

    let mut archive = Vec::new();
    client.nar_from_path(out, &mut archive, LIMITS).await.expect("an archive");
    let info = client.query_path_info(out).await.expect("an answer").expect("it is valid");
    assert_eq!((info.nar_hash, info.ultimate, info.deriver), (NarHash::of(&archive), true, Some(path.clone())));
    client.add_build_log(&path, b"a log from elsewhere\n".as_slice()).await.expect("a log");

    let (path, derivation) = script(20, "fails", "echo before; exit 3");
    let result = client.build_derivation(&path, &derivation, BuildMode::Normal).await.expect("a result");
    assert_eq!(result.status, BuildStatus::PermanentFailure);
    assert!(result.plain_error_message().contains("failed with exit code 3"), "{}", result.error_message);
    assert!(!result.plain_error_message().contains('\u{1b}'));

    drop(client);
    let mut lines = Vec::new();
    while let Some(message) = receiver.recv().await {
        lines.extend(message.build_log_line().map(|line| String::from_utf8_lossy(line).into_owned()));
    }
    assert_eq!(lines, ["one", "two", "\u{1b}[1mthree\u{1b}[0m", "before"]);
}

#[tokio::test]
async fn a_graph_is_planned_and_built() {
    let daemon = Daemon::start().await;
    let mut client = daemon.connect(LogTarget::Discard).await;
    let expression = format!(
        r#"let mk = name: text: derivation {{ inherit name; system = "{SYSTEM}"; builder = "/bin/sh"; args = [ "-c" text ]; }};
           one = mk "one" "echo 1 > $out"; in [ (mk "two" "echo ${{one}} > $out") (mk "bad" "exit 7") ]"#
    );
    let instantiated = daemon.instantiate(&expression);
    let derivations: Vec<StorePath> = instantiated.lines().map(|path| path.parse().expect("a path")).collect();
    let wanted: Vec<_> = derivations
        .iter()
        .map(|path| DerivedPath::Built { derivation: path.clone(), outputs: OutputNames::All })
        .collect();
    client.set_options(&ClientOptions { keep_going: true, ..ClientOptions::default() }).await.expect("options");
    let missing = client.query_missing(&wanted).await.expect("a plan");
    assert_eq!(missing.will_build.len(), 3);
    let results = client.build_paths_with_results(&wanted, BuildMode::Normal).await.expect("results");
    let status = |path: &DerivedPath| results.iter().find(|(of, _)| of == path).map(|(_, result)| result.status);
    assert_eq!(status(&wanted[0]), Some(BuildStatus::Built), "{results:?}");
    assert_eq!(status(&wanted[1]), Some(BuildStatus::PermanentFailure), "{results:?}");
    let outputs = client.query_derivation_output_map(&derivations[0]).await.expect("outputs");
    let out = outputs["out"].clone().expect("it is known");
    let info = client.query_path_info(&out).await.expect("an answer").expect("it is valid");
    let hash = daemon.nix_store(&["--query", "--hash", out.as_str()]);
    assert_eq!(info.nar_hash.to_string(), hash.trim_end());
    assert_eq!(info.references.len(), 1);
    let error = client.build_paths(&wanted[1..], BuildMode::Normal).await.expect_err("it fails");
    assert!(matches!(&error, ClientError::Daemon(error) if error.plain_message().contains("exit code 7")), "{error:?}");
    client.build_paths(&wanted[..1], BuildMode::Normal).await.expect("the connection is usable after an error");
}

#[tokio::test]
async fn dropping_the_connection_ends_the_build() {
    let daemon = Daemon::start().await;
    let (sender, mut receiver) = tokio::sync::mpsc::channel(1024);
    let mut client = daemon.connect(LogTarget::Channel(sender)).await;
    // The name of the store path is in the command line, so that the process can be told from all others.
    let marker = format!("marker-{}-of-this-build", std::process::id());
    let (path, derivation) = script(30, "endless", &format!("echo started; while :; do : {marker}; done"));
    let build = async { client.build_derivation(&path, &derivation, BuildMode::Normal).await };
    let started = async {
        while let Some(message) = receiver.recv().await {
            if message.build_log_line() == Some(b"started") {
                return;
            }
        }
        panic!("the build never started");
    };
    tokio::select! {
        result = build => panic!("the build ended by itself: {result:?}"),
        () = started => {}
    }
    assert_eq!(daemon::processes_with(&marker), 1);
    assert!(!client.is_ready());
    drop(client);
    daemon::until(Duration::from_secs(20), "the builder is gone", || daemon::processes_with(&marker) == 0).await;
    let mut client = daemon.connect(LogTarget::Discard).await;
    assert!(!client.is_valid_path(&store_path(30, "endless")).await.expect("an answer"));
}
