//! Everything around a builder. Start at [`World`].

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use harmonia_core::policy::FirstInFirstOut;
use harmonia_core::ports::PortFuture;
use harmonia_core::signer_api::{
    BuildComplete, BuildCompleteAnswer, BuildFailed, BuildFailedAnswer, LogBlob, Slot, SlotsAnswer, SlotsRequest,
};
use harmonia_core::{AttemptId, ClaimToken, Incarnation, JobId, NodeId};
use harmonia_db::testing::TestDatabase;
use harmonia_db::{ClaimedJob, JobLimits};
use harmonia_nix::{Derivation, PublicKey, StorePath};

use super::super::{Builder, BuilderOptions};
use crate::pack::physical_path;
use crate::signer_client::{BoxError, SignerClient, SignerDirectory, SignerOptions};
use crate::test_parts::{Answer, Request, TestDaemon, TestServer};

/// What a scripted signer was told, and what was stored.
#[derive(Default)]
pub(crate) struct Recorded {
    pub(crate) slots: Vec<SlotsRequest>,
    pub(crate) completed: Vec<BuildComplete>,
    pub(crate) failed: Vec<BuildFailed>,
    /// Objects by the hash that the slots request declared.
    pub(crate) objects: BTreeMap<String, Vec<u8>>,
}

impl Recorded {
    /// A log that came along counts as one that was PUT.
    fn keep(&mut self, log: Option<&LogBlob>) {
        if let Some(LogBlob { file_hash, bytes_base64: Some(text), .. }) = log {
            self.objects.insert(file_hash.clone(), BASE64.decode(text).expect("base64"));
        }
    }
}

/// Answers instead of the usual ones; `None` for the usual.
pub(crate) type Script = Box<dyn Fn(&Request, &Recorded) -> Option<Answer> + Send + Sync>;

pub(crate) struct World {
    pub(crate) database: TestDatabase,
    pub(crate) daemon: TestDaemon,
    pub(crate) recorded: Arc<Mutex<Recorded>>,
    pub(crate) script: Arc<Mutex<Option<Script>>>,
    /// A binary cache as files, served as "our cache".
    pub(crate) cache_dir: tempfile::TempDir,
    pub(crate) spool_dir: tempfile::TempDir,
    signer: TestServer,
    cache: TestServer,
}

struct OneSigner(String);

impl SignerDirectory for OneSigner {
    fn signers(&self) -> PortFuture<'_, Result<Vec<String>, BoxError>> {
        Box::pin(async { Ok(vec![self.0.clone()]) })
    }
}

impl World {
    pub(crate) async fn new() -> Self {
        let recorded = Arc::new(Mutex::new(Recorded::default()));
        let script: Arc<Mutex<Option<Script>>> = Arc::default();
        let (for_server, scripted) = (Arc::clone(&recorded), Arc::clone(&script));
        let base = Arc::new(Mutex::new(String::new()));
        let own_url = Arc::clone(&base);
        let signer = TestServer::start(move |request| {
            let mut recorded = for_server.lock().expect("not poisoned");
            if let Some(script) = &*scripted.lock().expect("not poisoned")
                && let Some(answer) = script(&request, &recorded)
            {
                return answer;
            }
            usual_answer(&request, &mut recorded, &own_url.lock().expect("not poisoned"))
        })
        .await;
        *base.lock().expect("not poisoned") = signer.url.to_string();
        let cache_dir = tempfile::tempdir().expect("folder");
        let cache = TestServer::of_folder(cache_dir.path(), |_, answer| answer).await;
        Self {
            database: TestDatabase::new().await,
            daemon: TestDaemon::start().await,
            recorded,
            script,
            cache_dir,
            spool_dir: tempfile::tempdir().expect("folder"),
            signer,
            cache,
        }
    }

    pub(crate) fn options(&self, keys: Vec<PublicKey>) -> BuilderOptions {
        BuilderOptions {
            prepare_timeout: Duration::from_mins(1),
            upload_timeout: Duration::from_mins(1),
            node: NodeId("builder-1".into()),
            incarnation: Incarnation(1),
            db: self.database.db.clone(),
            signer: self.signer_client(Duration::from_secs(20)),
            http: reqwest::Client::new(),
            cache: self.cache.cache(&keys),
            substituters: Vec::new(),
            daemon_socket: self.daemon.socket(),
            store_root: Some(self.daemon.store.root()),
            spool_dir: self.spool_dir.path().to_owned(),
            max_jobs: 1,
            parallel_uploads: 4,
            cores: 1,
            systems: vec!["x86_64-linux".into(), "aarch64-linux".into(), "builtin".into()],
            features: Vec::new(),
            min_free_bytes: 0,
            compression_level: 3,
            compression_threads: 1,
            policy: Arc::new(FirstInFirstOut),
        }
    }

