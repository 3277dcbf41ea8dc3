//! Whole evaluations: real PostgreSQL, git, Nix, store daemon and sandbox. Only the signer is a server that takes what it
//! is given, after checking the order it comes in; the true one is tested with the whole binary.

mod alone;
mod egress;
mod forge;
mod names;
mod reuse;
mod upstream;
mod waiting;

use std::collections::{BTreeSet, HashSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine as _;
use harmonia_core::api::{AttrState, EvaluationDetail, Source};
use harmonia_core::signer_api::{
    DrvUpload, DrvUploadAnswer, Slot, SlotsAnswer, SlotsRequest, SourcesComplete, SourcesCompleteAnswer,
};
use harmonia_core::{Capability, EvalId, EvalStatus, ProjectId};
use harmonia_db::testing::TestDatabase;
use harmonia_db::testing::way::Way;
use harmonia_db::{CheckedDerivation, NewEvaluationRow, NewProject, NodeRegistration, ProjectKind};
use harmonia_nix::{Derivation, StorePath};

use super::engine::tests::helper;
use super::source::tests::Repositories;
use super::*;
use crate::signer_client::{SignerDirectory, SignerOptions};
use crate::test_parts::{Answer, TestDaemon, TestServer};

const PATIENCE: Duration = Duration::from_mins(1);
const MAKE: &str = r#"mk = name: more: derivation ({ inherit name; system = "x86_64-linux"; builder = "/bin/sh"; args = [ "-c" "echo > $out" ]; } // more);"#;

/// What the signer was given.
#[derive(Default)]
struct Taken {
    drvs: Vec<String>,
    sources: BTreeSet<String>,
    put_bytes: usize,
}

/// A server that takes everything in the right order, and registers derivations.
async fn signer(taken: Arc<Mutex<Taken>>, db: Db) -> TestServer {
    let address = Arc::new(Mutex::new(String::new()));
    let own = Arc::clone(&address);
    let server = TestServer::start_slow(move |request| {
        let (taken, own, db) = (Arc::clone(&taken), Arc::clone(&own), db.clone());
        async move {
            match request.path.as_str() {
                "/api/drv-upload" => {
                    let call: DrvUpload = serde_json::from_slice(&request.body).expect("JSON");
                    if let Some(refused) = call.drvs.iter().find(|drv| drv.path.contains("refused-by-the-signer")) {
                        let message = format!("{} is not to its taste", refused.path);
                        let error = serde_json::json!({ "code": "odd", "message": message });
                        return Answer { status: 422, ..Answer::json(&error) };
                    }
                    let rows = taken.lock().expect("lock").derivations(&call);
                    assert_eq!(db.register_derivations(&rows).await.expect("registered"), []);
                    Answer::json(&DrvUploadAnswer { stored: call.drvs.len() })
                }
                "/api/upload-slots" => {
                    let call: SlotsRequest = serde_json::from_slice(&request.body).expect("JSON");
                    let slot = |size: u64| Slot::Put {
                        url: format!("{}put", own.lock().expect("lock")),
                        headers: vec![("content-length".to_owned(), size.to_string())],
                    };
                    let paths = call.paths.iter().map(|path| slot(path.file_size)).collect();
                    Answer::json(&SlotsAnswer { paths, log: None })
                }
                "/put" => {
                    taken.lock().expect("lock").put_bytes += request.body.len();
                    Answer::new(200, "")
                }
                "/api/sources-complete" => {
                    let call: SourcesComplete = serde_json::from_slice(&request.body).expect("JSON");
                    let mut taken = taken.lock().expect("lock");
                    for source in &call.paths {
                        assert!(source.references.iter().all(|path| taken.sources.contains(path)), "references first");
                        assert!(source.ca.is_some() && source.listing.is_some());
                        taken.sources.insert(source.path.clone());
                    }
                    Answer::json(&SourcesCompleteAnswer { published: call.paths.len() })
                }
                other => panic!("nobody should call {other}"),
            }
        }
    })
    .await;
    *address.lock().expect("lock") = server.url.to_string();
    server
}

impl Taken {
    /// What the files of a call say. (Their hashes are for signers, and left out.)
    fn derivations(&mut self, call: &DrvUpload) -> Vec<CheckedDerivation> {
        let mut rows = Vec::new();
        for drv in &call.drvs {
            let path = StorePath::parse(&drv.path).expect("store path");
            let text = base64::engine::general_purpose::STANDARD.decode(&drv.aterm_base64).expect("base64");
            let derivation = Derivation::from_file(&path, &text).expect("its own file");
            for input in derivation.input_drvs.keys() {
                assert!(self.drvs.iter().any(|drv| drv == input.as_str()), "{input} comes after {path}");
            }
            self.drvs.push(drv.path.clone());
            rows.push(CheckedDerivation::of(&path, &derivation, String::new()));
        }
        rows
    }
}

struct One(String);

impl SignerDirectory for One {
    fn signers(&self) -> harmonia_core::ports::PortFuture<'_, Result<Vec<String>, crate::signer_client::BoxError>> {
        Box::pin(async move { Ok(vec![self.0.clone()]) })
    }
}

