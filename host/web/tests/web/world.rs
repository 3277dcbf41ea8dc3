//! A served node with everything it needs, and what an evaluator and a builder do to it. Start at [`World::start`].

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use harmonia_cache::{ObjectStore, ObjectStoreOptions, Reader, ReaderOptions, Signer, SignerOptions};
use harmonia_core::api::Source;
use harmonia_core::ports::{LogSpool, PortFuture};
use harmonia_core::signer_api::{
    AttemptUsage, BuildComplete, BuildCompleteAnswer, DrvFile, DrvUpload, DrvUploadAnswer, Holder, LogBlob, OutputInfo,
    PathInfo, Slot, SlotsAnswer, SlotsRequest,
};
use harmonia_core::{AttemptId, Capability, ClaimToken, EvalId, Incarnation, JobId, NodeId, SystemClock};
use harmonia_db::testing::{TestDatabase, random_token};
use harmonia_db::{
    AskedLimits, AttrResult, Db, GraphAttr, GraphBatch, GraphDerivation, GraphOutput, LogTail, NewEvaluationRow,
    NewProject, NodeRegistration, ProjectKind,
};
use harmonia_embedded::s3::{S3Endpoint, S3Options};
use harmonia_nix::derivation::ModuloHash;
use harmonia_nix::nar::NarWriter;
use harmonia_nix::{Derivation, DerivationOutput, SecretKey, Sha256Hash, StorePath};
use harmonia_web::{AppLimits, AppOptions, AppState, Gate, ListenerLimits};
use reqwest::{Client, Method, RequestBuilder, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::forge::ScriptedForge;

/// The API token that the world's database knows.
pub(crate) const TOKEN: &str = "test-token-0123456789";
pub(crate) const SYSTEM: &str = "x86_64-linux";

/// What a test wants otherwise than usual.
#[derive(Clone, Copy)]
pub(crate) struct Parts {
    pub(crate) signer: bool,
    pub(crate) reader: bool,
}

pub(crate) struct World {
    pub(crate) url: String,
    pub(crate) client: Client,
    pub(crate) state: AppState,
    pub(crate) forge: ScriptedForge,
    pub(crate) spool: Arc<Spool>,
    pub(crate) s3: Option<S3Endpoint>,
    pub(crate) shutdown: CancellationToken,
    pub(crate) server: tokio::task::JoinHandle<()>,
    pub(crate) node: NodeId,
    incarnation: Incarnation,
    _folder: TempDir,
    database: TestDatabase,
}

/// Logs in memory, as a builder's spool on disk would give them.
#[derive(Default)]
pub(crate) struct Spool(pub(crate) Mutex<HashMap<AttemptId, Vec<u8>>>);

impl LogSpool for Spool {
    fn read(&self, attempt: AttemptId, offset: u64, bytes_max: usize) -> PortFuture<'_, Option<Vec<u8>>> {
        let logs = self.0.lock().expect("lock");
        let start = usize::try_from(offset).expect("small");
        let found = logs.get(&attempt).map(|log| log.iter().skip(start).take(bytes_max).copied().collect());
        Box::pin(async move { found })
    }
}

/// Every address of the router, from its own table.
pub(crate) fn routes() -> Vec<String> {
    let table = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/src/routes.rs")).expect("readable");
    let named = |line: &str| line.split_once(".route(\"")?.1.split_once('"').map(|(path, _)| path.to_owned());
    let routes: Vec<String> = table.lines().filter_map(named).collect();
    assert!(routes.len() > 30, "{}", routes.len());
    routes
}

pub(crate) fn secret_key() -> SecretKey {
    SecretKey::from_seed("web-test-1", &[7; 32]).expect("valid name")
}

impl World {
    pub(crate) async fn start() -> Self {
        Self::with(Parts { signer: true, reader: true }).await
    }

    pub(crate) async fn with(parts: Parts) -> Self {
        // What a test changed, it sees.
        let limits =
            AppLimits { overview_age_max: Duration::ZERO, look_age_max: Duration::ZERO, ..AppLimits::default() };
        Self::bounded(parts, limits, ListenerLimits::default()).await
    }