    pub(crate) fn signer_client(&self, patience: Duration) -> SignerClient {
        let options = SignerOptions {
            patience,
            pause_min: Duration::from_millis(20),
            pause_max: Duration::from_millis(100),
            ..SignerOptions::default()
        };
        SignerClient::new(reqwest::Client::new(), Arc::new(OneSigner(self.signer.url.to_string())), options)
    }

    pub(crate) fn builder(&self) -> Builder {
        Builder::new(self.options(Vec::new())).expect("builder")
    }

    /// Makes the signer answer differently.
    pub(crate) fn script(&self, script: impl Fn(&Request, &Recorded) -> Option<Answer> + Send + Sync + 'static) {
        *self.script.lock().expect("not poisoned") = Some(Box::new(script));
    }

    pub(crate) fn recorded(&self) -> std::sync::MutexGuard<'_, Recorded> {
        self.recorded.lock().expect("not poisoned")
    }

    /// An object that was PUT, unpacked.
    pub(crate) fn object(&self, file_hash: &str) -> Vec<u8> {
        let recorded = self.recorded();
        let bytes = recorded.objects.get(file_hash).unwrap_or_else(|| panic!("{file_hash} was not uploaded"));
        assert_eq!(harmonia_nix::Sha256Hash::of(bytes).to_string(), file_hash);
        zstd::decode_all(&bytes[..]).expect("zstd")
    }

    /// The derivation at `path`, from the daemon's store.
    pub(crate) fn read_derivation(&self, path: &StorePath) -> Derivation {
        let file: PathBuf = physical_path(Some(&self.daemon.store.root()), path);
        Derivation::from_file(path, &std::fs::read(file).expect("a .drv")).expect("derivation")
    }
}

/// A job as if it had been claimed, for tests below the claim loop.
pub(crate) fn claimed(drv_path: &StorePath, limits: JobLimits) -> ClaimedJob {
    ClaimedJob {
        job: JobId(1),
        attempt: AttemptId(1),
        token: ClaimToken::from_random(rand::random()),
        drv_path: drv_path.clone(),
        name: drv_path.name().to_owned(),
        limits,
        retry_count: 0,
    }
}

fn usual_answer(request: &Request, recorded: &mut Recorded, base: &str) -> Answer {
    fn read<T: serde::de::DeserializeOwned>(request: &Request) -> T {
        assert!(request.header("authorization").is_some_and(|text| text.starts_with("Bearer ")), "no token");
        serde_json::from_slice(&request.body).expect("JSON of the interface")
    }
    let slot = |hash: &str| Slot::Put { url: format!("{base}put/{hash}?signed"), headers: Vec::new() };
    match (request.method.as_str(), request.path.as_str()) {
        ("POST", "/api/upload-slots") => {
            let asked: SlotsRequest = read(request);
            let answer = SlotsAnswer {
                paths: asked.paths.iter().map(|path| slot(&path.file_hash)).collect(),
                log: asked.log.as_ref().map(|log| slot(&log.file_hash)),
            };
            recorded.slots.push(asked);
            Answer::json(&answer)
        }
        ("PUT", path) => {
            let hash = path.trim_start_matches("/put/").trim_end_matches("?signed");
            recorded.objects.insert(hash.to_owned(), request.body.clone());
            Answer::new(200, "")
        }
        ("POST", "/api/build-complete") => {
            let complete: BuildComplete = read(request);
            recorded.keep(complete.log.as_ref());
            recorded.completed.push(complete);
            Answer::json(&BuildCompleteAnswer::Published)
        }
        ("POST", "/api/build-failed") => {
            let failed: BuildFailed = read(request);
            recorded.keep(failed.log.as_ref());
            recorded.failed.push(failed);
            Answer::json(&BuildFailedAnswer { retried: false })
        }
        _ => Answer::new(404, "no such call"),
    }
}
