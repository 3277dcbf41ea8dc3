//! Which commits came before, and whether the files that a project calls relevant changed since. Start at [`ancestors`] and
//! [`touches`]; both ask the mirror that the commit was fetched into, and nothing else.

use super::{Git, GitError, GitSources, check_commit, mirrors};
use crate::git::Transports;

/// Exit status of `git diff --quiet` when there are differences.
const DIFFERS: i32 = 1;
/// Files that decide what is built, whatever globs say.
const CONFIGURATION: [&str; 2] =
    [harmonia_core::project_config::FILE_NAME, harmonia_core::project_config::COMPAT_FILE_NAME];

/// The first parents before a commit that was fetched from `url`, nearest first.
pub(crate) async fn ancestors(
    sources: &GitSources,
    url: &str,
    commit: &str,
    max: usize,
) -> Result<Vec<String>, GitError> {
    check_commit(commit)?;
    let count = format!("--max-count={}", max + 1);
    let arguments = ["rev-list", "--first-parent", &count, "--end-of-options", commit];
    let listed = in_mirror(sources, url, "rev-list", &arguments).await?;
    Ok(listed.lines().skip(1).map(str::to_owned).collect())
}

/// Whether a file that one of the globs names, or the configuration itself, differs between two commits.
pub(crate) async fn touches(
    sources: &GitSources,
    url: &str,
    from: &str,
    to: &str,
    globs: &[String],
) -> Result<bool, GitError> {
    check_commit(from)?;
    check_commit(to)?;
    // "glob" is all the magic that a pattern may have.
    let patterns: Vec<String> = globs.iter().map(|glob| format!(":(glob){glob}")).collect();
    let mut arguments = vec!["diff", "--quiet", "--no-ext-diff", "--no-textconv", "--no-renames", from, to, "--"];
    arguments.extend(patterns.iter().map(String::as_str).chain(CONFIGURATION));
    match in_mirror(sources, url, "diff", &arguments).await {
        Ok(_) => Ok(false),
        Err(GitError::Failed { status: Some(DIFFERS), .. }) => Ok(true),
        Err(error) => Err(error),
    }
}

async fn in_mirror(
    sources: &GitSources,
    url: &str,
    command: &'static str,
    arguments: &[&str],
) -> Result<String, GitError> {
    // With or without a credential, whichever is there: it was fetched a moment ago.
    for private in [true, false] {
        let mirror = sources.mirrors.enter(&mirrors::name(private, url)).await;
        if mirror.path().exists() {
            let git = Git {
                program: &sources.git,
                repository: mirror.path(),
                transports: Transports::None,
                authorization: None,
                way: None,
            };
            match git.run(command, arguments).await {
                Err(GitError::Failed { status, .. }) if status != Some(DIFFERS) => {}
                answer => return answer,
            }
        }
    }
    Err(GitError::Failed { command, status: None, message: "no mirror has these commits".to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluator::source::tests::Repositories;
    use crate::evaluator::source::{Origin, Wanted, checkout};

    #[tokio::test]
    async fn globs_say_what_counts_as_a_change() {
        let world = Repositories::new();
        let dir = world.create("repo");
        let mut commits = Vec::new();
        for (file, text) in
            [("src/deep/a.rs", "1"), ("docs/a.md", "2"), ("flake.nix", "3"), (".harmonia-ci.toml", "attrs = []\n")]
        {
            let file = dir.join(file);
            std::fs::create_dir_all(file.parent().expect("within")).expect("directory");
            std::fs::write(file, text).expect("file");
            commits.push(world.commit("repo", "title"));
        }
        let Origin::Url(url) = world.url("repo") else { unreachable!() };
        let (sources, last) = (world.sources(true), commits[3].as_str());
        let wanted = Wanted { commit: Some(last), branch: "main", ..Wanted::default() };
        checkout(&sources, &Origin::Url(url.clone()), &wanted).await.expect("checks out");
        let before = ancestors(&sources, &url, last, 2).await.expect("lists");
        assert_eq!(before, [commits[2].clone(), commits[1].clone()]);
        assert_eq!(ancestors(&sources, &url, &commits[0], 9).await.expect("lists"), Vec::<String>::new());

        for (from, to, globs, expected) in [
            (0, 1, &["src/**", "flake.*"][..], false), // docs only
            (0, 1, &["docs/*"], true),
            (0, 1, &["docs"], true),
            (0, 1, &["*"], false), // no slash
            (0, 1, &["**"], true),
            (0, 2, &["src/**", "flake.*"], true),
            (1, 2, &["src/**"], false),
            (1, 2, &[":(exclude)src", "--output=x", "!flake.nix"], false), // names of files, and nothing else
            (2, 3, &["src/**"], true),                                     // what is built may be another thing
            (3, 3, &["**"], false),
        ] {
            let globs: Vec<String> = globs.iter().map(ToString::to_string).collect();
            let touched = touches(&sources, &url, &commits[from], &commits[to], &globs).await.expect("compares");
            assert_eq!(touched, expected, "{from} {to} {globs:?}");
        }
        let unknown = touches(&sources, &url, &"0".repeat(40), last, &["**".to_owned()]).await;
        assert!(unknown.is_err(), "{unknown:?}");
    }
}
