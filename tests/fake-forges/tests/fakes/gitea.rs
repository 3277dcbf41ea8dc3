//! The fake Gitea: what it answers is what the forge publishes, and what the forge would not understand is caught.

use harmonia_fake_forges::{
    CommentAction, Delivery, Effect, Event, FakeGitea, Label, Permission, PullRequestAction, RepositoryAction, When,
};
use serde_json::{Value, json};

use crate::client::{Client, hmac_sha256};

const SECRET: &str = "a secret of this webhook";

async fn with_repository() -> (FakeGitea, Client, String) {
    let forge = FakeGitea::start().await;
    forge.add_repository("acme/site");
    let head = forge.world().push("acme/site", "main", "A second commit");
    let client = Client::new(&format!("{}/api/v1", forge.url()), &format!("token {}", forge.token()));
    (forge, client, head)
}

fn hook(events: &[&str]) -> Value {
    let config = json!({ "url": "https://ci.example.org/webhook/gitea", "content_type": "json", "secret": SECRET });
    json!({ "type": "gitea", "active": true, "events": events, "config": config })
}

#[tokio::test]
async fn every_operation_answers_as_published() {
    let (forge, client, head) = with_repository().await;
    let (number, id) = {
        let mut world = forge.world();
        world.add_organization("guild").members.insert("harmonia".to_owned());
        world.add_repository("guild/tool");
        world.add_user("alice");
        world.repository_mut("acme/site").collaborators.insert("alice".to_owned(), Permission::Write);
        let number = world.open_pull_request("acme/site", "mallory/site", "patch/1", "mallory");
        world.add_comment("acme/site", number, "alice", "/ci run");
        (number, world.repository("acme/site").id)
    };
    let status = json!({ "state": "pending", "context": "harmonia-ci/nix-eval", "description": "queued", "target_url": "https://ci/1" });
    assert_eq!(client.post(&format!("/repos/acme/site/statuses/{head}"), &status).await.0, 201);
    assert_eq!(
        client.post(&format!("/repos/acme/site/issues/{number}/comments"), &json!({ "body": "hello" })).await.0,
        201
    );
    let (status, body) = client.post("/repos/acme/site/hooks", &hook(&["push", "pull_request"])).await;
    assert_eq!(status, 201, "{body}");
    assert_eq!(body["config"]["secret"], Value::Null, "the secret is never told");
    let events = body["events"].as_array().expect("a list");
    assert!(
        events.contains(&json!("pull_request_sync")) && events.contains(&json!("pull_request_comment")),
        "{events:?}"
    );
    let installed = format!("/repos/acme/site/hooks/{}", body["id"]);
    let (status, edited) =
        client.patch(&installed, &json!({ "active": true, "config": { "url": "https://other.example.org" } })).await;
    assert_eq!(
        (status, &edited["events"], &edited["config"]["url"]),
        (200, &json!(["push"]), &json!("https://other.example.org"))
    );
    for path in [
        "/version".to_owned(),
        "/user".to_owned(),
        "/users/alice".to_owned(),
        "/user/repos?limit=50".to_owned(),
        "/user/orgs".to_owned(),
        "/orgs/guild/repos".to_owned(),
        "/repos/acme/site".to_owned(),
        format!("/repositories/{id}"),
        "/repos/acme/site/branches".to_owned(),
        "/repos/acme/site/branches/main".to_owned(),
        "/repos/mallory/site/branches/patch%2F1".to_owned(),
        "/repos/mallory/site/branches/patch/1".to_owned(),
        format!("/repos/acme/site/git/commits/{head}"),
        "/repos/acme/site/commits?sha=main&limit=1&stat=false".to_owned(),
        "/repos/acme/site/pulls?state=open".to_owned(),
        format!("/repos/acme/site/pulls/{number}"),
        "/repos/acme/site/collaborators/alice/permission".to_owned(),
        format!("/repos/acme/site/statuses/{head}"),
        format!("/repos/acme/site/commits/{head}/statuses"),
        format!("/repos/acme/site/issues/{number}/comments"),
        "/repos/acme/site/hooks".to_owned(),
        installed.clone(),
    ] {
        let (status, body) = client.get(&path).await;
        assert_eq!(status, 200, "{path}: {body}");
    }
    assert_eq!(client.send("DELETE", &installed, &Value::Null).await.0, 204);
    assert_eq!(client.get(&installed).await.0, 404);
    assert_eq!(forge.violations(), Vec::<String>::new());
    let (_, permission) = client.get("/repos/acme/site/collaborators/mallory/permission").await;
    assert_eq!(permission["permission"], "read");
    let (_, commit) = client.get(&format!("/repos/acme/site/git/commits/{head}")).await;
    assert_eq!(commit["commit"]["tree"]["sha"], forge.world().repository("acme/site").commits[&head].tree.as_str());
    assert_eq!(forge.statuses("acme/site", &head)["harmonia-ci/nix-eval"].state, "pending");
    // A fork that is gone, and a new name.
    forge.world().repository_mut("acme/site").pull_request_mut(number).head_repository = None;
    forge.world().rename("acme/site", "acme/home");
    let (_, pull) = client.get(&format!("/repos/acme/site/pulls/{number}")).await;
    assert_eq!(
        (&pull["head"]["repo"], &pull["head"]["ref"]),
        (&Value::Null, &json!(format!("refs/pull/{number}/head")))
    );
    assert_eq!(forge.violations(), Vec::<String>::new());
}

