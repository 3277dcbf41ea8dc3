//! Projects and repositories over the API.

use harmonia_core::api::{ApiError, ProjectAdded, ProjectSettings, RepositoryInfo};
use harmonia_core::forge::ForgeRepository;
use reqwest::{Method, Response};
use serde_json::{Value, json};

use crate::forge::{FORGE, repository};
use crate::world::{TOKEN, World};

impl World {
    async fn send(&self, method: Method, path: &str, body: &Value) -> Response {
        self.request(method, path).bearer_auth(TOKEN).json(body).send().await.expect("answered")
    }

    async fn add(&self, body: Value) -> ProjectAdded {
        let answer = self.send(Method::POST, "/api/v1/projects", &body).await;
        assert_eq!(answer.status().as_u16(), 200, "{body}");
        answer.json().await.expect("JSON")
    }

    async fn get_as_admin<T: serde::de::DeserializeOwned>(&self, path: &str) -> T {
        let answer = self.request(Method::GET, path).bearer_auth(TOKEN).send().await.expect("answered");
        assert_eq!(answer.status().as_u16(), 200, "{path}");
        answer.json().await.expect("JSON")
    }
}

async fn refusal(response: Response) -> (u16, String) {
    let status = response.status().as_u16();
    let error: ApiError = response.json().await.expect("an ApiError");
    (status, error.message)
}

#[tokio::test]
async fn a_git_repository_becomes_a_project() {
    let world = World::start().await;
    let added = world.add(json!({ "kind": "git", "url": "https://example.org/group/thing.git" })).await;
    assert_eq!((added.name.as_str(), added.page.as_str()), ("example.org/group/thing", "/ci/example.org/group/thing/"));
    world.text(&added.page).await;
    let named =
        json!({ "kind": "git", "url": "file:///srv/x", "name": "mine", "branch": "trunk", "poll_interval_s": 0 });
    world.add(named.clone()).await;
    let listed: Vec<ProjectSettings> = world.get_as_admin("/api/v1/project-settings").await;
    let rows: Vec<_> =
        listed.iter().map(|p| (p.name.as_str(), p.default_branch.as_deref(), p.poll_interval_s, p.enabled)).collect();
    assert_eq!(rows, [("example.org/group/thing", None, 60, true), ("mine", Some("trunk"), 0, true)]);
    for (field, value) in [
        ("url", json!("ext::sh -c id")),
        ("url", json!("https://user:password@example.org/x")),
        ("name", json!("settings/x")),
        ("name", json!("../x")),
        ("branch", json!("-x")),
        ("poll_interval_s", json!(99_999_999)),
        ("name", json!("mine")),
    ] {
        let mut bad = named.clone();
        bad[field] = value;
        let (status, message) = refusal(world.send(Method::POST, "/api/v1/projects", &bad).await).await;
        assert_eq!(status, 422, "{field}: {message}");
    }
    for bad in [json!({}), json!({ "kind": "git" }), json!({ "kind": "git", "url": "file:///x", "colour": 1 })] {
        assert_eq!(refusal(world.send(Method::POST, "/api/v1/projects", &bad).await).await.0, 400, "{bad}");
    }
    world.stop().await;
}

#[tokio::test]
async fn a_forges_repository_is_enabled_changed_and_disabled() {
    let world = World::start().await;
    world.db().upsert_repositories(FORGE, &[repository("1", "o/a"), repository("2", "queue/b")]).await.expect("upsert");
    let enable = |name: &str| json!({ "kind": "repository", "forge": FORGE, "repository": name });
    assert_eq!(world.add(enable("o/a")).await.name, "o/a");
    assert_eq!(world.add(enable("o/a")).await.name, "o/a", "again is fine");
    assert_eq!(world.add(enable("queue/b")).await.name, "forge/queue/b", "a page is not hidden");
    let (status, message) = refusal(world.send(Method::POST, "/api/v1/projects", &enable("o/none")).await).await;
    assert!(status == 404 && message.contains("o/none"), "{message}");
    assert!(message.contains("`harmonia-ci project repositories`"), "who runs a command is told of one: {message}");

    let set = async |name: &str, changes: Value| {
        world.send(Method::PATCH, &format!("/api/v1/projects/{name}"), &changes).await
    };
    let changed: ProjectSettings =
        set("o/a", json!({ "pr_trust": "all", "branch_patterns": ["v*"] })).await.json().await.expect("JSON");
    assert_eq!((changed.pr_trust.as_str(), changed.branch_patterns), ("all", vec!["v*".to_owned()]));
    let off: ProjectSettings = set("forge/queue/b", json!({ "enabled": false })).await.json().await.expect("JSON");
    assert!(!off.enabled);
    for bad in [json!({ "is_public": false }), json!({ "default_branch": "x" }), json!({ "scheduling_shares": 0 })] {
        assert_eq!(refusal(set("o/a", bad.clone()).await).await.0, 422, "{bad}");
    }
    assert_eq!(refusal(set("o/a", json!({ "colour": "red" })).await).await.0, 400);
    assert_eq!(refusal(set("o/none", json!({ "enabled": true })).await).await.0, 404);
    let found: Vec<RepositoryInfo> = world.get_as_admin("/api/v1/repositories?search=O/").await;
    assert_eq!((found.len(), found[0].project.as_deref(), found[0].enabled), (1, Some("o/a"), true));
    let pages: Vec<RepositoryInfo> = world.get_as_admin("/api/v1/repositories?limit=1&after=forge:o/a").await;
    assert_eq!(pages[0].full_name, "queue/b");
    assert_eq!(refusal(world.get("/api/v1/repositories?after=x").await).await.0, 400);
    world.stop().await;
}

#[tokio::test]
async fn private_repositories_are_for_those_with_a_token() {
    let world = World::start().await;
    let private = ForgeRepository { is_private: true, ..repository("2", "o/secret") };
    world.db().upsert_repositories(FORGE, &[repository("1", "o/open"), private]).await.expect("upsert");
    for name in ["o/open", "o/secret"] {
        world.add(json!({ "kind": "repository", "forge": FORGE, "repository": name })).await;
    }
    for path in [
        "/api/v1/repositories",
        "/api/v1/repositories?search=secret",
        "/api/v1/project-settings",
        "/api/v1/project-settings?project=o/secret",
        "/api/v1/projects",
        "/ci/",
        "/ci/settings/projects",
    ] {
        let text = world.text(path).await;
        assert!(!text.contains("secret"), "{path}: {text}");
    }
    assert!(world.text("/ci/settings/projects").await.contains("forge:o/open"));
    assert_eq!(world.get("/ci/o/secret/").await.status().as_u16(), 404);
    let all: Vec<RepositoryInfo> = world.get_as_admin("/api/v1/repositories").await;
    assert_eq!(all.len(), 2);
    let settings: Vec<ProjectSettings> = world.get_as_admin("/api/v1/project-settings").await;
    assert_eq!(settings.len(), 2);
    // A wrong token is told, not taken for none.
    let wrong = world.request(Method::GET, "/api/v1/repositories").bearer_auth("guess").send().await.expect("answered");
    assert_eq!(refusal(wrong).await.0, 401);
    for (method, path) in [
        (Method::POST, "/api/v1/projects"),
        (Method::PATCH, "/api/v1/projects/o/open"),
        (Method::GET, "/api/v1/deliveries"),
        (Method::POST, "/api/v1/deliveries/1/replay"),
        (Method::POST, "/api/v1/deliveries/replay"),
    ] {
        let bare = world.request(method, path).body("{}").send().await.expect("answered");
        assert_eq!(refusal(bare).await.0, 401, "{path}");
    }
    world.stop().await;
}
