//! What a branch is to a project: start at [`BranchRules::class`].
//!
//! Patterns are globs over whole branch names: `*` is any text, also with `/` in it, `?` is one character, `[a-c]` and
//! `[!a-c]` are one of a set. So `release/*` means `release/1.0` and `release/1.0/hotfix`.

/// Branches of merge queues, unless configured otherwise: each state of them is tested once and merged or thrown away.
pub const MERGE_BRANCHES: [&str; 3] = ["gh-readonly-queue/*", "staging", "trying"];
/// Longer patterns match nothing, in bytes.
pub const PATTERN_BYTES_MAX: usize = 256;
/// Longer names match nothing but themselves, in bytes.
pub const NAME_BYTES_MAX: usize = crate::git::REF_NAME_BYTES_MAX;

/// What a branch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BranchClass {
    /// The default branch.
    Default,
    /// One of those that the project builds besides.
    Pattern,
    /// A merge queue's: its states are evaluated each for itself.
    MergeQueue,
    /// Not evaluated.
    Other,
}

/// What tells branches apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BranchRules {
    /// Name of the default branch.
    pub default_branch: String,
    /// Globs of further branches to build.
    pub patterns: Vec<String>,
    /// Globs of branches that merge queues write.
    pub merge_branches: Vec<String>,
}

impl BranchRules {
    /// What this branch is. The default branch is the default branch whatever it is called; a merge queue's branch stays
    /// one when a pattern names it too.
    pub fn class(&self, branch: &str) -> BranchClass {
        let any = |patterns: &[String]| patterns.iter().any(|pattern| glob_matches(pattern, branch));
        if branch.is_empty() {
            BranchClass::Other
        } else if branch == self.default_branch {
            BranchClass::Default
        } else if any(&self.merge_branches) {
            BranchClass::MergeQueue
        } else if any(&self.patterns) {
            BranchClass::Pattern
        } else {
            BranchClass::Other
        }
    }
}

impl BranchClass {
    /// Whether a newer evaluation of such a branch takes the place of older ones.
    pub const fn supersedes(self) -> bool {
        !matches!(self, Self::MergeQueue)
    }
}

/// Whether a glob means this name. Takes time proportional to the product of the lengths at most.
pub fn glob_matches(pattern: &str, name: &str) -> bool {
    if pattern.len() > PATTERN_BYTES_MAX || name.len() > NAME_BYTES_MAX {
        return pattern == name;
    }
    let pattern: Vec<char> = pattern.chars().collect();
    let name: Vec<char> = name.chars().collect();
    let (mut at, mut next) = (0, 0);
    // Where to go on when the text after the last `*` does not fit: that star takes one character more.
    let mut star: Option<(usize, usize)> = None;
    while next < name.len() {
        if pattern.get(at) == Some(&'*') {
            star = Some((at + 1, next));
            at += 1;
        } else if let Some(after) = one(&pattern, at, name[next]) {
            at = after;
            next += 1;
        } else if let Some((after_star, taken)) = star {
            at = after_star;
            next = taken + 1;
            star = Some((after_star, taken + 1));
        } else {
            return false;
        }
    }
    pattern[at..].iter().all(|rest| *rest == '*')
}

/// The place in the pattern after what means this one character.
fn one(pattern: &[char], at: usize, character: char) -> Option<usize> {
    match *pattern.get(at)? {
        '?' => Some(at + 1),
        '[' => match set(&pattern[at + 1..], character) {
            Some((true, length)) => Some(at + 1 + length),
            Some((false, _)) => None,
            // Without an end it is a bracket like any other character.
            None => (character == '[').then_some(at + 1),
        },
        literal => (literal == character).then_some(at + 1),
    }
}

/// Whether the set that begins here has the character, and its length with the closing bracket. `None`: it has no end.
fn set(pattern: &[char], character: char) -> Option<(bool, usize)> {
    let negated = matches!(pattern.first(), Some('!' | '^'));
    let first = usize::from(negated);
    // A bracket that comes first belongs to the set.
    let end = first + 1 + pattern.get(first + 1..)?.iter().position(|c| *c == ']')?;
    let mut members = &pattern[first..end];
    let mut found = false;
    while let Some(low) = members.first() {
        if let [low, '-', high, ..] = members {
            found |= (*low..=*high).contains(&character);
            members = &members[3..];
        } else {
            found |= *low == character;
            members = &members[1..];
        }
    }
    Some((found != negated, end + 1))
}

