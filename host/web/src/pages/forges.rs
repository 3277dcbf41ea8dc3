//! `/ci/settings/deliveries` and `/ci/settings/dead-letters`: what forges told lately, and what could not be told them. Read
//! only, and public repositories only, whoever asks: the rest is for those with a token (`GET /api/v1/deliveries`,
//! `GET /api/v1/dead-letters`), and so is trying something again.

use askama::Template;
use axum::extract::State;
use axum::http::Uri;
use axum::response::Response;
use harmonia_core::Timestamp;
use harmonia_core::api::DeliveryInfo;
use harmonia_core::status::{DeadLetter, DeadLetterKind};
use harmonia_db::views::PageOf;
use serde::Deserialize;

use super::format::{self, Badge, When};
use super::{Frame, page};
use crate::error::WebError;
use crate::state::AppState;

/// Rows on one page.
const PAGE: u32 = 50;
/// Letters of each kind on the page of all kinds.
const OF_EACH_KIND: u32 = 10;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct DeliveriesQuery {
    forge: Option<String>,
    dead: bool,
    before: Option<i64>,
}

struct DeliveryRow {
    id: i64,
    badge: Badge,
    forge: String,
    /// The forge's own id of it.
    delivery: String,
    events: String,
    repositories: Vec<String>,
    outcome: Option<String>,
    error: Option<String>,
    duration_ms: u32,
    attempts: u32,
    received: When,
    next: Option<When>,
}

/// A link that narrows a list.
struct Filter {
    word: String,
    href: String,
    is_current: bool,
}

#[derive(Template)]
#[template(path = "deliveries.html")]
struct DeliveriesPage {
    frame: Frame,
    filters: Vec<Filter>,
    rows: Vec<DeliveryRow>,
    /// Address of what follows.
    more: Option<String>,
}

pub(crate) async fn deliveries(State(state): State<AppState>, uri: Uri) -> Result<Response, WebError> {
    let query: DeliveriesQuery = super::query(uri.query().unwrap_or_default());
    let forges = state.plugins().forges();
    // Another one is none that a link led to.
    let forge = query.forge.filter(|forge| forges.contains(forge));
    let now = state.options().clock.now();
    let PageOf { rows, before } = state.db().view_deliveries(forge.as_deref(), query.dead, query.before, PAGE).await?;
    let mut filters = vec![filter("all", None, false, forge.is_none() && !query.dead)];
    for name in &forges {
        filters.push(filter(name, Some(name), false, forge.as_ref() == Some(name) && !query.dead));
    }
    filters.push(filter("given up", None, true, query.dead));
    page(&DeliveriesPage {
        frame: state.frame("Recent deliveries"),
        filters,
        rows: rows.into_iter().map(|row| delivery_row(row, now)).collect(),
        more: before.map(|before| with_before(&deliveries_path(forge.as_deref(), query.dead), before)),
    })
}

fn deliveries_path(forge: Option<&str>, dead: bool) -> String {
    let forge = forge.map(|forge| format!("forge={forge}"));
    let parts: Vec<String> = forge.into_iter().chain(dead.then(|| "dead=true".to_owned())).collect();
    match parts.join("&") {
        none if none.is_empty() => "/ci/settings/deliveries".to_owned(),
        some => format!("/ci/settings/deliveries?{some}"),
    }
}

fn with_before(path: &str, before: i64) -> String {
    format!("{path}{}before={before}", if path.contains('?') { '&' } else { '?' })
}

fn filter(word: &str, forge: Option<&str>, dead: bool, is_current: bool) -> Filter {
    Filter { word: word.to_owned(), href: deliveries_path(forge, dead), is_current }
}

