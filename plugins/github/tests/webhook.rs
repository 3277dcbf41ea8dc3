//! Every example payload that GitHub's own packages publish, through our normalisation.

use std::path::Path;

use harmonia_plugin::forge::webhooks::{CommentAction, Event, PullRequestAction, Reference};
use harmonia_plugin::serde_json::{self, Value, json};
use harmonia_plugin_github::webhook::events;

/// `(event, payload)` of every example.
fn examples() -> Vec<(String, Value)> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/fake-forges/node_modules/@octokit/webhooks-examples/api.github.com/index.json");
    let text =
        std::fs::read(&file).unwrap_or_else(|error| panic!("{} is missing ({error}): run ./dev setup", file.display()));
    let found: Vec<Value> = serde_json::from_slice(&text).expect("JSON");
    found
        .iter()
        .flat_map(|event| {
            let name = event["name"].as_str().expect("a name").to_owned();
            let payloads = event["examples"].as_array().expect("examples").clone();
            payloads.into_iter().map(move |payload| (name.clone(), payload))
        })
        .collect()
}

fn example(event: &str, action: &str) -> Value {
    examples()
        .into_iter()
        .find(|(name, payload)| name == event && payload["action"].as_str().unwrap_or_default() == action)
        .unwrap_or_else(|| panic!("no example of {event} {action}"))
        .1
}

fn read(event: &str, payload: &Value) -> Vec<Event> {
    events(event, payload.to_string().as_bytes()).unwrap_or_else(|error| panic!("{event}: {error:?}\n{payload}"))
}

#[test]
fn every_published_example_is_understood() {
    let all = examples();
    assert!(all.len() > 200, "{} examples", all.len());
    for (event, payload) in &all {
        let said = read(event, payload);
        let concerns_us = matches!(
            event.as_str(),
            "push"
                | "ping"
                | "merge_group"
                | "installation"
                | "installation_repositories"
                | "installation_target"
                | "member"
                | "membership"
                | "organization"
                | "pull_request"
                | "repository"
                | "team"
                | "team_add"
        );
        let rerequested = payload["action"] == "rerequested" && event.starts_with("check_");
        let on_a_pull_request = event == "issue_comment" && !payload["issue"]["pull_request"].is_null();
        assert_eq!(!said.is_empty(), concerns_us || rerequested || on_a_pull_request, "{event}: {said:?}");
    }
}

#[test]
fn a_push_names_what_moved() {
    let payload = example("push", "");
    let mut branch = payload.clone();
    branch["ref"] = json!("refs/heads/feature/x");
    let [Event::Push(push)] = &read("push", &branch)[..] else { panic!("one push") };
    assert_eq!(push.repository.full_name, payload["repository"]["full_name"].as_str().expect("text"));
    assert_eq!(push.repository.id, payload["repository"]["id"].to_string());
    assert!(matches!(&push.reference, Reference::Branch(branch) if branch == "feature/x"));

    let mut gone = branch.clone();
    gone["deleted"] = json!(true);
    gone["before"] = json!("b".repeat(40));
    gone["after"] = json!("0".repeat(40));
    gone["head_commit"] = Value::Null;
    let [Event::Push(push)] = &read("push", &gone)[..] else { panic!("one push") };
    assert!(push.deleted && push.commit == "b".repeat(40));

    // An annotated tag: `after` is the tag's hash, the commit is another.
    let mut tag = branch;
    tag["ref"] = json!("refs/tags/v1");
    tag["after"] = json!("a".repeat(40));
    tag["deleted"] = json!(false);
    tag["head_commit"] = json!({"id": "c".repeat(40), "message": "release"});
    let [Event::Push(push)] = &read("push", &tag)[..] else { panic!("one push") };
    assert!(matches!(&push.reference, Reference::Tag(tag) if tag == "v1"));
    assert_eq!((push.commit.as_str(), push.message.as_str()), ("c".repeat(40).as_str(), "release"));

    let mut odd = payload;
    odd["ref"] = json!("refs/notes/x");
    assert!(events("push", odd.to_string().as_bytes()).is_err());
}

