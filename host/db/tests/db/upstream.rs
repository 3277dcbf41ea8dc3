//! What upstream caches have, have no more, and never had.

use std::time::Duration;

use harmonia_core::JobStatus::{Pending, Succeeded};
use harmonia_db::testing::{falls_silent, pool, random_token};
use harmonia_db::{ClaimState, DbError, UpstreamAnswer, UpstreamFault};

use crate::world::{Eval, World, batch, drv_path, graph, out_path, registration};

pub(crate) const UPSTREAM: &str = "https://up.example/";

/// The cache answered about outputs.
pub(crate) async fn remember(world: &World, eval: &Eval, answers: &[(usize, bool)]) {
    let answer = |(out, present): &(usize, bool)| UpstreamAnswer {
        path: out_path(*out),
        cache: UPSTREAM.to_owned(),
        present: *present,
    };
    let answers: Vec<UpstreamAnswer> = answers.iter().map(answer).collect();
    world.db.remember_upstream(eval.id, &eval.token, &answers).await.expect("remembers");
}

/// 2 above 1 above 0; a cache has the output of 1, so that nobody walked to 0.
async fn leaning_on_upstream() -> (World, Vec<crate::world::Drv>, Eval) {
    let world = World::new().await;
    world
        .db
        .register_upstreams(&world.node, world.run, &[(UPSTREAM.to_owned(), "keys".to_owned())])
        .await
        .expect("registers");
    let graph = graph(&[&[], &[0], &[1]]);
    let eval = world.evaluation("main").await;
    remember(&world, &eval, &[(1, true)]).await;
    let mut upstream = batch(&graph, &[1, 2], &[2]);
    upstream.derivations[0].available = true;
    let outcome = world.insert_batch(&eval, &upstream).await.expect("insert");
    assert_eq!((outcome.new_jobs, outcome.missing), (1, Vec::new()));
    (world, graph, eval)
}

fn fault() -> UpstreamFault {
    UpstreamFault {
        path: out_path(1),
        cache: UPSTREAM.to_owned(),
        roots: vec![out_path(1)],
        reason: "the archive nar/x is not there".to_owned(),
    }
}

/// The builder of 2 could not get the output of 1, and gives its job back.
async fn reported(world: &World) {
    let two = world.claim_only(2).await;
    world.db.report_upstream_fault(two.attempt, &two.token, &fault()).await.expect("reports");
    world.db.release_attempt(two.attempt, &two.token, "an input is not there").await.expect("released");
}

#[tokio::test]
async fn what_a_cache_does_not_give_becomes_a_job_in_the_evaluations_that_run() {
    let (world, graph, eval) = leaning_on_upstream().await;
    let two = world.claim_only(2).await;
    world.db.report_upstream_fault(two.attempt, &two.token, &fault()).await.expect("reports");
    let stranger = UpstreamFault { path: out_path(77), roots: Vec::new(), ..fault() };
    assert!(world.db.report_upstream_fault(two.attempt, &two.token, &stranger).await.is_err(), "of no input");
    world.fail(&two, None).await.expect("transient");
    let stale = world.db.report_upstream_fault(two.attempt, &two.token, &fault()).await;
    assert!(matches!(stale, Err(DbError::StaleClaim)), "{stale:?}");
    // One builder's word is for evaluators that ask this cache, and changes nothing for others.
    let db = world.db.clone();
    let reports = |cache: &'static str| {
        let db = db.clone();
        async move { db.upstream_reports(&[cache.to_owned()], 10).await }
    };
    assert!(reports("https://other.example/").await.expect("reports").is_empty());
    assert_eq!(reports(UPSTREAM).await.expect("reports"), [(out_path(1), UPSTREAM.to_owned())]);
    assert_eq!(world.statuses().await, [(2, Pending)]);
    assert_eq!(world.jobs().await[&2].unmet, 0);
    // The evaluation may have ended long ago.
    assert!(world.db.finish_evaluation(eval.id, &eval.token).await.expect("finish").complete);

    world
        .db
        .confirm_upstream_fault(&world.node, world.run, &out_path(1), UPSTREAM, "it is gone")
        .await
        .expect("confirms");
    assert!(reports(UPSTREAM).await.expect("reports").is_empty());
    assert_eq!(world.statuses().await, [(1, Pending), (2, Pending)]);
    assert_eq!((world.jobs().await[&1].unmet, world.jobs().await[&2].unmet), (1, 1));
    assert!(world.claim(10).await.is_empty(), "nobody knows yet what 1 needs");
    world.assert_sound().await;

    let token = random_token();
    let walk = world.db.claim_walk(&world.node, world.run, &token).await.expect("claim").expect("a walk");
    assert_eq!((walk.eval, walk.drvs.clone()), (eval.id, vec![drv_path(1)]));
    assert_eq!(
        world.db.claim_walk(&world.node, world.run, &random_token()).await.expect("claim"),
        None,
        "under a lease"
    );
    let walker = Eval { id: walk.eval, token };
    let state = || async { world.db.claim_of(&walker.token).await.expect("asked") };
    assert_eq!(state().await, Some(ClaimState::Held), "signers take what it uploads, by the token alone");
    assert!(world.db.finish_evaluation(walker.id, &walker.token).await.is_err(), "a walk is no evaluation");
    let mut below = world.walk(&walker, &graph, &[1]).await.expect("walk");
    below.attrs.clear();
    let outcome = world.insert_batch(&walker, &below).await.expect("insert");
    assert_eq!((outcome.new_jobs, outcome.missing), (1, Vec::new()));
    world.db.finish_walk(&walk, &walker.token, None).await.expect("finish");
    assert!(world.db.finish_walk(&walk, &walker.token, None).await.is_err(), "the token is used up");
    assert_eq!(state().await, None);
    world.assert_sound().await;
    for number in [0, 1, 2] {
        let claimed = world.claim_only(number).await;
        world.complete(&claimed).await.expect("complete");
    }
    assert_eq!(world.statuses().await, [(0, Succeeded), (1, Succeeded), (2, Succeeded)]);
    world.assert_sound().await;
}

