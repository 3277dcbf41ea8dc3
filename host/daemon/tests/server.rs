//! The daemon as clients see it: stock `nix-store` and our own client, of all versions, many at once, and cut off.

#[path = "server/place.rs"]
mod place;

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use harmonia_nix::nar::Limits;
use harmonia_nix::worker_protocol::stderr::read_message;
use harmonia_nix::worker_protocol::wire::{self, put_bool, put_bytes, put_list, put_u64};
use harmonia_nix::worker_protocol::{
    ClientError, ClientGreeting, ClientOptions, GcAction, GcRequest, LogMessage, LogTarget, ProtocolVersion,
    StderrMessage, Trust,
};
use harmonia_nix::{ContentAddressMethod, HashAlgorithm, StorePath};
use place::{Place, archive, valid};

#[tokio::test]
async fn every_question_about_the_store_is_answered() {
    let place = Place::start().await;
    let mut client = place.connect().await;
    assert_eq!(client.session().trust, Some(Trust::Trusted));
    assert!(client.session().daemon_program_version.as_deref().is_some_and(|version| version.starts_with("2.8.0")));
    client.set_options(&ClientOptions::default()).await.expect("options");
    let none = BTreeSet::new();
    let a = client.add_text_to_store("a", b"first", &none, false).await.expect("added");
    let b = client.add_text_to_store("b", b"second", &BTreeSet::from([a.path.clone()]), false).await.expect("added");
    assert!(client.is_valid_path(&a.path).await.expect("an answer"));
    let info = client.query_path_info(&b.path).await.expect("an answer").expect("valid");
    assert_eq!(info, b.info);
    assert_eq!(client.query_referrers(&a.path).await.expect("an answer"), BTreeSet::from([b.path.clone()]));
    assert_eq!(client.query_path_from_hash_part(a.path.hash_part()).await.expect("an answer"), Some(a.path.clone()));
    assert_eq!(client.query_path_from_hash_part(&"0".repeat(32)).await.expect("an answer"), None);
    let (absent, _) = valid("absent", "x", &[]);
    assert_eq!(client.query_path_info(&absent.path).await.expect("an answer"), None);
    let asked = BTreeSet::from([a.path.clone(), absent.path.clone()]);
    assert_eq!(client.query_valid_paths(&asked, false).await.expect("an answer"), BTreeSet::from([a.path.clone()]));
    let all = client.query_all_valid_paths().await.expect("an answer");
    assert_eq!(all, BTreeSet::from([a.path.clone(), b.path.clone()]));
    assert_eq!(client.query_valid_derivers(&a.path).await.expect("an answer"), none);
    client.add_signatures(&a.path, &BTreeSet::from(["key:AAAA".to_owned()])).await.expect("signed");
    let info = client.query_path_info(&a.path).await.expect("an answer").expect("valid");
    assert_eq!(info.signatures, BTreeSet::from(["key:AAAA".to_owned()]));

    let mut nar = Vec::new();
    client.nar_from_path(&b.path, &mut nar, Limits::of_size(1 << 20)).await.expect("an archive");
    assert_eq!(nar, archive(b"second"));
    let error = client.nar_from_path(&absent.path, &mut nar, Limits::of_size(1 << 20)).await.expect_err("absent");
    assert!(error.to_string().contains("is not valid"), "{error}");

    let link = place.path("result");
    let made = client.add_perm_root(&b.path, &link).await.expect("a root");
    assert_eq!(made, link.to_str().expect("text"));
    let roots = client.find_roots().await.expect("an answer");
    assert!(roots.iter().any(|root| root.target == b.path && root.link == made.as_bytes()), "{roots:?}");
    client.optimise_store().await.expect("optimised");
    assert!(!client.verify_store(true, false).await.expect("an answer"));
    drop(client);

    let mut client = place.connect().await;
    client.add_build_log(&absent.path, &b"a log"[..]).await.expect("a log");
    let name = absent.path.base_name();
    let log = place.path(&format!("root/nix/var/log/nix/drvs/{}/{}.bz2", &name[..2], &name[2..]));
    let mut text = String::new();
    let mut log = bzip2::read::BzDecoder::new(fs::File::open(log).expect("there"));
    std::io::Read::read_to_string(&mut log, &mut text).expect("compressed");
    assert_eq!(text, "a log");
    let report = client.collect_garbage(&GcRequest::delete_dead()).await.expect("collected");
    assert_eq!(report.paths, Vec::<String>::new());
    fs::remove_file(&link).expect("removed");
    let request = GcRequest { action: GcAction::ReturnDead, ..GcRequest::delete_dead() };
    assert_eq!(client.collect_garbage(&request).await.expect("asked").paths.len(), 2);
    place.stock(&["--verify", "--check-contents"]);
}

