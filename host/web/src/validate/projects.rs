//! Checks of projects' settings.

use harmonia_core::api::ProjectChanges;
use harmonia_core::branches::PATTERN_BYTES_MAX;
use harmonia_core::git::{self, RefNameFlaw};

use super::shorten;

/// Most patterns of one project.
const PATTERNS_MAX: usize = 50;
/// Longest time between two polls: a week.
const POLL_INTERVAL_S_MAX: u32 = 7 * 24 * 3600;
/// Largest weight of a project.
const SHARES_MAX: u32 = 1_000_000;

/// What is wrong with settings, for the one who sent them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSettings {
    /// As `git check-ref-format` sees it.
    #[error(transparent)]
    Branch(#[from] RefNameFlaw),
    /// Out of bounds.
    #[error("a poll interval of {0} s is not allowed: 0 (never) to 604800 (a week)")]
    PollInterval(u32),
    /// Out of bounds.
    #[error("{0} scheduling shares are not allowed: 1 to 1000000")]
    Shares(u32),
    /// Too many.
    #[error("more than 50 branch patterns are not allowed")]
    TooManyPatterns,
    /// One of them.
    #[error("branch pattern '{0}' is not allowed: 1 to 256 bytes without control characters")]
    Pattern(String),
}

/// A branch that is to be polled.
pub fn check_branch(branch: &str) -> Result<(), InvalidSettings> {
    Ok(git::check_ref_name(branch)?)
}

/// Seconds between two polls.
pub fn check_poll_interval(seconds: u32) -> Result<(), InvalidSettings> {
    if seconds <= POLL_INTERVAL_S_MAX { Ok(()) } else { Err(InvalidSettings::PollInterval(seconds)) }
}

/// Everything that is to be changed.
pub fn check_changes(changes: &ProjectChanges) -> Result<(), InvalidSettings> {
    changes.poll_interval_s.map_or(Ok(()), check_poll_interval)?;
    // Empty: whatever the remote's HEAD names.
    changes.default_branch.as_deref().filter(|branch| !branch.is_empty()).map_or(Ok(()), check_branch)?;
    if let Some(shares) = changes.scheduling_shares.filter(|shares| !(1..=SHARES_MAX).contains(shares)) {
        return Err(InvalidSettings::Shares(shares));
    }
    let patterns = changes.branch_patterns.as_deref().unwrap_or_default();
    if patterns.len() > PATTERNS_MAX {
        return Err(InvalidSettings::TooManyPatterns);
    }
    let is_good =
        |pattern: &str| (1..=PATTERN_BYTES_MAX).contains(&pattern.len()) && !pattern.chars().any(char::is_control);
    match patterns.iter().find(|pattern| !is_good(pattern)) {
        Some(bad) => Err(InvalidSettings::Pattern(shorten(bad))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_have_bounds() {
        assert_eq!(check_changes(&ProjectChanges::default()), Ok(()));
        let good = ProjectChanges {
            default_branch: Some(String::new()),
            poll_interval_s: Some(0),
            scheduling_shares: Some(1),
            branch_patterns: Some(vec!["v[0-9]*".to_owned()]),
            ..ProjectChanges::default()
        };
        assert_eq!(check_changes(&good), Ok(()));
        for bad in [
            ProjectChanges { default_branch: Some("-x".to_owned()), ..ProjectChanges::default() },
            ProjectChanges { poll_interval_s: Some(604_801), ..ProjectChanges::default() },
            ProjectChanges { scheduling_shares: Some(0), ..ProjectChanges::default() },
            ProjectChanges { branch_patterns: Some(vec![String::new()]), ..ProjectChanges::default() },
            ProjectChanges { branch_patterns: Some(vec!["a\nb".to_owned()]), ..ProjectChanges::default() },
            ProjectChanges { branch_patterns: Some(vec!["x".to_owned(); 51]), ..ProjectChanges::default() },
        ] {
            assert!(check_changes(&bad).is_err(), "{bad:?}");
        }
    }

    /// Names that core proposes are names that we take.
    #[test]
    fn proposed_names_are_allowed() {
        use harmonia_core::project_name;
        for name in ["o/x", "settings/x", "o/.x", "a/b/c/d", "ü/ü", "-/-", "o/..", "x"] {
            for proposed in project_name::for_repository("forge", name) {
                assert_eq!(crate::validate::check_project(&proposed), Ok(()), "{name}: {proposed}");
            }
        }
        for url in ["https://example.org/settings/x.git", "ssh://h/~user/-x"] {
            let proposed = project_name::for_git_url(&url::Url::parse(url).expect("URL"));
            assert_eq!(crate::validate::check_project(&proposed), Ok(()), "{url}: {proposed}");
        }
    }
}
