//! Replays recorded conversations of stock clients and daemons: our client, told to do what the recorded client did, must
//! send the same bytes, and must understand the recorded daemon to its last byte.
//!
//! The recordings are an archive in `tests/fixtures`.

#[path = "worker_protocol_replay/requests.rs"]
mod requests;

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use harmonia_fixtures::Archive;
use harmonia_nix::nar::Limits;
use harmonia_nix::worker_protocol::{
    ActivityResult, BuildStatus, Client, ClientError, ClientGreeting, HandshakeError, LogMessage, LogTarget, Operation,
    StderrMessage, stderr,
};
use requests::{Conversation, Request};
use tokio::io::{AsyncRead, ReadBuf};

/// One connection of one case.
struct Recording {
    name: String,
    from_client: Vec<u8>,
    from_daemon: Vec<u8>,
    /// Where the daemon paused to listen.
    pauses: Vec<usize>,
}

fn all_recordings() -> Vec<Recording> {
    let files = harmonia_fixtures::recording(Archive::WorkerProtocol);
    let mut found = Vec::new();
    for (path, from_client) in &files {
        // PAIRING/CASE/c2s.bin; further connections of a case are c2s-2.bin and so on.
        let Some((case, file)) = path.rsplit_once('/') else { continue };
        let Some(suffix) = file.strip_prefix("c2s").and_then(|rest| rest.strip_suffix(".bin")) else { continue };
        let from_daemon = files.get(&format!("{case}/s2c{suffix}.bin")).expect("both sides are recorded").clone();
        let turns = files.get(&format!("{case}/turns{suffix}")).expect("turns are recorded");
        let turns = std::str::from_utf8(turns).expect("turns are text");
        let name = format!("{case}{suffix}");
        found.push(Recording { name, from_client: from_client.clone(), from_daemon, pauses: pauses(turns) });
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

/// From lines such as `s 16`: 16 bytes of the daemon in a row.
fn pauses(turns: &str) -> Vec<usize> {
    let lengths = turns.lines().filter_map(|line| line.strip_prefix("s "));
    let lengths = lengths.map(|length| length.parse::<usize>().expect("a number"));
    lengths
        .scan(0, |end, length| {
            *end += length;
            Some(*end)
        })
        .collect()
}

fn recording(name: &str) -> Recording {
    all_recordings().into_iter().find(|recording| recording.name == name).expect("the case is recorded")
}

/// Keeps the daemon silent while our client has bulk data to send: the recorded ones answered after all of it.
#[derive(Clone, Default)]
struct Silence(Arc<Mutex<(bool, Option<Waker>)>>);

impl Silence {
    fn begin(&self) {
        self.0.lock().expect("one thread").0 = true;
    }

    /// Whether it lasts; the task is woken when it ends.
    fn holds(&self, context: &Context<'_>) -> bool {
        let mut state = self.0.lock().expect("one thread");
        if state.0 {
            state.1 = Some(context.waker().clone());
        }
        state.0
    }

    fn end(&self) {
        let mut state = self.0.lock().expect("one thread");
        state.0 = false;
        if let Some(waker) = state.1.take() {
            waker.wake();
        }
    }
}

/// Hands out what the daemon said, at most `step` bytes at a time and never across a pause.
struct Drip {
    bytes: Vec<u8>,
    read: usize,
    step: usize,
    pauses: Vec<usize>,
    silence: Silence,
}

impl Drip {
    fn new(recording: &Recording, step: usize, silence: &Silence) -> Self {
        let (bytes, pauses) = (recording.from_daemon.clone(), recording.pauses.clone());
        Self { bytes, read: 0, step, pauses, silence: silence.clone() }
    }
}

impl AsyncRead for Drip {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        if self.silence.holds(context) {
            return Poll::Pending;
        }
        let read = self.read;
        let pause = self.pauses.iter().copied().find(|pause| *pause > read).unwrap_or(usize::MAX);
        let end = self.bytes.len().min(pause).min(read.saturating_add(self.step.min(buffer.remaining())));
        buffer.put_slice(&self.bytes[read..end]);
        self.read = end;
        Poll::Ready(Ok(()))
    }
}

/// Bulk data, and the daemon is silent until the client has seen the end of it.
struct Bulk<'a>(&'a [u8], Silence);

