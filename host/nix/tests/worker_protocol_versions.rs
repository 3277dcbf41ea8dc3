//! Both ends of the protocol in one process: old versions, hostile daemons, and errors in the middle of things, with the
//! daemon's end made of the primitives that a server uses.

use std::collections::BTreeSet;

use harmonia_nix::nar::{Limits, NarError};
use harmonia_nix::worker_protocol::framed::{FRAME_BYTES, FramedReader, FramedWriter};
use harmonia_nix::worker_protocol::handshake::{DAEMON_MAGIC, greet_client};
use harmonia_nix::worker_protocol::stderr::{put_message, strip_ansi};
use harmonia_nix::worker_protocol::wire::{
    ITEMS_MAX, put_bool, put_bytes, put_u64, read_bytes, read_store_path, read_u64,
};
use harmonia_nix::worker_protocol::{
    ActivityResult, BuildMode, BuildResult, BuildStatus, BuiltOutput, Client, ClientError, ClientGreeting, DaemonError,
    DaemonGreeting, DerivedPath, Field, HandshakeError, LogMessage, LogTarget, Operation, OutputNames, PathInfo,
    ProtocolVersion, StderrMessage, Trust, ValidPathInfo, WireError,
};
use harmonia_nix::{NarHash, StorePath};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf, duplex, split};

type Near = Client<ReadHalf<DuplexStream>, WriteHalf<DuplexStream>>;

fn version(minor: u8) -> ProtocolVersion {
    ProtocolVersion { major: 1, minor }
}

fn some_path(name: &str) -> StorePath {
    StorePath::from_parts(&[7; 20], name).expect("a good name")
}

fn error(message: &str) -> DaemonError {
    DaemonError { message: message.to_owned(), level: 0, traces: Vec::new(), exit_status: None }
}

/// The daemon's end.
struct Far {
    reader: ReadHalf<DuplexStream>,
    writer: WriteHalf<DuplexStream>,
    version: ProtocolVersion,
}

impl Far {
    async fn say(&mut self, messages: &[StderrMessage], answer: &[u8]) {
        let mut buffer = Vec::new();
        for message in messages {
            put_message(&mut buffer, self.version, message);
        }
        buffer.extend_from_slice(answer);
        self.writer.write_all(&buffer).await.expect("the client listens");
    }

    async fn expect(&mut self, operation: Operation) {
        let code = read_u64(&mut self.reader).await.expect("a request");
        assert_eq!(Operation::try_from(code).expect("a known operation"), operation);
    }
}

/// A client and the daemon's end of its conversation, through a pipe that holds `buffer` bytes in each direction.
async fn pair(minor: u8, buffer: usize) -> (Near, Far) {
    let (near, far) = duplex(buffer);
    let (reader, writer) = split(near);
    let (mut far_reader, mut far_writer) = split(far);
    let greeting = DaemonGreeting {
        version: version(minor),
        features: BTreeSet::from(["theirs".to_owned(), "common".to_owned()]),
        program_version: "2.99".to_owned(),
        trust: Some(Trust::NotTrusted),
    };
    let ours = ClientGreeting {
        features: BTreeSet::from(["common".to_owned(), "ours".to_owned()]),
        ..ClientGreeting::default()
    };
    let daemon = async {
        let session = greet_client(&mut far_reader, &mut far_writer, &greeting).await.expect("a client");
        let mut far = Far { reader: far_reader, writer: far_writer, version: session.version };
        far.say(&[StderrMessage::Last], &[]).await;
        (far, session)
    };
    let client = async { Client::connect_with(reader, writer, &ours, LogTarget::Discard).await.expect("a daemon") };
    let ((far, session), client) = tokio::join!(daemon, client);
    assert_eq!(*client.session(), session);
    (client, far)
}

#[tokio::test]
async fn every_version_is_greeted() {
    for minor in 21..=40 {
        let (client, far) = pair(minor, 64).await;
        let session = client.session();
        assert_eq!(session.version, version(minor.min(38)));
        assert_eq!(session.daemon_program_version.is_some(), minor >= 33);
        assert_eq!(session.trust, (minor >= 35).then_some(Trust::NotTrusted));
        let features = if minor >= 38 { vec!["common"] } else { vec![] };
        assert_eq!(session.features.iter().map(String::as_str).collect::<Vec<_>>(), features);
        drop(far);
    }
}

