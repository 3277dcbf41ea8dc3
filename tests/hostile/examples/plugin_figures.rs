//! Measures plugins: `./dev bench plugins`. One line a figure.
//!
//! `plugin_figures PAYLOAD [CALLS [FIGURE…]]`: PAYLOAD holds a push as GitHub delivers it; a FIGURE is `empty`, `webhook`,
//! `rank`, `reporters` or `traffic`, without any it is all of them. Start reading at [`run`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use harmonia_core::forge::WebhookRequest;
use harmonia_core::policy::{AskingNode, Candidate, Policy as _, ProjectLoad};
use harmonia_core::ports::Forge;
use harmonia_core::reporter::{Notification, NotificationKind};
use harmonia_core::{ClassId, JobId, NodeId, ProjectId, Timestamp};
use harmonia_hostile_tests::{Answer, World, ask, component};
use harmonia_plugin_harness::Harness;
use harmonia_plugin_host::{PluginLimits, PluginSpec, SecretGrant};

const SECRET: &str = "it's a secret to everybody";
/// Pairs of batches, ours and native, from which a ratio is the median.
const PAIRS: usize = 9;
/// How long each kind of traffic is measured.
const TRAFFIC: Duration = Duration::from_secs(4);

fn main() {
    let mut arguments = std::env::args().skip(1);
    let payload =
        std::fs::read(arguments.next().expect("plugin_figures PAYLOAD [CALLS]")).expect("the payload is read");
    let calls = arguments.next().map_or(20_000, |calls| calls.parse().expect("a number of calls"));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let figures: Vec<String> = arguments.collect();
    runtime.expect("a runtime").block_on(run(payload, calls, &figures));
}

async fn run(payload: Vec<u8>, calls: usize, figures: &[String]) {
    let wanted = |figure: &str| figures.is_empty() || figures.iter().any(|wanted| wanted == figure);
    if wanted("empty") {
        empty(calls).await;
    }
    if wanted("webhook") {
        webhook(payload, calls).await;
    }
    if wanted("rank") {
        rank(calls / 40).await;
    }
    if wanted("reporters") {
        reporters(calls / 20).await;
    }
    if wanted("traffic") {
        traffic().await;
    }
}

/// The guest with the limits that plugins have by default.
fn guest(world: &World, name: &str) -> PluginSpec {
    PluginSpec { limits: PluginLimits::default(), ..world.guest(name) }
}

async fn empty(calls: usize) {
    let world = World::new();
    world.load(vec![guest(&world, "empty")]).await;
    let forge = world.forge("empty");
    let times = times(calls, async || ask(&*forge, "").await.map(drop).expect("it answers")).await;
    show("empty call, fresh instance", times);
}