#[tokio::test]
async fn requests_that_the_forge_would_not_understand_are_violations() {
    let (forge, client, head) = with_repository().await;
    let post = format!("/repos/acme/site/statuses/{head}");
    let hooks = "/repos/acme/site/hooks".to_owned();
    let cases = [
        (
            "a misspelt field",
            "POST",
            post.clone(),
            json!({ "state": "pending", "contxt": "x" }),
            "/contxt: there is no such field",
        ),
        ("a wrong type", "POST", post.clone(), json!({ "state": "pending", "context": 7 }), "is not of type"),
        ("a wrong state", "POST", post.clone(), json!({ "state": "running" }), "is none of"),
        ("no body", "POST", post, Value::Null, "a body is required"),
        ("a missing field", "POST", hooks.clone(), json!({ "type": "gitea" }), "\"config\" is a required property"),
        ("a wrong type of hook", "POST", hooks.clone(), json!({ "type": "web", "config": {} }), "is not one of"),
        (
            "a missing option",
            "POST",
            hooks.clone(),
            json!({ "type": "gitea", "config": { "url": "x" } }),
            "config lacks",
        ),
        ("an unknown event", "POST", hooks, hook(&["push", "pull_requests"]), "no event pull_requests"),
        ("an unknown path", "GET", "/repos/acme/site/brunches".to_owned(), Value::Null, "no such operation"),
        ("one that the fake lacks", "GET", "/repos/acme/site/topics".to_owned(), Value::Null, "does not answer"),
        ("GitHub's parameter", "GET", "/user/repos?per_page=50".to_owned(), Value::Null, "query parameter per_page"),
        (
            "a parameter's value",
            "GET",
            "/repos/acme/site/pulls?state=opened".to_owned(),
            Value::Null,
            "parameter state",
        ),
        ("a number in the path", "GET", "/repos/acme/site/pulls/one".to_owned(), Value::Null, "no integer"),
    ];
    for (what, method, path, body, expected) in cases {
        forge.forget();
        let (status, answer) = client.send(method, &path, &body).await;
        let violations = forge.violations();
        assert!(
            violations.iter().any(|violation| violation.contains(expected)),
            "{what}: {violations:?} {status} {answer}"
        );
        assert!(status >= 400 || what == "an unknown event", "{what}: {status}");
    }
    forge.forget();
    let anonymous = reqwest::get(format!("{}/api/v1/user", forge.url())).await.expect("it answers");
    assert_eq!(anonymous.status(), 401);
    assert!(forge.violations()[0].contains("Authorization is missing"));
    // What is not a mistake of the client: a revoked token, and what one may not do.
    forge.forget();
    let token = forge.world().add_token("alice");
    let alice = Client::new(&format!("{}/api/v1", forge.url()), &format!("token {token}"));
    assert_eq!(alice.get("/repos/acme/site/hooks").await.0, 403);
    assert_eq!(alice.get("/repos/acme/site/collaborators/mallory/permission").await.0, 403);
    forge.world().repository_mut("acme/site").private = true;
    assert_eq!(alice.get("/repos/acme/site").await.0, 404);
    forge.world().tokens.remove(&token);
    assert_eq!(alice.get("/user").await.0, 401);
    assert_eq!(forge.violations(), Vec::<String>::new());
}

