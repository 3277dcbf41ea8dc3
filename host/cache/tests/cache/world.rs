//! A cache with everything it needs, an evaluation that is running, and derivations to upload and build.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::future::Future;
use std::pin::pin;
use std::sync::Mutex;
use std::task::Poll;

use base64::Engine as _;
use harmonia_cache::{Reader, ReaderOptions, Signer, SignerOptions};
use harmonia_core::api::Source;
use harmonia_core::signer_api::{
    AttemptUsage, BuildComplete, DrvFile, DrvUpload, Holder, LogBlob, OutputInfo, PathInfo, Slot, SlotsRequest,
};
use harmonia_core::{AttemptId, Capability, ClaimToken, EvalId, Incarnation, JobId, NodeId};
use harmonia_db::testing::{TestDatabase, random_token, upstream_has};
use harmonia_db::{
    AskedLimits, AttrResult, Db, GraphAttr, GraphBatch, GraphDerivation, GraphOutput, NewEvaluationRow, NewProject,
    NodeRegistration, ProjectKind,
};
use harmonia_nix::derivation::ModuloHash;
use harmonia_nix::nar::NarWriter;
use harmonia_nix::{Derivation, DerivationOutput, SecretKey, Sha256Hash, StorePath};

use crate::support::{Bucket, put};

pub(crate) struct World {
    pub(crate) signer: Signer,
    pub(crate) reader: Reader,
    pub(crate) bucket: Bucket,
    pub(crate) evaluation: EvalId,
    pub(crate) eval_token: ClaimToken,
    node: NodeId,
    incarnation: Incarnation,
    database: TestDatabase,
}

pub(crate) fn secret_key() -> SecretKey {
    SecretKey::from_seed("test-1", &[42; 32]).expect("valid name")
}

impl World {
    pub(crate) async fn start() -> Self {
        Self::with(SignerOptions::default()).await
    }

    pub(crate) async fn with(options: SignerOptions) -> Self {
        let bucket = Bucket::start().await;
        let database = TestDatabase::new().await;
        let db = database.db.clone();
        let reader_options = ReaderOptions { public_keys: vec![secret_key().public_key()], ..ReaderOptions::default() };
        let reader = Reader::new(bucket.store.clone(), db.clone(), reader_options);
        let published = reader.clone();
        let options = SignerOptions {
            on_published: Some(std::sync::Arc::new(move |paths: &[StorePath]| published.published(paths))),
            ..options
        };
        let signer = Signer::new(db.clone(), bucket.store.clone(), vec![secret_key()], options);
        let (node, incarnation) = (NodeId("node".to_owned()), Incarnation(1));
        db.register_node(&NodeRegistration {
            id: node.clone(),
            incarnation,
            secret: harmonia_core::NodeSecret([0; 32]),
            capabilities: vec![Capability::Builder, Capability::Evaluator],
            endpoint: None,
            systems: vec!["x86_64-linux".to_owned()],
            features: vec![],
            max_jobs: 100,
            max_evals: 1,
            version: "0".to_owned(),
        })
        .await
        .expect("registered");
        let kind = ProjectKind::Local;
        let project = db.ensure_project(&NewProject { name: "local/test".to_owned(), kind }).await.expect("project");
        db.create_evaluation(&NewEvaluationRow {
            project,
            source: Source::Git { url: "file:///nowhere".to_owned() },
            commit: Some("0".repeat(40)),
            branch: "main".to_owned(),
            attrs: None,
            dirty: false,
            title: None,
            author: None,
        })
        .await
        .expect("created");
        let eval_token = random_token();
        let claimed = db.claim_evaluation(&node, incarnation, &eval_token).await.expect("answered").expect("queued");
        Self { signer, reader, bucket, evaluation: claimed.id, eval_token, node, incarnation, database }
    }

    pub(crate) fn db(&self) -> &Db {
        &self.database.db
    }

    /// Another process, which remembers nothing.
    pub(crate) fn second_reader(&self) -> Reader {
        Reader::new(self.bucket.store.clone(), self.db().clone(), ReaderOptions::default())
    }

    /// Another signer process on the same database and bucket.
    pub(crate) fn second_signer(&self) -> Signer {
        let options = SignerOptions::default();
        Signer::new(self.db().clone(), self.bucket.store.clone(), vec![secret_key()], options)
    }

    pub(crate) fn drv_upload(&self, drvs: &[&Drv]) -> DrvUpload {
        DrvUpload { evaluation: self.evaluation, drvs: drvs.iter().map(|drv| drv.file()).collect() }
    }

