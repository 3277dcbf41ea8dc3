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

/// A misspelt name grants nothing and changes nothing; whoever wrote it is told.
#[tokio::test]
async fn a_setting_that_the_plugin_does_not_read_is_said() {
    let gitea = || {
        let bench = Harness::new(component("gitea")).setting("instance", "https://git.invalid");
        bench.secret("token", SECRET).secret("webhook", SECRET)
    };
    assert_eq!(gitea().start().await.status().last_error, None);
    let running = gitea().setting("instanse", "https://git.invalid").secret("tokken", SECRET).start().await;
    let status = running.status();
    let error = status.last_error.expect("said");
    for part in ["no setting 'instanse' (it reads", "instance", "no secret 'tokken' (it reads", "webhook"] {
        assert!(error.contains(part), "{part}: {error}");
    }
    let public = status.last_failure.expect("said");
    assert!(
        public.contains("names settings or secrets that it does not have") && !public.contains("tokken"),
        "{public}"
    );
}
