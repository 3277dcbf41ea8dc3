//! What every forge must pass, whatever it talks to.

use harmonia_core::forge::ForgeFeature;
use harmonia_fake_forges::FakeGithub;
use harmonia_plugin_harness::{Harness, component, conformance};

const SECRET: &str = "a secret of the test 0123456789";

#[tokio::test]
async fn github_conforms() {
    let key = FakeGithub::start().await.private_key().to_owned();
    let running = Harness::new(component("github"))
        .setting("app_id", "29310")
        .setting("client_id", "Iv1.0123")
        .server_setting("api_url", "")
        .secret("webhook", SECRET)
        .secret("key", &key)
        .secret("client_secret", SECRET)
        .start()
        .await;
    assert_eq!(conformance(&running).await, Vec::<String>::new());
    // An app's webhook is its own: there is nothing to install.
    assert!(!running.forge().has(ForgeFeature::Hooks));
    assert!(running.forge().has(ForgeFeature::Login));
}

#[tokio::test]
async fn gitea_conforms() {
    let running = Harness::new(component("gitea"))
        .setting("client_id", "0123")
        .server_setting("instance", "")
        .secret("webhook", SECRET)
        .secret("token", "another secret of the test 0123456789")
        .secret("client_secret", SECRET)
        .start()
        .await;
    assert_eq!(conformance(&running).await, Vec::<String>::new());
    assert!(running.forge().has(ForgeFeature::Hooks));
}
