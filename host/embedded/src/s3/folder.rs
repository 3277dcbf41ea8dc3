//! The folder behind the endpoint: buckets, temporary files, and the one step that makes an object visible.
//!
//! Below the folder: `buckets/NAME/…` (see `keys`), `uploads/ID/…` (see `multipart`), `tmp/…` (emptied at start),
//! `journal/…` (see `journal`), `lock`.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use tempfile::NamedTempFile;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::S3Error;
use super::journal::{Change, Journal, Place, SMALL_BYTES_MAX};
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
    /// Of small objects, when they have to be durable.
    journal: Option<Journal>,
    /// Keys that are being changed, one change of a key at a time: so what the journal says last of one is what happened last.
    busy: Mutex<HashSet<Place>>,
    freed: Condvar,
    /// Directories whose names may not be on disk yet: they were made for objects that the journal has.
    unsynced: Mutex<HashSet<PathBuf>>,
    /// How often it was waited for the disk.
    syncs: Arc<AtomicU64>,
    /// Held while we run.
    _lock: File,
    /// Says that it is not held any more: dropped after it.
    released: DropGuard,
}

impl Folder {
    /// Takes the folder for this process and removes what interrupted uploads left.
    pub(crate) fn open(root: &Path, durable: bool) -> Result<Self, S3Error> {
        let failed = |doing, path: &Path| {
            let path = path.to_owned();
            move |cause| S3Error::Io { doing, path, cause }
        };
        for part in ["buckets", "uploads", "tmp", "journal"] {
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
        let mut folder = Self {
            root: root.to_owned(),
            durable,
            journal: None,
            busy: Mutex::default(),
            freed: Condvar::new(),
            unsynced: Mutex::default(),
            syncs: Arc::default(),
            _lock: lock,
            released: CancellationToken::new().drop_guard(),
        };
        let path = root.join("journal");
        folder.recover(&path).map_err(failed("bring back what stands in", &path))?;
        let journal = Journal::start(&path, Arc::clone(&folder.syncs)).map_err(failed("begin", &path))?;
        folder.journal = durable.then_some(journal);
        Ok(folder)
    }

    /// Small objects that may not have reached the disk before the machine went down.
    fn recover(&self, journal: &Path) -> io::Result<()> {
        let changes = Journal::recover(journal)?;
        if changes.is_empty() {
            return Ok(());
        }
        for (place, change, bytes) in changes {
            let bucket = self.bucket(&place.bucket);
            let Some(path) = keys::path_of(&place.key).filter(|_| bucket.is_dir()) else { continue };
            let target = bucket.join(path);
            match change {
                Change::Put => {
                    let mut file = self.temporary()?;
                    file.write_all(&bytes)?;
                    self.put_in_place(file, &bucket, &target, true)?;
                }
                Change::Removed => match fs::remove_file(&target) {
                    Err(cause) if !absent(&cause) => return Err(cause),
                    _ => {}
                },
                Change::Elsewhere => {}
            }
        }
        self.sync_file_system()
    }

    /// How often it was waited for the disk so far.
    pub(crate) fn syncs(&self) -> u64 {
        self.syncs.load(Ordering::Relaxed)
    }

    /// Cancelled when nobody uses the folder any more and another process, or this one again, can open it.
    pub(crate) fn released(&self) -> CancellationToken {
        self.released.token().clone()
    }

    /// Makes durable what the journal has, if that grew large. Takes a while.
    pub(crate) fn tidy(&self) -> io::Result<()> {
        let Some(journal) = &self.journal else { return Ok(()) };
        journal.clear_if_large(|| {
            let known: HashSet<PathBuf> = self.unsynced().clone();
            self.sync_file_system()?;
            self.unsynced().retain(|directory| !known.contains(directory));
            Ok(())
        })
    }

    fn sync_file_system(&self) -> io::Result<()> {
        self.syncs.fetch_add(1, Ordering::Relaxed);
        Ok(rustix::fs::syncfs(File::open(&self.root)?)?)
    }

    fn unsynced(&self) -> MutexGuard<'_, HashSet<PathBuf>> {
        self.unsynced.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until nobody else changes this key.
    fn alone(&self, place: &Place) -> Alone<'_> {
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        while busy.contains(place) {
            busy = self.freed.wait(busy).unwrap_or_else(PoisonError::into_inner);
        }
        busy.insert(place.clone());
        Alone { folder: self, place: place.clone() }
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
        let relative = keys::path_of(&metadata.key).ok_or(io::ErrorKind::InvalidFilename)?;
        let target = self.bucket(bucket).join(relative);
        let place = Place { bucket: bucket.to_owned(), key: metadata.key.clone() };
        let bytes = body.as_file().metadata()?.len();
        let journal = self.journal.as_ref().filter(|_| bytes <= SMALL_BYTES_MAX);
        if self.durable && journal.is_none() {
            self.sync_file(body.as_file())?;
        }
        let _alone = self.alone(&place);
        if !self.holds(bucket, metadata, &target, condition)? {
            return Ok(Published::ConditionFailed);
        }
        let bucket = self.bucket(bucket);
        if let Some(journal) = journal {
            let mut file = vec![0; usize::try_from(bytes).unwrap_or(usize::MAX)];
            body.as_file().read_exact_at(&mut file, 0)?;
            let recorded = journal.append(&place, Change::Put, &file)?;
            self.put_in_place(body, &bucket, &target, true)?;
            drop(recorded);
        } else {
            self.put_in_place(body, &bucket, &target, false)?;
            self.forget_recorded(&place, Change::Elsewhere)?;
        }
        Ok(Published::Done)
    }

