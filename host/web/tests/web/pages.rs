//! Pages: what they say, that nothing strangers write becomes markup, and their headers.

use reqwest::{Method, StatusCode};

use crate::world::{Drv, Nar, NewEvaluation, World};

const HOSTILE: &str = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&";

#[tokio::test]
async fn every_page_has_its_headers_and_no_inline_code() {
    let world = World::start().await;
    let drv = Drv::new("thing", &[]);
    let id = world.evaluate(&[&drv]).await;
    let attempt = world.build(&drv, &Nar::file(b"x"), &[], "a line\n").await;
    let eval_page = format!("/ci/local/demo/eval/{id}");
    let build_page = format!("/ci/local/demo/build/{}", attempt.job);
    let settings = ["/ci/settings/projects", "/ci/settings/deliveries", "/ci/settings/dead-letters"];
    let others = ["/ci/", "/ci/queue", "/ci/nodes", "/ci/local/demo/", "/", &eval_page, &build_page];
    for path in settings.into_iter().chain(others) {
        let response = world.get(path).await;
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        let policy = response.headers()["content-security-policy"].to_str().expect("text").to_owned();
        assert!(policy.contains("script-src 'self'") && !policy.contains("unsafe"), "{policy}");
        assert_eq!(response.headers()["x-content-type-options"], "nosniff");
        assert_eq!(response.headers()["referrer-policy"], "same-origin");
        let html = response.text().await.expect("text");
        assert!(html.starts_with("<!doctype html>") && html.trim_end().ends_with("</html>"), "{path}");
        for inline in ["<style", " style=", "<script>", "onclick=", "onload=", "javascript:"] {
            assert!(!html.contains(inline), "{path}: {inline}");
        }
    }
    assert!(world.text(&build_page).await.contains("a line"));
    for asset in ["style.css", "live.js", "icon.svg"] {
        let response = world.get(&format!("/ci/assets/{asset}")).await;
        assert_eq!(response.status(), StatusCode::OK);
        let etag = response.headers()["etag"].clone();
        let again = world.request(Method::GET, &format!("/ci/assets/{asset}")).header("if-none-match", etag);
        assert_eq!(again.send().await.expect("answered").status(), StatusCode::NOT_MODIFIED);
    }
    assert_eq!(world.get("/ci/assets/../../Cargo.toml").await.status(), StatusCode::NOT_FOUND);
    world.stop().await;
}

#[tokio::test]
async fn what_strangers_write_is_never_markup() {
    let world = World::start().await;
    let new = NewEvaluation { title: HOSTILE, author: HOSTILE, branch: "<b>&\"'", ..NewEvaluation::default() };
    let evaluation = world.begin(new).await;
    let drv = Drv::new("thing", &[]);
    let attr = format!("checks.\"{HOSTILE}\"");
    world.insert(&evaluation, &[&drv], &[(&attr, HOSTILE)]).await;
    let db = world.db();
    db.append_evaluation_log(evaluation.id, &evaluation.token, HOSTILE).await.expect("logged");
    db.add_warnings(evaluation.id, &evaluation.token, &[HOSTILE.to_owned()]).await.expect("added");
    world.finish(&evaluation).await;
    let attempt = world.claim(&drv).await;
    world.tail(&attempt, 0, format!("\u{1b}[31m{HOSTILE}\u{1b}[0m\n").as_bytes()).await;
    let build = format!("/ci/local/demo/build/{}", attempt.job);
    let eval = format!("/ci/local/demo/eval/{}", evaluation.id);
    let search = format!("{eval}?state=all&q=%3Cscript%3Ealert(1)%3C%2Fscript%3E%22%27");
    for path in ["/ci/", "/ci/queue", "/ci/local/demo/", &eval, &search, &build] {
        let html = world.text(path).await;
        assert!(!html.contains("<script>") && !html.contains("<img src=x") && !html.contains("<b>&"), "{path}");
        assert!(!html.contains('\u{1b}'), "{path}");
    }
    let html = world.text(&eval).await;
    assert!(html.matches("alert(1)").count() >= 4, "it is all shown, as text: {html}");
    assert!(world.text(&build).await.contains("alert(1)"));
    let odd = world.get("/ci/%3Cscript%3Ealert(1)%3C/script%3E/").await;
    assert_eq!(odd.status(), StatusCode::NOT_FOUND);
    assert!(!odd.text().await.expect("text").contains("<script>"));
    world.stop().await;
}

