//! The app's JWT and its installation tokens: as few as possible, never too old, never seen.

use std::time::Duration;

use harmonia_core::Clock as _;
use harmonia_core::forge::{ForgeError, RepositoryRef, StatusState};
use harmonia_fake_forges::Token;
use harmonia_plugin_harness::{Answer, Harness, component};
use serde_json::json;

use super::setup::Github;
use crate::bench::{Bench, status, verifier};

const MINUTE: Duration = Duration::from_mins(1);

#[tokio::test]
async fn one_token_serves_many_calls_and_is_renewed_in_time() {
    let github = Github::start().await;
    let (site, installation, head) = github.add("acme/site");
    let (other, ..) = github.add("acme/other");
    for _ in 0..3 {
        assert_eq!(github.head(&site, "main").await.expect("a head").commit, head);
        github.head(&other, "main").await.expect("a head");
    }
    assert_eq!(github.minted(), 1, "for all of the installation");
    assert_eq!(github.count("GET", "/installation"), 2, "each repository's installation is asked for once");
    // An hour's life: used to five minutes before its end.
    github.clock.advance(54 * MINUTE);
    github.head(&site, "main").await.expect("a head");
    assert_eq!(github.minted(), 1);
    github.clock.advance(2 * MINUTE);
    github.head(&site, "main").await.expect("a head");
    assert_eq!(github.minted(), 2);
    // Far beyond everything that was kept: JWT and token.
    github.clock.advance(600 * MINUTE);
    github.head(&site, "main").await.expect("a head");
    assert_eq!((github.minted(), github.count("POST", &format!("/{installation}/"))), (3, 3));
    assert!(github.fake.requests().iter().all(|request| request.status == Some(200) || request.status == Some(201)));
    github.finish();
}

#[tokio::test]
async fn clocks_may_differ_by_nearly_a_minute() {
    for skew_s in [-55, 55] {
        let github = Github::start().await;
        let clock = github.clock.clone();
        github.fake.world().set_clock(move || clock.now() + time::Duration::seconds(skew_s));
        let (site, _, head) = github.add("acme/site");
        assert_eq!(github.head(&site, "main").await.expect("a head").commit, head, "{skew_s}");
        github.clock.advance(8 * MINUTE);
        github.add("other/site");
        github.page(None).await.expect("the JWT is not used for too long");
        github.finish();
    }
}

#[tokio::test]
async fn a_jwt_that_is_refused_is_signed_anew_once() {
    let github = Github::start().await;
    let running = Harness::new(component("github"))
        .setting("app_id", "29310")
        .server_setting("api_url", "")
        .secret("webhook", "hook-secret-0123456789")
        .secret("key", github.fake.private_key())
        .clock(github.clock.clone())
        .start()
        .await;
    let (server, forge) = (running.server(), running.forge());
    let refused = || Answer::json(401, &json!({ "message": "A JSON web token could not be decoded" }));
    // Kept from a call before; its key was replaced since.
    server.answer("GET", "/app/installations", Answer::json(200, &json!([])));
    assert_eq!(github.watch.said(forge.repositories(None).await).expect("a page").next, None);
    github.clock.advance(MINUTE);
    server.answer("GET", "/app/installations", refused());
    server.answer("GET", "/app/installations", Answer::json(200, &json!([])));
    forge.repositories(None).await.expect("the new one is taken");
    let tokens: Vec<_> = server.requests().iter().map(|sent| sent.header("authorization").map(str::to_owned)).collect();
    assert_eq!((tokens.len(), tokens[0] == tokens[1], tokens[1] == tokens[2]), (3, true, false));
    server.answer("GET", "/app/installations", refused());
    server.answer("GET", "/app/installations", refused());
    assert!(
        matches!(forge.repositories(None).await, Err(ForgeError::Denied(_))),
        "a wrong key does not go on for ever"
    );
    assert_eq!(server.requests().len(), 5);
    github.finish();
}

