//! What keeps paths from being collected. Start at [`Store::find_roots`].
//!
//! Roots are symlinks below `gcroots` and `profiles`, directly to a path or to a symlink elsewhere that points to one
//! (indirect); the temporary roots of connections and processes; and what running processes use.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::symlink;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use harmonia_nix::STORE_DIR;
use harmonia_nix::base32;
use harmonia_nix::hash::{Hash, HashAlgorithm};
use harmonia_nix::store_path::StorePath;
use rustix::fs::{FlockOperation, flock};

use super::{Store, StoreError, TempRoots, layout};

/// Longest file of temporary roots that is read, in bytes.
const TEMP_ROOTS_BYTES_MAX: u64 = 1 << 30;

/// Longest environment or map of a process that is read, in bytes.
const PROCESS_BYTES_MAX: u64 = 64 << 20;

static COUNTER: AtomicU64 = AtomicU64::new(0);

/// Where each path is held from: symlinks, or a word in braces.
pub type Roots = BTreeMap<StorePath, BTreeSet<Vec<u8>>>;

impl Store {
    /// All roots. With `censor` nobody is told of other users' files and processes.
    pub fn find_roots(&self, censor: bool) -> Result<Roots, StoreError> {
        let mut roots = self.permanent_roots(censor)?;
        for (path, process) in self.find_temp_roots()? {
            let link = if censor { CENSORED.to_vec() } else { format!("{{temp:{process}}}").into_bytes() };
            roots.entry(path).or_default().insert(link);
        }
        Ok(roots)
    }

    /// All but the temporary ones.
    pub(super) fn permanent_roots(&self, censor: bool) -> Result<Roots, StoreError> {
        let mut roots = Roots::new();
        for dir in [self.layout.gc_roots_dir(), self.layout.state_dir.join("profiles")] {
            self.find_links(&dir, &mut roots)?;
        }
        self.find_runtime_roots(&mut roots, censor)?;
        Ok(roots)
    }

    /// Registers a symlink outside the store, which its owner has made, as a root.
    pub fn add_indirect_root(&self, link: &Path) -> Result<(), StoreError> {
        let hash = Hash::of(HashAlgorithm::Sha1, link.as_os_str().as_bytes());
        let root = self.layout.gc_roots_dir().join("auto").join(base32::encode(hash.as_bytes()));
        replace_symlink(&root, link)
    }

    /// Makes such a symlink and registers it.
    pub fn add_perm_root(&self, roots: &TempRoots, path: &StorePath, link: &Path) -> Result<PathBuf, StoreError> {
        let link = canonical(link);
        if link.starts_with(STORE_DIR) {
            return Err(StoreError::RootInStore(link));
        }
        roots.add(path)?;
        match fs::read_link(&link) {
            // Somebody's own file or link stays.
            Ok(target) if !target.starts_with(STORE_DIR) => return Err(StoreError::RootTaken(link)),
            Err(_) if fs::symlink_metadata(&link).is_ok() => return Err(StoreError::RootTaken(link)),
            _ => {}
        }
        replace_symlink(&link, Path::new(path.as_str()))?;
        self.add_indirect_root(&link)?;
        Ok(link)
    }

