//! What costs something to read is read once for all who ask at about the same time. Start at [`Memory::get`].
//!
//! What was read is good for a moment, and for the longer the longer it took: so that, whoever and however many ask, reading one
//! thing again and again takes no more than one part in [`SHARE`] of the database's time. A key holds everything that the answer
//! depends on, first of all who asks ([`harmonia_core::Viewer`]): nobody is given what was read for somebody who may see more.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Mutex as AsyncMutex;
use tokio::time::timeout;

/// What was read is good for so many times as long as it took to read,
pub(crate) const SHARE: u32 = 20;
/// but for no longer than this: who may see it is decided when it is read. While somebody reads it again, the others still get the
/// last one, for as long once more at the most.
const GOOD_FOR_MAX: Duration = Duration::from_secs(5);
/// What nobody asked for again is forgotten after a while.
const KEPT: Duration = Duration::from_mins(1);

/// The last answers to questions with keys `K`.
pub(crate) struct Memory<K, V> {
    slots: Mutex<HashMap<K, Slot<V>>>,
    /// Most keys that are remembered; others are read for each who asks.
    keys_max: usize,
}

struct Slot<V> {
    place: Arc<Place<V>>,
    asked: Instant,
}

struct Place<V> {
    last: Mutex<Option<Read<V>>>,
    /// Held by whoever reads it.
    reader: AsyncMutex<()>,
}

impl<V> Default for Place<V> {
    fn default() -> Self {
        Self { last: Mutex::default(), reader: AsyncMutex::default() }
    }
}

impl<V> Place<V> {
    fn last(&self) -> MutexGuard<'_, Option<Read<V>>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was read last, if it is not older than this.
    fn younger_than(&self, asked: Instant, good: impl Fn(&Read<V>) -> Duration) -> Option<Arc<V>> {
        let last = self.last();
        let read = last.as_ref().filter(|read| asked.saturating_duration_since(read.began) < good(read))?;
        Some(read.value.clone())
    }
}

struct Read<V> {
    value: Arc<V>,
    /// What changed later is not in it.
    began: Instant,
    good_for: Duration,
}

/// Somebody else has been reading it for longer than the caller would wait.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TooLong;

/// How long a caller lets others read, and what it takes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms {
    /// For how long what was read is good in any case; zero: for nobody else.
    pub(crate) age: Duration,
    /// How long to wait for somebody who reads it.
    pub(crate) patience: Duration,
}

impl<K: Eq + Hash + Clone, V> Memory<K, V> {
    pub(crate) fn new(keys_max: usize) -> Self {
        Self { slots: Mutex::default(), keys_max }
    }

    /// The answer that was read last, if it is still good; else `read`, which is given the last one. `None` is not remembered.
    pub(crate) async fn get<E, F>(
        &self,
        key: K,
        terms: Terms,
        read: impl FnOnce(Option<Arc<V>>) -> F,
    ) -> Result<Option<Arc<V>>, E>
    where
        F: Future<Output = Result<Option<V>, E>>,
        E: From<TooLong>,
    {
        let asked = Instant::now();
        let Some(place) = self.place(key, asked) else { return Ok(read(None).await?.map(Arc::new)) };
        if let Some(value) = place.younger_than(asked, |read| read.good_for) {
            return Ok(Some(value));
        }
        let _reader = if let Ok(reader) = place.reader.try_lock() {
            reader
        } else {
            let still_good = |read: &Read<V>| if read.good_for.is_zero() { read.good_for } else { GOOD_FOR_MAX * 2 };
            if let Some(value) = place.younger_than(asked, still_good) {
                return Ok(Some(value));
            }
            let reader = timeout(terms.patience, place.reader.lock()).await.map_err(|_| TooLong)?;
            if let Some(value) = place.younger_than(asked, |read| read.good_for) {
                return Ok(Some(value));
            }
            reader
        };
        let began = Instant::now();
        let last = place.last().as_ref().map(|read| read.value.clone());
        let Some(value) = read(last).await? else {
            *place.last() = None;
            return Ok(None);
        };
        let value = Arc::new(value);
        let good_for = good_for(began.elapsed(), terms.age);
        *place.last() = Some(Read { value: value.clone(), began, good_for });
        Ok(Some(value))
    }

    /// Whatever is known is read anew when it is asked for the next time.
    pub(crate) fn forget(&self) {
        self.lock().clear();
    }

