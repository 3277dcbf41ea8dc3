//! Names of projects: parts of addresses below `/ci/` and of file names of tools. Start at [`for_repository`],
//! [`for_git_url`] and [`for_folder`]: whatever a repository, URL or folder is called, there is a name for it.
//!
//! A name is 1 to 6 parts with `/` between, each of ASCII letters, digits, `.`, `_` and `-`, not beginning with `.` or `-`.
//! What cannot stand in one is left out or cut, and a short hash of the whole is put behind instead, so that two things
//! that are called differently keep different names.

use sha2::{Digest as _, Sha256};
use url::Url;

/// Longest name, in bytes.
pub const BYTES_MAX: usize = 200;
/// Most parts.
pub const PARTS_MAX: usize = 6;
/// First parts that would hide a page.
pub const RESERVED: &[&str] = &["assets", "build", "eval", "events", "login", "nodes", "queue", "settings"];
/// How many numbered names are tried after the plain ones.
const NUMBERED: std::ops::RangeInclusive<u32> = 2..=9;
/// What is kept of a text that cannot be a part as it is, in bytes.
const KEPT_BYTES: usize = 40;
/// Digits of the hashes.
const HASH_DIGITS: usize = 8;

/// Whether a project may be called so.
pub fn is_valid(name: &str) -> bool {
    let parts = name.split('/');
    name.len() <= BYTES_MAX
        && parts.clone().count() <= PARTS_MAX
        && parts.clone().all(is_part)
        && !parts.clone().next().is_some_and(|first| RESERVED.contains(&first))
}

/// Names that a repository's project may get, the best first: as the forge calls it; with the forge's name before it; with
/// a number behind that.
pub fn for_repository(forge: &str, full_name: &str) -> Vec<String> {
    let plain = join(full_name.split('/'));
    let qualified = join([forge].into_iter().chain(full_name.split('/')));
    let mut names = vec![plain, qualified.clone()];
    names.extend(NUMBERED.map(|number| format!("{qualified}-{number}")));
    names.retain(|name| is_valid(name));
    names
}

/// Name for a plain git repository: its server and path, without `.git`.
pub fn for_git_url(url: &Url) -> String {
    let server = match (url.host_str(), url.port()) {
        (Some(host), Some(port)) => format!("{host}:{port}"),
        (Some(host), None) => host.to_owned(),
        (None, _) => url.scheme().to_owned(),
    };
    let path = url.path().trim_end_matches('/');
    let path = path.strip_suffix(".git").filter(|rest| !rest.is_empty() && !rest.ends_with('/')).unwrap_or(path);
    let whole = url.query().map_or_else(|| path.to_owned(), |query| format!("{path}?{query}"));
    let parts = || whole.split('/').filter(|part| !part.is_empty());
    let name = join([server.as_str()].into_iter().chain(parts()));
    if is_valid(&name) { name } else { join(["git", server.as_str()].into_iter().chain(parts())) }
}

/// Name for a folder of somebody's machine: what it is called, below `local/`. `within`: the folder of its flake in it, if
/// that is not the folder itself.
pub fn for_folder(folder: &str, within: &str) -> String {
    join(["local", folder].into_iter().chain(within.split('/').filter(|part| !part.is_empty())))
}

/// The name beside `name` for what is called the same and is not the same; `key` says which it is.
pub fn beside(name: &str, key: &str) -> String {
    let hash = hash_of(key);
    let folded = [name, "-", &hash].concat();
    if is_valid(&folded) { folded } else { join(["local", &folded]) }
}

fn is_part(part: &str) -> bool {
    part.starts_with(|first: char| first.is_ascii_alphanumeric() || first == '_')
        && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

/// One name of these parts, the middle left out where they are too many or too long.
fn join<'a>(parts: impl IntoIterator<Item = &'a str>) -> String {
    let texts: Vec<&str> = parts.into_iter().collect();
    let parts: Vec<String> = texts.iter().map(|text| as_part(text)).collect();
    let name = parts.join("/");
    if parts.len() <= PARTS_MAX && name.len() <= BYTES_MAX {
        return name;
    }
    let whole = texts.join("/");
    let last = shortened(texts.last().copied().unwrap_or_default(), &whole);
    let mut kept: Vec<&str> = parts.iter().take(parts.len() - 1).take(PARTS_MAX - 2).map(String::as_str).collect();
    while kept.len() > 1 && kept.iter().map(|part| part.len() + 1).sum::<usize>() + last.len() > BYTES_MAX {
        kept.pop();
    }
    kept.push(&last);
    kept.join("/")
}

/// A text as a part of a name: itself, where it can be that.
fn as_part(text: &str) -> String {
    let hidden = text.strip_prefix(['.', '-']).is_some_and(|rest| is_part(&["_", rest].concat()));
    if text.len() > KEPT_BYTES * 2 {
        shortened(text, text)
    } else if is_part(text) && !text.starts_with("_.") && !text.starts_with("_-") {
        text.to_owned()
    } else if hidden {
        ["_", text].concat()
    } else {
        shortened(text, text)
    }
}

