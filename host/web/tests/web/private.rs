//! A private project: its workers and whoever has a token see it, and to nobody else does it exist, at no address.

use std::time::Duration;

use base64::Engine as _;
use harmonia_core::api::ProjectChanges;
use harmonia_db::testing::random_token;
use reqwest::{Method, StatusCode};

use crate::cache::{Client, assert_success};
use crate::world::{Attempt, Drv, Nar, NewEvaluation, Running, TOKEN, World, routes, secret_key};

const PROJECT: &str = "local/hush-project";
/// What no stranger may read anywhere: the project, its derivations, the commit's title and author, what the build said.
const SECRETS: [&str; 5] = ["hush-project", "hush-drv", "hush-title", "hush-author", "hush-log"];

struct Secret {
    world: World,
    evaluation: Running,
    drv: Drv,
    nar: Nar,
    attempt: Attempt,
    /// Is building, for pages that show what runs.
    running: Attempt,
}

impl Secret {
    async fn start() -> Self {
        let world = World::start().await;
        let new = NewEvaluation { project: PROJECT, title: "hush-title", author: "hush-author", branch: "main" };
        let evaluation = world.begin(new).await;
        turn(&world, false).await;
        let (drv, waits) = (Drv::new("hush-drv", &[]), Drv::new("hush-drv-runs", &[]));
        world.insert(&evaluation, &[&drv, &waits], &[("checks.wrong", "error: hush-drv")]).await;
        world.db().append_evaluation_log(evaluation.id, &evaluation.token, "hush-log\n").await.expect("logged");
        let nar = Nar::file(b"hush");
        let attempt = world.build(&drv, &nar, &[], "hush-log\n").await;
        let running = world.claim(&waits).await;
        world.tail(&running, 0, b"hush-log\n").await;
        world.finish(&evaluation).await;
        Self { world, evaluation, drv, nar, attempt, running }
    }

    /// Every address there is, with everything of the project put in where something can be put in.
    fn addresses(&self) -> Vec<String> {
        let (id, build, runs) = (self.evaluation.id, self.attempt.job, self.running.job);
        let hash = self.drv.output("out").hash_part().to_owned();
        let base = self.drv.path.base_name().to_owned();
        let numbers = [id.to_string(), build.to_string(), runs.to_string()];
        let files = [format!("{hash}.narinfo"), format!("{hash}.ls"), self.nar.file_name(), format!("{base}.zst")];
        let pages = [
            format!("{PROJECT}/"),
            PROJECT.to_owned(),
            format!("{PROJECT}/eval/{id}"),
            format!("eval/{id}"),
            format!("{PROJECT}/build/{build}"),
            format!("{PROJECT}/build/{runs}"),
            format!("build/{build}"),
            format!("build/{runs}"),
            format!("-/build/{build}"),
        ];
        let queries = [
            String::new(),
            format!("?project={PROJECT}"),
            "?q=hush-drv".to_owned(),
            "?q=checks.hush-drv".to_owned(),
            format!("?q={build}"),
            format!("?q={base}"),
            "?search=hush".to_owned(),
            format!("?attempt={}", self.attempt.id),
        ];
        let mut addresses = Vec::new();
        for route in routes() {
            let values: Vec<String> = match route.split_once('{').map(|(_, rest)| rest.split('}').next().unwrap_or(""))
            {
                None => vec![route.clone()],
                Some(name) => {
                    let put = |value: &String| route.replace(&format!("{{{name}}}"), value);
                    match name {
                        "id" | "kind" => numbers.iter().map(put).collect(),
                        "file" => files.iter().map(put).collect(),
                        "drv" => vec![put(&base)],
                        "*path" => pages.iter().map(put).collect(),
                        "*name" => vec![put(&PROJECT.to_owned())],
                        "forge" => vec![put(&crate::forge::FORGE.to_owned())],
                        other => panic!("{route}: what of the project belongs into {{{other}}}?"),
                    }
                }
            };
            for value in values {
                addresses.extend(queries.iter().map(|query| format!("{}{query}", value.replace("{id}", &numbers[1]))));
            }
        }
        addresses
    }
}

async fn turn(world: &World, public: bool) {
    let changes = ProjectChanges { is_public: Some(public), ..ProjectChanges::default() };
    world.db().set_project(PROJECT, &changes, "me").await.expect("set");
}

