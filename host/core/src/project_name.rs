//! Names of projects: parts of addresses below `/ci/` and of file names of tools. Start at [`for_repository`].
//!
//! A name is 1 to 6 parts with `/` between, each of ASCII letters, digits, `.`, `_` and `-`, not beginning with `.` or `-`.

/// Longest name, in bytes.
pub const BYTES_MAX: usize = 200;
/// Most parts.
pub const PARTS_MAX: usize = 6;
/// First parts that would hide a page.
pub const RESERVED: &[&str] = &["assets", "build", "eval", "events", "login", "nodes", "queue", "settings"];
/// How many numbered names are tried after the plain ones.
const NUMBERED: std::ops::RangeInclusive<u32> = 2..=9;

/// Whether a project may be called so.
pub fn is_valid(name: &str) -> bool {
    let parts = name.split('/');
    name.len() <= BYTES_MAX
        && parts.clone().count() <= PARTS_MAX
        && parts.clone().all(is_part)
        && !parts.clone().next().is_some_and(|first| RESERVED.contains(&first))
}

/// Names that a repository's project may get, the best first: as the forge calls it; with the forge's name before it; with
/// a number behind that. What the alphabet lacks becomes `-`.
pub fn for_repository(forge: &str, full_name: &str) -> Vec<String> {
    let plain: Vec<String> = full_name.split('/').map(as_part).collect();
    let qualified = [as_part(forge), plain.join("/")].join("/");
    let mut names = vec![plain.join("/"), qualified.clone()];
    names.extend(NUMBERED.map(|number| format!("{qualified}-{number}")));
    names.retain(|name| is_valid(name));
    names
}

/// Name for a plain git repository: the last two parts of its path, without `.git`, below `git/`.
pub fn for_git_url(url: &str) -> Option<String> {
    let path = url.split_once("://").map_or(url, |(_, rest)| rest);
    let path = path.split(['?', '#']).next().unwrap_or_default().trim_end_matches('/');
    let (_, path) = path.split_once('/')?;
    let mut parts = path.split('/').filter(|part| !part.is_empty()).rev();
    let last = parts.next()?;
    let last = last.strip_suffix(".git").filter(|rest| !rest.is_empty()).unwrap_or(last);
    let name = match parts.next() {
        Some(before) => ["git", &as_part(before), &as_part(last)].join("/"),
        None => ["git", &as_part(last)].join("/"),
    };
    is_valid(&name).then_some(name)
}

fn is_part(part: &str) -> bool {
    part.starts_with(|first: char| first.is_ascii_alphanumeric() || first == '_')
        && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

fn as_part(text: &str) -> String {
    let allowed = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
    let part: String = text.chars().map(allowed).collect();
    if part.starts_with(['.', '-']) || part.is_empty() { format!("_{part}") } else { part }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories_have_names_to_choose_from() {
        let names = for_repository("forge", "owner/thing");
        assert_eq!(names[..3], ["owner/thing", "forge/owner/thing", "forge/owner/thing-2"]);
        assert_eq!(names.len(), 10);
        // A page is not hidden, nor a hidden folder made.
        assert_eq!(for_repository("f", "settings/x")[0], "f/settings/x");
        assert_eq!(for_repository("f", "o/.profile")[0], "o/_.profile");
        assert_eq!(for_repository("f", "group/sub group/ü")[0], "group/sub-group/-".replace("/-", "/_-"));
        assert!(for_repository("f", &"x/".repeat(9)).is_empty(), "nothing that is too deep");
        for name in ["..", "../x", "o/../x", "", "/", "-o/x", "\u{0}"] {
            assert!(for_repository("f", name).iter().all(|name| is_valid(name)), "{name:?}");
        }
    }

    #[test]
    fn git_urls_have_a_name() {
        for (url, name) in [
            ("https://example.org/group/thing.git", Some("git/group/thing")),
            ("https://example.org/thing", Some("git/thing")),
            ("ssh://git@example.org:22/a/b/c.git/", Some("git/b/c")),
            ("file:///srv/repos/x", Some("git/repos/x")),
            ("https://example.org/a/.git", Some("git/a/_.git")),
            ("https://example.org/", None),
            ("https://example.org", None),
        ] {
            assert_eq!(for_git_url(url).as_deref(), name, "{url}");
        }
    }
}
