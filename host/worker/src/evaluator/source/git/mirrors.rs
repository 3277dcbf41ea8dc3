//! Bare mirrors of repositories: what was fetched once is not fetched again. Start at [`Mirrors::enter`]; [`keep_tidy`] keeps
//! them small: packed, without commits that nobody asked for lately, few enough, and gone when not used.
//!
//! A mirror has refs of ours only: `refs/commits/<day>/<hash>` for each commit that was wanted on that day (days since
//! 1970), and what the last fetch brought.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use tokio::sync::{Notify, OwnedMutexGuard, OwnedRwLockReadGuard, RwLock};
use tokio_util::sync::CancellationToken;

use super::{FETCHED, Git, GitError, no_commit};
use crate::git::Transports;

/// Most mirrors.
const COUNT_MAX: usize = 1_000;
/// A commit that nobody asked for since so many days is kept only by those that came after it.
const COMMIT_DAYS: u64 = 14;
/// Most commits that are kept for themselves.
const COMMITS_MAX: usize = 1_000;
/// More loose objects or packs than that are packed together.
const LOOSE_MAX: u64 = 1_000;
const PACKS_MAX: u64 = 20;
/// A mirror that grew to twice its size and so many bytes since everything unreachable went is looked through again.
const GROWTH_BYTES: u64 = 64 << 20;
/// Without being told of anything, mirrors are looked at that often.
const LOOK_EVERY: Duration = Duration::from_hours(1);
/// Shortest time between two looks.
const LOOK_PAUSE: Duration = Duration::from_secs(10);
/// Its modification time is when the mirror was used last.
const USED_FILE: &str = "harmonia-used";
/// Holds the size that the mirror had when everything unreachable went.
const SIZE_FILE: &str = "harmonia-size";
/// Begins the name of what is being deleted.
const DOOMED: &str = "doomed-";
const DAY_S: u64 = 24 * 3600;

/// Bounds of all mirrors together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MirrorLimits {
    /// Bytes on disk. The ones that were used longest ago go first.
    pub bytes_max: u64,
    /// What was not used for so long goes.
    pub unused_max: Duration,
}

/// All mirrors of this process.
#[derive(Debug, Clone)]
pub(crate) struct Mirrors(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    dir: PathBuf,
    limits: MirrorLimits,
    locks: Mutex<HashMap<String, Weak<Lock>>>,
    /// Names of mirrors into which something was fetched since they were looked at.
    changed: Mutex<BTreeSet<String>>,
    told: Notify,
}

#[derive(Debug, Default)]
struct Lock {
    /// Two fetches into one mirror would trip over each other.
    fetch: Arc<tokio::sync::Mutex<()>>,
    /// Held shared by whoever needs its objects, alone by whoever removes some.
    objects: Arc<RwLock<()>>,
}

/// A mirror that keeps its objects until this is dropped.
#[derive(Debug)]
pub(super) struct InUse {
    path: PathBuf,
    name: String,
    lock: Arc<Lock>,
    mirrors: Mirrors,
    _objects: OwnedRwLockReadGuard<()>,
}

/// Name of the mirror of a URL, without a character that a URL could put there. What was fetched with a credential stays
/// apart: who has none must not find it.
pub(super) fn name(is_private: bool, url: &str) -> String {
    let scope = if is_private { "private " } else { "public " };
    let hash = harmonia_nix::Sha256Hash::of([scope, url].concat().as_bytes());
    format!("{}.git", hash.to_base16().trim_start_matches("sha256:"))
}

impl Mirrors {
    pub(crate) fn new(dir: PathBuf, limits: MirrorLimits) -> Self {
        let (locks, changed) = (Mutex::default(), Mutex::default());
        Self(Arc::new(Shared { dir, limits, locks, changed, told: Notify::new() }))
    }

