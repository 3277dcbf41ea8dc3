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
/// but for no longer than this: who may see it is decided when it is read.
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
    /// Who asks while it is read waits for it.
    last: Arc<AsyncMutex<Option<Read<V>>>>,
    asked: Instant,
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
        let Some(last) = self.slot(key, asked) else { return Ok(read(None).await?.map(Arc::new)) };
        let mut last = timeout(terms.patience, last.lock()).await.map_err(|_| TooLong)?;
        if let Some(known) = &*last
            && asked.saturating_duration_since(known.began) < known.good_for
        {
            return Ok(Some(known.value.clone()));
        }
        let began = Instant::now();
        let Some(value) = read(last.as_ref().map(|known| known.value.clone())).await? else {
            *last = None;
            return Ok(None);
        };
        let value = Arc::new(value);
        *last = Some(Read { value: value.clone(), began, good_for: good_for(began.elapsed(), terms.age) });
        Ok(Some(value))
    }

    /// Whatever is known is read anew when it is asked for the next time.
    pub(crate) fn forget(&self) {
        self.lock().clear();
    }

    /// Where the answer to this is kept; nowhere when too much is kept already.
    fn slot(&self, key: K, now: Instant) -> Option<Arc<AsyncMutex<Option<Read<V>>>>> {
        let mut slots = self.lock();
        slots.retain(|_, slot| now.saturating_duration_since(slot.asked) < KEPT);
        if slots.len() >= self.keys_max && !slots.contains_key(&key) {
            // The one that was asked for the longest ago, if nobody waits for it.
            let idle = slots.iter().filter(|(_, slot)| Arc::strong_count(&slot.last) == 1);
            let oldest = idle.min_by_key(|(_, slot)| slot.asked).map(|(key, _)| key.clone())?;
            slots.remove(&oldest);
        }
        match slots.entry(key) {
            Entry::Occupied(mut slot) => {
                slot.get_mut().asked = now;
                Some(slot.get().last.clone())
            }
            Entry::Vacant(free) => Some(free.insert(Slot { last: Arc::default(), asked: now }).last.clone()),
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

    const LONG: Terms = Terms { age: Duration::from_secs(60), patience: Duration::from_secs(30) };

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
        for (took, age, good) in [(1, 300, 300), (15, 300, 300), (50, 300, 1_000), (900, 300, 5_000), (50, 0, 0), (1, 9_000, 9_000)] {
            assert_eq!(good_for(ms(took), ms(age)), ms(good), "{took} ms, {age} ms");
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
