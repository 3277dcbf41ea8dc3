//! Discovery.

use harmonia_coordinator::{AutoEnable, sync};
use harmonia_core::forge::{ForgeError, ForgeRepository};
use harmonia_db::RepositoryFilter;

use crate::world::{FORGE, World, repository};

async fn names(world: &World) -> Vec<String> {
    let filter = RepositoryFilter { limit: 100, ..RepositoryFilter::default() };
    world.db().repositories(filter).await.expect("listed").into_iter().map(|r| r.full_name).collect()
}

async fn step(world: &World) -> u64 {
    sync::step(&world.options).await.expect("no trouble with the database")
}

#[tokio::test]
async fn all_pages_are_read_and_what_is_gone_is_gone() {
    let world = World::new().await;
    world
        .script(|s| s.pages = vec![vec![repository("1", "o/a"), repository("2", "o/b")], vec![repository("3", "o/c")]]);
    assert_eq!(step(&world).await, 2, "a forge that was never synced is due");
    assert_eq!(world.forge.calls(), ["repositories 0", "repositories 1"]);
    assert_eq!(names(&world).await, ["o/a", "o/b", "o/c"]);
    assert_eq!(step(&world).await, 0, "the next one is due in a quarter of an hour");

    // A rename, a removal, a new one. What is missing is looked for once more.
    world
        .script(|s| s.pages = vec![vec![repository("1", "o/renamed"), repository("4", "o/d"), repository("3", "o/c")]]);
    world.db().request_sync(&[FORGE.to_owned()]).await.expect("asked for");
    assert_eq!(step(&world).await, 2);
    assert_eq!(names(&world).await, ["o/c", "o/d", "o/renamed"]);
    // It is back.
    world.script(|s| s.pages[0].push(repository("2", "o/b")));
    world.later().await;
    step(&world).await;
    assert_eq!(names(&world).await, ["o/b", "o/c", "o/d", "o/renamed"]);
}

#[tokio::test]
async fn a_repository_that_one_sync_missed_stays() {
    let world = World::new().await;
    world.script(|s| s.pages = vec![vec![repository("1", "o/a"), repository("2", "o/b")]]);
    step(&world).await;
    // The list changes between two pages: the first sync misses an entry, the second has it.
    world.script(|s| s.pages = vec![vec![repository("1", "o/a")]]);
    world.later().await;
    let sync = world.db().begin_sync(&world.options.node, &[FORGE.to_owned()], std::time::Duration::from_mins(1)).await;
    let mut sync = sync.expect("asked").expect("due");
    let minute = std::time::Duration::from_mins(1);
    world.db().save_sync_page(&mut sync, &[repository("1", "o/a")], None, minute, minute).await.expect("saved");
    world.script(|s| s.pages = vec![vec![repository("1", "o/a"), repository("2", "o/b")]]);
    assert_eq!(step(&world).await, 1, "the one that makes sure follows at once");
    assert_eq!(names(&world).await, ["o/a", "o/b"]);
}

#[tokio::test]
async fn a_sync_goes_on_after_an_error_where_it_stopped() {
    let world = World::new().await;
    world.script(|s| {
        s.pages = vec![vec![repository("1", "o/a")], vec![repository("2", "o/b")], vec![repository("3", "o/c")]];
    });
    // The forge says wait in the middle.
    let limited = || ForgeError::RetryAfter(3_000);
    world.script(|s| s.errors.push_back(limited()));
    assert_eq!(step(&world).await, 0);
    world.later().await;
    world.script(|s| s.pages.truncate(2));
    let two = step(&world).await;
    assert_eq!(two, 2);

    world.script(|s| {
        s.pages = vec![vec![repository("1", "o/a")], vec![repository("2", "o/b")], vec![repository("3", "o/c")]];
    });
    world.later().await;
    world.forge.calls();
    world.db().request_sync(&[FORGE.to_owned()]).await.expect("asked for");
    // One page comes, then the limit is reached.
    let minute = std::time::Duration::from_mins(1);
    let mut sync =
        world.db().begin_sync(&world.options.node, &[FORGE.to_owned()], minute).await.expect("asked").expect("due");
    world.db().save_sync_page(&mut sync, &[repository("1", "o/a")], Some("1"), minute, minute).await.expect("saved");
    world.db().release_sync(&sync).await.expect("the node stops");
    world.script(|s| s.errors.push_back(limited()));
    assert_eq!(step(&world).await, 0);
    assert_eq!(world.forge.calls(), ["repositories 1"], "where it stopped");
    assert_eq!(step(&world).await, 0, "the forge said wait");
    assert_eq!(world.forge.calls(), Vec::<String>::new());
    world.later().await;
    assert_eq!(step(&world).await, 2);
    assert_eq!(world.forge.calls(), ["repositories 1", "repositories 2"]);
    assert_eq!(names(&world).await, ["o/a", "o/b", "o/c"]);

    // A cursor of which the forge knows nothing any more: from the beginning.
    world.later().await;
    let mut sync =
        world.db().begin_sync(&world.options.node, &[FORGE.to_owned()], minute).await.expect("asked").expect("due");
    world.db().save_sync_page(&mut sync, &[], Some("77"), minute, minute).await.expect("saved");
    world.db().release_sync(&sync).await.expect("the node stops");
    step(&world).await;
    world.later().await;
    world.forge.calls();
    assert!(step(&world).await >= 3);
    assert_eq!(world.forge.calls()[..3], ["repositories 0", "repositories 1", "repositories 2"]);
}

#[tokio::test]
async fn patterns_enable_what_was_never_a_project() {
    let rules = [AutoEnable::Topic("ci".to_owned()), AutoEnable::Name("team/*".to_owned())];
    let world = World::with(&rules).await;
    let with_topic = ForgeRepository { topics: vec!["ci".to_owned()], ..repository("1", "o/a") };
    let archived = ForgeRepository { is_archived: true, ..repository("4", "team/old") };
    world.script(|s| {
        s.pages = vec![vec![with_topic.clone(), repository("2", "o/b"), repository("3", "team/x"), archived]];
    });
    step(&world).await;
    let projects = async || -> Vec<(String, bool)> {
        let projects = world.db().projects_settings(None, None, false, 10).await.expect("listed");
        projects.into_iter().map(|project| (project.name, project.enabled)).collect()
    };
    assert_eq!(projects().await, [("o/a".to_owned(), true), ("team/x".to_owned(), true)]);
    // Whoever disabled it meant that; a topic that comes later counts.
    world.db().disable_project("o/a", "me").await.expect("disabled");
    let now_too = ForgeRepository { topics: vec!["CI".to_owned()], ..repository("2", "o/b") };
    world.script(|s| s.pages[0][1] = now_too);
    world.later().await;
    step(&world).await;
    let expected = [("o/a", false), ("o/b", true), ("team/x", true)].map(|(name, on)| (name.to_owned(), on));
    assert_eq!(projects().await, expected);
}

#[tokio::test]
async fn answers_without_sense_are_not_followed_for_ever() {
    let world = World::new().await;
    world.script(|s| s.pages = vec![(0..5_001).map(|n| repository(&n.to_string(), &format!("o/{n}"))).collect()]);
    assert_eq!(step(&world).await, 0);
    assert_eq!(names(&world).await, Vec::<String>::new());
    world.script(|s| s.pages = vec![vec![repository("1", "o/a")]]);
    assert_eq!(step(&world).await, 0, "put off");
    world.later().await;
    assert_eq!(step(&world).await, 1);
}
