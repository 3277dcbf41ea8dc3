//! Looking is cheap: what is read is read once for all who look within a moment, pages show a bounded part, and what did not
//! change is not sent again.

use std::collections::BTreeMap;
use std::time::Duration;

use harmonia_core::api::{AttrState, EvaluationDetail, EvaluationHead};
use harmonia_core::signer_api::{AttemptUsage, Failure};
use harmonia_core::{EvalId, FailureKind};
use harmonia_db::testing::HeldAttributes;
use harmonia_web::{AppLimits, ListenerLimits};
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::json;

use crate::world::{Drv, Nar, NewEvaluation, Parts, TOKEN, World};

/// Nothing in these tests may take longer.
const PATIENCE: Duration = Duration::from_secs(30);

/// A world in which what was read is good for so long.
async fn world(look_age_max: Duration) -> World {
    let limits = AppLimits { look_age_max, overview_age_max: look_age_max, ..AppLimits::default() };
    World::bounded(Parts { signer: true, reader: true }, limits, ListenerLimits::default()).await
}

async fn in_time<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("it takes too long")
}

fn get(world: &World, path: &str, token: Option<&str>) -> RequestBuilder {
    token.into_iter().fold(world.request(Method::GET, path), RequestBuilder::bearer_auth)
}

/// The addresses at which an evaluation is looked at.
fn addresses(id: EvalId) -> [String; 4] {
    let page = format!("/ci/local/demo/eval/{id}");
    [
        page.clone(),
        format!("{page}?state=pending"),
        format!("/api/v1/evaluations/{id}/head"),
        "/api/v1/evaluations".to_owned(),
    ]
}

#[tokio::test]
async fn an_evaluation_is_read_once_for_all_who_look_within_a_moment() {
    let world = world(PATIENCE).await;
    let id = world.evaluate(&[&Drv::new("thing", &[])]).await;
    for path in addresses(id) {
        assert_eq!(world.get(&path).await.status(), StatusCode::OK, "{path}");
    }
    // Nobody could read it now.
    let held = HeldAttributes::hold(world.db()).await;
    for path in addresses(id) {
        let looks = (0..50).map(|_| async {
            let answer = get(&world, &path, None).send().await.expect("answered");
            (answer.status(), answer.text().await.expect("text"))
        });
        for (status, text) in in_time(futures_util::future::join_all(looks)).await {
            assert!(status == StatusCode::OK && text.contains("pending"), "{path}: {status} {text}");
        }
        // For those with a token, who might see more, it is read.
        let known = get(&world, &path, Some(TOKEN)).send();
        assert!(tokio::time::timeout(Duration::from_millis(200), known).await.is_err(), "{path}: it waits");
    }
    held.release().await;
    for path in addresses(id) {
        assert_eq!(get(&world, &path, Some(TOKEN)).send().await.expect("answered").status(), StatusCode::OK);
    }
    world.stop().await;
}

/// Nobody is given what was read for somebody who may see more, nor for what was public.
#[tokio::test]
async fn what_was_read_is_never_given_to_whom_may_not_see_it() {
    let world = world(PATIENCE).await;
    let id = world.evaluate(&[&Drv::new("thing", &[])]).await;
    let turn = async |public: bool| {
        let settings = world.request(Method::PATCH, "/api/v1/projects/local/demo").bearer_auth(TOKEN);
        let answer = settings.json(&json!({ "is_public": public })).send().await.expect("answered");
        assert_eq!(answer.status(), StatusCode::OK);
    };
    let seen = async |token: Option<&str>| {
        let mut seen = Vec::new();
        for path in [
            format!("/api/v1/evaluations/{id}/head"),
            format!("/api/v1/evaluations/{id}"),
            format!("/ci/local/demo/eval/{id}"),
        ] {
            seen.push(get(&world, &path, token).send().await.expect("answered").status());
        }
        for path in ["/api/v1/evaluations", "/api/v1/queue", "/api/v1/projects", "/ci/queue", "/ci/"] {
            let text = get(&world, path, token).send().await.expect("answered").text().await.expect("text");
            seen.push(if text.contains("local/demo") { StatusCode::OK } else { StatusCode::NOT_FOUND });
        }
        seen
    };
    let (all, nothing) = ([StatusCode::OK; 8], [StatusCode::NOT_FOUND; 8]);
    assert_eq!(seen(None).await, all);
    turn(false).await;
    assert_eq!(seen(Some(TOKEN)).await, all);
    assert_eq!(seen(None).await, nothing, "it was read for others, and before that for everybody");
    turn(true).await;
    assert_eq!(seen(None).await, all, "who changed something sees it at once");
    world.stop().await;
}