#[test]
fn pull_requests_say_what_happened() {
    for (action, meant) in [
        ("opened", PullRequestAction::Opened),
        ("reopened", PullRequestAction::Reopened),
        ("synchronize", PullRequestAction::Pushed),
        ("ready_for_review", PullRequestAction::Ready),
        ("converted_to_draft", PullRequestAction::Edited),
        ("labeled", PullRequestAction::Edited),
        ("closed", PullRequestAction::Closed),
        ("assigned", PullRequestAction::Other),
    ] {
        let payload = example("pull_request", action);
        let [Event::PullRequest(event)] = &read("pull_request", &payload)[..] else { panic!("one event") };
        assert_eq!(event.action, meant, "{action}");
        let pull = &event.pull_request;
        assert_eq!(pull.head_commit, payload["pull_request"]["head"]["sha"].as_str().expect("text"));
        assert_eq!(pull.base_branch, payload["pull_request"]["base"]["ref"].as_str().expect("text"));
        assert_eq!(pull.is_open, payload["pull_request"]["state"] == "open");
        assert_eq!(pull.head_ref, format!("refs/pull/{}/head", pull.number));
    }
    let mut forkless = example("pull_request", "opened");
    forkless["pull_request"]["head"]["repo"] = Value::Null;
    forkless["pull_request"]["user"] = Value::Null;
    let [Event::PullRequest(event)] = &read("pull_request", &forkless)[..] else { panic!("one event") };
    assert!(event.pull_request.head_repository.is_none() && event.pull_request.author == "ghost");
}

#[test]
fn comments_count_on_pull_requests_only() {
    for (action, meant) in
        [("created", CommentAction::Created), ("edited", CommentAction::Edited), ("deleted", CommentAction::Deleted)]
    {
        let mut payload = example("issue_comment", action);
        payload["issue"]["pull_request"] = json!({"url": "x"});
        let [Event::Comment(comment)] = &read("issue_comment", &payload)[..] else { panic!("one comment") };
        assert_eq!(comment.action, meant);
        assert_eq!(comment.author, payload["comment"]["user"]["login"].as_str().expect("text"));
        payload["issue"].as_object_mut().expect("object").remove("pull_request");
        assert!(read("issue_comment", &payload).is_empty());
    }
}

#[test]
fn reruns_merge_groups_and_installations() {
    let [Event::Rerun(rerun)] = &read("check_run", &example("check_run", "rerequested"))[..] else { panic!("rerun") };
    assert!(rerun.context.is_some() && !rerun.user.is_empty());
    let [Event::Rerun(rerun)] = &read("check_suite", &example("check_suite", "rerequested"))[..] else {
        panic!("rerun")
    };
    assert!(rerun.context.is_none());

    let mut group = example("merge_group", "checks_requested");
    group["merge_group"]["head_ref"] = json!("refs/heads/gh-readonly-queue/main/pr-1");
    let [Event::MergeGroup(found)] = &read("merge_group", &group)[..] else { panic!("group") };
    assert!(found.branch == "gh-readonly-queue/main/pr-1" && !found.destroyed);
    group["action"] = json!("destroyed");
    let [Event::MergeGroup(found)] = &read("merge_group", &group)[..] else { panic!("group") };
    assert!(found.destroyed);

    let removed = read("installation", &example("installation", "deleted"));
    assert!(
        matches!(&removed[..], [Event::RepositoriesRemoved(gone), Event::Discover, Event::PermissionsChanged(None)] if !gone.is_empty())
    );
    assert!(matches!(&read("installation", &example("installation", "created"))[..], [Event::Discover]));
    let removed = read("installation_repositories", &example("installation_repositories", "removed"));
    assert!(matches!(&removed[..], [Event::RepositoriesRemoved(gone)] if !gone.is_empty()));
    assert!(matches!(
        &read("installation_repositories", &example("installation_repositories", "added"))[..],
        [Event::Discover]
    ));
    let [Event::RepositoriesChanged(found)] = &read("repository", &example("repository", "renamed"))[..] else {
        panic!("changed")
    };
    assert!(found[0].clone_url.starts_with("https://") && !found[0].default_branch.is_empty());
}

#[test]
fn garbage_is_an_error_and_strange_events_are_nothing() {
    for body in [&b""[..], b"{}", b"[]", b"\xff", b"{\"ref\":1}"] {
        assert!(events("push", body).is_err(), "{body:?}");
    }
    assert!(events("star", b"not even json").expect("nothing of ours").is_empty());
}

/// A pull request whose author and fork are gone, as GitHub tells of it.
fn of_a_ghost() -> Value {
    json!({
        "action": "synchronize", "number": 9_007_199_254_740_993_u64,
        "repository": {"id": 4242, "full_name": "acme/site"},
        "pull_request": {
            "number": 9_007_199_254_740_993_u64, "title": "Line one\nline two \u{0} \u{202e}", "user": null, "state": "open",
            "draft": null, "labels": null, "body": null,
            "head": {"label": "unknown repository", "ref": "patch-1", "sha": "a".repeat(40), "user": null, "repo": null},
            "base": {"ref": "main", "sha": "b".repeat(40), "repo": {"id": 4242, "full_name": "acme/site"}},
        },
        "sender": {"login": "ghost"},
    })
}