struct World {
    database: TestDatabase,
    daemon: TestDaemon,
    repositories: Repositories,
    taken: Arc<Mutex<Taken>>,
    project: ProjectId,
    drain: CancellationToken,
    abort: CancellationToken,
    evaluator: Option<tokio::task::JoinHandle<Result<(), EvaluatorError>>>,
    /// Kept running, and there.
    _kept: (TestServer, tempfile::TempDir),
}

impl World {
    async fn start() -> Self {
        Self::start_through(async |database| database.db.clone()).await
    }

    /// The evaluator reaches the database in another way.
    async fn start_through(way: impl AsyncFnOnce(&TestDatabase) -> Db) -> Self {
        Self::start_as(way, |_| {}).await
    }

    /// And with other options.
    async fn start_as(way: impl AsyncFnOnce(&TestDatabase) -> Db, change: impl FnOnce(&mut EvaluatorOptions)) -> Self {
        let database = TestDatabase::new().await;
        let daemon = TestDaemon::start().await;
        let repositories = Repositories::new();
        let taken = Arc::new(Mutex::new(Taken::default()));
        let server = signer(Arc::clone(&taken), database.db.clone()).await;
        let state = tempfile::tempdir().expect("folder");
        let db = database.db.clone();
        let (node, incarnation) = (NodeId("here".to_owned()), Incarnation(1));
        db.register_node(&NodeRegistration {
            id: node.clone(),
            incarnation,
            secret: harmonia_core::NodeSecret([0; 32]),
            capabilities: vec![Capability::Evaluator, Capability::Builder],
            endpoint: None,
            systems: vec!["x86_64-linux".to_owned()],
            features: Vec::new(),
            max_jobs: 1,
            max_evals: 2,
            version: "test".to_owned(),
        })
        .await
        .expect("registers");
        let project = NewProject { name: "local/x".to_owned(), kind: ProjectKind::Local };
        let project = db.ensure_project(&project).await.expect("project");
        let http = reqwest::Client::new();
        let mut options = EvaluatorOptions {
            node,
            incarnation,
            db: way(&database).await,
            signer: SignerClient::new(http.clone(), Arc::new(One(server.url.to_string())), SignerOptions::default()),
            http,
            state_dir: state.path().to_owned(),
            daemon_socket: daemon.socket(),
            store_root: Some(daemon.store.root()),
            engine: EngineChoice::Nix,
            sandbox_helper: helper(),
            require_sandbox: true,
            network: false,
            allow_hosts: Vec::new(),
            allow_file_urls: true,
            workers: 2,
            max_evals: 2,
            timeout: Duration::from_mins(5),
            fetch_timeout: Duration::from_mins(5),
            mirrors: MirrorLimits { bytes_max: 1 << 30, unused_max: Duration::from_hours(24) },
            memory_bytes_max: 1 << 30,
            allow_ifd: true,
            substituters: Vec::new(),
            silent_after: Duration::from_mins(10),
            waits: WaitPolicy::default(),
            bounds: AttributeBounds::default(),
        };
        change(&mut options);
        let (drain, abort) = (CancellationToken::new(), CancellationToken::new());
        let evaluator = Some(tokio::spawn(run(options, drain.clone(), abort.clone())));
        Self { database, daemon, repositories, taken, project, drain, abort, evaluator, _kept: (server, state) }
    }