#[tokio::test]
async fn who_is_no_daemon_is_told_so() {
    let greeting = |magic: u64, version: u64| {
        let mut bytes = Vec::new();
        put_u64(&mut bytes, magic);
        put_u64(&mut bytes, version);
        bytes
    };
    let fail = async |bytes: Vec<u8>| match Client::connect(bytes.as_slice(), Vec::new()).await {
        Err(ClientError::Handshake(error)) => error,
        other => panic!("{other:?}"),
    };
    assert!(matches!(fail(vec![]).await, HandshakeError::Refused));
    assert!(matches!(fail(b"HTTP/1.1 400 Bad".to_vec()).await, HandshakeError::BadMagic(_)));
    let old = fail(greeting(DAEMON_MAGIC, 0x114)).await;
    assert_eq!(old.to_string(), "the other end speaks protocol 1.20, at least 1.21 is needed");
    assert!(matches!(fail(greeting(DAEMON_MAGIC, 0x226)).await, HandshakeError::Version { .. }));
    assert!(matches!(fail(greeting(DAEMON_MAGIC, 1 << 40)).await, HandshakeError::Wire(WireError::BadValue { .. })));
}

#[tokio::test]
async fn errors_have_two_layouts_and_the_connection_goes_on() {
    for minor in [21, 25, 26, 38] {
        let (mut client, mut far) = pair(minor, 4096).await;
        let reason = DaemonError {
            message: "\u{1b}[31;1merror:\u{1b}[0m no".to_owned(),
            level: 0,
            traces: if minor >= 26 { vec!["while trying".to_owned()] } else { vec![] },
            exit_status: (minor < 26).then_some(100),
        };
        let daemon = async {
            far.expect(Operation::IsValidPath).await;
            read_store_path(&mut far.reader, "a path").await.expect("a path");
            far.say(&[StderrMessage::Error(reason.clone())], &[]).await;
            far.expect(Operation::IsValidPath).await;
            read_store_path(&mut far.reader, "a path").await.expect("a path");
            far.say(&[StderrMessage::Last], &1_u64.to_le_bytes()).await;
        };
        let path = some_path("x");
        let asking = async {
            let Err(ClientError::Daemon(told)) = client.is_valid_path(&path).await else { panic!("no error") };
            assert_eq!(told, reason);
            assert_eq!(told.to_string(), "the daemon says: error: no");
            assert!(client.is_valid_path(&path).await.expect("an answer"));
        };
        tokio::join!(daemon, asking);
    }
}

#[tokio::test]
async fn what_a_daemon_cannot_do_is_not_asked() {
    let (mut client, _far) = pair(21, 4096).await;
    let map = client.query_derivation_output_map(&some_path("x.drv")).await.expect_err("since 1.22");
    assert_eq!(
        map.to_string(),
        "QueryDerivationOutputMap needs protocol 1.22, the daemon speaks 1.21: use a newer Nix there"
    );
    let drv = [DerivedPath::Opaque(some_path("x.drv"))];
    assert!(matches!(
        client.build_paths(&drv, BuildMode::Normal).await,
        Err(ClientError::Unsupported { needs: 30, .. })
    ));
    assert!(client.is_ready(), "nothing was sent");
}

