//! The calls, each with what it is asked about: what nodes do, what people do, what pages show.

use std::time::Duration;

use harmonia_core::policy::{AskingNode, FirstInFirstOut, order_candidates};
use harmonia_core::signer_api::AttemptUsage;
use harmonia_core::status::CommitReport;
use harmonia_core::{EvalId, FailureKind, Incarnation, JobId, NodeId, ProjectId, Viewer};
use harmonia_db::testing::{checked, pool, random_token};
use harmonia_db::views::LogMark;
use harmonia_db::{AskedLimits, ClaimedJob, ComputedReport, Db, NewProject, ProjectKind};
use harmonia_nix::store_path::StorePath;

use super::{Meter, READS_EACH};
use crate::world::{Drv, Eval, attr, derivation, drv_path, failure, new_evaluation, new_path, new_paths, registration};

/// Levels of the chains that wait, see `queue.sql`.
const CHAIN: u64 = 10;
/// Inputs of each derivation: up to three of its chain, and `stdenv`.
const INPUTS: u64 = 4;
/// Jobs and attributes of each evaluation that waits.
const JOBS: u64 = 500;
const ATTRS: u64 = 50;
/// Jobs that one node holds, and how many of these are in one evaluation.
const HELD: u64 = 60;
/// Projects with a queue.
const BUSY_PROJECTS: u64 = 20;
/// Attributes of each evaluation of the past, and what was built for it.
const PAST_ATTRS: u64 = 40;
/// Derivations of a batch.
const BATCH: usize = 100;

/// The `place`th evaluation that waits. Odd ones have ended.
fn busy(place: u64) -> EvalId {
    EvalId(100_000 + place.cast_signed())
}

/// A job of it.
fn job(place: u64, number: u64) -> JobId {
    JobId((100_000 + (place - 1) * JOBS + number).cast_signed())
}

async fn claim(meter: &mut Meter, count: u32) -> Vec<ClaimedJob> {
    let node = registration("n", 1);
    let classes = meter
        .call("resolve_classes", &[(1, "node"), (1, "class")], async |db: &Db| {
            db.resolve_classes(&node.systems, &node.features).await
        })
        .await;
    let heads = meter
        .call(
            "queue_heads",
            &[(1, "digest"), (BUSY_PROJECTS, "projects"), (BUSY_PROJECTS * 10, "heads")],
            async |db: &Db| db.queue_heads(&classes, 10).await,
        )
        .await;
    let asking = AskingNode { node: node.id.clone(), slots: count, speed_factor: 1.0 };
    let (order, _) = order_candidates(&FirstInFirstOut, &asking, &heads.projects, &heads.candidates);
    let tokens: Vec<_> = (0..count).map(|_| random_token()).collect();
    let asked = [(1, "node"), (u64::from(count), "jobs")];
    let claimed = meter
        .call("claim_jobs", &asked, async |db: &Db| db.claim_jobs(&node.id, Incarnation(1), &order, &tokens).await)
        .await;
    assert_eq!(claimed.len(), count as usize);
    claimed
}

/// Everything that follows, in one database.
pub(super) async fn all(meter: &mut Meter, project: ProjectId) {
    builds(meter).await;
    people(meter).await;
    pages(meter).await;
    evaluations(meter, project).await;
    ends(meter).await;
}