#[tokio::test]
async fn a_refusal_leaves_the_connection_usable() {
    let place = Place::start().await;
    let mut client = place.connect().await;
    let refused = |error: ClientError, expected: &str| {
        let ClientError::Daemon(error) = error else { panic!("{error:?}") };
        assert!(error.message.contains(expected), "{error:?}");
    };
    let (absent, _) = valid("absent", "x", &[]);
    let error = client.query_realisation("sha256:00!out").await.expect_err("not offered");
    refused(error, "content-addressed derivations are not offered");
    refused(client.query_derivation_output_map(&absent.path).await.expect_err("absent"), "is not valid");
    let (mut unlike, nar) = valid("unlike", "x", &[]);
    unlike.info.nar_size_bytes += 1;
    // Its archive has to be read although nobody wants it.
    let large = vec![0; 5 << 20];
    for (bulk, expected) in [(nar.as_slice(), "size mismatch importing path"), (&large, "cannot unpack the archive")] {
        let error = client.add_to_store_nar(&unlike, bulk, false, true).await.expect_err("not what it says");
        refused(error, expected);
    }
    let error = client.add_to_store_nar(&unlike, nar.as_slice(), false, false).await.expect_err("unsigned");
    refused(error, "lacks a valid signature");
    let request = GcRequest { ignore_liveness: true, ..GcRequest::delete_dead() };
    refused(client.collect_garbage(&request).await.expect_err("never"), "not allowed to ignore liveness");
    assert!(!client.is_valid_path(&absent.path).await.expect("still there"));
}

#[tokio::test]
async fn clients_of_every_version_are_served() {
    let place = Place::start().await;
    for minor in 21..=ProtocolVersion::NEWEST.minor {
        let greeting = ClientGreeting { version: ProtocolVersion { major: 1, minor }, ..ClientGreeting::default() };
        let mut client = place.connect_with(&greeting, LogTarget::Discard).await;
        assert_eq!(client.session().version.minor, minor);
        client.set_options(&ClientOptions::default()).await.expect("options");
        // Of 1.21 and 1.22 the daemon has to ask for the archive in pieces.
        let (valid, nar) = valid(&format!("v{minor}"), &"x".repeat(300_000), &[]);
        client.add_to_store_nar(&valid, nar.as_slice(), false, true).await.expect("added");
        assert!(client.is_valid_path(&valid.path).await.expect("an answer"));
        let mut back = Vec::new();
        client.nar_from_path(&valid.path, &mut back, Limits::of_size(1 << 20)).await.expect("an archive");
        assert!(back == nar);
        if minor >= 25 {
            let kind = (ContentAddressMethod::Flat, HashAlgorithm::Sha1);
            let name = format!("f{minor}");
            let added = client.add_to_store(&name, kind.0, kind.1, &BTreeSet::new(), false, &b"flat"[..]).await;
            assert!(client.is_valid_path(&added.expect("added").path).await.expect("an answer"));
        }
        if minor >= 32 {
            let (one, one_nar) = place::valid(&format!("one{minor}"), "1", &[]);
            let (two, two_nar) = place::valid(&format!("two{minor}"), "2", &[&one.path]);
            let paths = vec![(one.clone(), one_nar.as_slice()), (two.clone(), two_nar.as_slice())];
            client.add_multiple_to_store(paths, false, true).await.expect("added");
            assert!(client.is_valid_path(&two.path).await.expect("an answer"));
        }
    }
    place.stock(&["--verify", "--check-contents"]);
}

