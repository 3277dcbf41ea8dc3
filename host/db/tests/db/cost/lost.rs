//! What is not where it was said to be: reports of builders and readers, what a signer or an evaluator finds, and the walks that
//! follow.

use harmonia_core::{Incarnation, NodeId, ProjectId};
use harmonia_db::testing::{checked, pool, random_token};
use harmonia_db::{ClaimedJob, Db, UpstreamAnswer, UpstreamFault};
use harmonia_nix::store_path::StorePath;

use super::Meter;
use crate::world::{Drv, Eval, batch, drv_path, new_evaluation, new_path, out_path};

const CACHE: &str = "https://near.example/";
const N: usize = 900;

/// In a database as `calls::all` leaves it: 901 above 900, whose output an upstream cache is said to have.
pub(super) async fn all(meter: &mut Meter, project: ProjectId) {
    let node = NodeId("n".to_owned());
    let graph: Vec<Drv> = (0..=N + 1).map(|number| Drv::new(number, if number > N { &[N] } else { &[] })).collect();
    let created = meter.db.create_evaluation(&new_evaluation(project, "up")).await.expect("created");
    let eval = loop {
        let token = random_token();
        let claimed = meter.db.claim_evaluation(&node, Incarnation(1), &token).await.expect("claim").expect("queued");
        if claimed.id == created.id {
            break Eval { id: claimed.id, token };
        }
    };
    let answers = [UpstreamAnswer { path: out_path(N), cache: CACHE.to_owned(), present: true }];
    meter
        .call("remember_upstream", &[(1, "path")], async |db: &Db| {
            db.remember_upstream(eval.id, &eval.token, &answers).await
        })
        .await;
    let memo =
        meter.call("upstream_memo", &[(1, "path")], async |db: &Db| db.upstream_memo(&[out_path(N)]).await).await;
    assert_eq!(memo.len(), 1);
    let mut wanted = batch(&graph, &[N, N + 1], &[N + 1]);
    wanted.derivations[0].available = true;
    let registered: Vec<_> = wanted.derivations.iter().map(checked).collect();
    meter.db.register_derivations(&registered).await.expect("registered");
    meter.db.insert_batch(eval.id, &eval.token, &wanted).await.expect("inserted");
    let job = sqlx::query_scalar::<_, i64>("SELECT id FROM build_jobs WHERE drv_path = $1")
        .bind(drv_path(N + 1).to_string())
        .fetch_one(pool(&meter.db))
        .await
        .expect("a job");
    let token = random_token();
    let jobs = [harmonia_core::JobId(job)];
    let claimed = meter.db.claim_jobs(&node, Incarnation(1), &jobs, &[token]).await.expect("claim").remove(0);
    upstream(meter, &node, &claimed, eval).await;
    ours(meter, &claimed).await;
}

async fn upstream(meter: &mut Meter, node: &NodeId, claimed: &ClaimedJob, eval: Eval) {
    let fault =
        UpstreamFault { path: out_path(N), cache: CACHE.to_owned(), roots: vec![out_path(N)], reason: String::new() };
    meter
        .call("report_upstream_fault", &[(1, "job"), (1, "input")], async |db: &Db| {
            db.report_upstream_fault(claimed.attempt, &claimed.token, &fault).await
        })
        .await;
    let caches = [CACHE.to_owned()];
    let reports =
        meter.call("upstream_reports", &[(1, "report")], async |db: &Db| db.upstream_reports(&caches, 10).await).await;
    assert_eq!(reports.len(), 1);
    meter
        .call("confirm_upstream_fault", &[(1, "path"), (1, "job that becomes"), (1, "job above")], async |db: &Db| {
            db.confirm_upstream_fault(node, Incarnation(1), &out_path(N), CACHE, "gone").await
        })
        .await;
    let token = random_token();
    let asked = [(1, "walk"), (7, "evaluations that have walks")];
    let walk = meter
        .call("claim_walk", &asked, async |db: &Db| db.claim_walk(node, Incarnation(1), &token).await)
        .await
        .expect("a walk");
    assert_eq!((walk.eval, walk.drvs.len()), (eval.id, 1));
    let none = meter
        .call("claim_walk, of none", &asked, async |db: &Db| db.claim_walk(node, Incarnation(1), &random_token()).await)
        .await;
    assert!(none.is_none());
    meter.call("finish_walk", &asked, async |db: &Db| db.finish_walk(&walk, &token, Some("no .drv here")).await).await;
}

async fn ours(meter: &mut Meter, claimed: &ClaimedJob) {
    let old: StorePath =
        sqlx::query_scalar::<_, String>("SELECT path FROM store_paths WHERE path LIKE '%-old-7' LIMIT 1")
            .fetch_one(pool(&meter.db))
            .await
            .expect("a path of the past")
            .parse()
            .expect("a path");
    let path = [(1, "path")];
    meter
        .call("report_missing_path", &[(1, "job"), (1, "path")], async |db: &Db| {
            db.report_missing_path(claimed.attempt, &claimed.token, &old, true).await
        })
        .await;
    meter.call("report_damaged_narinfo", &path, async |db: &Db| db.report_damaged_narinfo(old.hash_part()).await).await;
    let missing =
        meter.call("missing_paths, of many", &[(10, "reports")], async |db: &Db| db.missing_paths(10).await).await;
    assert_eq!(missing.len(), 10);
    meter.call("dismiss_missing_path", &path, async |db: &Db| db.dismiss_missing_path(&missing[0].path).await).await;
    meter
        .call("confirm_lost_path, of nothing", &path, async |db: &Db| db.confirm_lost_path(&out_path(N + 7)).await)
        .await;
    let given = new_path(out_path(N + 1), 1);
    meter
        .db
        .claim_outputs(
            claimed.attempt,
            &claimed.token,
            std::slice::from_ref(&given),
            &harmonia_db::Alongside::default(),
        )
        .await
        .expect("claimed");
    let given_up = meter
        .call("give_up_claimed_path", &[(1, "path"), (1, "job")], async |db: &Db| {
            db.give_up_claimed_path(&given.path, Some(claimed.attempt)).await
        })
        .await;
    assert!(given_up);
}
