//! Branches, trees, pull requests, permissions; renamed repositories and those that are not ours.

use harmonia_core::forge::{ForgeError, Permission as May, RepositoryRef, StatusState};
use harmonia_fake_forges::{Label, Permission};

use super::setup::Github;
use crate::bench::status;

#[tokio::test]
async fn heads_of_branches_and_trees_of_commits() {
    let github = Github::start().await;
    let (site, _, first) = github.add("acme/site");
    let mut expected = vec![("main", first, "Initial commit")];
    for branch in ["release/1.0", "a/b/c", "odd %2F#?&+ name", "käse"] {
        expected.push((branch, github.fake.world().push("acme/site", branch, branch), branch));
    }
    for (branch, commit, message) in &expected {
        let head = github.head(&site, branch).await.expect("a head");
        assert_eq!((head.commit.as_str(), head.message.as_str()), (commit.as_str(), *message), "{branch}");
        assert_eq!(head.author, "acme");
        let tree = github.fake.world().repository("acme/site").commits[commit].tree.clone();
        assert_eq!(github.tree(&site, commit).await, Ok(tree));
    }
    assert_eq!(github.head(&site, "nowhere").await, Err(ForgeError::NotFound));
    assert_eq!(github.tree(&site, &"0".repeat(40)).await, Err(ForgeError::NotFound));
    github.finish();
}

#[tokio::test]
async fn pull_requests_one_by_one_and_all_that_are_open() {
    let github = Github::start().await;
    let (site, _, head) = github.add("acme/site");
    let numbers: Vec<u64> = {
        let mut world = github.fake.world();
        world.push("acme/site", "topic", "A change");
        (0..101).map(|_| world.open_pull_request("acme/site", "acme/site", "topic", "alice")).collect()
    };
    let forked = github.fake.world().open_pull_request("acme/site", "mallory/site", "patch", "mallory");
    {
        let mut world = github.fake.world();
        let site = world.repository_mut("acme/site");
        site.pull_request_mut(numbers[0]).open = false;
        let pull = site.pull_request_mut(forked);
        pull.draft = true;
        pull.labels = vec![Label { id: 1, name: "safe to test".to_owned() }];
    }
    let (open, calls) = github.open_pull_requests(&site).await.expect("a list");
    let newest_first: Vec<u64> = std::iter::once(forked).chain(numbers[1..].iter().rev().copied()).collect();
    assert_eq!((open, calls), (newest_first, 2));

    let pull = github.pull_request(&site, forked).await.expect("it is there");
    let fork = github.fake.world().repository("mallory/site").id.to_string();
    assert_eq!(pull.head_repository, Some(RepositoryRef { id: fork, full_name: "mallory/site".to_owned() }));
    assert_eq!((pull.author.as_str(), pull.is_draft, pull.is_open), ("mallory", true, true));
    assert_eq!((pull.labels.as_slice(), pull.head_branch.as_str()), (&["safe to test".to_owned()][..], "patch"));
    assert_eq!((pull.base_branch.as_str(), pull.base_commit.as_str()), ("main", head.as_str()));
    assert!(!github.pull_request(&site, numbers[0]).await.expect("it is there").is_open);
    let known = pull.head_commit;

    github.fake.world().repository_mut("acme/site").pull_request_mut(forked).head_repository = None;
    let gone = github.pull_request(&site, forked).await.expect("it is there");
    assert_eq!((gone.head_repository, gone.head_commit), (None, known));
    assert_eq!(gone.head_ref, format!("refs/pull/{forked}/head"));
    assert_eq!(github.pull_request(&site, 4711).await.err(), Some(ForgeError::NotFound));
    github.finish();
}

