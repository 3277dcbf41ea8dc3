//! What is asked of an engine, and what becomes of values that are no derivations. Start at [`Task`]. Pure.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::hash::{BuildHasher as _, RandomState};

use harmonia_core::project_config::{AttrName, nearest_name, print_attr_path};
use serde::de::DeserializeOwned;

use super::{ATTRS_MAX, DEPTH_MAX};

/// Outputs in which Nix wants derivations.
const OUTPUTS_OF_DERIVATIONS: [&str; 4] = ["checks", "packages", "devShells", "formatter"];
/// Names that a sentence lists.
const LISTED_MAX: usize = 12;
/// Longest name in such a list, in characters.
const LISTED_CHARS_MAX: usize = 60;

/// An attribute to be evaluated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Task {
    /// Its path.
    pub(crate) path: Vec<String>,
    /// Somebody named it: it is looked into whatever it says, and it must be something to build.
    pub(crate) is_named: bool,
    /// Not to be asked whether it is a derivation: that cannot be evaluated.
    pub(super) is_set: bool,
    /// A process ended at it, and what others did there before may be the reason: it is to be tried first thing in another.
    pub(super) has_died: bool,
}

impl Task {
    /// What somebody asked for.
    pub(crate) fn named(path: Vec<String>) -> Self {
        Self { path, is_named: true, is_set: false, has_died: false }
    }

    /// What was found.
    pub(crate) fn found(path: Vec<String>) -> Self {
        Self { path, is_named: false, is_set: false, has_died: false }
    }
}

/// Which paths were seen: their hashes, of 128 bits under keys that nobody knows, which take a tenth of the memory.
#[derive(Debug, Default)]
pub(super) struct PathSet {
    keys: [RandomState; 2],
    hashes: HashSet<[u64; 2]>,
}

impl PathSet {
    /// Whether it is new.
    pub(super) fn insert(&mut self, path: &[String]) -> bool {
        self.hashes.insert([0, 1].map(|half: usize| self.keys[half].hash_one(path)))
    }
}

/// Something that was asked for by name and is not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Missing {
    /// What was asked for.
    pub(crate) path: Vec<String>,
    /// How far it is there.
    pub(super) found: Vec<String>,
    /// The names there.
    pub(super) names: Vec<String>,
}

impl Missing {
    /// `the flake has no output 'package': it has checks, packages`
    pub(crate) fn sentence(&self) -> String {
        let asked = print_attr_path(&self.path);
        let names = listed(&self.names);
        let there = if self.found.is_empty() { "it".to_owned() } else { format!("'{}'", print_attr_path(&self.found)) };
        let what = if self.path.len() == 1 { "output" } else { "attribute" };
        let has = if names.is_empty() { "is empty".to_owned() } else { format!("has {names}") };
        let wanted = self.path.get(self.found.len()).map(String::as_str).unwrap_or_default();
        let hint = nearest_name(wanted, self.names.iter().map(String::as_str))
            .filter(|_| self.names.len() > LISTED_MAX)
            .map(|name| format!("; did you mean '{name}'?"))
            .unwrap_or_default();
        format!("the flake has no {what} '{asked}': {there} {has}{hint}")
    }
}

fn listed(names: &[String]) -> String {
    let short = |name: &String| {
        let text = print_attr_path(&[name]);
        if text.chars().count() <= LISTED_CHARS_MAX {
            text
        } else {
            text.chars().take(LISTED_CHARS_MAX).chain(['…']).collect()
        }
    };
    let mut text = names.iter().take(LISTED_MAX).map(short).collect::<Vec<_>>().join(", ");
    if names.len() > LISTED_MAX {
        let _ = write!(text, " and {} more", names.len() - LISTED_MAX);
    }
    text
}

/// What becomes of an attribute that is no derivation and no set to look into.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NoDerivation {
    /// Its error.
    Error(String),
    /// It is left out, and the evaluation says so.
    Warning(String),
    /// It is left out.
    Silent,
}

