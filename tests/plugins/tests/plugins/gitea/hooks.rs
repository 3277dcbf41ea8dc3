//! Webhooks that we install, repair and remove.

use harmonia_core::forge::ForgeError;
use harmonia_fake_forges::{Effect, Event, Permission, When};

use super::setup::{Gitea, HOOK_SECRET};
use crate::bench::HOOK_URL;

#[tokio::test]
async fn a_hook_is_installed_once_and_put_right() {
    let gitea = Gitea::start().await;
    let (site, _) = gitea.add("acme/site");
    // Somebody else's, more than a page of them.
    for number in 0..60 {
        let mut world = gitea.fake.world();
        let id = world.fresh_id();
        let created_at = world.now();
        let hook = harmonia_fake_forges::Hook {
            id,
            url: format!("https://other.example.org/{number}"),
            secret: String::new(),
            content_type: "json".to_owned(),
            kind: "gitea".to_owned(),
            events: vec!["push".to_owned()],
            active: true,
            branch_filter: String::new(),
            created_at,
        };
        world.repository_mut("acme/site").hooks.insert(id, hook);
    }
    gitea.install(&site).await.expect("a hook");
    gitea.install(&site).await.expect("it is there");
    let ours = || gitea.hooks("acme/site").into_iter().filter(|hook| hook.url == HOOK_URL).collect::<Vec<_>>();
    assert_eq!(ours().len(), 1);
    let hook = &ours()[0];
    assert!(hook.active);
    assert_eq!((hook.secret.as_str(), hook.content_type.as_str(), hook.kind.as_str()), (HOOK_SECRET, "json", "gitea"));
    for event in ["push", "delete", "pull_request", "pull_request_sync", "pull_request_comment", "repository"] {
        assert!(hook.events.iter().any(|wanted| wanted == event), "{event}: {:?}", hook.events);
    }
    // Broken in every way.
    {
        let mut world = gitea.fake.world();
        let hook = world.repository_mut("acme/site").hooks.get_mut(&hook.id).expect("it is there");
        hook.active = false;
        hook.secret = "another".to_owned();
        hook.events = vec!["wiki".to_owned()];
        hook.branch_filter = "nothing".to_owned();
        hook.content_type = "form".to_owned();
    }
    gitea.install(&site).await.expect("it is put right");
    assert_eq!(ours().len(), 1);
    let again = &ours()[0];
    assert_eq!((again.id, again.active, again.secret.as_str()), (hook.id, true, HOOK_SECRET));
    assert_eq!((&again.events, again.branch_filter.as_str(), again.content_type.as_str()), (&hook.events, "", "json"));
    // An address that was there twice is there once.
    {
        let mut world = gitea.fake.world();
        let id = world.fresh_id();
        let double = harmonia_fake_forges::Hook { id, ..again.clone() };
        world.repository_mut("acme/site").hooks.insert(id, double);
    }
    gitea.install(&site).await.expect("it is put right");
    assert_eq!(ours().len(), 1);
    gitea.remove(&site).await.expect("it is removed");
    assert_eq!(ours().len(), 0);
    assert_eq!(gitea.hooks("acme/site").len(), 60, "others stay");
    gitea.remove(&site).await.expect("it is gone already");
    gitea.finish();
}

#[tokio::test]
async fn a_lost_answer_does_not_leave_two_hooks() {
    let gitea = Gitea::start().await;
    let (site, head) = gitea.add("acme/site");
    for effect in [Effect::DropAfter, Effect::CutOff, Effect::DropBefore] {
        gitea.fake.faults().add(When::request("POST", "/hooks").times(1), effect.clone());
        let lost = gitea.install(&site).await;
        assert!(matches!(lost, Err(ForgeError::Unavailable(_))), "{effect:?}: {lost:?}");
        gitea.install(&site).await.expect("a hook");
        assert_eq!(gitea.hooks("acme/site").len(), 1, "{effect:?}");
        // Of an answer without a body nothing can be cut off.
        if !matches!(effect, Effect::CutOff) {
            gitea.fake.faults().add(When::request("DELETE", "/hooks").times(1), effect.clone());
            assert!(matches!(gitea.remove(&site).await, Err(ForgeError::Unavailable(_))), "{effect:?}");
        }
        gitea.remove(&site).await.expect("it is gone");
        assert_eq!(gitea.hooks("acme/site").len(), 0, "{effect:?}");
    }
    // What the forge signs with is what we verify with.
    gitea.install(&site).await.expect("a hook");
    let reference = "refs/heads/main";
    let push = Event::Push { repository: "acme/site", reference, before: &head, after: &head, pusher: "acme" };
    assert_eq!(gitea.events(&gitea.fake.delivery(push)).await.len(), 1);
    gitea.finish();
}

#[tokio::test]
async fn who_may_not_administer_is_denied() {
    let gitea = Gitea::start().await;
    let (site, _) = gitea.add("acme/site");
    gitea.allow("acme/site", Permission::Write);
    assert!(matches!(gitea.install(&site).await, Err(ForgeError::Denied(_))));
    assert!(matches!(gitea.remove(&site).await, Err(ForgeError::Denied(_))));
    let gone = harmonia_core::forge::RepositoryRef { id: "1".to_owned(), full_name: "no/where".to_owned() };
    assert_eq!(gitea.install(&gone).await.err(), Some(ForgeError::NotFound));
    gitea.remove(&gone).await.expect("gone with its repository");
    gitea.finish();
}