    /// The temporary roots of processes that live, with the numbers of the processes.
    pub(super) fn find_temp_roots(&self) -> Result<Vec<(StorePath, u64)>, StoreError> {
        let dir = self.layout.temp_roots_dir();
        let mut roots = Vec::new();
        for entry in fs::read_dir(&dir).map_err(StoreError::io("list", &dir))? {
            let entry = entry.map_err(StoreError::io("list", &dir))?;
            let (name, path) = (entry.file_name(), entry.path());
            if name.as_bytes().starts_with(b".") {
                continue;
            }
            let process = name.as_bytes().split(|byte| !byte.is_ascii_digit()).next().unwrap_or_default();
            let process = String::from_utf8_lossy(process).parse().unwrap_or_default();
            let opened = fs::OpenOptions::new().read(true).write(true).open(&path);
            let mut file = match opened {
                Err(cause) if cause.kind() == io::ErrorKind::NotFound => continue,
                opened => opened.map_err(StoreError::io("open", &path))?,
            };
            // Only possible when the owner died.
            if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
                let _ = fs::remove_file(&path);
                file.write_all(b"d").map_err(StoreError::io("write", &path))?;
                continue;
            }
            let mut text = Vec::new();
            let read = file.take(TEMP_ROOTS_BYTES_MAX).read_to_end(&mut text);
            read.map_err(StoreError::io("read", &path))?;
            // What is behind the last NUL is still being written.
            let mut lines: Vec<&[u8]> = text.split(|byte| *byte == 0).collect();
            lines.pop();
            let paths = lines.into_iter().filter_map(|line| std::str::from_utf8(line).ok()?.parse().ok());
            roots.extend(paths.map(|path| (path, process)));
        }
        Ok(roots)
    }

    fn find_links(&self, path: &Path, roots: &mut Roots) -> Result<(), StoreError> {
        match self.find_links_at(path, roots) {
            Err(StoreError::Io { cause, .. })
                if matches!(
                    cause.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied | io::ErrorKind::NotADirectory
                ) =>
            {
                tracing::info!(path = %path.display(), %cause, "Cannot read a potential root");
                Ok(())
            }
            done => done,
        }
    }

    fn find_links_at(&self, path: &Path, roots: &mut Roots) -> Result<(), StoreError> {
        let found = fs::symlink_metadata(path).map_err(StoreError::io("look at", path))?;
        if found.is_dir() {
            for entry in fs::read_dir(path).map_err(StoreError::io("list", path))? {
                let entry = entry.map_err(StoreError::io("list", path))?;
                self.find_links(&entry.path(), roots)?;
            }
        } else if found.is_symlink() {
            let target = fs::read_link(path).map_err(StoreError::io("read", path))?;
            if target.starts_with(STORE_DIR) {
                return self.found(roots, &target, path.as_os_str().as_bytes());
            }
            let target = canonical(&path.parent().unwrap_or(path).join(target));
            match fs::symlink_metadata(&target) {
                Ok(indirect) if indirect.is_symlink() => {
                    let end = fs::read_link(&target).map_err(StoreError::io("read", &target))?;
                    if end.starts_with(STORE_DIR) {
                        self.found(roots, &end, target.as_os_str().as_bytes())?;
                    }
                }
                Ok(_) => {}
                Err(cause) if cause.kind() == io::ErrorKind::NotFound => {
                    if path.starts_with(self.layout.gc_roots_dir().join("auto")) {
                        tracing::info!(path = %path.display(), target = %target.display(), "Removed a stale root");
                        let _ = fs::remove_file(path);
                    }
                }
                Err(cause) => return Err(StoreError::io("look at", &target)(cause)),
            }
        } else if found.is_file() {
            // The name of the file is the root.
            let name = path.file_name().unwrap_or_default();
            self.found(roots, &Path::new(STORE_DIR).join(name), path.as_os_str().as_bytes())?;
        }
        Ok(())
    }

    fn found(&self, roots: &mut Roots, target: &Path, link: &[u8]) -> Result<(), StoreError> {
        if let Some(path) = store_path_of(target)
            && self.is_valid(&path)?
        {
            roots.entry(path).or_default().insert(link.to_vec());
        }
        Ok(())
    }

    /// What running processes have open, mapped, as their program, directory, or in their environment.
    fn find_runtime_roots(&self, roots: &mut Roots, censor: bool) -> Result<(), StoreError> {
        let mut unchecked: BTreeMap<OsString, Vec<u8>> = BTreeMap::new();
        let mut note = |target: OsString, from: &Path| {
            unchecked.entry(target).or_insert_with(|| from.as_os_str().as_bytes().to_vec());
        };
        // A process that ends while it is looked at, or is not ours to look at, has no say.
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            if !entry.file_name().as_bytes().iter().all(u8::is_ascii_digit) {
                continue;
            }
            let process = entry.path();
            let links = fs::read_dir(process.join("fd")).into_iter().flatten().flatten().map(|entry| entry.path());
            for link in [process.join("exe"), process.join("cwd")].into_iter().chain(links) {
                if let Ok(target) = fs::read_link(&link) {
                    note(target.into_os_string(), &link);
                }
            }
            let maps = process.join("maps");
            for line in read_process(&maps).split(|byte| *byte == b'\n') {
                if let Some(start) = line.iter().position(|byte| *byte == b'/') {
                    note(OsString::from_vec(line[start..].to_vec()), &maps);
                }
            }
            let environment = process.join("environ");
            for path in store_paths_in(&read_process(&environment)) {
                note(path, &environment);
            }
        }
        for file in ["/proc/sys/kernel/modprobe", "/proc/sys/kernel/fbsplash", "/proc/sys/kernel/poweroff_cmd"] {
            if let Ok(text) = fs::read(file) {
                note(OsString::from_vec(text.trim_ascii_end().to_vec()), Path::new(file));
            }
        }
        for (target, link) in unchecked {
            let logical = self.logical(Path::new(&target));
            if let Some(target) = logical {
                self.found(roots, &target, if censor { CENSORED } else { &link })?;
            }
        }
        Ok(())
    }

    /// What a file is called in the store, wherever the store is.
    fn logical(&self, path: &Path) -> Option<PathBuf> {
        if path.starts_with(STORE_DIR) {
            return Some(path.to_owned());
        }
        let below = path.strip_prefix(&self.layout.real_store_dir).ok()?;
        Some(Path::new(STORE_DIR).join(below))
    }
}