impl<'a> Bulk<'a> {
    fn new(bytes: &'a [u8], silence: &Silence) -> Self {
        silence.begin();
        Self(bytes, silence.clone())
    }
}

impl AsyncRead for Bulk<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        if self.0.is_empty() {
            self.1.end();
        }
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

/// What our client did with a recording.
struct Replayed {
    sent: Vec<u8>,
    /// What the daemon said that our client did not read.
    left: Vec<u8>,
    log: Vec<LogMessage>,
    /// Operations, and what went wrong with each.
    outcomes: Vec<(Operation, Result<(), ClientError>)>,
}

async fn replay(recording: &Recording, conversation: &Conversation, step: usize) -> Result<Replayed, ClientError> {
    let log = Arc::new(Mutex::new(Vec::new()));
    let keep = Arc::clone(&log);
    let target = LogTarget::callback(move |message| keep.lock().expect("one user").push(message));
    let silence = Silence::default();
    let reader = Drip::new(recording, step, &silence);
    let greeting = ClientGreeting { version: conversation.client_version, ..ClientGreeting::default() };
    let mut client = Client::connect_with(reader, Vec::new(), &greeting, target).await?;
    let mut outcomes = Vec::new();
    for request in &conversation.requests {
        let outcome = perform(&mut client, request, &silence).await;
        outcomes.push((request.operation(), outcome));
    }
    let (reader, sent) = client.into_parts();
    let mut left = reader.buffer().to_vec();
    let drip = reader.into_inner();
    left.extend_from_slice(&drip.bytes[drip.read..]);
    let log = log.lock().expect("one user").clone();
    Ok(Replayed { sent, left, log, outcomes })
}

async fn perform(client: &mut Client<Drip, Vec<u8>>, request: &Request, silence: &Silence) -> Result<(), ClientError> {
    match request {
        Request::IsValidPath(path) => client.is_valid_path(path).await.map(drop),
        Request::QueryReferrers(path) => client.query_referrers(path).await.map(drop),
        Request::AddToStore { name, method, algorithm, references, repair, bytes } => {
            let bulk = Bulk::new(bytes, silence);
            client.add_to_store(name, *method, *algorithm, references, *repair, bulk).await.map(drop)
        }
        Request::BuildPaths(paths, mode) => client.build_paths(paths, *mode).await,
        Request::EnsurePath(path) => client.ensure_path(path).await,
        Request::AddTempRoot(path) => client.add_temp_root(path).await,
        Request::AddIndirectRoot(link) => client.add_indirect_root(link).await,
        Request::FindRoots => client.find_roots().await.map(drop),
        Request::SetOptions(options) => client.set_options(options).await,
        Request::CollectGarbage(request) => client.collect_garbage(request).await.map(drop),
        Request::QueryAllValidPaths => client.query_all_valid_paths().await.map(drop),
        Request::QueryPathInfo(path) => client.query_path_info(path).await.map(drop),
        Request::QueryPathFromHashPart(part) => client.query_path_from_hash_part(part).await.map(drop),
        Request::QueryValidPaths(paths, substitute) => client.query_valid_paths(paths, *substitute).await.map(drop),
        Request::QueryValidDerivers(path) => client.query_valid_derivers(path).await.map(drop),
        Request::OptimiseStore => client.optimise_store().await,
        Request::VerifyStore { check_contents, repair } => {
            client.verify_store(*check_contents, *repair).await.map(drop)
        }
        Request::BuildDerivation(path, derivation, mode) => {
            client.build_derivation(path, derivation, *mode).await.map(drop)
        }
        Request::AddSignatures(path, signatures) => client.add_signatures(path, signatures).await,
        Request::NarFromPath(path) => {
            let mut archive = Vec::new();
            let size = client.nar_from_path(path, &mut archive, Limits::of_size(1 << 20)).await?;
            assert_eq!(size, archive.len() as u64);
            Ok(())
        }
        Request::AddToStoreNar { info, repair, dont_check_signatures, bytes } => {
            client.add_to_store_nar(info, Bulk::new(bytes, silence), *repair, *dont_check_signatures).await
        }
        Request::QueryMissing(paths) => client.query_missing(paths).await.map(drop),
        Request::QueryDerivationOutputMap(path) => client.query_derivation_output_map(path).await.map(drop),
        Request::RegisterDrvOutput(realisation) => client.register_drv_output(realisation).await,
        Request::QueryRealisation(id) => client.query_realisation(id).await.map(drop),
        Request::AddMultipleToStore { repair, dont_check_signatures, paths } => {
            // The last archive ends the silence; without any, nothing keeps the daemon from answering.
            let last = paths.len().saturating_sub(1);
            let ends = |index| if index == last { silence.clone() } else { Silence::default() };
            let paths = paths.iter().enumerate();
            let paths: Vec<_> =
                paths.map(|(index, (info, archive))| (info.clone(), Bulk::new(archive, &ends(index)))).collect();
            client.add_multiple_to_store(paths, *repair, *dont_check_signatures).await
        }
        Request::AddBuildLog(derivation, bytes) => client.add_build_log(derivation, Bulk::new(bytes, silence)).await,
        Request::BuildPathsWithResults(paths, mode) => client.build_paths_with_results(paths, *mode).await.map(drop),
    }
}

