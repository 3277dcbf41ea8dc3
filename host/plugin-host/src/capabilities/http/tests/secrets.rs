//! Secrets in requests and answers: a guest never sees one.

use super::{HttpResponse, denied, invalid, limited};
use crate::capabilities::redact::MARK;
use crate::capabilities::testing::{Plan, Server, answer, capture, get, header};
use crate::capabilities::{Auth, CallState, HttpError, HttpRequest, Method, Place, SecretHandle};

fn bearer(secret: &SecretHandle) -> Auth {
    Auth { secret: secret.clone(), place: Place::Header(header("Authorization", "Bearer ")) }
}

/// Everything of an answer that a guest sees.
fn seen(response: &HttpResponse) -> String {
    format!("{:?} {}", response, String::from_utf8_lossy(&response.body))
}

#[tokio::test]
async fn secrets_go_where_they_are_placed() {
    let server = Server::new(|_| answer(200, "", "")).await;
    let world = Plan::hosts(&[&server.grant()]).secret("token", "to\"ken/&=x").world();
    let mut call = world.call();
    let secret = call.open_secret("token").expect("opened");
    let place = |place| Auth { secret: secret.clone(), place };
    let post = |content_type: &str, body: &str, auth| HttpRequest {
        method: Method::Post,
        headers: vec![header("Content-Type", content_type)],
        body: Some(body.as_bytes().to_vec()),
        auth,
        ..get(server.url("/"))
    };
    call.http_send(HttpRequest { auth: vec![bearer(&secret)], ..get(server.url("/")) }).await.expect("sent");
    call.http_send(HttpRequest { auth: vec![place(Place::Basic("me".to_owned()))], ..get(server.url("/")) })
        .await
        .expect("sent");
    let body = || vec![place(Place::Body("THE_SECRET".to_owned()))];
    call.http_send(post("application/json", r#"{"s":"THE_SECRET"}"#, body())).await.expect("sent");
    call.http_send(post("application/x-www-form-urlencoded", "a=b&s=THE_SECRET", body())).await.expect("sent");
    let received = server.received();
    assert_eq!(received[0].header("authorization"), Some("Bearer to\"ken/&=x"));
    assert_eq!(received[1].header("authorization"), Some("Basic bWU6dG8ia2VuLyY9eA=="));
    assert_eq!(received[2].body, br#"{"s":"to\"ken/&=x"}"#);
    assert_eq!(received[3].body, b"a=b&s=to%22ken%2F%26%3Dx");

    let count = received.len();
    for (reason, request) in [
        ("content type", post("text/plain", "THE_SECRET", body())),
        ("not in the body", post("application/json", "{}", body())),
        ("more than once", post("application/json", "THE_SECRET THE_SECRET", body())),
        ("no body", HttpRequest { auth: body(), ..get(server.url("/")) }),
        ("set twice", HttpRequest { auth: vec![bearer(&secret), bearer(&secret)], ..get(server.url("/")) }),
        ("`:`", HttpRequest { auth: vec![place(Place::Basic("a:b".to_owned()))], ..get(server.url("/")) }),
        ("the host's", HttpRequest { auth: vec![place(Place::Header(header("Cookie", "")))], ..get(server.url("/")) }),
        ("line break", HttpRequest { auth: vec![place(Place::Header(header("X", "a\r\nb")))], ..get(server.url("/")) }),
        (
            "set twice",
            HttpRequest {
                headers: vec![header("authorization", "x")],
                auth: vec![bearer(&secret)],
                ..get(server.url("/"))
            },
        ),
    ] {
        let text = invalid(call.http_send(request).await);
        assert!(text.contains(reason), "{reason}: {text}");
    }
    assert_eq!(server.received().len(), count, "nothing was sent");
}

#[tokio::test]
async fn a_secret_goes_only_to_hosts_that_it_is_bound_to() {
    let (one, two) = (Server::new(|_| answer(200, "", "")).await, Server::new(|_| answer(200, "", "")).await);
    let world = Plan::hosts(&[&one.grant(), &two.grant()]).bound_secret("token", "a-token", &[&one.grant()]).world();
    let mut call = world.call();
    let secret = call.open_secret("token").expect("opened");
    call.http_send(HttpRequest { auth: vec![bearer(&secret)], ..get(one.url("/")) }).await.expect("bound");
    let text = denied(call.http_send(HttpRequest { auth: vec![bearer(&secret)], ..get(two.url("/")) }).await);
    assert!(text.contains("`secrets.token.hosts` of the plugin `test-forge`") && text.contains(&two.grant()), "{text}");
    assert!(two.received().is_empty(), "nothing was sent");
}

#[tokio::test]
async fn an_answer_that_repeats_a_secret_is_cleaned() {
    let secret = "v3ry/s3cret+\"é";
    let server = Server::new(|request| {
        let authorization = request.header("authorization").unwrap_or_default().to_owned();
        let plain = "v3ry/s3cret+\"é";
        let url: String = url::form_urlencoded::byte_serialize(plain.as_bytes()).collect();
        let json = serde_json::to_string(plain).expect("JSON");
        let odd = r"\u00763ry\/s3cret+\u0022\u00e9";
        let body =
            format!(r#"{{"head":{},"json":{json},"odd":"{odd}","url":"{url}"}}"#, serde_json::json!(authorization));
        answer(200, &format!("X-Echo: {authorization}\r\nX-Url: https://x/?t={url}\r\n"), body)
    })
    .await;
    let world = Plan::hosts(&[&server.grant()]).secret("token", secret).world();
    for place in [Place::Header(header("Authorization", "Bearer ")), Place::Basic("user".to_owned())] {
        let mut call = world.call();
        let secret = call.open_secret("token").expect("opened");
        let request = HttpRequest { auth: vec![Auth { secret, place }], ..get(server.url("/")) };
        let response = call.http_send(request).await.expect("an answer");
        let text = seen(&response);
        for form in ["v3ry", "s3cret", "u00763ry", "dXNlcjp2M3J5"] {
            assert!(!text.contains(form), "{form} in {text}");
        }
        assert_eq!(text.matches(MARK).count(), 6, "{text}");
    }
    // Also where this call has nothing in hand.
    let text = seen(&world.call().http_send(get(server.url("/"))).await.expect("an answer"));
    assert!(!text.contains("s3cret"), "{text}");
}

#[tokio::test]
async fn a_captured_string_becomes_a_secret() {
    let server = Server::new(|request| match request.line().split(' ').nth(1).expect("a path") {
        "/token" => answer(
            201,
            "X-Token: ghs_minted/token\r\n",
            r#"{"token":"ghs_minted\/token","again":["https://x/?t=ghs_minted%2Ftoken"],"id":7,"a/b":"slashed-secret"}"#,
        ),
        _ => answer(200, "", request.head.as_bytes()),
    })
    .await;
    let world = Plan::hosts(&[&server.grant()]).world();
    let mut call = world.call();
    let request = HttpRequest {
        method: Method::Post,
        capture: vec![capture("/token", &[]), capture("/id", &[]), capture("/nothing", &[]), capture("/a~1b", &[])],
        ..get(server.url("/token"))
    };
    let response = call.http_send(request).await.expect("an answer");
    assert!(!seen(&response).contains("minted") && !seen(&response).contains("slashed"), "{}", seen(&response));
    assert_eq!(
        String::from_utf8_lossy(&response.body),
        r#"{"token":"[secret]","again":["https://x/?t=[secret]"],"id":7,"a/b":"[secret]"}"#
    );
    let captured: Vec<bool> = response.captured.iter().map(Option::is_some).collect();
    assert_eq!(captured, [true, false, false, true]);
    let token = response.captured[0].clone().expect("captured");
    assert_eq!(call.expose(&token).expect("text").expose(), "ghs_minted/token");
    let response = call.http_send(HttpRequest { auth: vec![bearer(&token)], ..get(server.url("/me")) }).await;
    assert!(String::from_utf8_lossy(&response.expect("an answer").body).contains("authorization: Bearer [secret]"));
    assert_eq!(server.received()[1].header("authorization"), Some("Bearer ghs_minted/token"));
    assert_eq!(call.redact("ghs_minted/token"), MARK);

    // Kept, it is found in answers of the call that took it up.
    call.keep(&token, "installation", 60).expect("kept");
    drop(call);
    let mut call = world.call();
    let token = call.kept_secret("installation").await.expect("kept");
    let response = call.http_send(HttpRequest { auth: vec![bearer(&token)], ..get(server.url("/me")) }).await;
    assert!(!seen(&response.expect("an answer")).contains("minted"));
}

#[tokio::test]
async fn a_captured_secret_is_bound_to_who_answered_or_to_named_hosts() {
    let token = |_: &_| answer(200, "", r#"{"token":"minted-token"}"#);
    let (one, two) = (Server::new(token).await, Server::new(token).await);
    let world = Plan::hosts(&[&one.grant(), &two.grant()]).world();
    let mut call = world.call();
    let take = async |call: &mut CallState, hosts: &[&str]| {
        let request = HttpRequest { capture: vec![capture("/token", hosts)], ..get(one.url("/")) };
        call.http_send(request).await.map(|mut response| response.captured.remove(0).expect("captured"))
    };
    let back = take(&mut call, &[]).await.expect("captured");
    call.http_send(HttpRequest { auth: vec![bearer(&back)], ..get(one.url("/")) }).await.expect("bound");
    let text = denied(call.http_send(HttpRequest { auth: vec![bearer(&back)], ..get(two.url("/")) }).await);
    assert!(text.contains("captured"), "{text}");
    let away = take(&mut call, &[&two.grant()]).await.expect("captured");
    call.http_send(HttpRequest { auth: vec![bearer(&away)], ..get(two.url("/")) }).await.expect("bound");
    denied(call.http_send(HttpRequest { auth: vec![bearer(&away)], ..get(one.url("/")) }).await);
    let count = one.received().len();
    match take(&mut call, &["evil.example"]).await {
        Err(HttpError::Denied(text)) => {
            assert!(text.contains("evil.example") && text.contains("allow_hosts"), "{text}");
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(take(&mut call, &["evil.example/x"]).await, Err(HttpError::Invalid(_))));
    assert_eq!(one.received().len(), count, "nothing was sent");
}

#[tokio::test]
async fn capturing_does_not_free_a_secret_from_its_hosts() {
    let one = Server::new(|request| {
        let authorization = request.header("authorization").unwrap_or_default().to_owned();
        answer(200, "", serde_json::json!({ "echo": authorization }).to_string())
    })
    .await;
    let two = Server::new(|_| answer(200, "", "")).await;
    let world =
        Plan::hosts(&[&one.grant(), &two.grant()]).bound_secret("token", "bound-token", &[&one.grant()]).world();
    let mut call = world.call();
    let secret = call.open_secret("token").expect("opened");
    let request = HttpRequest {
        auth: vec![bearer(&secret)],
        capture: vec![capture("/echo", &[&two.grant()])],
        ..get(one.url("/"))
    };
    let captured = call.http_send(request).await.expect("an answer").captured.remove(0).expect("captured");
    denied(call.http_send(HttpRequest { auth: vec![bearer(&captured)], ..get(two.url("/")) }).await);
    assert!(two.received().is_empty());
}

#[tokio::test]
async fn what_cannot_be_kept_secret_is_not_given_at_all() {
    let server = Server::new(|request| match request.line().split(' ').nth(1).expect("a path") {
        "/short" => answer(200, "", r#"{"token":"abc"}"#),
        "/large" => answer(200, "", format!(r#"{{"token":"{}"}}"#, "t".repeat(17 * 1024))),
        _ => answer(200, "", "no JSON"),
    })
    .await;
    let world = Plan::hosts(&[&server.grant()]).world();
    let mut call = world.call();
    let take =
        |path: &str, pointer: &str| HttpRequest { capture: vec![capture(pointer, &[])], ..get(server.url(path)) };
    match call.http_send(take("/short", "/token")).await {
        Err(HttpError::Unavailable(text)) => assert!(text.contains("/token") && !text.contains("abc"), "{text}"),
        other => panic!("{other:?}"),
    }
    assert!(limited(call.http_send(take("/large", "/token")).await).contains("limits.captured_secret_bytes"));
    let response = call.http_send(take("/text", "/token")).await.expect("an answer");
    assert!(response.captured[0].is_none());
    invalid(call.http_send(take("/short", "token")).await);
}

#[tokio::test]
async fn an_expired_secret_is_not_sent() {
    let server = Server::new(|_| answer(200, "", r#"{"token":"minted-token"}"#)).await;
    let world = Plan::hosts(&[&server.grant()]).world();
    let mut call = world.call();
    let request = HttpRequest { capture: vec![capture("/token", &[])], ..get(server.url("/")) };
    let token = call.http_send(request).await.expect("an answer").captured.remove(0).expect("captured");
    call.keep(&token, "token", 10).expect("kept");
    let kept = call.kept_secret("token").await.expect("kept");
    world.clock.advance(std::time::Duration::from_secs(10));
    let text = denied(call.http_send(HttpRequest { auth: vec![bearer(&kept)], ..get(server.url("/")) }).await);
    assert!(text.contains("expired"), "{text}");
    assert_eq!(server.received().len(), 1);
}

#[tokio::test]
async fn errors_hold_no_secret() {
    let server = Server::new(|_| answer(302, "Location: http://127.0.0.1:1/a-token\r\n", "")).await;
    let world = Plan::hosts(&[&server.grant(), "a-token.example"]).secret("token", "a-token").world();
    let mut call = world.call();
    let secret = call.open_secret("token").expect("opened");
    let auth = vec![bearer(&secret)];
    for url in [server.url("/"), "https://a-token.example/a-token".to_owned(), "https://a-token.other/".to_owned()] {
        let error = call.http_send(HttpRequest { auth: auth.clone(), ..get(url) }).await.expect_err("refused");
        assert!(!format!("{error:?}").contains("a-token"), "{error:?}");
    }
}