#[tokio::test]
async fn a_revoked_token_is_replaced_at_once() {
    let github = Github::start().await;
    let (site, _, head) = github.add("acme/site");
    github.head(&site, "main").await.expect("a head");
    let gone = github.revoke();
    assert_eq!(gone.len(), 1);
    assert_eq!(github.head(&site, "main").await.expect("a head").commit, head);
    assert_eq!(github.minted(), 2);
    github.report(&status(&site, &head, StatusState::Success)).await.expect("the new one is kept");
    assert_eq!(github.minted(), 2);
    github.finish_with(gone);
}

#[tokio::test]
async fn an_app_that_is_installed_anew_is_found() {
    let github = Github::start().await;
    let (site, first, head) = github.add("acme/site");
    github.head(&site, "main").await.expect("a head");
    github.fake.world().uninstall(first);
    assert_eq!(github.head(&site, "main").await, Err(ForgeError::NotFound), "not installed");
    assert_eq!(github.credential(&site).await.err(), Some(ForgeError::NotFound));
    github.fake.world().install("acme", None);
    assert_eq!(github.head(&site, "main").await.expect("a head").commit, head);
    // Removed and installed again before anybody noticed.
    let second = github.fake.world().installation_of(site.id.parse().expect("a number")).map(|found| found.id);
    {
        let mut world = github.fake.world();
        world.uninstall(second.expect("it is installed"));
        world.install("acme", None);
    }
    github.report(&status(&site, &head, StatusState::Success)).await.expect("it is installed");
    github.finish();
}

#[tokio::test]
async fn a_transferred_repository_is_found_at_its_new_owner() {
    let github = Github::start().await;
    let (mut site, _, head) = github.add("acme/site");
    github.add("other/thing");
    github.fake.world().repository_mut("acme/site").private = true;
    github.head(&site, "main").await.expect("a head");
    github.clock.advance(6 * MINUTE);
    github.fake.world().rename("acme/site", "other/site");
    // By its former name, and by its new one; its former installation does not see it any more.
    for name in ["acme/site", "other/site"] {
        site.full_name = name.to_owned();
        assert_eq!(github.head(&site, "main").await.expect("a head").commit, head);
    }
    github.report(&status(&site, &head, StatusState::Success)).await.expect("a status");
    assert_eq!(github.fake.check_runs("other/site", &head).len(), 1);
    github.finish();
}

#[tokio::test]
async fn what_the_app_may_not_do_is_denied_and_a_suspended_one_may_do_nothing() {
    let github = Github::start().await;
    let (site, installation, head) = github.add("acme/site");
    {
        let mut world = github.fake.world();
        let permissions = &mut world.installations.get_mut(&installation).expect("it is there").permissions;
        permissions.insert("checks".to_owned(), "read".to_owned());
    }
    let refused = github.report(&status(&site, &head, StatusState::Success)).await;
    assert!(matches!(&refused, Err(ForgeError::Denied(why)) if why.contains("not accessible")), "{refused:?}");
    github.fake.world().installations.get_mut(&installation).expect("it is there").suspended = true;
    let refused = github.head(&site, "main").await;
    assert!(matches!(&refused, Err(ForgeError::Denied(why)) if why.contains("suspended")), "{refused:?}");
    github.fake.world().installations.get_mut(&installation).expect("it is there").suspended = false;
    github.head(&site, "main").await.expect("a head");
    github.finish();
}

#[tokio::test]
async fn git_gets_a_token_that_reads_contents_and_nothing_else() {
    let github = Github::start().await;
    let (site, installation, _) = github.add("acme/site");
    github.head(&site, "main").await.expect("a head");
    let credential = github.credential(&site).await.expect("a credential");
    assert_eq!(credential.user, "x-access-token");
    assert_eq!(format!("http://{}", credential.hosts[0]), github.fake.url());
    assert_eq!(credential.hosts.len(), 1);
    let known = github.fake.world().tokens.get(credential.password.expose()).cloned();
    let Some(Token::Installation { installation: of, permissions, .. }) = known else { panic!("{known:?}") };
    let contents = [("contents".to_owned(), "read".to_owned())];
    assert_eq!((of, permissions), (installation, Some(contents.into())));
    let again = github.credential(&site).await.expect("a credential");
    assert_eq!(again.password, credential.password, "kept");
    assert_eq!(github.minted(), 2, "one for us, one for git");
    // What begins late has a token that lives long enough.
    github.clock.advance(57 * MINUTE);
    let later = github.credential(&site).await.expect("a credential");
    assert_ne!(later.password, credential.password);
    github.finish();
}

