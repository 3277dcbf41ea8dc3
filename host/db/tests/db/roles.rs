//! Each role tries what it must not do, and can do its work.

use harmonia_core::signer_api::AttemptUsage;
use harmonia_core::{Capability, Incarnation, NodeId};
use harmonia_db::testing::{checked, pool, random_token};
use harmonia_db::{Db, DbError, NodeRegistration};

use crate::world::{World, drv_path, graph, new_evaluation, new_paths, out_path, registration};

fn denied<T: std::fmt::Debug>(result: Result<T, sqlx::Error>, what: &str) {
    let error = result.expect_err(what);
    let code = error.as_database_error().and_then(|error| error.code().map(std::borrow::Cow::into_owned));
    assert_eq!(code.as_deref(), Some("42501"), "{what}: {error}");
}

fn one_capability(id: &str, capability: Capability) -> NodeRegistration {
    NodeRegistration { capabilities: vec![capability], ..registration(id, 1) }
}

#[tokio::test]
async fn evaluators_and_builders_write_no_table_and_read_no_token() {
    let world = World::new().await;
    let eval = world.evaluation("main").await;
    world.insert(&eval, &graph(&[&[]]), &[0]).await.expect("insert");
    for capability in [Capability::Evaluator, Capability::Builder, Capability::Signer, Capability::Frontend] {
        let db = world.test.connect_as(capability).await;
        let pool = pool(&db);
        denied(sqlx::query!("UPDATE build_jobs SET priority = 100").execute(pool).await, "boost a job");
        denied(
            sqlx::query!("INSERT INTO eval_attrs (eval_id, attr, error) VALUES (1, 'x', 'y')").execute(pool).await,
            "an attribute",
        );
        denied(sqlx::query!("DELETE FROM build_attempts").execute(pool).await, "forget attempts");
        denied(sqlx::query!("UPDATE store_paths SET public = true").execute(pool).await, "make paths public");
        denied(sqlx::query!("UPDATE nodes SET capabilities = '{signer}'").execute(pool).await, "pose as a signer");
        denied(sqlx::query!("SELECT claim_token_hash FROM build_jobs").fetch_all(pool).await, "read tokens of jobs");
        denied(sqlx::query!("SELECT token_hash FROM build_attempts").fetch_all(pool).await, "read tokens of attempts");
        denied(
            sqlx::query!("SELECT claim_token_hash FROM evaluations").fetch_all(pool).await,
            "read tokens of evaluations",
        );
        denied(sqlx::query!("SELECT fail_job(1, 'build', '', NULL)").fetch_one(pool).await, "call an inner function");
        denied(sqlx::query!("SELECT withdraw(NULL, '{}')").fetch_one(pool).await, "call an inner function");
        if capability != Capability::Frontend {
            denied(sqlx::query!("SELECT token_hash FROM api_tokens").fetch_all(pool).await, "read API tokens");
            denied(sqlx::query!("SELECT value FROM settings").fetch_all(pool).await, "read settings");
            denied(sqlx::query!("SELECT cancel_evaluation(1, '')").fetch_one(pool).await, "cancel");
        }
        if capability != Capability::Signer {
            let forged =
                sqlx::query!("SELECT * FROM register_derivations('[]', '[]', '[]', '[]')").fetch_all(pool).await;
            denied(forged, "say what a derivation is");
            denied(sqlx::query!("SELECT publish_paths('{}')").fetch_one(pool).await, "publish");
        }
        if capability != Capability::Builder {
            denied(sqlx::query!("SELECT * FROM claim_jobs('n', 1, '{1}', '{}', false)").fetch_all(pool).await, "claim");
        }
    }
}

#[tokio::test]
async fn a_capability_is_registered_by_its_own_role_only() {
    let world = World::new().await;
    for own in Capability::ALL {
        let db = world.test.connect_as(*own).await;
        for claimed in Capability::ALL {
            let name = format!("{own}-{claimed}");
            let result = db.register_node(&one_capability(&name, *claimed)).await;
            assert_eq!(result.is_ok(), own == claimed, "{own} as {claimed}: {result:?}");
        }
        // Nor may it take the name of a node that has more.
        let taken =
            db.register_node(&NodeRegistration { incarnation: Incarnation(9), ..one_capability("n", *own) }).await;
        assert!(matches!(taken, Err(DbError::Refused { .. })), "{own}: {taken:?}");
    }
}

