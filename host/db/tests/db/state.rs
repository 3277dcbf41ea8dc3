//! State is what is true now: attributes whose outputs are available, systems that were offered, evaluations of a part, crashes
//! that count.

use std::time::Duration;

use harmonia_core::JobStatus::{Building, Cancelled, DepFailed, Failed, Pending, Succeeded};
use harmonia_core::api::{AttrState, Verdict};
use harmonia_core::limits::LOST_NODES_MAX;
use harmonia_core::{EvalId, EvalStatus, FailureKind, Incarnation, NodeId, Timestamp};
use harmonia_db::testing::{checked, pool, random_token, upstream_has};
use harmonia_db::{ClaimedJob, DbError, GraphBatch};

use crate::world::{
    Drv, Eval, World, attr, batch, derivation, drv_path, graph, new_evaluation, new_path, new_paths, out_path,
    registration,
};

fn now() -> Timestamp {
    Timestamp::now_utc()
}

/// Two ways to the same outputs: 0 and 1 above it, 2 and 3 above it.
fn two_recipes() -> Vec<Drv> {
    let mut graph = graph(&[&[], &[0], &[], &[2]]);
    let (below, above) = (graph[0].outputs.clone(), graph[1].outputs.clone());
    (graph[2].outputs, graph[3].outputs) = (below, above);
    graph
}

impl World {
    pub(crate) async fn finish(&self, eval: &Eval) {
        assert!(self.db.finish_evaluation(eval.id, &eval.token).await.expect("finish").complete);
    }

    /// An evaluation with an attribute a root, finished.
    async fn evaluated(&self, branch: &str, graph: &[Drv], roots: &[usize]) -> EvalId {
        let eval = self.evaluation(branch).await;
        self.insert(&eval, graph, roots).await.expect("insert");
        self.finish(&eval).await;
        eval.id
    }

    pub(crate) async fn shown(&self, eval: EvalId) -> (Vec<AttrState>, Verdict) {
        let detail = self.db.view_evaluation(eval).await.expect("read").expect("there");
        let head = self.db.view_evaluation_head(eval).await.expect("read").expect("there");
        assert_eq!(head.counts, detail.evaluation.counts);
        let green = |attr: &&harmonia_core::api::Attr| matches!(attr.state, AttrState::Succeeded | AttrState::Cached);
        assert_eq!(detail.attrs.iter().filter(green).count() as u64, head.counts.succeeded, "one place decides");
        (detail.attrs.iter().map(|attr| attr.state).collect(), detail.evaluation.verdict)
    }

    async fn run(&self, statement: &'static str) {
        sqlx::query(statement).execute(pool(&self.db)).await.expect(statement);
    }

    async fn built(&self, number: usize) {
        let claimed = self.claim_only(number).await;
        self.complete(&claimed).await.expect("complete");
    }

    /// The node's process is killed, and started again.
    async fn crash(&mut self) {
        self.run = Incarnation(self.run.0 + 1);
        self.db.register_node(&registration("n", self.run.0)).await.expect("register");
    }

    async fn claim_evaluation(&self) -> Option<Eval> {
        let token = random_token();
        let claimed = self.db.claim_evaluation(&self.node, self.run, &token).await.expect("claim")?;
        Some(Eval { id: claimed.id, token })
    }

    async fn message(&self, job: &ClaimedJob) -> String {
        self.db.view_build(job.job, now()).await.expect("read").expect("there").message.unwrap_or_default()
    }
}