/// What is shown of an answer: its body without the address that was asked for, which error pages may not repeat either.
async fn shown(world: &World, address: &str, accept: &str, token: Option<&str>) -> (StatusCode, String) {
    let request = world.request(Method::GET, address).header("accept", accept);
    let request = match token {
        Some(token) => request.bearer_auth(token),
        None => request,
    };
    let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build().expect("a client");
    let mut response = client.execute(request.build().expect("a request")).await.expect("answered");
    let status = response.status();
    let mut text: String = response.headers().values().filter_map(|value| value.to_str().ok()).collect();
    // Live streams do not end: their first pieces are enough.
    let read = async {
        while let Ok(Some(piece)) = response.chunk().await {
            text.push_str(&String::from_utf8_lossy(&piece));
        }
    };
    let patience = if accept == "text/event-stream" { Duration::from_millis(300) } else { Duration::from_secs(30) };
    let _ = tokio::time::timeout(patience, read).await;
    (status, text)
}

#[tokio::test]
async fn to_a_stranger_it_exists_at_no_address() {
    let secret = Secret::start().await;
    let hash = secret.drv.output("out").hash_part().to_owned();
    let mut seen_with_token = 0;
    for address in secret.addresses() {
        let (status, text) = shown(&secret.world, &address, "*/*", None).await;
        assert!(!status.is_server_error(), "{address}: {status}");
        for word in SECRETS.iter().copied().chain([hash.as_str()]) {
            assert!(!text.contains(word), "{address} shows '{word}' to everybody ({status}):\n{text}");
        }
        if address.contains(secret.nar.file_name().as_str()) {
            assert_eq!(status, StatusCode::NOT_FOUND, "{address}");
        }
        let (_, text) = shown(&secret.world, &address, "*/*", Some(TOKEN)).await;
        seen_with_token += usize::from(SECRETS.iter().any(|word| text.contains(word)));
    }
    assert!(seen_with_token > 40, "with a token {seen_with_token} addresses show it");
    for job in [secret.attempt.job, secret.running.job] {
        let address = format!("/api/v1/builds/{job}/log");
        let (status, text) = shown(&secret.world, &address, "text/event-stream", None).await;
        assert!(status == StatusCode::NOT_FOUND && !text.contains("hush"), "{address}: {status} {text}");
        // Nor does it help that somebody else watches already.
        let watching = secret.world.request(Method::GET, &address).header("accept", "text/event-stream");
        let watching = watching.bearer_auth(TOKEN).send().await.expect("answered");
        assert_eq!(watching.status(), StatusCode::OK);
        let (status, _) = shown(&secret.world, &address, "text/event-stream", None).await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{address}");
    }
    secret.world.stop().await;
}

/// Sums tell that something is there as well as names do.
#[tokio::test]
async fn to_a_stranger_nothing_is_counted() {
    let secret = Secret::start().await;
    let world = &secret.world;
    // One more that waits, and an evaluation that does.
    let new = NewEvaluation { project: PROJECT, title: "hush-title", author: "hush-author", branch: "other" };
    let evaluation = world.begin(new).await;
    world.insert(&evaluation, &[&Drv::new("hush-drv-waits", &[])], &[]).await;
    let read = async |path: &str, token: Option<&str>| -> serde_json::Value {
        let (status, _) = shown(world, path, "*/*", token).await;
        assert_eq!(status, StatusCode::OK, "{path}");
        let request = world.request(Method::GET, path);
        let request = if let Some(token) = token { request.bearer_auth(token) } else { request };
        request.send().await.expect("answered").json().await.expect("JSON")
    };
    let counts = |value: &serde_json::Value| -> u64 {
        value.as_object().expect("an object").values().map(|count| count.as_u64().expect("a number")).sum()
    };
    for (token, jobs, evaluations) in [(None, 0, 0), (Some(TOKEN), 3, 1)] {
        let status = read("/api/v1/status", token).await;
        assert_eq!(counts(&status["jobs"]), jobs, "{status}");
        let load = ["evaluations_queued", "evaluations_running"].map(|name| status[name].as_u64().expect("a number"));
        assert_eq!(load.iter().sum::<u64>(), evaluations, "{status}");
        let queue = read("/api/v1/queue", token).await;
        assert_eq!(counts(&queue["counts"]), jobs, "{queue}");
    }
    secret.world.stop().await;
}

