//! Whom others tell, while garbage is collected, what they need from now on. Start at [`RootServer::start`].
//!
//! A line with a path is answered with `1` once it is certain that the path will not be deleted any more: at once, or when
//! the path that is just being looked at is decided on (and perhaps gone).

use std::collections::HashSet;
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;

use harmonia_nix::store_path::StorePath;

use crate::store::{StoreError, layout};

/// Longest line that a client may send, in bytes.
const LINE_BYTES_MAX: u64 = 4096;

/// What collector and clients know together.
#[derive(Debug, Default)]
pub(super) struct Shared {
    state: Mutex<State>,
    decided: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Hash parts, which stand for the names of locks and the like as well.
    needed: HashSet<String>,
    /// What is being looked at.
    pending: HashSet<String>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Somebody needs it.
    pub(super) fn need(&self, hash_part: &str) {
        self.state().needed.insert(hash_part.to_owned());
    }

    /// Looks at a path, until [`Shared::end`]. `false`: somebody needs it.
    pub(super) fn begin(&self, hash_part: &str) -> bool {
        let mut state = self.state();
        if state.needed.contains(hash_part) {
            return false;
        }
        state.pending.insert(hash_part.to_owned());
        true
    }

    /// What was looked at is decided on.
    pub(super) fn end(&self) {
        self.state().pending.clear();
        self.decided.notify_all();
    }

    fn need_and_wait(&self, hash_part: &str) {
        let mut state = self.state();
        state.needed.insert(hash_part.to_owned());
        while state.pending.contains(hash_part) {
            state = self.decided.wait(state).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
    }
}

/// Answers until it is dropped.
#[derive(Debug)]
pub(super) struct RootServer {
    shared: Arc<Shared>,
    clients: Arc<Mutex<Clients>>,
    accepting: Option<JoinHandle<()>>,
    path: PathBuf,
}

#[derive(Debug, Default)]
struct Clients {
    is_over: bool,
    streams: Vec<UnixStream>,
    threads: Vec<JoinHandle<()>>,
}

impl RootServer {
    /// Listens at the path, which belongs to the holder of the collector's lock.
    pub(super) fn start(path: &Path) -> Result<Self, StoreError> {
        if let Some(dir) = path.parent() {
            layout::make_dirs(dir)?;
        }
        let _ = fs::remove_file(path);
        let listener = UnixListener::bind(path).map_err(StoreError::io("listen on", path))?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o666))
            .map_err(StoreError::io("set the mode of", path))?;
        let (shared, clients) = (Arc::<Shared>::default(), Arc::<Mutex<Clients>>::default());
        let (shared_there, clients_there) = (Arc::clone(&shared), Arc::clone(&clients));
        let accepting = std::thread::spawn(move || accept(&listener, &shared_there, &clients_there));
        Ok(Self { shared, clients, accepting: Some(accepting), path: path.to_owned() })
    }

    pub(super) fn shared(&self) -> &Shared {
        &self.shared
    }
}

impl Drop for RootServer {
    fn drop(&mut self) {
        self.shared.end();
        let threads = {
            let mut clients = self.clients.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            clients.is_over = true;
            for stream in clients.streams.drain(..) {
                let _ = stream.shutdown(std::net::Shutdown::Both);
            }
            std::mem::take(&mut clients.threads)
        };
        // One more connection, for it to see that it is over.
        let woken = UnixStream::connect(&self.path);
        for thread in threads.into_iter().chain(woken.is_ok().then(|| self.accepting.take()).flatten()) {
            let _ = thread.join();
        }
    }
}

fn accept(listener: &UnixListener, shared: &Arc<Shared>, clients: &Arc<Mutex<Clients>>) {
    for stream in listener.incoming() {
        let mut clients = clients.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if clients.is_over {
            return;
        }
        let Ok(stream) = stream else { continue };
        let Ok(copy) = stream.try_clone() else { continue };
        let shared = Arc::clone(shared);
        clients.streams.push(copy);
        clients.threads.push(std::thread::spawn(move || {
            if let Err(error) = answer(stream, &shared) {
                tracing::debug!(%error, "Somebody who needs paths hung up");
            }
        }));
    }
}

fn answer(mut stream: UnixStream, shared: &Shared) -> io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?);
    loop {
        let mut line = Vec::new();
        let read = io::Read::take(&mut lines, LINE_BYTES_MAX).read_until(b'\n', &mut line)?;
        if read == 0 {
            return Ok(());
        }
        let path = std::str::from_utf8(line.trim_ascii_end()).ok().and_then(|text| text.parse::<StorePath>().ok());
        if let Some(path) = path {
            shared.need_and_wait(path.hash_part());
        } else {
            tracing::warn!("Somebody sent garbage instead of a root");
        }
        stream.write_all(b"1")?;
    }
}
