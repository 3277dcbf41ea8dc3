//! What a project's turning public or private does to what its evaluations reach.

use harmonia_core::Viewer;
use harmonia_core::api::ProjectChanges;
use harmonia_db::testing::{checked, pool};
use harmonia_db::{Db, NewProject, ProjectKind};

use crate::world::{World, batch, drv_path, graph, out_path};

async fn turn(world: &World, name: &str, public: bool) {
    let changes = ProjectChanges { is_public: Some(public), ..ProjectChanges::default() };
    world.db.set_project(name, &changes, "me").await.expect("set");
}

/// Which of the numbered derivations, and of their outputs, are public.
async fn public(world: &World, count: usize) -> Vec<bool> {
    let mut found = Vec::new();
    for number in 0..count {
        let drv = world.db.derivation_public(&drv_path(number)).await.expect("asked");
        let output = out_path(number);
        let row = sqlx::query_scalar!("SELECT public FROM store_paths WHERE path = $1", output.as_str());
        let row = row.fetch_optional(pool(&world.db)).await.expect("read");
        assert!(row.is_none_or(|public| public == drv), "{number}: derivation and output differ");
        found.push(drv);
    }
    found
}

async fn publish(world: &World, number: usize, refs: &[usize]) {
    let refs: Vec<String> = refs.iter().map(|number| out_path(*number).to_string()).collect();
    let (drv, output) = (drv_path(number), out_path(number));
    sqlx::query!(
        "INSERT INTO store_paths (path, nar_hash, nar_size, file_hash, file_size, refs, state, published_at, public)
         SELECT $1, 'sha256:x', 1, 'sha256:y', 1, $2, 'published', now(), coalesce((SELECT public FROM derivations WHERE drv_path = $3), false)",
        output.as_str(),
        &refs,
        drv.as_str()
    )
    .execute(pool(&world.db))
    .await
    .expect("published");
}

#[tokio::test]
async fn what_another_public_project_reaches_stays_open() {
    let world = World::new().await;
    let other = NewProject { name: "local/q".to_owned(), kind: ProjectKind::Local };
    let other = world.db.ensure_project(&other).await.expect("a project");
    // 3 needs 2 and 1, 1 needs 0; 4 needs 1. The first project has 3, the second 4.
    let all = graph(&[&[], &[0], &[], &[1, 2], &[1]]);
    let mine = world.evaluation("main").await;
    world.insert(&mine, &all, &[3]).await.expect("insert");
    let theirs = world.evaluation_of(other, "main").await;
    world.insert(&theirs, &all, &[4]).await.expect("insert");
    for (number, drv) in all.iter().enumerate() {
        publish(&world, number, &drv.deps).await;
    }
    assert_eq!(public(&world, 5).await, [true; 5]);
    turn(&world, "local/p", false).await;
    assert_eq!(public(&world, 5).await, [true, true, false, false, true]);
    turn(&world, "local/q", false).await;
    assert_eq!(public(&world, 5).await, [false; 5]);
    turn(&world, "local/p", true).await;
    assert_eq!(public(&world, 5).await, [true, true, true, true, false]);
    turn(&world, "local/q", true).await;
    assert_eq!(public(&world, 5).await, [true; 5]);
    // What is inserted later follows what the project is then.
    turn(&world, "local/q", false).await;
    let more = graph(&[&[], &[0], &[], &[1, 2], &[1], &[0], &[]]);
    let hidden = world.evaluation_of(other, "hidden").await;
    world.insert(&hidden, &more, &[5, 6]).await.expect("insert");
    assert_eq!(public(&world, 7).await, [true, true, true, true, false, false, false]);
}

/// Until the task has ended, or waits for a lock.
async fn ended_or_waits<T>(world: &World, task: &tokio::task::JoinHandle<T>) {
    let waits = async || {
        sqlx::query_scalar!(
            r#"SELECT EXISTS (SELECT FROM pg_stat_activity
                   WHERE datname = current_database() AND wait_event_type = 'Lock') AS "waits!""#
        )
        .fetch_one(pool(&world.db))
        .await
    };
    while !task.is_finished() && !waits().await.expect("asked") {}
}

/// What the first does is not committed yet when `local/p` turns private.
async fn turned_meanwhile(world: &World, first: impl AsyncFnOnce(&Db)) {
    let db = world.test.single_connection().await;
    sqlx::query("BEGIN").execute(pool(&db)).await.expect("begin");
    first(&db).await;
    let turning = world.db.clone();
    let turning = tokio::spawn(async move {
        let changes = ProjectChanges { is_public: Some(false), ..ProjectChanges::default() };
        turning.set_project("local/p", &changes, "me").await.expect("set");
    });
    ended_or_waits(world, &turning).await;
    sqlx::query("COMMIT").execute(pool(&db)).await.expect("commit");
    turning.await.expect("turned");
    db.close().await;
}

