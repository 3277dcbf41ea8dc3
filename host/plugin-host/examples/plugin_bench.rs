//! Measures calls of plugins: `cargo run --release -p harmonia-plugin-host --example plugin_bench -- KIND FILE [OPTION…]`.
//!
//! `reporter FILE` measures the smallest call of a reporter, `policy FILE` ranks 1,000 candidates of 1,000 projects, and
//! `webhook FILE secret=NAME body=FILE signature=HEADER [header=NAME:VALUE…] [setting=NAME:VALUE…]` delivers a signed body.
//! Options of all: `calls=N` (default 20000). Prints the median, p99 and calls a second, alone and by four at once.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use harmonia_core::forge::WebhookRequest;
use harmonia_core::policy::{AskingNode, Candidate, FirstInFirstOut, Policy, ProjectLoad};
use harmonia_core::ports::Plugins;
use harmonia_core::reporter::{Notification, NotificationKind};
use harmonia_core::{ClassId, JobId, NodeId, ProjectId, SystemClock, Timestamp};
use harmonia_plugin_host::{
    HostOptions, HttpClient, HttpClientOptions, MemoryStore, PluginHost, PluginSpec, SecretGrant,
};

type AnyError = Box<dyn std::error::Error + Send + Sync>;

const USAGE: &str =
    "reporter FILE | policy FILE | webhook FILE secret=NAME body=FILE signature=HEADER [header=NAME:VALUE]";

fn main() -> Result<(), AnyError> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(run())
}

struct Options(Vec<String>);

impl Options {
    fn all(&self, key: &str) -> impl Iterator<Item = &str> {
        let prefix = format!("{key}=");
        self.0.iter().filter_map(move |option| option.strip_prefix(&prefix))
    }

    fn one(&self, key: &str) -> Result<&str, AnyError> {
        self.all(key).next().ok_or_else(|| format!("{key}= is missing: {USAGE}").into())
    }

    fn pairs(&self, key: &str) -> Result<Vec<(String, String)>, AnyError> {
        let pair = |text: &str| text.split_once(':').map(|(name, value)| (name.to_owned(), value.to_owned()));
        self.all(key).map(|text| pair(text).ok_or_else(|| format!("{key}=NAME:VALUE, not {text}").into())).collect()
    }
}

async fn run() -> Result<(), AnyError> {
    let mut arguments = std::env::args().skip(1);
    let (Some(kind), Some(file)) = (arguments.next(), arguments.next()) else { return Err(USAGE.into()) };
    let options = Options(arguments.collect());
    let calls: usize = options.all("calls").next().unwrap_or("20000").parse()?;
    let folder = tempfile::tempdir()?;
    let host = PluginHost::new(HostOptions {
        cache_folder: folder.path().join("cache"),
        scratch_folder: folder.path().join("scratch"),
        store: Arc::new(MemoryStore::new(Arc::new(SystemClock))),
        clock: Arc::new(SystemClock),
        http: HttpClient::new(&HttpClientOptions::default())?,
    })?;
    let mut spec = PluginSpec::new("measured", &file);
    spec.settings = options.pairs("setting")?.into_iter().collect();
    let secret_file = folder.path().join("secret");
    std::fs::write(&secret_file, SECRET)?;
    for name in options.all("secret") {
        spec.secrets.insert(name.to_owned(), SecretGrant { file: secret_file.clone(), hosts: None });
    }
    spec.limits.capabilities.log_lines_per_minute = u32::MAX;
    let loading = Instant::now();
    if let Some((_, error)) = host.reload(vec![spec]).await.refused.first() {
        return Err(harmonia_core::chain(error).into());
    }
    println!("compiled and loaded in {:.1?}", loading.elapsed());
    match kind.as_str() {
        "reporter" => {
            let reporter = host.reporter("measured").ok_or("no reporter")?;
            measure("report", calls, async || Ok(reporter.report(notification()).await?)).await?;
            at_once(calls, move || {
                let reporter = reporter.clone();
                async move { Ok(reporter.report(notification()).await?) }
            })
            .await
        }
        "policy" => policy(&host.policy("measured"), calls),
        "webhook" => webhook(&host, &options, calls).await,
        _ => Err(USAGE.into()),
    }
}

const SECRET: &str = "it's a secret to everybody";

