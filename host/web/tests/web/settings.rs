//! `/ci/settings/deliveries`, `/ci/settings/dead-letters` and the plugins on `/ci/nodes`: what they show, and to everybody.

use std::time::Duration;

use harmonia_core::forge::{Delivery, Event, ForgeRepository, Push, Reference, RepositoryRef};
use harmonia_core::plugin::{PluginKind, PluginStatus, UnusableSecret};
use harmonia_core::{Incarnation, NodeId};
use harmonia_db::NewDelivery;

use crate::dead_letters::refused;
use crate::forge::{FORGE, repository};
use crate::world::World;

const LEASE: Duration = Duration::from_mins(1);

fn push(id: &str, full_name: &str) -> Event {
    Event::Push(Push {
        repository: RepositoryRef { id: id.to_owned(), full_name: full_name.to_owned() },
        reference: Reference::Branch("main".to_owned()),
        commit: "c".repeat(40),
        deleted: false,
        author: "a".to_owned(),
        message: "m".to_owned(),
    })
}

fn private(id: &str, full_name: &str) -> ForgeRepository {
    ForgeRepository { is_private: true, ..repository(id, full_name) }
}

impl World {
    async fn recorded(&self, forge: &str, id: &str, events: Vec<Event>) {
        let delivery = Delivery { id: id.to_owned(), events };
        let new = NewDelivery { forge, delivery: &delivery, duration_ms: 7 };
        self.db().record_delivery(&new).await.expect("recorded");
    }

    async fn enable_all(&self, repositories: &[ForgeRepository]) {
        self.db().upsert_repositories(FORGE, repositories).await.expect("upsert");
        for repository in repositories {
            let row = self.db().repository(FORGE, &repository.full_name).await.expect("asked").expect("there");
            self.db().enable_repository(row, std::slice::from_ref(&repository.full_name), "me").await.expect("enabled");
        }
    }
}

/// Ids of deliveries on a page, as they are on it.
fn shown(html: &str) -> Vec<&str> {
    html.split("class=\"dim\" title=\"").skip(1).filter_map(|rest| rest.split('"').next()).collect()
}

#[tokio::test]
async fn deliveries_of_private_repositories_do_not_exist() {
    let world = World::start().await;
    world.enable_all(&[repository("1", "o/open"), private("2", "o/hidden")]).await;
    world.recorded(FORGE, "d-open", vec![push("1", "o/open")]).await;
    world.recorded(FORGE, "d-hidden", vec![push("2", "o/hidden")]).await;
    world.recorded(FORGE, "d-unknown", vec![push("9", "o/unknown")]).await;
    world.recorded(FORGE, "d-ping", vec![Event::Ping]).await;
    world.recorded(FORGE, "d-both", vec![push("1", "o/open"), push("2", "o/hidden")]).await;
    // A private repository that was called as a public one is now, and one named without its name.
    world.recorded(FORGE, "d-renamed", vec![push("2", "o/open")]).await;
    let described = vec![Event::RepositoriesChanged(vec![repository("1", "o/open"), private("2", "o/open")])];
    world.recorded(FORGE, "d-described", described).await;
    let who = RepositoryRef { id: "2".to_owned(), full_name: "o/open".to_owned() };
    world.recorded(FORGE, "d-members", vec![Event::PermissionsChanged(Some(who.clone()))]).await;
    world.recorded(FORGE, "d-gone", vec![Event::RepositoriesRemoved(vec![who])]).await;
    // Names belong to their forge.
    world.recorded("other", "d-other", vec![push("1", "o/open")]).await;

    let html = world.text("/ci/settings/deliveries").await;
    assert_eq!(shown(&html), ["d-ping", "d-open"], "{html}");
    assert!(!html.contains("o/hidden") && html.contains("o/open") && html.contains("7 ms"), "{html}");

    // As everywhere, what becomes private is gone at once.
    world.db().upsert_repositories(FORGE, &[private("1", "o/open")]).await.expect("upsert");
    assert_eq!(shown(&world.text("/ci/settings/deliveries").await), ["d-ping"]);
    world.stop().await;
}