/// What becomes of a value of this type, as `builtins.typeOf` calls it.
pub(super) fn judge_value(task: &Task, kind: &str) -> NoDerivation {
    let name = task.path.last().map(String::as_str).unwrap_or_default();
    // A switch, and what makes a set a function or a text: nobody wants these built.
    if (name == "recurseForDerivations" && kind == "bool") || (name.starts_with("__") && task.path.len() > 3) {
        return NoDerivation::Silent;
    }
    let kind = match kind {
        "int" => "a number",
        "float" => "a number with a point",
        "bool" => "true or false",
        "string" => "a string",
        "path" => "a path",
        "list" => "a list",
        "lambda" => "a function",
        other => other,
    };
    let text = format!("{} is {kind}, not a derivation", shown(task));
    let must_be_one =
        task.is_named || task.path.first().is_some_and(|output| OUTPUTS_OF_DERIVATIONS.contains(&output.as_str()));
    if must_be_one && kind != "null" {
        NoDerivation::Error(format!("error: {text}"))
    } else {
        NoDerivation::Warning(format!("{text}: it is left out"))
    }
}

/// The error of a set that is not looked into.
pub(super) fn too_deep(task: &Task) -> String {
    format!(
        "error: {} is a set below {DEPTH_MAX} others, and no deeper is looked: does it contain itself? Name what is to be \
         built with 'attrs', or set recurseForDerivations = false in it",
        shown(task)
    )
}

/// The error of a set that an evaluation has no room for.
pub(super) fn too_many(task: &Task, members: usize) -> String {
    format!(
        "error: {} has {members} attributes, and an evaluation has at most {ATTRS_MAX}: name fewer with 'attrs', or set \
         recurseForDerivations = false in it",
        shown(task)
    )
}

/// The warning of a set in which there is nothing.
pub(super) fn empty(task: &Task) -> String {
    format!("{} is an empty set: there is nothing to build in it", shown(task))
}

fn shown(task: &Task) -> String {
    AttrName::of(&task.path).text
}

/// Members of a set: those to be evaluated, and the errors of those that cannot even be asked for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Members {
    pub(super) tasks: Vec<Task>,
    pub(super) refused: Vec<(Vec<String>, String)>,
}

impl Members {
    /// Of the names that an engine gave for the set at `path`; those in `asked` are evaluated anyway.
    pub(super) fn of(path: &[String], names: Vec<String>, is_utf8: bool, asked: &HashSet<Vec<String>>) -> Self {
        let mut members = Self::default();
        for (index, name) in names.into_iter().enumerate() {
            let is_broken = !is_utf8 && name.contains('\u{fffd}');
            // Different ones may look the same.
            let name = if is_broken { format!("{name}#{index}") } else { name };
            let path: Vec<String> = path.iter().cloned().chain([name]).collect();
            if is_broken {
                members.refused.push((path, "error: the name of this attribute is not UTF-8".to_owned()));
            } else if let Some(problem) = AttrName::of(&path).problem() {
                members.refused.push((path, format!("error: {problem}")));
            } else if !asked.contains(&path) {
                members.tasks.push(Task::found(path));
            }
        }
        members
    }
}