/// The whole way of a job, each step by its own role.
#[tokio::test]
async fn each_role_can_do_its_work() {
    let world = World::new().await;
    let (frontend, evaluator, builder, signer) = (
        world.test.connect_as(Capability::Frontend).await,
        world.test.connect_as(Capability::Evaluator).await,
        world.test.connect_as(Capability::Builder).await,
        world.test.connect_as(Capability::Signer).await,
    );
    for (db, capability) in
        [(&evaluator, Capability::Evaluator), (&builder, Capability::Builder), (&signer, Capability::Signer)]
    {
        db.check_schema().await.expect("check the schema");
        db.register_node(&one_capability(capability.as_str(), capability)).await.expect("register");
        assert!(db.heartbeat(&NodeId(capability.to_string()), Incarnation(1), None).await.expect("heartbeat").current);
    }
    frontend.check_schema().await.expect("check the schema");
    let kind = harmonia_db::ProjectKind::Local;
    let project =
        frontend.ensure_project(&harmonia_db::NewProject { name: "x".to_owned(), kind }).await.expect("a project");
    let bundle = frontend.begin_bundle().await.expect("a bundle");
    frontend.append_bundle(bundle, 0, b"git").await.expect("a chunk");
    frontend.finish_bundle(bundle, 3, [0; 32]).await.expect("finish it");
    let created = frontend.create_evaluation(&new_evaluation(project, "main")).await.expect("create");

    let node = NodeId("evaluator".to_owned());
    let token = random_token();
    let claimed = evaluator.claim_evaluation(&node, Incarnation(1), &token).await.expect("claim").expect("one");
    assert_eq!(claimed.id, created.id);
    assert_eq!(evaluator.read_bundle(bundle, 0).await.expect("read").as_deref(), Some(&b"git"[..]));
    let eval = crate::world::Eval { id: claimed.id, token };
    evaluator.expect_attrs(eval.id, &eval.token, &["a0".to_owned()]).await.expect("expect");
    let batch = as_world(&world, &evaluator).walk(&eval, &graph(&[&[]]), &[0]).await.expect("walk");
    let unknown = evaluator.insert_batch(eval.id, &eval.token, &batch).await;
    assert!(matches!(unknown, Err(DbError::Refused { .. })), "{unknown:?}");
    let rows: Vec<_> = batch.derivations.iter().map(checked).collect();
    assert_eq!(signer.register_derivations(&rows).await.expect("register"), []);
    evaluator.insert_batch(eval.id, &eval.token, &batch).await.expect("insert");
    assert!(evaluator.finish_evaluation(eval.id, &eval.token).await.expect("finish").complete);

    let classes = builder.resolve_classes(&[crate::world::SYSTEM.to_owned()], &[]).await.expect("classes");
    let heads = builder.queue_heads(&classes, 1).await.expect("heads");
    let jobs: Vec<_> = heads.candidates.iter().map(|candidate| candidate.job).collect();
    let node = NodeId("builder".to_owned());
    let job = builder.claim_jobs(&node, Incarnation(1), &jobs, &[random_token()]).await.expect("claim").remove(0);
    builder.attempt_uploading(job.attempt, &job.token).await.expect("uploading");
    builder.canonical_paths(&[out_path(0)]).await.expect("canonical");
    builder.live_signers(std::time::Duration::from_mins(1)).await.expect("signers");

    let scope = signer.attempt_scope(job.attempt, &job.token).await.expect("scope");
    assert_eq!((scope.drv_path, scope.drv_public), (drv_path(0), true));
    signer
        .claim_outputs(
            job.attempt,
            &job.token,
            &new_paths(&world.db, &job, 1).await,
            &harmonia_db::Alongside::default(),
        )
        .await
        .expect("claim outputs");
    signer.renew_leases(&[out_path(0)]).await.expect("lease");
    signer.unavailable_references(&[out_path(0)]).await.expect("closure gate");
    signer.modulo_hashes(&[drv_path(0)]).await.expect("modulo");
    assert!(!signer.give_up_claimed_path(&out_path(9), None).await.expect("nothing to give up"));
    signer.publish_outputs(job.job, &[out_path(0)], &AttemptUsage::default(), None).await.expect("publish");
    assert!(frontend.sweep_invariants().await.expect("sweep").is_empty());
    frontend.repair().await.expect("repair");
    frontend.reap_silent_nodes(std::time::Duration::from_mins(1)).await.expect("reap");
    frontend.delete_stale(std::time::Duration::from_mins(1)).await.expect("delete");
}

