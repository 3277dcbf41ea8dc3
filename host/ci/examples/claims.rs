//! Claims as fast as they go: `bench/claims.sh` fills the databases and runs this.
//!
//! claims --url URL --claimers 16 --seconds 10 --slots 1 [--policy FILE] [--give-back true]
//!
//! Each claimer is a node of its own, and does what a builder does: heads of the queue, the policy's order, claim. What it
//! claims goes on building for ever, or is given back at once, so that a short queue stays as long as it is (that is not
//! part of the latency, but takes its time). Prints one line: claims a second, latencies, and how the policy did.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use harmonia_core::policy::{AskingNode, FirstInFirstOut, Policy, order_candidates};
use harmonia_core::{Capability, ClaimToken, Incarnation, NodeId, SystemClock, chain};
use harmonia_db::{Db, DbOptions, NodeRegistration};
use harmonia_plugin_host::{HostOptions, HttpClient, HttpClientOptions, MemoryStore, PluginHost, PluginSpec};

type Error = Box<dyn std::error::Error + Send + Sync>;

const SYSTEM: &str = "x86_64-linux";
const RUN: Incarnation = Incarnation(1);
/// As in the builder.
const HEADS_MAX: u32 = 64;
const LOOKS_MAX: u32 = 4;

struct Arguments {
    url: String,
    claimers: u32,
    seconds: u64,
    slots: u32,
    policy: Option<PathBuf>,
    give_back: bool,
}

#[derive(Default)]
struct Measured {
    claims: usize,
    /// Of each claim call as a whole, in milliseconds.
    latencies_ms: Vec<f64>,
    looks: usize,
    empty: usize,
    fallbacks: usize,
}

#[tokio::main]
async fn main() -> ExitCode {
    match arguments() {
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
        Ok(arguments) => match run(arguments).await {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("error: {}", chain(&*error));
                ExitCode::FAILURE
            }
        },
    }
}

fn arguments() -> Result<Arguments, Error> {
    let mut found =
        Arguments { url: String::new(), claimers: 16, seconds: 10, slots: 1, policy: None, give_back: false };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let value = words.next().ok_or_else(|| format!("{word} needs a value"))?;
        match word.as_str() {
            "--url" => found.url = value,
            "--claimers" => found.claimers = value.parse()?,
            "--seconds" => found.seconds = value.parse()?,
            "--slots" => found.slots = value.parse()?,
            "--policy" => found.policy = Some(value.into()),
            "--give-back" => found.give_back = value.parse()?,
            _ => return Err(format!("{word} is unknown").into()),
        }
    }
    if found.url.is_empty() || found.claimers == 0 || found.slots == 0 {
        return Err("--url, and at least one claimer and slot".into());
    }
    Ok(found)
}

async fn component(file: PathBuf, folder: &tempfile::TempDir) -> Result<Arc<dyn Policy>, Error> {
    let clock = Arc::new(SystemClock);
    let host = PluginHost::new(HostOptions {
        cache_folder: folder.path().join("compiled"),
        scratch_folder: folder.path().join("scratch"),
        store: Arc::new(MemoryStore::new(clock.clone())),
        clock,
        http: HttpClient::new(&HttpClientOptions::default())?,
    })?;
    match host.reload(vec![PluginSpec::new("policy", file)]).await.refused.pop() {
        Some((_, error)) => Err(error.into()),
        None => Ok(Arc::new(host.policy("policy"))),
    }
}