/// JSON of an engine, and whether it was UTF-8 throughout: names are whatever bytes an author likes.
pub(super) fn read_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<(T, bool), serde_json::Error> {
    let text = String::from_utf8_lossy(bytes);
    Ok((serde_json::from_str(&text)?, matches!(text, std::borrow::Cow::Borrowed(_))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(path: &[&str]) -> Task {
        Task::found(path.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn paths_are_seen_once() {
        let mut set = PathSet::default();
        let path = |text: &str| text.split('.').map(str::to_owned).collect::<Vec<_>>();
        assert!(set.insert(&path("a.bc")) && set.insert(&path("ab.c")) && set.insert(&path("a.b.c")));
        assert!(!set.insert(&path("ab.c")));
    }

    #[test]
    fn values_where_nix_wants_derivations_are_errors() {
        let strict = ["checks", "x86_64-linux", "a"];
        let loose = ["hydraJobs", "a"];
        for (path, kind, expected) in [
            (
                &strict[..],
                "list",
                NoDerivation::Error("error: checks.x86_64-linux.a is a list, not a derivation".to_owned()),
            ),
            (
                &strict,
                "null",
                NoDerivation::Warning("checks.x86_64-linux.a is null, not a derivation: it is left out".to_owned()),
            ),
            (
                &loose,
                "lambda",
                NoDerivation::Warning("hydraJobs.a is a function, not a derivation: it is left out".to_owned()),
            ),
            (&["checks", "x86_64-linux", "recurseForDerivations"], "bool", NoDerivation::Silent),
            (&["checks", "x86_64-linux", "a", "__functor"], "lambda", NoDerivation::Silent),
        ] {
            assert_eq!(judge_value(&task(path), kind), expected);
        }
        for output in OUTPUTS_OF_DERIVATIONS {
            assert!(matches!(judge_value(&task(&[output, "x86_64-linux"]), "string"), NoDerivation::Error(_)));
        }
        let named = Task { is_named: true, ..task(&loose) };
        assert!(matches!(judge_value(&named, "string"), NoDerivation::Error(_)), "somebody asked for it");
    }

    #[test]
    fn what_is_missing_is_named_with_what_is_there() {
        let texts = |texts: &[&str]| texts.iter().map(ToString::to_string).collect::<Vec<_>>();
        let missing = |path: &[&str], found: &[&str], names: Vec<String>| {
            Missing { path: texts(path), found: texts(found), names }.sentence()
        };
        assert_eq!(
            missing(&["package"], &[], texts(&["checks", "packages"])),
            "the flake has no output 'package': it has checks, packages"
        );
        assert_eq!(
            missing(&["checks", "x86_64-linux", "smal"], &["checks", "x86_64-linux"], texts(&["small"])),
            "the flake has no attribute 'checks.x86_64-linux.smal': 'checks.x86_64-linux' has small"
        );
        assert_eq!(missing(&["a", "b"], &["a"], Vec::new()), "the flake has no attribute 'a.b': 'a' is empty");
        let many: Vec<String> = (0..50).map(|index| format!("name-{index}")).chain(["small".to_owned()]).collect();
        let sentence = missing(&["x", "smal"], &["x"], many);
        assert!(sentence.contains("name-11 and 39 more; did you mean 'small'?"), "{sentence}");
    }

    #[test]
    fn names_that_cannot_be_asked_for_are_errors_of_their_own() {
        let (names, is_utf8) =
            read_json::<Vec<String>>(b"[\"a\xff\",\"a\xfe\",\"ok\",\"\xef\xbf\xbd\"]").expect("reads");
        let path = ["checks".to_owned()];
        let members = Members::of(&path, names, is_utf8, &HashSet::new());
        assert_eq!(members.tasks, [task(&["checks", "ok"])]);
        let refused: Vec<&str> = members.refused.iter().map(|(path, _)| path[1].as_str()).collect();
        assert_eq!(refused, ["a\u{fffd}#0", "a\u{fffd}#1", "\u{fffd}#3"]);
        // In a text that is UTF-8 that character is one like others.
        let (names, is_utf8) = read_json::<Vec<String>>("[\"\u{fffd}\"]".as_bytes()).expect("reads");
        assert_eq!(Members::of(&path, names, is_utf8, &HashSet::new()).tasks, [task(&["checks", "\u{fffd}"])]);

        let long = "a".repeat(1_017);
        let names = vec![long.clone(), long.clone() + "b", "asked".to_owned()];
        let asked = HashSet::from([vec!["checks".to_owned(), "asked".to_owned()]]);
        let members = Members::of(&path, names, true, &asked);
        assert_eq!(members.tasks, [task(&["checks", &long])]);
        assert!(members.refused[0].1.starts_with("error: the path of this attribute has 1025 bytes"));
    }
}
