//! Guests that want to go where they may not, and servers that treat them badly.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use harmonia_hostile_tests::{Answer, Drip, Log, ScriptedServer, World};
use harmonia_plugin_host::{HttpClientOptions, PluginSpec, Resolver, ResolverFuture};

fn allow(spec: &mut PluginSpec, hosts: &[&str]) {
    spec.allow_hosts = hosts.iter().map(|host| host.parse().expect("a host")).collect();
}

#[tokio::test]
async fn a_host_that_is_not_granted_is_named_with_the_key() {
    let world = World::new();
    let server = ScriptedServer::start().await;
    let other = ScriptedServer::start().await;
    let mut spec = world.guest("fetches");
    allow(&mut spec, &[other.url()]);
    world.load(vec![spec.clone()]).await;
    for url in [server.url(), "https://api.example/", "http://169.254.169.254/latest", "http://[::1]:5432/"] {
        let text = world.answer("fetches", url).await;
        assert!(text.contains("Denied") && text.contains("`allow_hosts` of the plugin `fetches`"), "{url}: {text}");
    }
    for url in ["file:///etc/passwd", "ftp://x/", "http://user:password@x/", "no url", "http://x:0/"] {
        let text = world.answer("fetches", url).await;
        assert!(text.contains("Invalid"), "{url}: {text}");
    }
    assert!(server.requests().is_empty() && other.requests().is_empty(), "nothing was sent anywhere");
    allow(&mut spec, &[server.url()]);
    world.load(vec![spec]).await;
    server.answer("GET", "/", Answer::text(200, "hello"));
    assert_eq!(world.answer("fetches", server.url()).await, "200 hello");
}

#[tokio::test]
async fn redirects_lead_nowhere_that_is_not_granted() {
    let world = World::new();
    let (server, other) = (ScriptedServer::start().await, ScriptedServer::start().await);
    other.answer_everything(Answer::text(200, "you should not see this"));
    let mut spec = world.guest("fetches");
    allow(&mut spec, &[server.url()]);
    world.load(vec![spec.clone()]).await;
    let elsewhere = [
        "http://10.0.0.1/",
        "http://169.254.169.254/latest/meta-data",
        "http://[::1]/",
        "http://2130706433/",
        "//127.0.0.1:1/",
        other.url(),
    ];
    for status in [301, 302, 303, 307, 308] {
        for location in elsewhere {
            server.answer("GET", "/", Answer::text(status, "").header("location", location));
            let text = world.answer("fetches", server.url()).await;
            assert!(text.contains("Denied") && text.contains("leads elsewhere"), "{status} {location}: {text}");
            assert!(text.contains("`allow_hosts` of the plugin `fetches`"), "{status} {location}: {text}");
        }
    }
    assert!(other.requests().is_empty(), "the other server never heard of it");
    // Granted, the same redirect is followed; a circle ends.
    allow(&mut spec, &[server.url(), other.url()]);
    world.load(vec![spec]).await;
    server.answer("GET", "/", Answer::text(302, "").header("location", other.url()));
    assert_eq!(world.answer("fetches", server.url()).await, "200 you should not see this");
    server.answer_everything(Answer::text(302, "").header("location", "/again"));
    let text = world.answer("fetches", server.url()).await;
    assert!(
        text.contains("Limit") && text.contains("`limits.redirects_per_request` of the plugin `fetches`"),
        "{text}"
    );
}

/// Says that every name is this machine.
struct Here;

impl Resolver for Here {
    fn resolve(&self, _: String) -> ResolverFuture<'_> {
        Box::pin(async { Ok(vec![IpAddr::V4(Ipv4Addr::LOCALHOST)]) })
    }
}