/// Whoever watches when a project turns private sees no more of it.
#[tokio::test]
async fn a_live_log_ends_for_strangers_when_its_project_turns_private() {
    let secret = Secret::start().await;
    let world = &secret.world;
    turn(world, true).await;
    let address = format!("/api/v1/builds/{}/log", secret.running.job);
    becomes(world, &address, StatusCode::OK).await;
    let open = async |token: Option<&str>| {
        let request = world.request(Method::GET, &address).header("accept", "text/event-stream");
        let request = if let Some(token) = token { request.bearer_auth(token) } else { request };
        let answer = request.send().await.expect("answered");
        assert_eq!(answer.status(), StatusCode::OK);
        answer
    };
    let (mut stranger, mut insider) = (open(None).await, open(Some(TOKEN)).await);
    for stream in [&mut stranger, &mut insider] {
        until(stream, "hush-log").await;
    }
    turn(world, false).await;
    let rest = tokio::time::timeout(Duration::from_secs(30), rest(&mut stranger)).await.expect("it ends");
    world.tail(&secret.running, 9, b"hush-more\n").await;
    assert!(!rest.contains("hush-more"), "{rest}");
    until(&mut insider, "hush-more").await;
    let (status, _) = shown(world, &address, "text/event-stream", None).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    secret.world.stop().await;
}

/// Reads a live stream until it has said this.
async fn until(stream: &mut reqwest::Response, word: &str) {
    let mut text = String::new();
    let read = async {
        while !text.contains(word) {
            text.push_str(&String::from_utf8_lossy(&stream.chunk().await.expect("a piece").expect("more")));
        }
    };
    tokio::time::timeout(Duration::from_secs(30), read).await.unwrap_or_else(|_| panic!("it never says {word}"));
}

/// All that a stream still says, to its end.
async fn rest(stream: &mut reqwest::Response) -> String {
    let mut text = String::new();
    while let Ok(Some(piece)) = stream.chunk().await {
        text.push_str(&String::from_utf8_lossy(&piece));
    }
    text
}

