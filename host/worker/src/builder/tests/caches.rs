//! What a builder shows to caches, and what it tells of them: inputs that were built elsewhere, and come from there or not.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex};

use harmonia_core::signer_api::Failure;
use harmonia_db::{ClaimedJob, MissingPath};
use harmonia_nix::worker_protocol::types::GcRequest;
use harmonia_nix::{NarInfo, PublicKey, SecretKey, StorePath};
use tokio_util::sync::CancellationToken;

use super::super::{Builder, Node, Slot, job};
use super::whole::{Running, user_of};
use super::world::World;
use super::*;
use crate::binary_cache::BinaryCache;
use crate::pack::physical_path;
use crate::test_parts::{Answer, Request, TestServer, TestStore};

/// An input that another store has built, and a job that needs it.
struct Elsewhere {
    store: TestStore,
    path: StorePath,
    input: StorePath,
    user: StorePath,
}

impl Elsewhere {
    fn new(world: &World) -> Self {
        let expression = derivation("input", "echo from elsewhere > $out");
        let store = TestStore::new();
        let path = store.build(&expression);
        let (input, user) = world.instantiate_pair(&user_of(&expression));
        Self { store, path, input, user }
    }

    /// Writes a cache with the input into `folder`.
    fn copy_to(&self, folder: &Path) -> PublicKey {
        self.store.copy_to_cache(folder, "none", "test-1", &[&self.path]).trim().parse().expect("key")
    }
}

fn narinfo_file(folder: &Path, path: &StorePath) -> std::path::PathBuf {
    folder.join(format!("{}.narinfo", path.hash_part()))
}

fn edit_narinfo(folder: &Path, path: &StorePath, edit: impl FnOnce(&mut NarInfo)) {
    let file = narinfo_file(folder, path);
    let mut info = NarInfo::parse(&std::fs::read_to_string(&file).expect("a narinfo")).expect("a narinfo");
    edit(&mut info);
    std::fs::write(file, info.to_string()).expect("written");
}

/// One attempt from beginning to end.
async fn attempt(node: &Arc<Node>, job: &ClaimedJob) {
    job::run(Arc::clone(node), job.clone(), Slot::take(&node.slots), CancellationToken::new()).await;
}

/// How the one job of `world` failed, with the log.
fn failure_and_log(world: &World) -> (Failure, String) {
    let failed = world.recorded().failed.pop().expect("a signer was told");
    let log = world.object(&failed.log.expect("a log").file_hash);
    (failed.failure, String::from_utf8(log).expect("text"))
}