#[tokio::test]
async fn a_granted_name_with_a_private_address_is_not_called_nor_followed_to() {
    let http = HttpClientOptions { resolver: Arc::new(Here), ..HttpClientOptions::default() };
    let world = World::with(http, |store| store);
    let (server, hidden) = (ScriptedServer::start().await, ScriptedServer::start().await);
    hidden.answer_everything(Answer::text(200, "internal"));
    let name = hidden.url().replace("127.0.0.1", "forge.example");
    server.answer_everything(Answer::text(307, "").header("location", &name));
    let mut spec = world.guest("fetches");
    allow(&mut spec, &[server.url(), &name]);
    world.load(vec![spec.clone()]).await;
    for url in [name.as_str(), server.url()] {
        let text = world.answer("fetches", url).await;
        assert!(
            text.contains("Denied") && text.contains("`forge.example` resolves to 127.0.0.1 (this machine)"),
            "{text}"
        );
        // The guest's answer is the error's `Debug`, which escapes quotes.
        let told = format!("write \\\"private:{name}\\\" in `allow_hosts` of the plugin `fetches`");
        assert!(text.contains(&told), "what would grant it: {text}");
    }
    assert!(hidden.requests().is_empty(), "no connection was made");
    allow(&mut spec, &[server.url(), &format!("private:{name}")]);
    world.load(vec![spec]).await;
    assert_eq!(world.answer("fetches", &name).await, "200 internal");
}

#[tokio::test]
async fn a_drip_ends_by_the_time_of_a_request() {
    let world = World::new();
    for drip in [Drip::start().await, Drip::start_in_headers().await] {
        let mut spec = world.guest("fetches");
        allow(&mut spec, &[drip.url()]);
        spec.limits.capabilities.request_timeout_ms = 200;
        world.load(vec![spec]).await;
        assert_eq!(world.answer("fetches", drip.url()).await, "HttpError::Timeout");
    }
    assert_eq!(world.status("fetches").failures, 0, "that is the server's fault");
}

#[tokio::test]
async fn a_drip_ends_by_the_time_of_the_call() {
    let world = World::new();
    let drip = Drip::start().await;
    let mut spec = world.guest("fetches");
    allow(&mut spec, &[drip.url()]);
    spec.limits.capabilities.request_timeout_ms = 3_600_000;
    spec.limits.call.wall_ms_max = Some(200);
    world.load(vec![spec, world.guest("empty")]).await;
    let text = world.fault("fetches", drip.url()).await;
    assert!(
        text.contains("more than 200 ms") && text.contains("`limits.wall_ms_max` of the plugin `fetches`"),
        "{text}"
    );
    world.answer("empty", "").await;
}

#[tokio::test]
async fn an_answer_that_is_too_big_is_not_taken() {
    let world = World::new();
    let server = ScriptedServer::start().await;
    let mut spec = world.guest("fetches");
    allow(&mut spec, &[server.url()]);
    spec.limits.capabilities.response_body_bytes = 10_000;
    spec.limits.capabilities.response_header_bytes = 1_000;
    world.load(vec![spec]).await;
    server.answer("GET", "/", Answer::text(200, &"x".repeat(10_001)));
    let text = world.answer("fetches", server.url()).await;
    assert!(text.contains("more than 10000 bytes: `limits.response_body_bytes` of the plugin `fetches`"), "{text}");
    server.answer("GET", "/", Answer::text(200, "").header("x-long", &"x".repeat(1_001)));
    let text = world.answer("fetches", server.url()).await;
    assert!(text.contains("`limits.response_header_bytes` of the plugin `fetches`"), "{text}");
    server.answer("GET", "/", Answer::text(200, "x").header("content-encoding", "gzip"));
    assert!(world.answer("fetches", server.url()).await.contains("compressed"), "it could be a bomb");
    server.answer("GET", "/", Answer::text(200, &"x".repeat(10_000)));
    assert_eq!(world.answer("fetches", server.url()).await.len(), 10_004, "just fits");
}