#[tokio::test]
async fn lists_come_in_pages() {
    let (forge, client, _) = with_repository().await;
    for number in 0..6 {
        forge.add_repository(&format!("acme/r{number}"));
    }
    let response = client.request("GET", "/user/repos?limit=3").send().await.expect("it answers");
    assert_eq!(response.headers()["x-total-count"].as_bytes(), b"7");
    let url = forge.url();
    let expected = format!(
        "<{url}/api/v1/user/repos?limit=3&page=2>; rel=\"next\",<{url}/api/v1/user/repos?limit=3&page=3>; rel=\"last\""
    );
    assert_eq!(response.headers()["link"].as_bytes(), expected.as_bytes());
    let (_, last) = client.get("/user/repos?limit=3&page=3").await;
    assert_eq!(last.as_array().map(Vec::len), Some(1));
    assert_eq!(client.get("/user/repos?limit=3&page=4").await.1, json!([]));
    let faults = forge.faults();
    faults.add(When::path("/user").times(1), Effect::TooManyRequests { retry_after: 3 });
    let limited = client.request("GET", "/user").send().await.expect("it answers");
    assert_eq!((limited.status().as_u16(), limited.headers()["retry-after"].as_bytes()), (429, &b"3"[..]));
    faults.down();
    assert_eq!(client.get("/user").await.0, 502);
    faults.clear();
    assert_eq!(client.get("/user").await.0, 200);
    assert_eq!(forge.violations(), Vec::<String>::new());
}

#[tokio::test]
async fn people_log_in() {
    let forge = FakeGitea::start().await;
    let back = "http://127.0.0.1:9/auth/callback";
    // RFC 7636, appendix B.
    let (verifier, challenge) =
        ("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk", "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM");
    let page = format!(
        "{}/login/oauth/authorize?client_id={}&redirect_uri={back}&response_type=code&state=s1&code_challenge={challenge}\
         &code_challenge_method=S256",
        forge.url(),
        forge.client_id()
    );
    let address = url::Url::parse(&forge.approve(&page, "alice").expect("the page is right")).expect("an address");
    let code = address.query_pairs().find(|(name, _)| name == "code").expect("a code").1.into_owned();
    let body = json!({
        "client_id": forge.client_id(), "client_secret": forge.client_secret(), "code": code, "redirect_uri": back,
        "code_verifier": verifier, "grant_type": "authorization_code",
    });
    let request = reqwest::Client::new().post(format!("{}/login/oauth/access_token", forge.url())).json(&body);
    let answer = request.send().await.expect("it answers").bytes().await.expect("a body");
    let answer: Value = serde_json::from_slice(&answer).expect("JSON");
    let token = answer["access_token"].as_str().expect("a token");
    let user = Client::new(&format!("{}/api/v1", forge.url()), &format!("Bearer {token}")).get("/user").await.1;
    assert_eq!(user["login"], "alice");
    assert_eq!(forge.violations(), Vec::<String>::new());
    assert!(forge.approve(&page.replace("&response_type=code", ""), "alice").is_err());
    assert_eq!(forge.violations().len(), 1);
}

fn check(forge: &FakeGitea, event: Event<'_>) -> Delivery {
    let delivery = forge.delivery(event);
    assert_eq!(delivery.header("x-gitea-signature"), delivery.header("x-forgejo-signature"));
    assert_eq!(delivery.url.as_deref(), Some("https://ci.example.org/webhook/gitea"));
    let body = delivery.json();
    for (field, schema) in [
        ("repository", "Repository"),
        ("pull_request", "PullRequest"),
        ("comment", "Comment"),
        ("issue", "Issue"),
        ("sender", "User"),
    ] {
        if body[field].is_object() {
            assert_eq!(forge.check_value(schema, &body[field]), Vec::<String>::new(), "{event:?} {field}");
        }
    }
    for commit in body["commits"].as_array().into_iter().flatten() {
        assert_eq!(forge.check_value("PayloadCommit", commit), Vec::<String>::new(), "{event:?}");
    }
    delivery
}

