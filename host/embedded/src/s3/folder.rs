//! The folder behind the endpoint: buckets, temporary files, and the one step that makes an object visible.
//!
//! Below the folder: `buckets/NAME/…` (see `keys`), `uploads/ID/…` (see `multipart`), `tmp/…` (emptied at start), `lock`.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use tempfile::NamedTempFile;

use super::S3Error;
use super::keys;
use super::layout;
use super::object_file::{Metadata, OpenObject};

/// A directory may be pruned between its creation and its use; losing that race this often is no accident.
const PRUNE_RACES_MAX: usize = 100;

/// Under which condition an object may take its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Condition {
    None,
    /// `If-None-Match: *`: write once.
    Absent,
    /// `If-Match`: an object with this tag, or any, is there.
    Present(Option<String>),
}

/// What became of an object that wanted its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Published {
    Done,
    ConditionFailed,
}

#[derive(Debug)]
pub(crate) struct Folder {
    root: PathBuf,
    durable: bool,
    /// Orders replacements that depend on what is there; plain and write-once puts need no lock.
    compare_and_replace: Mutex<()>,
    /// Held while we run.
    _lock: File,
}

impl Folder {
    /// Takes the folder for this process and removes what interrupted uploads left.
    pub(crate) fn open(root: &Path, durable: bool) -> Result<Self, S3Error> {
        let failed = |doing, path: &Path| {
            let path = path.to_owned();
            move |cause| S3Error::Io { doing, path, cause }
        };
        for part in ["buckets", "uploads", "tmp"] {
            let path = root.join(part);
            fs::create_dir_all(&path).map_err(failed("create", &path))?;
        }
        let path = root.join("lock");
        let lock =
            File::options().create(true).truncate(false).write(true).open(&path).map_err(failed("open", &path))?;
        match rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(S3Error::InUse { folder: root.to_owned() }),
            Err(cause) => return Err(failed("lock", &path)(cause.into())),
        }
        let temporary = root.join("tmp");
        for entry in fs::read_dir(&temporary).map_err(failed("read", &temporary))?.flatten() {
            let path = entry.path();
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.map_err(failed("remove", &path))?;
        }
        layout::bring_up_to_date(root)?;
        Ok(Self { root: root.to_owned(), durable, compare_and_replace: Mutex::new(()), _lock: lock })
    }

    pub(crate) fn bucket(&self, name: &str) -> PathBuf {
        // The protocol layer has checked the name: lower-case letters, digits, dots between them, hyphens.
        self.root.join("buckets").join(name)
    }

    pub(crate) fn uploads(&self) -> PathBuf {
        self.root.join("uploads")
    }

    /// The names and ages of all buckets, sorted.
    pub(crate) fn buckets(&self) -> io::Result<Vec<(String, std::time::SystemTime)>> {
        let mut buckets = Vec::new();
        for entry in fs::read_dir(self.root.join("buckets"))? {
            let entry = entry?;
            if let Ok(name) = entry.file_name().into_string() {
                buckets.push((name, entry.metadata()?.modified()?));
            }
        }
        buckets.sort();
        Ok(buckets)
    }

    pub(crate) fn create_bucket(&self, name: &str) -> io::Result<()> {
        fs::create_dir(self.bucket(name))?;
        self.sync_directory(&self.root.join("buckets"))
    }

    /// A file that no key leads to; gone when dropped.
    pub(crate) fn temporary(&self) -> io::Result<NamedTempFile> {
        NamedTempFile::new_in(self.root.join("tmp"))
    }

    /// The object of a key; `None` when there is none.
    pub(crate) fn open_object(&self, bucket: &str, key: &str) -> io::Result<Option<OpenObject>> {
        let Some(path) = keys::path_of(key) else { return Ok(None) };
        match File::open(self.bucket(bucket).join(path)) {
            Ok(file) => OpenObject::read(file).map(Some),
            Err(cause) if absent(&cause) => Ok(None),
            Err(cause) => Err(cause),
        }
    }

    /// Writes the metadata behind the body, makes both safe on disk, and only then lets the key lead to them.
    pub(crate) fn publish(
        &self,
        mut body: NamedTempFile,
        bucket: &str,
        metadata: &Metadata,
        condition: &Condition,
    ) -> io::Result<Published> {
        body.write_all(&metadata.to_trailer()?)?;
        if self.durable {
            body.as_file().sync_all()?;
        }
        let relative = keys::path_of(&metadata.key).ok_or(io::ErrorKind::InvalidFilename)?;
        let target = self.bucket(bucket).join(relative);
        let _one_at_a_time = match condition {
            Condition::Present(_) => self.compare_and_replace.lock().ok(),
            _ => None,
        };
        if let Condition::Present(tag) = condition {
            let Some(there) = self.open_object(bucket, &metadata.key)? else { return Ok(Published::ConditionFailed) };
            if tag.as_ref().is_some_and(|tag| *tag != there.metadata.etag) {
                return Ok(Published::ConditionFailed);
            }
        }
        let directory = target.parent().unwrap_or(&self.root);
        let mut body = body.into_temp_path();
        for _ in 0..PRUNE_RACES_MAX {
            self.create_directories(&self.bucket(bucket), directory)?;
            let placed =
                if *condition == Condition::Absent { place_once(&body, &target) } else { fs::rename(&body, &target) };
            match placed {
                Ok(()) => {
                    // The name is gone, and another one must not be removed in its stead.
                    body.disable_cleanup(true);
                    self.sync_directory(directory)?;
                    return Ok(Published::Done);
                }
                Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => return Ok(Published::ConditionFailed),
                Err(cause) if cause.kind() == io::ErrorKind::NotFound && body.exists() => {}
                Err(cause) => return Err(cause),
            }
        }
        Err(io::Error::other("the object's directory is removed again and again"))
    }

    /// Removes an object and the directories that it leaves empty. Removing what is not there is fine.
    pub(crate) fn delete(&self, bucket: &str, key: &str) -> io::Result<()> {
        let Some(path) = keys::path_of(key) else { return Ok(()) };
        let root = self.bucket(bucket);
        let target = root.join(path);
        match fs::remove_file(&target) {
            Ok(()) => {}
            Err(cause) if absent(&cause) => return Ok(()),
            Err(cause) => return Err(cause),
        }
        let mut directory = target.parent();
        while let Some(path) = directory
            && path != root
            && fs::remove_dir(path).is_ok()
        {
            directory = path.parent();
        }
        match directory {
            Some(path) => self.sync_directory(path),
            None => Ok(()),
        }
    }

    /// Like `create_dir_all`, but never the bucket itself, and each new name is made safe on disk.
    fn create_directories(&self, bucket: &Path, directory: &Path) -> io::Result<()> {
        if directory == bucket || directory.is_dir() {
            return Ok(());
        }
        let parent = directory.parent().unwrap_or(bucket);
        self.create_directories(bucket, parent)?;
        match fs::create_dir(directory) {
            Ok(()) => self.sync_directory(parent),
            Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            // The parent was pruned meanwhile: the caller tries again.
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(cause) => Err(cause),
        }
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        if !self.durable {
            return Ok(());
        }
        match File::open(path) {
            Ok(directory) => directory.sync_all(),
            // Pruned meanwhile, with the parent's entry gone as well.
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(cause) => Err(cause),
        }
    }
}

/// Gives the file its final name unless that is taken: one step of the kernel, so exactly one of many wins.
fn place_once(source: &Path, target: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    match renameat_with(CWD, source, CWD, target, RenameFlags::NOREPLACE) {
        // A file system without the flag has hard links, which never replace anything either.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
            fs::hard_link(source, target)?;
            fs::remove_file(source)
        }
        other => other.map_err(io::Error::from),
    }
}

fn absent(cause: &io::Error) -> bool {
    // A path too long for the system cannot have been stored.
    matches!(cause.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::InvalidFilename)
}