#[tokio::test]
async fn what_is_available_has_succeeded_whatever_an_older_job_says() {
    let world = World::new().await;
    let graph = two_recipes();
    let first = world.evaluated("main", &graph, &[0, 1]).await;
    let claimed = world.claim_only(0).await;
    world.fail(&claimed, Some(FailureKind::Build)).await.expect("fail");
    assert_eq!(world.shown(first).await, (vec![AttrState::Failed, AttrState::DepFailed], Verdict::Failed));

    // The recipe is mended: another derivation, the same output path.
    let second = world.evaluated("main", &graph, &[2, 3]).await;
    world.built(2).await;
    world.built(3).await;
    assert_eq!(world.shown(second).await.1, Verdict::Succeeded);
    assert_eq!(world.statuses().await, [(0, Succeeded), (1, Succeeded), (2, Succeeded), (3, Succeeded)]);

    // And comes back: nothing is built, all is green.
    let third = world.evaluated("main", &graph, &[0, 1]).await;
    assert_eq!(world.shown(third).await, (vec![AttrState::Cached; 2], Verdict::Succeeded));
    assert!(world.claim(9).await.is_empty());
    assert_eq!(world.db.rebuild_failed(third, "me").await.expect("rebuild"), 0);
    assert_eq!(world.shown(third).await.1, Verdict::Succeeded);
    world.assert_sound().await;
}

/// Rows of a time when nobody mended them, or of a race.
#[tokio::test]
async fn rows_that_say_otherwise_do_not_show() {
    let world = World::new().await;
    let graph = two_recipes();
    let eval = world.evaluated("main", &graph, &[0, 1]).await;
    world.built(0).await;
    world.built(1).await;
    for status in ["failed", "dep-failed", "cancelled"] {
        world.run("UPDATE build_jobs SET status = 'pending'").await;
        let broken = match status {
            "failed" => "UPDATE build_jobs SET status = 'failed', failure_kind = 'build', message = 'old'",
            "dep-failed" => "UPDATE build_jobs SET status = 'dep-failed'",
            _ => "UPDATE build_jobs SET status = 'cancelled', message = 'old'",
        };
        world.run(broken).await;
        assert_eq!(world.shown(eval).await, (vec![AttrState::Succeeded; 2], Verdict::Succeeded), "{status}");
        let build = world.db.view_build(world.job_id(0).await, now()).await.expect("read").expect("there");
        assert_eq!((build.status, build.failure_kind, build.message), (Succeeded, None, None), "{status}");
        let detail = world.db.view_evaluation(eval).await.expect("read").expect("there");
        assert_eq!((detail.jobs.succeeded, detail.attrs[0].error.as_deref()), (2, None), "{status}");
    }
    // The next evaluation finds them, and sets them right.
    world.evaluated("main", &graph, &[0, 1]).await;
    assert_eq!(world.statuses().await, [(0, Succeeded), (1, Succeeded)]);
    world.assert_sound().await;
}

#[tokio::test]
async fn what_failed_for_something_that_is_there_now_is_built_where_it_is_wanted() {
    let world = World::new().await;
    let mut graph = two_recipes();
    graph[3].outputs = vec![33];
    world.evaluated("one", &graph, &[1]).await;
    let claimed = world.claim_only(0).await;
    world.fail(&claimed, Some(FailureKind::Build)).await.expect("fail");
    assert_eq!(world.statuses().await, [(0, Failed), (1, DepFailed)]);
    world.evaluated("two", &graph, &[2]).await;
    world.built(2).await;
    assert_eq!(world.statuses().await, [(0, Succeeded), (1, Pending), (2, Succeeded)]);
    world.built(1).await;
    world.assert_sound().await;
}

#[tokio::test]
async fn a_build_that_breaks_after_another_made_its_outputs_has_succeeded() {
    let world = World::new().await;
    let graph = two_recipes();
    let eval = world.evaluated("main", &graph, &[0, 2]).await;
    let mut claimed = world.claim(2).await;
    let (second, first) = (claimed.pop().expect("two"), claimed.pop().expect("two"));
    world.complete(&first).await.expect("complete");
    assert_eq!(world.status(2).await, Building);
    world.fail(&second, Some(FailureKind::Build)).await.expect("fail");
    assert_eq!(world.statuses().await, [(0, Succeeded), (2, Succeeded)]);
    assert_eq!(world.shown(eval).await.1, Verdict::Succeeded);
    world.assert_sound().await;
}