#[tokio::test]
async fn deliveries_say_how_they_ended_and_can_be_narrowed() {
    let world = World::start().await;
    world.enable_all(&[repository("1", "o/open")]).await;
    for id in ["d1", "d2", "d3", "d4"] {
        world.recorded(FORGE, id, vec![push("1", "o/open")]).await;
    }
    let db = world.db();
    let claimed = db.claim_deliveries(&NodeId("n".to_owned()), 3, LEASE).await.expect("claimed");
    db.delivery_done(&claimed[0], "branch main: evaluation 7 is queued").await.expect("done");
    db.delivery_dead(&claimed[1], "<script>alert(1)</script> refused").await.expect("dead");
    db.delivery_retry(&claimed[2], "the forge is away", LEASE).await.expect("retried");
    let html = world.text("/ci/settings/deliveries").await;
    assert_eq!(shown(&html), ["d4", "d3", "d2", "d1"]);
    for text in ["evaluation 7 is queued", "given up", "failed, tried again", "the forge is away", "next try"] {
        assert!(html.contains(text), "{text}: {html}");
    }
    assert!(!html.contains("<script>alert"), "{html}");
    for command in ["harmonia-ci deliveries --replay ID", "harmonia-ci deliveries --replay --dead"] {
        assert!(html.contains(command), "{html}");
    }

    assert_eq!(shown(&world.text("/ci/settings/deliveries?dead=true").await), ["d2"]);
    assert_eq!(shown(&world.text(&format!("/ci/settings/deliveries?forge={FORGE}")).await).len(), 4);
    let mute = world.text("/ci/settings/deliveries?forge=mute").await;
    assert!(shown(&mute).is_empty() && mute.contains("No delivery of a public repository is kept"), "{mute}");
    assert_eq!(shown(&world.text("/ci/settings/deliveries?forge=nobody&before=x").await).len(), 4);
    world.stop().await;
}

#[tokio::test]
async fn pages_go_on_past_what_is_hidden() {
    let world = World::start().await;
    world.enable_all(&[repository("1", "o/open"), private("2", "o/hidden")]).await;
    for number in 0..60 {
        world.recorded(FORGE, &format!("open-{number}"), vec![push("1", "o/open")]).await;
    }
    for number in 0..520 {
        world.recorded(FORGE, &format!("hidden-{number}"), vec![push("2", "o/hidden")]).await;
    }
    let mut seen = Vec::new();
    let mut sizes = Vec::new();
    let mut next = Some("/ci/settings/deliveries".to_owned());
    while let Some(path) = next {
        let html = world.text(&path).await;
        assert!(!html.contains("hidden-") && sizes.len() < 9, "{html}");
        seen.extend(shown(&html).into_iter().map(str::to_owned));
        sizes.push(shown(&html).len());
        next = html.split("class=\"button\" href=\"").nth(1).and_then(|rest| rest.split('"').next()).map(str::to_owned);
        next = next.map(|path| path.replace("&amp;", "&").replace("&#38;", "&"));
    }
    assert_eq!(sizes, [0, 50, 10], "a page looks at so many and no more");
    let expected: Vec<String> = (0..60).rev().map(|number| format!("open-{number}")).collect();
    assert_eq!(seen, expected);
    world.stop().await;
}

#[tokio::test]
async fn dead_letters_of_public_repositories_are_shown() {
    let world = World::start().await;
    refused(&world, false).await;
    for path in ["/ci/settings/dead-letters", "/ci/settings/dead-letters?kind=status"] {
        let html = world.text(path).await;
        for text in [
            "o/r 111111111111 ci/nix-eval",
            "no such commit",
            "given up",
            "status/1",
            "harmonia-ci dead-letters --replay",
        ] {
            assert!(html.contains(text), "{path}, {text}: {html}");
        }
    }
    assert!(!world.text("/ci/settings/dead-letters?kind=comment").await.contains("no such commit"));
    assert!(!world.text("/ci/settings/dead-letters?kind=status&before=1").await.contains("no such commit"));
    let odd = world.text("/ci/settings/dead-letters?kind=%3Cscript%3E").await;
    assert!(odd.contains("no such commit") && !odd.contains("<script>"), "an unknown kind is none: {odd}");
    world.stop().await;
}

