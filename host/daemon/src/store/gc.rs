//! Collecting garbage. Start at [`Store::collect_garbage`].
//!
//! Whoever collects holds `gc.lock`, so that no permanent root appears unseen, and answers at `gc-socket` (`gc/server`) those
//! who need a path from now on: both as in stock Nix, whose processes may be among them. What nobody needs is made invalid
//! first and deleted then, so that whenever this is cut off there is at most an invalid leftover.

mod server;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs;
use std::path::Path;

use harmonia_nix::store_path::StorePath;
use harmonia_nix::worker_protocol::{GcAction, GcReport, GcRequest};
use rustix::fs::{FlockOperation, flock};

use super::layout::open_lock_file;
use super::staging::STAGING_NAME;
use super::{Store, StoreError, tree};
use server::{RootServer, Shared};

/// What follows from the settings of the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeepOptions {
    /// A derivation that is needed keeps its outputs (`keep-outputs`).
    pub outputs: bool,
    /// An output that is needed keeps the derivation that made it (`keep-derivations`).
    pub derivations: bool,
}

impl Store {
    /// Collects garbage, or tells what would be collected. `told` hears what is done.
    pub fn collect_garbage(
        &self,
        request: &GcRequest,
        keep: KeepOptions,
        told: &dyn Fn(&str),
    ) -> Result<GcReport, StoreError> {
        let deletes = matches!(request.action, GcAction::DeleteDead | GcAction::DeleteSpecific);
        if deletes {
            // The database needs room, of which there may be none.
            let _ = fs::remove_file(self.layout.db_dir().join("reserved"));
        }
        let lock_path = self.layout.gc_lock();
        let lock = open_lock_file(&lock_path)?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            told("waiting for the big garbage collector lock...");
            flock(&lock, FlockOperation::LockExclusive).map_err(StoreError::sys("lock", &lock_path))?;
        }
        let server = RootServer::start(&self.layout.gc_socket())?;
        told("finding garbage collector roots...");
        let mut roots: BTreeSet<StorePath> = BTreeSet::new();
        if !request.ignore_liveness {
            roots.extend(self.permanent_roots(true)?.into_keys());
        }
        for (path, _) in self.find_temp_roots()? {
            server.shared().need(path.hash_part());
            roots.insert(path);
        }
        // So that tests can act at the worst moment.
        if let Some(path) = std::env::var_os("_NIX_TEST_GC_SYNC") {
            let _ = fs::read(path);
        }
        let mut collection = Collection {
            store: self,
            request,
            keep: if request.ignore_liveness && request.action == GcAction::DeleteSpecific {
                KeepOptions { outputs: false, derivations: false }
            } else {
                keep
            },
            told,
            deletes,
            shared: server.shared(),
            roots,
            alive: HashSet::new(),
            dead: BTreeSet::new(),
            deleted: BTreeSet::new(),
            freed_bytes: 0,
        };
        let done = collection.run();
        let paths: BTreeSet<String> = match request.action {
            GcAction::ReturnLive => collection.alive.iter().map(ToString::to_string).collect(),
            GcAction::ReturnDead => collection.dead.iter().map(ToString::to_string).collect(),
            GcAction::DeleteDead | GcAction::DeleteSpecific => std::mem::take(&mut collection.deleted),
        };
        let freed_bytes = collection.freed_bytes;
        if deletes {
            if done.is_ok() {
                self.delete_unused_links(told)?;
            }
            self.layout.reserve_space();
        }
        done?;
        Ok(GcReport { paths: paths.into_iter().collect(), freed_bytes })
    }

    /// Deletes what additions left that were cut off. Nothing, when garbage is being collected just now, which does it too.
    pub fn sweep(&self) -> Result<(), StoreError> {
        let lock_path = self.layout.gc_lock();
        let lock = open_lock_file(&lock_path)?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Ok(());
        }
        let server = RootServer::start(&self.layout.gc_socket())?;
        for (path, _) in self.find_temp_roots()? {
            server.shared().need(path.hash_part());
        }
        let dir = &self.layout.real_store_dir;
        for entry in fs::read_dir(dir).map_err(StoreError::io("list", dir))? {
            let name = entry.map_err(StoreError::io("list", dir))?.file_name();
            let Some(path) = name.to_str().and_then(|name| StorePath::from_base_name(name).ok()) else { continue };
            // What is being staged is among the temporary roots.
            let _released = Released(server.shared());
            if path.name() == STAGING_NAME && server.shared().begin(path.hash_part()) {
                tracing::info!(%path, "Deleted what was left of an addition");
                tree::delete(&self.real_path(&path))?;
            }
        }
        Ok(())
    }

    /// Files of `.links` that nothing else is linked to any more.
    fn delete_unused_links(&self, told: &dyn Fn(&str)) -> Result<(), StoreError> {
        use std::os::unix::fs::MetadataExt;
        told("deleting unused links...");
        let dir = self.layout.links_dir();
        let (mut kept_bytes, mut shared_bytes) = (0, 0);
        for entry in fs::read_dir(&dir).map_err(StoreError::io("list", &dir))? {
            let path = entry.map_err(StoreError::io("list", &dir))?.path();
            let found = match fs::symlink_metadata(&path) {
                Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => continue,
                found => found.map_err(StoreError::io("look at", &path))?,
            };
            if found.nlink() == 1 {
                fs::remove_file(&path).map_err(StoreError::io("delete", &path))?;
            } else {
                kept_bytes += found.size();
                shared_bytes += (found.nlink() - 1) * found.size();
            }
        }
        let overhead = fs::metadata(&dir).map_err(StoreError::io("look at", &dir))?.blocks() * 512;
        let saved = (shared_bytes as f64 - kept_bytes as f64 - overhead as f64) / f64::from(1 << 20);
        told(&format!("note: currently hard linking saves {saved:.2} MiB"));
        Ok(())
    }
}

