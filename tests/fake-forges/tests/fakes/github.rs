//! The fake GitHub: what it answers is what GitHub publishes, and what GitHub would not understand is caught.

use crate::client::{Client, jwt};
use harmonia_fake_forges::{Effect, FakeGithub, Permission, When};
use serde_json::{Value, json};
use time::OffsetDateTime;

/// One installation on `acme` with a repository, and a client that holds its token.
async fn installed() -> (FakeGithub, Client, String) {
    let forge = FakeGithub::start().await;
    let (installation, head) = {
        let mut world = forge.world();
        world.add_organization("acme");
        world.add_repository("acme/site");
        let head = world.push("acme/site", "main", "A second commit");
        (world.install("acme", None), head)
    };
    let app = Client::new(forge.url(), &format!("Bearer {}", jwt(&forge, 0, 500)));
    let (status, body) = app.post(&format!("/app/installations/{installation}/access_tokens"), &json!({})).await;
    assert_eq!(status, 201, "{body}");
    let client = Client::new(forge.url(), &format!("Bearer {}", body["token"].as_str().expect("a token")));
    (forge, client, head)
}

#[tokio::test]
async fn every_operation_answers_as_published() {
    let (forge, client, head) = installed().await;
    let number = {
        let mut world = forge.world();
        world.add_user("alice");
        world.repository_mut("acme/site").collaborators.insert("alice".to_owned(), Permission::Write);
        let number = world.open_pull_request("acme/site", "mallory/site", "patch-1", "mallory");
        world.add_comment("acme/site", number, "alice", "/ci run");
        number
    };
    let app = Client::new(forge.url(), &format!("Bearer {}", jwt(&forge, 0, 500)));
    for path in ["/app", "/app/installations", "/repos/acme/site/installation"] {
        let (status, body) = app.get(path).await;
        assert_eq!(status, 200, "{path}: {body}");
    }
    let run = json!({
        "name": "harmonia-ci/nix-eval", "head_sha": head, "status": "in_progress", "details_url": "https://ci.example.org/1",
        "output": { "title": "3/42 done", "summary": "…", "annotations": [
            { "path": "flake.nix", "start_line": 1, "end_line": 1, "annotation_level": "failure", "message": "no" }] },
    });
    let (status, body) = client.post("/repos/acme/site/check-runs", &run).await;
    assert_eq!(status, 201, "{body}");
    let done =
        json!({ "status": "completed", "conclusion": "success", "output": { "title": "done", "summary": "all" } });
    let (status, body) = client.patch(&format!("/repos/acme/site/check-runs/{}", body["id"]), &done).await;
    assert_eq!(status, 200, "{body}");
    let state =
        json!({ "state": "pending", "context": "harmonia-ci/nix-build", "target_url": null, "description": "queued" });
    let (status, body) = client.post(&format!("/repos/acme/site/statuses/{head}"), &state).await;
    assert_eq!(status, 201, "{body}");
    let (status, body) =
        client.post(&format!("/repos/acme/site/issues/{number}/comments"), &json!({ "body": "hello" })).await;
    assert_eq!(status, 201, "{body}");
    let id = forge.world().repository("acme/site").id;
    for path in [
        "/installation/repositories?per_page=100".to_owned(),
        "/repos/acme/site".to_owned(),
        format!("/repositories/{id}"),
        "/repos/acme/site/branches/main".to_owned(),
        "/repos/acme/site/commits/main".to_owned(),
        format!("/repos/acme/site/git/commits/{head}"),
        "/repos/acme/site/git/ref/heads/main".to_owned(),
        "/repos/acme/site/pulls?state=open&per_page=50".to_owned(),
        format!("/repos/acme/site/pulls/{number}"),
        "/repos/acme/site/collaborators/alice/permission".to_owned(),
        format!("/repos/acme/site/commits/{head}/check-runs?check_name=harmonia-ci%2Fnix-eval"),
        format!("/repos/acme/site/commits/{head}/statuses"),
        format!("/repos/acme/site/commits/{head}/status"),
        format!("/repos/acme/site/issues/{number}/comments"),
        "/rate_limit".to_owned(),
    ] {
        let (status, body) = client.get(&path).await;
        assert_eq!(status, 200, "{path}: {body}");
    }
    assert_eq!(forge.violations(), Vec::<String>::new());
    let (_, permission) = client.get("/repos/acme/site/collaborators/alice/permission").await;
    assert_eq!(permission["permission"], "write");
    let (_, pull) = client.get(&format!("/repos/acme/site/pulls/{number}")).await;
    assert_eq!(pull["head"]["repo"]["full_name"], "mallory/site");
    assert_eq!(pull["user"]["login"], "mallory");
    let (_, commit) = client.get(&format!("/repos/acme/site/git/commits/{head}")).await;
    assert_eq!(commit["tree"]["sha"], forge.world().repository("acme/site").commits[&head].tree.as_str());
    assert_eq!(forge.statuses("acme/site", &head)["harmonia-ci/nix-build"].state, "pending");
    let runs = forge.check_runs("acme/site", &head);
    assert_eq!(runs["harmonia-ci/nix-eval"].conclusion.as_deref(), Some("success"));
    assert_eq!(runs["harmonia-ci/nix-eval"].annotations.len(), 1);
    // A fork that is gone.
    forge.world().repository_mut("acme/site").pull_request_mut(number).head_repository = None;
    let (_, pull) = client.get(&format!("/repos/acme/site/pulls/{number}")).await;
    assert_eq!(pull["head"]["repo"], Value::Null);
    assert_eq!(forge.violations(), Vec::<String>::new());
}