/// Nix 2.3 sends an archive as it is, for which the protocol has no client here.
#[tokio::test]
async fn content_from_nix_2_3_is_added() {
    let place = Place::start().await;
    let greeting = ClientGreeting { version: ProtocolVersion::OLDEST, ..ClientGreeting::default() };
    for (fixed, recursive, algorithm, kind) in [
        (false, true, "sha256", (ContentAddressMethod::Recursive, HashAlgorithm::Sha256)),
        (true, true, "sha1", (ContentAddressMethod::Recursive, HashAlgorithm::Sha1)),
        (true, false, "sha256", (ContentAddressMethod::Flat, HashAlgorithm::Sha256)),
    ] {
        let client = place.connect_with(&greeting, LogTarget::Discard).await;
        let (mut reader, mut writer) = client.into_parts();
        let content = format!("content {algorithm} {recursive}");
        let mut request = Vec::new();
        put_u64(&mut request, 7);
        put_bytes(&mut request, "name");
        put_bool(&mut request, fixed);
        put_bool(&mut request, recursive);
        put_bytes(&mut request, algorithm);
        request.extend_from_slice(&archive(content.as_bytes()));
        // And the next question right behind it.
        put_u64(&mut request, 13);
        tokio::io::AsyncWriteExt::write_all(&mut writer, &request).await.expect("sent");
        let mut newest = place.connect().await;
        let nar = archive(content.as_bytes());
        let bytes = if recursive { nar.as_slice() } else { content.as_bytes() };
        let expected =
            newest.add_to_store("name", kind.0, kind.1, &BTreeSet::new(), false, bytes).await.expect("added");
        let last = read_message(&mut reader, ProtocolVersion::OLDEST).await.expect("a message");
        assert_eq!(last, StderrMessage::Last);
        let path = wire::read_store_path(&mut reader, "a path").await.expect("a path");
        assert_eq!(path, expected.path);
        let last = read_message(&mut reader, ProtocolVersion::OLDEST).await.expect("a message");
        assert_eq!((last, wire::read_u64(&mut reader).await.expect("a number")), (StderrMessage::Last, 1));
    }
}

#[tokio::test]
async fn what_is_no_protocol_ends_only_its_own_connection() {
    let place = Place::start().await;
    let greeting = || {
        let mut bytes = Vec::new();
        put_u64(&mut bytes, 0x6e69_7863);
        put_u64(&mut bytes, ProtocolVersion { major: 1, minor: 37 }.code());
        put_u64(&mut bytes, 0);
        put_u64(&mut bytes, 0);
        bytes
    };
    let request = |operation: u64, rest: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = greeting();
        put_u64(&mut bytes, operation);
        rest(&mut bytes);
        bytes
    };
    for (bytes, expected) in [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), ""),
        (request(999, &|_| ()), "invalid operation 999"),
        (request(1, &|bytes| put_bytes(bytes, "/etc/passwd")), "IsValidPath"),
        (request(1, &|bytes| put_u64(bytes, u64::MAX)), "IsValidPath"),
        (request(31, &|bytes| put_u64(bytes, u64::MAX)), "QueryValidPaths"),
        (
            request(8, &|bytes| {
                put_bytes(bytes, "../../x");
                put_bytes(bytes, "text");
                put_list(bytes, Vec::<String>::new());
            }),
            "cannot be added",
        ),
    ] {
        let mut stream = UnixStream::connect(place.socket()).expect("connected");
        stream.write_all(&bytes).expect("sent");
        stream.shutdown(std::net::Shutdown::Write).expect("closed");
        let mut answer = Vec::new();
        std::io::Read::read_to_end(&mut stream, &mut answer).expect("an end");
        let text = String::from_utf8_lossy(&answer);
        assert!(text.contains(expected), "{expected}: {text:?}");
    }
    assert!(place.connect().await.query_all_valid_paths().await.expect("it lives").is_empty());
}

#[tokio::test]
async fn a_thousand_idle_connections_are_served_and_cost_little() {
    place::raise_open_files();
    let place = Place::start().await;
    let before = place.resident_bytes();
    let mut clients = Vec::new();
    for _ in 0..1000 {
        let mut client = place.connect().await;
        client.set_options(&ClientOptions::default()).await.expect("options");
        clients.push(client);
    }
    let (absent, _) = valid("absent", "x", &[]);
    for client in &mut clients {
        assert!(!client.is_valid_path(&absent.path).await.expect("an answer"));
    }
    let idle = place.resident_bytes();
    println!("resident: {} KiB alone, {} KiB with 1,000 connections", before >> 10, idle >> 10);
    assert!(before < 24 << 20, "{before} bytes alone");
    assert!(idle < 64 << 20, "{idle} bytes with 1,000 connections");
}

