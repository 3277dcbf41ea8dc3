//! Discovery: renames, swaps of names, removals, visibility, and syncs that survive crashes.

use std::time::Duration;

use harmonia_core::forge::{ForgeRepository, PullRequest, RepositoryRef};
use harmonia_core::{Capability, NodeId};
use harmonia_db::testing::{TestDatabase, pool};
use harmonia_db::{Db, PageSaved, RepositoryFilter};

pub(crate) const FORGE: &str = "forge";
const LEASE: Duration = Duration::from_mins(1);
const EVERY: Duration = Duration::from_mins(15);

pub(crate) fn reference(id: &str) -> RepositoryRef {
    RepositoryRef { id: id.to_owned(), full_name: format!("o/{id}") }
}

pub(crate) fn repository(id: &str, full_name: &str) -> ForgeRepository {
    let (owner, name) = full_name.rsplit_once('/').expect("owner/name");
    ForgeRepository {
        id: id.to_owned(),
        owner: owner.to_owned(),
        name: name.to_owned(),
        full_name: full_name.to_owned(),
        clone_url: format!("https://forge.example/{full_name}.git"),
        html_url: format!("https://forge.example/{full_name}"),
        default_branch: "main".to_owned(),
        is_private: false,
        is_archived: false,
        topics: vec!["ci".to_owned()],
    }
}

pub(crate) fn pull_request(number: u64, head: &str) -> PullRequest {
    PullRequest {
        number,
        title: "t".to_owned(),
        author: "a".to_owned(),
        is_open: true,
        is_draft: false,
        labels: vec![],
        head_commit: head.to_owned(),
        head_branch: "topic".to_owned(),
        head_repository: None,
        base_branch: "main".to_owned(),
        base_commit: "base".to_owned(),
        head_ref: format!("refs/pull/{number}/head"),
    }
}

async fn names(db: &Db) -> Vec<(String, String)> {
    sqlx::query!("SELECT external_id, full_name FROM repositories WHERE removed_at IS NULL ORDER BY external_id")
        .fetch_all(pool(db))
        .await
        .expect("read")
        .into_iter()
        .map(|row| (row.external_id, row.full_name))
        .collect()
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected.iter().map(|(id, name)| ((*id).to_owned(), (*name).to_owned())).collect()
}

#[tokio::test]
async fn names_follow_the_forge() {
    let test = TestDatabase::new().await;
    let db = &test.db;
    let upsert = async |entries: &[(&str, &str)]| {
        let rows: Vec<_> = entries.iter().map(|(id, name)| repository(id, name)).collect();
        db.upsert_repositories(FORGE, &rows).await.expect("upsert");
        names(db).await
    };
    assert_eq!(upsert(&[("1", "o/a"), ("2", "o/b")]).await, pairs(&[("1", "o/a"), ("2", "o/b")]));
    let row = db.repository(FORGE, "o/a").await.expect("asked").expect("there");
    assert_eq!(upsert(&[("1", "new/a")]).await, pairs(&[("1", "new/a"), ("2", "o/b")]), "renamed");
    assert_eq!(db.repository(FORGE, "NEW/A").await.expect("asked"), Some(row), "the row is the same");
    assert_eq!(upsert(&[("1", "o/b"), ("2", "new/a")]).await, pairs(&[("1", "o/b"), ("2", "new/a")]), "swapped");
    assert_eq!(upsert(&[("2", "o/b"), ("1", "new/a")]).await, pairs(&[("1", "new/a"), ("2", "o/b")]), "and back");
    assert_eq!(upsert(&[("3", "o/b")]).await, pairs(&[("1", "new/a"), ("3", "o/b")]), "its name has another");
    assert_eq!(upsert(&[("2", "o/c")]).await, pairs(&[("1", "new/a"), ("2", "o/c"), ("3", "o/b")]), "it turned up");
    // A chain: 1 gets 2's name, 2 gets 3's, 3 a new one; one page, any order.
    let chain = [("1", "o/c"), ("2", "o/b"), ("3", "o/d")];
    assert_eq!(upsert(&chain).await, pairs(&chain));
    // A page that contradicts itself: the last word counts.
    assert_eq!(upsert(&[("4", "o/x"), ("4", "o/y"), ("5", "o/y")]).await[3..], pairs(&[("5", "o/y")]));
    assert_eq!(db.repositories_removed(FORGE, &[reference("5"), reference("77")]).await.expect("removed"), 1);
    assert_eq!(names(db).await, pairs(&chain));
    // Another forge has names of its own.
    db.upsert_repositories("other", &[repository("1", "o/c")]).await.expect("upsert");
    assert_eq!(names(db).await.len(), 4);
}

