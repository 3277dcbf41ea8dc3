//! A forge that does not answer, however much it is asked, keeps nobody else waiting.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use harmonia_coordinator::{hooks, poll, sync};
use harmonia_core::api::ProjectChanges;
use harmonia_db::DbError;

use crate::world::{FORGE, Memory, OTHER, World};

/// More projects than are processed side by side.
const MANY: usize = 40;
/// Much longer than it takes to ask.
const PATIENCE: Duration = Duration::from_mins(1);

/// Two forges with projects; the first has many and does not answer.
async fn world() -> (World, Memory) {
    let (world, other) = World::with_other_forge().await;
    for number in 0..MANY {
        world.project_of(FORGE, &number.to_string(), &format!("o/{number}")).await;
    }
    world.project_of(OTHER, "1", "o/other").await;
    let changes = ProjectChanges { poll_interval_s: Some(60), ..ProjectChanges::default() };
    for name in (0..MANY).map(|number| format!("o/{number}")).chain(["o/other".to_owned()]) {
        world.db().set_project(&name, &changes, "me").await.expect("set");
    }
    world.script(|script| script.hangs = true);
    (world, other)
}

/// Until the other forge is asked.
async fn is_asked(other: &Memory, working: impl Future<Output = Result<u64, DbError>>) -> Vec<String> {
    let asked = Arc::clone(&other.0.lock().expect("lock").asked);
    tokio::select! {
        ended = working => panic!("the first forge does not answer, and yet it ended: {ended:?}"),
        () = asked.notified() => other.calls(),
        () = tokio::time::sleep(PATIENCE) => panic!("the other forge is not asked"),
    }
}

#[tokio::test]
async fn polls() {
    let (world, other) = world().await;
    assert_eq!(is_asked(&other, poll::step(&world.options)).await, ["head o/other main"]);
    assert_eq!(world.forge.calls().len(), 8, "bounded");
}

#[tokio::test]
async fn hooks_are_installed() {
    let (world, other) = world().await;
    assert_eq!(is_asked(&other, hooks::step(&world.options)).await, ["install 1 https://ci.example/webhook/other"]);
}

#[tokio::test]
async fn repositories_are_discovered() {
    let (world, other) = world().await;
    assert_eq!(is_asked(&other, sync::step(&world.options)).await, ["repositories 0"]);
}
