//! Small objects become durable together: they are written to one file first, which is synced once for all who wait at that
//! time, and only then take their places. Start at [`Journal::append`].
//!
//! Their own files are not synced. What a crash of the machine may have kept of those is not looked at: whatever stands
//! in the journal is written again when the folder is opened ([`Journal::recover`]). A journal that grew large is followed by
//! another one, and goes when a sync of the whole file system made all durable that it speaks of.
//!
//! A record: length of what follows the checksum and its CRC-32 (32 bits each, little endian), length of the header (the same),
//! header (JSON), bytes of the object's file. What does not fit its checksum was being written when the machine went down, and
//! nobody was told that it is stored.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use s3s::crypto::{Checksum as _, Crc32};
use serde::{Deserialize, Serialize};

/// Files up to this size, metadata included, go through the journal; larger ones are synced by themselves.
pub(crate) const SMALL_BYTES_MAX: u64 = 64 << 10;
/// A journal this large is followed by another one.
const SEGMENT_BYTES_MAX: u64 = 16 << 20;
/// A record longer than this is damage.
const RECORD_BYTES_MAX: u32 = 2 << 20;

/// What happened to a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Change {
    /// The record has its file.
    Put,
    /// It was replaced by something that does not stand here and is durable.
    Elsewhere,
    /// It was deleted.
    Removed,
}

/// Which object.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Place {
    pub(crate) bucket: String,
    pub(crate) key: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Header {
    change: Change,
    #[serde(flatten)]
    place: Place,
}

type Sync = dyn Fn(&File) -> io::Result<()> + Send + std::marker::Sync;

/// The journal of one folder.
pub(crate) struct Journal {
    dir: PathBuf,
    state: Mutex<State>,
    /// Something was synced, or applied.
    progress: Condvar,
    sync: Box<Sync>,
    syncs: Arc<AtomicU64>,
}

struct State {
    file: Arc<File>,
    segment: u64,
    segment_bytes: u64,
    /// Records written, and how many of them are known to be on disk. They are counted over all segments.
    written: u64,
    durable: u64,
    /// Somebody waits for the disk, for all that was written before.
    is_syncing: bool,
    /// Segments of which a sync failed, and up to which record they were durable before.
    failed: HashMap<u64, u64>,
    /// Keys that records speak of, by the segment of the last one.
    keys: HashMap<Place, u64>,
    /// Records whose objects have not taken their places yet, by segment.
    unapplied: HashMap<u64, u64>,
    /// Older segments are being made superfluous.
    is_clearing: bool,
}

/// A record that is durable. Dropped when what it says was done.
pub(crate) struct Recorded<'a> {
    journal: &'a Journal,
    segment: u64,
}

impl Drop for Recorded<'_> {
    fn drop(&mut self) {
        let mut state = self.journal.state();
        if let Some(count) = state.unapplied.get_mut(&self.segment) {
            *count -= 1;
            if *count == 0 {
                state.unapplied.remove(&self.segment);
                self.journal.progress.notify_all();
            }
        }
    }
}

