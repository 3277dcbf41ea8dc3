use std::sync::Mutex;

use harmonia_core::ProjectId;
use harmonia_core::policy::{CACHED_FOR, Candidate, FirstInFirstOut, ProjectLoad};
use harmonia_db::testing::TestDatabase;
use harmonia_db::testing::fake_node::{FakeNode, SYSTEM, registration};

use super::*;

struct World {
    test: TestDatabase,
    classes: Vec<ClassId>,
}

/// Two projects; number 0 has `jobs` jobs with even numbers, number 1 as many with odd ones.
async fn world(jobs: usize) -> World {
    let test = TestDatabase::new().await;
    let played = FakeNode::register(&test.db).await;
    for project in 0..2 {
        let numbers: Vec<usize> = (0..jobs).map(|number| 2 * number + project).collect();
        played.enqueue(&format!("local/{project}"), &numbers).await;
    }
    let classes = test.db.resolve_classes(&[SYSTEM.to_owned()], &[]).await.expect("classes");
    World { test, classes }
}

impl World {
    async fn claimer(&self, node: &str, policy: Arc<dyn Policy>) -> Claimer {
        let registration = registration(node, Incarnation(1));
        self.test.db.register_node(&registration).await.expect("register");
        Claimer::new(self.test.db.clone(), registration.id, registration.incarnation, policy)
    }

    async fn claim(&self, claimer: &mut Claimer, wanted: u32, now: Instant) -> Claims {
        let claims = claimer.claim(&self.classes, wanted, now).await;
        assert!(claims.error.is_none() && claims.unacknowledged.is_empty(), "{claims:?}");
        claims
    }
}

fn numbers(claims: &Claims) -> Vec<usize> {
    claims.jobs.iter().map(|job| job.name[1..].parse().expect("a number")).collect()
}

/// The project whose number is named first, as long as it has something; counts how often it was asked.
struct First(Mutex<(ProjectId, u32)>);

impl First {
    fn new(project: i64) -> Arc<Self> {
        Arc::new(Self(Mutex::new((ProjectId(project), 0))))
    }
    fn asked(&self) -> u32 {
        self.0.lock().expect("no panic").1
    }
    fn prefer(&self, project: i64) {
        self.0.lock().expect("no panic").0 = ProjectId(project);
    }
}

impl Policy for First {
    fn rank(&self, _: &AskingNode, _: &[ProjectLoad], candidates: &[Candidate]) -> Result<Vec<JobId>, PolicyError> {
        let mut guard = self.0.lock().expect("no panic");
        guard.1 += 1;
        let mut sorted: Vec<&Candidate> = candidates.iter().collect();
        sorted.sort_by_key(|candidate| (candidate.project != guard.0, candidate.project, candidate.job));
        Ok(sorted.into_iter().map(|candidate| candidate.job).collect())
    }
    fn charge(&self, charges: &[(ProjectLoad, f64)]) -> Result<Vec<f64>, PolicyError> {
        FirstInFirstOut.charge(charges)
    }
    fn decay(&self, consumed_seconds: &[f64], seconds: f64) -> Result<Vec<f64>, PolicyError> {
        FirstInFirstOut.decay(consumed_seconds, seconds)
    }
}

#[tokio::test]
async fn claims_in_quick_succession_share_looks_and_keep_the_policys_order() {
    let world = world(40).await;
    let policy = First::new(2);
    let mut claimer = world.claimer("builder", policy.clone()).await;
    let now = Instant::now();
    let (mut taken, mut looks) = (Vec::new(), 0);
    for _ in 0..60 {
        let claims = world.claim(&mut claimer, 1, now).await;
        taken.extend(numbers(&claims));
        looks += claims.looks;
    }
    // All of project 1 (odd numbers), although no look showed more than 16 of them; then the other.
    let expected: Vec<usize> = (0..40).map(|n| 2 * n + 1).chain((0..20).map(|n| 2 * n)).collect();
    assert_eq!(taken, expected);
    assert!(looks < 15, "{looks} looks");
    assert_eq!(looks, policy.asked());
}

#[tokio::test]
async fn an_order_is_kept_for_half_a_second_and_no_longer() {
    let world = world(40).await;
    let policy = First::new(2);
    let mut claimer = world.claimer("builder", policy.clone()).await;
    let now = Instant::now();
    assert_eq!(numbers(&world.claim(&mut claimer, 8, now).await), (0..8).map(|n| 2 * n + 1).collect::<Vec<_>>());
    // Nothing of the first look is left; the second looks at sixteen, and half of that is kept.
    assert_eq!(world.claim(&mut claimer, 8, now).await.looks, 1);
    let asked = policy.asked();
    policy.prefer(1);
    let late = now + CACHED_FOR * 9 / 10;
    let claims = world.claim(&mut claimer, 1, late).await;
    let odd = numbers(&claims)[0] % 2;
    assert_eq!((policy.asked() - asked, odd), (claims.looks, usize::from(claims.looks == 0)));
    assert_eq!(
        numbers(&world.claim(&mut claimer, 2, now + CACHED_FOR * 2).await),
        if odd == 1 { [0, 2] } else { [2, 4] }
    );
}