#[tokio::test]
async fn requests_that_github_would_not_understand_are_violations() {
    let (forge, client, head) = installed().await;
    let post = format!("/repos/acme/site/statuses/{head}");
    let run = "/repos/acme/site/check-runs".to_owned();
    let cases = [
        (
            "a misspelt field",
            "POST",
            post.clone(),
            json!({ "state": "pending", "contxt": "x" }),
            "/contxt: there is no such field",
        ),
        ("a wrong type", "POST", post.clone(), json!({ "state": "pending", "context": 7 }), "is not of type"),
        ("a wrong value", "POST", post.clone(), json!({ "state": "running" }), "is not one of"),
        ("a missing field", "POST", post.clone(), json!({ "context": "x" }), "\"state\" is a required property"),
        (
            "a field in the depth",
            "POST",
            run.clone(),
            json!({ "name": "x", "head_sha": head, "output": { "title": "t", "summary": "s", "sumary": "s" } }),
            "/output/sumary",
        ),
        (
            "a time that is none",
            "POST",
            run.clone(),
            json!({ "name": "x", "head_sha": head, "started_at": "today" }),
            "date-time",
        ),
        ("no conclusion", "POST", run, json!({ "name": "x", "head_sha": head, "status": "completed" }), "conclusion"),
        ("an unknown path", "GET", "/repos/acme/site/brunches/main".to_owned(), Value::Null, "no such operation"),
        ("one that the fake lacks", "GET", "/repos/acme/site/contributors".to_owned(), Value::Null, "does not answer"),
        (
            "an unknown parameter",
            "GET",
            "/repos/acme/site/pulls?stat=open".to_owned(),
            Value::Null,
            "query parameter stat",
        ),
        (
            "a parameter's value",
            "GET",
            "/repos/acme/site/pulls?state=opened".to_owned(),
            Value::Null,
            "parameter state",
        ),
        ("a parameter's type", "GET", "/repos/acme/site/pulls?page=first".to_owned(), Value::Null, "no integer"),
        ("a number in the path", "GET", "/repos/acme/site/pulls/one".to_owned(), Value::Null, "pull_number"),
        (
            "too large a page",
            "GET",
            "/installation/repositories?per_page=500".to_owned(),
            Value::Null,
            "per_page is at most",
        ),
        ("the app's operation", "GET", "/app".to_owned(), Value::Null, "the app's"),
        ("a user's operation", "GET", "/user".to_owned(), Value::Null, "who the user is"),
        ("too long a description", "POST", post, json!({ "state": "pending", "description": "x".repeat(141) }), "140"),
    ];
    for (what, method, path, body, expected) in cases {
        forge.forget();
        let (status, answer) = client.send(method, &path, &body).await;
        let violations = forge.violations();
        assert!(violations.iter().any(|violation| violation.contains(expected)), "{what}: {violations:?} {answer}");
        assert!(status >= 400 || what == "too large a page", "{what}: {status}");
    }
}