#[tokio::test]
async fn concurrent_swaps_do_not_trip_over_each_other() {
    let test = TestDatabase::new().await;
    let db = &test.db;
    let page = |flip: bool| {
        let (a, b) = if flip { ("o/a", "o/b") } else { ("o/b", "o/a") };
        vec![repository("1", a), repository("2", b)]
    };
    let writers = (0..12).map(|n| {
        let (db, page) = (db.clone(), page(n % 2 == 0));
        tokio::spawn(async move { db.upsert_repositories(FORGE, &page).await })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.expect("no panic").expect("upsert");
    }
    assert_eq!(names(db).await.len(), 2);
}

#[tokio::test]
async fn a_project_is_as_visible_as_its_repository() {
    let test = TestDatabase::new().await;
    let db = &test.db;
    let open = repository("1", "o/a");
    let closed = ForgeRepository { is_private: true, ..open.clone() };
    db.upsert_repositories(FORGE, std::slice::from_ref(&open)).await.expect("upsert");
    let id = db.repository(FORGE, "o/a").await.expect("asked").expect("there");
    db.enable_repository(id, &["o/a".to_owned()], "me").await.expect("enabled");
    assert!(db.is_project_visible("o/a").await.expect("asked"));
    db.upsert_repositories(FORGE, std::slice::from_ref(&closed)).await.expect("upsert");
    assert!(!db.is_project_visible("o/a").await.expect("asked"));
    let filter = RepositoryFilter { limit: 10, ..RepositoryFilter::default() };
    assert_eq!(db.repositories(RepositoryFilter { public_only: true, ..filter }).await.expect("listed"), []);
    assert_eq!(db.repositories(filter).await.expect("listed").len(), 1);
    db.upsert_repositories(FORGE, std::slice::from_ref(&open)).await.expect("upsert");
    assert!(db.is_project_visible("o/a").await.expect("asked"));
}

#[tokio::test]
async fn repositories_are_found_by_part_of_their_name_page_by_page() {
    let test = TestDatabase::new().await;
    let db = &test.db;
    let rows: Vec<_> = (0..25).map(|n| repository(&n.to_string(), &format!("Owner/repo-{n:02}_x"))).collect();
    db.upsert_repositories(FORGE, &rows).await.expect("upsert");
    let list = async |search: &str, after: Option<(&str, &str)>| -> Vec<String> {
        let filter = RepositoryFilter { forge: Some(FORGE), search: Some(search), public_only: true, after, limit: 10 };
        db.repositories(filter).await.expect("listed").into_iter().map(|r| r.full_name).collect()
    };
    assert_eq!(list("REPO-1", None).await.len(), 10);
    assert_eq!(list("repo-07_", None).await, ["Owner/repo-07_x"]);
    for nothing in ["%", "repo_", "\\", "'"] {
        assert!(list(nothing, None).await.is_empty(), "{nothing}");
    }
    let (mut all, mut last) = (Vec::new(), None::<String>);
    loop {
        let page = list("", last.as_deref().map(|name| (FORGE, name))).await;
        if page.is_empty() {
            break;
        }
        last = page.last().cloned();
        all.extend(page);
    }
    assert_eq!(all, rows.iter().map(|r| r.full_name.clone()).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_sync_goes_on_where_it_stopped_and_removes_what_it_did_not_see() {
    let test = TestDatabase::new().await;
    let frontend = test.connect_as(Capability::Frontend).await;
    let db = &frontend;
    let (one, two) = (NodeId("one".to_owned()), NodeId("two".to_owned()));
    let forges = [FORGE.to_owned()];
    db.upsert_repositories(FORGE, &[repository("9", "o/old")]).await.expect("upsert");
    let mut crashed = db.begin_sync(&one, &forges, Duration::ZERO).await.expect("asked").expect("due");
    let saved = db.save_sync_page(&mut crashed, &[repository("1", "o/a")], Some("page 2"), Duration::ZERO, EVERY).await;
    assert_eq!(saved.expect("saved"), PageSaved::More);
    assert_eq!(db.begin_sync(&two, &[], LEASE).await.expect("asked"), None, "not its forge");
    let mut sync = db.begin_sync(&two, &forges, LEASE).await.expect("asked").expect("its lease ran out");
    assert_eq!((sync.cursor.as_deref(), sync.started_at), (Some("page 2"), crashed.started_at));
    assert_eq!(db.begin_sync(&one, &forges, LEASE).await.expect("asked"), None, "one at a time");
    let late = db.save_sync_page(&mut crashed, &[repository("7", "o/late")], None, LEASE, EVERY).await;
    assert_eq!(late.expect("answered"), PageSaved::LeaseLost);
    assert_eq!(names(&test.db).await, pairs(&[("1", "o/a"), ("9", "o/old")]), "what came too late is not written");

    // The forge says wait: nobody goes on before, not even when something changed.
    db.sync_failed(&sync, "rate limited", Duration::from_hours(1), false).await.expect("put off");
    db.request_sync(&forges).await.expect("asked for");
    assert_eq!(db.begin_sync(&one, &forges, LEASE).await.expect("asked"), None);
    sqlx::query!("UPDATE forge_syncs SET not_before = now()").execute(pool(&test.db)).await.expect("an hour later");
    sync = db.begin_sync(&one, &forges, LEASE).await.expect("asked").expect("due");
    assert_eq!((sync.cursor.as_deref(), sync.attempts), (Some("page 2"), 1));
    let done = db.save_sync_page(&mut sync, &[repository("2", "o/b")], None, LEASE, EVERY).await.expect("saved");
    assert_eq!(done, PageSaved::Complete { removed: 0 });
    assert_eq!(names(&test.db).await.len(), 3, "not seen once may be a page that moved");

    // The one that makes sure follows at once; after that one nothing is due.
    let all = [repository("1", "o/a"), repository("2", "o/b")];
    let mut next = db.begin_sync(&one, &forges, LEASE).await.expect("asked").expect("due");
    assert_eq!((next.cursor.as_deref(), next.attempts), (None, 0));
    let done = db.save_sync_page(&mut next, &all, None, LEASE, EVERY).await.expect("saved");
    assert_eq!(done, PageSaved::Complete { removed: 1 });
    assert_eq!(names(&test.db).await, pairs(&[("1", "o/a"), ("2", "o/b")]));
    assert_eq!(db.begin_sync(&one, &forges, LEASE).await.expect("asked"), None);

    // Somebody asks while one runs: another follows at once.
    db.request_sync(&forges).await.expect("asked for");
    let mut running = db.begin_sync(&one, &forges, LEASE).await.expect("asked").expect("due");
    db.request_sync(&forges).await.expect("asked for");
    assert_eq!(db.begin_sync(&two, &forges, LEASE).await.expect("asked"), None, "one at a time");
    db.save_sync_page(&mut running, &all, None, LEASE, EVERY).await.expect("saved");
    let mut next = db.begin_sync(&two, &forges, LEASE).await.expect("asked").expect("asked for meanwhile");
    db.save_sync_page(&mut next, &all, None, LEASE, EVERY).await.expect("saved");
    assert_eq!(db.begin_sync(&one, &forges, LEASE).await.expect("asked"), None);

    // A cursor that the forge does not know any more: from the beginning.
    db.request_sync(&forges).await.expect("asked for");
    let mut lost = db.begin_sync(&one, &forges, LEASE).await.expect("asked").expect("due");
    db.save_sync_page(&mut lost, &[], Some("stale"), LEASE, EVERY).await.expect("saved");
    db.sync_failed(&lost, "unknown cursor", Duration::ZERO, true).await.expect("put off");
    let again = db.begin_sync(&one, &forges, LEASE).await.expect("asked").expect("due");
    assert_eq!(again.cursor, None);
    db.release_sync(&again).await.expect("given back");
    assert!(db.begin_sync(&two, &forges, LEASE).await.expect("asked").is_some());
}