#[tokio::test]
async fn an_attribute_without_a_job_is_green_only_while_its_outputs_are_available() {
    let world = World::new().await;
    let graph = graph(&[&[]]);
    upstream_has(&world.db, [out_path(0)].iter()).await;
    let eval = world.evaluated("main", &graph, &[0]).await;
    assert!(world.jobs().await.is_empty());
    assert_eq!(world.shown(eval).await, (vec![AttrState::Cached], Verdict::Succeeded));
    // The answer had expired when the evaluation ended: nobody knew.
    world.run("UPDATE upstream_paths SET expires_at = now() - interval '1 hour'").await;
    assert_eq!(world.shown(eval).await, (vec![AttrState::Failed], Verdict::Failed));
    let detail = world.db.view_evaluation(eval).await.expect("read").expect("there");
    assert_eq!(detail.attrs[0].failure_kind, Some(FailureKind::Infrastructure));
    assert!(detail.attrs[0].error.as_deref().is_some_and(|error| error.contains("in no cache any more")));
    // Nor does anybody know when there is no answer at all.
    world.run("DELETE FROM upstream_paths").await;
    assert_eq!(world.shown(eval).await, (vec![AttrState::Failed], Verdict::Failed));
    upstream_has(&world.db, [out_path(0)].iter()).await;
    // It expires later: what was shown stays, for as long as nothing else is known, however long that is.
    world
        .run("UPDATE evaluations SET finished_at = now() - interval '40 days', created_at = now() - interval '40 days'")
        .await;
    world.run("UPDATE upstream_paths SET expires_at = now() - interval '39 days'").await;
    world.db.delete_stale(Duration::from_hours(24)).await.expect("delete");
    assert_eq!(world.shown(eval).await, (vec![AttrState::Cached], Verdict::Succeeded));
    // A builder of something else reports it, and it is found gone: it becomes a job.
    let (path, cache) = (out_path(0), crate::upstream::UPSTREAM);
    world
        .run("INSERT INTO upstream_reports (path, cache, roots, reason, attempt_id) SELECT path, cache, ARRAY[path], '', 0 FROM upstream_paths")
        .await;
    world.db.confirm_upstream_fault(&world.node, world.run, &path, cache, "it is gone").await.expect("confirms");
    assert_eq!(world.shown(eval).await, (vec![AttrState::Pending], Verdict::Running));
    world.assert_sound().await;
}

#[tokio::test]
async fn systems_count_for_weeks_after_their_builders_left() {
    let world = World::new().await;
    let arm = harmonia_db::NodeRegistration { systems: vec!["aarch64-linux".to_owned()], ..registration("arm", 1) };
    world.db.register_node(&arm).await.expect("register");
    let both = ["aarch64-linux", "x86_64-linux"];
    world.db.set_evaluator_engine(&world.node, world.run, "nix").await.expect("say");
    world.db.set_evaluator_engine(&arm.id, arm.incarnation, "nix").await.expect("say");
    let key = world.db.reuse_key(Duration::from_mins(2)).await.expect("read");
    assert!(world.db.set_draining(&arm.id, arm.incarnation, true).await.expect("drain"));
    assert_eq!(world.db.builder_systems().await.expect("systems"), both);
    world.db.deregister_node(&arm.id, arm.incarnation).await.expect("goodbye");
    assert_eq!(world.db.builder_systems().await.expect("systems"), both);
    // Registered anew without it: it was offered all the same.
    let other = harmonia_db::NodeRegistration { incarnation: Incarnation(2), systems: Vec::new(), ..arm };
    world.db.register_node(&other).await.expect("register");
    world.db.deregister_node(&other.id, other.incarnation).await.expect("goodbye");
    assert_eq!(world.db.builder_systems().await.expect("systems"), both);
    assert_eq!(world.db.reuse_key(Duration::from_mins(2)).await.expect("read"), key, "results hold as they did");

    world.run("UPDATE builder_systems SET last_seen = now() - interval '31 days' WHERE system = 'aarch64-linux'").await;
    assert_eq!(world.db.builder_systems().await.expect("systems"), ["x86_64-linux"]);
    assert_ne!(world.db.reuse_key(Duration::from_mins(2)).await.expect("read"), key);
    // A heartbeat is as good as a start.
    world.run("UPDATE builder_systems SET last_seen = now() - interval '31 days'").await;
    world.db.heartbeat(&world.node, world.run, None).await.expect("heartbeat");
    assert_eq!(world.db.builder_systems().await.expect("systems"), ["x86_64-linux"]);
}