#[tokio::test]
async fn tokens_and_claims_read_it_and_others_are_told_that_theirs_do_not() {
    let secret = Secret::start().await;
    let world = &secret.world;
    let hash = secret.drv.output("out").hash_part().to_owned();
    let base = secret.drv.path.base_name().to_owned();
    let cache = [
        format!("/{hash}.narinfo"),
        format!("/{hash}.ls"),
        format!("/nar/{}", secret.nar.file_name()),
        format!("/log/{base}"),
        format!("/drv/{base}.zst"),
    ];
    let held = secret.running.token.to_hex();
    for path in &cache {
        assert_eq!(world.get(path).await.status(), StatusCode::NOT_FOUND, "{path}");
        for method in [Method::GET, Method::HEAD] {
            let with = |token: &str| world.request(method.clone(), path).bearer_auth(token).send();
            assert_eq!(with(TOKEN).await.expect("answered").status(), StatusCode::OK, "{path}");
            let shown = with(&held).await.expect("answered");
            assert_eq!(shown.status(), StatusCode::OK, "{path} for who holds a job");
            assert!(shown.headers()["cache-control"].to_str().expect("text").contains("private"), "{path}");
            for wrong in ["guess", &secret.attempt.token.to_hex(), &random_token().to_hex()] {
                let answer = with(wrong).await.expect("answered");
                assert_eq!(answer.status(), StatusCode::UNAUTHORIZED, "{path}: neither unknown nor ended claims");
                assert!(answer.headers()["www-authenticate"].to_str().expect("text").starts_with("Basic"));
            }
        }
        let basic = world.request(Method::GET, path).basic_auth("anybody", Some(TOKEN)).send().await.expect("answered");
        assert_eq!(basic.status(), StatusCode::OK, "{path} as Nix asks");
    }
    for path in [
        format!("/api/v1/evaluations/{}", secret.evaluation.id),
        format!("/api/v1/evaluations/{}/head", secret.evaluation.id),
        format!("/api/v1/evaluations/{}/log", secret.evaluation.id),
        format!("/api/v1/builds/{}", secret.attempt.job),
        format!("/api/v1/builds/{}/log", secret.attempt.job),
        format!("/api/v1/builds/{}/log", secret.running.job),
        "/api/v1/builds/find?q=hush-drv".to_owned(),
        format!("/ci/{PROJECT}/"),
        format!("/ci/{PROJECT}/eval/{}", secret.evaluation.id),
        format!("/ci/{PROJECT}/build/{}", secret.attempt.job),
    ] {
        assert_eq!(world.get(&path).await.status(), StatusCode::NOT_FOUND, "{path}");
        let seen = world.request(Method::GET, &path).bearer_auth(TOKEN).send().await.expect("answered");
        assert_eq!(seen.status(), StatusCode::OK, "{path}");
        let wrong = world.request(Method::GET, &path).bearer_auth("guess").send().await.expect("answered");
        assert_eq!(wrong.status(), StatusCode::UNAUTHORIZED, "{path}");
    }
    // No token changes anything as the password that browsers keep sending.
    let rebuild = format!("/api/v1/builds/{}/rebuild", secret.attempt.job);
    let basic =
        world.request(Method::POST, &rebuild).basic_auth("anybody", Some(TOKEN)).send().await.expect("answered");
    assert_eq!(basic.status(), StatusCode::UNAUTHORIZED);
    secret.world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stock_nix_reads_it_with_netrc() {
    let secret = Secret::start().await;
    let target = secret.drv.output("out").to_string();
    let nix = Client::new(&secret_key().public_key().to_string());
    let refused = nix.nix(&["copy", "--from", &secret.world.url, &target]).await;
    assert!(!refused.status.success() && nix.file(&target).is_none());
    nix.netrc(&format!("machine 127.0.0.1 login anybody password {TOKEN}\n"));
    assert_success(&nix.nix(&["copy", "--from", &secret.world.url, &target]).await);
    assert_eq!(nix.file(&target).expect("copied"), b"hush");
    secret.world.stop().await;
}

/// Waits until the address answers so, as it does once what was known before is out of date.
async fn becomes(world: &World, path: &str, status: StatusCode) {
    let reached = async { while world.get(path).await.status() != status {} };
    tokio::time::timeout(Duration::from_mins(1), reached).await.unwrap_or_else(|_| panic!("{path} never is {status}"));
}

#[tokio::test]
async fn making_it_public_opens_what_it_made_and_making_it_private_closes_it_again() {
    let secret = Secret::start().await;
    let world = &secret.world;
    let hash = secret.drv.output("out").hash_part().to_owned();
    let base = secret.drv.path.base_name().to_owned();
    let build = format!("/api/v1/builds/{}", secret.attempt.job);
    let paths = [
        format!("/{hash}.narinfo"),
        format!("/nar/{}", secret.nar.file_name()),
        format!("/log/{base}"),
        format!("/drv/{base}.zst"),
        build,
        format!("/ci/{PROJECT}/"),
    ];
    for (public, status) in [(true, StatusCode::OK), (false, StatusCode::NOT_FOUND), (true, StatusCode::OK)] {
        turn(world, public).await;
        for path in &paths {
            becomes(world, path, status).await;
        }
    }
    secret.world.stop().await;
}

/// The derivation is public, since a public project has it too; whose job it was first is nobody's business.
#[tokio::test]
async fn a_public_derivation_does_not_tell_which_private_project_asked_first() {
    let secret = Secret::start().await;
    let world = &secret.world;
    let other = world.begin(NewEvaluation::default()).await;
    world.insert(&other, &[&secret.drv], &[]).await;
    world.finish(&other).await;
    let job = secret.attempt.job;
    let build: serde_json::Value = world.json(&format!("/api/v1/builds/{job}")).await;
    assert_eq!((build["project"].as_str(), build["name"].as_str()), (Some("local/demo"), Some("hush-drv")));
    let mine = world.request(Method::GET, &format!("/api/v1/builds/{job}")).bearer_auth(TOKEN).send().await;
    let mine: serde_json::Value = mine.expect("answered").json().await.expect("JSON");
    assert_eq!(mine["project"].as_str(), Some(PROJECT));
    for address in secret.addresses() {
        let (_, text) = shown(world, &address, "*/*", None).await;
        for word in ["hush-project", "hush-title", "hush-author", "hush-drv-runs"] {
            assert!(!text.contains(word), "{address} shows '{word}' to everybody:\n{text}");
        }
    }
    let encoded = base64::engine::general_purpose::STANDARD.encode("x:");
    let empty = world
        .request(Method::GET, &format!("/api/v1/builds/{job}"))
        .header("authorization", format!("Basic {encoded}"));
    assert_eq!(empty.send().await.expect("answered").status(), StatusCode::UNAUTHORIZED);
    secret.world.stop().await;
}
