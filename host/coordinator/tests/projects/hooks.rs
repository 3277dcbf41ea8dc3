//! Webhooks at forges.

use std::time::Duration;

use harmonia_coordinator::hooks;
use harmonia_core::NodeId;
use harmonia_core::api::{HookInfo, ProjectChanges};
use harmonia_core::forge::{ForgeError, RepositoryRef};

use crate::world::World;

const URL: &str = "https://ci.example/webhook/forge";

async fn step(world: &World) -> u64 {
    hooks::step(&world.options).await.expect("no trouble with the database")
}

async fn shown(world: &World) -> Option<HookInfo> {
    world.db().projects_settings(Some("o/a"), None, false, 1).await.expect("listed").remove(0).hook
}

fn installed(world: &World) -> Vec<String> {
    world.script(|script| script.hooks.iter().map(|(_, url)| url.clone()).collect())
}

#[tokio::test]
async fn a_hook_comes_with_a_project_and_goes_with_it() {
    let world = World::new().await;
    assert_eq!(step(&world).await, 0);
    world.project("1", "o/a").await;
    assert_eq!(step(&world).await, 1);
    assert_eq!(world.forge.calls(), [format!("install 1 {URL}")]);
    assert_eq!(shown(&world).await, Some(HookInfo { installed: true, error: None }));
    assert_eq!(step(&world).await, 0, "nothing is left to do");

    world.db().disable_project("o/a", "me").await.expect("disabled");
    assert_eq!(step(&world).await, 1);
    assert_eq!(world.forge.calls(), [format!("remove 1 {URL}")]);
    assert_eq!((installed(&world), shown(&world).await), (vec![], None));
    assert_eq!(step(&world).await, 0);
}

#[tokio::test]
async fn a_refusal_is_shown_and_tried_again() {
    let world = World::new().await;
    world.project("1", "o/a").await;
    world.script(|script| script.errors.push_back(ForgeError::Denied("admins only".to_owned())));
    assert_eq!(step(&world).await, 1);
    let expected = "could not install the webhook: refused: admins only".to_owned();
    assert_eq!(shown(&world).await, Some(HookInfo { installed: false, error: Some(expected) }));
    assert_eq!(step(&world).await, 0, "not at once");
    world.later().await;
    assert_eq!(step(&world).await, 1);
    assert_eq!(shown(&world).await, Some(HookInfo { installed: true, error: None }));
}

#[tokio::test]
async fn a_poll_in_flight_does_not_keep_a_hook_waiting() {
    let world = World::new().await;
    world.project("1", "o/a").await;
    let changes = ProjectChanges { poll_interval_s: Some(60), ..ProjectChanges::default() };
    world.db().set_project("o/a", &changes, "me").await.expect("set");
    let (node, forges) = (NodeId("slow".to_owned()), [crate::world::FORGE.to_owned()]);
    let polled = world.db().due_polls(&node, &forges, true, 9, Duration::from_mins(10)).await.expect("taken");
    assert_eq!(polled.len(), 1);
    assert_eq!(step(&world).await, 1);
    assert_eq!(installed(&world), [URL]);
    assert!(world.db().poll_done(&polled[0], None, None).await.expect("done"), "its lease is its own");
}

#[tokio::test]
async fn nobody_is_asked_about_the_hook_of_what_is_gone() {
    let world = World::new().await;
    world.project("1", "o/a").await;
    step(&world).await;
    world.forge.calls();
    let gone = RepositoryRef { id: "1".to_owned(), full_name: "o/a".to_owned() };
    world.db().repositories_removed(crate::world::FORGE, &[gone]).await.expect("removed");
    assert_eq!((step(&world).await, shown(&world).await), (0, None));
    world.later().await;
    assert_eq!((step(&world).await, world.forge.calls()), (0, vec![]));
    // It comes back: whatever is there is put right.
    world.project("1", "o/a").await;
    assert_eq!(step(&world).await, 1);
    assert_eq!(installed(&world), [URL]);
}

#[tokio::test]
async fn no_hook_is_left_behind() {
    let mut world = World::new().await;
    world.project("1", "o/a").await;
    // The forge did it, but we never heard.
    world.script(|script| script.lose_answer = true);
    step(&world).await;
    assert_eq!(installed(&world), [URL]);
    world.db().disable_project("o/a", "me").await.expect("disabled");
    step(&world).await;
    assert_eq!(installed(&world), Vec::<String>::new());

    // This server moved to another address.
    let row = world.db().repository(crate::world::FORGE, "o/a").await.expect("asked").expect("there");
    world.db().enable_repository(row, &[], "me").await.expect("enabled");
    step(&world).await;
    world.options.public_url = "https://new.example/".to_owned();
    assert_eq!(step(&world).await, 1);
    assert_eq!(installed(&world), ["https://new.example/webhook/forge"]);
    assert_eq!(step(&world).await, 0);

    // The hook was removed at the forge by hand: that is fine.
    world.script(|script| script.hooks.clear());
    world.db().disable_project("o/a", "me").await.expect("disabled");
    step(&world).await;
    assert_eq!((shown(&world).await, step(&world).await), (None, 0));
}

#[tokio::test]
async fn a_hook_that_nobody_lets_us_remove_is_left_at_last() {
    let world = World::new().await;
    world.project("1", "o/a").await;
    step(&world).await;
    world.db().disable_project("o/a", "me").await.expect("disabled");
    let mut tries = 0;
    for _ in 0..50 {
        world.script(|script| script.errors = [ForgeError::Denied("no access".to_owned())].into());
        tries += step(&world).await;
        world.later().await;
    }
    assert_eq!(tries, 21);
    assert_eq!(shown(&world).await, None);
}