    /// Commits these files, beside those that a repository of this name has already, and queues an evaluation of them.
    async fn queue(&self, name: &str, files: &[(&str, &str)], attrs: Option<&[&str]>) -> EvalId {
        let dir = self.repositories.dir.path().join(name);
        if !dir.exists() {
            self.repositories.create(name);
        }
        for (file, text) in files {
            match text.strip_prefix("-> ") {
                Some(target) => std::os::unix::fs::symlink(target, dir.join(file)).expect("symlink"),
                None => std::fs::write(dir.join(file), text).expect("file"),
            }
        }
        let commit = self.repositories.commit(name, &format!("{name}: a title"));
        let bytes = self.repositories.bundle(name);
        let db = &self.database.db;
        let bundle = db.begin_bundle().await.expect("bundle");
        let chunks: Vec<&[u8]> = bytes.chunks(300).collect();
        for (seq, chunk) in chunks.iter().enumerate() {
            db.append_bundle(bundle, u32::try_from(seq).expect("few"), chunk).await.expect("chunk");
        }
        let hash = *harmonia_nix::Sha256Hash::of(&bytes).as_bytes();
        db.finish_bundle(bundle, bytes.len() as u64, hash).await.expect("bundle");
        self.create(Source::Bundle { bundle }, Some(commit), name, attrs).await
    }

    async fn create(&self, source: Source, commit: Option<String>, branch: &str, attrs: Option<&[&str]>) -> EvalId {
        let new = NewEvaluationRow {
            project: self.project,
            source,
            commit,
            branch: branch.to_owned(),
            attrs: attrs.map(|attrs| attrs.iter().map(ToString::to_string).collect()),
            dirty: false,
            title: None,
            author: None,
        };
        self.database.db.create_evaluation(&new).await.expect("queued").id
    }

    async fn view(&self, id: EvalId) -> EvaluationDetail {
        self.database.db.view_evaluation(id).await.expect("reads").expect("there")
    }

    async fn until(&self, id: EvalId, done: impl Fn(&EvaluationDetail) -> bool) -> EvaluationDetail {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let view = self.view(id).await;
            if done(&view) {
                return view;
            }
            let finished = self.evaluator.as_ref().is_some_and(tokio::task::JoinHandle::is_finished);
            assert!(Instant::now() < deadline && !finished, "{:?} after {PATIENCE:?}", view.evaluation);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn ended(&self, id: EvalId) -> EvaluationDetail {
        self.until(id, |view| view.evaluation.status.is_terminal()).await
    }

    /// Processes that serve a client of the daemon: the engine's, as long as it lives, and the evaluator's own.
    fn clients(&self) -> usize {
        let id = self.daemon.id();
        std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).expect("children").split_whitespace().count()
    }

    async fn stop(mut self) {
        self.abort.cancel();
        self.gone().await;
    }

    /// Until the evaluator has ended.
    async fn gone(&mut self) {
        let evaluator = self.evaluator.take().expect("runs");
        tokio::time::timeout(PATIENCE, evaluator).await.expect("it stops").expect("no panic").expect("no error");
    }
}

/// Name of the repository, its files, the attributes asked for, parts of the error.
type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], Option<&'a [&'a str]>, &'a [&'a str]);

