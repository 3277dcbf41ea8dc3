//! Repositories that go, come back, or get another name.

use std::time::Duration;

use harmonia_core::{EvalId, EvalStatus};
use harmonia_fake_forges::{Delivery, Event, RepositoryAction};

use crate::forge::{FORGE, Forge, REPOSITORY, journeys};
use crate::world::{World, push_event};

journeys! {
    both: what_we_may_not_see_any_more_wants_nothing, a_repository_that_comes_back_goes_on,
        a_repository_that_is_deleted_wants_nothing, a_renamed_repository_keeps_its_project;
    github: a_repository_that_is_taken_from_the_installation_wants_nothing;
    gitea: a_forge_that_refuses_us_is_asked_rarely;
}

/// A repository that stays ours, discovered and enabled.
const OTHER: &str = "guild/tools";

async fn evaluation(world: &World, id: EvalId) -> (EvalStatus, String) {
    let seen = world.db.view_evaluation_head(id).await.expect("looks").expect("there");
    (seen.status, seen.error.unwrap_or_default())
}

/// Lets hours pass; gives what was asked of the forge about the repository.
async fn asked_for_hours(world: &World) -> Vec<String> {
    world.forge.forget();
    for _ in 0..24 {
        world.pass(Duration::from_mins(10)).await;
        world.step(&world.frontend).await;
    }
    let requests = world.forge.requests().into_iter().map(|request| format!("{} {}", request.method, request.path));
    requests.filter(|request| request.contains(REPOSITORY)).collect()
}

/// The repository goes away while one of its evaluations has ended, one has builds to come, one runs and one is queued.
async fn goes_away(world: &World, deliveries: impl FnOnce(&Forge) -> Vec<Delivery>) {
    world.pushed("release/ended").await;
    let ended = world.evaluated(&[9]).await.claimed.id;
    assert_eq!(world.built(&[]).await, 1);
    world.forge.add_repository(OTHER);
    world.discovered().await;
    let other = world.db.repository(FORGE, OTHER).await.expect("looks").expect("discovered");
    world.db.enable_repository(other, &[OTHER.to_owned()], "admin").await.expect("enables");
    world.settle().await;
    let (before, after) = {
        let mut forge = world.forge.world();
        (forge.repository(OTHER).head("main").to_owned(), forge.push(OTHER, "main", "Needs what others need"))
    };
    let reference = "refs/heads/main";
    world.happens(Event::Push { repository: OTHER, reference, before: &before, after: &after, pusher: "ada" }).await;
    world.evaluated(&[1]).await;
    world.pushed("release/to-build").await;
    let to_build = world.evaluated(&[1, 2]).await.claimed.id;
    world.pushed("main").await;
    let running = world.claim_evaluation().await.expect("queued");
    world.insert(&running, &[3]).await;
    let (before, late) = world.push("release/late");
    let late = world.forge.delivery(push_event("refs/heads/release/late", &before, &late));
    world.pushed("release/queued").await;

    let deliveries = deliveries(&world.forge);
    world.delivered(&deliveries).await;
    // What no delivery tells of, discovery notices; it looks twice.
    world.discovered().await;

    assert!(world.claim_evaluation().await.is_none(), "nothing is queued");
    let (status, reason) = evaluation(world, running.claimed.id).await;
    assert_eq!(status, EvalStatus::Cancelled);
    assert!(reason.contains("repository is gone"), "{reason}");
    let stopped = world.db.finish_evaluation(running.claimed.id, &running.token).await;
    assert!(stopped.is_err(), "its evaluator has no say any more");
    assert_eq!(evaluation(world, to_build).await.0, EvalStatus::Succeeded, "its results stay to be seen");
    assert_eq!(evaluation(world, ended).await.0, EvalStatus::Succeeded);
    assert_eq!(world.built(&[]).await, 1, "only what another project wants is built");
    // A delivery that was on its way.
    let taken = world.deliver(&late).await;
    assert!([200, 202].contains(&taken), "{taken}");
    assert_eq!(asked_for_hours(world).await, Vec::<String>::new());
    assert!(world.claim_evaluation().await.is_none(), "nothing is queued");
}

async fn what_we_may_not_see_any_more_wants_nothing(world: &World) {
    goes_away(world, Forge::shuts_us_out).await;
}