#[tokio::test]
async fn before_1_23_the_daemon_fetches_archives_piece_by_piece() {
    let (mut client, mut far) = pair(22, 512).await;
    let archive: Vec<u8> = (0..10_000_u32).map(|n| n as u8).collect();
    let info = ValidPathInfo { path: some_path("x"), info: PathInfo::new(NarHash::of(&archive), 10_000) };
    let daemon = async {
        far.expect(Operation::AddToStoreNar).await;
        assert_eq!(ValidPathInfo::read(&mut far.reader).await.expect("a path"), info);
        let flags =
            [read_u64(&mut far.reader).await.expect("a flag"), read_u64(&mut far.reader).await.expect("a flag")];
        assert_eq!(flags, [0, 1]);
        let mut received = Vec::new();
        while received.len() < 10_000 {
            far.say(&[StderrMessage::Read(777)], &[]).await;
            let piece = read_bytes(&mut far.reader, "a piece", 777).await.expect("a piece");
            assert!(!piece.is_empty());
            received.extend(piece);
        }
        far.say(&[StderrMessage::Last], &[]).await;
        received
    };
    let (received, added) = tokio::join!(daemon, client.add_to_store_nar(&info, archive.as_slice(), false, true));
    added.expect("it was taken");
    assert!(received == archive);
    assert!(client.is_ready());
}

/// A daemon refuses an upload while it is going on: the client must stop, end the frames, and be usable again, even when
/// its own source has nothing more to give for now.
#[tokio::test]
async fn an_upload_that_is_refused_half_way_ends_at_once() {
    let (mut client, mut far) = pair(38, 1024).await;
    let (mut source_writer, source) = duplex(1 << 20);
    source_writer.write_all(&vec![1; 3 * FRAME_BYTES]).await.expect("it has room");
    let info = ValidPathInfo { path: some_path("x"), info: PathInfo::new(NarHash::of(b""), 1 << 40) };
    let daemon = async {
        far.expect(Operation::AddToStoreNar).await;
        ValidPathInfo::read(&mut far.reader).await.expect("a path");
        read_u64(&mut far.reader).await.expect("a flag");
        read_u64(&mut far.reader).await.expect("a flag");
        let mut framed = FramedReader::new(&mut far.reader);
        framed.read_exact(&mut [0; 100]).await.expect("the beginning");
        // As stock daemons do: first the error, and the rest of the frames is read and dropped.
        let mut buffer = Vec::new();
        put_message(&mut buffer, version(38), &StderrMessage::Error(error("no more room")));
        far.writer.write_all(&buffer).await.expect("the client listens");
        let rest = tokio::io::copy(&mut framed, &mut tokio::io::sink()).await.expect("whole frames");
        assert!(rest <= 3 * FRAME_BYTES as u64);
        far.expect(Operation::QueryAllValidPaths).await;
        far.say(&[StderrMessage::Last], &0_u64.to_le_bytes()).await;
    };
    let asking = async {
        let refused = client.add_to_store_nar(&info, source, false, true).await.expect_err("no room");
        assert_eq!(refused.to_string(), "the daemon says: no more room");
        assert!(client.query_all_valid_paths().await.expect("an answer").is_empty());
    };
    tokio::join!(daemon, asking);
    drop(source_writer);
}

#[tokio::test]
async fn a_source_that_fails_ends_the_conversation() {
    let (mut client, far) = pair(38, 1 << 20).await;
    let (source_writer, source) = duplex(16);
    drop(source_writer);
    // Frames that are not there: the reader fails with an unexpected end.
    let broken = FramedReader::new(source);
    let failed = client.add_build_log(&some_path("x.drv"), broken).await.expect_err("it cannot be read");
    assert!(matches!(failed, ClientError::Source(_)), "{failed:?}");
    assert!(matches!(client.query_all_valid_paths().await, Err(ClientError::Unusable)));
    drop(far);
}

/// The futures of operations must be able to move between threads, or no server could run them.
#[tokio::test]
async fn operations_can_be_spawned() {
    let (mut client, far) = pair(38, 4096).await;
    drop(far);
    let task = tokio::spawn(async move {
        let (path, archive) = (some_path("x"), b"".as_slice());
        let info = ValidPathInfo { path: path.clone(), info: PathInfo::new(NarHash::of(archive), 0) };
        let first = client.add_multiple_to_store([(info.clone(), archive)], false, true).await;
        assert!(matches!(first, Err(ClientError::Wire(_))), "{first:?}");
        let second = client.add_to_store_nar(&info, archive, false, true).await;
        assert!(matches!(second, Err(ClientError::Unusable)));
        let third = client.nar_from_path(&path, &mut Vec::new(), Limits::of_size(1)).await;
        assert!(matches!(third, Err(ClientError::Unusable)));
    });
    task.await.expect("it ran to its end");
}

