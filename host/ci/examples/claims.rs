//! Claims as fast as they go: `bench/claims.sh` fills the databases and runs this.
//!
//! claims --url URL --claimers 16 --seconds 10 --slots 1 [--policy FILE] [--server-pid PID]
//!
//! Each claimer is a node with its own connection, and claims with the builder's own [`Claimer`]; what it claims goes on
//! building for ever. Prints one line: claims a second, latencies, how the policy did, and what a claim cost in processor
//! time, here and, of the server with that process id, in all its processes: that is what others on the machine change least.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use harmonia_core::policy::{FirstInFirstOut, Policy};
use harmonia_core::{Capability, ClassId, Incarnation, NodeId, SystemClock, chain};
use harmonia_db::{Db, DbOptions, NodeRegistration};
use harmonia_plugin_host::{HostOptions, HttpClient, HttpClientOptions, MemoryStore, PluginHost, PluginSpec};
use harmonia_worker::builder::Claimer;

type Error = Box<dyn std::error::Error + Send + Sync>;

const SYSTEM: &str = "x86_64-linux";
const RUN: Incarnation = Incarnation(1);

struct Arguments {
    url: String,
    claimers: u32,
    seconds: u64,
    slots: u32,
    policy: Option<PathBuf>,
    server_pid: Option<u32>,
}

/// A claimer with what it learnt, and the classes that it claims of.
type Warm = (Claimer, Vec<ClassId>);

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
        Arguments { url: String::new(), claimers: 16, seconds: 10, slots: 1, policy: None, server_pid: None };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let value = words.next().ok_or_else(|| format!("{word} needs a value"))?;
        match word.as_str() {
            "--url" => found.url = value,
            "--claimers" => found.claimers = value.parse()?,
            "--seconds" => found.seconds = value.parse()?,
            "--slots" => found.slots = value.parse()?,
            "--policy" => found.policy = Some(value.into()),
            "--server-pid" => found.server_pid = Some(value.parse()?),
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
    let Arguments { url, claimers: count, seconds, slots, policy, server_pid } = arguments;
    let folder = tempfile::tempdir()?;
    let policy: Arc<dyn Policy> = match policy {
        Some(file) => component(file, &folder).await?,
        None => Arc::new(FirstInFirstOut),
    };
    let mut claimers = Vec::new();
    for number in 0..count {
        let db = Db::connect(&DbOptions { url: url.parse()?, max_connections: 1 }).await?;
        let node = NodeId(format!("bench-{number}"));
        db.register_node(&NodeRegistration {
            id: node.clone(),
            incarnation: RUN,
            secret: harmonia_core::NodeSecret([0; 32]),
            capabilities: vec![Capability::Builder],
            endpoint: None,
            systems: vec![SYSTEM.to_owned()],
            features: Vec::new(),
            max_jobs: slots,
            max_evals: 0,
            version: "bench".to_owned(),
        })
        .await?;
        let classes = db.resolve_classes(&[SYSTEM.to_owned()], &[]).await?;
        claimers.push((Claimer::new(db, node, RUN, Arc::clone(&policy)), classes));
    }
    // Connections, their plans and what claimers learnt of each other are warm, as a builder's are.
    let warm_up = Duration::from_secs(3);
    let (_, claimers) = measure(claimers, slots, warm_up).await?;
    let time = Duration::from_secs(seconds);
    let before = (own_cpu_ms(), server_pid.map_or(0.0, server_cpu_ms));
    let (mut all, _) = measure(claimers, slots, time).await?;
    let (own, server) = (own_cpu_ms() - before.0, server_pid.map_or(0.0, server_cpu_ms) - before.1);
    let each = all.claims.max(1) as f64;
    all.latencies_ms.sort_unstable_by(f64::total_cmp);
    let rank = |part: f64| {
        let place = (part * all.latencies_ms.len() as f64) as usize;
        all.latencies_ms.get(place.min(all.latencies_ms.len().saturating_sub(1))).copied().unwrap_or_default()
    };
    println!(
        "{:.0} claims/s ({} claims in {} s, {} calls; p50 {:.1} ms, p99 {:.1} ms, {:.2} looks a call, {} empty, {} fallbacks; \
         processor time a claim: server {:.3} ms, client {:.3} ms)",
        all.claims as f64 / time.as_secs_f64(),
        all.claims,
        seconds,
        all.latencies_ms.len(),
        rank(0.5),
        rank(0.99),
        all.looks as f64 / all.latencies_ms.len().max(1) as f64,
        all.empty,
        all.fallbacks,
        server / each,
        own / each,
    );
    Ok(())
}

fn own_cpu_ms() -> f64 {
    cpu_ms("self", false)
}

/// Of the server's first process, all that it ended, and all that run.
fn server_cpu_ms(pid: u32) -> f64 {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let running: f64 = children.split_whitespace().map(|child| cpu_ms(child, false)).sum();
    running + cpu_ms(&pid.to_string(), true)
}

/// Processor time of one process from `/proc/PID/stat` (user and system, fields 14 and 15; of ended children, 16 and 17), in
/// ticks that Linux shows as a hundredth of a second.
fn cpu_ms(process: &str, with_ended_children: bool) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    // The name, in parentheses, may hold spaces.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields).split_whitespace().skip(11);
    fields.take(if with_ended_children { 4 } else { 2 }).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>()
        * 10.0
}

async fn measure(claimers: Vec<Warm>, slots: u32, time: Duration) -> Result<(Measured, Vec<Warm>), Error> {
    let end = Instant::now() + time;
    let mut tasks = tokio::task::JoinSet::new();
    for (mut claimer, classes) in claimers {
        tasks.spawn(async move {
            let mut measured = Measured::default();
            while Instant::now() < end {
                let start = Instant::now();
                let claims = claimer.claim(&classes, slots, start).await;
                if let Some(error) = claims.error {
                    return Err(error.into());
                }
                measured.latencies_ms.push(start.elapsed().as_secs_f64() * 1e3);
                measured.claims += claims.jobs.len();
                measured.looks += claims.looks as usize;
                measured.empty += usize::from(claims.jobs.is_empty());
                measured.fallbacks += usize::from(claims.policy.flatten().is_some());
            }
            Ok::<_, Error>((measured, (claimer, classes)))
        });
    }
    let (mut all, mut claimers) = (Measured::default(), Vec::new());
    while let Some(measured) = tasks.join_next().await {
        let (measured, claimer) = measured??;
        claimers.push(claimer);
        all.claims += measured.claims;
        all.looks += measured.looks;
        all.empty += measured.empty;
        all.fallbacks += measured.fallbacks;
        all.latencies_ms.extend(measured.latencies_ms);
    }
    Ok((all, claimers))
}