async fn webhook(host: &PluginHost, options: &Options, calls: usize) -> Result<(), AnyError> {
    let forge = host.forge("measured").ok_or("no forge")?;
    let body = std::fs::read(Path::new(options.one("body")?))?;
    let signature = options.one("signature")?.to_lowercase();
    let prefix = if signature.ends_with("-256") { "sha256=" } else { "" };
    let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, SECRET.as_bytes());
    let mut headers = options.pairs("header")?;
    headers.push((signature, format!("{prefix}{}", hex::encode(aws_lc_rs::hmac::sign(&key, &body)))));
    let request = WebhookRequest { headers, body };
    let delivery = forge.webhook(request.clone()).await?;
    println!("{} bytes are {} events", request.body.len(), delivery.events.len());
    let native = median(calls, || {
        let mac = aws_lc_rs::hmac::sign(&key, &request.body);
        let value: serde_json::Value = serde_json::from_slice(&request.body)?;
        std::hint::black_box((mac, value));
        Ok(())
    })?;
    println!("natively, HMAC and JSON alone: {native:.1?}");
    measure("webhook", calls, async || {
        forge.webhook(request.clone()).await?;
        Ok(())
    })
    .await?;
    at_once(calls, move || {
        let (forge, request) = (forge.clone(), request.clone());
        async move {
            forge.webhook(request).await?;
            Ok(())
        }
    })
    .await
}

fn policy(policy: &dyn Policy, calls: usize) -> Result<(), AnyError> {
    let node = AskingNode { node: NodeId("node".into()), slots: 16, speed_factor: 1.0 };
    let projects: Vec<ProjectLoad> = (1..=1000)
        .map(|id| ProjectLoad {
            project: ProjectId(id),
            shares: 100,
            consumed_seconds: (id * 7919 % 1000) as f64,
            running: (id % 5) as u32,
        })
        .collect();
    for count in [0, 64, 1000] {
        let candidates: Vec<Candidate> = (1..=count).map(candidate).collect();
        let projects = &projects[..projects.len().min(candidates.len())];
        let calls = calls / if count > 100 { 10 } else { 1 };
        let ours = times(calls, || policy.rank(&node, projects, &candidates).map(drop).map_err(Into::into))?;
        print(&format!("rank of {count} candidates of {} projects", projects.len()), ours);
        let first = median(calls, || FirstInFirstOut.rank(&node, projects, &candidates).map(drop).map_err(Into::into))?;
        println!("  natively, first in, first out: {first:.1?}");
    }
    let charges: Vec<(ProjectLoad, f64)> = projects.into_iter().map(|load| (load, 10.0)).collect();
    print("charge of 1000 projects", times(calls / 10, || policy.charge(&charges).map(drop).map_err(Into::into))?);
    Ok(())
}

fn candidate(id: i64) -> Candidate {
    Candidate {
        job: JobId(id),
        project: ProjectId(id),
        class: ClassId(1),
        priority: 0,
        queued_at: Timestamp::UNIX_EPOCH,
        retries: 0,
        path_length: (id % 20) as u32,
    }
}

fn notification() -> Notification {
    Notification {
        key: "key".into(),
        kind: NotificationKind::BuildsSucceeded,
        project: "owner/name".into(),
        branch: "main".into(),
        pull_request: None,
        commit: "0123456789abcdef0123456789abcdef01234567".into(),
        title: "a title".into(),
        author: "somebody".into(),
        url: "https://ci.example/evaluation/1".into(),
        succeeded: 1,
        failed: 0,
        failures: Vec::new(),
        failed_before: Some(false),
        at: Timestamp::UNIX_EPOCH,
    }
}

async fn measure(what: &str, calls: usize, call: impl AsyncFn() -> Result<(), AnyError>) -> Result<(), AnyError> {
    let mut times = Vec::with_capacity(calls);
    for _ in 0..calls / 10 {
        call().await?;
    }
    for _ in 0..calls {
        let started = Instant::now();
        call().await?;
        times.push(started.elapsed());
    }
    print(what, times);
    Ok(())
}

async fn at_once<F>(calls: usize, call: impl Fn() -> F + Clone + Send + 'static) -> Result<(), AnyError>
where
    F: Future<Output = Result<(), AnyError>> + Send,
{
    let started = Instant::now();
    let tasks: Vec<_> = (0..4)
        .map(|_| {
            let call = call.clone();
            tokio::spawn(async move {
                for _ in 0..calls / 4 {
                    call().await?;
                }
                Ok::<(), AnyError>(())
            })
        })
        .collect();
    for task in tasks {
        task.await??;
    }
    println!("  four at once: {:.0} calls/s", calls as f64 / started.elapsed().as_secs_f64());
    Ok(())
}

fn times(calls: usize, mut call: impl FnMut() -> Result<(), AnyError>) -> Result<Vec<Duration>, AnyError> {
    for _ in 0..calls / 10 {
        call()?;
    }
    let one = |_| {
        let started = Instant::now();
        call()?;
        Ok(started.elapsed())
    };
    (0..calls.max(1)).map(one).collect()
}

fn median(calls: usize, call: impl FnMut() -> Result<(), AnyError>) -> Result<Duration, AnyError> {
    let mut times = times(calls, call)?;
    times.sort();
    Ok(times[times.len() / 2])
}

fn print(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    println!("{what}: p50 {:.1?}, p99 {:.1?}, least {:.1?} ({} calls)", at(0.5), at(0.99), at(0.0), times.len());
}