#[tokio::test]
async fn our_cache_gives_a_job_what_its_project_alone_may_read_and_no_other_server_hears_of_the_claim() {
    let world = World::new().await;
    let (private, moved) = (derivation("private", "echo private > $out"), derivation("moved", "echo moved > $out"));
    let user = world.daemon.store.instantiate(&format!(
        "derivation {{ name = \"user\"; system = builtins.currentSystem; builder = \"/bin/sh\"; args = [ \"-c\"
         \"while read x; do echo $x; done < ${{{private}}} > $out; while read x; do echo $x; done < ${{{moved}}} >> $out\" ]; }}"
    ));
    let source = TestStore::new();
    let (private, moved) = (source.build(&private), source.build(&moved));
    let ours = world.cache_dir.path();
    let key: PublicKey = source.copy_to_cache(ours, "zstd", "test-1", &[&private, &moved]).trim().parse().expect("key");
    let theirs = tempfile::tempdir().expect("folder");
    source.copy_to_cache(theirs.path(), "zstd", "test-1", &[&moved]);
    let inputs: Vec<StorePath> = world.read_derivation(&user).input_drvs.keys().cloned().collect();
    for input in &inputs {
        let output = world.read_derivation(input).output_paths().next().and_then(|(_, path)| path.cloned());
        world.publish(input, &source, &output.expect("known")).await;
    }
    world.queue_above(&[&user]).await;

    // The derivation, too, is in the cache only.
    let file = physical_path(Some(&world.daemon.store.root()), &user);
    let object = ours.join(format!("drv/{}.zst", user.base_name()));
    std::fs::create_dir(object.parent().expect("folder")).expect("folder");
    std::fs::write(object, zstd::encode_all(&std::fs::read(&file).expect("a .drv")[..], 3).expect("zstd"))
        .expect("file");
    let mut daemon = world.daemon.client().connect().await.expect("connects");
    let drvs = inputs.iter().chain([&user]).cloned().collect::<BTreeSet<_>>();
    daemon.collect_garbage(&GcRequest::delete(drvs)).await.expect("deletes");
    assert!(!file.exists());

    // Who does not show the claim finds nothing in our cache, which says of one archive that it is on another server. There it
    // is not, nor has that server anything else; the last cache has it.
    let claim: Arc<Mutex<Option<String>>> = Arc::default();
    let wanted = Arc::clone(&claim);
    let own = TestServer::of_folder(ours, move |request, answer| {
        let wanted = wanted.lock().expect("not poisoned").clone();
        if wanted.is_some() && wanted.as_deref() == request.header("authorization") {
            answer
        } else {
            Answer::new(404, "")
        }
    })
    .await;
    let seen: Arc<Mutex<Vec<Request>>> = Arc::default();
    let (of_empty, of_last) = (Arc::clone(&seen), Arc::clone(&seen));
    let empty = TestServer::start(move |request| {
        of_empty.lock().expect("not poisoned").push(request);
        Answer::new(404, "")
    })
    .await;
    let last = TestServer::of_folder(theirs.path(), move |request, answer| {
        of_last.lock().expect("not poisoned").push(request.clone());
        answer
    })
    .await;
    edit_narinfo(ours, &moved, |info| info.url = format!("{}moved.nar", empty.url));
    let keys = [key];
    let mut options = world.options(Vec::new());
    options.cache = own.cache(&keys);
    options.substituters = vec![empty.cache(&keys), last.cache(&keys)];
    world.register(&options).await;
    let Builder { node, .. } = Builder::new(options).expect("builder");
    let job = world.claim(&node).await;
    *claim.lock().expect("not poisoned") = Some(format!("Bearer {}", job.token.to_hex()));
    attempt(&node, &job).await;

    let recorded = world.recorded().completed.pop();
    let complete = recorded.unwrap_or_else(|| panic!("it failed: {:?}", world.recorded().failed));
    let nar = world.object(&complete.outputs[0].info.file_hash);
    assert!(String::from_utf8_lossy(&nar).contains("private\nmoved\n"));
    let seen = seen.lock().expect("not poisoned");
    let asked: BTreeSet<&str> = seen.iter().map(|request| request.path.as_str()).collect();
    let narinfo = format!("/{}.narinfo", moved.hash_part());
    assert!(asked.contains("/moved.nar") && asked.contains(narinfo.as_str()), "{asked:?}");
    let told: Vec<&Request> = seen.iter().filter(|request| request.header("authorization").is_some()).collect();
    assert!(told.is_empty(), "they saw a claim: {told:?}");
}

#[tokio::test]
async fn an_upstream_cache_without_the_archive_is_reported_once_and_nothing_is_said_of_ours() {
    let world = World::new().await;
    let away = Elsewhere::new(&world);
    let theirs = tempfile::tempdir().expect("folder");
    let key = away.copy_to(theirs.path());
    let hollow = TestServer::of_folder(theirs.path(), |request, answer| {
        if request.path.starts_with("/nar/") { Answer::new(404, "") } else { answer }
    })
    .await;
    world.queue_available(&[&away.input], &[&away.user]).await;
    let upstream = hollow.cache(&[key]);
    let name = upstream.url().to_string();
    let own = world.options(Vec::new()).cache.url().to_string();
    let running = Running::start_with(&world, |options| options.substituters = vec![upstream]).await;
    until("it is reported", || !world.recorded().failed.is_empty()).await;
    running.drain().await.expect("drains");
    let (failure, _) = failure_and_log(&world);
    assert_eq!(failure.kind, None, "it waits for somebody to look");
    assert!(failure.message.contains(&name) && failure.message.contains("is not there"), "{failure:?}");
    let db = &world.database.db;
    let reports = db.upstream_reports(&[name.clone(), own], 10).await.expect("reports");
    assert_eq!(reports, [(away.path, name)]);
    assert_eq!(db.missing_paths(10).await.expect("reports"), []);
}

#[tokio::test]
async fn an_archive_of_ours_that_is_not_what_was_published_is_reported_as_damaged() {
    let world = World::new().await;
    let away = Elsewhere::new(&world);
    let key = away.copy_to(world.cache_dir.path());
    edit_archive(world.cache_dir.path(), &away.path);
    world.publish(&away.input, &away.store, &away.path).await;
    world.queue_above(&[&away.user]).await;
    // One that has nothing is not to blame.
    let empty = TestServer::start(|_| Answer::new(404, "")).await;
    let (cache, upstream) = (world.options(vec![key.clone()]).cache, empty.cache(&[key]));
    let names = [cache.url().to_string(), upstream.url().to_string()];
    let running = Running::start_with(&world, |options| {
        options.cache = cache;
        options.substituters = vec![upstream];
    })
    .await;
    until("it is reported", || !world.recorded().failed.is_empty()).await;
    running.drain().await.expect("drains");
    let (failure, _) = failure_and_log(&world);
    assert_eq!(failure.kind, None);
    assert!(failure.message.contains(&format!("{} has a damaged {}", names[0], away.path)), "{failure:?}");
    let db = &world.database.db;
    assert_eq!(db.missing_paths(10).await.expect("reports"), [MissingPath { path: away.path, damaged: true }]);
    assert_eq!(db.upstream_reports(&names, 10).await.expect("reports"), []);
}

