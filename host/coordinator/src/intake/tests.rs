//! Deliveries processed against a real database and a forge in memory. `forge` is that forge; the cases are in
//! `branches`, `pull_requests` and `trouble`.

mod branches;
mod forge;
mod pull_requests;
mod trouble;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use harmonia_core::api::DeliveryInfo;
use harmonia_core::branches::MERGE_BRANCHES;
use harmonia_core::forge::{
    Comment, CommentAction, Delivery, Event, ForgeRepository, PullRequest, PullRequestAction, PullRequestEvent, Push,
    Reference, RepositoryRef,
};
use harmonia_core::trust::HEAD_KNOWN_MIN;
use harmonia_core::{Capability, ClaimToken, EvalId, Incarnation, NodeId};
use harmonia_db::testing::{TestDatabase, projects_time_passes, random_token};
use harmonia_db::{Db, NewDelivery, NodeRegistration, Recorded, RetryPolicy};

use self::forge::{FakeForge, OneForge};
use super::{Intake, IntakeOptions};

const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";
const C: &str = "cccccccccccccccccccccccccccccccccccccccc";
const PROJECT: &str = "o/r";

struct World {
    forge: Arc<FakeForge>,
    intake: Intake,
    db: Db,
    _test: TestDatabase,
}

fn repository() -> RepositoryRef {
    RepositoryRef { id: "r1".to_owned(), full_name: "o/r".to_owned() }
}

fn forge_repository(full_name: &str) -> ForgeRepository {
    let (owner, name) = full_name.split_once('/').expect("owner/name");
    ForgeRepository {
        id: "r1".to_owned(),
        owner: owner.to_owned(),
        name: name.to_owned(),
        full_name: full_name.to_owned(),
        clone_url: format!("https://forge.invalid/{full_name}.git"),
        html_url: format!("https://forge.invalid/{full_name}"),
        default_branch: "main".to_owned(),
        is_private: false,
        is_archived: false,
        topics: Vec::new(),
    }
}

impl World {
    async fn new() -> Self {
        let test = TestDatabase::new().await;
        let db = test.db.clone();
        db.upsert_repositories("forge", &[forge_repository("o/r")]).await.expect("a repository");
        let id = db.repository("forge", "o/r").await.expect("look").expect("there");
        db.enable_repository(id, &[PROJECT.to_owned()], "me").await.expect("enable");
        let forge = Arc::new(FakeForge::default());
        let intake = Intake::new(options(&db, &forge, "n"));
        Self { forge, intake, db, _test: test }
    }

    /// The heads that arrived so far are as old as an approval that does not name them needs them to be.
    async fn heads_are_known(&self) {
        projects_time_passes(&self.db, HEAD_KNOWN_MIN).await;
    }

    /// Records a delivery without working it off.
    async fn record(&self, id: &str, events: Vec<Event>) -> Recorded {
        let delivery = Delivery { id: id.to_owned(), events };
        let new = NewDelivery { forge: "forge", delivery: &delivery, duration_ms: 1 };
        self.db.record_delivery(&new).await.expect("record")
    }

    /// Records a delivery, processes it and returns what came of it.
    async fn deliver(&self, id: &str, event: Event) -> String {
        self.record(id, vec![event]).await;
        self.intake.step().await.expect("step");
        let delivery = self.delivery(id).await;
        assert_eq!(delivery.state, "done", "{delivery:?}");
        delivery.outcome.expect("an outcome")
    }

    async fn delivery(&self, id: &str) -> DeliveryInfo {
        let all = self.db.recent_deliveries(Some("forge"), false, None, 100).await.expect("list");
        all.into_iter().find(|delivery| delivery.delivery == id).expect("recorded")
    }

    /// All evaluations, the oldest first, in a few letters: `main a queued`, `main a cancelled <2`.
    async fn evaluations(&self) -> Vec<String> {
        let mut all = self.db.view_evaluations(Some(PROJECT), None, 100).await.expect("list");
        all.sort_by_key(|evaluation| evaluation.id);
        let places: BTreeMap<EvalId, usize> = all.iter().enumerate().map(|(at, e)| (e.id, at + 1)).collect();
        all.iter()
            .map(|e| {
                let commit = e.commit.as_deref().map_or("?", |commit| &commit[..1]);
                let by = e.superseded_by.map(|by| format!(" <{}", places[&by])).unwrap_or_default();
                format!("{} {commit} {}{by}", e.branch, e.status.as_str())
            })
            .collect()
    }