#[tokio::test]
async fn a_part_takes_no_full_evaluations_place() {
    let world = World::new().await;
    let create = async |attrs: bool, dirty: bool| {
        let mut new = new_evaluation(world.project, "main");
        new.attrs = attrs.then(|| vec!["packages".to_owned()]);
        new.dirty = dirty;
        world.db.create_evaluation(&new).await.expect("create")
    };
    let full = create(false, false).await;
    assert_eq!(full.superseded, []);
    let part = create(true, false).await;
    assert_eq!(part.superseded, [], "the full one stays");
    let dirty = create(false, true).await;
    assert_eq!(dirty.superseded, [part.id]);
    let both = create(true, true).await;
    assert_eq!(both.superseded, [dirty.id]);
    let view = world.db.view_evaluation_head(full.id).await.expect("read").expect("there");
    assert_eq!(view.status, EvalStatus::Queued);
    let newer = create(false, false).await;
    assert_eq!(newer.superseded, [full.id, both.id]);
}

#[tokio::test]
async fn the_job_that_a_full_evaluation_wants_survives_a_part() {
    let world = World::new().await;
    let graph = graph(&[&[], &[]]);
    let full = world.evaluated("main", &graph, &[0, 1]).await;
    let mut new = new_evaluation(world.project, "main");
    new.attrs = Some(vec!["packages".to_owned()]);
    world.db.create_evaluation(&new).await.expect("create");
    let part = world.claim_evaluation().await.expect("queued");
    world.insert(&part, &graph, &[1]).await.expect("insert");
    world.finish(&part).await;
    assert_eq!(world.statuses().await, [(0, Pending), (1, Pending)]);
    assert_eq!(world.shown(full).await.1, Verdict::Running);
}

