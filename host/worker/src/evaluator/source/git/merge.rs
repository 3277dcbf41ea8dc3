//! A pull request's head merged onto its base, by us: a merge ref of the forge may already contain a later push.
//!
//! The merge is made in the bare mirror, without any working tree, so nothing of the repository runs. It is the same commit
//! whenever the same two commits are merged.

use harmonia_core::project_config::{Dialect, FILE_BYTES_MAX};

use super::{Git, GitError, MergeWanted, Merged, Wanted};

/// Name of the git command that merges, in errors.
pub(super) const COMMAND: &str = "merge-tree";
/// Its exit status when there are conflicts; its output then names them.
pub(super) const CONFLICTS: i32 = 1;

impl Git<'_> {
    /// The merge commit, and what was merged.
    pub(super) async fn fetch_and_merge(
        &self,
        url: &str,
        wanted: &Wanted<'_>,
        merge: &MergeWanted<'_>,
    ) -> Result<(String, Merged), GitError> {
        let head_ref = merge.head_ref.map_or_else(|| format!("refs/heads/{}", wanted.branch), str::to_owned);
        let head = self.fetch_url(url, wanted.commit, &head_ref, wanted.branch).await?;
        let base_ref = format!("refs/heads/{}", merge.base_branch);
        let base = match self.fetch_url(url, merge.base_commit, &base_ref, merge.base_branch).await {
            Err(GitError::NoCommit { .. }) => self.fetch_url(url, None, &base_ref, merge.base_branch).await?,
            other => other?,
        };
        let commit = self.merge(&head, &base, merge.base_branch).await?;
        let base_config = self.config_of(&base).await;
        Ok((commit, Merged { head, base, base_config }))
    }

    async fn merge(&self, head: &str, base: &str, base_branch: &str) -> Result<String, GitError> {
        let merged =
            self.run(COMMAND, ["merge-tree", "--write-tree", "--name-only", "--no-messages", "-z", base, head]).await;
        let tree = match merged {
            Ok(tree) => tree.trim_end_matches('\0').to_owned(),
            // The tree with conflict markers, then the files, each ended by a zero byte.
            Err(GitError::Failed { message, .. }) if message.contains('\0') => {
                let conflicts = message.split('\0').skip(1).filter(|file| !file.is_empty()).map(str::to_owned);
                let base_branch = base_branch.to_owned();
                return Err(GitError::Unmergeable { base_branch, conflicts: conflicts.collect() });
            }
            Err(GitError::Failed { message, .. }) if message.contains("unrelated histories") => {
                return Err(GitError::Unmergeable { base_branch: base_branch.to_owned(), conflicts: Vec::new() });
            }
            Err(error) => return Err(error),
        };
        let dates = self.run("show", ["show", "--no-patch", "--no-show-signature", "--format=%ct", head]).await?;
        let date = format!("{} +0000", dates.trim());
        let message = format!("Merge {head} into {base_branch}");
        let arguments = ["commit-tree", &tree, "-p", base, "-p", head, "-m", &message];
        Ok(self.run_as_ci("commit-tree", arguments, &date).await?.trim().to_owned())
    }

    /// The base's own configuration file; `None` when it has none that can be read.
    async fn config_of(&self, base: &str) -> Option<(Dialect, Vec<u8>)> {
        for dialect in [Dialect::Harmonia, Dialect::BuildbotNix] {
            let name = format!("{base}:{}", dialect.file_name());
            let size = self.run("cat-file", ["cat-file", "-s", &name]).await.ok();
            // A file of this size is refused by its parser in the merge, too.
            if size.and_then(|size| size.trim().parse::<usize>().ok()).is_some_and(|size| size <= FILE_BYTES_MAX)
                && let Ok(text) = self.run("cat-file", ["cat-file", "blob", &name]).await
            {
                return Some((dialect, text.into_bytes()));
            }
        }
        None
    }
}
