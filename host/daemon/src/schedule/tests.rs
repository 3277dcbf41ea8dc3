use std::path::Path;
use std::sync::Mutex;

use harmonia_nix::Sha256Hash;
use harmonia_nix::nar::pack_path;
use harmonia_nix::worker_protocol::LogMessage;
use tempfile::TempDir;

use super::*;
use crate::build::{BuildUsers, FixedNetwork, SandboxMode};
use crate::store::{Layout, StoreSettings};

/// A store of its own and a folder with a cache.
struct World {
    dir: TempDir,
    scheduler: Arc<Scheduler>,
    said: Arc<Mutex<Vec<String>>>,
    options: RequestOptions,
}

fn key() -> SecretKey {
    SecretKey::from_seed("test-1", &[7; 32]).expect("a key")
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let settings = StoreSettings { trusted_keys: vec![key().public_key()], ..StoreSettings::default() };
        let store = Store::open(Layout::below(Some(&dir.path().join("root"))), settings).expect("a store");
        let settings = SchedulerSettings {
            builds_max: 1,
            systems: BTreeSet::new(),
            system_features: BTreeSet::new(),
            keep_log: false,
            compress_log: false,
            free_bytes_min: 0,
            connect_timeout: None,
        };
        let cache = dir.path().join("cache");
        std::fs::create_dir_all(cache.join("nar")).expect("a folder");
        std::fs::write(cache.join("nix-cache-info"), "StoreDir: /nix/store\n").expect("written");
        let options = RequestOptions {
            is_trusted: false,
            keep_going: false,
            try_fallback: false,
            max_jobs: 1,
            use_substitutes: true,
            substituters: vec![format!("file://{}", cache.display())],
            trusted_keys: vec![key().public_key()],
            require_signatures: true,
            auto_optimise: false,
            secret_keys: Vec::new(),
            post_build_hook: None,
            build: build_options(dir.path()),
        };
        Self { scheduler: Scheduler::new(store, settings), said: Arc::default(), options, dir }
    }

    fn request(&self) -> Request {
        let said = Arc::clone(&self.said);
        let sink = move |message| {
            if let LogMessage::Text(text) = message {
                said.lock().expect("said").push(text);
            }
        };
        let roots = Arc::new(self.scheduler.store().temp_roots());
        Request { log: Log::new(3, Arc::new(sink)), roots, options: self.options.clone() }
    }

    fn said(&self) -> String {
        self.said.lock().expect("said").concat()
    }

    /// Puts a path into the cache whose file names what it refers to.
    fn offer(&self, name: &str, references: &[&StorePath]) -> StorePath {
        let path = path(name);
        let text: Vec<&str> = references.iter().map(|path| path.as_str()).collect();
        let file = self.dir.path().join("file");
        std::fs::write(&file, text.join("\n")).expect("written");
        let mut nar = Vec::new();
        pack_path(&file, &mut nar).expect("packed");
        let mut info = NarInfo {
            path: path.clone(),
            url: format!("nar/{name}.nar"),
            compression: "none".to_owned(),
            file_hash: None,
            file_size: Some(nar.len() as u64),
            nar_hash: Sha256Hash::of(&nar),
            nar_size: nar.len() as u64,
            references: references.iter().map(|path| (*path).clone()).collect(),
            deriver: None,
            content_address: None,
            signatures: Vec::new(),
        };
        info.sign(&key());
        let cache = self.dir.path().join("cache");
        std::fs::write(cache.join(&info.url), nar).expect("written");
        std::fs::write(self.narinfo(&path), info.to_string()).expect("written");
        path
    }

    fn narinfo(&self, path: &StorePath) -> PathBuf {
        self.dir.path().join(format!("cache/{}.narinfo", path.hash_part()))
    }

    async fn want(&self, path: &StorePath) -> Result<(), String> {
        let targets = [DerivedPath::Opaque(path.clone())];
        let end = self.scheduler.build_paths(self.request(), &targets, BuildMode::Normal);
        end.await.map_err(|error| error.to_string())
    }

    fn is_valid(&self, path: &StorePath) -> bool {
        self.scheduler.store().is_valid(path).expect("the store")
    }
}

fn build_options(dir: &Path) -> BuildOptions {
    BuildOptions {
        cores: 1,
        timeout: None,
        max_silent: None,
        max_log_bytes: None,
        keep_failed: false,
        sandbox: SandboxMode::On,
        sandbox_paths: Vec::new(),
        build_dir: dir.to_owned(),
        sandbox_build_dir: "/build".into(),
        shm_bytes: 1 << 20,
        log_lines: 10,
        max_output_bytes: None,
        max_memory_bytes: None,
        max_processes: None,
        build_users: BuildUsers::of_range(dir),
        helper: Vec::new(),
        fixed_network: FixedNetwork::Host,
        netrc_file: None,
        hashed_mirrors: Vec::new(),
    }
}

fn path(name: &str) -> StorePath {
    let hash = harmonia_nix::hash::compress_hash(Sha256Hash::of(name.as_bytes()).as_bytes());
    StorePath::from_parts(&hash, name).expect("a path")
}