/// One attribute that evaluates for ever in little memory.
const ENDLESS: &str = r"{ outputs = { self }: { checks.x86_64-linux.a = let
    list = builtins.genList (x: x) 5000; sum = f: builtins.foldl' (s: n: s + f n) 0 list;
    in builtins.seq (sum (x: sum (y: sum (z: z)))) { }; }; }";

#[tokio::test]
async fn an_evaluation_claimed_by_a_lost_answer_is_queued_again_and_evaluated() {
    let mut lossy = None;
    let world = World::start_through(async |database| {
        lossy.insert(Way::losing_answers(database, "claim_evaluation(", 2).await).db.clone()
    })
    .await;
    let flake = format!("{{ outputs = {{ self }}: let {MAKE} in {{ checks.x86_64-linux.a = mk \"a\" {{ }}; }}; }}");
    let id = world.queue("main", &[("flake.nix", &flake)], None).await;
    let view = world.ended(id).await;
    assert_eq!(view.evaluation.status, EvalStatus::Succeeded, "{:?}", view.evaluation.error);
    assert_eq!(lossy.as_ref().map(Way::lost), Some(2));
    world.stop().await;
}

#[tokio::test]
async fn a_commit_becomes_jobs_with_their_files_and_sources_in_the_cache() {
    let world = World::start().await;
    let flake = format!(
        r#"{{ outputs = {{ self }}: let {MAKE} low = mk "low" {{ script = ./script.sh; }};
            note = builtins.toFile "note" "see ${{builtins.toFile "other" "x"}}";
            mid = n: mk "mid-${{toString n}}" {{ inherit low; }}; in {{ checks = {{ x86_64-linux = {{
              top = builtins.trace "warning: an old option" (mk "top" {{ deps = [ (mid 1) (mid 2) ]; inherit note; }});
              low = low // {{ meta = {{ timeout = 77; maxSilent = 66; description = "d"; }}; }};
              bad = throw "out of order"; fake = {{ type = "derivation"; drvPath = "/nix/store/{}-x.drv"; }};
              featured = mk "featured" {{ requiredSystemFeatures = [ "kvm" ]; }};
            }}; aarch64-darwin.other = throw "not asked for"; }}; }}; }}"#,
        "0".repeat(32)
    );
    let files: &[(&str, &str)] = &[("flake.nix", &flake), ("script.sh", "echo"), (".harmonia-ci.toml", "atrs = []\n")];
    let id = world.queue("main", files, None).await;
    let view = world.ended(id).await;
    let evaluation = &view.evaluation;
    assert_eq!(evaluation.status, EvalStatus::Succeeded, "{:?}", evaluation.error);
    assert!(evaluation.complete);
    assert_eq!(evaluation.title.as_deref(), Some("main: a title"));
    let states: Vec<(&str, AttrState)> = view.attrs.iter().map(|attr| (attr.attr.as_str(), attr.state)).collect();
    assert_eq!(
        states,
        [
            ("checks.x86_64-linux.bad", AttrState::Error),
            ("checks.x86_64-linux.fake", AttrState::Error),
            ("checks.x86_64-linux.featured", AttrState::Pending),
            ("checks.x86_64-linux.low", AttrState::Pending),
            ("checks.x86_64-linux.top", AttrState::Pending),
        ]
    );
    assert!(
        view.attrs[0].error.as_deref().is_some_and(|error| error.contains("error: out of order")),
        "{:?}",
        view.attrs[0]
    );
    assert_eq!(view.jobs.pending, 5, "low, two in the middle, top, featured");
    assert!(view.warnings.iter().any(|warning| warning.contains("did you mean 'attrs'?")), "{:?}", view.warnings);
    assert!(view.warnings.iter().any(|warning| warning.contains("aarch64-darwin")), "{:?}", view.warnings);
    assert!(view.warnings.iter().any(|warning| warning == "an old option"), "{:?}", view.warnings);
    let log = world.database.db.view_evaluation_log(id).await.expect("reads").expect("a log");
    assert!(log.contains("warning: an old option"), "{log}");
    let (drvs, sources) = {
        let taken = world.taken.lock().expect("lock");
        assert!(taken.put_bytes > 0);
        (taken.drvs.clone(), taken.sources.clone())
    };
    assert_eq!(drvs.iter().collect::<HashSet<_>>().len(), 5, "{drvs:?}");
    // The flake's own tree is there because ./script.sh lies in it or is copied out of it, depending on Nix.
    assert!(sources.iter().any(|path| path.ends_with("-note")) && sources.iter().any(|path| path.ends_with("-other")));
    assert!(sources.iter().any(|path| path.ends_with("-script.sh") || path.ends_with("-source")), "{sources:?}");

    // Only what can be built now may be claimed; what meta says counts for its derivation alone.
    let classes = world.database.db.resolve_classes(&["x86_64-linux".to_owned()], &[]).await.expect("classes");
    let heads = world.database.db.queue_heads(&classes, 10).await.expect("heads");
    assert_eq!(heads.candidates.len(), 1, "{heads:?}");

    // The same again adds nothing.
    let again = world.queue("again", files, None).await;
    let view = world.ended(again).await;
    assert_eq!((view.evaluation.status, view.jobs.pending), (EvalStatus::Succeeded, 5));
    assert_eq!(world.taken.lock().expect("lock").drvs.len(), drvs.len(), "nothing is uploaded twice");
    world.stop().await;
}

