//! Sizes, counts, time and rate limits.

use std::time::{Duration, Instant};

use super::{echo, invalid, limited};
use crate::capabilities::testing::{Plan, STALL, Server, answer, capture, get, header};
use crate::capabilities::{Auth, HttpError, HttpRequest, Method, Place};

#[tokio::test]
async fn what_is_sent_is_bounded() {
    let (server, world) = echo().await;
    let post = |body: usize| HttpRequest { method: Method::Post, body: Some(vec![b'x'; body]), ..get(server.url("/")) };
    let mut call = world.call();
    assert_eq!(call.http_send(post(4 << 20)).await.expect("just fits").body.len(), 4 << 20);
    assert!(limited(call.http_send(post((4 << 20) + 1)).await).contains("limits.request_body_bytes"));
    let headers = |count: usize, bytes: usize| HttpRequest {
        headers: (0..count).map(|number| header(&format!("x-{number}"), &"v".repeat(bytes))).collect(),
        ..get(server.url("/"))
    };
    call.http_send(headers(64, 100)).await.expect("just fits");
    assert!(limited(call.http_send(headers(65, 1)).await).contains("limits.headers_per_request"));
    assert!(limited(call.http_send(headers(33, 1000)).await).contains("limits.request_header_bytes"));
    let long = get(server.url(&format!("/{}", "u".repeat(8192))));
    assert!(limited(call.http_send(long).await).contains("limits.url_bytes"));
    let captures = HttpRequest { capture: (0..5).map(|_| capture("/a", &[])).collect(), ..get(server.url("/")) };
    assert!(limited(call.http_send(captures).await).contains("limits.captures_per_request"));

    let world = Plan::hosts(&[&server.grant()]).secret("token", "a-token").world();
    let mut call = world.call();
    let secret = call.open_secret("token").expect("opened");
    let auth = (0..5).map(|n| Auth { secret: secret.clone(), place: Place::Header(header(&format!("x-{n}"), "")) });
    let request = HttpRequest { auth: auth.collect(), ..get(server.url("/")) };
    assert!(limited(call.http_send(request).await).contains("limits.auth_per_request"));
}

#[tokio::test]
async fn a_call_sends_so_many_requests() {
    let (server, world) = echo().await;
    let mut call = world.call();
    for _ in 0..30 {
        call.http_send(get(server.url("/"))).await.expect("an answer");
    }
    assert!(limited(call.http_send(get(server.url("/"))).await).contains("limits.requests_per_call"));
    assert_eq!(server.received().len(), 30);
    world.call().http_send(get(server.url("/"))).await.expect("another call");
    // Malformed ones count too: checking them is work.
    let mut call = world.call();
    for _ in 0..30 {
        invalid(call.http_send(get("nonsense")).await);
    }
    limited(call.http_send(get("nonsense")).await);
}

#[tokio::test]
async fn what_comes_back_is_bounded() {
    let server = Server::new(|request| match request.line() {
        "GET /fits HTTP/1.1" => answer(200, "", vec![b'x'; 4 << 20]),
        "GET /large HTTP/1.1" => answer(200, "", vec![b'x'; (4 << 20) + 1]),
        // Without a length, and without an end.
        "GET /endless HTTP/1.1" => {
            let mut text = b"HTTP/1.1 200 x\r\nConnection: close\r\n\r\n".to_vec();
            text.resize(8 << 20, b'x');
            text
        }
        "GET /headers HTTP/1.1" => answer(200, &format!("X-Large: {}\r\n", "h".repeat(65 * 1024)), ""),
        "GET /gzip HTTP/1.1" => answer(200, "Content-Encoding: gzip\r\n", b"\x1f\x8b\x08"),
        _ => answer(404, "", ""),
    })
    .await;
    let world = Plan::hosts(&[&server.grant()]).limits(|limits| limits.response_bytes_per_call = 9 << 20).world();
    let mut call = world.call();
    assert_eq!(call.http_send(get(server.url("/fits"))).await.expect("fits").body.len(), 4 << 20);
    assert!(limited(call.http_send(get(server.url("/headers"))).await).contains("limits.response_header_bytes"));
    match call.http_send(get(server.url("/gzip"))).await {
        Err(HttpError::Unavailable(text)) => assert!(text.contains("compressed"), "{text}"),
        other => panic!("{other:?}"),
    }
    call.http_send(get(server.url("/fits"))).await.expect("fits");
    assert!(limited(call.http_send(get(server.url("/fits"))).await).contains("limits.response_bytes_per_call"));
    for path in ["/large", "/endless"] {
        assert!(limited(world.call().http_send(get(server.url(path))).await).contains("limits.response_body_bytes"));
    }
}

#[tokio::test]
async fn a_slow_drip_ends_with_a_timeout() {
    let server = Server::new(|request| match request.line() {
        "GET /body HTTP/1.1" => [b"HTTP/1.1 200 x\r\n\r\n", STALL].concat(),
        "GET /headers HTTP/1.1" => [b"HTTP/1.1 200 x\r\nX-Slow: ", STALL].concat(),
        _ => STALL.to_vec(),
    })
    .await;
    let world = Plan::hosts(&[&server.grant()]).limits(|limits| limits.request_timeout_ms = 300).world();
    for path in ["/body", "/headers", "/status"] {
        let begun = Instant::now();
        let result = world.call().http_send(get(server.url(path))).await;
        let took = begun.elapsed();
        // A broken first line is noticed before the time is over.
        assert!(
            matches!(result, Err(HttpError::Timeout)) || path == "/status" && result.is_err(),
            "{path}: {result:?}"
        );
        assert!(took < Duration::from_secs(5), "{path}: {took:?}");
    }
}

#[tokio::test]
async fn a_host_that_asks_to_wait_is_left_alone_by_all_calls() {
    let server = Server::new(|request| match request.line() {
        "GET /busy HTTP/1.1" => answer(429, "Retry-After: 30\r\n", "slow down"),
        _ => answer(200, "", ""),
    })
    .await;
    let other = Server::new(|_| answer(200, "", "")).await;
    let world = Plan::hosts(&[&server.grant(), &other.grant()]).world();
    let response = world.call().http_send(get(server.url("/busy"))).await.expect("the answer itself is given");
    assert_eq!((response.status, response.body.as_slice()), (429, &b"slow down"[..]));
    for _ in 0..2 {
        let result = world.call().http_send(get(server.url("/"))).await;
        assert!(matches!(result, Err(HttpError::RetryAfter(30))), "{result:?}");
    }
    assert_eq!(server.received().len(), 1, "nothing was sent");
    world.call().http_send(get(other.url("/"))).await.expect("another host");
    world.clock.advance(Duration::from_secs(29));
    assert!(matches!(world.call().http_send(get(server.url("/"))).await, Err(HttpError::RetryAfter(1))));
    world.clock.advance(Duration::from_secs(1));
    world.call().http_send(get(server.url("/"))).await.expect("its time is over");
}
