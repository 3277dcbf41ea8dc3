//! Branches, trees, pull requests, permissions, credentials; renamed repositories and those that are not ours.

use harmonia_core::forge::{ForgeError, Permission as May, RepositoryRef, StatusState};
use harmonia_fake_forges::{Label, Permission};

use super::setup::Gitea;
use crate::bench::status;

#[tokio::test]
async fn heads_of_branches_and_trees_of_commits() {
    let gitea = Gitea::start().await;
    let (site, first) = gitea.add("acme/site");
    let mut expected = vec![("main", first, "Initial commit")];
    for branch in ["release/1.0", "a/b/c", "odd %2F#?&+ name", "käse"] {
        expected.push((branch, gitea.fake.world().push("acme/site", branch, branch), branch));
    }
    for (branch, commit, message) in &expected {
        let head = gitea.head(&site, branch).await.expect("a head");
        assert_eq!((head.commit.as_str(), head.message.as_str()), (commit.as_str(), *message), "{branch}");
        assert_eq!(head.author, "acme");
        let tree = gitea.fake.world().repository("acme/site").commits[commit].tree.clone();
        assert_eq!(gitea.tree(&site, commit).await, Ok(tree));
    }
    assert_eq!(gitea.head(&site, "nowhere").await, Err(ForgeError::NotFound));
    assert_eq!(gitea.tree(&site, &"0".repeat(40)).await, Err(ForgeError::NotFound));
    gitea.finish();
}

#[tokio::test]
async fn pull_requests_one_by_one_and_all_that_are_open() {
    let gitea = Gitea::start().await;
    let (site, head) = gitea.add("acme/site");
    let numbers: Vec<u64> = {
        let mut world = gitea.fake.world();
        world.push("acme/site", "topic", "A change");
        (0..120).map(|_| world.open_pull_request("acme/site", "acme/site", "topic", "alice")).collect()
    };
    let forked = gitea.fake.world().open_pull_request("acme/site", "mallory/site", "patch", "mallory");
    {
        let mut world = gitea.fake.world();
        let site = world.repository_mut("acme/site");
        site.pull_request_mut(numbers[0]).open = false;
        let pull = site.pull_request_mut(forked);
        pull.draft = true;
        pull.labels = vec![Label { id: 1, name: "safe to test".to_owned() }];
    }
    let (open, calls) = gitea.open_pull_requests(&site).await.expect("a list");
    let newest_first: Vec<u64> = std::iter::once(forked).chain(numbers[1..].iter().rev().copied()).collect();
    assert_eq!((open, calls), (newest_first, 3));

    let pull = gitea.pull_request(&site, forked).await.expect("it is there");
    let fork = gitea.fake.world().repository("mallory/site").id.to_string();
    assert_eq!(pull.head_repository, Some(RepositoryRef { id: fork, full_name: "mallory/site".to_owned() }));
    assert_eq!((pull.author.as_str(), pull.is_draft, pull.is_open), ("mallory", true, true));
    assert_eq!((pull.labels.as_slice(), pull.head_branch.as_str()), (&["safe to test".to_owned()][..], "patch"));
    assert_eq!((pull.base_branch.as_str(), pull.base_commit.as_str()), ("main", head.as_str()));
    assert!(!gitea.pull_request(&site, numbers[0]).await.expect("it is there").is_open);
    let known = pull.head_commit;

    gitea.fake.world().repository_mut("acme/site").pull_request_mut(forked).head_repository = None;
    let gone = gitea.pull_request(&site, forked).await.expect("it is there");
    assert_eq!((gone.head_repository, gone.head_commit), (None, known));
    assert_eq!(gone.head_ref, format!("refs/pull/{forked}/head"));
    assert_eq!(gitea.pull_request(&site, 4711).await.err(), Some(ForgeError::NotFound));
    gitea.finish();
}

