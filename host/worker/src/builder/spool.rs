//! Logs of running builds: a plain file each on this node's disk, and its end in memory. Start at [`Spool`].
//!
//! The file is plain while the build runs, so that any range of it can be read; it is compressed once, at the end.
//! Memory per build is bounded, whatever a build prints; so is the file.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use harmonia_core::AttemptId;
use harmonia_core::limits::{LOG_TAIL_BYTES, SMALL_OBJECT_BYTES_MAX};
use harmonia_core::ports::{LogSpool, PortFuture};
use harmonia_core::signer_api::LogBlob;

use crate::pack::{self, Compressed};

/// Bytes gathered before they go to the file.
const BUFFER_BYTES: usize = 32 << 10;
/// Most bytes of one read, whatever is asked for.
const READ_BYTES_MAX: usize = 1 << 20;
/// Logs are text: a low level is quick and nearly as small.
const LOG_LEVEL: i32 = 3;
/// Every file of the spool begins with one of these; what is found at start is from an older process.
const PREFIXES: [&str; 2] = ["log-", "pack-"];

/// The logs of all builds that run on this node.
#[derive(Debug)]
pub struct Spool {
    dir: PathBuf,
    running: Mutex<HashMap<AttemptId, Arc<AttemptLog>>>,
}

impl Spool {
    /// A spool in `dir`, which is created, belongs to this process alone, and is swept of what an older one left.
    pub fn open(dir: &Path) -> io::Result<Arc<Self>> {
        std::fs::create_dir_all(dir)?;
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            let name = entry.file_name();
            if PREFIXES.iter().any(|prefix| name.as_encoded_bytes().starts_with(prefix.as_bytes())) {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(Arc::new(Self { dir: dir.to_owned(), running: Mutex::default() }))
    }

    /// Where temporary files go.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Opens the log of an attempt. It can be read until the returned guard is dropped.
    pub(super) fn start(self: &Arc<Self>, attempt: AttemptId, bytes_max: u64) -> io::Result<OpenLog> {
        let log = Arc::new(AttemptLog::create(&self.dir, attempt, bytes_max)?);
        locked(&self.running).insert(attempt, Arc::clone(&log));
        Ok(OpenLog { spool: Arc::clone(self), log })
    }

    /// The logs that are open now.
    pub(super) fn open_logs(&self) -> Vec<Arc<AttemptLog>> {
        locked(&self.running).values().cloned().collect()
    }
}

impl LogSpool for Spool {
    fn read(&self, attempt: AttemptId, offset: u64, bytes_max: usize) -> PortFuture<'_, Option<Vec<u8>>> {
        let log = locked(&self.running).get(&attempt).cloned();
        Box::pin(async move {
            let log = log?;
            let read = tokio::task::spawn_blocking(move || log.read(offset, bytes_max.min(READ_BYTES_MAX)));
            match read.await.ok()? {
                Ok(bytes) => Some(bytes),
                Err(error) => {
                    tracing::warn!(%attempt, %error, "Could not read the log spool of attempt {attempt}");
                    None
                }
            }
        })
    }
}

/// Keeps an attempt's log in the spool; dropping it removes log and file.
#[derive(Debug)]
pub(super) struct OpenLog {
    spool: Arc<Spool>,
    log: Arc<AttemptLog>,
}

impl OpenLog {
    /// The log, for those who write to it.
    pub(super) fn shared(&self) -> Arc<AttemptLog> {
        Arc::clone(&self.log)
    }

    /// Compresses what was logged.
    pub(super) async fn compress(&self) -> Result<Compressed, pack::PackError> {
        self.log.flush();
        pack::compress_log(self.log.path.clone(), self.spool.dir.clone(), LOG_LEVEL).await
    }
}

impl std::ops::Deref for OpenLog {
    type Target = AttemptLog;
    fn deref(&self) -> &AttemptLog {
        &self.log
    }
}

impl Drop for OpenLog {
    fn drop(&mut self) {
        locked(&self.spool.running).remove(&self.log.attempt);
        if let Err(error) = std::fs::remove_file(&self.log.path) {
            tracing::warn!(attempt = %self.log.attempt, %error, "Could not remove {}", self.log.path.display());
        }
    }
}

/// What a signer is told of a compressed log: all of it, when it is small.
pub(super) fn log_blob(compressed: &Compressed) -> LogBlob {
    let is_small = compressed.file_size <= SMALL_OBJECT_BYTES_MAX as u64;
    // What cannot be read is uploaded like a large one, and the error shows there.
    let bytes = is_small.then(|| std::fs::read(&compressed.file).ok()).flatten();
    LogBlob {
        file_hash: compressed.file_hash.to_string(),
        file_size: compressed.file_size,
        bytes_base64: bytes.map(|bytes| BASE64.encode(bytes)),
    }
}