    /// Where the answer to this is kept; nowhere when too much is kept already.
    fn place(&self, key: K, now: Instant) -> Option<Arc<Place<V>>> {
        let mut slots = self.lock();
        slots.retain(|_, slot| now.saturating_duration_since(slot.asked) < KEPT);
        if slots.len() >= self.keys_max && !slots.contains_key(&key) {
            // The one that was asked for the longest ago, if nobody waits for it.
            let idle = slots.iter().filter(|(_, slot)| Arc::strong_count(&slot.place) == 1);
            let oldest = idle.min_by_key(|(_, slot)| slot.asked).map(|(key, _)| key.clone())?;
            slots.remove(&oldest);
        }
        match slots.entry(key) {
            Entry::Occupied(mut slot) => {
                slot.get_mut().asked = now;
                Some(slot.get().place.clone())
            }
            Entry::Vacant(free) => Some(free.insert(Slot { place: Arc::default(), asked: now }).place.clone()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<K, Slot<V>>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long something is good that took so long to read.
fn good_for(took: Duration, age: Duration) -> Duration {
    if age.is_zero() { age } else { (took * SHARE).clamp(age, age.max(GOOD_FOR_MAX)) }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use harmonia_core::Viewer;

    use super::*;

    const LONG: Terms = Terms { age: Duration::from_mins(1), patience: Duration::from_secs(30) };

    /// Answers how often it was asked.
    async fn count(asked: &AtomicU32) -> Result<Option<u32>, TooLong> {
        tokio::task::yield_now().await;
        Ok(Some(asked.fetch_add(1, Ordering::Relaxed) + 1))
    }

    #[tokio::test]
    async fn a_thousand_who_ask_within_a_moment_are_one_who_reads() {
        let (memory, asked) = (Memory::new(2), AtomicU32::new(0));
        let answers = (0..1_000).map(|_| memory.get("a", LONG, |_| count(&asked)));
        let answers = futures_util::future::join_all(answers).await;
        assert!(answers.into_iter().all(|answer| answer == Ok(Some(Arc::new(1)))));
        assert_eq!(asked.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn whoever_may_see_more_is_answered_apart() {
        let (memory, asked) = (Memory::new(2), AtomicU32::new(0));
        for (viewer, answer) in [(Viewer::Token, 1), (Viewer::Public, 2), (Viewer::Token, 1), (Viewer::Public, 2)] {
            assert_eq!(memory.get((viewer, 7), LONG, |_| count(&asked)).await, Ok(Some(Arc::new(answer))));
        }
    }

    #[tokio::test]
    async fn what_is_old_is_read_again_with_what_was_known() {
        let (memory, asked) = (Memory::new(2), AtomicU32::new(0));
        let none = Terms { age: Duration::ZERO, ..LONG };
        assert_eq!(memory.get("a", none, |_| count(&asked)).await, Ok(Some(Arc::new(1))));
        let again = memory.get("a", none, async |known: Option<Arc<u32>>| {
            assert_eq!(known, Some(Arc::new(1)));
            count(&asked).await
        });
        assert_eq!(again.await, Ok(Some(Arc::new(2))));
        assert_eq!(memory.get("a", LONG, |_| count(&asked)).await, Ok(Some(Arc::new(3))));
        memory.forget();
        assert_eq!(memory.get("a", LONG, |_| count(&asked)).await, Ok(Some(Arc::new(4))));
    }

    #[test]
    fn reading_takes_a_bounded_part_of_the_time() {
        let ms = Duration::from_millis;
        for (took, age, good) in
            [(1, 300, 300), (15, 300, 300), (50, 300, 1_000), (900, 300, 5_000), (50, 0, 0), (1, 9_000, 9_000)]
        {
            assert_eq!(good_for(ms(took), ms(age)), ms(good), "{took} ms, {age} ms");
        }
    }

    /// Nobody stands still because it is time to read something again.
    #[tokio::test]
    async fn while_it_is_read_again_others_get_the_last_one() {
        let (memory, asked) = (Memory::new(2), AtomicU32::new(0));
        let short = Terms { age: Duration::from_millis(1), ..LONG };
        memory.get("a", short, |_| count(&asked)).await.expect("read");
        let place = memory.place("a", Instant::now()).expect("kept");
        place.last().as_mut().expect("read").good_for = Duration::from_nanos(1);
        let stuck = memory.get("a", short, |_| std::future::pending::<Result<Option<u32>, TooLong>>());
        let other = async {
            tokio::task::yield_now().await;
            memory.get("a", short, |_| count(&asked)).await
        };
        match futures_util::future::select(std::pin::pin!(stuck), std::pin::pin!(other)).await {
            futures_util::future::Either::Right((answer, _)) => assert_eq!(answer, Ok(Some(Arc::new(1)))),
            futures_util::future::Either::Left(_) => panic!("nobody answers the first"),
        }
    }

    #[tokio::test]
    async fn what_is_not_there_is_not_remembered() {
        let (memory, asked) = (Memory::new(2), AtomicU32::new(0));
        let absent = memory.get("a", LONG, async |_| Ok::<Option<u32>, TooLong>(None));
        assert_eq!(absent.await, Ok(None));
        assert_eq!(memory.get("a", LONG, |_| count(&asked)).await, Ok(Some(Arc::new(1))));
    }

    #[tokio::test]
    async fn no_more_is_kept_than_may_be() {
        let (memory, asked) = (Memory::new(2), AtomicU32::new(0));
        for key in ["a", "b", "c"] {
            memory.get(key, LONG, |_| count(&asked)).await.expect("read");
        }
        assert_eq!(memory.lock().len(), 2);
        // The first was forgotten, the last was not.
        assert_eq!(memory.get("c", LONG, |_| count(&asked)).await, Ok(Some(Arc::new(3))));
        assert_eq!(memory.get("a", LONG, |_| count(&asked)).await, Ok(Some(Arc::new(4))));
    }

    #[tokio::test]
    async fn nobody_waits_for_a_reader_for_ever() {
        let memory: Memory<&str, u32> = Memory::new(2);
        let short = Terms { patience: Duration::from_millis(20), ..LONG };
        let stuck = memory.get("a", LONG, |_| std::future::pending::<Result<Option<u32>, TooLong>>());
        let impatient = memory.get("a", short, |_| std::future::pending::<Result<Option<u32>, TooLong>>());
        let (stuck, impatient) = (std::pin::pin!(stuck), std::pin::pin!(impatient));
        match futures_util::future::select(stuck, impatient).await {
            futures_util::future::Either::Right((answer, _)) => assert_eq!(answer, Err(TooLong)),
            futures_util::future::Either::Left(_) => panic!("nobody answers the first"),
        }
    }
}