/// One evaluator's claim, however it lies, changes nothing for others.
#[tokio::test]
async fn what_a_derivation_is_comes_from_signers_alone() {
    let world = World::new().await;
    let graph = graph(&[&[], &[]]);
    world.evaluated("main", &graph, &[0]).await;
    world.built(0).await;
    let liar = world.evaluation("liar").await;
    // Not registered: an attribute, a hold, or a job of it is refused.
    let paths = [drv_path(1)];
    for batch in [
        batch(&graph, &[1], &[]),
        GraphBatch { attrs: vec![attr(1)], ..GraphBatch::default() },
        GraphBatch { holds: paths.to_vec(), ..GraphBatch::default() },
    ] {
        let refused = world.db.insert_batch(liar.id, &liar.token, &batch).await;
        assert!(matches!(refused, Err(DbError::Refused { .. })), "{refused:?}");
    }
    // Registered: that its output is another's, which is there, or that it is available, is nobody's to say.
    assert_eq!(world.db.register_derivations(&[checked(&derivation(1, &graph[1]))]).await.expect("register"), []);
    let mut lie = batch(&graph, &[1], &[1]);
    lie.derivations[0].outputs[0].path = Some(out_path(0));
    lie.derivations[0].available = true;
    let outcome = world.db.insert_batch(liar.id, &liar.token, &lie).await.expect("not believed");
    assert_eq!(outcome.missing, paths);
    lie.derivations[0].available = false;
    world.db.insert_batch(liar.id, &liar.token, &lie).await.expect("insert");
    assert_eq!(world.statuses().await, [(0, Succeeded), (1, Pending)]);
    let honest = world.evaluated("honest", &graph, &[1]).await;
    assert_eq!(world.shown(honest).await.1, Verdict::Running);
    // Even a signer cannot make it something else; that it was tried is recorded.
    for change in [
        |lie: &mut harmonia_db::CheckedDerivation| lie.outputs[0].path = Some(out_path(0)),
        |lie: &mut harmonia_db::CheckedDerivation| lie.inputs.push((drv_path(0), vec!["out".to_owned()])),
        |lie: &mut harmonia_db::CheckedDerivation| lie.sources.push(out_path(0)),
        |lie: &mut harmonia_db::CheckedDerivation| lie.outputs.clear(),
        |lie: &mut harmonia_db::CheckedDerivation| "riscv64-linux".clone_into(&mut lie.system),
        |lie: &mut harmonia_db::CheckedDerivation| lie.required_features.push("kvm".to_owned()),
    ] {
        let mut lie = checked(&derivation(1, &graph[1]));
        change(&mut lie);
        assert_eq!(world.db.register_derivations(&[lie]).await.expect("ask"), paths);
    }
    let findings = sqlx::query_scalar!(r#"SELECT count(*) AS "n!" FROM derivation_findings"#);
    assert_eq!(findings.fetch_one(pool(&world.db)).await.expect("count"), 6);
    let outputs = world.db.derivation_outputs(&paths).await.expect("read");
    assert_eq!(outputs, [(drv_path(1), "out".to_owned(), Some(out_path(1)))]);
    assert_eq!(world.db.register_derivations(&[checked(&derivation(1, &graph[1]))]).await.expect("the same"), []);
}

#[tokio::test]
async fn a_crash_counts_and_the_last_one_is_a_failure() {
    let mut world = World::new().await;
    let graph = graph(&[&[], &[0]]);
    world.evaluated("main", &graph, &[1]).await;
    // Stopping properly counts for nothing, however often.
    for _ in 0..LOST_NODES_MAX {
        world.claim_only(0).await;
        world.db.deregister_node(&world.node, world.run).await.expect("goodbye");
        world.crash().await;
    }
    for crash in 1..=LOST_NODES_MAX {
        assert_eq!(world.status(0).await, Pending, "before crash {crash}");
        let poison = world.claim_only(0).await;
        world.crash().await;
        let outcome = sqlx::query_scalar!("SELECT outcome FROM build_attempts WHERE id = $1", poison.attempt.0);
        assert_eq!(outcome.fetch_one(pool(&world.db)).await.expect("read"), "lost");
        if crash == LOST_NODES_MAX {
            let message = world.message(&poison).await;
            assert!(
                message.contains("5 times the node that built this crashed") && message.ends_with("one: n"),
                "{message}"
            );
        }
    }
    assert_eq!(world.statuses().await, [(0, Failed), (1, DepFailed)]);
    assert_eq!(world.jobs().await[&0].kind, Some(FailureKind::Infrastructure));
    world.assert_sound().await;
    // The next evaluation that wants it tries again, from the beginning.
    world.evaluated("main", &graph, &[1]).await;
    world.claim_only(0).await;
    world.crash().await;
    assert_eq!(world.status(0).await, Pending);
}

#[tokio::test]
async fn an_evaluation_that_kills_its_node_fails_at_the_limit_and_lets_others_go_first() {
    let mut world = World::new().await;
    let graph = graph(&[&[]]);
    let other = world
        .db
        .ensure_project(&harmonia_db::NewProject { name: "other".to_owned(), kind: harmonia_db::ProjectKind::Local })
        .await
        .expect("a project");
    let poison = world.evaluation("main").await;
    world.insert(&poison, &graph, &[0]).await.expect("insert");
    let waiting = world.db.create_evaluation(&new_evaluation(other, "main")).await.expect("create").id;
    world.crash().await;
    let next = world.claim_evaluation().await.expect("two are queued");
    assert_eq!(next.id, waiting, "who was served last comes last");
    world.db.fail_evaluation(next.id, &next.token, "done").await.expect("fail");
    for crash in 2..=LOST_NODES_MAX {
        assert_eq!(world.claim_evaluation().await.expect("queued").id, poison.id, "before crash {crash}");
        if crash % 2 == 0 {
            world.crash().await;
        } else {
            harmonia_db::testing::falls_silent(&world.db, "n", Duration::from_hours(24)).await;
            let reaped = world.db.reap_silent_nodes(Duration::from_hours(1)).await.expect("reap");
            assert_eq!(reaped.evaluations, 1);
            world.db.heartbeat(&world.node, world.run, None).await.expect("it is back");
        }
    }
    let view = world.db.view_evaluation(poison.id).await.expect("read").expect("there");
    let error = view.evaluation.error.unwrap_or_default();
    assert_eq!(view.evaluation.status, EvalStatus::Failed, "{error}");
    assert!(error.starts_with("infrastructure: 5 times the node that evaluated this crashed"), "{error}");
    assert_eq!(world.statuses().await, [(0, Cancelled)], "no partial results");
    assert!(world.claim_evaluation().await.is_none());
    world.assert_sound().await;
}

#[tokio::test]
async fn projects_share_the_slots_of_evaluators() {
    let world = World::new().await;
    let mut projects = vec![world.project];
    for name in ["b", "c"] {
        let new = harmonia_db::NewProject { name: name.to_owned(), kind: harmonia_db::ProjectKind::Local };
        projects.push(world.db.ensure_project(&new).await.expect("a project"));
    }
    // One floods the queue; the others come later.
    let mut places = std::collections::BTreeMap::new();
    for (project, count) in [(0, 4), (1, 2), (2, 1)] {
        for number in 0..count {
            let new = new_evaluation(projects[project], &format!("b{number}"));
            places.insert(world.db.create_evaluation(&new).await.expect("create").id.0, (project, number));
        }
    }
    let mut order = Vec::new();
    while let Some(claimed) = world.claim_evaluation().await {
        order.push(places[&claimed.id.0]);
    }
    assert_eq!(order, [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (0, 2), (0, 3)]);
    // When the one that was served the longest ago has something again, it is next.
    for project in [2, 0] {
        let new = new_evaluation(projects[project], "late");
        places.insert(world.db.create_evaluation(&new).await.expect("create").id.0, (project, 9));
    }
    let next = world.claim_evaluation().await.expect("queued");
    assert_eq!(places[&next.id.0], (2, 9));
}

#[tokio::test]
async fn attempts_are_not_numbered_twice_when_a_crash_forgot_claims() {
    let world = World::new().await;
    world.evaluated("main", &graph(&[&[], &[]]), &[0, 1]).await;
    let first = world.claim(1).await.pop().expect("ready");
    // As PostgreSQL comes back: unlogged tables are empty, and the sequence is as of before what was not written yet.
    world.run("TRUNCATE since_crash").await;
    world.run("SELECT setval(pg_get_serial_sequence('build_attempts', 'id'), 1, false)").await;
    let second = world.claim(1).await.pop().expect("ready");
    assert!(second.attempt.0 > first.attempt.0 + 1_000, "{} after {}", second.attempt, first.attempt);
    world.db.release_attempt(second.attempt, &second.token, "a test").await.expect("release");
    let third = world.claim(1).await.pop().expect("ready");
    assert_eq!(third.attempt.0, second.attempt.0 + 1, "once");
}

/// Outputs that another job makes, too, are claimed in the very moment in which this one is cancelled.
#[tokio::test]
async fn a_job_is_cancelled_whole_or_not_at_all() {
    let world = World::new().await;
    let graph = two_recipes();
    world.evaluated("main", &graph, &[0, 2]).await;
    let claimed = world.claim(2).await;
    world.db.attempt_uploading(claimed[0].attempt, &claimed[0].token).await.expect("uploading");
    world
        .run(
            "CREATE FUNCTION meanwhile() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN
                INSERT INTO store_paths (path, nar_hash, nar_size, file_hash, file_size, refs, state)
                SELECT output_path, 'sha256:x', 1, 'sha256:x', 1, '{}', 'claimed' FROM derivation_outputs ON CONFLICT DO NOTHING;
                RETURN NULL; END$$",
        )
        .await;
    world
        .run("CREATE TRIGGER meanwhile AFTER UPDATE ON build_attempts FOR EACH STATEMENT EXECUTE FUNCTION meanwhile()")
        .await;
    world.db.cancel_job(claimed[0].job, "me").await.expect("cancel");
    world.run("DROP TRIGGER meanwhile ON build_attempts").await;
    assert_eq!(world.status(0).await, Cancelled);
    world.assert_sound().await;
}

#[tokio::test]
async fn a_claimed_path_whose_object_is_gone_is_never_published_on_the_way() {
    let world = World::new().await;
    let graph = graph(&[&[], &[0]]);
    world.evaluated("main", &graph, &[1]).await;
    let claimed = world.claim_only(0).await;
    let outputs = new_paths(&world.db, &claimed, 1).await;
    world
        .db
        .claim_outputs(claimed.attempt, &claimed.token, &outputs, &harmonia_db::Alongside::default())
        .await
        .expect("claim outputs");
    // The attempt that is being completed goes on, and claims its outputs anew.
    assert!(world.db.give_up_claimed_path(&out_path(0), Some(claimed.attempt)).await.expect("give up"));
    assert_eq!(world.status(0).await, harmonia_core::JobStatus::Uploading);
    world
        .db
        .claim_outputs(claimed.attempt, &claimed.token, &outputs, &harmonia_db::Alongside::default())
        .await
        .expect("claim outputs");
    // Seen by somebody else: the job is built again, and nothing above ran meanwhile.
    assert!(world.db.give_up_claimed_path(&out_path(0), None).await.expect("give up"));
    assert_eq!(world.statuses().await, [(0, Pending), (1, Pending)]);
    assert!(!world.db.give_up_claimed_path(&out_path(0), None).await.expect("nothing more to give up"));
    let stale =
        world.db.claim_outputs(claimed.attempt, &claimed.token, &outputs, &harmonia_db::Alongside::default()).await;
    assert!(matches!(stale, Err(DbError::StaleClaim)), "{stale:?}");
    assert!(world.db.canonical_paths(&[out_path(0)]).await.expect("read").is_empty());
    world.built(0).await;
    assert!(!world.db.give_up_claimed_path(&out_path(0), None).await.expect("published is not claimed"));
    world.built(1).await;
    world.assert_sound().await;
    // A source that nobody builds.
    let eval = world.evaluation("other").await;
    let source = new_path(out_path(77), 7);
    world.db.claim_paths(eval.id, &eval.token, &[source]).await.expect("claim");
    assert!(world.db.give_up_claimed_path(&out_path(77), None).await.expect("give up"));
}

#[tokio::test]
async fn a_stopped_builder_is_known_to_those_who_ask_why() {
    let world = World::new().await;
    world.evaluated("main", &graph(&[&[]]), &[0]).await;
    world.db.deregister_node(&NodeId("n".to_owned()), world.run).await.expect("goodbye");
    let why = world.db.why(&[world.job_id(0).await], now()).await.expect("read");
    let sentences = why.values().next().expect("it waits").join("; ");
    assert!(sentences.contains("no node offers x86_64-linux now; one did until "), "{sentences}");
}