#[tokio::test]
async fn a_server_that_asks_to_wait_is_left_alone() {
    let world = World::new();
    let server = ScriptedServer::start().await;
    let mut spec = world.guest("fetches");
    allow(&mut spec, &[server.url()]);
    world.load(vec![spec]).await;
    server.answer_everything(Answer::text(429, "slow down").header("retry-after", "90"));
    assert_eq!(world.answer("fetches", server.url()).await, "429 slow down");
    for _ in 0..5 {
        assert_eq!(world.answer("fetches", server.url()).await, "HttpError::RetryAfter(90)");
    }
    assert_eq!(server.requests().len(), 1);
    world.clock.advance(90);
    assert_eq!(world.answer("fetches", server.url()).await, "429 slow down");
}

#[tokio::test]
async fn requests_without_end_meet_their_number() {
    let world = World::new();
    let server = ScriptedServer::start().await;
    server.answer_everything(Answer::text(200, "more"));
    let mut spec = world.guest("fetches_forever");
    allow(&mut spec, &[server.url()]);
    world.load(vec![spec]).await;
    let text = world.answer("fetches_forever", server.url()).await;
    assert!(
        text.starts_with("30 HttpError::Limit")
            && text.contains("`limits.requests_per_call` of the plugin `fetches_forever`"),
        "{text}"
    );
    assert_eq!(server.requests().len(), 30);
}

#[tokio::test]
async fn requests_without_end_meet_the_time_of_the_call() {
    let world = World::new();
    let server = ScriptedServer::start().await;
    server.answer_everything(Answer::text(200, "more"));
    let mut spec = world.guest("fetches_forever");
    allow(&mut spec, &[server.url()]);
    spec.limits.capabilities.requests_per_call = u32::MAX;
    spec.limits.call.cpu_ms_max = Some(3_600_000);
    spec.limits.call.wall_ms_max = Some(300);
    world.load(vec![spec.clone()]).await;
    let text = world.fault("fetches_forever", server.url()).await;
    assert!(text.contains("more than 300 ms") && text.contains("`limits.wall_ms_max`"), "{text}");
    // Waiting costs a guest no processor time, so its bound must not be what ended the call.
    spec.limits.capabilities.requests_per_call = 30;
    spec.limits.call.wall_ms_max = None;
    spec.limits.capabilities.response_bytes_per_call = 10;
    world.load(vec![spec]).await;
    let text = world.answer("fetches_forever", server.url()).await;
    assert!(text.starts_with("2 HttpError::Limit") && text.contains("`limits.response_bytes_per_call`"), "{text}");
}

#[tokio::test]
async fn every_refusal_names_the_missing_grant() {
    let world = World::new();
    let log = Log::capture();
    let mut spec = world.guest("tries_everything");
    // So that the store's own bounds are what is met.
    spec.limits.call.output_bytes_max = None;
    world.load(vec![spec]).await;
    let urls = "http://127.0.0.1:1/ https://api.example/ http://169.254.169.254/latest http://localhost/";
    let told = world.answer("tries_everything", urls).await;
    let of = |name: &str| format!("`{name}` of the plugin `tries_everything` ([[plugins]])");
    let expected = [
        ("setting", "None".to_owned()),
        ("secret", of("secrets.webhook")),
        ("kept", "None".to_owned()),
        ("http://127.0.0.1:1/", of("allow_hosts")),
        ("https://api.example/", of("allow_hosts")),
        ("http://169.254.169.254/latest", of("allow_hosts")),
        ("http://localhost/", of("allow_hosts")),
        ("key", of("limits.kv_key_bytes")),
        ("value", of("limits.kv_value_bytes")),
        ("foreign", "Ok(false)".to_owned()),
    ];
    let lines: Vec<&str> = told.lines().collect();
    assert_eq!(lines.len(), expected.len(), "{told}");
    for (line, (what, text)) in lines.iter().zip(expected) {
        assert!(line.starts_with(&format!("{what}: ")) && line.contains(&text), "{what}: {line}");
    }
    assert_eq!(world.status("tries_everything").failures, 0);
    assert!(!log.text().contains("panicked"));
}