/// The log of one running attempt.
#[derive(Debug)]
pub(super) struct AttemptLog {
    attempt: AttemptId,
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    file: File,
    bytes_max: u64,
    /// Bytes not yet in the file; they end at `total`.
    pending: Vec<u8>,
    /// Bytes logged.
    total: u64,
    /// The end of the log, up to twice of what a snapshot holds.
    tail: Vec<u8>,
    /// Where the log ended when its tail was last stored.
    stored: u64,
    /// Nothing more is taken: the bound was reached or the file cannot be written.
    closed: bool,
}

/// The end of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tail {
    pub(super) start_offset: u64,
    pub(super) bytes: Vec<u8>,
}

impl Tail {
    pub(super) fn end(&self) -> u64 {
        self.start_offset + self.bytes.len() as u64
    }
}

impl AttemptLog {
    fn create(dir: &Path, attempt: AttemptId, bytes_max: u64) -> io::Result<Self> {
        let path = dir.join(format!("log-{attempt}"));
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path)?;
        let state = State {
            file,
            bytes_max,
            pending: Vec::with_capacity(BUFFER_BYTES),
            total: 0,
            tail: Vec::new(),
            stored: 0,
            closed: false,
        };
        Ok(Self { attempt, path, state: Mutex::new(state) })
    }

    pub(super) fn attempt(&self) -> AttemptId {
        self.attempt
    }

    /// Adds a line (without its line feed).
    pub(super) fn line(&self, line: &[u8]) {
        let mut state = locked(&self.state);
        if state.closed {
            return;
        }
        if state.total + line.len() as u64 + 1 > state.bytes_max {
            let marker =
                format!("[harmonia-ci: this log is longer than {} bytes; the rest was not kept]\n", state.bytes_max);
            state.append(marker.as_bytes());
            state.closed = true;
            return;
        }
        state.append(line);
        state.append(b"\n");
    }

    /// The end of the log, if it is not the one that was stored last.
    pub(super) fn changed_tail(&self) -> Option<Tail> {
        let state = locked(&self.state);
        if state.total == state.stored {
            return None;
        }
        let bytes = state.tail[state.tail.len().saturating_sub(LOG_TAIL_BYTES)..].to_vec();
        Some(Tail { start_offset: state.total - bytes.len() as u64, bytes })
    }

    /// The tail that ended there was stored.
    pub(super) fn stored(&self, end: u64) {
        let mut state = locked(&self.state);
        state.stored = state.stored.max(end);
    }

    #[cfg(test)]
    /// Bytes logged so far.
    pub(super) fn size(&self) -> u64 {
        locked(&self.state).total
    }

    fn flush(&self) {
        locked(&self.state).flush();
    }

    fn read(&self, offset: u64, bytes_max: usize) -> io::Result<Vec<u8>> {
        let mut state = locked(&self.state);
        state.flush();
        let length = usize::try_from(state.total.saturating_sub(offset)).unwrap_or(usize::MAX).min(bytes_max);
        let file = state.file.try_clone()?;
        drop(state);
        let mut bytes = vec![0; length];
        let mut filled = 0;
        while filled < length {
            match file.read_at(&mut bytes[filled..], offset + filled as u64) {
                // Shorter than what was logged: writing failed, and said so.
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        bytes.truncate(filled);
        Ok(bytes)
    }
}

impl State {
    fn append(&mut self, bytes: &[u8]) {
        self.total += bytes.len() as u64;
        self.tail.extend_from_slice(&bytes[bytes.len().saturating_sub(LOG_TAIL_BYTES)..]);
        if self.tail.len() > 2 * LOG_TAIL_BYTES {
            self.tail.drain(..self.tail.len() - LOG_TAIL_BYTES);
        }
        self.pending.extend_from_slice(bytes);
        if self.pending.len() >= BUFFER_BYTES {
            self.flush();
        }
    }

    /// A log that cannot be written must not fail the build: it is cut there, and the tail says so.
    fn flush(&mut self) {
        if let Err(error) = self.file.write_all(&self.pending)
            && !self.closed
        {
            self.closed = true;
            tracing::warn!(%error, "Could not write a build log, it is cut");
            let marker = format!("[harmonia-ci: the log could not be written here ({error}); the rest was not kept]\n");
            self.total += marker.len() as u64;
            self.tail.extend_from_slice(marker.as_bytes());
        }
        self.pending.clear();
    }
}

/// A panic in another task must not take the logs of all builds along.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use harmonia_core::log_end;

    use super::*;

    fn spool() -> (tempfile::TempDir, Arc<Spool>) {
        let dir = tempfile::tempdir().expect("folder");
        let spool = Spool::open(dir.path()).expect("spool");
        (dir, spool)
    }

    #[tokio::test]
    async fn any_range_of_a_running_log_can_be_read_by_its_offset() {
        let (_dir, spool) = spool();
        let log = spool.start(AttemptId(1), 1 << 20).expect("log");
        log.line(b"one");
        log.line(b"two \xff");
        assert_eq!(spool.read(AttemptId(1), 0, 100).await.as_deref(), Some(&b"one\ntwo \xff\n"[..]));
        log.line(b"three");
        assert_eq!(spool.read(AttemptId(1), 4, 3).await.as_deref(), Some(&b"two"[..]));
        assert_eq!(spool.read(AttemptId(1), 10, 100).await.as_deref(), Some(&b"three\n"[..]));
        assert_eq!(spool.read(AttemptId(1), 99, 100).await.as_deref(), Some(&b""[..]));
        assert_eq!(spool.read(AttemptId(2), 0, 100).await, None);
    }

    #[tokio::test]
    async fn a_long_log_keeps_its_end_in_bounded_memory_and_stops_at_its_bound() {
        let (_dir, spool) = spool();
        let bound = 1_000_000;
        let log = spool.start(AttemptId(1), bound).expect("log");
        let line = [b'x'; 99];
        for _ in 0..20_000 {
            log.line(&line);
            let state = locked(&log.state);
            assert!(state.tail.len() <= 3 * LOG_TAIL_BYTES && state.pending.len() <= BUFFER_BYTES);
        }
        let tail = log.changed_tail().expect("changed");
        assert_eq!(tail.bytes.len(), LOG_TAIL_BYTES);
        assert_eq!(tail.end(), log.size());
        let text = String::from_utf8(tail.bytes).expect("text");
        assert!(text.ends_with("longer than 1000000 bytes; the rest was not kept]\n"), "{}", &text[text.len() - 200..]);
        assert_eq!(text.matches("not kept").count(), 1);
        assert!(log.size() <= bound + 100);

        let compressed = log.compress().await.expect("compresses");
        let file = std::fs::read(&compressed.file).expect("file");
        let plain = zstd::decode_all(&file[..]).expect("zstd");
        assert_eq!(plain.len() as u64, log.size());
        assert!(plain.ends_with(text.as_bytes()));
        assert_eq!(log_blob(&compressed).file_size, file.len() as u64);
        let (end, total) = log_end::parse(&file).expect("its end is kept behind it");
        assert_eq!(total, log.size());
        assert_eq!(zstd::decode_all(end).expect("zstd"), plain[plain.len() - log_end::LOG_END_BYTES..]);
    }

    #[tokio::test]
    async fn an_empty_log_is_a_log() {
        let (_dir, spool) = spool();
        let log = spool.start(AttemptId(1), 1_000).expect("log");
        let compressed = log.compress().await.expect("compresses");
        let file = std::fs::read(&compressed.file).expect("file");
        assert_eq!(zstd::decode_all(&file[..]).expect("zstd"), b"");
        let (end, total) = log_end::parse(&file).expect("its end");
        assert_eq!((zstd::decode_all(end).expect("zstd"), total), (vec![], 0));
    }

    #[test]
    fn a_tail_is_stored_once_and_again_when_the_log_grew() {
        let (_dir, spool) = spool();
        let log = spool.start(AttemptId(1), 1 << 20).expect("log");
        assert_eq!(log.changed_tail(), None);
        log.line(b"a");
        let first = log.changed_tail().expect("changed");
        log.line(b"b");
        log.stored(first.end());
        let second = log.changed_tail().expect("the line that came meanwhile");
        assert_eq!(second, Tail { start_offset: 0, bytes: b"a\nb\n".to_vec() });
        log.stored(second.end());
        assert_eq!(log.changed_tail(), None);
    }

    #[test]
    fn ended_logs_leave_nothing_and_a_new_spool_sweeps_what_a_crash_left() {
        let (dir, spool) = spool();
        drop(spool.start(AttemptId(1), 100).expect("log"));
        assert!(spool.open_logs().is_empty());
        assert_eq!(std::fs::read_dir(dir.path()).expect("folder").count(), 0);
        std::fs::write(dir.path().join("log-7"), "left").expect("file");
        std::fs::write(dir.path().join("pack-abc"), "left").expect("file");
        std::fs::write(dir.path().join("other"), "not ours").expect("file");
        Spool::open(dir.path()).expect("spool");
        let left: Vec<_> = std::fs::read_dir(dir.path()).expect("folder").flatten().map(|e| e.file_name()).collect();
        assert_eq!(left, ["other"]);
    }
}