/// Whoever follows an evaluation by what changed knows at the end what everybody knows who reads all of it.
#[tokio::test]
async fn changes_add_up_to_the_whole() {
    use AttrState::{Building, DepFailed, Error, Failed, Pending, Succeeded};

    let world = world(Duration::from_millis(200)).await;
    let evaluation = world.begin(NewEvaluation::default()).await;
    let path = format!("/api/v1/evaluations/{}", evaluation.id);
    let first: EvaluationHead = world.json(&format!("{path}/head")).await;
    assert!(first.whole && first.changed.is_empty());
    let (low, other) = (Drv::new("low", &[]), Drv::new("other", &[]));
    let high = Drv::new("high", &[&low]);
    world.insert(&evaluation, &[&low, &high, &other], &[("checks.wrong", "error: no")]).await;
    world.finish(&evaluation).await;

    let (mut revision, mut known) = (first.revision, BTreeMap::new());
    let mut until = async |expected: &[(&str, AttrState)]| {
        let expected: BTreeMap<String, AttrState> =
            expected.iter().map(|(name, state)| (format!("checks.{name}"), *state)).collect();
        let mut told = Vec::new();
        in_time(async {
            while known != expected {
                let head: EvaluationHead = world.json(&format!("{path}/head?since={revision}")).await;
                assert!(!head.whole, "the revision is known here");
                assert!(
                    (head.revision == revision) == head.changed.is_empty() && head.revision >= revision,
                    "{head:?}"
                );
                revision = head.revision;
                for change in head.changed {
                    told.push(change.attr.clone());
                    known.insert(change.attr, change.state);
                }
            }
        })
        .await;
        let detail: EvaluationDetail = world.json(&path).await;
        let whole: BTreeMap<String, AttrState> = detail.attrs.into_iter().map(|attr| (attr.attr, attr.state)).collect();
        assert_eq!(whole, expected);
        told
    };
    until(&[("low", Pending), ("high", Pending), ("other", Pending), ("wrong", Error)]).await;
    let attempt = world.claim(&low).await;
    let told = until(&[("low", Building), ("high", Pending), ("other", Pending), ("wrong", Error)]).await;
    assert_eq!(told, ["checks.low"], "only what changed");
    let broke = Failure { kind: Some(FailureKind::Build), message: "it broke".to_owned(), exit_code: Some(1) };
    let usage = AttemptUsage::default();
    world.db().fail_attempt(attempt.id, &attempt.token, &broke, &usage, None).await.expect("failed");
    until(&[("low", Failed), ("high", DepFailed), ("other", Pending), ("wrong", Error)]).await;
    world.build(&other, &Nar::file(b"x"), &[], "").await;
    until(&[("low", Failed), ("high", DepFailed), ("other", Succeeded), ("wrong", Error)]).await;
    // What failed is built again, told by another node.
    world.db().rebuild_failed(evaluation.id, "me").await.expect("reset");
    until(&[("low", Pending), ("high", Pending), ("other", Succeeded), ("wrong", Error)]).await;
    let unknown: EvaluationHead = world.json(&format!("{path}/head?since={}", i64::MAX)).await;
    assert!(unknown.whole && unknown.changed.len() == 4, "{unknown:?}");
    let counts = unknown.evaluation.counts;
    assert_eq!((counts.total, counts.pending, counts.succeeded, counts.eval_errors), (4, 2, 1, 1));
    assert_eq!((unknown.jobs.pending, unknown.jobs.succeeded, unknown.jobs.total()), (2, 1, 3));
    world.stop().await;
}