    fn lock(&self, name: &str) -> Arc<Lock> {
        let mut locks = self.0.locks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lock) = locks.get(name).and_then(Weak::upgrade) {
            return lock;
        }
        locks.retain(|_, lock| lock.strong_count() > 0);
        let lock = Arc::<Lock>::default();
        locks.insert(name.to_owned(), Arc::downgrade(&lock));
        lock
    }

    /// The mirror of this name, which may not be there yet. Waits while it is cleaned up.
    pub(super) async fn enter(&self, name: &str) -> InUse {
        let lock = self.lock(name);
        let objects = Arc::clone(&lock.objects).read_owned().await;
        InUse { path: self.0.dir.join(name), name: name.to_owned(), lock, mirrors: self.clone(), _objects: objects }
    }

    fn changed(&self) -> std::sync::MutexGuard<'_, BTreeSet<String>> {
        self.0.changed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes mirrors that are too many, too big, or not used, and packs those that changed. What is in use is left for
    /// the next time.
    pub(crate) async fn tidy(&self, git: &Path, now: SystemTime) -> Result<(), GitError> {
        let dir = self.0.dir.clone();
        let failed = |cause| GitError::Directory { path: self.0.dir.clone(), cause };
        let listed = tokio::task::spawn_blocking(move || list(&dir, now)).await;
        let mirrors = listed.map_err(|error| failed(std::io::Error::other(error)))?.map_err(failed)?;
        for name in surplus(&mirrors, COUNT_MAX, self.0.limits) {
            let lock = self.lock(name);
            let Ok(_alone) = Arc::clone(&lock.objects).try_write_owned() else { continue };
            tracing::info!(mirror = name, "Removing a mirror that is not used, or one too many");
            remove(&self.0.dir, name).map_err(failed)?;
        }
        let changed = std::mem::take(&mut *self.changed());
        for name in changed {
            let lock = self.lock(&name);
            let Ok(_alone) = Arc::clone(&lock.objects).try_write_owned() else {
                self.changed().insert(name);
                continue;
            };
            let path = self.0.dir.join(&name);
            if path.exists() {
                let git = Git {
                    program: git,
                    repository: &path,
                    transports: Transports::None,
                    authorization: None,
                    way: None,
                };
                git.tidy_mirror(now, GROWTH_BYTES).await?;
            }
        }
        Ok(())
    }
}

/// Looks at mirrors until `shutdown`: after fetches, and from time to time.
pub(crate) async fn keep_tidy(mirrors: Mirrors, git: PathBuf, shutdown: CancellationToken) {
    loop {
        if let Err(error) = mirrors.tidy(&git, SystemTime::now()).await {
            tracing::warn!(error = %harmonia_core::chain(&error), "Could not tidy the mirrors of repositories");
        }
        let told = async {
            mirrors.0.told.notified().await;
            // Those that end their checkout together are looked at together.
            tokio::time::sleep(LOOK_PAUSE).await;
        };
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = told => {}
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

impl InUse {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The right to fetch into it.
    pub(super) async fn fetching(&self) -> OwnedMutexGuard<()> {
        let guard = Arc::clone(&self.lock.fetch).lock_owned().await;
        self.mirrors.changed().insert(self.name.clone());
        guard
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.mirrors.0.told.notify_one();
    }
}

impl Git<'_> {
    /// Makes the mirror, or what is left of one usable again; and notes that it is used. Nobody else fetches into it.
    pub(super) async fn prepare_mirror(&self, like: Option<&str>) -> Result<(), GitError> {
        let failed = |cause| GitError::Directory { path: self.repository.to_owned(), cause };
        let is_there = ["HEAD", "objects", "refs"].iter().all(|part| self.repository.join(part).exists());
        if is_there {
            // A fetch that was killed left them behind.
            remove_leftovers(self.repository).map_err(failed)?;
        } else {
            if self.repository.exists() {
                std::fs::remove_dir_all(self.repository).map_err(failed)?;
            }
            self.make_bare(like).await?;
        }
        let used = std::fs::File::create(self.repository.join(USED_FILE)).map_err(failed)?;
        used.set_modified(SystemTime::now()).map_err(failed)
    }

    /// Whether a commit is here with everything that it reaches: it was wanted before.
    pub(super) async fn has(&self, commit: &str) -> bool {
        let pattern = format!("refs/commits/*/{commit}");
        let found = ["for-each-ref", "--count=1", "--format=%(objectname)", &pattern];
        self.run("for-each-ref", found).await.is_ok_and(|found| found.trim() == commit)
    }

    /// Keeps a commit that is here from being cleaned up, for some days.
    pub(super) async fn keep(&self, commit: &str) -> Result<String, GitError> {
        let kept = format!("refs/commits/{}/{commit}", day(SystemTime::now()));
        match self.run("update-ref", ["update-ref", &kept, commit]).await {
            Ok(_) => Ok(commit.to_owned()),
            Err(GitError::Failed { .. }) => Err(no_commit(Some(commit), FETCHED)),
            Err(error) => Err(error),
        }
    }

    /// Forgets commits, and packs what is left. Nobody else uses the mirror.
    async fn tidy_mirror(&self, now: SystemTime, growth_bytes: u64) -> Result<(), GitError> {
        let failed = |cause| GitError::Directory { path: self.repository.to_owned(), cause };
        remove_leftovers(self.repository).map_err(failed)?;
        let listed = self
            .command("for-each-ref")
            .args(["for-each-ref", "--sort=-refname", "--format=%(refname)", "refs/commits"])
            .records(b'\n', usize::MAX, |line| std::str::from_utf8(line).ok().map(str::to_owned))
            .await?;
        let gone = forgotten(&listed, day(now));
        if !gone.is_empty() {
            let lines: String = gone.iter().flat_map(|name| ["delete ", name, "\n"]).collect();
            self.command("update-ref").args(["update-ref", "--stdin"]).input(lines.into_bytes()).output().await?;
        }
        let counted = self.run("count-objects", ["count-objects", "-v"]).await?;
        let count = |what: &str| {
            let value = counted.lines().find_map(|line| line.strip_prefix(what)?.strip_prefix(": "));
            value.and_then(|value| value.parse::<u64>().ok()).unwrap_or(0)
        };
        let size_bytes = (count("size") + count("size-pack")) << 10;
        let size_file = self.repository.join(SIZE_FILE);
        let before = std::fs::read_to_string(&size_file).ok().and_then(|text| text.trim().parse::<u64>().ok());
        let mut known = before.unwrap_or(size_bytes);
        if size_bytes > known.saturating_mul(2).saturating_add(growth_bytes) {
            self.run("gc", ["gc", "--quiet", "--prune=now"]).await?;
            known = packed_bytes(self.repository).map_err(failed)?;
        } else if count("count") > LOOSE_MAX || count("packs") > PACKS_MAX {
            // Small packs together, big ones as they are.
            self.run("repack", ["repack", "--quiet", "-d", "--geometric=2"]).await?;
            self.run("pack-refs", ["pack-refs", "--all", "--prune"]).await?;
        }
        std::fs::write(&size_file, known.to_string()).map_err(failed)
    }
}

/// A mirror on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Found {
    name: String,
    bytes: u64,
    unused: Duration,
}

