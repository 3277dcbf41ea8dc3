//! Clients that send slowly, too much, or without a right to: they are ended, and others are served meanwhile.

use std::time::Duration;

use futures_util::future::Either;
use harmonia_core::api::ApiError;
use harmonia_db::testing::HeldAttributes;
use harmonia_web::{AppLimits, BodyLimits, ListenerLimits};
use reqwest::{Method, RequestBuilder, StatusCode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::world::{Drv, Nar, Parts, TOKEN, World, routes};

/// Nothing in these tests may take longer.
const PATIENCE: Duration = Duration::from_secs(30);

fn everything() -> Parts {
    Parts { signer: true, reader: true }
}

/// Sends exactly this, and reads until the server closes.
struct Raw(TcpStream);

impl Raw {
    async fn send(world: &World, text: &str) -> Self {
        let address = world.url.strip_prefix("http://").expect("http");
        let mut stream = TcpStream::connect(address).await.expect("connects");
        stream.write_all(text.as_bytes()).await.expect("sent");
        Self(stream)
    }

    /// The status of the answer, and all of it.
    async fn answer(mut self) -> (u16, String) {
        let mut bytes = Vec::new();
        let read = tokio::time::timeout(PATIENCE, self.0.read_to_end(&mut bytes)).await.expect("ended in time");
        let text = String::from_utf8_lossy(&bytes).into_owned();
        // A reset after the answer is an end, too.
        assert!(read.is_ok() || !text.is_empty(), "{read:?}");
        (text.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0), text)
    }
}

async fn good_client(world: &World) {
    assert_eq!(world.get("/nix-cache-info").await.status(), StatusCode::OK);
}

/// Without a token that somebody has, no byte of a body is waited for: the answer comes before any was sent.
#[tokio::test]
async fn the_token_is_looked_up_before_the_body_is_read() {
    let world = World::start().await;
    let bogus = "ab".repeat(32);
    let mut asked = 0;
    for path in routes() {
        // Forges sign what they send: it has to be read.
        if path.starts_with("/webhook/") {
            continue;
        }
        let path = path.replace("{id}", "1").replace("{kind}", "status").replace("{*name}", "local/demo");
        for method in ["POST", "PATCH"] {
            let head = format!(
                "{method} {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {bogus}\r\ncontent-length: 60000000\r\n\
                 connection: close\r\n\r\n"
            );
            let (status, text) = Raw::send(&world, &head).await.answer().await;
            match status {
                401 | 409 => asked += 1,
                404 | 405 => {}
                _ => panic!("{method} {path}: {text}"),
            }
        }
    }
    assert!(asked >= 15, "{asked} addresses take a body");
    world.stop().await;
}

#[tokio::test]
async fn a_body_that_drips_is_ended_as_a_whole() {
    let bodies = BodyLimits {
        call: Duration::from_millis(400),
        signer_call: Duration::from_millis(400),
        webhook: Duration::from_millis(400),
        bundle: Duration::from_millis(400),
        ..BodyLimits::default()
    };
    let limits = AppLimits { bodies, ..AppLimits::default() };
    let world = World::bounded(everything(), limits, ListenerLimits::default()).await;
    let drv = Drv::new("thing", &[]);
    world.evaluate(&[&drv]).await;
    let claim = world.claim(&drv).await.token.to_hex();
    for (path, token) in [
        ("/api/v1/evaluations", TOKEN),
        ("/api/v1/projects", TOKEN),
        ("/api/v1/bundles", TOKEN),
        ("/api/upload-slots", claim.as_str()),
        ("/internal/clone-credential", claim.as_str()),
        (&format!("/webhook/{}", crate::forge::FORGE), TOKEN),
    ] {
        let head =
            format!("POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\ncontent-length: 3000\r\n\r\n");
        let begins = if path.ends_with("bundles") { "# v2 git bundle\n" } else { "" };
        let mut raw = Raw::send(&world, &format!("{head}{begins}")).await;
        let mut ticks = tokio::time::interval(Duration::from_millis(20));
        let mut text = Vec::new();
        let mut buffer = [0; 4096];
        let answered = async {
            loop {
                tokio::select! {
                    _ = ticks.tick() => { let _ = raw.0.write_all(b" ").await; }
                    read = raw.0.read(&mut buffer) => match read {
                        Ok(0) | Err(_) => break,
                        Ok(read) => text.extend_from_slice(&buffer[..read]),
                    },
                }
            }
        };
        tokio::time::timeout(PATIENCE, answered).await.unwrap_or_else(|_| panic!("{path} waits for ever"));
        let text = String::from_utf8_lossy(&text);
        assert!(text.starts_with("HTTP/1.1 408 "), "{path}: {text}");
        good_client(&world).await;
    }
    world.stop().await;
}