    fn holds(&self, bucket: &str, metadata: &Metadata, target: &Path, condition: &Condition) -> io::Result<bool> {
        Ok(match condition {
            Condition::None => true,
            Condition::Absent => match fs::symlink_metadata(target) {
                Ok(_) => false,
                Err(cause) if absent(&cause) => true,
                Err(cause) => return Err(cause),
            },
            Condition::Present(tag) => self
                .open_object(bucket, &metadata.key)?
                .is_some_and(|there| tag.as_ref().is_none_or(|tag| *tag == there.metadata.etag)),
        })
    }

    /// The journal must not bring back what it says of this key. (Said last: until then it may, as nobody was told of the change.)
    fn forget_recorded(&self, place: &Place, change: Change) -> io::Result<()> {
        match &self.journal {
            Some(journal) if journal.knows(place) => journal.append(place, change, &[]).map(drop),
            _ => Ok(()),
        }
    }

    /// Gives the file its final name. `is_recorded`: the journal has it, so that neither has to be on disk.
    fn put_in_place(&self, body: NamedTempFile, bucket: &Path, target: &Path, is_recorded: bool) -> io::Result<()> {
        let directory = target.parent().unwrap_or(bucket);
        let mut body = body.into_temp_path();
        for _ in 0..PRUNE_RACES_MAX {
            self.create_directories(bucket, directory, is_recorded)?;
            match fs::rename(&body, target) {
                Ok(()) => {
                    // The name is gone, and another one must not be removed in its stead.
                    body.disable_cleanup(true);
                    return if is_recorded { Ok(()) } else { self.sync_names(bucket, directory) };
                }
                Err(cause) if cause.kind() == io::ErrorKind::NotFound && body.exists() => {}
                Err(cause) => return Err(cause),
            }
        }
        Err(io::Error::other("the object's directory is removed again and again"))
    }

    /// Removes an object and the directories that it leaves empty. Removing what is not there is fine.
    pub(crate) fn delete(&self, bucket: &str, key: &str) -> io::Result<()> {
        let Some(path) = keys::path_of(key) else { return Ok(()) };
        let place = Place { bucket: bucket.to_owned(), key: key.to_owned() };
        let _alone = self.alone(&place);
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
        if let Some(path) = directory {
            self.sync_directory(path)?;
        }
        self.forget_recorded(&place, Change::Removed)
    }

    /// Like `create_dir_all`, but never the bucket itself, and each new name is made safe on disk, or remembered as one that
    /// may not be.
    fn create_directories(&self, bucket: &Path, directory: &Path, is_recorded: bool) -> io::Result<()> {
        if directory == bucket || directory.is_dir() {
            return Ok(());
        }
        let parent = directory.parent().unwrap_or(bucket);
        self.create_directories(bucket, parent, is_recorded)?;
        // Before it is there for others.
        if is_recorded {
            self.unsynced().insert(directory.to_owned());
        }
        match fs::create_dir(directory) {
            Ok(()) if is_recorded => Ok(()),
            Ok(()) => self.sync_directory(parent),
            Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            // The parent was pruned meanwhile: the caller tries again.
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(cause) => Err(cause),
        }
    }

    /// Makes safe on disk what is in `directory`, and its own name and those above it that may not be.
    fn sync_names(&self, bucket: &Path, directory: &Path) -> io::Result<()> {
        self.sync_directory(directory)?;
        let above: Vec<&Path> = directory.ancestors().take_while(|path| *path != bucket).collect();
        for path in above {
            if self.unsynced().contains(path) {
                self.sync_directory(path.parent().unwrap_or(bucket))?;
                self.unsynced().remove(path);
            }
        }
        Ok(())
    }

    fn sync_file(&self, file: &File) -> io::Result<()> {
        self.syncs.fetch_add(1, Ordering::Relaxed);
        file.sync_all()
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        if !self.durable {
            return Ok(());
        }
        match File::open(path) {
            Ok(directory) => self.sync_file(&directory),
            // Pruned meanwhile, with the parent's entry gone as well.
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(cause) => Err(cause),
        }
    }
}

/// The right to change a key; dropping it lets the next one.
struct Alone<'a> {
    folder: &'a Folder,
    place: Place,
}

impl Drop for Alone<'_> {
    fn drop(&mut self) {
        self.folder.busy.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.place);
        self.folder.freed.notify_all();
    }
}

fn absent(cause: &io::Error) -> bool {
    // A path too long for the system cannot have been stored.
    matches!(cause.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::InvalidFilename)
}