#[tokio::test]
async fn every_recorded_conversation_can_be_held_by_our_client() {
    let mut operations: BTreeMap<u64, usize> = BTreeMap::new();
    let mut split_differently = Vec::new();
    let recordings = all_recordings();
    for recording in &recordings {
        let name = &recording.name;
        if recording.from_daemon.is_empty() {
            assert!(name.ends_with("/refused"), "{name}");
            let error = Client::connect(recording.from_daemon.as_slice(), Vec::new()).await.expect_err(name);
            assert!(matches!(error, ClientError::Handshake(HandshakeError::Refused)), "{name}: {error:?}");
            continue;
        }
        let conversation = Conversation::parse(&recording.from_client).await;
        for step in [usize::MAX, 1] {
            let replayed = replay(recording, &conversation, step).await.unwrap_or_else(|e| panic!("{name}: {e:?}"));
            let mut broken_off = false;
            for (operation, outcome) in &replayed.outcomes {
                match outcome {
                    Ok(()) => {}
                    Err(ClientError::Daemon(_)) => broken_off |= *operation == Operation::NarFromPath,
                    Err(other) => panic!("{name}: {operation}: {other:?}"),
                }
                *operations.entry(operation.code()).or_default() += 1;
            }
            if broken_off {
                // The daemon tells the error a second time before it hangs up.
                let mut left = replayed.left.as_slice();
                let message = stderr::read_message(&mut left, conversation.client_version).await.expect(name);
                assert!(matches!(message, StderrMessage::Error(_)) && left.is_empty(), "{name}: {message:?}");
            } else {
                assert!(replayed.left.is_empty(), "{name}: {} bytes of the daemon are left", replayed.left.len());
            }
            if replayed.sent != recording.from_client {
                // Only the division of bulk data into frames is ours.
                let ours = Conversation::parse(&replayed.sent).await;
                assert!(ours.with_single_frames == conversation.with_single_frames, "{name}: other bytes were sent");
                split_differently.push(name.clone());
            }
        }
    }
    // Only where a recording has bulk data of more than one buffer of the recorded client.
    split_differently.dedup();
    let bulky = ["add-big", "copy-to-large", "copy-to-large-unsigned"];
    let expected = ["2.26.3-2.26.3", "2.8.0-2.8.0"].map(|pairing| bulky.map(|case| format!("{pairing}/{case}")));
    assert_eq!(split_differently, expected.concat());
    assert!(recordings.len() >= 260, "only {} connections", recordings.len());
    assert_eq!(operations.len(), 28, "recorded operations: {operations:?}");
}