#[tokio::test]
async fn bad_input_of_every_kind_gives_one_clear_error() {
    let world = World::start().await;
    let good = format!("{{ outputs = {{ self }}: let {MAKE} in {{ checks.x86_64-linux.a = mk \"a\" {{ }}; }}; }}");
    let only_other = good.replace("x86_64-linux.a", "aarch64-linux.a");
    let cases: &[Case<'_>] = &[
        ("no-flake", &[("readme", "x")], None, &["flake.nix"]),
        ("syntax", &[("flake.nix", "{ outputs = ")], None, &["syntax error"]),
        (
            "unknown",
            &[("flake.nix", &good)],
            Some(&["nosuch"]),
            &["nothing to build", "no output 'nosuch'", "it has checks"],
        ),
        ("hostile-attr", &[("flake.nix", &good)], Some(&["a..b"]), &["'a..b' has an empty part"]),
        (
            "nothing",
            &[("flake.nix", "{ outputs = { self }: { checks = { }; }; }")],
            None,
            &["nothing to build", "allow-empty"],
        ),
        ("other-system", &[("flake.nix", &only_other)], None, &["aarch64-linux", "x86_64-linux"]),
        ("toml", &[("flake.nix", &good), (".harmonia-ci.toml", "attrs = \n")], None, &[".harmonia-ci.toml:1:"]),
        (
            "escape",
            &[("flake.nix", &good), (".harmonia-ci.toml", "-> /etc/passwd")],
            None,
            &["could not read .harmonia-ci.toml"],
        ),
        ("slow", &[("flake.nix", ENDLESS), (".harmonia-ci.toml", "eval-timeout = 1\n")], None, &["longer than 1 s"]),
        (
            "root",
            &[("flake.nix", "{ outputs = { self }: { checks = throw \"at the root\"; }; }")],
            None,
            &["at the root"],
        ),
    ];
    for (name, files, attrs, expected) in cases {
        let id = world.queue(name, files, *attrs).await;
        let view = world.ended(id).await;
        let error = view.evaluation.error.clone().unwrap_or_default();
        assert_eq!(view.evaluation.status, EvalStatus::Failed, "{name}: {error}");
        for part in *expected {
            assert!(error.contains(part), "{name}: {error}");
        }
        assert!(view.attrs.is_empty() && view.jobs.pending == 0 && !error.contains("root:x:"), "{name}: {view:?}");
    }
    let empty = &[("flake.nix", "{ outputs = { self }: { }; }"), (".harmonia-ci.toml", "allow-empty = true\n")];
    let view = world.ended(world.queue("empty", empty, None).await).await;
    assert_eq!(view.evaluation.status, EvalStatus::Succeeded, "{:?}", view.evaluation.error);

    // A commit that is not there, and a URL.
    let url = format!("file://{}", world.repositories.dir.path().join("unknown").display());
    let id = world.create(Source::Git { url: url.clone() }, Some("0".repeat(40)), "main", None).await;
    let view = world.ended(id).await;
    assert!(
        view.evaluation.error.as_deref().unwrap_or_default().contains("no commit 000"),
        "{:?}",
        view.evaluation.error
    );
    let view = world.ended(world.create(Source::Git { url }, None, "main", None).await).await;
    assert_eq!((view.evaluation.status, view.attrs.len()), (EvalStatus::Succeeded, 1), "{:?}", view.evaluation.error);
    world.stop().await;
}