async fn builds(meter: &mut Meter) {
    let node = NodeId("n".to_owned());
    let mut claimed = claim(meter, 8).await;
    let mut next = || claimed.pop().expect("enough were claimed");

    let built = next();
    let held = [(built.attempt, built.token.clone())];
    meter.call("void_claims", &[(1, "claim")], async |db: &Db| db.void_claims(&held).await).await;
    meter
        .call("attempt_uploading", &[(1, "job")], async |db: &Db| {
            db.attempt_uploading(built.attempt, &built.token).await
        })
        .await;
    let outputs = new_paths(&meter.db, &built, 1).await;
    let paths: Vec<StorePath> = outputs.iter().map(|output| output.path.clone()).collect();
    meter
        .call("attempt_scope", &[(1, "job"), (INPUTS, "inputs")], async |db: &Db| {
            db.attempt_scope(built.attempt, &built.token).await
        })
        .await;
    meter
        .call("claim_outputs", &[(1, "job"), (1, "output")], async |db: &Db| {
            db.claim_outputs(built.attempt, &built.token, &outputs, &harmonia_db::Alongside::default()).await
        })
        .await;
    meter
        .call("unfinished_publications", &[(HELD + 8, "held jobs")], async |db: &Db| {
            db.unfinished_publications(10).await
        })
        .await;
    meter
        .call("publish_outputs", &[(1, "job"), (1, "output"), (3, "dependents")], async |db: &Db| {
            db.publish_outputs(built.job, &paths, &AttemptUsage::default(), None).await
        })
        .await;
    meter.call("renew_leases", &[(1, "path")], async |db: &Db| db.renew_leases(&paths).await).await;
    meter.call("path_rows", &[(1, "path")], async |db: &Db| db.path_rows(&paths).await).await;
    meter.call("unavailable_references", &[(1, "path")], async |db: &Db| db.unavailable_references(&paths).await).await;

    let failed = next();
    let (broke, usage) = (failure(Some(FailureKind::Build)), AttemptUsage::default());
    meter
        .call("fail_attempt, for good", &[(1, "job"), (CHAIN, "jobs above")], async |db: &Db| {
            db.fail_attempt(failed.attempt, &failed.token, &broke, &usage, None).await
        })
        .await;
    let tried = next();
    let transient = failure(None);
    meter
        .call("fail_attempt, to be tried again", &[(1, "job"), (INPUTS, "inputs")], async |db: &Db| {
            db.fail_attempt(tried.attempt, &tried.token, &transient, &usage, None).await
        })
        .await;
    let released = next();
    meter
        .call("release_attempt", &[(1, "job"), (INPUTS, "inputs")], async |db: &Db| {
            db.release_attempt(released.attempt, &released.token, "it stops").await
        })
        .await;
    let lost = next();
    let tokens = [lost.token.clone()];
    meter
        .call("revoke_claims", &[(4, "jobs that the node holds"), (INPUTS, "inputs")], async |db: &Db| {
            db.revoke_claims(&node, Incarnation(1), &tokens).await
        })
        .await;
    let uncharged = meter
        .call("uncharged_attempts", &[(HELD + 8, "attempts")], async |db: &Db| {
            db.uncharged_attempts(harmonia_core::AttemptId(0), 1000).await
        })
        .await;
    meter.call("book_charges", &[(HELD + 8, "attempts")], async |db: &Db| db.book_charges(&uncharged, &[]).await).await;
    meter
        .call("heartbeat", &[(1, "node"), (1, "class")], async |db: &Db| {
            db.heartbeat(&node, Incarnation(1), None).await
        })
        .await;
    let marks = [LogMark::unread(built.job)];
    meter.call("log_states", &[(1, "job")], async |db: &Db| db.log_states(&marks).await).await;
    let ended = 3 + CHAIN;
    meter.call("take_job_marks", &[(ended, "jobs")], async |db: &Db| db.take_job_marks().await).await;
}

async fn people(meter: &mut Meter) {
    // The lowest of a chain: all of the chain lean on it.
    let leaf = job(3, 499);
    meter
        .call("cancel_job", &[(CHAIN, "jobs of the chain"), (CHAIN * INPUTS, "inputs")], async |db: &Db| {
            db.cancel_job(leaf, "somebody").await
        })
        .await;
    meter
        .call("rebuild_job", &[(CHAIN, "jobs of the chain"), (CHAIN * INPUTS, "inputs")], async |db: &Db| {
            db.rebuild_job(leaf, "somebody").await
        })
        .await;
    let top = job(3, 480);
    meter
        .call(
            "cancel_job, of the top of a chain",
            &[(CHAIN, "jobs of the chain"), (CHAIN * INPUTS, "inputs")],
            async |db: &Db| db.cancel_job(top, "somebody").await,
        )
        .await;
    meter
        .call(
            "rebuild_failed",
            &[(ATTRS, "attributes"), (CHAIN, "jobs"), (CHAIN * INPUTS, "inputs")],
            async |db: &Db| db.rebuild_failed(busy(3), "somebody").await,
        )
        .await;
    meter
        .call("cancel_evaluation", &[(JOBS, "jobs"), (ATTRS, "attributes")], async |db: &Db| {
            db.cancel_evaluation(busy(5), "somebody").await
        })
        .await;
}