#[tokio::test]
async fn permissions_are_those_that_the_forge_says() {
    let gitea = Gitea::start().await;
    let (site, _) = gitea.add("acme/site");
    let cases = [
        ("reader", Permission::Read, May::Read),
        ("writer", Permission::Write, May::Write),
        ("boss", Permission::Admin, May::Admin),
    ];
    for (user, permission, _) in cases {
        let mut world = gitea.fake.world();
        world.add_user(user);
        world.repository_mut("acme/site").collaborators.insert(user.to_owned(), permission);
    }
    gitea.fake.world().add_user("stranger");
    for (user, _, may) in cases {
        assert_eq!(gitea.permission(&site, user).await, Ok(may), "{user}");
    }
    assert_eq!(gitea.permission(&site, "acme").await, Ok(May::Admin), "the owner");
    assert_eq!(gitea.permission(&site, "stranger").await, Ok(May::Read), "everybody reads what is public");
    assert_eq!(gitea.permission(&site, "nobody").await, Ok(May::None));
    gitea.fake.world().repository_mut("acme/site").private = true;
    assert_eq!(gitea.permission(&site, "stranger").await, Ok(May::None));
    gitea.allow("acme/site", Permission::Write);
    let refused = gitea.permission(&site, "writer").await;
    assert!(matches!(refused, Err(ForgeError::Denied(_))), "only administrators may ask: {refused:?}");
    gitea.finish();
}

#[tokio::test]
async fn a_renamed_repository_is_followed() {
    let gitea = Gitea::start().await;
    let (site, head) = gitea.add("acme/site");
    let number = gitea.fake.world().open_pull_request("acme/site", "mallory/site", "patch", "mallory");
    gitea.fake.world().rename("acme/site", "acme/page");
    assert_eq!(gitea.head(&site, "main").await.expect("a head").commit, head);
    assert_eq!(gitea.pull_request(&site, number).await.expect("it is there").number, number);
    gitea.report(&status(&site, &head, StatusState::Success)).await.expect("a status");
    gitea.comment(&site, number, "key", "hello").await.expect("a comment");
    assert_eq!(gitea.fake.statuses("acme/page", &head).len(), 1);
    assert_eq!(gitea.fake.world().repository("acme/page").comments.len(), 1);
    let (found, _) = gitea.discover().await.expect("all is well");
    assert_eq!((found[0].id.as_str(), found[0].full_name.as_str()), (site.id.as_str(), "acme/page"));
    gitea.finish();
}

#[tokio::test]
async fn what_the_token_does_not_see_is_not_found() {
    let gitea = Gitea::start().await;
    let id = {
        let mut world = gitea.fake.world();
        let hidden = world.add_repository("stranger/thing");
        hidden.private = true;
        hidden.id.to_string()
    };
    let hidden = RepositoryRef { id, full_name: "stranger/thing".to_owned() };
    let missing = RepositoryRef { id: "1".to_owned(), full_name: "no/where".to_owned() };
    for repository in [hidden, missing] {
        let commit = "a".repeat(40);
        assert_eq!(gitea.head(&repository, "main").await.err(), Some(ForgeError::NotFound), "{repository:?}");
        assert_eq!(gitea.tree(&repository, &commit).await.err(), Some(ForgeError::NotFound));
        assert_eq!(gitea.pull_request(&repository, 1).await.err(), Some(ForgeError::NotFound));
        let refused = gitea.report(&status(&repository, &commit, StatusState::Pending)).await;
        assert_eq!(refused.err(), Some(ForgeError::NotFound));
    }
    gitea.finish();
}

#[tokio::test]
async fn git_gets_the_token_for_this_instance_only_and_a_revoked_one_is_denied() {
    let gitea = Gitea::start().await;
    let (site, _) = gitea.add("acme/site");
    let credential = gitea.credential(&site).await.expect("a credential");
    assert_eq!(credential.password.expose(), gitea.fake.token());
    assert_eq!(credential.hosts.len(), 1);
    assert_eq!(format!("http://{}", credential.hosts[0]), gitea.fake.url());
    assert!(!credential.user.is_empty());
    gitea.fake.world().tokens.clear();
    let refused = gitea.head(&site, "main").await;
    assert!(matches!(refused, Err(ForgeError::Denied(_))), "{refused:?}");
    gitea.finish();
}