fn delivery_row(delivery: DeliveryInfo, now: Timestamp) -> DeliveryRow {
    let (class, symbol, word) = match (delivery.state.as_str(), &delivery.error) {
        ("done", _) => ("good", "✔", "done"),
        ("dead", _) => ("bad", "✖", "given up"),
        (_, Some(_)) => ("warn", "↻", "failed, tried again"),
        _ => ("idle", "○", "queued"),
    };
    DeliveryRow {
        id: delivery.id,
        badge: Badge { class, symbol, word },
        forge: delivery.forge,
        delivery: delivery.delivery,
        events: if delivery.events.is_empty() {
            "nothing that concerns us".to_owned()
        } else {
            delivery.events.join(", ").replace('-', " ")
        },
        repositories: delivery.repositories,
        outcome: delivery.outcome,
        // Of one that ended well it is history.
        error: delivery.error.filter(|_| delivery.state != "done"),
        duration_ms: delivery.duration_ms,
        attempts: delivery.attempts,
        received: format::when(delivery.received_at, now),
        next: delivery.next_attempt_at.filter(|_| delivery.attempts > 0).map(|next| format::when(next, now)),
    }
}

#[derive(Debug, Default, Deserialize)]
struct LettersQuery {
    kind: Option<String>,
    before: Option<i64>,
}

struct LetterRow {
    id: i64,
    badge: Badge,
    target: String,
    subject: String,
    error: Option<String>,
    attempts: u32,
    when: When,
}

struct Letters {
    kind: DeadLetterKind,
    heading: &'static str,
    rows: Vec<LetterRow>,
    more: Option<String>,
}

#[derive(Template)]
#[template(path = "dead_letters.html")]
struct LettersPage {
    frame: Frame,
    kinds: Vec<Letters>,
    /// Whether it shows one kind only.
    is_one: bool,
}

pub(crate) async fn dead_letters(State(state): State<AppState>, uri: Uri) -> Result<Response, WebError> {
    let query: LettersQuery = super::query(uri.query().unwrap_or_default());
    let one: Option<DeadLetterKind> = query.kind.and_then(|kind| kind.parse().ok());
    let now = state.options().clock.now();
    let (before, limit) = if one.is_some() { (query.before, PAGE) } else { (None, OF_EACH_KIND) };
    let mut kinds = Vec::new();
    for kind in [DeadLetterKind::Status, DeadLetterKind::Comment, DeadLetterKind::Notification] {
        if one.is_some_and(|one| one != kind) {
            continue;
        }
        let PageOf { rows, before } = state.db().view_dead_letters(kind, before, limit).await?;
        kinds.push(Letters {
            kind,
            heading: match kind {
                DeadLetterKind::Status => "Statuses of commits",
                DeadLetterKind::Comment => "Comments on pull requests",
                DeadLetterKind::Notification => "Notifications",
            },
            rows: rows.into_iter().map(|row| letter_row(row, now)).collect(),
            more: before.map(|before| with_before(&format!("/ci/settings/dead-letters?kind={kind}"), before)),
        });
    }
    page(&LettersPage { frame: state.frame("Dead letters"), kinds, is_one: one.is_some() })
}

fn letter_row(letter: DeadLetter, now: Timestamp) -> LetterRow {
    let (badge, when) = match letter.dead_at {
        Some(dead_at) => (Badge { class: "bad", symbol: "✖", word: "given up" }, dead_at),
        None => (Badge { class: "warn", symbol: "↻", word: "tried again" }, letter.next_attempt_at),
    };
    LetterRow {
        id: letter.id,
        badge,
        target: letter.target,
        subject: letter.subject,
        error: letter.error,
        attempts: letter.attempts,
        when: format::when(when, now),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_keep_the_filter() {
        assert_eq!(deliveries_path(None, false), "/ci/settings/deliveries");
        assert_eq!(with_before(&deliveries_path(None, false), 7), "/ci/settings/deliveries?before=7");
        assert_eq!(
            with_before(&deliveries_path(Some("hub"), true), 7),
            "/ci/settings/deliveries?forge=hub&dead=true&before=7"
        );
    }

    #[test]
    fn queries_of_older_links_are_understood() {
        let query: DeliveriesQuery = super::super::query("dead=true&before=9&other=1");
        assert_eq!((query.dead, query.before, query.forge), (true, Some(9), None));
        let query: DeliveriesQuery = super::super::query("dead=perhaps");
        assert!(!query.dead, "nonsense counts as nothing");
    }
}