#[cfg(test)]
mod tests {
    use super::BranchClass::{Default, MergeQueue, Other, Pattern};
    use super::*;

    fn rules(default_branch: &str, patterns: &[&str]) -> BranchRules {
        BranchRules {
            default_branch: default_branch.to_owned(),
            patterns: patterns.iter().map(|p| (*p).to_owned()).collect(),
            merge_branches: MERGE_BRANCHES.iter().map(|p| (*p).to_owned()).collect(),
        }
    }

    #[test]
    fn default_branch_release_branches_configured_patterns_and_merge_queues_evaluate() {
        let rules = rules("main", &["release/*", "v[0-9].x"]);
        let cases = [
            ("main", Default),
            ("Main", Other),
            ("main2", Other),
            ("release/1.0", Pattern),
            ("release/1.0/hotfix", Pattern),
            ("release/", Pattern),
            ("release", Other),
            ("prerelease/1.0", Other),
            ("v1.x", Pattern),
            ("v11.x", Other),
            ("gh-readonly-queue/main/pr-7-0123abcd", MergeQueue),
            ("staging", MergeQueue),
            ("trying", MergeQueue),
            ("staging2", Other),
            ("feature/x", Other),
            ("", Other),
        ];
        for (branch, class) in cases {
            assert_eq!(rules.class(branch), class, "{branch}");
        }
    }

    #[test]
    fn branches_that_test_unique_merge_states_never_supersede() {
        let rules = rules("main", &["*"]);
        let cases = [
            ("main", true),
            ("anything", true),
            ("staging", false),
            ("trying", false),
            ("gh-readonly-queue/main/pr-1", false),
        ];
        for (branch, supersedes) in cases {
            assert_eq!(rules.class(branch).supersedes(), supersedes, "{branch}");
        }
        // A project whose default branch is called so does not merge through it.
        assert_eq!(self::rules("staging", &[]).class("staging"), Default);
    }

    #[test]
    fn the_list_of_merge_branches_is_configurable() {
        let rules = BranchRules { merge_branches: vec!["queue/*".to_owned()], ..rules("main", &["staging"]) };
        assert_eq!(rules.class("queue/1"), MergeQueue);
        assert_eq!(rules.class("staging"), Pattern);
        assert_eq!(rules.class("trying"), Other);
    }

    #[test]
    fn globs_match_whole_names() {
        let cases = [
            ("", "", true),
            ("", "a", false),
            ("*", "", true),
            ("*", "a/b/c", true),
            ("a*c", "abbbc", true),
            ("a*c", "abbbcd", false),
            ("*.x", "1.x.x", true),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("?", "ü", true),
            ("**", "x", true),
            ("a*b*c", "a-b-b-c", true),
            ("[a-c]x", "bx", true),
            ("[!a-c]x", "bx", false),
            ("[^a-c]x", "dx", true),
            ("[]]x", "]x", true),
            ("[a-]x", "-x", true),
            ("[abc", "[abc", true),
            ("[abc", "a", false),
            ("re*se/*", "release/1", true),
        ];
        for (pattern, name, matches) in cases {
            assert_eq!(glob_matches(pattern, name), matches, "{pattern} on {name}");
        }
    }

    #[test]
    fn a_hostile_pattern_costs_little() {
        let pattern = "*a".repeat(PATTERN_BYTES_MAX / 2);
        assert!(!glob_matches(&pattern, &"a".repeat(100)), "needs 128 of them");
        assert!(!glob_matches(&[&pattern[1..], "b"].concat(), &"a".repeat(NAME_BYTES_MAX)));
        let long = "*".repeat(PATTERN_BYTES_MAX + 1);
        assert!(!glob_matches(&long, "main"));
        assert!(glob_matches(&long, &long), "itself it always is");
    }
}
