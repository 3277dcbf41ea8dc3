//! Keeps the garbage collector away from what a build needs and makes: symlinks below the store's `gcroots` folder,
//! one folder an attempt. Start at [`Roots`].
//!
//! A symlink may name a path that is not valid yet: it protects from the moment the path appears.

use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use harmonia_core::{AttemptId, NodeId};
use harmonia_nix::StorePath;
use tokio::sync::watch;

/// The folder below `gcroots` that is ours.
const OURS: &str = "harmonia-ci";

/// The roots of one node.
#[derive(Debug, Clone)]
pub(super) struct Roots {
    dir: PathBuf,
    /// Raised when one was removed.
    removed: watch::Sender<()>,
}

/// The roots of one attempt; dropping it removes them.
#[derive(Debug)]
pub(super) struct AttemptRoots {
    dir: PathBuf,
    removed: watch::Sender<()>,
}

impl Roots {
    /// The roots of `node` below the state folder of a store (`…/nix/var/nix`), emptied: no attempt of an older process
    /// is alive.
    pub(super) fn open(state_dir: &Path, node: &NodeId) -> io::Result<Self> {
        let roots = state_dir.join("gcroots");
        let dir = roots.join(OURS).join(folder_name(node));
        if !roots.exists() {
            // A stock daemon links its profiles here when it makes the folder, and only then.
            std::fs::create_dir_all(&roots)?;
            symlink(state_dir.join("profiles"), roots.join("profiles"))?;
        }
        match std::fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        std::fs::create_dir_all(&dir)?;
        Ok(Self { dir, removed: watch::Sender::new(()) })
    }

    /// Where the roots of an attempt go.
    pub(super) fn attempt(&self, attempt: AttemptId) -> io::Result<AttemptRoots> {
        let dir = self.dir.join(attempt.to_string());
        std::fs::create_dir_all(&dir)?;
        Ok(AttemptRoots { dir, removed: self.removed.clone() })
    }

    /// Changes whenever a root was removed.
    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.removed.subscribe()
    }

    /// Whose root `link` is, when it is one of this node.
    pub(super) fn attempt_of(&self, link: &str) -> Option<AttemptId> {
        let attempt = Path::new(link).strip_prefix(&self.dir).ok()?.components().next()?;
        attempt.as_os_str().to_str()?.parse().ok().map(AttemptId)
    }

    /// Whether `link` is of this or another node of this store.
    pub(super) fn is_of_nodes(&self, link: &str) -> bool {
        self.dir.parent().is_some_and(|nodes| Path::new(link).starts_with(nodes))
    }
}

impl AttemptRoots {
    /// Protects `path`; also before it exists.
    pub(super) fn add(&self, path: &StorePath) -> io::Result<()> {
        match symlink(path.as_str(), self.dir.join(path.base_name())) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            result => result,
        }
    }

    /// No longer protects `path`.
    pub(super) fn remove(&self, path: &StorePath) -> io::Result<()> {
        match std::fs::remove_file(self.dir.join(path.base_name())) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => {
                self.removed.send_replace(());
                result
            }
        }
    }
}

impl Drop for AttemptRoots {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.dir) {
            tracing::warn!(%error, "Could not remove the garbage collector roots in {}", self.dir.display());
        }
        self.removed.send_replace(());
    }
}

/// A node's name as one path component, whatever it holds.
fn folder_name(node: &NodeId) -> String {
    let safe = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '_' };
    let name: String = node.0.chars().take(100).map(safe).collect();
    // Never "." or "..", nor empty.
    format!("node-{name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots_live_as_long_as_their_attempt_and_stale_ones_are_swept() {
        let state = tempfile::tempdir().expect("folder");
        let node = NodeId("../b 1".into());
        let path = StorePath::parse("/nix/store/00000000000000000000000000000000-a").expect("path");
        let roots = Roots::open(state.path(), &node).expect("roots");
        let link = state.path().join("gcroots/harmonia-ci/node-.._b_1/7").join(path.base_name());
        {
            let attempt = roots.attempt(AttemptId(7)).expect("folder");
            attempt.add(&path).expect("symlink");
            attempt.add(&path).expect("again");
            assert_eq!(std::fs::read_link(&link).expect("symlink"), Path::new(path.as_str()));
            let text = link.to_str().expect("text");
            assert_eq!((roots.attempt_of(text), roots.is_of_nodes(text)), (Some(AttemptId(7)), true));
            let other = text.replace("b_1", "b_2");
            assert_eq!((roots.attempt_of(&other), roots.is_of_nodes(&other)), (None, true));
            let foreign = state.path().join("gcroots/7/x");
            assert!(!roots.is_of_nodes(foreign.to_str().expect("text")));
            attempt.remove(&path).expect("removed");
            attempt.remove(&path).expect("again");
            assert!(std::fs::read_link(&link).is_err());
            attempt.add(&path).expect("symlink");
        }
        assert!(!link.parent().expect("folder").exists());

        let attempt = roots.attempt(AttemptId(7)).expect("folder");
        attempt.add(&path).expect("symlink");
        std::mem::forget(attempt); // As if the process had been killed.
        assert!(std::fs::read_link(&link).is_ok());
        Roots::open(state.path(), &node).expect("roots");
        assert!(std::fs::read_link(&link).is_err(), "swept");
    }
}