/// The helpers of `world`, acting as another role.
fn as_world<'a>(world: &'a World, db: &Db) -> AsRole<'a> {
    AsRole { world, db: db.clone() }
}

struct AsRole<'a> {
    world: &'a World,
    db: Db,
}

impl AsRole<'_> {
    async fn walk(
        &self,
        eval: &crate::world::Eval,
        graph: &[crate::world::Drv],
        roots: &[usize],
    ) -> Result<harmonia_db::GraphBatch, DbError> {
        let paths: Vec<_> = roots.iter().map(|root| drv_path(*root)).collect();
        self.db.classify_derivations(eval.id, &eval.token, &paths, &[]).await?;
        self.world.walk(eval, graph, roots).await
    }
}

/// A node's name belongs to the secret that it registered with, and what it may do to its run: neither is anybody else's to
/// read or to guess.
#[tokio::test]
async fn no_other_role_or_node_ends_renames_or_impersonates_a_node() {
    let world = World::new().await;
    let victim = NodeId("victim".to_owned());
    let run = Incarnation(4_711);
    let owner = world.test.connect_as(Capability::Builder).await;
    let registered = NodeRegistration { incarnation: run, ..one_capability("victim", Capability::Builder) };
    owner.register_node(&registered).await.expect("register");
    let stranger = harmonia_core::NodeSecret([1; 32]);
    for capability in Capability::ALL {
        let db = world.test.connect_as(*capability).await;
        let pool = pool(&db);
        for column in ["incarnation", "secret_hash"] {
            let read = sqlx::AssertSqlSafe(format!("SELECT {column} FROM nodes"));
            denied(sqlx::query(read).fetch_all(pool).await, column);
        }
        denied(sqlx::query!("SELECT claim_incarnation FROM build_jobs").fetch_all(pool).await, "the run of a job");
        denied(sqlx::query!("SELECT incarnation FROM build_attempts").fetch_all(pool).await, "the run of an attempt");
        denied(sqlx::query!("SELECT claim_incarnation FROM evaluations").fetch_all(pool).await, "of an evaluation");
        // Its name with another secret, as whatever this role may be.
        let taken = NodeRegistration { secret: stranger.clone(), ..one_capability("victim", *capability) };
        let taken = db.register_node(&taken).await;
        assert!(matches!(taken, Err(DbError::Refused { .. })), "{capability}: {taken:?}");
        // What needs the run, with a guess.
        assert!(!db.heartbeat(&victim, Incarnation(1), Some("paused")).await.expect("answered").current);
        db.deregister_node(&victim, Incarnation(1)).await.expect("does nothing");
        if matches!(capability, Capability::Builder | Capability::Frontend) {
            db.report_policy_error(&victim, Incarnation(1), Some("broken")).await.expect("does nothing");
        }
    }
    let nodes = world.db.nodes(std::time::Duration::from_mins(2)).await.expect("nodes");
    let node = nodes.iter().find(|node| node.id == "victim").expect("it lives");
    assert_eq!((node.paused.as_deref(), node.policy_error.as_deref()), (None, None));
    assert!(owner.heartbeat(&victim, run, None).await.expect("answered").current);
    // Gone for the day, its name is still its own; then anybody's.
    owner.deregister_node(&victim, run).await.expect("goodbye");
    let taken = NodeRegistration { secret: stranger, ..one_capability("victim", Capability::Builder) };
    assert!(matches!(owner.register_node(&taken).await, Err(DbError::Refused { .. })));
    owner.register_node(&registered).await.expect("it comes back");
    sqlx::query!("UPDATE nodes SET last_seen = now() - interval '25 hours' WHERE id = 'victim'")
        .execute(pool(&world.db))
        .await
        .expect("a day later");
    owner.register_node(&taken).await.expect("the name is free again");
}