async fn a_repository_that_is_deleted_wants_nothing(world: &World) {
    let gone = |forge: &Forge| {
        let told = forge.delivery(Event::Repository { repository: REPOSITORY, action: RepositoryAction::Deleted });
        let mut world = forge.world();
        let id = world.repository(REPOSITORY).id;
        world.repositories.remove(&id);
        vec![told]
    };
    world.pushed("main").await;
    let running = world.claim_evaluation().await.expect("queued");
    world.insert(&running, &[3]).await;
    world.pushed("release/queued").await;
    world.delivered(&gone(&world.forge)).await;
    assert!(world.claim_evaluation().await.is_none(), "nothing is queued");
    assert_eq!(evaluation(world, running.claimed.id).await.0, EvalStatus::Cancelled);
    assert_eq!(world.built(&[]).await, 0);
    assert_eq!(asked_for_hours(world).await, Vec::<String>::new());
}

async fn a_repository_that_is_taken_from_the_installation_wants_nothing(world: &World) {
    goes_away(world, |forge| {
        let mut world = forge.world();
        let repository = world.repository(REPOSITORY).id;
        let installation = world.installations.values_mut().find(|installation| installation.account == "acme");
        let installation = installation.expect("installed");
        installation.repositories = Some(std::iter::empty().collect());
        let id = installation.id;
        drop(world);
        vec![forge.delivery(Event::InstallationRepositories { id, added: &[], removed: &[(REPOSITORY, repository)] })]
    })
    .await;
}

async fn a_repository_that_comes_back_goes_on(world: &World) {
    let before = world.pushed("main").await;
    world.evaluated(&[1]).await;
    world.built(&[]).await;
    world.settle().await;
    world.assert_shown(&before, "success", "success");
    let lost = world.pushed("release/1").await;
    world.delivered(&world.forge.shuts_us_out()).await;
    world.discovered().await;
    assert!(world.claim_evaluation().await.is_none());

    world.delivered(&world.forge.lets_us_in()).await;
    world.discovered().await;
    // What had ended is as it was; what had not is asked for anew, by whoever wants it.
    world.assert_shown(&before, "success", "success");
    world.happens(push_event("refs/heads/release/1", &"0".repeat(40), &lost)).await;
    world.evaluated(&[2]).await;
    world.built(&[]).await;
    world.settle().await;
    world.assert_shown(&lost, "success", "success");
    let after = world.pushed("main").await;
    world.evaluated(&[3]).await;
    world.built(&[]).await;
    world.settle().await;
    world.assert_shown(&after, "success", "success");
}

/// Until discovery notices that we may not report any more, we try rarely; and what we have to say is not forgotten.
async fn a_forge_that_refuses_us_is_asked_rarely(world: &World) {
    let commit = world.pushed("main").await;
    world.evaluated(&[1]).await;
    world.forge.shuts_us_out();
    world.built(&[]).await;
    let asked = asked_for_hours(world).await;
    assert!(asked.len() <= 60, "{} requests in four hours: {asked:?}", asked.len());
    world.forge.lets_us_in();
    world.settle().await;
    world.pass(Duration::from_mins(10)).await;
    world.settle().await;
    world.assert_shown(&commit, "success", "success");
}

async fn a_renamed_repository_keeps_its_project(world: &World) {
    let commit = world.pushed("main").await;
    world.evaluated(&[1]).await;
    let told = world.forge.renames("acme/place");
    // By its former name, as long as nobody told us.
    world.built(&[]).await;
    world.settle().await;
    world.assert_shown(&commit, "success", "success");
    world.delivered(&told).await;
    let (before, after) = {
        let mut forge = world.forge.world();
        let before = forge.repository("acme/place").head("main").to_owned();
        (before, forge.push("acme/place", "main", "After the move"))
    };
    let reference = "refs/heads/main";
    let repository = "acme/place";
    world.happens(Event::Push { repository, reference, before: &before, after: &after, pusher: "ada" }).await;
    world.evaluated(&[2]).await;
    world.built(&[2]).await;
    world.settle().await;
    world.assert_shown(&after, "success", "failure");
    let id = world.db.repository(FORGE, "acme/place").await.expect("looks").expect("by its new name");
    assert_eq!(world.db.repository(FORGE, REPOSITORY).await.expect("looks"), None, "{id:?}");
}
