use proptest::prelude::*;

use super::*;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

fn request() -> NewEvaluation {
    NewEvaluation {
        project: "local/demo".into(),
        source: Source::Bundle { bundle: 7 },
        commit: Some(COMMIT.into()),
        branch: Some("main".into()),
        attrs: None,
        dirty: false,
        title: None,
        author: None,
    }
}

#[test]
fn a_good_request_passes_unchanged() {
    let mut new = request();
    new.title = Some("\n  Add a <b>thing</b>\u{7}\nmore".into());
    new.author = Some("A. U. Thor".into());
    let checked = check(new).expect("valid");
    assert_eq!(checked.project, "local/demo");
    assert_eq!(checked.title.as_deref(), Some("Add a <b>thing</b>"));
    assert_eq!(checked.author.as_deref(), Some("A. U. Thor"));
}

#[test]
fn project_names() {
    for good in ["a", "local/NAME", "github/owner/repo.git", "x_y-z.1", "local/build", "local/eval", "_x", "0"] {
        assert_eq!(check_project(good), Ok(()), "{good}");
    }
    let long = "a".repeat(201);
    for bad in [
        "",
        "/",
        "a/",
        "/a",
        "a//b",
        "..",
        "a/../b",
        ".a",
        "-a",
        "a b",
        "a%2fb",
        "ä",
        "a\0",
        "a/b/c/d/e/f/g",
        "<b>",
        &long,
    ] {
        assert!(matches!(check_project(bad), Err(InvalidEvaluation::Project(_))), "{bad}");
    }
    for reserved in project_name::RESERVED {
        assert!(matches!(check_project(reserved), Err(InvalidEvaluation::ProjectReserved(_))), "{reserved}");
        assert!(matches!(check_project(&format!("{reserved}/x")), Err(InvalidEvaluation::ProjectReserved(_))));
    }
}

#[test]
fn commits() {
    for good in [COMMIT, &COMMIT.to_uppercase(), &"a".repeat(64)] {
        assert_eq!(check_commit(good), Ok(good.to_lowercase()));
    }
    for bad in ["", "main", &COMMIT[1..], &format!("{COMMIT}0"), &"g".repeat(40), &"é".repeat(20)] {
        assert!(check_commit(bad).is_err(), "{bad}");
    }
    let mut new = request();
    new.commit = None;
    assert_eq!(check(new), Err(InvalidEvaluation::CommitMissing));
    let mut new = request();
    new.source = Source::Bundle { bundle: 0 };
    assert_eq!(check(new), Err(InvalidEvaluation::Bundle(0)));
}

#[test]
fn urls() {
    for good in [
        "https://example.org/a/b.git",
        "ssh://git@example.org/a/b",
        "ssh://git@example.org:2222/a",
        "git://example.org/a",
        "file:///srv/git/a",
        "https://[::1]:8080/a",
    ] {
        assert!(check_git_url(good).is_ok(), "{good}");
    }
    for bad in ["", "example.org/a", "http://example.org/a", "https://token@example.org/a", "file://host/a"] {
        assert!(matches!(check_git_url(bad), Err(InvalidEvaluation::Url { .. })), "{bad}");
    }
}

#[test]
fn attrs() {
    let list = |attrs: &[&str]| check_attrs(&attrs.iter().map(ToString::to_string).collect::<Vec<_>>());
    assert_eq!(list(&["checks.x86_64-linux", "\"a.b\".c", "ünïcode"]), Ok(()));
    assert_eq!(list(&[]), Err(InvalidEvaluation::AttrsEmpty));
    assert!(list(&[""]).is_err());
    assert!(list(&["a\u{1b}[31m"]).is_err());
    assert!(list(&[&"a".repeat(1_025)]).is_err());
    assert_eq!(check_attrs(&vec!["a".to_owned(); 1_001]), Err(InvalidEvaluation::AttrsTooMany));
}

#[test]
fn a_url_needs_no_branch_and_head_is_none() {
    let url = Source::Git { url: "https://example.org/a".into() };
    for branch in [None, Some("HEAD".to_owned())] {
        let mut new = request();
        (new.source, new.branch) = (url.clone(), branch.clone());
        assert_eq!(check(new).map(|checked| checked.branch), Ok(None));
        let mut new = request();
        new.branch.clone_from(&branch);
        let checked = check(new).map(|checked| checked.branch);
        assert_eq!(checked, branch.map(Some).ok_or(InvalidEvaluation::BranchMissing));
    }
    let mut new = request();
    new.branch = Some("a..b".into());
    assert!(matches!(check(new), Err(InvalidEvaluation::Branch(_))));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn any_request_is_answered_and_refusals_are_short(project in ".{0,300}", branch in ".{0,300}", url in ".{0,300}") {
        let mut new = request();
        new.project = project;
        new.branch = Some(branch);
        new.source = Source::Git { url };
        if let Err(error) = check(new) {
            prop_assert!(error.to_string().len() < 800);
        }
    }
}

#[test]
fn a_refusal_does_not_repeat_a_password() {
    for url in [
        "https://u:hunter2@h.example/a",
        "https://hunter2@h.example/a",
        "ssh://git:hunter2@h.example/a",
        "ftp://u:hunter2@h/a",
    ] {
        let error = check_git_url(url).expect_err(url).to_string();
        assert!(error.contains("git URL '") && !error.contains("hunter2"), "{error}");
    }
}