#[tokio::test]
async fn what_did_not_change_is_not_sent_again() {
    let world = world(Duration::ZERO).await;
    let (low, high) = (Drv::new("low", &[]), Drv::new("high", &[]));
    let id = world.evaluate(&[&low, &high]).await;
    let page = format!("/ci/local/demo/eval/{id}");
    for path in [page.as_str(), "/ci/", "/ci/queue", "/ci/local/demo/"] {
        // Once a minute pages are sent again, since they say how long ago something was.
        let mut looks = 0;
        let tag = loop {
            let first = world.get(path).await;
            let tag = first.headers()["etag"].clone();
            let html = first.text().await.expect("text");
            let shown = format!("data-tag=\"{}\"", tag.to_str().expect("text").trim_matches('"'));
            assert!(html.contains(&shown), "{path}: {html}");
            let again = world.request(Method::GET, path).header("if-none-match", &tag).send().await.expect("answered");
            looks += 1;
            if again.status() == StatusCode::NOT_MODIFIED {
                assert_eq!(again.headers()["etag"], tag);
                assert!(again.bytes().await.expect("a body").is_empty());
                break tag;
            }
            assert!(looks < 3, "{path}: {}", again.status());
        };
        let attempt = world.claim(&low).await;
        let again = world.request(Method::GET, path).header("if-none-match", &tag).send().await.expect("answered");
        assert_eq!(again.status(), StatusCode::OK, "{path}: it changed");
        world.db().release_attempt(attempt.id, &attempt.token, "later").await.expect("released");
    }
    world.stop().await;
}

/// However many attributes there are, a page shows a bounded part, and leads to the others without any script.
#[tokio::test]
async fn a_page_shows_a_bounded_part_and_leads_to_the_rest() {
    let world = world(Duration::ZERO).await;
    let evaluation = world.begin(NewEvaluation::default()).await;
    let drvs: Vec<Drv> = (0..320).map(|number| Drv::new(&format!("thing-{number}"), &[])).collect();
    let error = format!("error: it is broken\n{}", "at a place\n".repeat(2_000));
    let errors: Vec<(String, &str)> =
        (0..450).map(|number| (format!("checks.wrong-{number}"), error.as_str())).collect();
    let errors: Vec<(&str, &str)> = errors.iter().map(|(attr, error)| (attr.as_str(), *error)).collect();
    let drvs: Vec<&Drv> = drvs.iter().collect();
    world.insert(&evaluation, &drvs, &errors).await;
    world.finish(&evaluation).await;
    let page = format!("/ci/local/demo/eval/{}", evaluation.id);
    let names = |html: &str| -> Vec<String> {
        let cells = html.split("<td class=\"attr\">").skip(1);
        let text = cells.map(|cell| cell.split_once("checks.").expect("a name").1);
        text.map(|text| text.split('<').next().expect("text").to_owned()).collect()
    };
    let html = world.text(&page).await;
    assert!(html.len() < 300_000, "{} bytes", html.len());
    assert_eq!(names(&html).len(), 150, "a hundred that are broken, fifty that wait");
    assert!(html.contains("350 more failed") && html.contains("270 more waiting"), "{html}");
    for (state, total) in [("failed", 450), ("pending", 320)] {
        let (mut path, mut seen) = (format!("{page}?state={state}"), Vec::new());
        loop {
            let html = world.text(&path).await;
            assert!(html.len() < 300_000, "{path}: {} bytes", html.len());
            seen.extend(names(&html));
            let Some((rest, _)) = html.split_once("\">More</a>") else { break };
            let href = rest.rsplit_once("href=\"").expect("a link").1.replace("&#38;", "&").replace("&amp;", "&");
            path = format!("{page}{href}");
        }
        let unique: std::collections::BTreeSet<&String> = seen.iter().collect();
        assert_eq!((seen.len(), unique.len()), (total, total), "{state}: each once");
    }
    // All of one error is there for who asks for it.
    let one = world.text(&format!("{page}?state=failed&q=checks.wrong-449")).await;
    assert!(one.matches("at a place").count() >= 2_000, "{}", one.matches("at a place").count());
    // The API tells of all, so many at once.
    let (mut after, mut total) = (String::new(), 0);
    loop {
        let path = format!("/api/v1/evaluations/{}?limit=300{after}", evaluation.id);
        let detail: EvaluationDetail = world.json(&path).await;
        assert!(detail.attrs.len() <= 300);
        total += detail.attrs.len();
        let Some(next) = detail.next else { break };
        after = format!("&after={next}");
    }
    assert_eq!(total, 770);
    world.stop().await;
}