#[tokio::test]
async fn deliveries_go_to_webhooks_that_want_them() {
    let forge = FakeGitea::start_forgejo().await;
    forge.add_repository("acme/site");
    let client = Client::new(&format!("{}/api/v1", forge.url()), &format!("token {}", forge.token()));
    let repository = "acme/site";
    let first = forge.world().repository(repository).head("main").to_owned();
    let second = forge.world().push(repository, "main", "Second");
    let push =
        Event::Push { repository, reference: "refs/heads/main", before: &first, after: &second, pusher: "alice" };
    assert!(forge.deliveries(push).is_empty(), "no webhook yet");
    let (status, installed) =
        client.post("/repos/acme/site/hooks", &hook(&["push", "pull_request", "create", "repository"])).await;
    assert_eq!(status, 201);
    let moved = check(&forge, push);
    let signature = hmac_sha256(SECRET, std::slice::from_ref(&moved.body));
    assert_eq!(moved.header("x-gitea-signature"), Some(signature[0].as_str()));
    assert_eq!(moved.header("x-gitea-event"), Some("push"));
    let value = moved.json();
    assert_eq!(
        (&value["after"], &value["total_commits"], &value["repository"]["full_name"]),
        (&json!(second), &json!(1), &json!(repository))
    );
    let (number, comment) = {
        let mut world = forge.world();
        let number = world.open_pull_request(repository, "mallory/site", "patch-1", "mallory");
        world.repository_mut(repository).pull_request_mut(number).labels.push(Label { id: 3, name: "safe".to_owned() });
        (number, world.add_comment(repository, number, "mallory", "please"))
    };
    for (action, name, kind) in [
        (PullRequestAction::Opened, "opened", "pull_request"),
        (PullRequestAction::Synchronize { before: &first }, "synchronized", "pull_request_sync"),
        (PullRequestAction::Reopened, "reopened", "pull_request"),
        (PullRequestAction::Closed, "closed", "pull_request"),
        (PullRequestAction::ReadyForReview, "edited", "pull_request"),
        (PullRequestAction::TitleEdited { from: "Old" }, "edited", "pull_request"),
        (PullRequestAction::BaseEdited { from: "old" }, "edited", "pull_request"),
        (PullRequestAction::Labeled, "label_updated", "pull_request_label"),
    ] {
        let delivery = check(&forge, Event::PullRequest { repository, number, action });
        assert_eq!(delivery.json()["action"], name);
        assert_eq!(delivery.header("x-gitea-event"), Some("pull_request"));
        assert_eq!(delivery.header("x-gitea-event-type"), Some(kind));
    }
    for action in [CommentAction::Created, CommentAction::Edited { from: "hm" }, CommentAction::Deleted] {
        let delivery = check(&forge, Event::Comment { repository, id: comment, action });
        assert_eq!(delivery.header("x-gitea-event"), Some("issue_comment"));
    }
    check(&forge, Event::Create { repository, reference: "refs/heads/main" });
    check(&forge, Event::Repository { repository, action: RepositoryAction::Deleted });
    check(&forge, Event::Ping { repository });
    let delete = Event::Delete { repository, reference: "refs/heads/topic" };
    assert!(forge.deliveries(delete).is_empty(), "it was not asked for");
    let signed = forge.delivery_signed_with("other", delete);
    assert_eq!(
        signed.header("x-gitea-signature"),
        Some(hmac_sha256("other", std::slice::from_ref(&signed.body))[0].as_str())
    );
    let edit = json!({ "active": false, "events": ["push"] });
    assert_eq!(client.patch(&format!("/repos/acme/site/hooks/{}", installed["id"]), &edit).await.0, 200);
    assert!(forge.deliveries(push).is_empty(), "it was switched off");
    assert!(!forge.requests().iter().any(|request| String::from_utf8_lossy(&request.body).contains(SECRET)));
    assert_eq!(forge.violations(), Vec::<String>::new());
}