const CENSORED: &[u8] = b"{censored}";

/// The store path that a file is in.
fn store_path_of(file: &Path) -> Option<StorePath> {
    let below = file.strip_prefix(STORE_DIR).ok()?;
    match below.components().next()? {
        Component::Normal(name) => StorePath::from_base_name(name.to_str()?).ok(),
        _ => None,
    }
}

fn read_process(file: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Ok(file) = fs::File::open(file) {
        let _ = file.take(PROCESS_BYTES_MAX).read_to_end(&mut bytes);
    }
    bytes
}

/// Everything in a text that begins as a store path.
fn store_paths_in(text: &[u8]) -> Vec<OsString> {
    let prefix = format!("{STORE_DIR}/");
    let mut paths = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.windows(prefix.len()).position(|window| window == prefix.as_bytes()) {
        rest = &rest[start + prefix.len()..];
        let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || b"+-._?=".contains(byte);
        let length = rest.iter().position(|byte| !is_part(byte)).unwrap_or(rest.len());
        let mut path = prefix.clone().into_bytes();
        path.extend_from_slice(&rest[..length]);
        paths.push(OsString::from_vec(path));
    }
    paths
}

/// Without `.` and `..`, as they are written and not as links lead.
fn canonical(path: &Path) -> PathBuf {
    let mut canonical = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => canonical.push(name),
            Component::ParentDir => {
                canonical.pop();
            }
            _ => {}
        }
    }
    canonical
}

/// Makes or replaces a symlink in one step.
fn replace_symlink(link: &Path, target: &Path) -> Result<(), StoreError> {
    if let Some(dir) = link.parent() {
        layout::make_dirs(dir)?;
    }
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    let mut temporary = link.as_os_str().to_owned();
    temporary.push(OsStr::new(&format!(".tmp-{}-{number}", std::process::id())));
    let temporary = PathBuf::from(temporary);
    let _ = fs::remove_file(&temporary);
    symlink(target, &temporary).map_err(StoreError::io("make the symlink", &temporary))?;
    fs::rename(&temporary, link).map_err(StoreError::io("make the symlink", link))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_found_in_environments() {
        let text = b"PATH=/nix/store/aaa-x/bin:/nix/store/bbb-y?=z+1/sbin\0HOME=/nix/stor\0LAST=/nix/store/ccc";
        let found = store_paths_in(text);
        assert_eq!(found, ["/nix/store/aaa-x", "/nix/store/bbb-y?=z+1", "/nix/store/ccc"]);
    }

    #[test]
    fn roots_are_where_they_are_written_to_be() {
        assert_eq!(canonical(Path::new("/a/./b/../c//d")), Path::new("/a/c/d"));
        assert_eq!(canonical(Path::new("/../x")), Path::new("/x"));
    }
}