async fn webhook(payload: Vec<u8>, calls: usize) {
    let world = World::new();
    let mut spec = PluginSpec::new("hub", component("github"));
    let file = world.path("secret");
    std::fs::write(&file, SECRET).expect("written");
    for name in ["webhook", "key"] {
        spec.secrets.insert(name.to_owned(), SecretGrant { file: file.clone(), hosts: None });
    }
    spec.settings.insert("app_id".to_owned(), "1".to_owned());
    world.load(vec![spec]).await;
    let forge = world.forge("hub");
    let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, SECRET.as_bytes());
    let signature = aws_lc_rs::hmac::sign(&key, &payload);
    let headers = [
        ("x-github-event", "push".to_owned()),
        ("x-github-delivery", "72d3162e-cc78-11e3-81ab-4c9367dc0958".to_owned()),
        ("x-hub-signature-256", format!("sha256={}", hex::encode(signature))),
    ];
    let headers = headers.map(|(name, value)| (name.to_owned(), value)).to_vec();
    let request = WebhookRequest { headers, body: payload.clone() };
    let delivery = forge.webhook(request.clone()).await.expect("taken");
    assert_eq!(delivery.events.len(), 1, "a push");

    let mut ratios = Vec::new();
    let (mut ours, mut native) = (Vec::new(), Vec::new());
    for _ in 0..PAIRS {
        let sandboxed = times(calls / PAIRS, async || drop(forge.webhook(request.clone()).await.expect("taken"))).await;
        let alone = times(calls / PAIRS, async || {
            // The request is cloned there too.
            let request = std::hint::black_box(request.clone());
            aws_lc_rs::hmac::verify(&key, &request.body, signature.as_ref()).expect("it is signed");
            drop(std::hint::black_box(harmonia_plugin_github::webhook::events("push", &request.body).expect("a push")));
        })
        .await;
        ratios.push(median(&sandboxed).as_secs_f64() / median(&alone).as_secs_f64());
        ours.extend(sandboxed);
        native.extend(alone);
    }
    ratios.sort_by(f64::total_cmp);
    show(&format!("webhook of {} bytes", payload.len()), ours);
    show("the same natively (HMAC, JSON, events)", native);
    println!("ratio: {:.2} ({:.2} to {:.2}, {PAIRS} pairs)", ratios[PAIRS / 2], ratios[0], ratios[PAIRS - 1]);

    let started = Instant::now();
    let tasks: Vec<_> = (0..4)
        .map(|_| {
            let (forge, request) = (forge.clone(), request.clone());
            tokio::spawn(async move {
                for _ in 0..calls / 4 {
                    forge.webhook(request.clone()).await.expect("taken");
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("no panic");
    }
    println!(
        "webhooks through the plugin alone, four at once: {:.0} a second",
        calls as f64 / started.elapsed().as_secs_f64()
    );
}

async fn rank(calls: usize) {
    let world = World::new();
    world.load(vec![PluginSpec::new("policy", component("scheduler-fair"))]).await;
    let policy = world.host.policy("policy");
    let node = AskingNode { node: NodeId("node".into()), slots: 16, speed_factor: 1.0 };
    for projects in [1, 100, 1_000] {
        let loads: Vec<ProjectLoad> = (1..=projects).map(load).collect();
        let candidates: Vec<Candidate> = (1..=1_000).map(|job| candidate(job, job % projects + 1)).collect();
        let mut times = Vec::with_capacity(calls);
        for _ in 0..calls.max(20) {
            let started = Instant::now();
            let order = policy.rank(&node, &loads, &candidates).expect("an order");
            times.push(started.elapsed());
            assert_eq!(order.len(), candidates.len());
        }
        show(&format!("rank of 1000 candidates of {projects} projects"), times);
    }
}

fn load(id: i64) -> ProjectLoad {
    ProjectLoad {
        project: ProjectId(id),
        shares: 100,
        consumed_seconds: (id * 7919 % 1000) as f64,
        running: (id % 5) as u32,
    }
}

fn candidate(id: i64, project: i64) -> Candidate {
    Candidate {
        job: JobId(id),
        project: ProjectId(project),
        class: ClassId(1),
        priority: 0,
        queued_at: Timestamp::UNIX_EPOCH,
        retries: 0,
        path_length: (id % 20) as u32,
    }
}

async fn reporters(calls: usize) {
    for name in ["chat-reporter", "chat-reporter-js", "chat-reporter-py"] {
        let plugin = Harness::new(component(&format!("examples/{name}")))
            .server_setting("url", "/hook")
            .secret("token", "hunter2")
            .start()
            .await;
        plugin.server().answer_everything(Answer::text(204, ""));
        let reporter = plugin.reporter();
        for (what, kind) in [
            ("a report that is no news: nothing is sent", NotificationKind::EvaluationSucceeded),
            ("a report that is sent, to this machine", NotificationKind::BuildsFailed),
        ] {
            let times = times(calls, async || reporter.report(notification(kind)).await.expect("taken")).await;
            show(&format!("{name}, {what}"), times);
        }
    }
}

fn notification(kind: NotificationKind) -> Notification {
    Notification {
        key: "key".into(),
        kind,
        project: "owner/name".into(),
        branch: "main".into(),
        pull_request: None,
        commit: "0123456789abcdef0123456789abcdef01234567".into(),
        title: "a title".into(),
        author: "somebody".into(),
        url: "https://ci.example/evaluation/1".into(),
        succeeded: 1,
        failed: 1,
        failures: Vec::new(),
        failed_before: Some(false),
        at: Timestamp::UNIX_EPOCH,
    }
}

/// What everybody else sees while hostile calls run, with the limits that plugins have by default.
async fn traffic() {
    let one = ["spins"; 1];
    let many = ["spins", "allocates", "recurses", "spins", "allocates", "recurses", "spins", "allocates"];
    for (what, guests, calls_of_each) in [
        ("nothing hostile", &[][..], 0),
        ("8 calls of one plugin that spins", &one[..], 8),
        ("8 plugins that spin, allocate or recurse, a call of each", &many[..], 1),
    ] {
        let world = World::new();
        let hostile: Vec<PluginSpec> = guests
            .iter()
            .enumerate()
            .map(|(place, name)| PluginSpec { name: format!("{name}-{place}"), ..guest(&world, name) })
            .collect();
        let names: Vec<String> = hostile.iter().map(|spec| spec.name.clone()).collect();
        world.load([hostile, vec![guest(&world, "empty"), guest(&world, "echoes")]].concat()).await;
        let (stop, ended) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut attacks = Vec::new();
        for name in &names {
            for _ in 0..calls_of_each {
                attacks.push(tokio::spawn(attack(&world, name, stop.clone(), ended.clone())));
            }
        }
        let until = Instant::now() + TRAFFIC;
        let empty = tokio::spawn(poll(world.forge("empty"), "", until));
        let echoes = tokio::spawn(poll(world.forge("echoes"), "are you there?", until));
        let timer = tokio::spawn(async move {
            let mut late = Vec::new();
            while Instant::now() < until {
                let due = tokio::time::Instant::now() + Duration::from_millis(2);
                tokio::time::sleep_until(due).await;
                late.push(due.elapsed());
            }
            late
        });
        let (empty, echoes, timer) = tokio::join!(empty, echoes, timer);
        stop.store(true, Ordering::Relaxed);
        for attack in attacks {
            attack.await.expect("no panic");
        }
        println!("with {what} ({} hostile calls ended):", ended.load(Ordering::Relaxed));
        show("  empty call", empty.expect("no panic"));
        show("  call that echoes", echoes.expect("no panic"));
        show("  a timer of the server, late by", timer.expect("no panic"));
    }
}

/// Calls a hostile guest again and again.
fn attack(world: &World, name: &str, stop: Arc<AtomicBool>, ended: Arc<AtomicU64>) -> impl Future<Output = ()> + use<> {
    let (forge, clock) = (world.forge(name), world.clock.clone());
    async move {
        while !stop.load(Ordering::Relaxed) {
            // Past every break of the circuit: they are to run, not to be kept out.
            clock.advance(600);
            ask(&*forge, "").await.expect_err("it is stopped");
            ended.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Calls a well-behaved guest every two milliseconds.
async fn poll(forge: Arc<dyn Forge>, argument: &str, until: Instant) -> Vec<Duration> {
    let mut times = Vec::new();
    while Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(2)).await;
        let started = Instant::now();
        assert_eq!(ask(&*forge, argument).await.expect("it answers"), argument);
        times.push(started.elapsed());
    }
    times
}

async fn times(calls: usize, mut call: impl AsyncFnMut()) -> Vec<Duration> {
    for _ in 0..calls / 10 {
        call().await;
    }
    let mut times = Vec::with_capacity(calls);
    for _ in 0..calls.max(1) {
        let started = Instant::now();
        call().await;
        times.push(started.elapsed());
    }
    times
}

fn median(times: &[Duration]) -> Duration {
    let mut times = times.to_vec();
    times.sort();
    times[times.len() / 2]
}

fn show(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    println!("{what}: p50 {:.1?}, p99 {:.1?}, most {:.1?} ({} calls)", at(0.5), at(0.99), at(1.0), times.len());
}