/// A project and 1, which needs 0, both of `local/p` and public.
async fn shared() -> (World, harmonia_core::ProjectId, Vec<crate::world::Drv>) {
    let world = World::new().await;
    let other = NewProject { name: "local/q".to_owned(), kind: ProjectKind::Local };
    let other = world.db.ensure_project(&other).await.expect("a project");
    let all = graph(&[&[], &[0], &[1]]);
    let mine = world.evaluation("main").await;
    world.insert(&mine, &all, &[1]).await.expect("insert");
    assert_eq!(public(&world, 3).await, [true, true, false]);
    (world, other, all)
}

#[tokio::test]
async fn what_a_public_project_is_about_to_reach_is_not_closed_for_it() {
    // An attribute, and what is above it.
    for (numbers, roots) in [(&[][..], [1]), (&[2], [2])] {
        let (world, other, all) = shared().await;
        let theirs = world.evaluation_of(other, "main").await;
        let batch = batch(&all, numbers, &roots);
        let registered: Vec<_> = batch.derivations.iter().map(checked).collect();
        world.db.register_derivations(&registered).await.expect("registered");
        turned_meanwhile(&world, async |db| {
            let outcome = db.insert_batch(theirs.id, &theirs.token, &batch).await.expect("insert");
            assert!(outcome.missing.is_empty());
        })
        .await;
        assert_eq!(public(&world, 3).await, [true, true, numbers == [2]], "{numbers:?}");
        world.assert_sound().await;
    }
}

/// Between an evaluator's look and its batch: it did not walk through what was public already.
#[tokio::test]
async fn what_was_closed_after_a_look_is_opened_by_the_batch() {
    for roots in [[1], [2]] {
        let (world, other, all) = shared().await;
        publish(&world, 0, &[]).await;
        let theirs = world.evaluation_of(other, "main").await;
        let batch = world.walk(&theirs, &all, &roots).await.expect("walk");
        turn(&world, "local/p", false).await;
        assert_eq!(public(&world, 3).await, [false; 3]);
        world.insert_batch(&theirs, &batch).await.expect("insert");
        assert_eq!(public(&world, 3).await, [true, true, roots == [2]], "{roots:?}");
        world.assert_sound().await;
        turn(&world, "local/q", false).await;
        assert_eq!(public(&world, 3).await, [false; 3]);
    }
}

/// One opens what the other closes.
#[tokio::test]
async fn two_projects_turn_one_after_the_other() {
    let (world, other, all) = shared().await;
    let theirs = world.evaluation_of(other, "main").await;
    world.insert(&theirs, &all, &[2]).await.expect("insert");
    turn(&world, "local/q", false).await;
    assert_eq!(public(&world, 3).await, [true, true, false]);
    turned_meanwhile(&world, async |db| {
        let changes = ProjectChanges { is_public: Some(true), ..ProjectChanges::default() };
        db.set_project("local/q", &changes, "me").await.expect("set");
    })
    .await;
    assert_eq!(public(&world, 3).await, [true; 3]);
    world.assert_sound().await;
}

#[tokio::test]
async fn jobs_are_counted_for_strangers_as_their_derivations_turn() {
    let world = World::new().await;
    let other = NewProject { name: "local/q".to_owned(), kind: ProjectKind::Local };
    let other = world.db.ensure_project(&other).await.expect("a project");
    turn(&world, "local/q", false).await;
    let all = graph(&[&[], &[0], &[], &[]]);
    let hidden = world.evaluation_of(other, "main").await;
    world.insert(&hidden, &all, &[1, 2, 3]).await.expect("insert");
    let seen = async || {
        world.assert_sound().await;
        let counts = world.db.seen_by(Viewer::Public).view_job_counts().await.expect("count");
        (counts.pending, counts.building, counts.succeeded)
    };
    assert_eq!(seen().await, (0, 0, 0));
    // A public project reaches them by a batch, while one of them is done and another is being built.
    world.complete(&world.claim(1).await[0]).await.expect("complete");
    let held = world.claim(1).await.remove(0);
    world.db.take_job_marks().await.expect("take");
    let mine = world.evaluation("main").await;
    world.insert(&mine, &all, &[1]).await.expect("insert");
    assert_eq!(seen().await, (0, 1, 1));
    world.db.take_job_marks().await.expect("take");
    assert_eq!(seen().await, (0, 1, 1));
    // By a project's turning, with marks that were taken and others that were not, and what ends meanwhile.
    turn(&world, "local/q", true).await;
    assert_eq!(seen().await, (2, 1, 1));
    world.complete(&held).await.expect("complete");
    assert_eq!(seen().await, (2, 0, 2));
    turn(&world, "local/q", false).await;
    assert_eq!(seen().await, (0, 0, 2));
    world.db.take_job_marks().await.expect("take");
    turn(&world, "local/p", false).await;
    assert_eq!(seen().await, (0, 0, 0));
    assert_eq!(world.db.repair().await.expect("repair"), harmonia_db::Repaired::default());
}

