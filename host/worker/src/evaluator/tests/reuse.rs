//! Whole evaluations of a tree and, for another commit with that tree, what a frontend then makes of their results.

use harmonia_core::frontend_api::CloneCredentialAnswer;
use harmonia_core::intake::Wanted;
use harmonia_db::{EvaluationRequest, Requested};

use super::*;
use crate::test_parts::GitServer;

impl World {
    /// By which rules the evaluator evaluates, once it has said so.
    async fn reuse_key(&self) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(key) = self.database.db.reuse_key(Duration::from_mins(10)).await.expect("asked") {
                return key;
            }
            assert!(Instant::now() < deadline, "the evaluator never said what it evaluates with");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Asks for a commit as a frontend does; gives whether earlier results are shown, after an evaluation if they are not.
    async fn is_reused(&self, project: ProjectId, url: &str, name: &str, commit: &str, again: bool) -> bool {
        let db = &self.database.db;
        let tree = self.repositories.git(name, &["rev-parse", &format!("{commit}^{{tree}}")]);
        let key = self.reuse_key().await;
        let request = EvaluationRequest {
            project,
            url: url.to_owned(),
            wanted: Wanted {
                branch: "main".to_owned(),
                commit: commit.to_owned(),
                title: None,
                author: None,
                is_tag: false,
                supersede: true,
                pull_request: None,
            },
            tree_hash: Some(tree),
            reuse_key: Some(key),
            delivery: None,
            new_attempt: again,
            asked: None,
        };
        match db.request_evaluation(&request).await.expect("asked") {
            Requested::Reused { id, .. } => {
                let view = self.view(id).await;
                assert_eq!((view.evaluation.status, view.attrs.len()), (EvalStatus::Skipped, 1), "{name}");
                true
            }
            Requested::Queued { id, .. } => {
                let view = self.ended(id).await;
                assert_eq!(view.evaluation.status, EvalStatus::Succeeded, "{name}: {:?}", view.evaluation.error);
                assert!(view.attrs.iter().all(|attr| attr.error.is_none()), "{name}: {:?}", view.attrs);
                false
            }
            other => panic!("{name}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn results_are_shown_for_another_commit_unless_they_depend_on_it() {
    let world = World::start().await;
    let server = GitServer::start(world.repositories.dir.path(), None).await;
    let script = Arc::new(Mutex::new(Answer::json(&CloneCredentialAnswer { credential: None })));
    let _frontend = world.frontend(&script).await;
    // What a derivation two steps below the attribute has, and whether results of another commit hold.
    for (name, more, holds) in [
        ("plain", "", true),
        ("own-source", "src = self;", true),
        ("short-rev", "version = self.shortRev;", false),
        ("rev-in-a-file", r#"note = builtins.toFile "note" "of ${self.rev}";"#, false),
        ("date", "date = self.lastModifiedDate;", false),
        ("seconds", "date = self.lastModified;", false),
        ("day", "day = builtins.substring 0 8 self.lastModifiedDate;", false),
    ] {
        let flake = format!(
            "{{ outputs = {{ self }}: let {MAKE} in {{ checks.x86_64-linux.a = mk \"{name}-a\" {{
                dep = mk \"{name}-b\" {{ dep = mk \"{name}-c\" {{ {more} }}; }}; }}; }}; }}"
        );
        let first = world.commit_flake(name, &flake);
        let second = world.repositories.commit(name, "second, with nothing in it");
        let third = world.repositories.commit(name, "third, with nothing in it");
        let (project, url) = world.forge_project(&server, name).await;
        assert!(!world.is_reused(project, &url, name, &first, false).await, "{name}: nothing was evaluated before");
        // By hand, once more: every derivation is known now, and still it must be seen what they contain.
        assert!(!world.is_reused(project, &url, name, &first, true).await, "{name}: asked for by hand");
        assert_eq!(world.is_reused(project, &url, name, &second, false).await, holds, "{name}: second");
        assert_eq!(world.is_reused(project, &url, name, &third, false).await, holds, "{name}: third");
    }
    world.stop().await;
}

#[tokio::test]
async fn a_push_that_touches_nothing_relevant_shows_what_its_parent_shows() {
    let world = World::start().await;
    let flake = format!(
        "{{ outputs = {{ self }}: let {MAKE} in {{ checks.x86_64-linux = {{
            a = mk \"a\" {{ src = ./src; }}; bad = throw \"red\"; }}; }}; }}"
    );
    let dir = world.repositories.create("repo");
    std::fs::create_dir(dir.join("src")).expect("directory");
    let url = format!("file://{}", dir.display());
    let mut commits = Vec::new();
    for (file, text) in [
        (".harmonia-ci.toml", "paths = [\"src/**\", \"flake.*\"]\n"),
        ("src/a", "one"),
        ("flake.nix", &flake),
        ("readme", "of no interest"),
        ("src/a", "two"),
        ("readme", "of no interest at all"),
        ("readme", "still"),
    ] {
        std::fs::write(dir.join(file), text).expect("file");
        commits.push(world.repositories.commit("repo", file));
    }
    // Each on a branch of its own, so that none takes away what another wants.
    let evaluated = async |place: usize, branch: &str| {
        let source = Source::Git { url: url.clone() };
        let id = world.create(source, Some(commits[place].clone()), branch, None).await;
        world.ended(id).await
    };
    let first = evaluated(2, "first").await;
    assert_eq!(first.evaluation.status, EvalStatus::Succeeded, "{:?}", first.evaluation.error);
    let docs = evaluated(3, "docs").await;
    assert_eq!(docs.evaluation.status, EvalStatus::Skipped);
    let reason = docs.evaluation.error.clone().unwrap_or_default();
    assert!(reason.contains("touches none of 'paths'") && reason.contains(&commits[2][..12]), "{reason}");
    assert_eq!((docs.attrs.len(), docs.evaluation.counts.eval_errors), (2, 1), "red as its parent is");
    assert_eq!(docs.attrs, first.attrs);
    // Nobody evaluated the parent (src changed there), but what the commit after it touches is to be compared with what was.
    let after = evaluated(5, "after").await;
    assert_eq!(after.evaluation.status, EvalStatus::Succeeded, "{:?}", after.evaluation.error);
    assert_ne!(after.attrs, first.attrs);
    // The nearest that was evaluated counts, and asking again by hand evaluates.
    let last = evaluated(6, "last").await;
    assert_eq!((last.evaluation.status, &last.attrs), (EvalStatus::Skipped, &after.attrs));
    let again = evaluated(6, "last").await;
    assert_eq!((again.evaluation.status, again.evaluation.attempt), (EvalStatus::Succeeded, 2));
    world.stop().await;
}