impl std::fmt::Debug for Journal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Journal").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl Journal {
    /// What the journals in `dir` say was last done to each key, with the file that it then had.
    pub(crate) fn recover(dir: &Path) -> io::Result<Vec<(Place, Change, Vec<u8>)>> {
        let mut last: HashMap<Place, (Change, Vec<u8>)> = HashMap::new();
        for (_, path) in segments(dir)? {
            let mut bytes = Vec::new();
            File::open(&path)?.read_to_end(&mut bytes)?;
            let mut rest = &bytes[..];
            while let Some((header, file, after)) = read_record(rest) {
                last.insert(header.place, (header.change, file.to_vec()));
                rest = after;
            }
        }
        Ok(last.into_iter().map(|(place, (change, file))| (place, change, file)).collect())
    }

    /// An empty journal in `dir`; what older ones speak of must be durable by now, they are removed.
    pub(crate) fn start(dir: &Path, syncs: Arc<AtomicU64>) -> io::Result<Self> {
        Self::start_with(dir, syncs, Box::new(File::sync_data))
    }

    fn start_with(dir: &Path, syncs: Arc<AtomicU64>, sync: Box<Sync>) -> io::Result<Self> {
        let older = segments(dir)?;
        let segment = older.last().map_or(0, |(number, _)| number + 1);
        let file = create(dir, segment)?;
        for (_, path) in older {
            fs::remove_file(path)?;
        }
        let state = State {
            file: Arc::new(file),
            segment,
            segment_bytes: 0,
            written: 0,
            durable: 0,
            is_syncing: false,
            failed: HashMap::new(),
            keys: HashMap::new(),
            unapplied: HashMap::new(),
            is_clearing: false,
        };
        Ok(Self { dir: dir.to_owned(), state: Mutex::new(state), progress: Condvar::new(), sync, syncs })
    }

    /// Whether a record speaks of this key: then whatever happens to it must be recorded, too.
    pub(crate) fn knows(&self, place: &Place) -> bool {
        self.state().keys.contains_key(place)
    }

    /// Records a change and waits until the record is durable, together with whoever waits at that time.
    pub(crate) fn append(&self, place: &Place, change: Change, file: &[u8]) -> io::Result<Recorded<'_>> {
        let record = record(&Header { change, place: place.clone() }, file)?;
        let mut state = self.state();
        if state.failed.contains_key(&state.segment) {
            self.next_segment(&mut state)?;
        }
        if let Err(cause) = (&*state.file).write_all(&record) {
            // Half a record would hide all that come after it.
            self.turn_over(&mut state)?;
            return Err(cause);
        }
        state.written += 1;
        state.segment_bytes += record.len() as u64;
        let (ours, segment) = (state.written, state.segment);
        state.keys.insert(place.clone(), segment);
        *state.unapplied.entry(segment).or_default() += 1;
        drop(state);
        let recorded = Recorded { journal: self, segment };
        self.wait_for(ours, segment)?;
        Ok(recorded)
    }

    /// One waits for the disk, for all that were written by then; those that come meanwhile are the next.
    fn wait_for(&self, ours: u64, segment: u64) -> io::Result<()> {
        let mut state = self.state();
        loop {
            if state.failed.get(&segment).is_some_and(|durable| ours > *durable) {
                return Err(io::Error::other("the journal of the object store could not be written to disk"));
            }
            if state.durable >= ours {
                return Ok(());
            }
            if state.is_syncing {
                state = self.progress.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            state.is_syncing = true;
            let (written, file) = (state.written, Arc::clone(&state.file));
            drop(state);
            let synced = self.sync(&file);
            state = self.state();
            state.is_syncing = false;
            state.settle(segment, written, synced);
            self.progress.notify_all();
        }
    }

    /// When the journal grew large: another one takes its place, and the old ones go once `make_durable` saw to all that they
    /// speak of. Blocks for that long; at most one caller does it at a time.
    pub(crate) fn clear_if_large(&self, make_durable: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let current = {
            let mut state = self.state();
            if state.segment_bytes < SEGMENT_BYTES_MAX || state.is_clearing {
                return Ok(());
            }
            state.is_clearing = true;
            if let Err(cause) = self.turn_over(&mut state) {
                state.is_clearing = false;
                return Err(cause);
            }
            let current = state.segment;
            while state.unapplied.keys().any(|segment| *segment < current) {
                state = self.progress.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            current
        };
        let cleared = make_durable().and_then(|()| {
            for (number, path) in segments(&self.dir)? {
                if number < current {
                    fs::remove_file(path)?;
                }
            }
            Ok(())
        });
        let mut state = self.state();
        state.is_clearing = false;
        if cleared.is_ok() {
            state.keys.retain(|_, segment| *segment >= current);
        }
        cleared
    }

    /// Goes on in another file. Whoever waits for what is in this one need not wait longer.
    fn turn_over(&self, state: &mut State) -> io::Result<()> {
        let synced = self.sync(&state.file);
        let (segment, written) = (state.segment, state.written);
        state.settle(segment, written, synced);
        self.progress.notify_all();
        self.next_segment(state)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        self.syncs.fetch_add(1, Ordering::Relaxed);
        (self.sync)(file)
    }

    fn next_segment(&self, state: &mut State) -> io::Result<()> {
        let segment = state.segment + 1;
        state.file = Arc::new(create(&self.dir, segment)?);
        self.syncs.fetch_add(1, Ordering::Relaxed);
        state.segment = segment;
        state.segment_bytes = 0;
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The file of `segment` was synced when so many records had been written, or could not be.
    fn settle(&mut self, segment: u64, written: u64, synced: io::Result<()>) {
        match synced {
            Ok(()) => self.durable = self.durable.max(written),
            Err(error) => {
                tracing::error!(%error, "The journal of the object store could not be written to disk");
                // What the kernel gave up it does not try again: that file is not used further.
                self.failed.entry(segment).or_insert(self.durable);
            }
        }
    }
}

fn create(dir: &Path, segment: u64) -> io::Result<File> {
    let file = File::options().append(true).create_new(true).open(dir.join(format!("{segment:016}")))?;
    File::open(dir)?.sync_all()?;
    Ok(file)
}

/// In order.
fn segments(dir: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut segments = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let number = path.file_name().and_then(|name| name.to_str()?.parse().ok());
        segments.extend(number.map(|number| (number, path)));
    }
    segments.sort_unstable();
    Ok(segments)
}

fn record(header: &Header, file: &[u8]) -> io::Result<Vec<u8>> {
    let header = serde_json::to_vec(header)?;
    let too_long = |_| io::Error::new(io::ErrorKind::InvalidInput, "too long for the journal");
    let header_bytes = u32::try_from(header.len()).map_err(too_long)?;
    let payload = [&header_bytes.to_le_bytes()[..], &header, file].concat();
    let length = u32::try_from(payload.len()).map_err(too_long)?;
    Ok([&length.to_le_bytes()[..], &checksum(&payload), &payload].concat())
}

/// The first record, and what follows it; `None` when there is no whole one.
fn read_record(bytes: &[u8]) -> Option<(Header, &[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let length = u32::from_le_bytes(*length);
    if length > RECORD_BYTES_MAX {
        return None;
    }
    let (sum, rest) = rest.split_first_chunk::<4>()?;
    let (payload, after) = rest.split_at_checked(length as usize)?;
    if checksum(payload) != *sum {
        return None;
    }
    let (header_bytes, payload) = payload.split_first_chunk::<4>()?;
    let (header, file) = payload.split_at_checked(u32::from_le_bytes(*header_bytes) as usize)?;
    Some((serde_json::from_slice(header).ok()?, file, after))
}

fn checksum(bytes: &[u8]) -> [u8; 4] {
    let mut sum = Crc32::new();
    sum.update(bytes);
    sum.finalize()
}

#[cfg(test)]
mod tests {
    use std::sync::OnceLock;

    use super::*;

    fn place(key: &str) -> Place {
        Place { bucket: "b".to_owned(), key: key.to_owned() }
    }

    fn recovered(dir: &Path) -> Vec<(String, Change, Vec<u8>)> {
        let found = Journal::recover(dir).expect("recovers");
        let mut found: Vec<_> = found.into_iter().map(|(place, change, file)| (place.key, change, file)).collect();
        found.sort_by(|one, other| one.0.cmp(&other.0));
        found
    }

    #[test]
    fn those_that_come_while_one_waits_for_the_disk_share_the_next_sync() {
        const OTHERS: u64 = 15;
        let dir = tempfile::tempdir().expect("folder");
        let syncs = Arc::new(AtomicU64::new(0));
        let started: Arc<OnceLock<Arc<Journal>>> = Arc::default();
        // The disk takes until all others have written.
        let seen = Arc::clone(&started);
        let slow = move |file: &File| {
            let journal = seen.get().expect("started");
            while journal.state().written < 1 + OTHERS {
                std::thread::yield_now();
            }
            file.sync_data()
        };
        let journal = Journal::start_with(dir.path(), Arc::clone(&syncs), Box::new(slow)).expect("starts");
        let journal = Arc::clone(started.get_or_init(|| Arc::new(journal)));
        let threads: Vec<_> = (0..=OTHERS)
            .map(|index| {
                let journal = Arc::clone(&journal);
                std::thread::spawn(move || {
                    drop(journal.append(&place(&index.to_string()), Change::Put, b"file").expect("recorded"));
                })
            })
            .collect();
        for thread in threads {
            thread.join().expect("no panic");
        }
        assert!((1..=2).contains(&syncs.load(Ordering::Relaxed)), "{syncs:?}");
        assert_eq!(recovered(dir.path()).len() as u64, 1 + OTHERS);
    }

    #[test]
    fn the_last_word_on_each_key_counts_and_a_torn_end_does_not() {
        let dir = tempfile::tempdir().expect("folder");
        let journal = Journal::start(dir.path(), Arc::default()).expect("starts");
        for (key, change, file) in [
            ("a", Change::Put, &b"first"[..]),
            ("b", Change::Put, b"b"),
            ("a", Change::Put, b"second"),
            ("b", Change::Removed, b""),
            ("c", Change::Put, b""),
        ] {
            drop(journal.append(&place(key), change, file).expect("recorded"));
        }
        assert!(journal.knows(&place("b")) && !journal.knows(&place("d")));
        let (_, path) = segments(dir.path()).expect("segments").pop().expect("one");
        let torn = record(&Header { change: Change::Put, place: place("a") }, b"never acknowledged").expect("short");
        for cut in [1, 7, 20, torn.len() - 1] {
            let whole = fs::read(&path).expect("reads");
            fs::write(&path, [&whole[..], &torn[..cut]].concat()).expect("writes");
            let expected = [("a", Change::Put, &b"second"[..]), ("b", Change::Removed, b""), ("c", Change::Put, b"")];
            let expected = expected.map(|(key, change, file)| (key.to_owned(), change, file.to_vec()));
            assert_eq!(recovered(dir.path()), expected, "{cut}");
            fs::write(&path, whole).expect("writes");
        }
    }

    #[test]
    fn who_waits_for_a_disk_that_fails_hears_of_it_and_the_next_one_is_fine() {
        let dir = tempfile::tempdir().expect("folder");
        let failures = AtomicU64::new(1);
        let broken = move |file: &File| match failures
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1))
        {
            Ok(_) => Err(io::Error::other("no disk")),
            Err(_) => file.sync_data(),
        };
        let journal = Journal::start_with(dir.path(), Arc::default(), Box::new(broken)).expect("starts");
        assert!(journal.append(&place("a"), Change::Put, b"lost").is_err());
        drop(journal.append(&place("b"), Change::Put, b"kept").expect("recorded"));
        assert!(recovered(dir.path()).contains(&("b".to_owned(), Change::Put, b"kept".to_vec())));
    }

    #[test]
    fn a_large_journal_goes_when_all_of_it_is_durable() {
        let dir = tempfile::tempdir().expect("folder");
        let journal = Journal::start(dir.path(), Arc::default()).expect("starts");
        let file = vec![7; SMALL_BYTES_MAX as usize];
        let mut cleared = 0;
        for index in 0..=SEGMENT_BYTES_MAX / SMALL_BYTES_MAX {
            drop(journal.append(&place(&index.to_string()), Change::Put, &file).expect("recorded"));
            let clear = || {
                cleared += 1;
                Ok(())
            };
            journal.clear_if_large(clear).expect("cleared");
        }
        assert_eq!(cleared, 1);
        let left = segments(dir.path()).expect("segments");
        assert_eq!(left.len(), 1);
        assert!(fs::metadata(&left[0].1).expect("there").len() <= 2 * SMALL_BYTES_MAX);
        assert!(!journal.knows(&place("0")));
    }
}