#[tokio::test]
async fn a_cancelled_operation_makes_the_client_unusable() {
    let (mut client, far) = pair(38, 4096).await;
    let path = some_path("x");
    tokio::select! {
        biased;
        result = client.is_valid_path(&path) => panic!("nobody answered: {result:?}"),
        () = std::future::ready(()) => {}
    }
    assert!(matches!(client.is_valid_path(&path).await, Err(ClientError::Unusable)));
    drop(far);
}

#[tokio::test]
async fn a_full_channel_slows_the_daemon_down_and_loses_nothing() {
    let (mut client, mut far) = pair(38, 256).await;
    let (sender, mut receiver) = tokio::sync::mpsc::channel(1);
    client.set_log(LogTarget::Channel(sender));
    let line = |n: u64| LogMessage::Result { id: 1, result: ActivityResult::BuildLogLine(format!("{n}").into()) };
    let daemon = async {
        far.expect(Operation::OptimiseStore).await;
        for n in 0..500 {
            far.say(&[StderrMessage::Log(line(n))], &[]).await;
        }
        far.say(&[StderrMessage::Last], &1_u64.to_le_bytes()).await;
    };
    let listening = async {
        for n in 0..500 {
            assert_eq!(receiver.recv().await, Some(line(n)));
        }
    };
    let (optimised, (), ()) = tokio::join!(client.optimise_store(), daemon, listening);
    optimised.expect("an answer");
}

/// What a daemon can say that no client must believe.
#[tokio::test]
async fn hostile_answers_are_errors() {
    let number = |number: u64| number.to_le_bytes().to_vec();
    let string = |bytes: &[u8]| {
        let mut buffer = Vec::new();
        put_bytes(&mut buffer, bytes);
        buffer
    };
    let last = |answer: Vec<u8>| {
        let mut buffer = Vec::new();
        put_message(&mut buffer, version(38), &StderrMessage::Last);
        buffer.extend(answer);
        buffer
    };
    let mut dirty = string(b"/nix/store/x");
    *dirty.last_mut().expect("padding") = 1;
    let cases = [
        ("an unknown message", number(0xdead), "a message of the daemon cannot be \"0xdead\""),
        ("a question", [number(0x6461_7461), number(1)].concat(), "a message here cannot be \"READ\""),
        (
            "an endless message",
            [number(0x6f6c_6d67), number(u64::MAX)].concat(),
            "a message of 18446744073709551615 is larger than the allowed 67108864",
        ),
        ("an endless list", last(number(ITEMS_MAX + 1)), "a path of 8000001 is larger than the allowed 8000000"),
        (
            "a list that is not there",
            last(number(ITEMS_MAX)),
            "the connection was closed before the answer was complete",
        ),
        ("no store path", last([number(1), string(b"/etc/passwd")].concat()), "a path cannot be \"/etc/passwd\""),
        ("no text", last([number(1), string(b"\xff")].concat()), "a path is not UTF-8"),
        ("dirty padding", last([number(1), dirty].concat()), "padding behind a string is not zero"),
    ];
    for (case, answer, message) in cases {
        let (mut client, mut far) = pair(38, 1 << 16).await;
        far.writer.write_all(&answer).await.expect("it has room");
        far.writer.shutdown().await.expect("it is ours");
        let error = client.query_all_valid_paths().await.expect_err(case);
        assert_eq!(error.to_string(), message, "{case}");
        assert!(!client.is_ready(), "{case}");
    }
}