#[tokio::test]
async fn a_path_comes_with_all_that_it_refers_to() {
    let world = World::new();
    let base = world.offer("base", &[]);
    let itself = path("middle");
    let middle = world.offer("middle", &[&base, &itself]);
    let top = world.offer("top", &[&middle, &base]);
    let targets = [DerivedPath::Opaque(top.clone())];
    let missing = world.scheduler.query_missing(world.request(), &targets).await.expect("asked");
    assert_eq!(missing.will_substitute, BTreeSet::from([base.clone(), middle.clone(), top.clone()]));
    assert!(missing.download_size_bytes == missing.nar_size_bytes && missing.nar_size_bytes > 300, "{missing:?}");
    world.want(&top).await.expect("substituted");
    let info = world.scheduler.store().valid_path_info(&middle).expect("valid");
    assert_eq!((info.references, info.ultimate, info.signatures.len()), (BTreeSet::from([base, itself]), false, 1));
    let results = world.scheduler.build_paths_with_results(world.request(), &targets, BuildMode::Normal);
    assert_eq!(results.await.expect("asked")[0].1.status, BuildStatus::AlreadyValid);
}

#[tokio::test]
async fn a_path_without_a_signature_that_counts_is_left_where_it_is() {
    let mut world = World::new();
    let top = world.offer("top", &[]);
    world.options.trusted_keys = Vec::new();
    let error = world.want(&top).await.expect_err("nobody signed");
    assert!(error.contains("no substituter that can build it"), "{error}");
    assert!(world.said().contains("is not signed by any of the keys in 'trusted-public-keys'"), "{}", world.said());
    world.options.require_signatures = false;
    world.want(&top).await.expect("nobody asks");
}

#[tokio::test]
async fn a_hole_in_a_closure_and_a_circle_fetch_nothing() {
    let world = World::new();
    let base = world.offer("base", &[]);
    let middle = world.offer("middle", &[&base]);
    let top = world.offer("top", &[&middle]);
    std::fs::remove_file(world.narinfo(&base)).expect("removed");
    let error = world.want(&top).await.expect_err("a hole");
    assert_eq!(error, format!("some references of path '{top}' could not be realised"));
    assert!(!world.is_valid(&middle));

    let base = world.offer("base", &[&path("top")]);
    let error = world.want(&top).await.expect_err("a circle");
    assert!(error.contains("depend on itself"), "{error}");
    assert!(!world.is_valid(&base));
}

#[tokio::test]
async fn two_clients_who_want_one_path_get_it() {
    let world = World::new();
    let base = world.offer("base", &[]);
    let top = world.offer("top", &[&base]);
    let ends = futures_util::future::join_all((0..8).map(|_| world.want(&top))).await;
    assert_eq!(ends, vec![Ok(()); 8]);
    assert!(world.is_valid(&top));
}

#[tokio::test]
async fn damaged_archives_are_told_of_and_repairing_replaces_damaged_files() {
    let mut world = World::new();
    let top = world.offer("top", &[]);
    let nar = world.dir.path().join("cache/nar/top.nar");
    let sound = std::fs::read(&nar).expect("an archive");
    let mut damaged = sound.clone();
    damaged[90] ^= 1;
    std::fs::write(&nar, &damaged).expect("written");
    let error = world.want(&top).await.expect_err("damaged");
    assert!(error.contains("cannot get") && !world.is_valid(&top), "{error}");
    std::fs::write(&nar, &sound).expect("written");
    world.want(&top).await.expect("sound");

    let file = world.scheduler.store().real_path(&top);
    std::fs::remove_file(&file).expect("removed");
    std::fs::write(&file, "damaged").expect("written");
    let targets = [DerivedPath::Opaque(top.clone())];
    let refused = world.scheduler.build_paths(world.request(), &targets, BuildMode::Repair).await;
    assert!(refused.is_err_and(|error| error.to_string().contains("not in 'trusted-users'")));
    world.options.is_trusted = true;
    world.scheduler.build_paths(world.request(), &targets, BuildMode::Repair).await.expect("repaired");
    assert_eq!(std::fs::read(&file).expect("a file"), b"");
    assert!(world.scheduler.store().is_sound(&top).expect("looked at"));
}

#[tokio::test]
async fn what_is_known_nowhere_is_unknown_and_a_missing_derivation_cannot_be_built() {
    let world = World::new();
    let derivation = path("gone.drv");
    let targets = [
        DerivedPath::Opaque(path("gone")),
        DerivedPath::Built { derivation: derivation.clone(), outputs: OutputNames::All },
    ];
    let missing = world.scheduler.query_missing(world.request(), &targets).await.expect("asked");
    assert_eq!(missing.unknown, BTreeSet::from([path("gone"), derivation.clone()]));
    let results = world.scheduler.build_paths_with_results(world.request(), &targets[1..], BuildMode::Normal);
    let results = results.await.expect("asked");
    assert_eq!(results[0].1.error_message, format!("cannot build missing derivation '{derivation}'"));
    assert_eq!(results[0].1.status, BuildStatus::MiscFailure);
}

#[test]
fn the_exit_status_names_the_kinds_of_failures() {
    let of = |statuses: &[BuildStatus]| {
        let outcomes: Vec<Outcome> = statuses.iter().map(|status| Outcome::failure(*status, "")).collect();
        exit_status(&outcomes)
    };
    assert_eq!(of(&[]), 1);
    assert_eq!(of(&[BuildStatus::MiscFailure, BuildStatus::Built]), 1);
    assert_eq!(of(&[BuildStatus::PermanentFailure]), 100);
    assert_eq!(of(&[BuildStatus::TimedOut]), 101);
    assert_eq!(of(&[BuildStatus::NotDeterministic]), 104);
    assert_eq!(of(&[BuildStatus::TimedOut, BuildStatus::NotDeterministic]), 109);
    let mismatch = Outcome { is_hash_mismatch: true, ..Outcome::failure(BuildStatus::OutputRejected, "") };
    assert_eq!(exit_status([&mismatch]), 102);
}
