//! Compiled code on disk: one file a component and engine version, written and read only by us.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use wasmtime::Engine;
use wasmtime::component::Component;

use crate::error::LoadError;

/// The folder. Whoever can write into it can run code in this process, so it must belong to us alone.
pub(crate) struct CodeCache {
    folder: PathBuf,
    engine: String,
}

impl CodeCache {
    pub(crate) fn open(folder: PathBuf, engine: &Engine) -> Result<Self, LoadError> {
        let refuse = |reason: String| LoadError::CacheFolder { path: folder.clone(), reason };
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700).create(&folder).map_err(|e| refuse(e.to_string()))?;
        let found = fs::symlink_metadata(&folder).map_err(|e| refuse(e.to_string()))?;
        if !found.is_dir() {
            return Err(refuse("it is not a folder".into()));
        }
        if found.mode() & 0o022 != 0 {
            return Err(refuse(format!(
                "others may write into it (mode {:o}): chmod go-w {}",
                found.mode() & 0o777,
                folder.display()
            )));
        }
        let probe = tempfile::NamedTempFile::new_in(&folder).map_err(|e| refuse(e.to_string()))?;
        let ours = probe.as_file().metadata().map_err(|e| refuse(e.to_string()))?.uid();
        if found.uid() != ours {
            return Err(refuse(format!("it belongs to user {}, not to us ({ours})", found.uid())));
        }
        let mut hasher = DefaultHasher::new();
        engine.precompile_compatibility_hash().hash(&mut hasher);
        let cache = Self { folder, engine: format!("{:016x}", hasher.finish()) };
        cache.remove_foreign();
        Ok(cache)
    }

    /// Removes what other versions of the engine left.
    fn remove_foreign(&self) {
        let ours = format!("-{}.cwasm", self.engine);
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.ends_with(".cwasm") && !name.ends_with(&ours) {
                // Whoever still needs it compiles it again.
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    /// The file with the code of this component, if it is there.
    pub(crate) fn find(&self, sha256: &str) -> Option<PathBuf> {
        Some(self.file(sha256)).filter(|file| file.exists())
    }

    /// Writes code so that a reader sees all of it or nothing.
    pub(crate) fn store(&self, sha256: &str, code: &[u8]) -> Result<PathBuf, String> {
        let file = self.file(sha256);
        let text = |e: std::io::Error| format!("cannot write {}: {e}", file.display());
        let mut temporary = tempfile::NamedTempFile::new_in(&self.folder).map_err(text)?;
        temporary.write_all(code).and_then(|()| temporary.as_file().sync_all()).map_err(text)?;
        temporary.persist(&file).map_err(|e| text(e.error))?;
        Ok(file)
    }

    /// Loads a file that [`Self::find`] or [`Self::store`] named.
    pub(crate) fn load(&self, engine: &Engine, file: &Path) -> wasmtime::Result<Component> {
        debug_assert!(file.starts_with(&self.folder), "only our own files");
        #[expect(unsafe_code, reason = "the file was written by this engine into a folder that only we can write to")]
        // SAFETY: `open` checked that nobody else can write into the folder; `store` is its only writer, puts files there
        // whole, and never changes one; the name holds the engine's compatibility hash, which wasmtime checks again.
        unsafe {
            Component::deserialize_file(engine, file)
        }
    }

    fn file(&self, sha256: &str) -> PathBuf {
        self.folder.join(format!("{sha256}-{}.cwasm", self.engine))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_folder_that_others_can_write_to_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let inside = folder.path().join("a/b");
        let engine = Engine::default();
        let cache = CodeCache::open(inside.clone(), &engine).expect("created for us alone");
        assert_eq!(fs::metadata(&inside).expect("there").mode() & 0o777, 0o700);
        assert!(cache.find("00").is_none());
        fs::set_permissions(&inside, fs::Permissions::from_mode(0o770)).expect("ours");
        let error = CodeCache::open(inside, &engine).err().expect("refused").to_string();
        assert!(error.contains("chmod go-w"), "{error}");
    }

    #[test]
    fn code_is_found_under_its_content_and_engine_and_damage_is_noticed() {
        let folder = tempfile::tempdir().expect("a folder");
        let engine = Engine::default();
        let cache = CodeCache::open(folder.path().join("c"), &engine).expect("opens");
        let code = engine.precompile_component(&wat::parse_str("(component)").expect("valid")).expect("compiles");
        let file = cache.store("ab", &code).expect("written");
        assert_eq!(cache.find("ab"), Some(file.clone()));
        cache.load(&engine, &file).expect("loads");
        let damaged = cache.store("cd", b"not code at all").expect("written");
        assert!(cache.load(&engine, &damaged).is_err());
        let foreign = folder.path().join("c/ab-0000000000000000.cwasm");
        fs::write(&foreign, b"of another version").expect("written");
        CodeCache::open(folder.path().join("c"), &engine).expect("opens");
        assert!(file.exists() && !foreign.exists());
    }
}