/// Other bytes of the same size.
fn edit_archive(folder: &Path, path: &StorePath) {
    let text = std::fs::read_to_string(narinfo_file(folder, path)).expect("a narinfo");
    let file = folder.join(NarInfo::parse(&text).expect("a narinfo").url);
    let bytes = std::fs::read(&file).expect("an archive");
    let edited = String::from_utf8_lossy(&bytes).replace("from elsewhere", "from somewhere");
    assert_eq!((edited.len(), edited == String::from_utf8_lossy(&bytes)), (bytes.len(), false));
    std::fs::write(file, edited).expect("written");
}

#[tokio::test]
async fn the_password_of_a_cache_is_used_and_told_to_nobody_whatever_is_wrong_with_it() {
    let world = World::new().await;
    let away = Elsewhere::new(&world);
    let theirs = tempfile::tempdir().expect("folder");
    let key = away.copy_to(theirs.path());
    // No archive where the narinfo has it, with all that one needs to ask there.
    let status = Arc::new(Mutex::new(200));
    let (answered, logins) = (Arc::clone(&status), Arc::new(Mutex::new(BTreeSet::new())));
    let seen = Arc::clone(&logins);
    let server = TestServer::of_folder(theirs.path(), move |request, answer| {
        seen.lock().expect("not poisoned").insert(request.header("authorization").map(ToOwned::to_owned));
        match *answered.lock().expect("not poisoned") {
            200 => answer,
            status => Answer::new(status, ""),
        }
    })
    .await;
    let mut url = server.url.clone();
    url.set_username("ci").expect("a user");
    url.set_password(Some("hunter2")).expect("a password");
    url.set_query(Some("sas=hunter2"));
    let gone = url.join("gone.nar?token=hunter2").expect("a URL");
    edit_narinfo(theirs.path(), &away.path, |info| info.url = gone.to_string());
    let upstream = BinaryCache::new(&url.clone().into(), vec![key]).expect("a cache");
    let (name, with_password) = (upstream.url().to_string(), url.to_string());
    world.queue_available(&[&away.input], &[&away.user]).await;
    let mut options = world.options(Vec::new());
    options.substituters = vec![upstream];
    world.register(&options).await;
    let Builder { node, .. } = Builder::new(options).expect("builder");
    let job = world.claim(&node).await;
    let check = async |expected: &str| {
        attempt(&node, &job).await;
        let (failure, log) = failure_and_log(&world);
        assert!(failure.message.contains(&name) && failure.message.contains(expected), "{failure:?}");
        assert!(log.contains(expected), "{log}");
        // And whatever else may be printed or stored of it.
        let wanted = BTreeSet::from([away.path.clone()]);
        let whole = match node.substituter.plan(&wanted).await {
            Ok(plan) => node.substituter.import(plan).await,
            Err(failure) => Err(failure),
        };
        let whole = format!("{:?}", whole.expect_err("it fails"));
        for text in [format!("{failure:?}"), log, whole] {
            assert!(!text.contains("hunter2"), "{text}");
        }
    };
    check("is not there").await;
    let db = &world.database.db;
    let names = [name.clone(), with_password];
    assert_eq!(db.upstream_reports(&names, 10).await.expect("reports"), [(away.path.clone(), name.clone())]);
    edit_narinfo(theirs.path(), &away.path, |info| {
        info.signatures.clear();
        info.sign(&SecretKey::from_seed("stranger-1", &[7; 32]).expect("a key"));
    });
    check("without a signature of a trusted key").await;
    *status.lock().expect("not poisoned") = 503;
    check("HTTP 503").await;
    assert_eq!(logins.lock().expect("not poisoned").len(), 1, "with its password each time");
    assert!(logins.lock().expect("not poisoned").iter().all(Option::is_some));
    drop(server);
    check("the connection failed").await;
    assert_eq!(db.upstream_reports(&names, 10).await.expect("reports"), [(away.path, name)]);
}