#[tokio::test]
async fn headers_and_tokens_are_checked() {
    let (forge, client, _) = installed().await;
    let url = |path: &str| format!("{}{path}", forge.url());
    let plain = reqwest::Client::new();
    let bad = [
        ("User-Agent", plain.get(url("/repos/acme/site")).header("authorization", client.authorization())),
        ("Authorization is missing", plain.get(url("/repos/acme/site")).header("user-agent", "test")),
        (
            "never issued",
            plain.get(url("/repos/acme/site")).header("user-agent", "t").header("authorization", "Bearer nonsense"),
        ),
        ("API version", client.request("GET", "/repos/acme/site").header("x-github-api-version", "2020-01-01")),
        ("Accept", plain.get(url("/repos/acme/site")).header("user-agent", "t").header("accept", "application/xml")),
        (
            "content-type",
            client.request("POST", "/repos/acme/site/statuses/x").header("content-type", "text/plain").body("{}"),
        ),
    ];
    for (expected, request) in bad {
        forge.forget();
        let status = request.send().await.expect("it answers").status();
        assert!(status.is_client_error(), "{expected}: {status}");
        let violations = forge.violations();
        assert!(violations.iter().any(|violation| violation.contains(expected)), "{expected}: {violations:?}");
    }
    for (expected, token) in [
        ("more than 600", jwt(&forge, 0, 700)),
        ("expired", jwt(&forge, -700, -100)),
        ("in the future", jwt(&forge, 200, 500)),
        ("not signed by the app's key", format!("{}AAAA", jwt(&forge, 0, 500))),
    ] {
        forge.forget();
        let (status, _) = Client::new(forge.url(), &format!("Bearer {token}")).get("/app").await;
        assert_eq!(status, 401);
        let violations = forge.violations();
        assert!(violations.iter().any(|violation| violation.contains(expected)), "{expected}: {violations:?}");
    }
    let other = FakeGithub::start().await;
    let (status, _) = Client::new(forge.url(), &format!("Bearer {}", jwt(&other, 0, 500))).get("/app").await;
    assert_eq!(status, 401, "another key's signature");
}

#[tokio::test]
async fn a_token_reaches_as_far_as_its_installation() {
    let (forge, client, _) = installed().await;
    {
        let mut world = forge.world();
        world.add_repository("other/secret").private = true;
        world.add_repository("other/open");
    }
    assert_eq!(client.get("/repos/other/secret").await.0, 404);
    assert_eq!(client.get("/repos/other/open").await.0, 200);
    let head = forge.world().repository("other/open").head("main").to_owned();
    assert_eq!(client.post(&format!("/repos/other/open/statuses/{head}"), &json!({ "state": "success" })).await.0, 403);
    // Renamed: the former name redirects to the id.
    forge.world().rename("acme/site", "acme/home");
    let (status, body) = client.get("/repos/acme/site/branches/main").await;
    assert_eq!((status, &body["name"]), (200, &json!("main")));
    let paths: Vec<String> = forge.requests().iter().rev().take(2).map(|request| request.path.clone()).collect();
    assert!(paths[0].starts_with("/repositories/") && paths[0].ends_with("/branches/main"), "{paths:?}");
    // Suspended, and an hour later expired.
    let id = *forge.world().installations.keys().next().expect("one installation");
    forge.world().installations.get_mut(&id).expect("it is there").suspended = true;
    assert_eq!(client.get("/repos/acme/home").await.0, 403);
    forge.world().installations.get_mut(&id).expect("it is there").suspended = false;
    assert_eq!(client.get("/repos/acme/home").await.0, 200);
    forge.world().set_clock(|| OffsetDateTime::now_utc() + time::Duration::hours(2));
    assert_eq!(client.get("/repos/acme/home").await.0, 401);
    forge.world().uninstall(id);
    assert_eq!(forge.violations(), Vec::<String>::new());
}

#[tokio::test]
async fn lists_come_in_pages() {
    let (forge, client, _) = installed().await;
    for number in 0..6 {
        forge.world().add_repository(&format!("acme/r{number}"));
    }
    let response = client.request("GET", "/installation/repositories?per_page=3").send().await.expect("it answers");
    let link = response.headers()["link"].to_str().expect("text").to_owned();
    let page: Value = serde_json::from_slice(&response.bytes().await.expect("a body")).expect("JSON");
    assert_eq!(page["total_count"], 7);
    assert_eq!(page["repositories"].as_array().map(Vec::len), Some(3));
    let url = forge.url();
    let expected = format!(
        "<{url}/installation/repositories?per_page=3&page=2>; rel=\"next\", <{url}/installation/repositories?per_page=3&page=3>; rel=\"last\""
    );
    assert_eq!(link, expected);
    let (_, last) = client.get("/installation/repositories?per_page=3&page=3").await;
    assert_eq!(last["repositories"].as_array().map(Vec::len), Some(1));
    let (_, beyond) = client.get("/installation/repositories?per_page=3&page=4").await;
    assert_eq!(beyond["repositories"], json!([]));
    // Unchanged answers are not sent again.
    let first = client.request("GET", "/repos/acme/r1").send().await.expect("it answers");
    let tag = first.headers()["etag"].to_str().expect("text").to_owned();
    let again = client.request("GET", "/repos/acme/r1").header("if-none-match", tag).send().await.expect("it answers");
    assert_eq!(again.status(), 304);
    assert_eq!(forge.violations(), Vec::<String>::new());
}