#[tokio::test]
async fn what_others_took_is_passed_over_and_nothing_is_claimed_twice() {
    let world = world(100).await;
    let mut claimers = tokio::task::JoinSet::new();
    for number in 0..6 {
        let mut claimer = world.claimer(&format!("builder-{number}"), Arc::new(FirstInFirstOut)).await;
        let classes = world.classes.clone();
        claimers.spawn(async move {
            let mut taken = Vec::new();
            loop {
                let claims = claimer.claim(&classes, 1 + number % 3, Instant::now()).await;
                assert!(claims.error.is_none(), "{claims:?}");
                if claims.jobs.is_empty() {
                    return taken;
                }
                taken.extend(numbers(&claims));
            }
        });
    }
    let mut all = claimers.join_all().await.concat();
    all.sort_unstable();
    assert_eq!(all, (0..200).collect::<Vec<_>>());
    assert_eq!(world.test.db.sweep_invariants().await.expect("sweep"), []);
}

#[tokio::test]
async fn who_falls_behind_goes_on_in_the_same_order() {
    let world = world(200).await;
    let mut behind = world.claimer("behind", Arc::new(FirstInFirstOut)).await;
    let now = Instant::now();
    while behind.kept.left() < 60 {
        world.claim(&mut behind, 1, now).await;
    }
    let mut ahead = world.claimer("ahead", Arc::new(FirstInFirstOut)).await;
    let taken: Vec<JobId> = world.claim(&mut ahead, 40, now).await.jobs.iter().map(|job| job.job).collect();
    let kept = behind.kept.first(60);
    assert_eq!(taken, kept[..40], "the same order");
    let claims = world.claim(&mut behind, 1, now).await;
    assert_eq!((claims.looks, claims.jobs[0].job), (0, kept[40]));
    assert_eq!(behind.kept.first(19), kept[41..]);
}

#[tokio::test]
async fn a_rebuild_goes_before_what_is_kept_and_a_cancelled_job_is_skipped() {
    let world = world(30).await;
    let mut claimer = world.claimer("builder", First::new(1)).await;
    let now = Instant::now();
    let first = world.claim(&mut claimer, 4, now).await;
    let mut before = Vec::new();
    while claimer.kept.left() < 3 {
        before.extend(numbers(&world.claim(&mut claimer, 1, now).await));
    }
    let kept = claimer.kept.first(3);
    world.test.db.cancel_job(kept[0], "test").await.expect("cancel");
    let claims = world.claim(&mut claimer, 1, now).await;
    assert_eq!((claims.looks, claims.jobs[0].job), (0, kept[1]));
    // The rebuild of a job that nobody looked at.
    let db = &world.test.db;
    let job = &first.jobs[2];
    let failure = harmonia_core::signer_api::Failure {
        kind: Some(harmonia_core::FailureKind::Build),
        message: "it broke".to_owned(),
        exit_code: Some(1),
    };
    db.fail_attempt(job.attempt, &job.token, &failure, &harmonia_core::signer_api::AttemptUsage::default(), None)
        .await
        .expect("fail");
    assert_eq!(db.rebuild_job(job.job, "test").await.expect("rebuild"), 1);
    assert!(claimer.kept.left() > 0);
    let claims = world.claim(&mut claimer, 1, now).await;
    assert_eq!(claims.jobs[0].job, job.job, "priority goes first, whatever is kept");
}

#[tokio::test]
async fn a_node_that_drains_claims_nothing_and_one_that_lost_its_name_hears_of_it() {
    let world = world(20).await;
    let mut claimer = world.claimer("builder", First::new(1)).await;
    let (db, node, now) = (&world.test.db, NodeId("builder".to_owned()), Instant::now());
    while claimer.kept.left() < 2 {
        assert_eq!(world.claim(&mut claimer, 1, now).await.jobs.len(), 1);
    }
    assert!(db.set_draining(&node, Incarnation(1), true).await.expect("drain"));
    assert_eq!(world.claim(&mut claimer, 1, now).await.jobs, []);
    assert!(db.set_draining(&node, Incarnation(1), false).await.expect("stop draining"));
    while claimer.kept.left() < 2 {
        assert_eq!(world.claim(&mut claimer, 1, now).await.jobs.len(), 1);
    }
    db.register_node(&registration("builder", Incarnation(2))).await.expect("another process takes the name");
    let claims = claimer.claim(&world.classes, 2, now).await;
    assert!(matches!(claims.error, Some(DbError::Refused { .. })), "{claims:?}");
    assert_eq!((claims.jobs.len(), claims.unacknowledged.len(), claimer.kept.left()), (0, 2, 0));
}