/// Why a collection ends before everything was looked at.
enum Stopped {
    /// As many bytes are free as were asked for.
    Enough,
    Failed(StoreError),
}

impl From<StoreError> for Stopped {
    fn from(error: StoreError) -> Self {
        Self::Failed(error)
    }
}

struct Collection<'a> {
    store: &'a Store,
    request: &'a GcRequest,
    keep: KeepOptions,
    told: &'a dyn Fn(&str),
    deletes: bool,
    shared: &'a Shared,
    roots: BTreeSet<StorePath>,
    alive: HashSet<StorePath>,
    dead: BTreeSet<StorePath>,
    /// Also what is no store path.
    deleted: BTreeSet<String>,
    freed_bytes: u64,
}

impl Collection<'_> {
    fn run(&mut self) -> Result<(), StoreError> {
        let done = if self.request.action == GcAction::DeleteSpecific { self.specific() } else { self.everything() };
        match done {
            Ok(()) | Err(Stopped::Enough) => Ok(()),
            Err(Stopped::Failed(error)) => Err(error),
        }
    }

    fn specific(&mut self) -> Result<(), Stopped> {
        for path in &self.request.paths {
            self.visit(path)?;
            if !self.dead.contains(path) {
                return Err(Stopped::Failed(StoreError::Alive(path.clone())));
            }
        }
        Ok(())
    }

    fn everything(&mut self) -> Result<(), Stopped> {
        if self.request.max_freed_bytes == 0 {
            return Ok(());
        }
        (self.told)(if self.deletes { "deleting garbage..." } else { "determining live/dead paths..." });
        let dir = &self.store.layout.real_store_dir;
        for entry in fs::read_dir(dir).map_err(StoreError::io("list", dir))? {
            let name = entry.map_err(StoreError::io("list", dir))?.file_name();
            if name == ".links" {
                continue;
            }
            match name.to_str().and_then(|name| StorePath::from_base_name(name).ok()) {
                Some(path) => self.visit(&path)?,
                // Somebody's leftover.
                None if self.deletes => self.delete(Path::new(&name))?,
                None => {}
            }
        }
        Ok(())
    }

    /// Finds whether anybody needs the path, by way of all that refer to it; if not, all of those go.
    fn visit(&mut self, start: &StorePath) -> Result<(), Stopped> {
        let _released = Released(self.shared);
        let mut visited: BTreeMap<StorePath, BTreeSet<StorePath>> = BTreeMap::new();
        let mut todo = vec![start.clone()];
        while let Some(path) = todo.pop() {
            if visited.contains_key(&path) || self.dead.contains(&path) {
                continue;
            }
            if self.alive.contains(&path) {
                self.alive.insert(start.clone());
                return Ok(());
            }
            if self.roots.contains(&path) {
                return Ok(self.mark_alive(start, &path)?);
            }
            if self.request.action == GcAction::DeleteSpecific && !self.request.paths.contains(&path) {
                return Ok(());
            }
            // From here on whoever needs this path waits until we have decided.
            if !self.shared.begin(path.hash_part()) {
                return Ok(self.mark_alive(start, &path)?);
            }
            let referrers = if self.store.is_valid(&path)? { self.store.referrers(&path)? } else { BTreeSet::new() };
            todo.extend(referrers.iter().filter(|referrer| **referrer != path).cloned());
            todo.extend(self.kept_with(&path)?);
            visited.insert(path, referrers);
        }
        let order = referrers_first(&visited);
        for path in order {
            self.dead.insert(path.clone());
            if self.deletes {
                self.store.invalidate(&path)?;
                self.delete(Path::new(path.base_name()))?;
            }
        }
        Ok(())
    }

    /// What keeps the path although it does not refer to it.
    fn kept_with(&self, path: &StorePath) -> Result<Vec<StorePath>, StoreError> {
        let mut keepers = Vec::new();
        if !self.store.is_valid(path)? {
            return Ok(keepers);
        }
        if self.keep.derivations && path.is_derivation() {
            for output in self.store.derivation_outputs(path)?.into_values() {
                let info = self.store.path_info(&output)?;
                if info.is_some_and(|info| info.deriver.as_ref() == Some(path)) {
                    keepers.push(output);
                }
            }
        }
        if self.keep.outputs {
            keepers.extend(self.store.valid_derivers(path)?);
        }
        Ok(keepers)
    }

    /// The path is needed, and so is what it refers to.
    fn mark_alive(&mut self, start: &StorePath, path: &StorePath) -> Result<(), StoreError> {
        self.alive.insert(start.clone());
        let mut todo = vec![path.clone()];
        while let Some(path) = todo.pop() {
            let Some(info) = self.store.path_info(&path)? else {
                self.alive.insert(path);
                continue;
            };
            let mut needed: Vec<StorePath> = info.references.into_iter().collect();
            if self.keep.outputs && path.is_derivation() {
                let outputs: Vec<StorePath> = self.store.derivation_outputs(&path)?.into_values().collect();
                needed.extend(self.store.valid_of(&outputs)?);
            }
            if self.keep.derivations
                && let Some(deriver) = info.deriver
                && self.store.is_valid(&deriver)?
            {
                needed.push(deriver);
            }
            needed.retain(|needed| !self.alive.contains(needed));
            self.alive.extend(needed.iter().cloned());
            todo.extend(needed);
            self.alive.insert(path);
        }
        Ok(())
    }

    fn delete(&mut self, name: &Path) -> Result<(), Stopped> {
        let path = Path::new(harmonia_nix::STORE_DIR).join(name).display().to_string();
        (self.told)(&format!("deleting '{path}'"));
        self.freed_bytes += tree::delete(&self.store.layout.real_store_dir.join(name))?;
        self.deleted.insert(path);
        if self.freed_bytes > self.request.max_freed_bytes {
            (self.told)(&format!("deleted more than {} bytes; stopping", self.request.max_freed_bytes));
            return Err(Stopped::Enough);
        }
        Ok(())
    }
}

/// Lets those go on who wait for what was being looked at.
struct Released<'a>(&'a Shared);

impl Drop for Released<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// So that each path comes after all that refer to it.
fn referrers_first(visited: &BTreeMap<StorePath, BTreeSet<StorePath>>) -> Vec<StorePath> {
    let mut order = Vec::new();
    let mut done: BTreeSet<&StorePath> = BTreeSet::new();
    for start in visited.keys() {
        let mut way = vec![(start, visited[start].iter())];
        while let Some((path, referrers)) = way.last_mut() {
            let path = *path;
            if done.contains(path) {
                way.pop();
                continue;
            }
            match referrers.next() {
                Some(next) if next == path || done.contains(next) => {}
                Some(next) => {
                    if let Some((next, referrers)) = visited.get_key_value(next) {
                        way.push((next, referrers.iter()));
                    }
                }
                None => {
                    done.insert(path);
                    order.push(path.clone());
                    way.pop();
                }
            }
        }
    }
    order
}