#[tokio::test]
async fn a_report_that_nobody_can_confirm_changes_nothing() {
    let (world, _, _) = leaning_on_upstream().await;
    let two = world.claim_only(2).await;
    world.db.report_upstream_fault(two.attempt, &two.token, &fault()).await.expect("reports");
    world.db.dismiss_upstream_report(&world.node, world.run, &out_path(1), UPSTREAM).await.expect("dismisses");
    assert!(world.db.upstream_reports(&[UPSTREAM.to_owned()], 10).await.expect("reports").is_empty());
    world.fail(&two, None).await.expect("transient");
    assert_eq!(world.statuses().await, [(2, Pending)]);
    world.claim_only(2).await;
    world.assert_sound().await;
}

/// An evaluator alone has nothing built again.
#[tokio::test]
async fn what_no_builder_reported_cannot_be_confirmed() {
    let (world, _, _) = leaning_on_upstream().await;
    let confirm =
        async || world.db.confirm_upstream_fault(&world.node, world.run, &out_path(1), UPSTREAM, "it is gone").await;
    confirm().await.expect("nothing to confirm");
    assert_eq!(world.statuses().await, [(2, Pending)]);
    assert!(world.db.unavailable_references(&[out_path(1)]).await.expect("gate").is_empty());
    reported(&world).await;
    confirm().await.expect("confirms");
    assert_eq!(world.statuses().await, [(1, Pending), (2, Pending)]);
    confirm().await.expect("another evaluator was faster");
    world.assert_sound().await;
}

#[tokio::test]
async fn another_cache_that_has_it_is_enough() {
    let (world, _, eval) = leaning_on_upstream().await;
    let mirror = UpstreamAnswer { path: out_path(1), cache: "https://mirror.example/".to_owned(), present: true };
    world.db.remember_upstream(eval.id, &eval.token, &[mirror]).await.expect("remembers");
    reported(&world).await;
    world
        .db
        .confirm_upstream_fault(&world.node, world.run, &out_path(1), UPSTREAM, "it is gone")
        .await
        .expect("confirms");
    assert_eq!(world.statuses().await, [(2, Pending)]);
    // What was seen to be gone is not there again because a narinfo still is.
    remember(&world, &eval, &[(1, true)]).await;
    let memo = world.db.upstream_memo(&[out_path(1)]).await.expect("memo");
    assert_eq!(
        memo.iter().filter(|answer| answer.present).map(|answer| answer.cache.as_str()).collect::<Vec<_>>(),
        ["https://mirror.example/"]
    );
    world.assert_sound().await;
}

#[tokio::test]
async fn a_walk_that_cannot_be_done_fails_with_its_reason_after_three_tries() {
    let (world, _, eval) = leaning_on_upstream().await;
    assert!(world.db.finish_evaluation(eval.id, &eval.token).await.expect("finish").complete);
    reported(&world).await;
    world
        .db
        .confirm_upstream_fault(&world.node, world.run, &out_path(1), UPSTREAM, "it is gone")
        .await
        .expect("confirms");
    for _ in 0..3 {
        let token = random_token();
        let walk = world.db.claim_walk(&world.node, world.run, &token).await.expect("claim").expect("a walk");
        world.db.finish_walk(&walk, &token, Some("its .drv is not here")).await.expect("finish");
        sqlx::query!("UPDATE job_walks SET not_before = now()").execute(pool(&world.db)).await.expect("time passes");
        world.assert_sound().await;
    }
    assert_eq!(world.db.claim_walk(&world.node, world.run, &random_token()).await.expect("claim"), None);
    let message = sqlx::query_scalar!("SELECT message FROM build_jobs WHERE drv_path = $1", drv_path(1).to_string());
    let message = message.fetch_one(pool(&world.db)).await.expect("a job").unwrap_or_default();
    assert!(message.contains("its .drv is not here"), "{message}");
    world.assert_sound().await;
}