/// Cut off at many places, the daemon leaves a store that stock Nix accepts, and the next one goes on with it.
#[tokio::test]
async fn a_daemon_that_is_killed_while_it_adds_leaves_paths_valid_or_not() {
    let mut place = Place::start().await;
    let paths: Vec<_> = (0..8)
        .scan(None, |previous: &mut Option<StorePath>, index| {
            let references: Vec<&StorePath> = previous.iter().collect();
            let added = valid(&format!("p{index}"), &format!("{index}").repeat(40_000), &references);
            *previous = Some(added.0.path.clone());
            Some(added)
        })
        .collect();
    let total: usize = paths.iter().map(|(_, nar)| nar.len()).sum();
    let mut seen = BTreeSet::new();
    for round in 0..16 {
        let place::Killed { valid, .. } = place.add_and_kill(&paths, total * round / 14).await;
        seen.insert(valid);
        let report = place.stock(&["--verify", "--check-contents"]);
        assert!(!report.contains("disappeared") && !report.contains("modified"), "round {round}: {report}");
        place.restart().await;
        let mut client = place.connect().await;
        let all = paths.iter().map(|(valid, nar)| (valid.clone(), nar.as_slice())).collect::<Vec<_>>();
        client.add_multiple_to_store(all, false, true).await.expect("added again");
        drop(client);
        let mut client = place.connect().await;
        let report = client.collect_garbage(&GcRequest::delete_dead()).await.expect("collected");
        assert!(report.paths.len() >= paths.len(), "{report:?}");
        assert_eq!(place.names_in_store(), [".links"], "round {round}");
    }
    assert!(seen.contains(&0), "none was valid once: {seen:?}");
}

#[tokio::test]
async fn stock_clients_add_copy_and_collect() {
    let place = Place::start().await;
    let file = place.path("file");
    fs::write(&file, "content").expect("written");
    let path = place.client("nix-store", &["--add", file.to_str().expect("text")]);
    let path = path.trim();
    assert_eq!(place.client("nix-store", &["--query", "--hash", path]).trim().len(), 59);
    let exported = Command::new("nix-store").args(["--store", &place.uri(), "--query", "--size", path]).output();
    assert_eq!(String::from_utf8_lossy(&exported.expect("installed").stdout).trim(), "120");
    place.client("nix-store", &["--verify", "--check-contents"]);
    place.client("nix-store", &["--gc"]);
    assert_eq!(place.names_in_store(), [".links"]);
    let error = place.client_error("nix-store", &["--query", "--hash", path]);
    assert!(error.contains("is not valid"), "{error}");
    // Two stock daemons' worth of clients on one store: theirs works on the files itself.
    let twice = place.stock(&["--add", file.to_str().expect("text")]);
    assert_eq!(place.client("nix-store", &["--check-validity", twice.trim()]), "");
}

#[tokio::test]
async fn systemd_may_hand_the_socket_over() {
    let place = Place::start_activated().await;
    assert!(place.connect().await.query_all_valid_paths().await.expect("an answer").is_empty());
}

#[tokio::test]
async fn standard_streams_are_passed_on() {
    let place = Place::start().await;
    let mut relay = tokio::process::Command::new(env!("CARGO_BIN_EXE_harmonia-daemon"));
    let relay = place.environment(relay.as_std_mut()).arg("--stdio").stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut relay =
        tokio::process::Command::from(std::mem::replace(relay, Command::new("true"))).spawn().expect("started");
    let (output, input) = (relay.stdout.take().expect("piped"), relay.stdin.take().expect("piped"));
    let mut client = harmonia_nix::worker_protocol::Client::connect(output, input).await.expect("a greeting");
    assert!(client.query_all_valid_paths().await.expect("an answer").is_empty());
    drop(client);
    assert!(relay.wait().await.expect("an end").success());
}

#[tokio::test]
async fn clients_hear_only_what_they_want_to_hear() {
    let place = Place::start().await;
    for (verbosity, hears) in [(0, false), (3, true)] {
        let heard = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
        let keep = heard.clone();
        let log = LogTarget::callback(move |message| keep.lock().expect("one user").push(message));
        let mut client = place.connect_with(&ClientGreeting::default(), log).await;
        client.set_options(&ClientOptions { verbosity, ..ClientOptions::default() }).await.expect("options");
        client.collect_garbage(&GcRequest::delete_dead()).await.expect("collected");
        let heard = heard.lock().expect("one user");
        let told =
            heard.iter().any(|message| matches!(message, LogMessage::Text(text) if text.contains("deleting garbage")));
        assert_eq!(told, hears, "{heard:?}");
    }
}
