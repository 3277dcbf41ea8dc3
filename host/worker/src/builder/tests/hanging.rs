//! What a job leans on hangs, and does not hold it for ever.

use std::sync::Arc;

use harmonia_db::JobLimits;
use harmonia_nix::StorePath;
use tokio_util::sync::CancellationToken;

use super::super::{Builder, Slot, job};
use super::world::{World, claimed};
use super::*;
use crate::binary_cache::BinaryCache;
use crate::test_parts::Answer;

const LIMITS: JobLimits =
    JobLimits { timeout_s: 600, max_silent_s: 600, output_bytes_max: 1 << 30, log_bytes_max: 1 << 20 };

/// The derivation is in the cache only, which accepts and says nothing.
#[tokio::test]
async fn a_cache_that_says_nothing_holds_a_job_for_its_time_and_no_longer() {
    let world = World::new().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}/", listener.local_addr().expect("an address")).parse().expect("a URL");
    let accepting = tokio::spawn(async move {
        let mut held = Vec::new();
        loop {
            held.push(listener.accept().await.expect("accepted"));
        }
    });
    let mut options = world.options(Vec::new());
    options.cache = BinaryCache::new(&url, Vec::new()).expect("a cache");
    options.prepare_timeout = Duration::from_millis(300);
    let Builder { node, .. } = Builder::new(options).expect("builder");
    let slot = Slot::take(&node.slots);
    let drv = StorePath::parse("/nix/store/00000000000000000000000000000000-elsewhere.drv").expect("a path");
    let run = job::run(Arc::clone(&node), claimed(&drv, LIMITS), slot, CancellationToken::new());
    // Without the clock the cache alone would be waited for through all its tries.
    tokio::time::timeout(Duration::from_secs(20), run).await.expect("it ends");
    let failure = world.recorded().failed.pop().expect("a signer was told").failure;
    accepting.abort();
    assert_eq!(failure.kind, None, "another node may try");
    assert!(failure.message.contains("its inputs were not ready within 0.3 s"), "{}", failure.message);
}

/// The end of a job whose signer takes everything but says nothing of it.
#[tokio::test]
async fn a_signer_that_says_nothing_holds_a_job_for_its_time_and_no_longer() {
    let world = World::new().await;
    let drv = world.daemon.store.instantiate(&derivation("built", "echo > $out"));
    world.queue(&[&drv]).await;
    world.script(|request, _| (request.path == "/api/build-complete").then(Answer::silence));
    let mut options = world.options(Vec::new());
    options.upload_timeout = Duration::from_millis(300);
    world.register(&options).await;
    let Builder { node, .. } = Builder::new(options).expect("builder");
    let job = world.claim(&node).await;
    let slot = Slot::take(&node.slots);
    let run = job::run(Arc::clone(&node), job, slot, CancellationToken::new());
    tokio::time::timeout(PATIENCE, run).await.expect("it ends");
    let failure = world.recorded().failed.pop().expect("a signer was told").failure;
    assert_eq!(failure.kind, None, "another node may try");
    assert!(failure.message.contains("its outputs were not published within 0.3 s"), "{}", failure.message);
    assert_eq!(node.slots.uploading(), 0);
}