async fn pages(meter: &mut Meter) {
    let now = time::OffsetDateTime::now_utc();
    let listed = 20;
    let asked = [
        (listed, "jobs that wait"),
        (listed / 2, "of the first that wait, which may be blocked"),
        (BUSY_PROJECTS * listed / READS_EACH, "heads of each queue, read once"),
        (HELD, "jobs that run"),
    ];
    meter.call("view_queue", &asked, async |db: &Db| db.view_queue(20, now).await).await;
    meter
        .call(
            "view_job_counts",
            &[(7, "statuses"), (HELD, "jobs that run"), (3 * CHAIN, "jobs that were just marked")],
            async |db: &Db| db.seen_by(Viewer::Token).view_job_counts().await,
        )
        .await;
    meter
        .call(
            "view_job_counts, of a stranger",
            &[(7, "statuses"), (HELD, "jobs that run"), (3 * CHAIN, "jobs that were just marked")],
            async |db: &Db| db.seen_by(Viewer::Public).view_job_counts().await,
        )
        .await;
    meter
        .call("view_evaluation_load", &[(15, "evaluations that wait or run")], async |db: &Db| {
            db.view_evaluation_load().await
        })
        .await;
    meter
        .call(
            "view_evaluation, of the past",
            &[(1, "evaluation"), (PAST_ATTRS, "attributes"), (PAST_ATTRS * INPUTS, "inputs")],
            async |db: &Db| db.view_evaluation(EvalId(2_500)).await,
        )
        .await;
    meter
        .call(
            "view_evaluation, which waits",
            &[(1, "evaluation"), (JOBS, "jobs"), (JOBS * INPUTS, "inputs")],
            async |db: &Db| db.view_evaluation(busy(7)).await,
        )
        .await;
    looks(meter).await;
    meter
        .call("view_evaluation_log", &[(1, "evaluation")], async |db: &Db| db.view_evaluation_log(EvalId(2_500)).await)
        .await;
    meter
        .call("view_evaluations, of all", &[(20, "evaluations"), (20 * ATTRS, "attributes")], async |db: &Db| {
            db.view_evaluations(None, None, 20).await
        })
        .await;
    meter
        .call("view_evaluations, of a project", &[(20, "evaluations"), (20 * ATTRS, "attributes")], async |db: &Db| {
            db.view_evaluations(Some("local/old-3"), None, 20).await
        })
        .await;
    let list = async |db: &Db| db.view_evaluations(Some("local/old-30"), None, 10).await;
    meter.call("view_evaluations, counted and stored", &[(10, "evaluations"), (10 * ATTRS, "attributes")], list).await;
    let marks = (JOBS + 4 * CHAIN) / READS_EACH;
    let asked = [
        (10, "evaluations"),
        (marks, "dozens of jobs that were just marked, each read once"),
        // Of those that were marked some are to be built again: the attributes may be read to find them there.
        (10 * ATTRS / READS_EACH, "dozens of attributes, each read once"),
    ];
    meter.call("view_evaluations, whose counts are stored", &asked, list).await;
    meter
        .call("view_projects", &[(41, "projects"), (41 * ATTRS, "attributes")], async |db: &Db| {
            db.view_projects().await
        })
        .await;
    for (name, id) in [("of the past", JobId(30_007)), ("which waits", job(9, 400))] {
        let name = format!("view_build, {name}");
        meter.call(&name, &[(1, "job"), (INPUTS, "inputs")], async |db: &Db| db.view_build(id, now).await).await;
    }
    let asked =
        [(1, "job"), (INPUTS, "inputs"), (1_000 / READS_EACH, "thousand jobs ahead at the most, each read once")];
    meter.call("view_build, which is ready", &asked, async |db: &Db| db.view_build(job(9, 499), now).await).await;
    meter
        .call("newest_evaluation_with", &[(1, "job")], async |db: &Db| db.newest_evaluation_with(job(9, 400)).await)
        .await;
    meter
        .call("find_build, by an attribute", &[(200, "evaluations"), (200 * ATTRS, "attributes")], async |db: &Db| {
            db.find_build("a1-7", now).await
        })
        .await;
    meter
        .call("nodes", &[(2, "nodes"), (HELD + 8, "held jobs")], async |db: &Db| db.nodes(Duration::from_mins(2)).await)
        .await;
}