#[tokio::test]
async fn deliveries_that_nobody_can_check_yet_share_a_part_of_memory() {
    let bodies = BodyLimits {
        strangers_bytes_max: 256 << 10,
        patience: Duration::from_millis(50),
        webhook: Duration::from_secs(2),
        ..BodyLimits::default()
    };
    let limits = AppLimits { bodies, ..AppLimits::default() };
    let world = World::bounded(everything(), limits, ListenerLimits::default()).await;
    let path = format!("/webhook/{}", crate::forge::FORGE);
    let mut slow =
        Raw::send(&world, &format!("POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n")).await;
    slow.0.write_all(&vec![b' '; 240 << 10]).await.expect("sent");
    // Until what it sent has been taken, others find room.
    let refused = tokio::time::timeout(PATIENCE, async {
        loop {
            let answer = world.request(Method::POST, &path).body(vec![b' '; 200 << 10]).send().await.expect("answered");
            if answer.status() == StatusCode::SERVICE_UNAVAILABLE {
                return answer;
            }
        }
    });
    let refused = refused.await.expect("refused in time");
    assert!(refused.headers().contains_key("retry-after"));
    assert_eq!(refused.json::<ApiError>().await.expect("an ApiError").code, "too-many-bodies");
    // Whoever shows a token has the rest of it.
    let call =
        world.request(Method::POST, "/api/v1/projects").bearer_auth(TOKEN).body(vec![b' '; 60 << 10]).send().await;
    assert_eq!(call.expect("answered").status(), StatusCode::BAD_REQUEST);
    assert_eq!(slow.answer().await.0, 408);
    let again = world.request(Method::POST, &path).body(vec![b' '; 200 << 10]).send().await.expect("answered");
    assert_ne!(again.status(), StatusCode::SERVICE_UNAVAILABLE, "what it held is free again");
    world.stop().await;
}

#[tokio::test]
async fn live_logs_of_one_client_leave_room_for_others() {
    let limits = AppLimits { streams_max: 10, streams_per_client_max: 2, ..AppLimits::default() };
    let world = World::bounded(everything(), limits, ListenerLimits::default()).await;
    let drv = Drv::new("thing", &[]);
    world.evaluate(&[&drv]).await;
    let path = format!("/api/v1/builds/{}/log", world.claim(&drv).await.job);
    let open = |client: &'static str| {
        let request = world.request(Method::GET, &path).header("accept", "text/event-stream");
        let request = if client.is_empty() { request } else { request.header("x-forwarded-for", client) };
        async move { request.send().await.expect("answered") }
    };
    let held = [open("198.51.100.1").await, open("198.51.100.1").await];
    assert!(held.iter().all(|stream| stream.status() == StatusCode::OK));
    let third = open("198.51.100.1").await;
    assert_eq!(third.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(third.headers().contains_key("retry-after"));
    for other in ["198.51.100.2", "", ""] {
        assert_eq!(open(other).await.status(), StatusCode::OK, "{other}");
    }
    drop(held);
    let freed =
        tokio::time::timeout(PATIENCE, async { while open("198.51.100.1").await.status() != StatusCode::OK {} });
    freed.await.expect("what a client gives back it may have again");
    world.stop().await;
}

/// The page of a build needs the end of its log only: here nothing before it can be unpacked.
#[tokio::test]
async fn a_page_unpacks_no_whole_log() {
    use harmonia_core::log_end::{LOG_END_BYTES, frame};
    let world = World::start().await;
    let drv = Drv::new("thing", &[]);
    world.evaluate(&[&drv]).await;
    let end = format!("{}the very last line\n", "another line\n".repeat(3_000));
    let packed = zstd::encode_all(end.as_bytes(), 3).expect("in memory");
    let object = [b"this is no zstd at all".as_slice(), &frame(&packed, 9_000_000_000)].concat();
    assert!(end.len() < LOG_END_BYTES);
    let attempt = world.build_with_log(&drv, &Nar::file(b"x"), &object).await;
    let page = world.text(&format!("/ci/local/demo/build/{}", attempt.job)).await;
    assert!(page.contains("the very last line"), "{page}");
    let whole = world.get(&format!("/api/v1/builds/{}/log", attempt.job)).await;
    assert_eq!(whole.status(), StatusCode::SERVICE_UNAVAILABLE, "which nobody can read");

    // A decoder is promised 8 MiB of what came before and no more.
    let drv = Drv::new("hungry", &[]);
    world.evaluate(&[&drv]).await;
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 3).expect("in memory");
    encoder.set_parameter(zstd::zstd_safe::CParameter::WindowLog(27)).expect("allowed");
    std::io::Write::write_all(&mut encoder, b"harmless\n").expect("in memory");
    std::io::Write::flush(&mut encoder).expect("in memory");
    let hungry = encoder.finish().expect("in memory");
    let attempt = world.build_with_log(&drv, &Nar::file(b"y"), &hungry).await;
    let log = world.get(&format!("/api/v1/builds/{}/log", attempt.job)).await;
    assert_eq!(log.status(), StatusCode::SERVICE_UNAVAILABLE);
    let page = world.text(&format!("/ci/local/demo/build/{}", attempt.job)).await;
    assert!(page.contains("cannot be read"), "{page}");
    world.stop().await;
}

