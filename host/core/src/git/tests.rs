use std::process::Command;

use proptest::prelude::*;

use super::*;

fn git_allows(name: &str) -> bool {
    let status = Command::new("git").arg("check-ref-format").arg(format!("refs/heads/{name}")).status();
    status.expect("git runs").success()
}

#[test]
fn ref_names_are_those_of_git() {
    let names = [
        "main",
        "a/b",
        "feature/x.y",
        "ä",
        "a@b",
        "@",
        "HEAD",
        "a.lock",
        "a.lock/b",
        "a.locks",
        ".a",
        "a/.b",
        "a..b",
        "a.",
        "a./b",
        "/a",
        "a/",
        "a//b",
        "a@{b",
        "{",
        "}",
        "a b",
        "a~",
        "a^",
        "a:",
        "a?",
        "a*",
        "a[",
        "a]",
        "a\\",
        "a\u{7f}",
        "a\u{1}",
        "<script>",
        "a'b\"c",
        "a&b",
        "refs/heads/x",
        "a\u{a0}b",
        "feat/#42-größe%41&x=1+'q'",
        "gh-readonly-queue/main/pr-1",
    ];
    for name in names {
        assert_eq!(check_ref_name(name).is_ok(), git_allows(name), "{name:?}");
    }
    assert!(check_ref_name("").is_err());
    assert!(check_ref_name("-a").is_err(), "git's porcelain refuses it as well");
    assert!(check_ref_name(&"a".repeat(REF_NAME_BYTES_MAX)).is_ok());
    let refused = check_ref_name(&"a\u{1b}".repeat(REF_NAME_BYTES_MAX)).expect_err("too long");
    assert!(refused.to_string().len() < 1_000 && !refused.to_string().contains('\u{1b}'), "{refused}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn random_ref_names_are_judged_as_git_does(name in "[a-c./@{~:*\\[ é^?\\\\]{1,8}(\\.lock)?") {
        prop_assume!(!name.starts_with('-'));
        prop_assert_eq!(check_ref_name(&name).is_ok(), git_allows(&name), "{:?}", name);
    }

    #[test]
    fn whatever_is_typed_is_a_path_a_location_or_a_short_refusal(text in "(git\\+)?(https|file|ssh|x)?:?/{0,3}.{0,300}") {
        if let Err(flaw) = parse_location(&text) {
            prop_assert!(flaw.to_string().len() < 1_200, "{}", flaw);
        }
    }
}

#[test]
fn urls_that_git_may_see() {
    for good in [
        "https://example.org/a/b.git",
        "ssh://git@example.org/a/b",
        "ssh://git@example.org:2222/a",
        "git://example.org/a",
        "file:///srv/git/a",
        "file:///srv/~user/per%20cent.git",
        "https://[::1]:8080/a",
    ] {
        assert!(check_url(good, ASKED_SCHEMES).is_ok(), "{good}");
    }
    let long = format!("https://example.org/{}", "a".repeat(URL_BYTES_MAX));
    for (bad, flaw) in [
        ("", UrlFlaw::NoUrl),
        ("example.org/a", UrlFlaw::NoUrl),
        ("/etc", UrlFlaw::NoUrl),
        ("--upload-pack=x", UrlFlaw::NoUrl),
        ("git@example.org:a/b", UrlFlaw::NoUrl),
        ("http://example.org/a", UrlFlaw::Scheme),
        ("ext::sh -c id", UrlFlaw::Characters),
        ("ext::sh", UrlFlaw::Scheme),
        ("ext://x/y", UrlFlaw::Scheme),
        ("fd::3", UrlFlaw::Scheme),
        ("javascript:alert(1)", UrlFlaw::Scheme),
        ("https:example.org/a", UrlFlaw::Scheme),
        ("https://user:secret@example.org/a", UrlFlaw::Credentials),
        ("https://token@example.org/a", UrlFlaw::Credentials),
        ("ssh://git:secret@example.org/a", UrlFlaw::Credentials),
        ("ssh://-oProxyCommand=id/a", UrlFlaw::Dash),
        ("ssh://-x@example.org/a", UrlFlaw::Dash),
        ("ssh://%2doProxyCommand/a", UrlFlaw::Dash),
        ("file://host/a", UrlFlaw::FileHost),
        ("https://example.org", UrlFlaw::NoPath),
        ("https://example.org/a\nb", UrlFlaw::Characters),
        ("https://example.org/a\tb", UrlFlaw::Characters),
        ("https://exämple.org/a", UrlFlaw::Characters),
        (&long, UrlFlaw::TooLong),
    ] {
        assert_eq!(check_url(bad, ASKED_SCHEMES), Err(flaw), "{bad}");
    }
    assert!(check_url("http://example.org/a", FETCHED_SCHEMES).is_ok());
    assert_eq!(check_url("file:///etc", &["https", "http"]), Err(UrlFlaw::OwnMachine));
}

#[test]
fn what_is_typed_is_a_path_or_a_url_with_a_branch() {
    for path in [".", "./x", "/tmp/x", "x#y", "checks", "git+x", "C:\\x"] {
        assert_eq!(parse_location(path), Ok(None), "{path}");
    }
    for (text, url, branch) in [
        ("git+https://example.org/a/b.git#dev", "https://example.org/a/b.git", Some("dev")),
        ("https://example.org/a", "https://example.org/a", None),
        ("https://example.org/a#HEAD", "https://example.org/a", None),
        ("file:///x#feat/#42-größe%41&x=1+'q'", "file:///x", Some("feat/#42-größe%41&x=1+'q'")),
    ] {
        let found = Location { url: url.to_owned(), branch: branch.map(str::to_owned) };
        assert_eq!(parse_location(text), Ok(Some(found)), "{text}");
    }
    for (text, words) in [
        ("https://example.org/a#", "no branch"),
        ("https://example.org/a#-x", "'-x' is not a name that git allows"),
        ("https://example.org/a#a..b", "'a..b' is not a name that git allows"),
        ("ftp://example.org/x", "its scheme"),
        ("ext::sh://x", "its scheme"),
        (
            "https://user:secret@example.org/x",
            "git URL 'https://…@example.org/x' is not allowed: it contains credentials",
        ),
    ] {
        let flaw = parse_location(text).expect_err(text).to_string();
        assert!(flaw.contains(words) && !flaw.contains("secret") && !flaw.contains('\n'), "{text}: {flaw}");
    }
}

#[test]
fn submodules_are_where_git_says() {
    let origin = |url: &str| Url::parse(url).expect("URL");
    for (from, written, url) in [
        ("https://h.org/acme/site.git", "../lib.git", Some("https://h.org/acme/lib.git")),
        ("https://h.org/acme/site.git/", "../../other/lib", Some("https://h.org/other/lib")),
        ("https://h.org/acme/site", "./lib", Some("https://h.org/acme/site/lib")),
        ("https://h.org/acme/site", ".././lib", Some("https://h.org/acme/lib")),
        ("https://h.org/site", "../../lib", None),
        ("file:///srv/a/site", "../lib.git", Some("file:///srv/a/lib.git")),
        ("ssh://git@h.org/a/b", "../c", Some("ssh://git@h.org/a/c")),
        ("https://h.org/acme/site", "https://x.org/y", Some("https://x.org/y")),
        ("https://h.org/acme/site", "/srv/x", Some("/srv/x")),
    ] {
        assert_eq!(submodule_url(&origin(from), written).as_deref(), url, "{written} of {from}");
    }
    for (from, written, url) in [
        ("https://h.org/acme/site", "git@h.org:acme/lib.git", Some("https://h.org/acme/lib.git")),
        ("https://h.org/acme/site", "ssh://git@h.org/acme/lib.git", Some("https://h.org/acme/lib.git")),
        ("https://h.org/acme/site", "git@x.org:acme/lib.git", None),
        ("https://h.org/acme/site", "root@h.org:acme/lib.git", None),
        ("ssh://git@h.org/acme/site", "git@h.org:acme/lib.git", None),
        ("https://h.org/acme/site", "https://h.org/x", None),
    ] {
        assert_eq!(over_http(&origin(from), written).as_deref(), url, "{written} of {from}");
    }
}

#[test]
fn hashes_are_full_and_in_lower_case() {
    for (text, is) in [
        ("a".repeat(40), true),
        ("0".repeat(64), true),
        ("A".repeat(40), false),
        ("g".repeat(40), false),
        ("a".repeat(41), false),
        ("é".repeat(20), false),
        ("HEAD".to_owned(), false),
    ] {
        assert_eq!(is_commit(&text), is, "{text}");
    }
}