/// What pages, the API and whoever waits for an evaluation read of it.
async fn looks(meter: &mut Meter) {
    let asked = [(1, "evaluation"), (JOBS, "jobs"), (JOBS * INPUTS, "inputs")];
    let whole = meter
        .call("look_at_evaluation", &asked, async |db: &Db| db.look_at_evaluation(busy(7)).await)
        .await
        .expect("there");
    meter.call("look_at_row", &[(1, "evaluation")], async |db: &Db| db.look_at_row(busy(7)).await).await;
    let open: Vec<_> = whole.jobs.iter().map(|job| (job.job, job.status)).collect();
    // Each is looked up once.
    let asked = [(JOBS / 10, "jobs, each read once, by an index")];
    meter.call("look_again", &asked, async |db: &Db| db.look_again(&open).await).await;
    let names: Vec<&str> = whole.attrs.iter().take(5).map(|attr| attr.attr.as_str()).collect();
    let asked = [(1, "evaluation"), (5, "attributes")];
    meter.call("look_at_attrs", &asked, async |db: &Db| db.look_at_attrs(busy(7), &names).await).await;
    let names: Vec<String> = names.into_iter().map(str::to_owned).collect();
    meter.call("attrs_named", &asked, async |db: &Db| db.attrs_named(busy(7), &names).await).await;
    let (attrs, _) =
        meter.call("view_attrs", &asked, async |db: &Db| db.view_attrs(busy(7), Some("n1"), 5).await).await;
    assert_eq!(attrs.len(), 5);
    meter.call("next_revision", &[(1, "number")], async |db: &Db| db.next_revision().await).await;
}