    pub(crate) async fn bounded(parts: Parts, limits: AppLimits, listener_limits: ListenerLimits) -> Self {
        let folder = tempfile::tempdir().expect("temporary folder");
        let options = S3Options {
            folder: folder.path().to_owned(),
            listen: "127.0.0.1:0".parse().expect("address"),
            access_key: "access".to_owned(),
            secret_key: "secret-key".to_owned(),
            buckets: vec!["cache".to_owned()],
            durable: false,
        };
        let s3 = S3Endpoint::start(options, Arc::new(SystemClock)).await.expect("the object store starts");
        let store = ObjectStore::new(ObjectStoreOptions {
            endpoint: Some(s3.url().parse().expect("URL")),
            region: String::new(),
            bucket: "cache".to_owned(),
            access_key: "access".to_owned(),
            secret_key: "secret-key".to_owned(),
            path_style: true,
        });
        let database = TestDatabase::new().await;
        let db = database.db.clone();
        let keys = vec![secret_key().public_key()];
        let reader_options = ReaderOptions { public_keys: keys.clone(), ..ReaderOptions::default() };
        let reader = Reader::new(store.clone(), db.clone(), reader_options);
        let signer = Signer::new(db.clone(), store, vec![secret_key()], SignerOptions::default());
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("address"));
        let spool = Arc::new(Spool::default());
        let forge = ScriptedForge::default();
        let shutdown = CancellationToken::new();
        let state = AppState::new(AppOptions {
            db: db.clone(),
            signer: parts.signer.then_some(signer),
            reader: parts.reader.then_some(reader),
            spool: Some(spool.clone()),
            plugins: Arc::new(forge.clone()),
            remote_heads: None,
            public_url: url.clone(),
            public_keys: keys,
            version: "0.1.0-test".to_owned(),
            node_silent_after: Duration::from_mins(2),
            clock: Arc::new(SystemClock),
            trusted_proxies: Vec::new(),
            limits,
            shutdown: shutdown.clone(),
        });
        let gate = Gate::new();
        gate.open(harmonia_web::router(state.clone()));
        let server = tokio::spawn(harmonia_web::serve(listener, gate.router(), listener_limits, shutdown.clone()));
        db.create_api_token("tester", harmonia_web::api_token_hash(TOKEN)).await.expect("stored");
        let (node, incarnation) = (NodeId("node-1".to_owned()), Incarnation(1));
        let world = Self {
            url,
            client: Client::new(),
            state,
            forge,
            spool,
            s3: Some(s3),
            shutdown,
            server,
            node,
            incarnation,
            _folder: folder,
            database,
        };
        world.register(&[Capability::Builder, Capability::Evaluator, Capability::Signer]).await;
        world
    }

    pub(crate) async fn register(&self, capabilities: &[Capability]) {
        let registration = NodeRegistration {
            id: self.node.clone(),
            incarnation: self.incarnation,
            secret: harmonia_core::NodeSecret([0; 32]),
            capabilities: capabilities.to_vec(),
            endpoint: Some(self.url.clone()),
            systems: vec![SYSTEM.to_owned()],
            features: vec![],
            max_jobs: 100,
            max_evals: 10,
            version: "0".to_owned(),
        };
        self.db().register_node(&registration).await.expect("registered");
    }

    pub(crate) fn db(&self) -> &Db {
        &self.database.db
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}{path}", self.url))
    }

    pub(crate) async fn get(&self, path: &str) -> Response {
        self.request(Method::GET, path).send().await.expect("answered")
    }

    /// Status of a GET whose path is sent as it is: HTTP libraries would tidy it up.
    pub(crate) async fn raw_get(&self, path: &str) -> u16 {
        let address = self.url.strip_prefix("http://").expect("http");
        let mut stream = TcpStream::connect(address).await.expect("connects");
        let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("answered");
        answer.split(' ').nth(1).expect("a status line").parse().expect("a number")
    }

    /// All that is sent in answer to a request on a connection of its own.
    pub(crate) async fn raw(&self, method: &str, target: &str, version: &str) -> String {
        let address = self.url.strip_prefix("http://").expect("http");
        let mut stream = TcpStream::connect(address).await.expect("connects");
        let request = format!("{method} {target} HTTP/{version}\r\nhost: {address}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.expect("answered");
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// GET that must succeed.
    pub(crate) async fn text(&self, path: &str) -> String {
        let response = self.get(path).await;
        let status = response.status();
        let text = response.text().await.expect("text");
        assert!(status.is_success(), "{path}: {status} {text}");
        text
    }

    pub(crate) async fn json<T: DeserializeOwned>(&self, path: &str) -> T {
        let text = self.text(path).await;
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}: {text}"))
    }

    /// POST as a worker with its claim token.
    pub(crate) async fn call(&self, path: &str, token: &ClaimToken, body: &impl Serialize) -> Response {
        self.request(Method::POST, path).bearer_auth(token.to_hex()).json(body).send().await.expect("answered")
    }

    pub(crate) async fn called<T: DeserializeOwned>(&self, path: &str, token: &ClaimToken, body: &impl Serialize) -> T {
        let response = self.call(path, token, body).await;
        let status = response.status();
        let text = response.text().await.expect("text");
        assert!(status.is_success(), "{path}: {status} {text}");
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}: {text}"))
    }

    /// Creates an evaluation and claims it.
    pub(crate) async fn begin(&self, new: NewEvaluation<'_>) -> Running {
        let db = self.db();
        let project = NewProject { name: new.project.to_owned(), kind: ProjectKind::Local };
        let project = db.ensure_project(&project).await.expect("project");
        let row = NewEvaluationRow {
            project,
            source: Source::Git { url: "file:///nowhere".to_owned() },
            commit: Some("0123456789".repeat(4)),
            branch: new.branch.to_owned(),
            attrs: None,
            dirty: false,
            title: Some(new.title.to_owned()),
            author: Some(new.author.to_owned()),
        };
        let created = db.create_evaluation(&row).await.expect("created");
        let token = random_token();
        let claimed =
            db.claim_evaluation(&self.node, self.incarnation, &token).await.expect("answered").expect("queued");
        assert_eq!(claimed.id, created.id);
        Running { id: claimed.id, token }
    }

    /// Uploads derivations over HTTP and inserts them, each as the attribute `checks.<name>`.
    pub(crate) async fn insert(&self, evaluation: &Running, drvs: &[&Drv], errors: &[(&str, &str)]) {
        let upload = DrvUpload { evaluation: evaluation.id, drvs: drvs.iter().map(|drv| drv.file()).collect() };
        let _: DrvUploadAnswer = self.called("/api/drv-upload", &evaluation.token, &upload).await;
        let mut attrs: Vec<GraphAttr> = drvs
            .iter()
            .map(|drv| GraphAttr {
                attr: format!("checks.{}", drv.derivation.name),
                result: AttrResult::Derivation { drv_path: drv.path.clone(), limits: AskedLimits::default() },
            })
            .collect();
        for (attr, error) in errors {
            attrs.push(GraphAttr { attr: (*attr).to_owned(), result: AttrResult::Error((*error).to_owned()) });
        }
        let names: Vec<String> = attrs.iter().map(|attr| attr.attr.clone()).collect();
        let batch =
            GraphBatch { derivations: drvs.iter().map(|drv| drv.graph()).collect(), attrs, ..GraphBatch::default() };
        self.db().expect_attrs(evaluation.id, &evaluation.token, &names).await.expect("expected");
        let outcome = self.db().insert_batch(evaluation.id, &evaluation.token, &batch).await.expect("inserted");
        assert!(outcome.missing.is_empty(), "{:?}", outcome.missing);
    }

    pub(crate) async fn finish(&self, evaluation: &Running) {
        self.db().finish_evaluation(evaluation.id, &evaluation.token).await.expect("finished");
    }

    /// One finished evaluation of these derivations.
    pub(crate) async fn evaluate(&self, drvs: &[&Drv]) -> EvalId {
        let evaluation = self.begin(NewEvaluation::default()).await;
        self.insert(&evaluation, drvs, &[]).await;
        self.finish(&evaluation).await;
        evaluation.id
    }

    /// Claims the job of a derivation.
    pub(crate) async fn claim(&self, drv: &Drv) -> Attempt {
        let db = self.db();
        let classes = db.resolve_classes(&[SYSTEM.to_owned()], &[]).await.expect("classes");
        let heads = db.queue_heads(&classes, 1_000).await.expect("heads");
        for candidate in heads.candidates {
            let token = random_token();
            let claimed =
                db.claim_jobs(&self.node, self.incarnation, &[candidate.job], &[token]).await.expect("claimed");
            for claimed in claimed {
                if claimed.drv_path == drv.path {
                    return Attempt { job: claimed.job, id: claimed.attempt, token: claimed.token };
                }
                db.release_attempt(claimed.attempt, &claimed.token, "not this one").await.expect("released");
            }
        }
        panic!("{} is not ready to be claimed", drv.path);
    }

    /// Writes the end of a running log, as its builder does.
    pub(crate) async fn tail(&self, attempt: &Attempt, start_offset: u64, bytes: &[u8]) {
        let tail = LogTail { attempt: attempt.id, token: attempt.token.clone(), start_offset, bytes: bytes.to_vec() };
        self.db().write_log_tails(&self.node, &[tail]).await.expect("written");
    }

    /// Asks for slots over HTTP and PUTs what is not there.
    pub(crate) async fn upload(&self, attempt: &Attempt, paths: &[(&PathInfo, &[u8])], log: Option<&[u8]>) {
        let request = SlotsRequest {
            holder: Holder::Attempt(attempt.id),
            paths: paths.iter().map(|(info, _)| (*info).clone()).collect(),
            log: log.map(blob),
        };
        let answer: SlotsAnswer = self.called("/api/upload-slots", &attempt.token, &request).await;
        let bodies = paths.iter().map(|(_, bytes)| *bytes).chain(log);
        for (slot, body) in answer.paths.into_iter().chain(answer.log).zip(bodies) {
            let Slot::Put { url, headers } = slot else { continue };
            let mut put = self.client.put(url).body(body.to_vec());
            for (name, value) in headers.iter().filter(|(name, _)| name != "content-length") {
                put = put.header(name, value);
            }
            let status = put.send().await.expect("the store answers").status();
            assert!(status.is_success(), "PUT: {status}");
        }
    }

    /// As [`Self::build`], with these bytes as the object of the log.
    pub(crate) async fn build_with_log(&self, drv: &Drv, content: &Nar, log: &[u8]) -> Attempt {
        let attempt = self.claim(drv).await;
        self.complete_with(&attempt, drv, content, &[], log).await;
        attempt
    }

    /// Everything that a builder does for a derivation with the one output `out`.
    pub(crate) async fn build(&self, drv: &Drv, content: &Nar, references: &[&StorePath], log: &str) -> Attempt {
        let attempt = self.claim(drv).await;
        self.complete(&attempt, drv, content, references, log).await;
        attempt
    }

    pub(crate) async fn complete(
        &self,
        attempt: &Attempt,
        drv: &Drv,
        content: &Nar,
        references: &[&StorePath],
        log: &str,
    ) {
        let log = zstd::encode_all(log.as_bytes(), 3).expect("in memory");
        self.complete_with(attempt, drv, content, references, &log).await;
    }

    async fn complete_with(&self, attempt: &Attempt, drv: &Drv, content: &Nar, references: &[&StorePath], log: &[u8]) {
        let info = content.info(drv.output("out"), references);
        self.upload(attempt, &[(&info, &content.compressed)], Some(log)).await;
        let call = BuildComplete {
            attempt: attempt.id,
            outputs: vec![OutputInfo { name: "out".to_owned(), info }],
            extra_paths: vec![],
            log: Some(blob(log)),
            usage: AttemptUsage::default(),
        };
        let answer: BuildCompleteAnswer = self.called("/api/build-complete", &attempt.token, &call).await;
        assert_eq!(answer, BuildCompleteAnswer::Published);
    }

    /// Ends the server and waits for it.
    pub(crate) async fn stop(self) {
        self.shutdown.cancel();
        self.server.await.expect("the server does not panic");
        if let Some(s3) = self.s3 {
            s3.stop().await;
        }
    }
}

