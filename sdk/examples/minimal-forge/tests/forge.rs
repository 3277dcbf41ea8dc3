//! The forge as a component, in the true plugin host, against a server that says what the test scripts. `./dev plugins`
//! builds it.

use aws_lc_rs::hmac;
use harmonia_core::forge::{Event, ForgeError, ForgeFeature, Push, RepositoryRef, WebhookRequest};
use harmonia_core::ports::Plugins as _;
use harmonia_plugin_harness::{Answer, Harness, Running, ScriptedServer, component, conformance};
use serde_json::json;

const KEY: &str = "it's a secret to everybody";

async fn start() -> Running {
    Harness::new(component("examples/minimal-forge"))
        .server_setting("url", "/api")
        .secret("webhook", KEY)
        .secret("token", "hunter2")
        .start()
        .await
}

fn signed(key: &str, body: &str) -> WebhookRequest {
    let mac = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key.as_bytes()), body.as_bytes());
    let headers =
        [("x-forge-delivery", "d-1".to_owned()), ("x-forge-signature", format!("sha256={}", hex::encode(mac)))];
    let headers = headers.map(|(name, value)| (name.to_owned(), value)).to_vec();
    WebhookRequest { headers, body: body.as_bytes().to_vec() }
}

fn engine() -> RepositoryRef {
    RepositoryRef { id: "7".to_owned(), full_name: "ada/engine".to_owned() }
}

const PUSH: &str = r#"{"kind":"push","repository":{"id":7,"full_name":"ada/engine"},"branch":"main",
    "commit":"c0ffee","author":"ada","message":"Turn"}"#;

#[tokio::test]
async fn a_signed_push_is_an_event_and_nothing_else_is() {
    let plugin = start().await;
    let forge = plugin.forge();
    let delivery = forge.webhook(signed(KEY, PUSH)).await.expect("taken");
    assert_eq!(delivery.id, "d-1");
    let [Event::Push(Push { repository, commit, author, deleted, .. })] = delivery.events.as_slice() else {
        panic!("{delivery:?}")
    };
    assert_eq!((repository, commit.as_str(), author.as_str(), *deleted), (&engine(), "c0ffee", "ada", false));
    assert_eq!(forge.webhook(signed(KEY, r#"{"kind":"star"}"#)).await.expect("taken").events, []);

    let mut tampered = signed(KEY, PUSH);
    tampered.body[10] ^= 1;
    let unsigned = WebhookRequest { headers: Vec::new(), ..signed(KEY, PUSH) };
    for (what, request) in [("another key", signed("another", PUSH)), ("tampered", tampered), ("unsigned", unsigned)] {
        let outcome = forge.webhook(request).await;
        assert!(matches!(outcome, Err(ForgeError::Denied(_))), "{what}: {outcome:?}");
    }
    let outcome = forge.webhook(signed(KEY, "{")).await;
    assert!(matches!(outcome, Err(ForgeError::Invalid(_))), "{outcome:?}");
    assert!(plugin.server().requests().is_empty(), "a webhook asks nobody");
}

#[tokio::test]
async fn heads_and_trees_are_asked_for_with_the_token() {
    let plugin = start().await;
    let forge = plugin.forge();
    let head = json!({ "commit": "c0ffee", "author": "ada", "message": "Turn" });
    plugin.server().answer("GET", "/api/repositories/7/branches/feature%2Fx", Answer::json(200, &head));
    plugin.server().answer("GET", "/api/repositories/7/commits/c0ffee", Answer::json(200, &json!({ "tree": "beef" })));
    let head = forge.branch_head(engine(), "feature/x".to_owned()).await.expect("there");
    assert_eq!((head.commit.as_str(), head.author.as_str(), head.message.as_str()), ("c0ffee", "ada", "Turn"));
    assert_eq!(forge.tree_hash(engine(), "c0ffee".to_owned()).await.as_deref(), Ok("beef"));
    for request in plugin.server().requests() {
        assert_eq!(request.header("authorization"), Some("Bearer hunter2"));
    }
    assert!(plugin.server().unused().is_empty());
    let gone = forge.branch_head(engine(), "gone".to_owned()).await;
    assert_eq!(gone, Err(ForgeError::NotFound), "nothing is scripted for it");
}

#[tokio::test]
async fn it_has_what_it_exports_and_no_more() {
    let plugin = start().await;
    let forge = plugin.forge();
    assert!(forge.has(ForgeFeature::Webhooks) && forge.has(ForgeFeature::Branches));
    assert!(!forge.has(ForgeFeature::Login) && !forge.has(ForgeFeature::Discovery));
    assert!(matches!(forge.repositories(None).await, Err(ForgeError::Unsupported(_))));
}

#[tokio::test]
async fn a_second_one_is_a_few_lines_of_configuration() {
    let plugin = start().await;
    let other = ScriptedServer::start().await;
    let mut second = plugin.spec().clone();
    second.name = "second".to_owned();
    second.settings.insert("url".to_owned(), format!("{}/v2", other.url()));
    second.allow_hosts = vec![other.url().parse().expect("a host")];
    let report = plugin.host().reload(vec![plugin.spec().clone(), second]).await;
    assert_eq!((report.loaded.as_slice(), report.unchanged.len()), (["second".to_owned()].as_slice(), 1), "{report:?}");
    let head = |commit: &str| Answer::json(200, &json!({ "commit": commit, "author": "", "message": "" }));
    plugin.server().answer("GET", "/api/repositories/7/branches/main", head("one"));
    other.answer("GET", "/v2/repositories/7/branches/main", head("two"));
    let forge = plugin.host().forge("second").expect("a forge");
    assert_eq!(forge.branch_head(engine(), "main".to_owned()).await.expect("there").commit, "two");
    assert_eq!(plugin.forge().branch_head(engine(), "main".to_owned()).await.expect("there").commit, "one");
    assert_eq!((plugin.server().requests().len(), other.requests().len()), (1, 1));
}

#[tokio::test]
async fn it_conforms() {
    let failed = conformance(&start().await).await;
    assert!(failed.is_empty(), "{failed:#?}");
}
