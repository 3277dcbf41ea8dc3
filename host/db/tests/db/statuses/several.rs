//! One commit, several things that are at it: pull requests with the same head, a tag and a branch of one name.

use harmonia_core::forge::PullRequest;
use harmonia_core::intake::Wanted;
use harmonia_db::{BranchKey, DeliveryRowId, EvaluationRequest, NewEvaluationRow, Requested};

use super::{compute, desired};
use crate::intake::pull_requests::pull;
use crate::intake::{A, B, Forge, queued};
use crate::world::{Eval, graph, new_evaluation};

impl Forge {
    async fn evaluate_tag(&self, name: &str, commit: &str) -> Requested {
        let key = BranchKey { is_tag: true, ..self.branch(name) };
        let asked = self.db.branch_state(&key).await.expect("state");
        let wanted = Wanted { is_tag: true, ..Self::wanted(name, commit) };
        let request = EvaluationRequest { wanted, ..self.request_as_of(name, commit, asked) };
        self.db.request_evaluation(&request).await.expect("request")
    }

    /// Evaluates what is queued: well, with one attribute that nobody has built yet.
    async fn evaluated(&self) -> Eval {
        let eval = self.claim().await;
        self.world.insert(&eval, &graph(&[&[]]), &[0]).await.expect("insert");
        self.db.finish_evaluation(eval.id, &eval.token).await.expect("finish");
        eval
    }

    async fn desired(&self) -> Vec<String> {
        compute(&self.db, &[]).await;
        desired(&self.db).await
    }
}

#[tokio::test]
async fn a_second_pull_request_with_the_same_head_takes_nothing_from_the_first() {
    let forge = Forge::new().await;
    queued(&forge.evaluate_pull(&pull(A)).await);
    forge.evaluated().await;
    let build = forge.world.claim_only(0).await;
    forge.world.complete(&build).await.expect("built");
    let green = ["nix-build: success 1 attribute built or available", "nix-eval: success 1 attribute"];
    assert_eq!(forge.desired().await, green);

    let copy = PullRequest { number: 8, author: "copycat".to_owned(), ..pull(A) };
    forge
        .db
        .save_pull_request(forge.project, &copy, Some("waiting for somebody"), DeliveryRowId(2))
        .await
        .expect("save");
    assert_eq!(forge.desired().await, green, "a stranger opened a copy");

    // With the first one closed nobody else is at this commit, and the copy was never evaluated.
    forge.db.close_evaluations(&forge.pull_key(), DeliveryRowId(3), "closed").await.expect("close");
    assert_eq!(forge.desired().await, [green[0], "nix-eval: pending waiting for somebody"]);
    let closed = PullRequest { is_open: false, ..copy };
    forge.db.save_pull_request(forge.project, &closed, None, DeliveryRowId(4)).await.expect("save");
    assert_eq!(forge.desired().await, green);
}

#[tokio::test]
async fn a_tag_and_a_branch_of_one_name_are_two_things() {
    let forge = Forge::new().await;
    let branch = queued(&forge.evaluate("v1", A).await);
    let tag = forge.evaluate_tag("v1", A).await;
    assert_eq!(tag, Requested::Queued { id: queued(&tag), unfinished: Vec::new() });
    assert_eq!(forge.attempts(A).await, [1, 1]);
    // The branch's failure is not covered by the tag's success, nor the tag's by the branch's next word.
    let eval = forge.claim().await;
    assert_eq!(eval.id, branch);
    forge.db.fail_evaluation(eval.id, &eval.token, "broken").await.expect("fail");
    assert_eq!(forge.evaluated().await.id, queued(&tag));
    assert!(forge.desired().await.contains(&"nix-eval: failure broken".to_owned()), "{:?}", forge.desired().await);

    // A newer one of the branch, by hand or by a push, replaces the branch's.
    let newer = NewEvaluationRow { commit: Some(B.to_owned()), ..new_evaluation(forge.project, "v1") };
    let by_hand = forge.db.create_evaluation(&newer).await.expect("create");
    assert_eq!(by_hand.superseded, [], "the tag stays");
    let pushed = forge.evaluate("v1", A).await;
    assert_eq!(pushed, Requested::Queued { id: queued(&pushed), unfinished: vec![by_hand.id] });
    assert_eq!(forge.row(queued(&tag)).await.2, None);
    assert_eq!(forge.attempts(A).await, [1, 1, 2]);
    forge.world.assert_sound().await;
}

#[tokio::test]
async fn a_build_that_a_tag_and_a_branch_of_one_name_want_is_not_cancelled_for_one_of_them() {
    let forge = Forge::new().await;
    queued(&forge.evaluate("v1", A).await);
    queued(&forge.evaluate_tag("v1", A).await);
    forge.evaluated().await;
    forge.evaluated().await;
    let job = forge.world.job_id(0).await;
    let refused = forge.db.cancel_job(job, "me").await.expect_err("both want it").to_string();
    assert!(refused.contains("r tag v1") && refused.contains("r v1"), "{refused}");
    let tag = BranchKey { is_tag: true, ..forge.branch("v1") };
    forge.db.close_evaluations(&tag, DeliveryRowId(9), "gone").await.expect("close");
    assert_eq!(forge.db.cancel_job(job, "me").await.expect("only one is left"), 1);
    forge.world.assert_sound().await;
}