#[tokio::test]
async fn a_walk_is_for_the_node_that_evaluated_as_long_as_that_may_come_back() {
    let (world, _, eval) = leaning_on_upstream().await;
    assert!(world.db.finish_evaluation(eval.id, &eval.token).await.expect("finish").complete);
    reported(&world).await;
    world
        .db
        .confirm_upstream_fault(&world.node, world.run, &out_path(1), UPSTREAM, "it is gone")
        .await
        .expect("confirms");
    let other = registration("other", 1);
    world.db.register_node(&other).await.expect("register");
    let claim = || async {
        world.db.claim_walk(&other.id, other.incarnation, &random_token()).await.expect("claim").map(|walk| walk.eval)
    };
    let job = world.job_id(1).await;
    let why = || async {
        let why = world.db.why(&[job], time::OffsetDateTime::now_utc()).await.expect("why").remove(&job);
        why.expect("it waits").join("; ")
    };
    // It has the .drv files, which the other has not.
    for away in [1, 59] {
        falls_silent(&world.db, "n", Duration::from_mins(away)).await;
        assert_eq!(claim().await, None, "away for {away} min");
        let why = why().await;
        assert!(why.contains("cache that had it: n") && why.contains("is away") == (away > 2), "{why}");
    }
    falls_silent(&world.db, "n", Duration::from_mins(61)).await;
    assert!(why().await.ends_with("an evaluator is about to look what has to be built instead"));
    assert_eq!(claim().await, Some(eval.id));
    assert!(why().await.ends_with("other looks what has to be built instead"));
}

#[tokio::test]
async fn answers_expire_and_expired_ones_carry_nothing() {
    let (world, graph, eval) = leaning_on_upstream().await;
    assert!(world.db.unavailable_references(&[out_path(1)]).await.expect("gate").is_empty());
    sqlx::query!("UPDATE upstream_paths SET expires_at = now()").execute(pool(&world.db)).await.expect("time passes");
    assert!(world.db.upstream_memo(&[out_path(1)]).await.expect("memo").is_empty());
    assert_eq!(world.db.unavailable_references(&[out_path(1)]).await.expect("gate"), [out_path(1)]);
    let next = world.evaluation("other").await;
    let below = world.walk(&next, &graph, &[2]).await.expect("walk");
    assert_eq!(below.derivations.len(), 0, "2 has its job");
    let below = world.walk(&next, &graph, &[1]).await.expect("walk");
    assert_eq!(below.derivations.len(), 2, "1 is to be asked for again");
    // Asked again, it is gone: those that wait hear of it.
    remember(&world, &eval, &[(1, false)]).await;
    assert_eq!(world.statuses().await, [(1, Pending), (2, Pending)]);
    world.assert_sound().await;
}

#[tokio::test]
async fn the_keys_of_signers_are_known_to_all_nodes() {
    let world = World::new().await;
    assert_eq!(world.db.signer_keys().await.expect("keys"), Vec::<String>::new());
    for keys in [vec!["old-1:AA".to_owned()], vec!["new-1:AA".to_owned(), "old-1:AA".to_owned()]] {
        world.db.set_signer_keys(&world.node, world.run, &keys).await.expect("set");
        assert_eq!(world.db.signer_keys().await.expect("keys"), keys);
    }
}

#[tokio::test]
async fn caches_that_nobody_asks_any_more_do_not_count() {
    let (world, graph, _) = leaning_on_upstream().await;
    // Other keys count there now: what it said is to be asked again.
    let other_keys = [(UPSTREAM.to_owned(), "other keys".to_owned())];
    world.db.register_upstreams(&world.node, world.run, &other_keys).await.expect("registers");
    assert!(world.db.upstream_memo(&[out_path(1)]).await.expect("memo").is_empty());
    assert_eq!(world.statuses().await, [(2, Pending)]);
    world.db.register_upstreams(&world.node, world.run, &[]).await.expect("registers");
    assert_eq!(world.statuses().await, [(1, Pending), (2, Pending)]);
    let next = world.evaluation("other").await;
    assert_eq!(world.walk(&next, &graph, &[1]).await.expect("walk").derivations.len(), 2);
    world.assert_sound().await;
}
