//! Against real servers on loopback.

mod bounds;
mod redirects;
mod secrets;
mod tls;

use super::*;
use crate::capabilities::testing::{Plan, Server, World, answer, get, header};

/// A server that answers 200, and a plugin that may call it.
pub(super) async fn echo() -> (Server, World) {
    let server = Server::new(|request| answer(200, "X-Thing: yes\r\n", &request.body)).await;
    let world = Plan::hosts(&[&server.grant()]).world();
    (server, world)
}

fn denied(result: Result<HttpResponse, HttpError>) -> String {
    match result {
        Err(HttpError::Denied(text)) => text,
        other => panic!("not denied: {other:?}"),
    }
}

fn invalid(result: Result<HttpResponse, HttpError>) -> String {
    match result {
        Err(HttpError::Invalid(text)) => text,
        other => panic!("not invalid: {other:?}"),
    }
}

fn limited(result: Result<HttpResponse, HttpError>) -> String {
    match result {
        Err(HttpError::Limit(text)) => text,
        other => panic!("not limited: {other:?}"),
    }
}

#[tokio::test]
async fn a_request_is_sent_and_its_answer_read() {
    let (server, world) = echo().await;
    let request = HttpRequest {
        method: Method::Post,
        headers: vec![header("X-A", "1"), header("x-a", "2"), header("Content-Type", "text/plain")],
        body: Some(b"hello".to_vec()),
        ..get(server.url("/path?q=1#fragment"))
    };
    let response = world.call().http_send(request).await.expect("an answer");
    assert_eq!((response.status, response.body.as_slice()), (200, &b"hello"[..]));
    assert!(response.headers.contains(&header("x-thing", "yes")), "{:?}", response.headers);
    let received = &server.received()[0];
    assert_eq!(received.line(), "POST /path?q=1 HTTP/1.1");
    assert_eq!(received.header("host"), Some(format!("127.0.0.1:{}", server.port).as_str()));
    assert!(received.header("user-agent").is_some_and(|agent| agent.starts_with("harmonia-ci/")));
    assert_eq!(received.header("accept-encoding"), Some("identity"));
    assert_eq!(received.head.to_lowercase().matches("\r\nx-a: ").count(), 2);

    let request = HttpRequest { headers: vec![header("User-Agent", "mine")], ..get(server.url("/")) };
    world.call().http_send(request).await.expect("an answer");
    assert_eq!(server.received()[1].header("user-agent"), Some("mine"));
}