#[tokio::test]
async fn an_archive_from_the_daemon_is_checked_in_passing() {
    let begin = |words: &[&str]| {
        let mut buffer = Vec::new();
        put_message(&mut buffer, version(38), &StderrMessage::Last);
        for word in words {
            put_bytes(&mut buffer, word);
        }
        buffer
    };
    let fetch = async |answer: Vec<u8>, chunk: usize| {
        let (mut client, far) = pair(38, chunk).await;
        let mut output = Vec::new();
        let path = some_path("x");
        let Far { mut reader, mut writer, .. } = far;
        let daemon = async {
            let listening = async { tokio::io::copy(&mut reader, &mut tokio::io::sink()).await };
            let talking = async {
                // The client hangs up before the end where it refuses.
                let _ = writer.write_all(&answer).await;
                let _ = writer.shutdown().await;
            };
            let _ = tokio::join!(listening, talking);
        };
        let asking = async {
            let result = client.nar_from_path(&path, &mut output, Limits::of_size(1024)).await;
            let is_ready = client.is_ready();
            drop(client);
            (result, is_ready)
        };
        let ((), (result, is_ready)) = tokio::join!(daemon, asking);
        (result, is_ready, output)
    };
    // No smaller: both ends greet with more bytes than that before they listen.
    for chunk in [37, 61, 4096] {
        let sound = begin(&["nix-archive-1", "(", "type", "symlink", "target", "t", ")"]);
        let (result, is_ready, output) = fetch(sound.clone(), chunk).await;
        assert_eq!(result.expect("a sound archive"), 120);
        assert!(is_ready && output == sound[8..]);

        let mut broken = begin(&["nix-archive-1", "(", "type", "directory"]);
        put_message(&mut broken, version(38), &StderrMessage::Error(error("the disk is gone")));
        let (result, is_ready, _) = fetch(broken, chunk).await;
        assert_eq!(result.expect_err("it broke off").to_string(), "the daemon says: the disk is gone");
        assert!(!is_ready);

        let (result, ..) = fetch(begin(&["nix-archive-1", "(", "type", "socket"]), chunk).await;
        assert!(matches!(result, Err(ClientError::Nar(NarError::BadTag { .. }))), "{result:?}");
        let mut huge = begin(&["nix-archive-1", "(", "type", "regular", "contents"]);
        put_u64(&mut huge, 1 << 50);
        let (result, ..) = fetch(huge, chunk).await;
        assert!(matches!(result, Err(ClientError::Nar(NarError::TooLarge { max: 1024 }))), "{result:?}");
        let (result, ..) = fetch(sound[..60].to_vec(), chunk).await;
        assert!(matches!(result, Err(ClientError::Wire(WireError::Closed))), "{result:?}");
    }
}

