//! What a connection needs while it lasts, told to whoever collects garbage. Start at [`TempRoots::add`].
//!
//! As in stock Nix: a file in `temproots` that its owner has locked lists paths, each ended by a NUL byte. Stock Nix has one
//! for each process and names it after the process; we have one for each connection, `PID-N`, of which it reads the number.
//! While garbage is being collected (`gc.lock` is held) the collector is told on its socket as well, and answers when it is
//! sure not to delete the path.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use harmonia_nix::store_path::StorePath;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::layout::open_lock_file;
use super::{Store, StoreError};

static COUNTER: AtomicU64 = AtomicU64::new(0);

/// The paths that one connection needs. They are free again when this ends.
#[derive(Debug)]
pub struct TempRoots {
    store: Arc<Store>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    file: Option<(File, PathBuf)>,
    collector: Option<UnixStream>,
}

impl Store {
    /// For one connection, or one task of the daemon's own.
    pub fn temp_roots(self: &Arc<Self>) -> TempRoots {
        TempRoots { store: Arc::clone(self), state: Mutex::default() }
    }
}

impl TempRoots {
    /// Keeps a path, which need not be valid yet, from being deleted.
    pub fn add(&self, path: &StorePath) -> Result<(), StoreError> {
        let mut state = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let state = &mut *state;
        if state.file.is_none() {
            state.file = Some(self.make_file()?);
        }
        let gc_lock_path = self.store.layout.gc_lock();
        let gc_lock = open_lock_file(&gc_lock_path)?;
        loop {
            match flock(&gc_lock, FlockOperation::NonBlockingLockShared) {
                Ok(()) => break,
                Err(Errno::WOULDBLOCK) => {}
                Err(errno) => return Err(StoreError::sys("lock", &gc_lock_path)(errno)),
            }
            if state.tell_collector(&self.store, path)? {
                break;
            }
        }
        // Written while no collection can begin, or after the running one knows.
        if let Some((file, name)) = &mut state.file {
            let mut line = path.as_str().as_bytes().to_vec();
            line.push(0);
            file.write_all(&line).map_err(StoreError::io("write", name))?;
        }
        Ok(())
    }

    fn make_file(&self) -> Result<(File, PathBuf), StoreError> {
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let name = self.store.layout.temp_roots_dir().join(format!("{}-{number}", std::process::id()));
        loop {
            // Left by a process that had our number before.
            let _ = fs::remove_file(&name);
            let file = open_lock_file(&name)?;
            flock(&file, FlockOperation::LockExclusive).map_err(StoreError::sys("lock", &name))?;
            // A collector that took it for a leftover has written into it and deleted it.
            if file.metadata().map_err(StoreError::io("look at", &name))?.len() == 0 {
                return Ok((file, name));
            }
        }
    }
}

impl State {
    /// Whether the running collection knows of the path now; `false` when there is none any more.
    fn tell_collector(&mut self, store: &Store, path: &StorePath) -> Result<bool, StoreError> {
        let socket = store.layout.gc_socket();
        if self.collector.is_none() {
            match UnixStream::connect(&socket) {
                Ok(stream) => self.collector = Some(stream),
                Err(cause) if is_gone(cause.kind()) => {
                    // The lock is held, but nobody listens: it is about to, or just did.
                    std::thread::yield_now();
                    return Ok(false);
                }
                Err(cause) => return Err(StoreError::io("connect to", &socket)(cause)),
            }
        }
        let Some(stream) = &mut self.collector else { return Ok(false) };
        let mut told = || -> io::Result<u8> {
            stream.write_all(format!("{path}\n").as_bytes())?;
            let mut answer = [0];
            stream.read_exact(&mut answer)?;
            Ok(answer[0])
        };
        match told() {
            Ok(b'1') => Ok(true),
            Ok(other) => {
                let cause = io::Error::other(format!("it answered {other:#x}"));
                Err(StoreError::io("tell the garbage collector at", &socket)(cause))
            }
            Err(_) => {
                self.collector = None;
                Ok(false)
            }
        }
    }
}

fn is_gone(kind: io::ErrorKind) -> bool {
    matches!(kind, io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound)
}

impl Drop for TempRoots {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some((_, name)) = &state.file {
            // Before the lock ends with the file.
            let _ = fs::remove_file(name);
        }
    }
}
