//! Projects of repositories: enabling, settings, hooks, polls, and who may have a clone credential.

use std::time::Duration;

use harmonia_core::api::ProjectChanges;
use harmonia_core::forge::PullRequestTrust;
use harmonia_core::{Capability, NodeId};
use harmonia_db::testing::{TestDatabase, pool, random_token};
use harmonia_db::{Db, DbError, NewProject, PollSource, ProjectKind, RepositoryId};

use crate::repositories::{FORGE, reference, repository};
use crate::world::{World, new_evaluation};

const LEASE: Duration = Duration::from_mins(1);

fn node() -> NodeId {
    NodeId("n".to_owned())
}

fn strings(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

async fn row(db: &Db, name: &str) -> RepositoryId {
    db.repository(FORGE, name).await.expect("asked").expect("there")
}

async fn audit(db: &Db) -> Vec<(String, String, String)> {
    sqlx::query!("SELECT actor, action, subject FROM audit_log ORDER BY id")
        .fetch_all(pool(db))
        .await
        .expect("read")
        .into_iter()
        .map(|row| (row.actor, row.action, row.subject))
        .collect()
}

#[tokio::test]
async fn a_repository_is_enabled_disabled_and_enabled_again() {
    let test = TestDatabase::new().await;
    let frontend = test.connect_as(Capability::Frontend).await;
    let db = &frontend;
    db.upsert_repositories(FORGE, &[repository("1", "o/a"), repository("2", "o/b")]).await.expect("upsert");
    let (project, name) = db.enable_repository(row(db, "o/a").await, &strings(&["o/a"]), "me").await.expect("enabled");
    assert_eq!(name, "o/a");
    let again = db.enable_repository(row(db, "o/a").await, &strings(&["z"]), "me").await.expect("enabled");
    assert_eq!(again, (project, name), "it is the same, and nothing happened");
    let found = db.forge_project(FORGE, &reference("1")).await.expect("asked").expect("there");
    assert_eq!((found.project, found.name.as_str(), found.enabled), (project, "o/a", true));
    assert_eq!((found.repository.full_name.as_str(), found.default_branch.as_str()), ("o/a", "main"));
    assert_eq!((found.pr_trust, found.branch_patterns), (PullRequestTrust::Collaborators, strings(&["release/*"])));
    assert_eq!(db.forge_project(FORGE, &reference("2")).await.expect("asked"), None);
    assert_eq!(db.forge_project("other", &reference("1")).await.expect("asked"), None);

    db.disable_project("o/a", "you").await.expect("disabled");
    assert!(!db.forge_project(FORGE, &reference("1")).await.expect("asked").expect("there").enabled);
    db.enable_repository(row(db, "o/a").await, &strings(&["z"]), "me").await.expect("enabled");
    assert!(db.forge_project(FORGE, &reference("1")).await.expect("asked").expect("there").enabled);
    let entry = |actor: &str, action: &str| (actor.to_owned(), action.to_owned(), "project o/a".to_owned());
    assert_eq!(audit(&test.db).await, [entry("me", "enable"), entry("you", "set"), entry("me", "enable")]);

    // Names that others have.
    db.ensure_project(&NewProject { name: "o/b".to_owned(), kind: ProjectKind::Local }).await.expect("made");
    let taken = db.enable_repository(row(db, "o/b").await, &strings(&["o/b"]), "me").await.expect_err("taken");
    assert!(matches!(&taken, DbError::Refused { reason } if reason.contains("o/b")), "{taken}");
    let names = strings(&["o/b", "forge/o/b"]);
    assert_eq!(db.enable_repository(row(db, "o/b").await, &names, "me").await.expect("enabled").1, "forge/o/b");
    // A rename at the forge keeps the project and its name.
    db.upsert_repositories(FORGE, &[repository("1", "new/a")]).await.expect("upsert");
    let found = db.forge_project(FORGE, &reference("1")).await.expect("asked").expect("there");
    assert_eq!((found.name.as_str(), found.repository.full_name.as_str()), ("o/a", "new/a"));
    // What is gone cannot be enabled.
    let gone = row(db, "o/b").await;
    db.repositories_removed(FORGE, &[reference("2")]).await.expect("removed");
    let missing = db.enable_repository(gone, &strings(&["x"]), "me").await;
    assert!(matches!(missing, Err(DbError::NotFound { .. })), "{missing:?}");
}

#[tokio::test]
async fn settings_change_one_by_one() {
    let test = TestDatabase::new().await;
    let frontend = test.connect_as(Capability::Frontend).await;
    let db = &frontend;
    db.add_git_project("git/x", "https://example.org/x.git", None, 60, "me").await.expect("added");
    let twice = db.add_git_project("git/x", "https://example.org/y.git", None, 60, "me").await;
    assert!(matches!(twice, Err(DbError::Refused { .. })), "{twice:?}");
    let settings =
        async |name: &str| db.projects_settings(Some(name), None, false, 1).await.expect("listed").pop().expect("one");
    let before = settings("git/x").await;
    assert_eq!((before.kind.as_str(), before.poll_interval_s, before.default_branch.clone()), ("git", 60, None));
    db.set_project("git/x", &ProjectChanges::default(), "me").await.expect("nothing to change");
    assert_eq!(settings("git/x").await, before);
    let changes = ProjectChanges {
        is_public: Some(false),
        scheduling_shares: Some(300),
        pr_enabled: Some(false),
        pr_trust: Some(PullRequestTrust::None),
        poll_interval_s: Some(5),
        poll_pull_requests: Some(true),
        default_branch: Some("trunk".to_owned()),
        branch_patterns: Some(vec!["v*".to_owned(), "it's \"quoted\"".to_owned()]),
        build_tags: Some(true),
        build_drafts: Some(true),
        reuse_trees: Some(false),
        ..ProjectChanges::default()
    };
    db.set_project("git/x", &changes, "me").await.expect("changed");
    let after = settings("git/x").await;
    assert_eq!((after.is_public, after.scheduling_shares, after.pr_enabled), (false, 300, false));
    assert_eq!((after.pr_trust, after.poll_interval_s, after.poll_pull_requests), (PullRequestTrust::None, 5, true));
    assert_eq!(
        (after.default_branch.as_deref(), after.branch_patterns),
        (Some("trunk"), changes.branch_patterns.clone().expect("set"))
    );
    assert_eq!((after.build_tags, after.build_drafts, after.reuse_trees, after.enabled), (true, true, false, true));
    assert_eq!(db.projects_settings(None, None, true, 9).await.expect("listed"), [], "it is private now");
    db.set_project("git/x", &ProjectChanges { default_branch: Some(String::new()), ..Default::default() }, "me")
        .await
        .expect("changed");
    assert_eq!(settings("git/x").await.default_branch, None);

    let missing = db.set_project("nothing", &changes, "me").await;
    assert!(matches!(missing, Err(DbError::NotFound { .. })), "{missing:?}");
    db.upsert_repositories(FORGE, &[repository("1", "o/a")]).await.expect("upsert");
    db.enable_repository(row(db, "o/a").await, &strings(&["o/a"]), "me").await.expect("enabled");
    for refused in [
        ProjectChanges { is_public: Some(true), ..Default::default() },
        ProjectChanges { default_branch: Some("x".to_owned()), ..Default::default() },
    ] {
        let result = db.set_project("o/a", &refused, "me").await;
        assert!(matches!(result, Err(DbError::Refused { .. })), "{refused:?}: {result:?}");
    }
}

#[tokio::test]
async fn hooks_come_and_go_with_what_is_wanted() {
    let test = TestDatabase::new().await;
    let frontend = test.connect_as(Capability::Frontend).await;
    let db = &frontend;
    let forges = strings(&[FORGE]);
    let urls = strings(&["https://ci.example/webhook/forge"]);
    db.upsert_repositories(FORGE, &[repository("1", "o/a")]).await.expect("upsert");
    db.enable_repository(row(db, "o/a").await, &strings(&["o/a"]), "me").await.expect("enabled");
    let due = async || db.due_hooks(&node(), &forges, 9, LEASE).await.expect("taken");
    assert_eq!(due().await, [], "nobody wants one yet");
    assert_eq!(db.want_hooks(&forges, &urls).await.expect("wanted"), 1);
    assert_eq!(db.want_hooks(&forges, &urls).await.expect("wanted"), 0, "it is known");
    let target = due().await.remove(0);
    assert_eq!((target.wanted, target.old_url.as_deref(), target.repository.full_name.as_str()), (true, None, "o/a"));
    assert_eq!(due().await, [], "leased");
    assert!(db.hook_begins(&target, &urls[0]).await.expect("noted"));
    assert!(db.hook_failed(&target, "refused: admin only", Duration::ZERO).await.expect("put off"));
    let hook = async || {
        let settings = db.projects_settings(Some("o/a"), None, false, 1).await.expect("listed").remove(0);
        settings.hook.map(|hook| (hook.installed, hook.error))
    };
    assert_eq!(hook().await, Some((false, Some("refused: admin only".to_owned()))));
    let target = due().await.remove(0);
    assert_eq!(target.attempts, 1);
    assert!(db.hook_begins(&target, &urls[0]).await.expect("noted"));
    assert!(db.hook_done(&target).await.expect("done"));
    assert!(!db.hook_done(&target).await.expect("answered"), "the lease is over");
    assert_eq!(hook().await, Some((true, None)));

    // This server moved: the old hook goes, a new one comes.
    let moved = strings(&["https://new.example/webhook/forge"]);
    assert_eq!(db.want_hooks(&forges, &moved).await.expect("wanted"), 1);
    let target = due().await.remove(0);
    assert_eq!((target.wanted, target.old_url.as_deref()), (true, Some(urls[0].as_str())));
    assert!(db.hook_begins(&target, &moved[0]).await.expect("noted"));
    // Its answer is lost, and the project disabled meanwhile: there may be a hook, so it is removed.
    db.disable_project("o/a", "me").await.expect("disabled");
    db.want_hooks(&forges, &moved).await.expect("wanted");
    assert!(db.hook_failed(&target, "no answer", Duration::ZERO).await.expect("put off"));
    let target = due().await.remove(0);
    assert_eq!((target.wanted, target.old_url.as_deref()), (false, Some(moved[0].as_str())));
    assert!(db.hook_done(&target).await.expect("done"));
    assert_eq!((due().await.len(), hook().await), (0, None));
}

#[tokio::test]
async fn polls_are_due_by_interval_and_remember_heads() {
    let test = TestDatabase::new().await;
    let frontend = test.connect_as(Capability::Frontend).await;
    let db = &frontend;
    let forges = strings(&[FORGE]);
    db.add_git_project("git/x", "https://example.org/x.git", Some("trunk"), 60, "me").await.expect("added");
    db.upsert_repositories(FORGE, &[repository("1", "o/a"), repository("2", "o/b")]).await.expect("upsert");
    for name in ["o/a", "o/b"] {
        db.enable_repository(row(db, name).await, &strings(&[name]), "me").await.expect("enabled");
    }
    let poll = ProjectChanges { poll_interval_s: Some(60), poll_pull_requests: Some(true), ..Default::default() };
    db.set_project("o/a", &poll, "me").await.expect("set");
    assert_eq!(db.due_polls(&node(), &[], true, 9, LEASE).await.expect("taken").len(), 1, "the git project");
    let due = db.due_polls(&node(), &forges, true, 9, LEASE).await.expect("taken");
    let [target] = due.as_slice() else { panic!("the forge's: {due:?}") };
    let expected = PollSource::Forge {
        forge: FORGE.to_owned(),
        repository: harmonia_core::forge::RepositoryRef { id: "1".to_owned(), full_name: "o/a".to_owned() },
        default_branch: "main".to_owned(),
        pull_requests: true,
    };
    assert_eq!((&target.source, target.seen.len()), (&expected, 0));
    assert!(target.delivery_id("branch/main", "c1").contains("branch/main:new-"));
    assert!(db.save_poll_head(target, "branch/main", Some("c1")).await.expect("saved"));
    assert!(db.save_poll_head(target, "pull/7", Some("c2")).await.expect("saved"));
    assert!(db.poll_done(target, Some("half of it"), None).await.expect("done"));
    assert!(!db.save_poll_head(target, "branch/main", Some("late")).await.expect("answered"), "the lease is over");
    assert!(!db.poll_done(target, None, None).await.expect("answered"));
    assert_eq!(db.due_polls(&node(), &forges, true, 9, LEASE).await.expect("taken"), [], "not before a minute");
    let shown = db.projects_settings(Some("o/a"), None, false, 1).await.expect("listed").remove(0);
    assert_eq!(shown.poll_error.as_deref(), Some("half of it"));

    let make_due = async || {
        sqlx::query!("UPDATE projects SET next_poll_at = now(), leased_until = NULL WHERE name = 'o/a'")
            .execute(pool(&test.db))
            .await
            .expect("a minute later");
    };
    make_due().await;
    let target = db.due_polls(&node(), &forges, true, 9, LEASE).await.expect("taken").remove(0);
    assert_eq!(target.seen["branch/main"], ("c1".to_owned(), 1));
    assert!(db.save_poll_head(&target, "branch/main", Some("c0")).await.expect("saved"));
    assert!(db.save_poll_head(&target, "pull/7", None).await.expect("gone"));
    assert!(db.poll_done(&target, None, Some(Duration::from_hours(1))).await.expect("done"));
    make_due().await;
    let again = db.due_polls(&node(), &forges, true, 9, LEASE).await.expect("taken").remove(0);
    assert_eq!((again.seen.len(), &again.seen["branch/main"]), (1, &("c0".to_owned(), 2)));
    let (before, after) = (target.delivery_id("branch/main", "c1"), again.delivery_id("branch/main", "c1"));
    assert_ne!(before, after, "going back to an older commit is another delivery");
    // Not while disabled, nor when the repository is gone.
    db.poll_done(&again, None, None).await.expect("done");
    make_due().await;
    db.repositories_removed(FORGE, &[reference("1")]).await.expect("removed");
    assert_eq!(db.due_polls(&node(), &forges, true, 9, LEASE).await.expect("taken"), []);
}

#[tokio::test]
async fn a_clone_credential_is_for_who_holds_the_evaluation() {
    let world = World::new().await;
    let frontend = world.test.connect_as(Capability::Frontend).await;
    frontend.upsert_repositories(FORGE, &[repository("1", "o/a"), repository("2", "o/b")]).await.expect("upsert");
    let mut evals = Vec::new();
    for name in ["o/a", "o/b"] {
        let (project, _) =
            frontend.enable_repository(row(&frontend, name).await, &strings(&[name]), "me").await.expect("enabled");
        let created = world.db.create_evaluation(&new_evaluation(project, "main")).await.expect("created");
        let token = random_token();
        let claimed = world.db.claim_evaluation(&world.node, world.run, &token).await.expect("asked").expect("one");
        assert_eq!(claimed.id, created.id);
        evals.push((created.id, token));
    }
    let held = world.evaluation("main").await;
    for (number, (eval, token)) in evals.iter().enumerate() {
        let (forge, repository) = frontend.evaluation_repository(*eval, token).await.expect("held").expect("a forge");
        assert_eq!((forge.as_str(), repository.id), (FORGE, (number + 1).to_string()));
    }
    assert_eq!(frontend.evaluation_repository(held.id, &held.token).await.expect("held"), None, "no forge");
    for (eval, token) in [(evals[0].0, &evals[1].1), (evals[1].0, &evals[0].1), (evals[0].0, &random_token())] {
        let refused = frontend.evaluation_repository(eval, token).await;
        assert!(matches!(refused, Err(DbError::StaleClaim)), "{refused:?}");
    }
    world.db.cancel_evaluation(evals[0].0, "me").await.expect("cancelled");
    let over = frontend.evaluation_repository(evals[0].0, &evals[0].1).await;
    assert!(matches!(over, Err(DbError::StaleClaim)), "{over:?}");
}
