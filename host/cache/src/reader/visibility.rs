//! Who may see what. Known for a while: that something is public for longer than that it is not, since publication
//! should show at once.

use harmonia_core::{Timestamp, Viewer};
use harmonia_nix::{Sha256Hash, StorePath};

use super::{ReadError, Reader};
use crate::keys;

impl Reader {
    pub(super) async fn is_public(&self, path: &StorePath) -> Result<bool, ReadError> {
        if let Some(is_public) = self.remembered(path.as_str()) {
            return Ok(is_public);
        }
        // A path that the database does not know is nobody's business.
        let is_public = self.inner.db.path_rows(std::slice::from_ref(path)).await?.iter().any(|row| row.public);
        self.inner.memory.remember_visibility(path.as_str(), is_public, self.now());
        Ok(is_public)
    }

    /// The derivation of this base name, if this viewer may see its log and its file.
    pub(super) async fn visible_derivation(
        &self,
        viewer: Viewer,
        base_name: &str,
    ) -> Result<Option<StorePath>, ReadError> {
        let Some(drv) = StorePath::from_base_name(base_name).ok().filter(StorePath::is_derivation) else {
            return Ok(None);
        };
        if viewer == Viewer::Token {
            return Ok(Some(drv));
        }
        if let Some(is_public) = self.remembered(drv.as_str()) {
            return Ok(is_public.then_some(drv));
        }
        // One rule for pages and logs: who may see the build may see its log.
        let is_public = self.inner.db.derivation_public(&drv).await?;
        self.inner.memory.remember_visibility(drv.as_str(), is_public, self.now());
        Ok(is_public.then_some(drv))
    }

    /// Whether this viewer may see the archive with this hash: one of the paths that it is the archive of.
    pub(super) async fn is_visible_nar(&self, viewer: Viewer, hash: &Sha256Hash) -> Result<bool, ReadError> {
        if viewer == Viewer::Token {
            return Ok(true);
        }
        let key = keys::nar(hash);
        if let Some(is_public) = self.remembered(&key) {
            return Ok(is_public);
        }
        let is_public = self.inner.db.nar_public(&key).await?;
        self.inner.memory.remember_visibility(&key, is_public, self.now());
        Ok(is_public)
    }

    fn remembered(&self, name: &str) -> Option<bool> {
        let options = &self.inner.options;
        let now = self.now();
        self.inner.memory.visibility(name, now - options.public_for, now - options.hidden_for)
    }

    pub(super) fn now(&self) -> Timestamp {
        self.inner.options.clock.now()
    }
}
