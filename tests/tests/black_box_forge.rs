//! The built binary with a forge: a signed webhook becomes green check runs, built for real.

use std::time::Duration;

use harmonia_fake_forges::{Event, FakeGithub};
use harmonia_tests::repository::{commit, flake, git};
use harmonia_tests::server::{Server, folder, text, wait_for};
use tokio::task::block_in_place;

const REPOSITORY: &str = "acme/site";

/// The plugin as `./dev` built it.
fn component() -> String {
    let folder = std::env::var("HARMONIA_PLUGINS_DIR").unwrap_or_else(|_| {
        let target = std::env::var("CARGO_TARGET_DIR").unwrap_or_else(|_| "../target".to_owned());
        format!("{target}/plugins")
    });
    let path = std::path::absolute(format!("{folder}/github.wasm")).expect("a path");
    assert!(path.is_file(), "{} is not there: run ./dev plugins", path.display());
    path.display().to_string()
}

fn configuration(forge: &FakeGithub, secrets: &std::path::Path) -> String {
    for (name, value) in [("hook", forge.webhook_secret()), ("key", forge.private_key())] {
        std::fs::write(secrets.join(name), value).expect("a secret's file");
    }
    let (url, secrets) = (forge.url(), secrets.display());
    format!(
        r#"
[intervals]
reports = "200ms"
forge_loops = "200ms"

[[plugins]]
name = "hub"
path = "{}"
allow_hosts = ["{url}"]
settings = {{ app_id = "{}", api_url = "{url}", html_url = "{url}" }}
secrets = {{ webhook = "{secrets}/hook", key = "{secrets}/key" }}
auto_enable = {{ names = ["acme/*"] }}
"#,
        component(),
        forge.app_id()
    )
}

async fn post(url: &str, headers: &[(String, String)], body: &[u8]) -> u16 {
    let mut request = reqwest::Client::new().post(url).body(body.to_vec());
    for (name, value) in headers {
        request = request.header(name, value);
    }
    request.send().await.expect("an answer").status().as_u16()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_to_a_forge_is_built_and_its_commit_turns_green() {
    let data = folder();
    let repository = data.path().join("repository");
    commit(&repository, &[("flake.nix", &flake(r#"{ ok = sh "ok" "echo fine > $out" {}; }"#))]);
    let branch = git(&repository, &["rev-parse", "--abbrev-ref", "HEAD"]);
    let head = git(&repository, &["rev-parse", "HEAD"]);
    let forge = FakeGithub::start().await;
    {
        let mut world = forge.world();
        let site = world.add_repository(REPOSITORY);
        site.default_branch.clone_from(&branch);
        site.import_git(&repository);
        world.install("acme", None);
    }
    let file = data.path().join("plugins.toml");
    std::fs::write(&file, configuration(&forge, data.path())).expect("written");

    let up = data.path().join("up");
    let server = block_in_place(|| Server::up(&up, &["--config", file.to_str().expect("UTF-8")], &[]));
    let enabled = block_in_place(|| {
        wait_for(Duration::from_mins(1), || {
            let projects = server.json(&["project", "list", "--json"]);
            projects.to_string().contains(REPOSITORY).then_some(())
        })
    });
    assert!(enabled.is_some(), "the repository was discovered and enabled");

    let reference = format!("refs/heads/{branch}");
    let zeros = "0".repeat(40);
    let push =
        Event::Push { repository: REPOSITORY, reference: &reference, before: &zeros, after: &head, pusher: "acme" };
    let delivery = forge.delivery(push);
    let address = format!("{}/webhook/hub", server.url);
    assert_eq!(post(&address, &delivery.headers, b"tampered").await, 401);
    assert_eq!(post(&address, &delivery.headers, &delivery.body).await, 202);
    forge
        .until("the commit is green", |forge| {
            let runs = forge.check_runs(REPOSITORY, &head);
            let green = |name: &str| runs.get(name).and_then(|run| run.conclusion.as_deref()) == Some("success");
            green("harmonia-ci/nix-eval") && green("harmonia-ci/nix-build")
        })
        .await;

    let plugins = block_in_place(|| server.json(&["plugin", "list", "--json"]));
    let named = |name: &str| plugins.as_array().into_iter().flatten().find(|plugin| plugin["name"] == name).cloned();
    let hub = named("hub").expect("the forge is listed");
    assert_eq!((hub["kind"].as_str(), hub["failures"].as_u64()), (Some("forge"), Some(0)), "{hub}");
    let policy = named("scheduler-fair").expect("the default policy is loaded without being configured");
    assert!(policy["calls"].as_u64() > Some(0) && policy["failures"].as_u64() == Some(0), "it ranked: {policy}");
    // Nothing was left untold, and what is not there cannot be replayed.
    assert_eq!(block_in_place(|| server.json(&["dead-letters", "--json"])), serde_json::json!([]));
    let absent = block_in_place(|| server.run(&["dead-letters", "--replay", "status/999"]));
    assert!(!absent.status.success() && text(&absent).contains("no such dead letter"), "{}", text(&absent));
    assert_eq!(forge.violations(), Vec::<String>::new());
    assert!(block_in_place(|| server.stop()).success());
}