    /// Uploads derivations and inserts them into the graph; `available` ones need no build.
    pub(crate) async fn insert(&self, drvs: &[&Drv], available: &[&Drv]) {
        let all: Vec<&Drv> = available.iter().chain(drvs).copied().collect();
        self.signer.drv_upload(&self.eval_token, self.drv_upload(&all)).await.expect("uploaded");
        let named: Vec<_> = drvs.iter().map(|drv| (*drv, drv.derivation.name.as_str())).collect();
        self.insert_only(&named, available).await;
    }

    /// As [`World::insert`], with names for the attributes.
    pub(crate) async fn insert_with_attrs(&self, drvs: &[(&Drv, &str)], available: &[&Drv]) {
        let all: Vec<&Drv> = available.iter().copied().chain(drvs.iter().map(|(drv, _)| *drv)).collect();
        self.signer.drv_upload(&self.eval_token, self.drv_upload(&all)).await.expect("uploaded");
        self.insert_only(drvs, available).await;
    }

    /// Inserts derivations into the graph, whatever they say.
    pub(crate) async fn insert_graph(&self, drvs: &[&Drv]) {
        let named: Vec<_> = drvs.iter().map(|drv| (*drv, drv.derivation.name.as_str())).collect();
        self.insert_only(&named, &[]).await;
    }

    async fn insert_only(&self, drvs: &[(&Drv, &str)], available: &[&Drv]) {
        let all: Vec<&Drv> = available.iter().copied().chain(drvs.iter().map(|(drv, _)| *drv)).collect();
        let attr = |(drv, name): &(&Drv, &str)| GraphAttr {
            attr: (*name).to_owned(),
            result: AttrResult::Derivation { drv_path: drv.path.clone(), limits: AskedLimits::default() },
        };
        let batch = GraphBatch {
            derivations: all
                .iter()
                .map(|drv| drv.graph(available.iter().any(|other| other.path == drv.path)))
                .collect(),
            attrs: drvs.iter().map(attr).collect(),
            ..GraphBatch::default()
        };
        let there = available.iter().flat_map(|drv| drv.derivation.output_paths()).filter_map(|(_, path)| path);
        upstream_has(self.db(), there).await;
        let outcome = self.db().insert_batch(self.evaluation, &self.eval_token, &batch).await.expect("inserted");
        assert!(outcome.missing.is_empty(), "{:?}", outcome.missing);
    }

    /// Claims the job of a derivation.
    pub(crate) async fn claim(&self, drv: &Drv) -> Attempt {
        let db = self.db();
        let classes = db.resolve_classes(&["x86_64-linux".to_owned()], &[]).await.expect("classes");
        let heads = db.queue_heads(&classes, 1_000).await.expect("heads");
        for candidate in heads.candidates {
            let token = random_token();
            let job = candidate.job;
            let claimed = db.claim_jobs(&self.node, self.incarnation, &[job], &[token]).await.expect("claimed");
            for claimed in claimed {
                if claimed.drv_path == drv.path {
                    return Attempt { id: claimed.attempt, token: claimed.token, job };
                }
                db.release_attempt(claimed.attempt, &claimed.token, "not this one").await.expect("released");
            }
        }
        panic!("{} is not ready to be claimed", drv.path);
    }

    /// Asks for slots and PUTs whatever is not there, as a worker does. Says how many PUTs there were.
    pub(crate) async fn upload(
        &self,
        token: &ClaimToken,
        holder: Holder,
        paths: &[(&PathInfo, &Nar)],
        log: Option<&Log>,
    ) -> usize {
        let request = SlotsRequest {
            holder,
            paths: paths.iter().map(|(info, _)| (*info).clone()).collect(),
            log: log.map(Log::blob),
        };
        let answer = self.signer.slots(token, &request).await.expect("slots");
        assert_eq!(answer.paths.len(), paths.len());
        let mut bodies: Vec<(Slot, Vec<u8>)> =
            answer.paths.into_iter().zip(paths).map(|(slot, (_, nar))| (slot, nar.compressed.clone())).collect();
        if let (Some(slot), Some(log)) = (answer.log, log) {
            bodies.push((slot, log.compressed.clone()));
        }
        let mut count = 0;
        for (slot, body) in bodies {
            if let Slot::Put { url, headers } = slot {
                let status = put(&url, &headers, body).await;
                assert!(status == 200 || status == 412, "PUT answers {status}");
                count += 1;
            }
        }
        count
    }

