//! Redirects: each checked like a request.

use super::{denied, invalid, limited};
use crate::capabilities::testing::{Plan, Server, answer, get, header};
use crate::capabilities::{Auth, HttpError, HttpRequest, Method, Place};

fn found(status: u16, to: &str) -> Vec<u8> {
    answer(status, &format!("Location: {to}\r\n"), "")
}

#[tokio::test]
async fn redirects_are_followed_as_browsers_do() {
    let server = Server::new(|request| {
        let path = request.line().split(' ').nth(1).expect("a path");
        match path.strip_prefix("/r").and_then(|status| status.parse().ok()) {
            Some(status) => found(status, "/end"),
            None => answer(200, "", "end"),
        }
    })
    .await;
    let world = Plan::hosts(&[&server.grant()]).world();
    for (status, method, then, keeps_body) in [
        (301, Method::Post, "GET", false),
        (302, Method::Post, "GET", false),
        (303, Method::Post, "GET", false),
        (303, Method::Put, "GET", false),
        (307, Method::Post, "POST", true),
        (308, Method::Post, "POST", true),
        (302, Method::Put, "PUT", true),
        (303, Method::Head, "HEAD", false),
        (302, Method::Get, "GET", false),
    ] {
        let has_body = !matches!(method, Method::Get | Method::Head);
        let request = HttpRequest {
            method,
            headers: vec![header("content-type", "text/plain"), header("x-kept", "1")],
            body: has_body.then(|| b"body".to_vec()),
            ..get(server.url(&format!("/r{status}")))
        };
        world.call().http_send(request).await.expect("an answer");
        let last = server.received().pop().expect("a request");
        assert_eq!(last.line(), format!("{then} /end HTTP/1.1"), "{status} {method:?}");
        assert_eq!(last.body.is_empty(), !keeps_body, "{status} {method:?}");
        assert_eq!(last.header("x-kept"), Some("1"));
        if then == "GET" && has_body {
            assert_eq!(last.header("content-type"), None);
        }
    }
}

#[tokio::test]
async fn redirects_end_somewhere() {
    let server = Server::new(|request| {
        let number: u32 = request.line().split(' ').nth(1).and_then(|path| path[1..].parse().ok()).unwrap_or_default();
        if number == 0 { answer(200, "", "end") } else { found(302, &format!("/{}", number - 1)) }
    })
    .await;
    let world = Plan::hosts(&[&server.grant()]).world();
    assert_eq!(world.call().http_send(get(server.url("/5"))).await.expect("five").body, b"end");
    assert!(limited(world.call().http_send(get(server.url("/6"))).await).contains("limits.redirects_per_request"));
    assert_eq!(server.received().len(), 12);
}

#[tokio::test]
async fn a_redirect_is_checked_like_a_request() {
    let inside = Server::new(|_| answer(200, "", "inside")).await;
    let inside_port = inside.port;
    let server = Server::new(move |request| match request.line().split(' ').nth(1).expect("a path") {
        "/private" => found(302, &format!("http://127.0.0.1:{inside_port}/")),
        "/name" => found(302, &format!("http://rebound.example:{inside_port}/")),
        "/metadata" => found(302, "http://169.254.169.254/latest"),
        "/file" => found(302, "file:///etc/passwd"),
        "/user" => found(302, "http://user:password@127.0.0.1/"),
        "/nothing" => found(302, "http://[broken"),
        "/none" => answer(302, "", "no location"),
        _ => answer(404, "", ""),
    })
    .await;
    let rebound = format!("http://rebound.example:{inside_port}");
    let world = Plan::hosts(&[&server.grant(), &rebound]).name("rebound.example", &["127.0.0.1"]).world();
    let mut call = world.call();
    for (path, reason) in [
        ("/private", "allow_hosts"),
        ("/metadata", "allow_hosts"),
        ("/name", "resolves to 127.0.0.1"),
        ("/file", "scheme"),
        ("/user", "user"),
    ] {
        let text = denied(call.http_send(get(server.url(path))).await);
        assert!(text.contains(reason), "{path}: {text}");
    }
    assert!(inside.received().is_empty(), "nothing was sent");
    assert!(matches!(call.http_send(get(server.url("/nothing"))).await, Err(HttpError::Unavailable(_))));
    assert_eq!(call.http_send(get(server.url("/none"))).await.expect("an answer").status, 302);
}

