//! Single flight: callers that ask for the same thing at the same time share one answer.

use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::OnceCell;

type Cells<K, V> = Mutex<HashMap<K, Arc<OnceCell<V>>>>;

/// The questions under way. Nothing is remembered once the last asker has its answer.
#[derive(Debug)]
pub(crate) struct Flights<K: Eq + Hash, V> {
    cells: Cells<K, V>,
}

impl<K: Eq + Hash, V> Default for Flights<K, V> {
    fn default() -> Self {
        Self { cells: Mutex::default() }
    }
}

impl<K: Eq + Hash + Clone, V: Clone> Flights<K, V> {
    /// Runs `work`, or waits for the same work begun by somebody else. The flag says whether it began before this call,
    /// so that its answer may be older than the question.
    ///
    /// When the caller that runs the work goes away, one of those who wait runs its own.
    pub(crate) async fn run<F: Future<Output = V>>(&self, key: K, work: impl FnOnce() -> F) -> (V, bool) {
        let (cell, joined) = {
            let mut cells = self.cells.lock().unwrap_or_else(PoisonError::into_inner);
            let joined = cells.contains_key(&key);
            (Arc::clone(cells.entry(key.clone()).or_default()), joined)
        };
        let seat = Seat { cells: &self.cells, key, cell };
        let value = seat.cell.get_or_init(work).await.clone();
        (value, joined)
    }
}

/// Takes the question off the map when it is answered, or when nobody asks any more.
struct Seat<'a, K: Eq + Hash, V> {
    cells: &'a Cells<K, V>,
    key: K,
    cell: Arc<OnceCell<V>>,
}

impl<K: Eq + Hash, V> Drop for Seat<'_, K, V> {
    fn drop(&mut self) {
        let mut cells = self.cells.lock().unwrap_or_else(PoisonError::into_inner);
        let is_ours = cells.get(&self.key).is_some_and(|cell| Arc::ptr_eq(cell, &self.cell));
        // Two owners: the map and this seat.
        if is_ours && (self.cell.initialized() || Arc::strong_count(&self.cell) <= 2) {
            cells.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn askers_at_the_same_time_share_one_answer() {
        let flights = Arc::new(Flights::<u8, usize>::default());
        let count = Arc::new(AtomicUsize::new(0));
        let gate = Arc::new(tokio::sync::Semaphore::new(0));
        let ask = || {
            let (flights, count, gate) = (Arc::clone(&flights), Arc::clone(&count), Arc::clone(&gate));
            tokio::spawn(async move {
                let work = || async {
                    let _permit = gate.acquire().await.expect("open");
                    count.fetch_add(1, Ordering::SeqCst) + 1
                };
                flights.run(1, work).await
            })
        };
        let first = ask();
        while flights.cells.lock().expect("lock").is_empty() {
            tokio::task::yield_now().await;
        }
        let second = ask();
        while Arc::strong_count(&flights.cells.lock().expect("lock")[&1]) < 3 {
            tokio::task::yield_now().await;
        }
        gate.add_permits(1);
        assert_eq!(first.await.expect("joins"), (1, false));
        assert_eq!(second.await.expect("joins"), (1, true));
        assert!(flights.cells.lock().expect("lock").is_empty(), "nothing is remembered");
        gate.add_permits(1);
        assert_eq!(ask().await.expect("joins"), (2, false));
    }

    #[tokio::test]
    async fn whoever_waits_takes_over_from_one_who_left() {
        let flights = Arc::new(Flights::<u8, usize>::default());
        let never = tokio::spawn({
            let flights = Arc::clone(&flights);
            async move { flights.run(1, std::future::pending::<usize>).await }
        });
        while flights.cells.lock().expect("lock").is_empty() {
            tokio::task::yield_now().await;
        }
        let second = tokio::spawn({
            let flights = Arc::clone(&flights);
            async move { flights.run(1, || async { 5 }).await }
        });
        while Arc::strong_count(&flights.cells.lock().expect("lock")[&1]) < 3 {
            tokio::task::yield_now().await;
        }
        never.abort();
        assert_eq!(second.await.expect("joins").0, 5);
        assert!(flights.cells.lock().expect("lock").is_empty());
    }
}