#[tokio::test]
async fn enterprise_servers_are_under_a_path() {
    let github = Github::start().await;
    let url = format!("{}/api/v3/", github.fake.url());
    let enterprise = Harness::new(component("github"))
        .setting("app_id", github.fake.client_id())
        .setting("api_url", &url)
        .secret("webhook", github.fake.webhook_secret())
        // The other form in which keys are kept.
        .secret("key", github.fake.private_key_pkcs8())
        .allow_host(github.fake.url())
        .clock(github.clock.clone())
        .store(github.watch.clone())
        .start()
        .await;
    let (site, _, head) = github.add("acme/site");
    let bench = Bench { forge: enterprise.forge(), watch: github.watch.clone() };
    assert_eq!(bench.head(&site, "main").await.expect("a head").commit, head);
    bench.report(&status(&site, &head, StatusState::Success)).await.expect("a status");
    assert!(github.fake.requests().iter().all(|request| request.path.starts_with("/api/v3/")));
    let (found, _) = bench.discover().await.expect("all is well");
    assert_eq!(found.len(), 1);
    assert_eq!(bench.credential(&site).await.expect("a credential").hosts.len(), 1);
    github.finish();
}

/// A server that repeats every secret that it knows, as error pages do.
#[tokio::test]
async fn secrets_that_a_server_repeats_are_taken_out() {
    let token = "ghs_1234567890abcdefghijklmnopqrstuvwxyz";
    let user = ("ghu_0987654321zyxwvutsrqponmlkjihgfedcba", "ghr_5555566666777778888899999aaaaabbbbbc");
    let github = Github::start().await;
    let running = Harness::new(component("github"))
        .setting("app_id", "29310")
        .setting("client_id", "Iv1.0123")
        .server_setting("api_url", "")
        .secret("webhook", "hook-secret-0123456789")
        .secret("key", github.fake.private_key())
        .secret("client_secret", "client-secret-0123456789")
        .clock(github.clock.clone())
        .store(github.watch.clone())
        .start()
        .await;
    let (server, bench) = (running.server(), Bench { forge: running.forge(), watch: github.watch.clone() });
    let site = RepositoryRef { id: "7".to_owned(), full_name: "acme/site".to_owned() };
    server.answer("GET", "/repos/acme/site/installation", Answer::json(200, &json!({ "id": 5 })));
    let minted = json!({ "token": token, "expires_at": "2026-11-22T13:00:00Z", "note": format!("keep {token} safe") });
    server.answer("POST", "/app/installations/5/access_tokens", Answer::json(201, &minted));
    server.answer_everything(Answer::text(422, &format!("what is {token}?")).header("x-echo", token));
    let refused = bench.head(&site, "main").await;
    assert!(matches!(&refused, Err(ForgeError::Invalid(why)) if why.contains("[secret]")), "{refused:?}");
    // Kept, in a call of its own.
    let refused = bench.tree(&site, &"a".repeat(40)).await;
    assert!(matches!(&refused, Err(ForgeError::Invalid(why)) if why.contains("[secret]")), "{refused:?}");
    // An exchange that fails and tells everything all the same.
    let told = json!({ "error": format!("{} {} client-secret-0123456789", user.0, user.1), "access_token": user.0, "refresh_token": user.1 });
    server.answer("POST", "/login/oauth/access_token", Answer::json(200, &told));
    let refused = bench.login("code", &verifier(1)).await;
    assert!(
        matches!(&refused, Err(ForgeError::Denied(why)) if why.contains("[secret] [secret] [secret]")),
        "{refused:?}"
    );
    let jwt = server.requests()[0].header("authorization").expect("a JWT").trim_start_matches("Bearer ").to_owned();
    assert_eq!(jwt.split('.').count(), 3);
    github.finish_with([token, user.0, user.1, "client-secret-0123456789", &jwt].map(str::to_owned).into());
}