pub(crate) fn blob(compressed: &[u8]) -> LogBlob {
    LogBlob {
        file_hash: Sha256Hash::of(compressed).to_string(),
        file_size: compressed.len() as u64,
        bytes_base64: None,
    }
}

/// An evaluation that a test asks for.
#[derive(Clone, Copy)]
pub(crate) struct NewEvaluation<'a> {
    pub(crate) project: &'a str,
    pub(crate) branch: &'a str,
    pub(crate) title: &'a str,
    pub(crate) author: &'a str,
}

impl Default for NewEvaluation<'_> {
    fn default() -> Self {
        Self { project: "local/demo", branch: "main", title: "Say hello", author: "A. U. Thor" }
    }
}

/// An evaluation that the world's node holds.
pub(crate) struct Running {
    pub(crate) id: EvalId,
    pub(crate) token: ClaimToken,
}

/// A job that the world's node holds.
pub(crate) struct Attempt {
    pub(crate) job: JobId,
    pub(crate) id: AttemptId,
    pub(crate) token: ClaimToken,
}

/// An archive of one file, and its compressed form.
pub(crate) struct Nar {
    pub(crate) bytes: Vec<u8>,
    pub(crate) compressed: Vec<u8>,
    content_bytes: usize,
}

impl Nar {
    pub(crate) fn file(content: &[u8]) -> Self {
        let mut writer = NarWriter::new(Vec::new()).expect("in memory");
        let mut source = content;
        writer.regular(false, content.len() as u64, &mut source, &mut [0; 4096], "file").expect("in memory");
        let bytes = writer.into_inner();
        let compressed = zstd::encode_all(bytes.as_slice(), 3).expect("in memory");
        Self { bytes, compressed, content_bytes: content.len() }
    }

