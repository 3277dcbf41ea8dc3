//! Where a store keeps what, and making those places.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use super::{StoreError, StoreSettings};

/// The only version of the database that is known here; all of Nix since 2.0 has it.
pub(super) const SCHEMA: u32 = 10;

/// Kept free for the database, so that garbage can be collected on a full disk.
const RESERVED_BYTES: u64 = 8 << 20;

/// The places of a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Where the files of `/nix/store` are.
    pub real_store_dir: PathBuf,
    /// `/nix/var/nix`: database, roots, profiles, sockets.
    pub state_dir: PathBuf,
    /// `/nix/var/log/nix`.
    pub log_dir: PathBuf,
}

impl Layout {
    /// The usual places, below `root` when there is one: a chroot store.
    pub fn below(root: Option<&Path>) -> Self {
        let root = root.unwrap_or(Path::new("/"));
        Self {
            real_store_dir: root.join("nix/store"),
            state_dir: root.join("nix/var/nix"),
            log_dir: root.join("nix/var/log/nix"),
        }
    }

    /// Equal files are linked to the names in here.
    pub fn links_dir(&self) -> PathBuf {
        self.real_store_dir.join(".links")
    }

    /// The database and its locks.
    pub fn db_dir(&self) -> PathBuf {
        self.state_dir.join("db")
    }

    /// What processes and connections need.
    pub fn temp_roots_dir(&self) -> PathBuf {
        self.state_dir.join("temproots")
    }

    /// What users need.
    pub fn gc_roots_dir(&self) -> PathBuf {
        self.state_dir.join("gcroots")
    }

    /// Held exclusively while garbage is collected.
    pub fn gc_lock(&self) -> PathBuf {
        self.state_dir.join("gc.lock")
    }

    /// Where a running collection learns of new roots.
    pub fn gc_socket(&self) -> PathBuf {
        self.state_dir.join("gc-socket/socket")
    }

    /// Where the log of a derivation belongs, without the ending of a compressed one.
    pub fn build_log(&self, base_name: &str) -> PathBuf {
        let (front, back) = base_name.split_at_checked(2).unwrap_or((base_name, ""));
        self.log_dir.join("drvs").join(front).join(back)
    }

    /// Makes what is missing. Returns the big lock, shared.
    pub(super) fn prepare(&self, settings: &StoreSettings) -> Result<File, StoreError> {
        make_dirs(&self.real_store_dir)?;
        make_dirs(&self.links_dir())?;
        let profiles = self.state_dir.join("profiles");
        for dir in [&profiles, &self.temp_roots_dir(), &self.db_dir()] {
            make_dirs(dir)?;
        }
        let gc_roots = self.gc_roots_dir();
        if !gc_roots.exists() {
            make_dirs(&gc_roots)?;
            match symlink(&profiles, gc_roots.join("profiles")) {
                Err(cause) if cause.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(StoreError::io("make the symlink", gc_roots.join("profiles"))(cause));
                }
                _ => {}
            }
        }
        for dir in [profiles.join("per-user"), gc_roots.join("per-user")] {
            make_dirs(&dir)?;
            set_mode(&dir, 0o755)?;
        }
        self.share_with_build_users(settings)?;
        if !settings.allow_symlinked_store {
            self.refuse_symlinks()?;
        }
        self.reserve_space();
        let big_lock = open_lock_file(&self.db_dir().join("big-lock"))?;
        flock(&big_lock, FlockOperation::LockShared)
            .map_err(StoreError::sys("lock", self.db_dir().join("big-lock")))?;
        Ok(big_lock)
    }

    /// A user's own places for profiles and roots.
    pub(crate) fn prepare_user(&self, name: &str, uid: u32) -> Result<(), StoreError> {
        // A name from the system's user database may be anything.
        if name.is_empty() || name.starts_with('.') || name.contains('/') {
            return Ok(());
        }
        // Only root gives places to others.
        let own = rustix::process::geteuid();
        if !own.is_root() && own.as_raw() != uid {
            return Ok(());
        }
        for dir in [self.state_dir.join("profiles/per-user"), self.gc_roots_dir().join("per-user")] {
            let dir = dir.join(name);
            if fs::symlink_metadata(&dir).is_ok_and(|found| found.is_dir() && found.uid() == uid) {
                continue;
            }
            make_dirs(&dir)?;
            set_mode(&dir, 0o755)?;
            std::os::unix::fs::lchown(&dir, Some(uid), None).map_err(StoreError::io("change the owner of", &dir))?;
        }
        Ok(())
    }

    /// As stock Nix does when it is installed for many users: root owns the store, build users may make names in it.
    fn share_with_build_users(&self, settings: &StoreSettings) -> Result<(), StoreError> {
        const MODE: u32 = 0o1775;
        let Some(group) = settings.build_users_group else { return Ok(()) };
        if !rustix::process::getuid().is_root() {
            return Ok(());
        }
        let dir = &self.real_store_dir;
        let found = fs::metadata(dir).map_err(StoreError::io("look at", dir))?;
        if (found.uid(), found.gid(), found.mode() & 0o7777) != (0, group, MODE) {
            std::os::unix::fs::chown(dir, Some(0), Some(group)).map_err(StoreError::io("change the owner of", dir))?;
            set_mode(dir, MODE)?;
        }
        Ok(())
    }

    fn refuse_symlinks(&self) -> Result<(), StoreError> {
        for dir in self.real_store_dir.ancestors().filter(|dir| !dir.as_os_str().is_empty()) {
            let found = fs::symlink_metadata(dir).map_err(StoreError::io("look at", dir))?;
            if found.is_symlink() {
                return Err(StoreError::Symlinked(dir.to_owned()));
            }
        }
        Ok(())
    }

    /// Best effort: without it a full disk is only harder to clean.
    pub(super) fn reserve_space(&self) {
        let path = self.db_dir().join("reserved");
        if fs::metadata(&path).is_ok_and(|found| found.len() == RESERVED_BYTES) {
            return;
        }
        let opened = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
        if let Ok(file) = opened
            && rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, RESERVED_BYTES).is_err()
        {
            tracing::debug!(path = %path.display(), "Could not reserve space for the database");
        }
    }
}

/// Makes a directory and those above it.
pub(super) fn make_dirs(dir: &Path) -> Result<(), StoreError> {
    fs::create_dir_all(dir).map_err(StoreError::io("make the directory", dir))
}

fn set_mode(path: &Path, mode: u32) -> Result<(), StoreError> {
    if fs::metadata(path).is_ok_and(|found| found.mode() & 0o7777 == mode) {
        return Ok(());
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(StoreError::io("set the mode of", path))
}

/// Opens a file that is only there to be locked.
pub(super) fn open_lock_file(path: &Path) -> Result<File, StoreError> {
    let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
    opened.map_err(StoreError::io("open the lock", path))
}