#[tokio::test]
async fn faults_happen_when_told() {
    let (forge, client, head) = installed().await;
    let status = format!("/repos/acme/site/statuses/{head}");
    let body = json!({ "state": "success", "context": "x" });
    let faults = forge.faults();
    // Applied, and no answer: what the client cannot tell from nothing having happened.
    faults.add(When::request("POST", "/statuses/").times(1), Effect::DropAfter);
    assert!(client.request("POST", &status).json(&body).send().await.is_err());
    assert_eq!(forge.statuses("acme/site", &head).len(), 1);
    faults.add(When::request("POST", "/statuses/").times(1), Effect::DropBefore);
    assert!(client.request("POST", &status).json(&json!({ "state": "error", "context": "y" })).send().await.is_err());
    assert_eq!(forge.statuses("acme/site", &head).len(), 1);
    faults.add(When::always().times(1), Effect::RateLimitUsedUp { reset_after: 60 });
    let limited = client.request("GET", "/repos/acme/site").send().await.expect("it answers");
    assert_eq!((limited.status().as_u16(), limited.headers()["x-ratelimit-remaining"].as_bytes()), (403, &b"0"[..]));
    faults.add(When::always().times(1), Effect::SecondaryRateLimit { retry_after: 7 });
    let limited = client.request("GET", "/repos/acme/site").send().await.expect("it answers");
    assert_eq!((limited.status().as_u16(), limited.headers()["retry-after"].as_bytes()), (403, &b"7"[..]));
    faults.add(When::always().times(1), Effect::CutOff);
    let cut = client.request("GET", "/repos/acme/site").send().await.expect("the head arrives");
    assert!(cut.bytes().await.is_err());
    faults.down();
    assert_eq!(client.request("GET", "/app").send().await.expect("it answers").status(), 502);
    faults.clear();
    faults.unreachable();
    assert!(client.request("GET", "/app").send().await.is_err());
    faults.clear();
    // Held back until the test has seen it arrive.
    let gate = faults.hold(When::path("/branches/"));
    let asked = async { client.get("/repos/acme/site/branches/main").await.0 };
    let opened = async {
        gate.reached_by(1).await;
        gate.open();
    };
    assert_eq!(tokio::join!(asked, opened).0, 200);
    let log = forge.requests();
    assert!(log.iter().all(|request| request.header("authorization").is_none_or(|value| value == "Bearer …")));
    assert!(log.iter().any(|request| request.status.is_none()));
    forge.until("the log is there", |forge| forge.requests().len() >= log.len()).await;
    assert_eq!(forge.violations(), Vec::<String>::new());
}

#[tokio::test]
async fn people_log_in() {
    let forge = FakeGithub::start().await;
    let back = "http://127.0.0.1:9/auth/callback";
    // RFC 7636, appendix B.
    let (verifier, challenge) =
        ("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk", "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM");
    let page = format!(
        "{}/login/oauth/authorize?client_id={}&redirect_uri={back}&state=s1&code_challenge={challenge}&code_challenge_method=S256",
        forge.url(),
        forge.client_id()
    );
    let exchange = async |code: &str, verifier: &str| {
        let form = format!(
            "client_id={}&client_secret={}&code={code}&redirect_uri={back}&code_verifier={verifier}",
            forge.client_id(),
            forge.client_secret()
        );
        let request = reqwest::Client::new()
            .post(format!("{}/login/oauth/access_token", forge.url()))
            .header("accept", "application/json")
            .header("content-type", "application/x-www-form-urlencoded")
            .body(form);
        let response = request.send().await.expect("it answers");
        serde_json::from_slice::<Value>(&response.bytes().await.expect("a body")).expect("JSON")
    };
    let code = |address: String| {
        let address = url::Url::parse(&address).expect("an address");
        address.query_pairs().find(|(name, _)| name == "code").expect("a code").1.into_owned()
    };
    let first = code(forge.approve(&page, "alice").expect("the page is right"));
    assert_eq!(exchange(&first, &verifier.replace('d', "e")).await["error"], "bad_verification_code");
    let second = code(forge.approve(&page, "alice").expect("the page is right"));
    let token = exchange(&second, verifier).await["access_token"].as_str().expect("a token").to_owned();
    assert_eq!(exchange(&second, verifier).await["error"], "bad_verification_code", "a code is good for once");
    let (status, user) = Client::new(forge.url(), &format!("Bearer {token}")).get("/user").await;
    assert_eq!((status, &user["login"]), (200, &json!("alice")));
    assert_eq!(forge.violations(), Vec::<String>::new());
    assert!(forge.approve(&page.replace("&state=s1", ""), "alice").is_err());
    assert!(forge.approve(&page.replace("S256", "plain"), "alice").is_err());
    assert_eq!(forge.violations().len(), 2);
    assert!(
        !forge.requests().iter().any(|request| String::from_utf8_lossy(&request.body).contains(forge.client_secret()))
    );
}
