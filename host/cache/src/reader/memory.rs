//! What a reader remembers, within a bound: narinfos, and who may see what. Never that something is absent.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use harmonia_core::Timestamp;
use harmonia_nix::StorePath;
use quick_cache::Weighter;
use quick_cache::sync::Cache;

use super::Entry;

/// What an entry costs beside its text.
const ENTRY_OVERHEAD_BYTES: u64 = 256;
/// A guess that sizes the first table.
const ENTRY_BYTES_GUESS: u64 = 1_024;

#[derive(Debug, Clone)]
struct Remembered {
    entry: Arc<Entry>,
    loaded_at: Timestamp,
}

#[derive(Debug, Clone)]
struct ByBytes;

impl Weighter<String, Remembered> for ByBytes {
    fn weight(&self, _: &String, remembered: &Remembered) -> u64 {
        remembered.entry.text.len() as u64 + ENTRY_OVERHEAD_BYTES
    }
}

/// Most paths whose visibility is known.
const VISIBILITIES_MAX: usize = 50_000;

/// Narinfos by hash part, and who may see what.
pub(super) struct Memory {
    narinfos: Cache<String, Remembered, ByBytes>,
    /// Whether a path or object is public, and since when that is known.
    visible: Cache<String, (bool, Timestamp)>,
    /// Counts what was forgotten, so that what was read before is not remembered after.
    forgotten: AtomicU64,
}

/// Taken before something is read that is to be remembered.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ticket(u64);

impl Memory {
    pub(super) fn new(bytes_max: u64) -> Self {
        let items = usize::try_from(bytes_max / ENTRY_BYTES_GUESS).unwrap_or(usize::MAX);
        Self {
            narinfos: Cache::with_weighter(items, bytes_max, ByBytes),
            visible: Cache::new(VISIBILITIES_MAX),
            forgotten: AtomicU64::new(0),
        }
    }

    /// What was loaded not before `not_before`.
    pub(super) fn entry(&self, hash_part: &str, not_before: Timestamp) -> Option<Arc<Entry>> {
        let remembered = self.narinfos.get(hash_part)?;
        (remembered.loaded_at >= not_before).then_some(remembered.entry)
    }

    pub(super) fn ticket(&self) -> Ticket {
        Ticket(self.forgotten.load(Ordering::SeqCst))
    }

    /// Does nothing when anything was forgotten since the ticket was taken.
    pub(super) fn remember(&self, hash_part: &str, entry: Arc<Entry>, loaded_at: Timestamp, ticket: Ticket) {
        if self.forgotten.load(Ordering::SeqCst) != ticket.0 {
            return;
        }
        self.narinfos.insert(hash_part.to_owned(), Remembered { entry, loaded_at });
        if self.forgotten.load(Ordering::SeqCst) != ticket.0 {
            // Forgotten in between, perhaps this one.
            self.narinfos.remove(hash_part);
        }
    }

    pub(super) fn forget(&self, path: &StorePath) {
        self.forgotten.fetch_add(1, Ordering::SeqCst);
        self.narinfos.remove(path.hash_part());
        self.visible.remove(path.as_str());
    }

    /// Whether it is public, if that is known: that it is, not before the first moment; that it is not, not before
    /// the second.
    pub(super) fn visibility(&self, name: &str, public_since: Timestamp, hidden_since: Timestamp) -> Option<bool> {
        let (is_public, known_at) = self.visible.get(name)?;
        (known_at >= if is_public { public_since } else { hidden_since }).then_some(is_public)
    }

    pub(super) fn remember_visibility(&self, name: &str, is_public: bool, now: Timestamp) {
        self.visible.insert(name.to_owned(), (is_public, now));
    }

    #[cfg(test)]
    fn weight(&self) -> u64 {
        self.narinfos.weight()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use time::ext::NumericalDuration as _;

    use super::*;

    const NOW: Timestamp = time::macros::datetime!(2030-01-01 0:00 UTC);

    fn entry(size: usize) -> Arc<Entry> {
        Arc::new(Entry { text: Bytes::from(vec![0; size]), path: path() })
    }

    fn path() -> StorePath {
        StorePath::parse("/nix/store/00000000000000000000000000000000-a").expect("valid")
    }

    fn key() -> String {
        path().hash_part().to_owned()
    }

    #[test]
    fn remembers_for_a_while() {
        let memory = Memory::new(1 << 20);
        memory.remember(&key(), entry(10), NOW, memory.ticket());
        assert!(memory.entry(&key(), NOW - 1.minutes()).is_some());
        assert!(memory.entry(&key(), NOW + 1.seconds()).is_none(), "too old");
        assert!(memory.entry("b", NOW).is_none());
        memory.forget(&path());
        assert!(memory.entry(&key(), NOW).is_none());
    }

    #[test]
    fn what_was_read_before_a_publication_is_not_remembered_after_it() {
        let memory = Memory::new(1 << 20);
        let ticket = memory.ticket();
        memory.forget(&path());
        memory.remember(&key(), entry(10), NOW, ticket);
        assert!(memory.entry(&key(), NOW).is_none());
    }

    #[test]
    fn what_is_hidden_is_asked_again_sooner() {
        let memory = Memory::new(1 << 20);
        let (long_ago, just_now) = (NOW - 1.minutes(), NOW - 1.seconds());
        assert_eq!(memory.visibility(path().as_str(), long_ago, just_now), None);
        for (is_public, later, expected) in [
            (true, 30.seconds(), Some(true)),
            (true, 61.seconds(), None),
            (false, 1.seconds(), Some(false)),
            (false, 2.seconds(), None),
        ] {
            memory.remember_visibility(path().as_str(), is_public, NOW);
            assert_eq!(
                memory.visibility(path().as_str(), long_ago + later, just_now + later),
                expected,
                "{is_public} {later}"
            );
        }
        memory.forget(&path());
        assert_eq!(memory.visibility(path().as_str(), long_ago, just_now), None);
    }

    #[test]
    fn memory_is_bounded_by_bytes() {
        let memory = Memory::new(64 << 10);
        for index in 0..1_000 {
            memory.remember(&index.to_string(), entry(1_000), NOW, memory.ticket());
        }
        assert!(memory.weight() <= 64 << 10, "{}", memory.weight());
        assert!(memory.weight() > 16 << 10);
    }
}