/// By whichever statement it turns: a forge's word, a setting, the configuration.
#[tokio::test]
async fn projects_without_a_forge_follow_the_configuration_until_somebody_decides() {
    let world = World::new().await;
    let eval = world.evaluation("main").await;
    world.insert(&eval, &graph(&[&[]]), &[0]).await.expect("insert");
    let is_visible = async |name| world.db.is_project_visible(name).await.expect("asked");
    assert!(is_visible("local/p").await);
    assert_eq!(world.db.set_local_visibility(false).await.expect("set"), 1);
    assert!(!is_visible("local/p").await);
    assert_eq!(public(&world, 1).await, [false]);
    assert!(world.db.seen_by(Viewer::Token).is_project_visible("local/p").await.expect("asked"));
    let new = NewProject { name: "local/new".to_owned(), kind: ProjectKind::Local };
    world.db.ensure_project(&new).await.expect("a project");
    let git =
        NewProject { name: "git/new".to_owned(), kind: ProjectKind::Git { url: "https://x.example/y".to_owned() } };
    world.db.ensure_project(&git).await.expect("a project");
    world.db.add_git_project("git/added", "https://x.example/z", None, 60, "me").await.expect("added");
    for name in ["local/new", "git/new", "git/added"] {
        assert!(!is_visible(name).await, "{name}");
    }
    turn(&world, "local/new", false).await;
    turn(&world, "git/new", true).await;
    assert_eq!(world.db.set_local_visibility(true).await.expect("set"), 2);
    assert!(is_visible("local/p").await && is_visible("git/added").await);
    assert!(!is_visible("local/new").await, "somebody said private");
    world.db.set_local_visibility(false).await.expect("set");
    assert!(is_visible("git/new").await, "somebody said public");
    assert_eq!(public(&world, 1).await, [false]);
}

#[tokio::test]
async fn a_claim_is_known_while_it_is_held_and_after() {
    use harmonia_db::ClaimState;
    let world = World::new().await;
    let eval = world.evaluation("main").await;
    assert_eq!(world.db.claim_of(&eval.token).await.expect("asked"), Some(ClaimState::Held));
    world.insert(&eval, &graph(&[&[]]), &[0]).await.expect("insert");
    world.db.finish_evaluation(eval.id, &eval.token).await.expect("finished");
    assert_eq!(world.db.claim_of(&eval.token).await.expect("asked"), None);
    let job = world.claim(1).await.remove(0);
    assert_eq!(world.db.claim_of(&job.token).await.expect("asked"), Some(ClaimState::Held));
    world.db.release_attempt(job.attempt, &job.token, "enough").await.expect("released");
    assert_eq!(world.db.claim_of(&job.token).await.expect("asked"), Some(ClaimState::Ended));
    assert_eq!(world.db.claim_of(&harmonia_db::testing::random_token()).await.expect("asked"), None);
}

/// The log of another build would be shown to all who may see this one.
#[tokio::test]
async fn an_attempt_names_its_own_log_and_no_other() {
    use harmonia_core::signer_api::AttemptUsage;
    let world = World::new().await;
    let eval = world.evaluation("main").await;
    world.insert(&eval, &graph(&[&[]]), &[0]).await.expect("insert");
    let job = world.claim(1).await.remove(0);
    let failure = crate::world::failure(None);
    let usage = AttemptUsage::default();
    let own = format!("log/{}.{}", drv_path(0).base_name(), job.attempt);
    for other in
        [format!("log/{}.{}", drv_path(1).base_name(), job.attempt), format!("log/{}", drv_path(1).base_name())]
    {
        let result = world.db.fail_attempt(job.attempt, &job.token, &failure, &usage, Some(&other)).await;
        assert!(matches!(result, Err(harmonia_db::DbError::Refused { .. })), "{other}: {result:?}");
    }
    world.db.fail_attempt(job.attempt, &job.token, &failure, &usage, Some(&own)).await.expect("its own");
}