/// Who asks what costs much waits for a turn and is told to come again; strangers' turns are none of those with a token.
#[tokio::test]
async fn costly_questions_of_strangers_take_turns_and_leave_others_alone() {
    let limits = AppLimits { costly_max: 1, costly_patience: Duration::from_millis(300), ..AppLimits::default() };
    let world = World::bounded(everything(), limits, ListenerLimits::default()).await;
    let id = world.evaluate(&[&Drv::new("thing", &[])]).await;
    let ask = |token: Option<&str>| {
        let request = world.request(Method::GET, &format!("/api/v1/evaluations/{id}"));
        let request = token.into_iter().fold(request, RequestBuilder::bearer_auth);
        tokio::spawn(async move { request.send().await.expect("answered") })
    };
    let held = HeldAttributes::hold(world.db()).await;
    // Of two, one has the turn, whichever it is.
    let (refused, slow) = match futures_util::future::select(ask(None), ask(None)).await {
        Either::Left((refused, slow)) | Either::Right((refused, slow)) => (refused.expect("no panic"), slow),
    };
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(refused.headers().contains_key("retry-after"), "{:?}", refused.headers());
    assert_eq!(refused.json::<ApiError>().await.expect("an ApiError").code, "busy");
    let known = ask(Some(TOKEN));
    // By the time that another stranger had no patience any more, the one with a token would have had none either.
    assert_eq!(ask(None).await.expect("no panic").status(), StatusCode::SERVICE_UNAVAILABLE);
    good_client(&world).await;
    held.release().await;
    for (who, answer) in [("a stranger in turn", slow), ("one with a token", known)] {
        let answer = tokio::time::timeout(PATIENCE, answer).await.expect("ended in time").expect("no panic");
        assert_eq!(answer.status(), StatusCode::OK, "{who}");
    }
    world.stop().await;
}

/// The home page counts the attributes of all that it lists: once for all who look at the same time.
#[tokio::test]
async fn the_home_page_is_counted_once_for_all_who_look() {
    let limits = AppLimits { overview_age_max: PATIENCE, ..AppLimits::default() };
    let world = World::bounded(everything(), limits, ListenerLimits::default()).await;
    world.evaluate(&[&Drv::new("thing", &[])]).await;
    let look = |token: Option<&str>| {
        let request = token.into_iter().fold(world.request(Method::GET, "/ci/"), RequestBuilder::bearer_auth);
        tokio::spawn(async move { request.send().await.expect("answered").text().await.expect("text") })
    };
    let first = look(None).await.expect("no panic");
    assert!(first.contains("local/demo") && first.contains("0/1, 1 waiting"), "{first}");
    // Nobody could count now.
    let held = HeldAttributes::hold(world.db()).await;
    let again = tokio::time::timeout(PATIENCE, look(None)).await.expect("it was counted").expect("no panic");
    assert!(again.contains("0/1, 1 waiting"), "{again}");
    // Those with a token see more, so it is counted for them.
    let mut known = look(Some(TOKEN));
    assert!(tokio::time::timeout(Duration::from_millis(300), &mut known).await.is_err(), "it waits");
    held.release().await;
    assert!(known.await.expect("no panic").contains("0/1, 1 waiting"));
    world.stop().await;
}

/// What the operator bounds is bounded: one limit stands for all that are handed to the listener.
#[tokio::test]
async fn the_listener_has_the_limits_that_it_is_given() {
    let limits = ListenerLimits { connections_max: 1, head_timeout: PATIENCE * 2, ..ListenerLimits::default() };
    let world = World::bounded(everything(), AppLimits::default(), limits).await;
    let first = Raw::send(&world, "GET /nix-cache-info HTTP/1.1\r\n").await;
    let mut second = Raw::send(&world, "GET /nix-cache-info HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    let early = tokio::time::timeout(Duration::from_millis(200), second.0.read(&mut [0; 1])).await;
    assert!(early.is_err(), "one is there already: {early:?}");
    drop(first);
    assert_eq!(second.answer().await.0, 200);
    world.stop().await;
}