#[test]
fn accounts_and_forks_that_are_gone_are_no_obstacle() {
    let said = read("pull_request", &of_a_ghost());
    let [Event::PullRequest(found)] = said.as_slice() else { panic!("{said:?}") };
    let pull = &found.pull_request;
    assert_eq!((pull.number, pull.author.as_str()), (9_007_199_254_740_993, "ghost"));
    assert!(pull.head_repository.is_none() && pull.is_open && !pull.is_draft);
    let mut retargeted = of_a_ghost();
    retargeted["action"] = json!("edited");
    retargeted["changes"] = json!({"base": {"ref": {"from": "main"}, "sha": {"from": "b".repeat(40)}}});
    retargeted["pull_request"]["base"]["ref"] = json!("next");
    let said = read("pull_request", &retargeted);
    let [Event::PullRequest(found)] = said.as_slice() else { panic!("{said:?}") };
    assert_eq!((found.action, found.pull_request.base_branch.as_str()), (PullRequestAction::Edited, "next"));
}

#[test]
fn a_repository_that_moves_keeps_its_number() {
    let moved = json!({
        "action": "transferred", "changes": {"owner": {"from": {"user": {"login": "acme"}, "organization": null}}},
        "repository": {
            "id": 4242, "name": "web", "full_name": "Umbrella/web", "private": false, "owner": {"login": "Umbrella", "id": 8},
            "html_url": "https://github.com/acme/site", "clone_url": "https://github.com/Umbrella/web.git",
            "default_branch": "trunk", "archived": null, "topics": null, "fork": false,
        },
    });
    let said = read("repository", &moved);
    let [Event::RepositoriesChanged(found), Event::Discover] = said.as_slice() else { panic!("{said:?}") };
    assert_eq!((found[0].id.as_str(), found[0].full_name.as_str()), ("4242", "Umbrella/web"));
    assert_eq!(found[0].default_branch, "trunk");
}

/// Every field of every example at its deepest may be null one day: that is a refusal at worst, and of no field that only
/// decorates.
#[test]
fn what_is_null_never_stops_what_does_not_depend_on_it() {
    for (event, path) in [
        ("push", "/sender"),
        ("push", "/sender/login"),
        ("push", "/pusher"),
        ("push", "/pusher/name"),
        ("push", "/head_commit"),
        ("push", "/head_commit/message"),
        ("push", "/commits"),
        ("push", "/deleted"),
        ("pull_request", "/pull_request/title"),
        ("pull_request", "/pull_request/body"),
        ("pull_request", "/pull_request/user"),
        ("pull_request", "/pull_request/user/login"),
        ("pull_request", "/pull_request/labels"),
        ("pull_request", "/pull_request/draft"),
        ("pull_request", "/pull_request/head/repo"),
        ("pull_request", "/pull_request/head/ref"),
        ("pull_request", "/sender"),
        ("repository", "/repository/topics"),
        ("repository", "/repository/archived"),
        ("repository", "/repository/default_branch"),
        ("repository", "/repository/owner"),
        ("repository", "/sender"),
        ("installation", "/repositories"),
        ("installation_repositories", "/repositories_added"),
        ("installation_repositories", "/repositories_removed"),
        ("member", "/repository"),
        ("merge_group", "/sender"),
    ] {
        let mut seen = 0;
        for (_, mut payload) in examples().into_iter().filter(|(name, _)| name == event) {
            let Some(field) = payload.pointer_mut(path) else { continue };
            *field = Value::Null;
            seen += 1;
            let said = read(event, &payload);
            assert!(!said.is_empty() || event == "installation_repositories", "{event} {path}");
        }
        assert!(seen > 0 || path.contains("commits"), "no example of {event} has {path}");
    }
}

#[test]
fn form_encoding_is_told_apart_from_garbage() {
    let Err(error) = events("push", b"payload=%7B%22ref%22%3A+%22refs%2Fheads%2Fmain%22%7D") else { panic!("read") };
    assert!(format!("{error:?}").contains("application/json"), "{error:?}");
    let text = of_a_ghost().to_string();
    for cut in [0, 1, text.len() / 2, text.len() - 1] {
        assert!(events("pull_request", &text.as_bytes()[..cut]).is_err(), "{cut}");
    }
}