/// An evaluation of a hundred new derivations in chains of ten, on `stdenv`.
async fn evaluations(meter: &mut Meter, project: ProjectId) {
    let stdenv: StorePath = "/nix/store/zb3637f775390b00642106z5299ffz86-stdenv.drv".parse().expect("a store path");
    let node = NodeId("n".to_owned());
    let created = meter
        .call("create_evaluation", &[(1, "evaluation")], async |db: &Db| {
            db.create_evaluation(&new_evaluation(project, "main")).await
        })
        .await;
    // Those that are queued already come first.
    let eval = loop {
        let token = random_token();
        let claimed = meter
            .call("claim_evaluation", &[(6, "queued evaluations"), (10, "running evaluations")], async |db: &Db| {
                db.claim_evaluation(&node, Incarnation(1), &token).await
            })
            .await
            .expect("one is queued");
        if claimed.id == created.id {
            break Eval { id: claimed.id, token };
        }
    };
    let names: Vec<String> = (0..BATCH).map(|number| format!("a{number}")).collect();
    meter
        .call("expect_attrs", &[(BATCH as u64, "attributes")], async |db: &Db| {
            db.expect_attrs(eval.id, &eval.token, &names).await
        })
        .await;
    let drvs: Vec<StorePath> = (0..BATCH).map(drv_path).collect();
    let asked: Vec<_> = drvs.iter().map(|drv| (drv.clone(), AskedLimits::default())).collect();
    meter
        .call("classify_derivations", &[(BATCH as u64, "derivations")], async |db: &Db| {
            db.classify_derivations(eval.id, &eval.token, &drvs, &asked).await
        })
        .await;
    let derivations: Vec<_> = (0..BATCH)
        .map(|number| {
            let below: Vec<usize> = (1..=3).filter(|by| number % 10 >= *by).map(|by| number - by).collect();
            let mut derivation = derivation(number, &Drv::new(number, &below));
            derivation.inputs.push((stdenv.clone(), vec!["out".to_owned()]));
            derivation
        })
        .collect();
    let rows: Vec<_> = derivations.iter().map(checked).collect();
    let known = [(BATCH as u64, "derivations"), (BATCH as u64 * INPUTS, "inputs")];
    meter.call("register_derivations", &known, async |db: &Db| db.register_derivations(&rows).await).await;
    meter.call("register_derivations, again", &known, async |db: &Db| db.register_derivations(&rows).await).await;
    let batch = harmonia_db::GraphBatch {
        derivations,
        attrs: (0..BATCH).map(attr).collect(),
        ..harmonia_db::GraphBatch::default()
    };
    let outcome =
        meter.call("insert_batch", &known, async |db: &Db| db.insert_batch(eval.id, &eval.token, &batch).await).await;
    assert_eq!(outcome.new_jobs, BATCH as u64);
    meter
        .call("insert_batch, again", &known, async |db: &Db| db.insert_batch(eval.id, &eval.token, &batch).await)
        .await;
    meter
        .call("evaluation_held", &[(1, "evaluation")], async |db: &Db| db.evaluation_held(eval.id, &eval.token).await)
        .await;
    let source = new_path("/nix/store/00000000000000000000000000000000-source".parse().expect("a store path"), 1);
    let paths = [source.path.clone()];
    meter
        .call("claim_paths", &[(1, "path")], async |db: &Db| db.claim_paths(eval.id, &eval.token, &[source]).await)
        .await;
    meter.call("publish_paths", &[(1, "path")], async |db: &Db| db.publish_paths(&paths).await).await;
    let targets = meter
        .call("due_reports", &[(BUSY_PROJECTS, "commits that were marked")], async |db: &Db| {
            db.due_reports(Duration::ZERO, 100).await
        })
        .await;
    for target in targets.iter().take(3) {
        let asked = [(1, "commit"), (JOBS, "attributes of its evaluations")];
        let compute = |_: &CommitReport| ComputedReport { statuses: Vec::new(), told: Vec::new(), settled: false };
        meter
            .call("compute_report", &asked, async |db: &Db| {
                db.compute_report(target, &[], Duration::ZERO, compute).await
            })
            .await;
    }
    let finished =
        meter.call("finish_evaluation", &known, async |db: &Db| db.finish_evaluation(eval.id, &eval.token).await).await;
    assert!(finished.complete);
    meter
        .call("create_evaluation, which supersedes one", &known, async |db: &Db| {
            db.create_evaluation(&new_evaluation(project, "main")).await
        })
        .await;
    let token = random_token();
    let again = meter
        .call("claim_evaluation", &[(6, "queued evaluations"), (10, "running evaluations")], async |db: &Db| {
            db.claim_evaluation(&node, Incarnation(1), &token).await
        })
        .await
        .expect("one is queued");
    meter
        .call("fail_evaluation", &[(1, "evaluation")], async |db: &Db| {
            db.fail_evaluation(again.id, &token, "it broke").await
        })
        .await;
    let git =
        NewProject { name: "git/p".to_owned(), kind: ProjectKind::Git { url: "https://git.invalid/p".to_owned() } };
    meter.call("ensure_project", &[(1, "project")], async |db: &Db| db.ensure_project(&git).await).await;
}

async fn ends(meter: &mut Meter) {
    meter.call("missing_paths", &[(1, "report")], async |db: &Db| db.missing_paths(10).await).await;
    let lost: StorePath = "/nix/store/0z74dd3b2d982b9z5921cb50zz5457f6-old-5".parse().expect("a store path");
    meter
        .call("confirm_lost_path", &[(1, "path"), (INPUTS, "inputs"), (3, "jobs above")], async |db: &Db| {
            db.confirm_lost_path(&lost).await
        })
        .await;
    sqlx::query("UPDATE nodes SET last_seen = now() - interval '1 hour' WHERE id = 'old'")
        .execute(pool(&meter.db))
        .await
        .expect("the node falls silent");
    let reaped = meter
        .call(
            "reap_silent_nodes",
            &[
                (HELD, "jobs that it holds"),
                (HELD * INPUTS, "inputs"),
                (BUSY_PROJECTS / 2 * ATTRS, "attributes of its evaluations"),
            ],
            async |db: &Db| db.reap_silent_nodes(Duration::from_mins(2)).await,
        )
        .await;
    assert!(reaped.jobs > 0 && reaped.evaluations > 0, "{reaped:?}");
}