    pub(crate) fn file_name(&self) -> String {
        format!("{}.nar.zst", Sha256Hash::of(&self.compressed).to_base32())
    }

    pub(crate) fn info(&self, path: &StorePath, references: &[&StorePath]) -> PathInfo {
        PathInfo {
            path: path.to_string(),
            nar_hash: Sha256Hash::of(&self.bytes).to_string(),
            nar_size: self.bytes.len() as u64,
            file_hash: Sha256Hash::of(&self.compressed).to_string(),
            file_size: self.compressed.len() as u64,
            references: references.iter().map(ToString::to_string).collect(),
            deriver: None,
            ca: None,
            listing: Some(format!(
                r#"{{"root":{{"narOffset":96,"size":{},"type":"regular"}},"version":1}}"#,
                self.content_bytes
            )),
        }
    }
}

static MODULOS: Mutex<Option<HashMap<StorePath, ModuloHash>>> = Mutex::new(None);

/// A derivation that Nix could have written.
pub(crate) struct Drv {
    pub(crate) path: StorePath,
    pub(crate) derivation: Derivation,
}

impl Drv {
    pub(crate) fn new(name: &str, inputs: &[&Self]) -> Self {
        let used = BTreeSet::from(["out".to_owned()]);
        let mut derivation = Derivation {
            name: name.to_owned(),
            outputs: BTreeMap::from([("out".to_owned(), DerivationOutput::Deferred)]),
            input_drvs: inputs.iter().map(|input| (input.path.clone(), used.clone())).collect(),
            input_srcs: BTreeSet::new(),
            platform: SYSTEM.to_owned(),
            builder: "/bin/sh".into(),
            args: vec![],
            env: BTreeMap::from([("out".into(), "".into())]),
        };
        let mut modulos = MODULOS.lock().expect("lock");
        let modulos = modulos.get_or_insert_default();
        let paths = derivation.compute_output_paths(|input| modulos.get(input).copied()).expect("inputs are known");
        let out = paths["out"].clone().expect("known before the build");
        derivation.env.insert("out".into(), out.as_str().into());
        derivation.outputs.insert("out".to_owned(), DerivationOutput::InputAddressed(out));
        let path = derivation.drv_path().expect("valid name");
        let modulo = derivation.hash_modulo(|input| modulos.get(input).copied()).expect("inputs are known");
        modulos.insert(path.clone(), modulo);
        Self { path, derivation }
    }

    pub(crate) fn output(&self, name: &str) -> &StorePath {
        self.derivation.outputs[name].path().expect("known before the build")
    }

    pub(crate) fn file(&self) -> DrvFile {
        let aterm_base64 = base64::engine::general_purpose::STANDARD.encode(self.derivation.to_aterm());
        DrvFile { path: self.path.to_string(), aterm_base64 }
    }

    fn graph(&self) -> GraphDerivation {
        let inputs = self.derivation.input_drvs.iter();
        GraphDerivation {
            drv_path: self.path.clone(),
            name: self.derivation.name.clone(),
            system: SYSTEM.to_owned(),
            required_features: vec![],
            outputs: vec![GraphOutput {
                name: "out".to_owned(),
                path: Some(self.output("out").clone()),
                fixed_hash: None,
            }],
            inputs: inputs.map(|(path, outputs)| (path.clone(), outputs.iter().cloned().collect())).collect(),
            sources: vec![],
            available: false,
            path_length: 1,
        }
    }
}