#[tokio::test]
async fn a_cancelled_evaluation_stops_its_engine_and_a_stopping_node_gives_it_back() {
    let world = World::start().await;
    let flake = ENDLESS.replace(
        "checks.x86_64-linux.a",
        &format!("checks.x86_64-linux.b = let {MAKE} in mk \"b\" {{ }}; checks.x86_64-linux.a"),
    );
    let files: &[(&str, &str)] = &[("flake.nix", &flake)];
    let idle = world.clients();
    let id = world.queue("one", files, None).await;
    world.until(id, |view| view.evaluation.status == EvalStatus::Running && view.evaluation.commit.is_some()).await;
    let deadline = Instant::now() + PATIENCE;
    while world.clients() < idle + 2 {
        assert!(Instant::now() < deadline, "the engine did not start");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // What is evaluated already can be built meanwhile.
    let view = world.until(id, |view| view.jobs.pending == 1).await;
    assert_eq!(view.evaluation.status, EvalStatus::Running);
    let asked = Instant::now();
    world.database.db.cancel_evaluation(id, "a test").await.expect("cancels");
    while world.clients() > idle {
        assert!(asked.elapsed() < Duration::from_secs(2), "{} clients of the daemon are left", world.clients());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let view = world.view(id).await;
    assert_eq!((view.evaluation.status, view.jobs.pending), (EvalStatus::Cancelled, 0));

    let id = world.queue("two", files, None).await;
    world.until(id, |view| view.evaluation.status == EvalStatus::Running).await;
    let mut world = world;
    world.abort.cancel();
    world.gone().await;
    assert_eq!(world.view(id).await.evaluation.status, EvalStatus::Queued);
}

#[tokio::test]
async fn a_draining_node_finishes_its_evaluations_and_takes_no_more() {
    let mut world = World::start().await;
    // Ends only by its own time, so that it certainly runs when the node is told.
    let files: &[(&str, &str)] = &[("flake.nix", ENDLESS), (".harmonia-ci.toml", "eval-timeout = 5\n")];
    let running = world.queue("running", files, None).await;
    world
        .until(running, |view| view.evaluation.status == EvalStatus::Running && view.evaluation.commit.is_some())
        .await;
    world.drain.cancel();
    let waiting = world.queue("waiting", files, None).await;
    world.gone().await;
    let view = world.view(running).await;
    let error = view.evaluation.error.unwrap_or_default();
    assert!(view.evaluation.status == EvalStatus::Failed && error.contains("longer than 5 s"), "{error}");
    assert_eq!(world.view(waiting).await.evaluation.status, EvalStatus::Queued);
}

#[tokio::test]
async fn fetching_counts_to_the_time_of_an_evaluation() {
    let way = async |database: &TestDatabase| database.db.clone();
    let world = World::start_as(way, |options| options.timeout = Duration::from_secs(2)).await;
    // Takes connections (by its backlog), and never says a word.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("port");
    let url = format!("http://{}/x.git", silent.local_addr().expect("address"));
    let view = world.ended(world.create(Source::Git { url }, Some("0".repeat(40)), "main", None).await).await;
    let error = view.evaluation.error.unwrap_or_default();
    assert_eq!(view.evaluation.status, EvalStatus::Failed, "{error}");
    assert!(error.contains("fetching the commit took longer than the 2 s"), "{error}");
    world.stop().await;
}

/// The only builder of a system is being upgraded while somebody pushes.
#[tokio::test]
async fn systems_whose_builders_are_away_are_evaluated_and_wait() {
    let world = World::start().await;
    let db = &world.database.db;
    let arm = NodeRegistration {
        capabilities: vec![Capability::Builder],
        systems: vec!["aarch64-linux".to_owned()],
        ..harmonia_db::testing::fake_node::registration("arm", Incarnation(1))
    };
    db.register_node(&arm).await.expect("registers");
    db.deregister_node(&arm.id, arm.incarnation).await.expect("goodbye");
    let flake = format!(
        r#"{{ outputs = {{ self }}: let {MAKE} in {{ checks = {{ x86_64-linux.a = mk "a" {{ }};
            aarch64-linux.bad = mk "bad" {{ system = "aarch64-linux"; }}; riscv64-linux.x = throw "left out"; }}; }}; }}"#
    );
    let view = world.ended(world.queue("main", &[("flake.nix", &flake)], None).await).await;
    let states: Vec<(&str, AttrState)> = view.attrs.iter().map(|attr| (attr.attr.as_str(), attr.state)).collect();
    assert_eq!(
        states,
        [("checks.aarch64-linux.bad", AttrState::Pending), ("checks.x86_64-linux.a", AttrState::Pending)]
    );
    let left_out =
        "left out, since no builder offered them within 30 days: riscv64-linux (offered: aarch64-linux, x86_64-linux)";
    assert_eq!(view.warnings, [left_out]);
    let job = view.attrs[0].job.expect("a job");
    let why = db.why(&[job], time::OffsetDateTime::now_utc()).await.expect("reads");
    assert!(why[&job][0].contains("no node offers aarch64-linux now; one did until "), "{why:?}");
    world.stop().await;
}