    /// Everything up to the completion of a build whose outputs are these.
    pub(crate) async fn built(&self, drv: &Drv, outputs: &[(&str, &Nar, &[&StorePath])]) -> (Attempt, BuildComplete) {
        let attempt = self.claim(drv).await;
        let call = drv.complete(&attempt, outputs);
        let paths: Vec<_> = call.outputs.iter().map(|output| &output.info).zip(outputs.iter().map(|o| o.1)).collect();
        self.upload(&attempt.token, Holder::Attempt(attempt.id), &paths, None).await;
        (attempt, call)
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Attempt {
    pub(crate) job: JobId,
    pub(crate) id: AttemptId,
    pub(crate) token: ClaimToken,
}

/// A compressed log.
pub(crate) struct Log {
    pub(crate) compressed: Vec<u8>,
}

impl Log {
    pub(crate) fn of(text: &str) -> Self {
        Self { compressed: zstd::encode_all(text.as_bytes(), 3).expect("in memory") }
    }

    /// As a builder sends it along when it is small.
    pub(crate) fn along(&self) -> LogBlob {
        let bytes_base64 = Some(base64::engine::general_purpose::STANDARD.encode(&self.compressed));
        LogBlob { bytes_base64, ..self.blob() }
    }

    pub(crate) fn blob(&self) -> LogBlob {
        LogBlob {
            file_hash: Sha256Hash::of(&self.compressed).to_string(),
            file_size: self.compressed.len() as u64,
            bytes_base64: None,
        }
    }
}

/// An archive and what is uploaded of it.
#[derive(Debug, Clone)]
pub(crate) struct Nar {
    pub(crate) bytes: Vec<u8>,
    pub(crate) compressed: Vec<u8>,
}

impl Nar {
    /// Of a single file.
    pub(crate) fn file(content: &str) -> Self {
        let mut writer = NarWriter::new(Vec::new()).expect("in memory");
        writer.regular(false, content.len() as u64, content.as_bytes(), &mut [0; 4096], "file").expect("in memory");
        Self::of(writer.into_inner())
    }

    pub(crate) fn of(bytes: Vec<u8>) -> Self {
        let compressed = zstd::encode_all(bytes.as_slice(), 3).expect("in memory");
        Self { bytes, compressed }
    }

    /// The same archive in another zstd stream.
    pub(crate) fn recompressed(&self) -> Self {
        let compressed = zstd::encode_all(self.bytes.as_slice(), 19).expect("in memory");
        assert_ne!(compressed, self.compressed);
        Self { compressed, ..self.clone() }
    }

    pub(crate) fn hash(&self) -> Sha256Hash {
        Sha256Hash::of(&self.bytes)
    }

    pub(crate) fn info(&self, path: &StorePath, references: &[&StorePath]) -> PathInfo {
        PathInfo {
            path: path.to_string(),
            nar_hash: self.hash().to_string(),
            nar_size: self.bytes.len() as u64,
            file_hash: Sha256Hash::of(&self.compressed).to_string(),
            file_size: self.compressed.len() as u64,
            references: references.iter().map(ToString::to_string).collect(),
            deriver: None,
            ca: None,
            listing: None,
        }
    }

    /// As a source: content-addressed by this archive.
    pub(crate) fn source(&self, name: &str, references: &[&StorePath]) -> (StorePath, PathInfo) {
        let address = harmonia_nix::ContentAddress::recursive(self.hash().into());
        let links = harmonia_nix::store_path::References::to(references.iter().copied().cloned());
        let path = StorePath::make_fixed_output(name, address, &links).expect("valid");
        let info = PathInfo { ca: Some(address.to_string()), ..self.info(&path, references) };
        (path, info)
    }
}

static MODULOS: Mutex<Option<HashMap<StorePath, ModuloHash>>> = Mutex::new(None);

/// A derivation that was never written by Nix, but could have been.
#[derive(Debug, Clone)]
pub(crate) struct Drv {
    pub(crate) path: StorePath,
    pub(crate) derivation: Derivation,
    pub(crate) text: Vec<u8>,
}

impl Drv {
    pub(crate) fn new(name: &str, outputs: &[&str], inputs: &[&Drv]) -> Self {
        let open = |name: &&str| ((*name).to_owned(), DerivationOutput::Deferred);
        Self::finish(name, outputs.iter().map(open).collect(), inputs, &[])
    }

    /// With one output and these environment variables.
    pub(crate) fn with_env(name: &str, inputs: &[&Drv], env: &[(&str, &str)]) -> Self {
        let outputs = BTreeMap::from([("out".to_owned(), DerivationOutput::Deferred)]);
        Self::finish(name, outputs, inputs, env)
    }

    /// With a fixed output. `variant` makes another derivation with the same output.
    pub(crate) fn fixed(name: &str, address: harmonia_nix::ContentAddress, variant: &str) -> Self {
        let output = DerivationOutput::fixed(name, "out", address).expect("valid");
        Self::finish(name, BTreeMap::from([("out".to_owned(), output)]), &[], &[("variant", variant)])
    }

    fn finish(name: &str, outputs: BTreeMap<String, DerivationOutput>, inputs: &[&Drv], env: &[(&str, &str)]) -> Self {
        let input_drvs = inputs.iter().map(|input| (input.path.clone(), BTreeSet::from(["out".to_owned()])));
        let mut derivation = Derivation {
            name: name.to_owned(),
            input_drvs: input_drvs.collect(),
            input_srcs: BTreeSet::new(),
            platform: "x86_64-linux".to_owned(),
            builder: "/bin/sh".into(),
            args: vec![],
            env: outputs.keys().map(|output| (output.as_str().into(), "".into())).collect(),
            outputs,
        };
        derivation.env.extend(env.iter().map(|(name, value)| ((*name).into(), (*value).into())));
        let mut modulos = MODULOS.lock().expect("lock");
        let modulos = modulos.get_or_insert_default();
        for (output, path) in derivation.compute_output_paths(|input| modulos.get(input).copied()).expect("valid") {
            let path = path.expect("known before the build");
            derivation.env.insert(output.as_str().into(), path.as_str().into());
            if let Some(found @ DerivationOutput::Deferred) = derivation.outputs.get_mut(&output) {
                *found = DerivationOutput::InputAddressed(path);
            }
        }
        let drv = Self::of(derivation);
        let modulo = drv.derivation.hash_modulo(|input| modulos.get(input).copied()).expect("valid");
        modulos.insert(drv.path.clone(), modulo);
        drv
    }

    /// Whatever it says: not checked.
    pub(crate) fn of(derivation: Derivation) -> Self {
        let path = derivation.drv_path().expect("valid name");
        Self { path, text: derivation.to_aterm(), derivation }
    }

    pub(crate) fn output(&self, name: &str) -> &StorePath {
        self.derivation.outputs[name].path().expect("known before the build")
    }

    pub(crate) fn file(&self) -> DrvFile {
        let aterm_base64 = base64::engine::general_purpose::STANDARD.encode(&self.text);
        DrvFile { path: self.path.to_string(), aterm_base64 }
    }

    fn graph(&self, available: bool) -> GraphDerivation {
        let output = |(name, output): (&String, &DerivationOutput)| GraphOutput {
            name: name.clone(),
            path: output.path().cloned(),
            fixed_hash: output.fixed_address().map(ToString::to_string),
        };
        GraphDerivation {
            drv_path: self.path.clone(),
            name: self.derivation.name.clone(),
            system: self.derivation.platform.clone(),
            required_features: vec![],
            outputs: self.derivation.outputs.iter().map(output).collect(),
            inputs: self
                .derivation
                .input_drvs
                .iter()
                .map(|(path, outputs)| (path.clone(), outputs.iter().cloned().collect()))
                .collect(),
            sources: self.derivation.input_srcs.iter().cloned().collect(),
            available,
            path_length: 1,
        }
    }

    pub(crate) fn complete(&self, attempt: &Attempt, outputs: &[(&str, &Nar, &[&StorePath])]) -> BuildComplete {
        let output = |(name, nar, references): &(&str, &Nar, &[&StorePath])| OutputInfo {
            name: (*name).to_owned(),
            info: nar.info(self.output(name), references),
        };
        BuildComplete {
            attempt: attempt.id,
            outputs: outputs.iter().map(output).collect(),
            extra_paths: vec![],
            log: None,
            usage: AttemptUsage::default(),
        }
    }
}

/// Polls once, whatever comes of it.
pub(crate) async fn poll_once<F: Future + Unpin>(mut future: F) -> Option<F::Output> {
    std::future::poll_fn(|context| {
        Poll::Ready(match std::pin::Pin::new(&mut future).poll(context) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        })
    })
    .await
}

/// Polls at most so often, as if the process died then. `None`: it was not ready by then.
pub(crate) async fn poll_times<F: Future>(future: F, times: usize) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut left = times;
    std::future::poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        future.as_mut().poll(context).map(Some)
    })
    .await
}