#[tokio::test]
async fn a_failed_build_tells_its_lines_and_its_reason() {
    for pairing in ["2.8.0-2.8.0", "2.26.3-2.26.3"] {
        let recording = recording(&format!("{pairing}/realise-fail"));
        let conversation = Conversation::parse(&recording.from_client).await;
        let replayed = replay(&recording, &conversation, usize::MAX).await.expect(pairing);
        let lines: Vec<_> = replayed.log.iter().filter_map(LogMessage::build_log_line).collect();
        assert_eq!(lines, [b"line 1".as_slice(), b"line 2", b"oops"]);
        let Some((Operation::BuildPaths, Err(ClientError::Daemon(error)))) = replayed.outcomes.last() else {
            panic!("{:?}", replayed.outcomes);
        };
        assert!(error.message.contains("\u{1b}[35;1m/nix/store/"), "{error:?}");
        let text = error.plain_message();
        assert!(
            text.starts_with("builder for '/nix/store/") && text.contains("-fails.drv' failed with exit code 3"),
            "{text}"
        );
        let builds = replayed.log.iter().filter(
            |message| matches!(message, LogMessage::Start(start) if start.activity_type == stderr::ACTIVITY_BUILD),
        );
        assert_eq!(builds.count(), 1);
        assert!(replayed.log.iter().any(|message| {
            matches!(message, LogMessage::Result { result: ActivityResult::Progress { failed: 1, .. }, .. })
        }));
    }
}

#[tokio::test]
async fn answers_mean_what_was_recorded() {
    let recording = recording("2.26.3-2.26.3/ssh-remote-builder");
    let conversation = Conversation::parse(&recording.from_client).await;
    let silence = Silence::default();
    let reader = Drip::new(&recording, 3, &silence);
    let mut client = Client::connect(reader, Vec::new()).await.expect("a daemon");
    assert_eq!(client.session().daemon_program_version.as_deref(), Some("2.26.3"));
    assert_eq!(client.session().version.to_string(), "1.38");
    let (sender, mut receiver) = tokio::sync::mpsc::channel(64);
    client.set_log(LogTarget::Channel(sender));
    for request in &conversation.requests {
        match request {
            Request::BuildDerivation(path, derivation, mode) => {
                let result = client.build_derivation(path, derivation, *mode).await.expect("a result");
                assert_eq!(result.status, BuildStatus::Built);
                assert_eq!((result.times_built, result.cpu_user_us), (1, None));
                assert_eq!(result.built_outputs["out"].path.name(), "remote");
                assert_eq!(result.stop_time_s, 1_795_295_841);
            }
            Request::QueryPathInfo(path) => {
                let info = client.query_path_info(path).await.expect("an answer").expect("a valid path");
                assert_eq!(
                    info.nar_hash.to_base16(),
                    "18083e8b401021ae5cca34f00025200c6972db9c5be3a1fb1e0a302005bafa06"
                );
                assert_eq!((info.nar_size_bytes, info.ultimate), (128, true));
                assert_eq!(info.deriver.expect("it was built").name(), "remote.drv");
            }
            other => perform(&mut client, other, &silence).await.expect("an answer"),
        }
    }
    drop(client);
    let mut lines = Vec::new();
    while let Some(message) = receiver.recv().await {
        lines.extend(message.build_log_line().map(<[u8]>::to_vec));
    }
    assert_eq!(lines, [b"on the builder"]);
}

#[tokio::test]
async fn a_conversation_cut_anywhere_is_an_error_not_a_hang() {
    for name in ["2.26.3-2.26.3/ssh-remote-builder", "2.8.0-2.8.0/realise-fail", "2.26.3-2.26.3/copy-to"] {
        let whole = recording(name);
        let conversation = Conversation::parse(&whole.from_client).await;
        for end in 1..whole.from_daemon.len() {
            let cut = Recording { from_daemon: whole.from_daemon[..end].to_vec(), ..recording_like(&whole) };
            match replay(&cut, &conversation, usize::MAX).await {
                Err(ClientError::Handshake(_) | ClientError::Wire(_)) => {}
                Err(other) => panic!("{name} cut at {end}: {other:?}"),
                Ok(replayed) => {
                    let first_bad = replayed.outcomes.iter().find(|(_, outcome)| outcome.is_err());
                    let (operation, error) = first_bad.expect("something is missing");
                    assert!(matches!(error, Err(ClientError::Wire(_))), "{name} cut at {end}: {operation} {error:?}");
                    let (_, last) = replayed.outcomes.last().expect("there is one");
                    assert!(matches!(last, Err(ClientError::Unusable | ClientError::Wire(_))), "{name} cut at {end}");
                }
            }
        }
    }
}

fn recording_like(other: &Recording) -> Recording {
    let (name, from_client, pauses) = (other.name.clone(), other.from_client.clone(), other.pauses.clone());
    Recording { name, from_client, from_daemon: Vec::new(), pauses }
}