#[tokio::test]
async fn build_results_keep_what_each_version_tells() {
    let id = "sha256:00!out".to_owned();
    let path = some_path("out");
    let realisation = format!(r#"{{"id":"{id}","outPath":"{}","signatures":[]}}"#, path.base_name());
    let whole = BuildResult {
        status: BuildStatus::TimedOut,
        error_message: "too long".to_owned(),
        times_built: 2,
        is_non_deterministic: true,
        start_time_s: 10,
        stop_time_s: 20,
        cpu_user_us: Some(1_000_000),
        cpu_system_us: None,
        built_outputs: [("out".to_owned(), BuiltOutput { id, path, realisation })].into(),
    };
    for minor in 21..=38 {
        let mut told = whole.clone();
        if minor < 37 {
            told.cpu_user_us = None;
        }
        if minor < 29 {
            (told.times_built, told.is_non_deterministic) = (0, false);
            (told.start_time_s, told.stop_time_s) = (0, 0);
        }
        if minor < 28 {
            told.built_outputs.clear();
        }
        let mut bytes = Vec::new();
        whole.put(&mut bytes, version(minor));
        let mut left = bytes.as_slice();
        assert_eq!(BuildResult::read(&mut left, version(minor)).await.expect("our own"), told, "1.{minor}");
        assert!(left.is_empty());
    }
    for code in 0..20 {
        assert_eq!(BuildStatus::from_code(code).code(), code);
    }
}

#[test]
fn derived_paths_before_and_since_1_30() {
    let (drv, plain) = (some_path("x.drv"), some_path("x"));
    let built = |outputs| DerivedPath::Built { derivation: drv.clone(), outputs };
    let named = OutputNames::Named(BTreeSet::from(["dev".to_owned(), "out".to_owned()]));
    let (all, named, opaque) = (built(OutputNames::All), built(named), DerivedPath::Opaque(plain));
    let drv_itself = DerivedPath::Opaque(drv.clone());
    assert_eq!(all.to_wire(version(29)), Some(drv.to_string()));
    assert_eq!(all.to_wire(version(30)), Some(format!("{drv}!*")));
    assert_eq!(named.to_wire(version(29)), Some(format!("{drv}!dev,out")));
    assert_eq!(drv_itself.to_wire(version(29)), None);
    for path in [&all, &named, &opaque, &drv_itself] {
        for minor in 21..=38 {
            if let Some(text) = path.to_wire(version(minor)) {
                assert_eq!(DerivedPath::from_wire(&text, version(minor)).expect("our own"), *path, "1.{minor}");
            }
        }
    }
    for bad in ["", "!*", "/nix/store/x!out", &format!("{drv}!"), &format!("{drv}!out,")] {
        DerivedPath::from_wire(bad, version(38)).expect_err(bad);
    }
}

#[test]
fn colours_are_taken_out() {
    assert_eq!(
        strip_ansi("\u{1b}[35;1m/nix\u{1b}[0m plain \u{1b}]8;;http://x\u{7}link\u{1b}]8;;\u{1b}\\ \u{1b}c."),
        "/nix plain link ."
    );
    assert_eq!(strip_ansi("cut off \u{1b}[3"), "cut off ");
    assert_eq!(strip_ansi("\u{1b}"), "");
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().expect("a runtime").block_on(future)
}

fn field() -> impl Strategy<Value = Field> {
    prop_oneof![
        any::<u64>().prop_map(Field::Number),
        proptest::collection::vec(any::<u8>(), 0..20).prop_map(|text| Field::Text(text.into()))
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn results_of_activities_travel_both_ways(
        id in any::<u64>(),
        result_type in 100_u64..110,
        fields in proptest::collection::vec(field(), 0..5),
    ) {
        let mut sent = Vec::new();
        let result = ActivityResult::Other { result_type, fields };
        put_message(&mut sent, version(38), &StderrMessage::Log(LogMessage::Result { id, result }));
        run(async {
            let mut left = sent.as_slice();
            let read = harmonia_nix::worker_protocol::stderr::read_message(&mut left, version(38)).await.expect("ours");
            assert!(left.is_empty());
            let mut again = Vec::new();
            put_message(&mut again, version(38), &read);
            assert_eq!(again, sent);
        });
    }

    #[test]
    fn frames_carry_everything(bytes in proptest::collection::vec(any::<u8>(), 0..2000), buffer in 1_usize..5000, repeat in 1_usize..100) {
        run(async {
            let (near, far) = duplex(buffer);
            let bytes: Vec<u8> = std::iter::repeat_n(bytes, repeat).flatten().collect();
            let sending = async {
                let mut near = near;
                let mut framed = FramedWriter::new(&mut near);
                framed.write(&bytes).await.expect("the other end reads");
                framed.finish().await.expect("the other end reads");
                near.write_all(b"behind").await.expect("the other end reads");
            };
            let receiving = async {
                let mut far = far;
                let mut received = Vec::new();
                let mut framed = FramedReader::new(&mut far);
                framed.read_to_end(&mut received).await.expect("whole frames");
                assert!(framed.is_ended());
                let mut behind = [0; 6];
                far.read_exact(&mut behind).await.expect("what follows");
                assert_eq!(&behind, b"behind");
                received
            };
            let ((), received) = tokio::join!(sending, receiving);
            assert!(received == bytes);
        });
    }

    #[test]
    fn noise_from_a_daemon_never_panics(noise in proptest::collection::vec(any::<u8>(), 0..300), minor in 21_u8..=38) {
        run(async {
            let mut bytes = Vec::new();
            put_u64(&mut bytes, DAEMON_MAGIC);
            put_u64(&mut bytes, version(minor).code());
            bytes.extend_from_slice(&noise);
            put_bool(&mut bytes, true);
            let client = Client::connect(bytes.as_slice(), Vec::new()).await;
            assert!(client.is_err() || noise.len() >= 8);
        });
    }
}