#[tokio::test]
async fn permissions_are_those_that_github_says() {
    let github = Github::start().await;
    let (site, ..) = github.add("acme/site");
    let cases = [
        ("reader", Permission::Read, May::Read),
        ("sorter", Permission::Triage, May::Read),
        ("writer", Permission::Write, May::Write),
        ("keeper", Permission::Maintain, May::Write),
        ("boss", Permission::Admin, May::Admin),
    ];
    for (user, permission, _) in cases {
        let mut world = github.fake.world();
        world.add_user(user);
        world.repository_mut("acme/site").collaborators.insert(user.to_owned(), permission);
    }
    github.fake.world().add_user("stranger");
    for (user, _, may) in cases {
        assert_eq!(github.permission(&site, user).await, Ok(may), "{user}");
    }
    assert_eq!(github.permission(&site, "acme").await, Ok(May::Admin));
    assert_eq!(github.permission(&site, "stranger").await, Ok(May::Read), "everybody reads what is public");
    assert_eq!(github.permission(&site, "nobody").await, Ok(May::None));
    github.fake.world().repository_mut("acme/site").private = true;
    assert_eq!(github.permission(&site, "stranger").await, Ok(May::None));
    github.finish();
}

#[tokio::test]
async fn a_renamed_repository_is_followed() {
    let github = Github::start().await;
    let (site, _, head) = github.add("acme/site");
    let number = github.fake.world().open_pull_request("acme/site", "mallory/site", "patch", "mallory");
    github.fake.world().rename("acme/site", "acme/page");
    // The installation is found, read and written by the old name, through redirects.
    assert_eq!(github.head(&site, "main").await.expect("a head").commit, head);
    assert_eq!(github.pull_request(&site, number).await.expect("it is there").number, number);
    github.report(&status(&site, &head, StatusState::Pending)).await.expect("a status");
    github.report(&status(&site, &head, StatusState::Success)).await.expect("a status");
    github.comment(&site, number, "key", "hello").await.expect("a comment");
    let runs = github.fake.check_runs("acme/page", &head);
    assert_eq!(runs["harmonia-ci/nix-build"].conclusion.as_deref(), Some("success"));
    assert_eq!(github.fake.world().repository("acme/page").check_runs.len(), 1);
    assert_eq!(github.fake.world().repository("acme/page").comments.len(), 1);
    let (found, _) = github.discover().await.expect("all is well");
    assert_eq!((found[0].id.as_str(), found[0].full_name.as_str()), (site.id.as_str(), "acme/page"));
    github.finish();
}

#[tokio::test]
async fn what_the_app_is_not_installed_on_is_not_found() {
    let github = Github::start().await;
    let (_, installation, _) = github.add("acme/site");
    let foreign = {
        let mut world = github.fake.world();
        let id = world.add_repository("stranger/thing").id;
        let chosen = world.repository("acme/site").id;
        world.installations.get_mut(&installation).expect("it is there").repositories = Some([chosen].into());
        world.add_repository("acme/hidden");
        RepositoryRef { id: id.to_string(), full_name: "stranger/thing".to_owned() }
    };
    let id = github.fake.world().repository("acme/hidden").id.to_string();
    let hidden = RepositoryRef { id, full_name: "acme/hidden".to_owned() };
    let missing = RepositoryRef { id: "1".to_owned(), full_name: "no/where".to_owned() };
    for repository in [foreign, hidden, missing] {
        let commit = "a".repeat(40);
        assert_eq!(github.head(&repository, "main").await.err(), Some(ForgeError::NotFound), "{repository:?}");
        assert_eq!(github.tree(&repository, &commit).await.err(), Some(ForgeError::NotFound));
        assert_eq!(github.pull_request(&repository, 1).await.err(), Some(ForgeError::NotFound));
        assert_eq!(github.permission(&repository, "acme").await.err(), Some(ForgeError::NotFound));
        assert_eq!(github.credential(&repository).await.err(), Some(ForgeError::NotFound));
        let refused = github.report(&status(&repository, &commit, StatusState::Pending)).await;
        assert_eq!(refused.err(), Some(ForgeError::NotFound));
    }
    let odd = RepositoryRef { id: "1".to_owned(), full_name: "no-owner".to_owned() };
    assert!(matches!(github.head(&odd, "main").await, Err(ForgeError::Invalid(_))));
    github.finish();
}