#[tokio::test]
async fn addresses_lead_to_the_canonical_page() {
    let world = World::start().await;
    let drv = Drv::new("thing", &[]);
    let id = world.evaluate(&[&drv]).await;
    let canonical = format!("/ci/local/demo/eval/{id}");
    for path in [format!("/ci/eval/{id}"), format!("/ci/other/eval/{id}")] {
        let response = world.get(&path).await;
        assert_eq!((response.status(), response.url().path()), (StatusCode::OK, canonical.as_str()), "{path}");
    }
    assert_eq!(world.get("/ci/local/demo").await.url().path(), "/ci/local/demo/");
    assert_eq!(world.get("/ci").await.url().path(), "/ci/");
    let build: harmonia_core::api::Build = world.json("/api/v1/builds/find?q=checks.thing").await;
    let response = world.get(&format!("/ci/build/{}", build.id)).await;
    assert_eq!(response.url().path(), format!("/ci/local/demo/build/{}", build.id));
    for path in ["/ci/eval/999", "/ci/build/999", "/ci/nothing/", "/ci/nothing", "/ci//", "/ci/local/demo/eval/x"] {
        let response = world.get(path).await;
        assert_eq!(response.status(), StatusCode::NOT_FOUND, "{path}");
        assert!(response.text().await.expect("text").contains("<h1>"), "{path}: a page");
    }
    world.stop().await;
}

#[tokio::test]
async fn filters_and_reasons() {
    let world = World::start().await;
    let evaluation = world.begin(NewEvaluation::default()).await;
    let low = Drv::new("low", &[]);
    let high = Drv::new("high", &[&low]);
    world.insert(&evaluation, &[&low, &high], &[("checks.wrong", "error: no\nat line 3")]).await;
    world.finish(&evaluation).await;
    let page = format!("/ci/local/demo/eval/{}", evaluation.id);
    let failed = world.text(&format!("{page}?state=failed")).await;
    assert!(failed.contains("checks.wrong") && !failed.contains("checks.low"), "{failed}");
    let found = world.text(&format!("{page}?q=low")).await;
    assert!(found.contains("checks.low") && !found.contains("checks.high"));
    let queue = world.text("/ci/queue").await;
    assert!(queue.contains("blocked by 1 unfinished dependency: low (pending)"), "{queue}");
    let build: harmonia_core::api::Build = world.json("/api/v1/builds/find?q=high").await;
    let html = world.text(&format!("/ci/local/demo/build/{}", build.id)).await;
    assert!(html.contains("Why it waits") && html.contains("blocked by 1 unfinished dependency"), "{html}");
    world.stop().await;
}

/// What others wrote is text on a page: it turns nothing around, and hides nothing.
#[tokio::test]
async fn foreign_text_turns_no_page_around() {
    let world = World::start().await;
    let odd = "\u{202e}gnp.exe\u{2066}\u{1b}[2J\u{7}";
    let evaluation = world
        .begin(NewEvaluation {
            branch: &["b", odd].concat(),
            title: &["t", odd].concat(),
            author: &["a", odd].concat(),
            ..NewEvaluation::default()
        })
        .await;
    let drv = Drv::new("thing", &[]);
    world.insert(&evaluation, &[&drv], &[(&["attr", odd].concat(), &["error: e", odd].concat())]).await;
    world.finish(&evaluation).await;
    let page = format!("/ci/local/demo/eval/{}", evaluation.id);
    for (path, shown) in [
        ("/ci/", &["bgnp.exe", "tgnp.exe", "agnp.exe"][..]),
        ("/ci/local/demo/", &["bgnp.exe", "tgnp.exe", "agnp.exe"]),
        (&page, &["bgnp.exe", "tgnp.exe", "agnp.exe", "attrgnp.exe", "egnp.exe"]),
    ] {
        let html = world.text(path).await;
        for text in shown {
            assert!(html.contains(text), "{path}: {text}: {html}");
        }
        assert!(!html.contains(['\u{202e}', '\u{2066}', '\u{1b}', '\u{7}']), "{path}: {html:?}");
    }
    world.stop().await;
}

/// Nothing of it is built as long as all of it waits, and then it says so, and why.
#[tokio::test]
async fn an_evaluation_whose_builds_all_wait_is_waiting() {
    let world = World::start().await;
    let below = Drv::new("below", &[]);
    let above = Drv::new("above", &[&below]);
    let id = world.evaluate(&[&below, &above]).await;
    let page = format!("/ci/local/demo/eval/{id}");
    let headed = async |class: &str, word: &str| {
        let head = |html: &str| html.split("<dt>State</dt><dd>").nth(1).map(|rest| rest[..120].to_owned());
        let html = world.text(&page).await;
        let head = head(&html).expect("a state");
        assert!(head.contains(class) && head.contains(&format!("</span>{word}</span>")), "{head}");
        for list in ["/ci/", "/ci/local/demo/"] {
            let html = world.text(list).await;
            assert!(html.contains(&format!("</span>{word}</span>")), "{list}: {html}");
        }
        html
    };
    let html = headed("state idle", "waiting").await;
    assert!(html.contains("below</a> waits: "), "{html}");
    let attempt = world.claim(&below).await;
    headed("state busy", "building").await;
    world.db().release_attempt(attempt.id, &attempt.token, "later").await.expect("released");
    headed("state idle", "waiting").await;
    world.stop().await;
}