async fn run(arguments: Arguments) -> Result<(), Error> {
    let Arguments { url, claimers, seconds, slots, policy, give_back } = arguments;
    let folder = tempfile::tempdir()?;
    let policy: Arc<dyn Policy> = match policy {
        Some(file) => component(file, &folder).await?,
        None => Arc::new(FirstInFirstOut),
    };
    let db = Db::connect(&DbOptions { url, max_connections: claimers }).await?;
    let mut nodes = Vec::new();
    for number in 0..claimers {
        let node = NodeId(format!("bench-{number}"));
        db.register_node(&NodeRegistration {
            id: node.clone(),
            incarnation: RUN,
            capabilities: vec![Capability::Builder],
            endpoint: None,
            systems: vec![SYSTEM.to_owned()],
            features: Vec::new(),
            max_jobs: slots,
            max_evals: 0,
            version: "bench".to_owned(),
        })
        .await?;
        nodes.push(node);
    }
    // Connections and their plans are warm, as a builder's are.
    let warm_up = Duration::from_secs(1);
    measure(&db, &nodes, &policy, (slots, give_back), warm_up).await?;
    let time = Duration::from_secs(seconds);
    let mut all = measure(&db, &nodes, &policy, (slots, give_back), time).await?;
    all.latencies_ms.sort_unstable_by(f64::total_cmp);
    let rank = |part: f64| {
        let place = (part * all.latencies_ms.len() as f64) as usize;
        all.latencies_ms.get(place.min(all.latencies_ms.len().saturating_sub(1))).copied().unwrap_or_default()
    };
    println!(
        "{:.0} claims/s ({} claims in {} s, {} calls; p50 {:.1} ms, p99 {:.1} ms, {:.2} looks a call, {} empty, {} fallbacks)",
        all.claims as f64 / time.as_secs_f64(),
        all.claims,
        seconds,
        all.latencies_ms.len(),
        rank(0.5),
        rank(0.99),
        all.looks as f64 / all.latencies_ms.len().max(1) as f64,
        all.empty,
        all.fallbacks,
    );
    Ok(())
}

async fn measure(
    db: &Db,
    nodes: &[NodeId],
    policy: &Arc<dyn Policy>,
    (slots, give_back): (u32, bool),
    time: Duration,
) -> Result<Measured, Error> {
    let end = Instant::now() + time;
    let mut tasks = tokio::task::JoinSet::new();
    for node in nodes.iter().cloned() {
        let (db, policy) = (db.clone(), Arc::clone(policy));
        tasks.spawn(async move {
            let classes = db.resolve_classes(&[SYSTEM.to_owned()], &[]).await?;
            let mut measured = Measured::default();
            while Instant::now() < end {
                let start = Instant::now();
                let mut claimed = 0;
                let mut held = Vec::new();
                let mut per_project = slots;
                for _ in 0..LOOKS_MAX {
                    let wanted = slots - claimed;
                    measured.looks += 1;
                    let heads = db.queue_heads(&classes, per_project).await?;
                    let asking = AskingNode { node: node.clone(), slots: wanted, speed_factor: 1.0 };
                    let policy = Arc::clone(&policy);
                    let (order, error) = tokio::task::spawn_blocking(move || {
                        order_candidates(&*policy, &asking, &heads.projects, &heads.candidates)
                    })
                    .await?;
                    measured.fallbacks += usize::from(error.is_some());
                    let tokens: Vec<ClaimToken> =
                        (0..wanted).map(|_| ClaimToken::from_random(rand::random())).collect();
                    let jobs = db.claim_jobs(&node, RUN, &order, &tokens).await?;
                    claimed += jobs.len() as u32;
                    held.extend(jobs);
                    if claimed >= slots || order.len() < wanted as usize || per_project >= HEADS_MAX {
                        break;
                    }
                    per_project = (per_project * 2).min(HEADS_MAX);
                }
                measured.latencies_ms.push(start.elapsed().as_secs_f64() * 1e3);
                measured.claims += claimed as usize;
                measured.empty += usize::from(claimed == 0);
                if give_back {
                    for job in held {
                        db.release_attempt(job.attempt, &job.token, "measured").await?;
                    }
                }
            }
            Ok::<_, Error>(measured)
        });
    }
    let mut all = Measured::default();
    while let Some(measured) = tasks.join_next().await {
        let measured = measured??;
        all.claims += measured.claims;
        all.looks += measured.looks;
        all.empty += measured.empty;
        all.fallbacks += measured.fallbacks;
        all.latencies_ms.extend(measured.latencies_ms);
    }
    Ok(all)
}