/// What can be kept of a text, and a hash of `whole`.
fn shortened(text: &str, whole: &str) -> String {
    let mut kept = String::new();
    for character in text.chars() {
        if kept.len() >= KEPT_BYTES {
            break;
        } else if character.is_ascii_alphanumeric() || "._-".contains(character) {
            kept.push(character);
        } else if !kept.ends_with('-') {
            kept.push('-');
        }
    }
    let kept = kept.trim_start_matches(['.', '-']).trim_end_matches('-');
    let kept = if kept.is_empty() { "unnamed" } else { kept };
    [kept, "-", &hash_of(whole)].concat()
}

fn hash_of(text: &str) -> String {
    let digest = Sha256::digest(text.as_bytes());
    let digit = |nibble: u8| char::from_digit(u32::from(nibble), 16).unwrap_or_default();
    digest.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).take(HASH_DIGITS).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn repositories_have_names_to_choose_from() {
        let names = for_repository("forge", "owner/thing");
        assert_eq!(names[..3], ["owner/thing", "forge/owner/thing", "forge/owner/thing-2"]);
        assert_eq!(names.len(), 10);
        // A page is not hidden, nor a hidden folder made.
        assert_eq!(for_repository("f", "settings/x")[0], "f/settings/x");
        assert_eq!(for_repository("f", "o/.profile")[0], "o/_.profile");
        let deep = for_repository("f", "a/b/c/d/e/f/g/site");
        assert!(
            deep[0].starts_with("a/b/c/d/site-") && deep[0] != for_repository("f", "a/b/c/d/x/site")[0],
            "{deep:?}"
        );
        for name in ["..", "../x", "o/../x", "", "/", "-o/x", "\u{0}", "ü/ü", &"x/".repeat(300)] {
            let names = for_repository("f", name);
            assert!(!names.is_empty() && names.iter().all(|name| is_valid(name)), "{name:?}: {names:?}");
        }
    }

    #[test]
    fn git_urls_have_a_name() {
        for (url, name) in [
            ("https://example.org/group/thing.git", "example.org/group/thing"),
            ("https://example.org/thing", "example.org/thing"),
            ("ssh://git@example.org/a/b/c.git/", "example.org/a/b/c"),
            ("file:///srv/repos/x", "file/srv/repos/x"),
            ("https://example.org/a/.git", "example.org/a/_.git"),
            ("https://login/x", "git/login/x"),
        ] {
            assert_eq!(for_git_url(&Url::parse(url).expect("URL")), name, "{url}");
        }
        let odd = [
            "https://git.sr.ht/~user/repo",
            "https://git.sr.ht/-user/repo",
            "https://git.sr.ht/user/repo",
            "https://git.sr.ht:8443/user/repo",
            "https://git.sr.ht/user/repo?x=1",
            "file:///r/per%20cent.git",
            "file:///r/per%2520cent.git",
            "file:///group/sub/sub/sub/sub/sub/site.git",
            "file:///group/sub/sub/sub/sub/site.git",
        ]
        .map(|url| for_git_url(&Url::parse(url).expect("URL")));
        assert!(odd.iter().all(|name| is_valid(name)), "{odd:?}");
        assert_eq!(odd.iter().collect::<BTreeSet<_>>().len(), odd.len(), "{odd:?}");
    }

    #[test]
    fn folders_have_a_name() {
        for (folder, within, name) in [
            ("site", "", "local/site"),
            ("site", "sub/deep", "local/site/sub/deep"),
            ("ends.", "", "local/ends."),
            (".hidden", "", "local/_.hidden"),
            ("-dash", "", "local/_-dash"),
        ] {
            assert_eq!(for_folder(folder, within), name);
        }
        let long = "n".repeat(220);
        let odd =
            ["überflake", "äberflake", "名前", "with space", "with_space", "a\"b", "_.hidden", &long, &long[1..], ""];
        let odd = odd.map(|folder| for_folder(folder, ""));
        assert!(odd.iter().all(|name| is_valid(name)), "{odd:?}");
        assert_eq!(odd.iter().collect::<BTreeSet<_>>().len(), odd.len(), "{odd:?}");
        assert!(odd[0].starts_with("local/berflake-") && odd[2].starts_with("local/unnamed-"), "{odd:?}");
    }

    #[test]
    fn there_is_a_name_beside_every_name() {
        let (one, other) = (beside("local/site", "here"), beside("local/site", "there"));
        assert!(one.starts_with("local/site-") && one != other && is_valid(&one), "{one} {other}");
        let longest = for_folder(&"n".repeat(80), &["x".repeat(80).as_str(), "y"].join("/"));
        assert!(is_valid(&beside(&longest, "here")), "{longest}");
    }

    proptest! {
        #[test]
        fn every_folder_and_every_url_has_a_name(folder in ".{0,300}", within in "(.{0,30}/){0,9}", path in "[!-~]{0,300}") {
            prop_assert!(is_valid(&for_folder(&folder, &within)));
            for name in for_repository(&folder, &within) {
                prop_assert!(is_valid(&name));
            }
            if let Ok(url) = Url::parse(&["https://example.org/", &path].concat()) {
                prop_assert!(is_valid(&for_git_url(&url)), "{}", for_git_url(&url));
            }
        }
    }
}