#[tokio::test]
async fn dead_letters_of_private_repositories_do_not_exist() {
    let world = World::start().await;
    refused(&world, true).await;
    let html = world.text("/ci/settings/dead-letters").await;
    assert!(!html.contains("o/r") && !html.contains("no such commit"), "{html}");
    assert_eq!(world.db().dead_letters(9).await.expect("listed").len(), 1, "it is there");
    world.stop().await;
}

#[tokio::test]
async fn settings_are_reachable_from_every_page() {
    let world = World::start().await;
    assert!(world.text("/ci/").await.contains("href=\"/ci/settings/projects\""));
    for page in ["projects", "deliveries", "dead-letters"] {
        let html = world.text(&format!("/ci/settings/{page}")).await;
        for other in ["projects", "deliveries", "dead-letters"] {
            assert!(html.contains(&format!("href=\"/ci/settings/{other}\"")), "{page} leads to {other}");
        }
        assert!(html.contains(&format!("href=\"/ci/settings/{page}\" aria-current=\"page\"")), "{html}");
    }
    world.stop().await;
}

#[tokio::test]
async fn the_nodes_page_shows_how_policies_and_plugins_are() {
    let world = World::start().await;
    let html = world.text("/ci/nodes").await;
    assert!(html.contains("has no plugins") && !html.contains("scheduling policy fails"), "{html}");

    let run = Incarnation(1);
    world.db().report_policy_error(&world.node, run, Some("it named <none> of 7 candidates")).await.expect("noted");
    let broken = PluginStatus {
        name: "hub".to_owned(),
        kind: Some(PluginKind::Forge),
        program: "forge-of-all 1.2.3".to_owned(),
        sha256: "0123456789ab".repeat(5) + "0123",
        calls: 1234,
        failures: 17,
        broken_for_s: Some(80),
        last_error: Some("plugin hub answered nonsense in webhook: about o/hidden".to_owned()),
        last_failure: Some("plugin hub answered nonsense in webhook".to_owned()),
        refused: None,
        unusable_secrets: vec![],
        exports: vec![],
    };
    let older = PluginStatus {
        name: "chat".to_owned(),
        kind: Some(PluginKind::Reporter),
        broken_for_s: None,
        last_error: None,
        last_failure: None,
        refused: Some("the component is no plugin".to_owned()),
        ..broken.clone()
    };
    let locked_out = PluginStatus {
        name: "tea".to_owned(),
        last_error: Some("the secret `webhook` cannot be used: its file /etc/o/hidden cannot be read".to_owned()),
        unusable_secrets: vec![UnusableSecret { name: "webhook".to_owned(), required: true }],
        refused: None,
        kind: Some(PluginKind::Forge),
        ..older.clone()
    };
    *world.forge.statuses.lock().expect("lock") = vec![broken, older, locked_out];
    *world.forge.refused_configuration.lock().expect("lock") = Some("plugins[1].pth is unknown".to_owned());
    let html = world.text("/ci/nodes").await;
    for text in [
        "policy fails",
        "it named &#60;none&#62; of 7 candidates",
        "first in, first out",
        "forge-of-all 1.2.3",
        "0123456789ab</code>",
        "1234",
        "not called",
        "called again in 1 min 20 s",
        "answered 503",
        "plugin hub answered nonsense in webhook",
        "older one runs",
        "the component is no plugin",
        "cannot work",
        "Its secret webhook cannot be used",
        "The changed configuration was not taken",
        "plugins[1].pth is unknown",
    ] {
        assert!(html.contains(text), "{text}: {html}");
    }
    assert!(!html.contains("o/hidden"), "{html}");
    world.db().report_policy_error(&world.node, run, None).await.expect("noted");
    assert!(!world.text("/ci/nodes").await.contains("policy fails"));
    world.stop().await;
}