#[tokio::test]
async fn a_secret_follows_only_to_where_it_is_bound() {
    let other = Server::new(|_| answer(200, "", "other")).await;
    let other_port = other.port;
    let server = Server::new(move |request| match request.line().split(' ').nth(1).expect("a path") {
        "/away" => found(307, &format!("http://127.0.0.1:{other_port}/")),
        "/here" => found(307, "/end"),
        _ => answer(200, "", "end"),
    })
    .await;
    let world = Plan::hosts(&[&server.grant(), &other.grant()])
        .bound_secret("bound", "bound-token", &[&server.grant()])
        .secret("free", "free-token")
        .world();
    let mut call = world.call();
    let (bound, free) = (call.open_secret("bound").expect("opened"), call.open_secret("free").expect("opened"));
    let auth = vec![
        Auth { secret: bound.clone(), place: Place::Header(header("Authorization", "Bearer ")) },
        Auth { secret: free.clone(), place: Place::Header(header("X-Free", "")) },
    ];
    call.http_send(HttpRequest { auth: auth.clone(), ..get(server.url("/here")) }).await.expect("an answer");
    let stayed = server.received().pop().expect("a request");
    assert_eq!(stayed.header("authorization"), Some("Bearer bound-token"));
    call.http_send(HttpRequest { auth, ..get(server.url("/away")) }).await.expect("an answer");
    let followed = other.received().pop().expect("a request");
    assert_eq!((followed.header("authorization"), followed.header("x-free")), (None, Some("free-token")));

    // A guest's own authorization stays with the host that it was for.
    let request = HttpRequest { headers: vec![header("Authorization", "own")], ..get(server.url("/away")) };
    call.http_send(request).await.expect("an answer");
    assert_eq!(other.received().pop().expect("a request").header("authorization"), None);

    // A secret in a body cannot be taken out of it.
    let body = |secret| HttpRequest {
        method: Method::Post,
        headers: vec![header("content-type", "application/json")],
        body: Some(b"{\"a\":\"PLACE_01\"}".to_vec()),
        auth: vec![Auth { secret, place: Place::Body("PLACE_01".to_owned()) }],
        ..get(server.url("/away"))
    };
    let before = other.received().len();
    assert!(denied(call.http_send(body(bound)).await).contains("secrets.bound.hosts"));
    assert_eq!(other.received().len(), before);
    call.http_send(body(free)).await.expect("an answer");
    assert_eq!(other.received().pop().expect("a request").body, b"{\"a\":\"free-token\"}");
    invalid(call.http_send(get("http://[broken")).await);
}

#[tokio::test]
async fn a_host_that_is_held_back_is_not_reached_by_a_redirect() {
    let busy = Server::new(|_| answer(429, "Retry-After: 30\r\n", "")).await;
    let busy_port = busy.port;
    let server = Server::new(move |_| found(307, &format!("http://127.0.0.1:{busy_port}/"))).await;
    let world = Plan::hosts(&[&server.grant(), &busy.grant()]).world();
    let mut call = world.call();
    assert_eq!(call.http_send(get(server.url("/"))).await.expect("an answer").status, 429);
    assert!(matches!(call.http_send(get(server.url("/"))).await, Err(HttpError::RetryAfter(30))));
    let post = HttpRequest { method: Method::Post, ..get(server.url("/")) };
    assert!(matches!(call.http_send(post).await, Err(HttpError::Unavailable(_))), "something was sent");
    assert_eq!(busy.received().len(), 1);
}