#[tokio::test]
async fn every_method_arrives_and_every_status_is_an_answer() {
    let server = Server::new(|request| {
        let status = request.line().split('/').nth(1).and_then(|path| path.split(' ').next()).expect("a path");
        let status = status.parse().expect("a number");
        if request.line().starts_with("HEAD") { answer(status, "", "") } else { answer(status, "", "body") }
    })
    .await;
    let world = Plan::hosts(&[&server.grant()]).world();
    let mut call = world.call();
    for method in [Method::Get, Method::Head, Method::Post, Method::Put, Method::Patch, Method::Delete] {
        let response = call.http_send(HttpRequest { method, ..get(server.url("/201")) }).await.expect("an answer");
        assert_eq!(response.status, 201);
    }
    let lines: Vec<_> = server.received().iter().map(|request| request.line().to_owned()).collect();
    for (line, method) in lines.iter().zip(["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]) {
        assert_eq!(*line, format!("{method} /201 HTTP/1.1"));
    }
    for status in [204, 304, 400, 401, 403, 404, 410, 422, 500, 502] {
        let response = call.http_send(get(server.url(&format!("/{status}")))).await.expect("an answer");
        assert_eq!(response.status, status);
    }
}

#[tokio::test]
async fn only_granted_hosts_are_called() {
    let (server, world) = echo().await;
    let mut call = world.call();
    for (url, grant) in [
        ("https://api.example.org/x?token=1".to_owned(), "\"api.example.org\"".to_owned()),
        (format!("http://localhost:{}/", server.port), format!("\"http://localhost:{}\"", server.port)),
        (format!("https://127.0.0.1:{}/", server.port), format!("\"127.0.0.1:{}\"", server.port)),
        (format!("http://[::ffff:127.0.0.1]:{}/", server.port), format!("\"http://[::ffff:7f00:1]:{}\"", server.port)),
        ("http://169.254.169.254/latest/meta-data".to_owned(), "\"http://169.254.169.254\"".to_owned()),
    ] {
        let text = denied(call.http_send(get(&url)).await);
        assert!(text.contains(&grant) && text.contains("`allow_hosts` of the plugin `test-forge`"), "{url}: {text}");
    }
    let mut offline = CallState::new(std::sync::Arc::clone(&world.shared), false);
    assert!(denied(offline.http_send(get(server.url("/"))).await).contains("no network"));
    assert!(server.received().is_empty(), "nothing was sent");
    call.http_send(get(format!("http://2130706433:{}/", server.port))).await.expect("the same address, written oddly");
}

#[tokio::test]
async fn a_name_with_a_private_address_is_refused_unless_granted_so() {
    let server = Server::new(|_| answer(200, "", "inside")).await;
    let url = |name: &str| format!("http://{name}:{}/", server.port);
    let grant = |name: &str| format!("http://{name}:{}", server.port);
    let world = Plan::hosts(&[
        &grant("evil.example"),
        &grant("mapped.example"),
        &grant("mixed.example"),
        &grant("*.wild.example"),
        &grant("localhost"),
        &format!("private:{}", grant("inside.example")),
        &format!("private:{}", grant("metadata.example")),
        &grant("nowhere.example"),
    ])
    .name("evil.example", &["127.0.0.1"])
    .name("mapped.example", &["::ffff:10.0.0.1"])
    .name("mixed.example", &["1.1.1.1", "127.0.0.1"])
    .name("a.wild.example", &["127.0.0.1"])
    .name("localhost", &["127.0.0.1"])
    .name("inside.example", &["127.0.0.1"])
    .name("metadata.example", &["169.254.169.254"])
    .world();
    let mut call = world.call();
    for name in ["evil.example", "mapped.example", "mixed.example", "a.wild.example"] {
        let text = denied(call.http_send(get(url(name))).await);
        assert!(text.contains(&format!("\"private:http://{name}:{}\"", server.port)), "{text}");
        assert!(text.contains("resolves to") && text.contains("allow_hosts"), "{text}");
    }
    let text = denied(call.http_send(get(url("metadata.example"))).await);
    assert!(text.contains("link-local") && !text.contains("\"private:"), "{text}");
    assert!(server.received().is_empty(), "nothing was sent");
    for name in ["localhost", "inside.example"] {
        assert_eq!(call.http_send(get(url(name))).await.expect(name).body, b"inside");
    }
    match call.http_send(get(url("nowhere.example"))).await {
        Err(HttpError::Unavailable(text)) => assert!(text.contains("no such name"), "{text}"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_malformed_request_says_how() {
    let (server, world) = echo().await;
    let cases: Vec<(&str, HttpRequest)> = vec![
        ("URL", get("not a url")),
        ("URL", get("/relative")),
        ("scheme", get("ftp://127.0.0.1/")),
        ("scheme", get("file:///etc/passwd")),
        ("user", get(format!("http://user:pass@127.0.0.1:{}/", server.port))),
    ];
    for (reason, request) in cases {
        let text = invalid(world.call().http_send(request).await);
        assert!(text.contains(reason), "{text}");
    }
    for name in [
        "Host",
        "Content-Length",
        "transfer-encoding",
        "Connection",
        "COOKIE",
        "Proxy-Authorization",
        "Range",
        "TE",
        "Accept-Encoding",
        "Upgrade",
        "bad name",
        "",
        "a\r\nb",
    ] {
        let request = HttpRequest { headers: vec![header(name, "x")], ..get(server.url("/")) };
        invalid(world.call().http_send(request).await);
    }
    for value in ["a\r\nX-Other: b", "a\nb", "a\0b"] {
        let request = HttpRequest { headers: vec![header("x-a", value)], ..get(server.url("/")) };
        assert!(invalid(world.call().http_send(request).await).contains("x-a"));
    }
    assert!(server.received().is_empty(), "nothing was sent");
}

#[tokio::test]
async fn a_server_that_is_not_there_is_unavailable() {
    let (server, world) = echo().await;
    let url = server.url("/secret-path");
    drop(server);
    match world.call().http_send(get(&url)).await {
        Err(HttpError::Unavailable(text)) => assert!(!text.contains("secret-path"), "no URL in it: {text}"),
        other => panic!("{other:?}"),
    }
    let garbage = Server::new(|_| b"this is no HTTP\r\n\r\n".to_vec()).await;
    let world = Plan::hosts(&[&garbage.grant()]).world();
    assert!(matches!(world.call().http_send(get(garbage.url("/"))).await, Err(HttpError::Unavailable(_))));
    let cut = Server::new(|_| b"HTTP/1.1 200 x\r\nContent-Length: 10\r\n\r\nhalf".to_vec()).await;
    let world = Plan::hosts(&[&cut.grant()]).world();
    assert!(matches!(world.call().http_send(get(cut.url("/"))).await, Err(HttpError::Unavailable(_))));
}