#[tokio::test]
async fn without_a_sandbox_it_does_not_start_where_one_is_required() {
    let database = TestDatabase::new().await;
    let daemon = TestDaemon::start().await;
    let state = tempfile::tempdir().expect("folder");
    let http = reqwest::Client::new();
    let options = EvaluatorOptions {
        node: NodeId("x".to_owned()),
        incarnation: Incarnation(1),
        db: database.db.clone(),
        signer: SignerClient::new(http.clone(), Arc::new(One(String::new())), SignerOptions::default()),
        http,
        state_dir: state.path().to_owned(),
        daemon_socket: daemon.socket(),
        store_root: None,
        engine: EngineChoice::Nix,
        sandbox_helper: vec!["/bin/false".into()],
        require_sandbox: true,
        network: false,
        allow_hosts: Vec::new(),
        allow_file_urls: false,
        workers: 1,
        max_evals: 1,
        timeout: Duration::from_mins(1),
        fetch_timeout: Duration::from_mins(5),
        mirrors: MirrorLimits { bytes_max: 1 << 30, unused_max: Duration::from_hours(24) },
        memory_bytes_max: 1 << 30,
        allow_ifd: true,
        substituters: Vec::new(),
        silent_after: Duration::from_mins(1),
        waits: WaitPolicy::default(),
        bounds: AttributeBounds::default(),
    };
    let error = run(options, CancellationToken::new(), CancellationToken::new()).await.expect_err("refuses");
    assert!(matches!(error, EvaluatorError::Sandbox { .. }), "{error}");
}
