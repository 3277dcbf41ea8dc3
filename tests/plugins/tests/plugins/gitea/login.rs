//! People log in through the instance.

use std::time::Duration;

use harmonia_core::forge::{ForgeError, ForgeUser};
use harmonia_fake_forges::{Effect, When};

use super::setup::Gitea;
use crate::bench::{REDIRECT_URL, code_of, verifier};

#[tokio::test]
async fn a_person_logs_in_once_with_each_code() {
    let gitea = Gitea::start().await;
    let alice = {
        let mut world = gitea.fake.world();
        world.redirect_urls = vec![REDIRECT_URL.to_owned()];
        world.add_user("alice").id
    };
    let address = gitea.login_url(&verifier(1)).await;
    assert_eq!(gitea.fake.requests().len(), 0, "an address costs nothing");
    let code = || code_of(&gitea.fake.approve(&address, "alice").expect("the page is right"));
    let first = code();
    let user = gitea.login(&first, &verifier(1)).await.expect("it is alice");
    let name = "alice (display name)".to_owned();
    assert_eq!(user, ForgeUser { id: alice.to_string(), login: "alice".to_owned(), name });
    assert_eq!(gitea.fake.world().tokens.len(), 2, "the bot's, and alice's for a moment");

    let again = gitea.login(&first, &verifier(1)).await;
    assert!(matches!(again, Err(ForgeError::Denied(_))), "a code is good for one login: {again:?}");
    let unknown = gitea.login("nobody gave this", &verifier(1)).await;
    assert!(matches!(unknown, Err(ForgeError::Denied(_))), "{unknown:?}");
    let stolen = gitea.login(&code(), &verifier(2)).await;
    assert!(matches!(stolen, Err(ForgeError::Denied(_))), "another browser's: {stolen:?}");
    let old = code();
    gitea.clock.advance(Duration::from_mins(11));
    let late = gitea.login(&old, &verifier(1)).await;
    assert!(matches!(late, Err(ForgeError::Denied(_))), "{late:?}");

    let unused = code();
    gitea.fake.faults().add(When::path("/access_token").times(1), Effect::Status(502));
    let down = gitea.login(&unused, &verifier(1)).await;
    assert!(matches!(down, Err(ForgeError::Unavailable(_))), "{down:?}");
    gitea.login(&unused, &verifier(1)).await.expect("nothing was used up");
    gitea.finish();
}