/// Names of mirrors that go.
fn surplus(mirrors: &[Found], count_max: usize, limits: MirrorLimits) -> Vec<&str> {
    let mut newest_first: Vec<&Found> = mirrors.iter().collect();
    newest_first.sort_by_key(|mirror| mirror.unused);
    let (mut count, mut bytes) = (0, 0_u64);
    let mut gone = Vec::new();
    for mirror in newest_first {
        let fits = count < count_max && bytes.saturating_add(mirror.bytes) <= limits.bytes_max;
        if fits && mirror.unused <= limits.unused_max {
            count += 1;
            bytes += mirror.bytes;
        } else {
            gone.push(mirror.name.as_str());
        }
    }
    gone
}

/// Of refs of commits, newest day first: those that go, since nobody asked for them lately, since there are newer ones of
/// the same commit, or since they are too many.
fn forgotten(refs: &[String], today: u64) -> Vec<&str> {
    let mut kept = BTreeSet::new();
    let is_forgotten = |name: &&str| {
        let Some((day, commit)) = name.strip_prefix("refs/commits/").and_then(|rest| rest.split_once('/')) else {
            return true;
        };
        let is_young = day.parse().is_ok_and(|day: u64| day + COMMIT_DAYS >= today);
        !(is_young && kept.len() < COMMITS_MAX && kept.insert(commit.to_owned()))
    };
    refs.iter().map(String::as_str).filter(is_forgotten).collect()
}

fn day(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs() / DAY_S
}

fn list(dir: &Path, now: SystemTime) -> std::io::Result<Vec<Found>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(DOOMED) {
            std::fs::remove_dir_all(entry.path())?;
            continue;
        }
        let used = std::fs::metadata(entry.path().join(USED_FILE)).and_then(|file| file.modified());
        let used = used.or_else(|_| entry.metadata()?.modified())?;
        let unused = now.duration_since(used).unwrap_or_default();
        found.push(Found { name, bytes: bytes_below(&entry.path())?, unused });
    }
    Ok(found)
}

/// At once under another name, so that nobody takes half a mirror for a whole one.
fn remove(dir: &Path, name: &str) -> std::io::Result<()> {
    let doomed = dir.join([DOOMED, name].concat());
    std::fs::rename(dir.join(name), &doomed)?;
    std::fs::remove_dir_all(doomed)
}

fn bytes_below(path: &Path) -> std::io::Result<u64> {
    let mut bytes = 0;
    let mut directories = vec![path.to_owned()];
    while let Some(directory) = directories.pop() {
        // Files of a fetch come and go meanwhile.
        let Ok(entries) = std::fs::read_dir(&directory) else { continue };
        for entry in entries {
            let entry = entry?;
            match entry.metadata() {
                Ok(metadata) if metadata.is_dir() => directories.push(entry.path()),
                Ok(metadata) => bytes += metadata.len(),
                Err(_) => {}
            }
        }
    }
    Ok(bytes)
}

fn packed_bytes(repository: &Path) -> std::io::Result<u64> {
    bytes_below(&repository.join("objects"))
}

/// Removes what a git that was killed leaves in a bare repository: locks, and files that were to become objects or packs.
fn remove_leftovers(repository: &Path) -> std::io::Result<()> {
    let mut directories = vec![repository.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(&directory)? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if entry.file_type()?.is_dir() {
                if directory != repository || name == "refs" || name == "objects" {
                    directories.push(entry.path());
                }
            } else if name.ends_with(".lock") || name.starts_with("tmp_") || name.starts_with(".tmp-") {
                std::fs::remove_file(entry.path())?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