    /// Ends the oldest queued evaluation badly.
    async fn fail_evaluation(&self) -> EvalId {
        let (id, token) = self.claim_evaluation().await;
        self.db.fail_evaluation(id, &token, "broken").await.expect("fail");
        id
    }

    /// Ends the oldest queued evaluation well: there is nothing to build.
    async fn finish_evaluation(&self) -> EvalId {
        let (id, token) = self.claim_evaluation().await;
        self.db.allow_empty_evaluation(id, &token).await.expect("allowed");
        self.db.finish_evaluation(id, &token).await.expect("finish");
        id
    }

    async fn claim_evaluation(&self) -> (EvalId, ClaimToken) {
        let node = NodeId("e".to_owned());
        let registration = NodeRegistration {
            id: node.clone(),
            incarnation: Incarnation(1),
            secret: harmonia_core::NodeSecret([0; 32]),
            capabilities: vec![Capability::Evaluator],
            endpoint: None,
            systems: Vec::new(),
            features: Vec::new(),
            max_jobs: 0,
            max_evals: 1,
            version: "0.1.0".to_owned(),
        };
        self.db.register_node(&registration).await.expect("register");
        let token = random_token();
        let claimed = self.db.claim_evaluation(&node, Incarnation(1), &token).await.expect("claim").expect("queued");
        (claimed.id, token)
    }

    /// Comments that we owe, and forgets them.
    async fn replies(&self) -> Vec<String> {
        let node = NodeId("n".to_owned());
        let owed = self.db.claim_comments(&node, "forge", 100, Duration::from_mins(1)).await.expect("claim");
        for comment in &owed {
            self.db.comment_delivered(comment).await.expect("deliver");
        }
        owed.into_iter().map(|comment| comment.body).collect()
    }

    async fn waiting(&self, number: u64) -> Option<String> {
        let project = self.db.forge_project("forge", &repository()).await.expect("read").expect("there").project;
        self.db.pull_request(project, number).await.expect("read").expect("known").waiting
    }

    async fn assert_sound(&self) {
        assert_eq!(self.db.sweep_invariants().await.expect("sweep"), []);
    }
}

fn options(db: &Db, forge: &Arc<FakeForge>, node: &str) -> IntakeOptions {
    IntakeOptions {
        db: db.clone(),
        plugins: Arc::new(OneForge(Arc::clone(forge))),
        node: NodeId(node.to_owned()),
        merge_branches: MERGE_BRANCHES.iter().map(|glob| (*glob).to_owned()).collect(),
        reuse_silent_after: Some(Duration::from_mins(2)),
        // At once, so that a step does all tries.
        retries: RetryPolicy { tries_max: 4, first_delay: Duration::ZERO, delay_max: Duration::ZERO },
        every: Duration::from_secs(10),
    }
}

fn push(branch: &str, commit: &str) -> Event {
    pushed(Reference::Branch(branch.to_owned()), commit, false)
}

fn deleted(branch: &str, commit: &str) -> Event {
    pushed(Reference::Branch(branch.to_owned()), commit, true)
}

fn pushed(reference: Reference, commit: &str, deleted: bool) -> Event {
    Event::Push(Push {
        repository: repository(),
        reference,
        commit: commit.to_owned(),
        deleted,
        author: "pusher".to_owned(),
        message: "Fix it".to_owned(),
    })
}

fn pull(number: u64, author: &str, head: &str) -> PullRequest {
    PullRequest {
        number,
        title: "Add a thing".to_owned(),
        author: author.to_owned(),
        is_open: true,
        is_draft: false,
        labels: Vec::new(),
        head_commit: head.to_owned(),
        head_branch: "thing".to_owned(),
        head_repository: Some(RepositoryRef { id: format!("fork of {author}"), full_name: format!("{author}/r") }),
        base_branch: "main".to_owned(),
        base_commit: C.to_owned(),
        head_ref: format!("refs/pull/{number}/head"),
    }
}

fn pull_event(action: PullRequestAction, pull_request: &PullRequest) -> Event {
    Event::PullRequest(PullRequestEvent { repository: repository(), action, pull_request: pull_request.clone() })
}

fn comment(author: &str, body: &str) -> Event {
    commented(CommentAction::Created, author, body)
}

fn commented(action: CommentAction, author: &str, body: &str) -> Event {
    Event::Comment(Comment {
        repository: repository(),
        number: 7,
        id: format!("{author}:{body}"),
        action,
        author: author.to_owned(),
        body: body.to_owned(),
    })
}
