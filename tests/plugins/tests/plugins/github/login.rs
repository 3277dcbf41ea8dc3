//! People log in through the app.

use std::time::Duration;

use harmonia_core::forge::{ForgeError, ForgeUser};
use harmonia_fake_forges::{Effect, Token, When};

use super::setup::Github;
use crate::bench::{REDIRECT_URL, code_of, verifier};

#[tokio::test]
async fn a_person_logs_in_once_with_each_code() {
    let github = Github::start().await;
    let alice = {
        let mut world = github.fake.world();
        world.redirect_urls = vec![REDIRECT_URL.to_owned()];
        world.add_user("alice").id
    };
    let address = github.login_url(&verifier(1)).await;
    assert_eq!(github.fake.requests().len(), 0, "an address costs nothing");
    let code = code_of(&github.fake.approve(&address, "alice").expect("the page is right"));
    let user = github.login(&code, &verifier(1)).await.expect("it is alice");
    let name = "alice (display name)".to_owned();
    assert_eq!(user, ForgeUser { id: alice.to_string(), login: "alice".to_owned(), name });
    let issued = github.fake.world().tokens.values().filter(|token| matches!(token, Token::User { .. })).count();
    assert_eq!(issued, 1);
    let exchange = &github.fake.requests()[0];
    assert!(String::from_utf8_lossy(&exchange.body).contains("client_secret="), "the secret went out");

    let again = github.login(&code, &verifier(1)).await;
    assert!(matches!(again, Err(ForgeError::Denied(_))), "a code is good for one login: {again:?}");
    let unknown = github.login("nobody gave this", &verifier(1)).await;
    assert!(matches!(unknown, Err(ForgeError::Denied(_))), "{unknown:?}");
    let code = code_of(&github.fake.approve(&address, "alice").expect("the page is right"));
    let stolen = github.login(&code, &verifier(2)).await;
    assert!(matches!(stolen, Err(ForgeError::Denied(_))), "another browser's: {stolen:?}");
    let code = code_of(&github.fake.approve(&address, "alice").expect("the page is right"));
    github.clock.advance(Duration::from_mins(11));
    let late = github.login(&code, &verifier(1)).await;
    assert!(matches!(late, Err(ForgeError::Denied(_))), "{late:?}");

    let code = code_of(&github.fake.approve(&address, "alice").expect("the page is right"));
    github.fake.faults().add(When::path("/access_token").times(1), Effect::Status(502));
    let down = github.login(&code, &verifier(1)).await;
    assert!(matches!(down, Err(ForgeError::Unavailable(_))), "{down:?}");
    github.login(&code, &verifier(1)).await.expect("nothing was used up");
    github.finish();
}

#[tokio::test]
async fn a_name_may_be_missing() {
    let github = Github::start().await;
    github.fake.world().add_user("bob").name = String::new();
    let address = github.login_url(&verifier(1)).await;
    let code = code_of(&github.fake.approve(&address, "bob").expect("the page is right"));
    let user = github.login(&code, &verifier(1)).await.expect("it is bob");
    assert_eq!((user.login.as_str(), user.name.as_str()), ("bob", ""));
    github.finish();
}
