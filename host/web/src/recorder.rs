//! Records deliveries of forges, those that arrive together in one transaction. Start at [`Recorder::record`].
//!
//! Each answer waits until its row has reached the disk. PostgreSQL lets transactions that notify reach it one after the
//! other, so one a delivery would mean as many deliveries a second as the disk has writes: 250 on an ordinary one. While
//! one transaction is under way the next deliveries gather; alone, a delivery waits for nobody.

use std::time::Duration;

use harmonia_core::chain;
use harmonia_core::forge::Delivery;
use harmonia_db::{Db, DbError, NewDelivery, Recorded};
use tokio::sync::{mpsc, oneshot};

use crate::error::WebError;

/// Most deliveries in one transaction.
const TOGETHER_MAX: usize = 64;
/// Most bytes of events in one transaction, as far as they can be told before they are written. One may be larger.
const TOGETHER_BYTES_MAX: usize = 4 << 20;
/// Deliveries that wait for their transaction. More wait with their requests.
const WAITING_MAX: usize = 256;
/// Longest wait for an answer. A forge waits ten seconds; what is recorded later it delivers again, which changes nothing.
const TIME_MAX: Duration = Duration::from_secs(9);

/// Hands deliveries to the task that records them. Cheap to clone; the task ends with the last clone.
#[derive(Clone)]
pub(crate) struct Recorder(mpsc::Sender<Waiting>);

/// A verified delivery.
pub(crate) struct Verified {
    pub(crate) forge: String,
    pub(crate) delivery: Delivery,
    /// How long it took to verify, in milliseconds.
    pub(crate) duration_ms: u32,
    /// Size of the body it was read from.
    pub(crate) bytes: usize,
}

struct Waiting {
    verified: Verified,
    answer: oneshot::Sender<Result<Recorded, WebError>>,
}

impl Verified {
    fn as_new(&self) -> NewDelivery<'_> {
        NewDelivery { forge: &self.forge, delivery: &self.delivery, duration_ms: self.duration_ms }
    }
}

impl Recorder {
    /// Must be called within a tokio runtime.
    pub(crate) fn start(db: Db) -> Self {
        let (sender, receiver) = mpsc::channel(WAITING_MAX);
        tokio::spawn(run(db, receiver));
        Self(sender)
    }

    /// Records a delivery in the order of arrival. Once handed over it is recorded although the request goes away.
    pub(crate) async fn record(&self, verified: Verified) -> Result<Recorded, WebError> {
        let handed_over = async {
            let (answer, answered) = oneshot::channel();
            self.0.send(Waiting { verified, answer }).await.ok()?;
            answered.await.ok()
        };
        match tokio::time::timeout(TIME_MAX, handed_over).await {
            Ok(Some(recorded)) => recorded,
            // The database is slow, or the task is gone with its process.
            Err(_) | Ok(None) => Err(WebError::database_unavailable()),
        }
    }
}

async fn run(db: Db, mut receiver: mpsc::Receiver<Waiting>) {
    let mut left = None;
    loop {
        let first = match left.take() {
            Some(first) => first,
            None => match receiver.recv().await {
                Some(first) => first,
                None => return,
            },
        };
        let mut bytes = first.verified.bytes;
        let mut together = vec![first];
        while together.len() < TOGETHER_MAX {
            let Ok(next) = receiver.try_recv() else { break };
            bytes += next.verified.bytes;
            if bytes > TOGETHER_BYTES_MAX {
                left = Some(next);
                break;
            }
            together.push(next);
        }
        store(&db, together).await;
    }
}

async fn store(db: &Db, together: Vec<Waiting>) {
    let new: Vec<NewDelivery<'_>> = together.iter().map(|waiting| waiting.verified.as_new()).collect();
    let recorded = db.record_deliveries(&new).await;
    drop(new);
    match recorded {
        Ok(recorded) => {
            for (waiting, recorded) in together.into_iter().zip(recorded) {
                waiting.answer(Ok(recorded));
            }
        }
        Err(error) if error.is_transient() => unavailable(together, &error),
        // One that cannot be stored must not take the others with it.
        Err(_) => one_by_one(db, together).await,
    }
}

async fn one_by_one(db: &Db, together: Vec<Waiting>) {
    let mut rest = together.into_iter();
    while let Some(waiting) = rest.next() {
        match db.record_delivery(&waiting.verified.as_new()).await {
            Err(error) if error.is_transient() => {
                let mut all = vec![waiting];
                all.extend(rest);
                return unavailable(all, &error);
            }
            recorded => waiting.answer(recorded.map_err(WebError::from)),
        }
    }
}

/// The cause is logged here, once for all.
fn unavailable(together: Vec<Waiting>, error: &DbError) {
    tracing::warn!(error = %chain(error), "Could not record {} deliveries; their forges deliver them again", together.len());
    for waiting in together {
        waiting.answer(Err(WebError::database_unavailable()));
    }
}

impl Waiting {
    fn answer(self, recorded: Result<Recorded, WebError>) {
        // Whoever asked may be gone.
        drop(self.answer.send(recorded));
    }
}

#[cfg(test)]
mod tests {
    use harmonia_core::forge::Event;
    use harmonia_db::testing::TestDatabase;
    use rand::RngExt as _;

    use super::*;

    fn verified(id: &str) -> Verified {
        let delivery = Delivery { id: id.to_owned(), events: vec![Event::Discover] };
        Verified { forge: "forge".to_owned(), delivery, duration_ms: 1, bytes: 100 }
    }

    #[tokio::test]
    async fn all_that_arrive_at_once_are_recorded_once_each() {
        let test = TestDatabase::new().await;
        let recorder = Recorder::start(test.db.clone());
        let ids: Vec<String> = (0..300).map(|number| format!("d{}", number % 200)).collect();
        let all = ids.iter().map(|id| recorder.record(verified(id)));
        let recorded = futures_util::future::join_all(all).await;
        let count = |wanted: fn(&Recorded) -> bool| {
            recorded.iter().filter(|recorded| wanted(recorded.as_ref().expect("recorded"))).count()
        };
        assert_eq!(count(|recorded| matches!(recorded, Recorded::New(_))), 200);
        assert_eq!(count(|recorded| *recorded == Recorded::Duplicate), 100);
        let listed = test.db.recent_deliveries(None, false, None, 200).await.expect("listed");
        let mut stored: Vec<&str> = listed.iter().map(|delivery| delivery.delivery.as_str()).collect();
        stored.sort_unstable();
        stored.dedup();
        assert_eq!(stored.len(), 200);
    }

    #[tokio::test]
    async fn one_that_cannot_be_stored_harms_no_other() {
        let test = TestDatabase::new().await;
        let recorder = Recorder::start(test.db.clone());
        // More than fits into an index, and not to be compressed.
        let long: String = (0..9_000).map(|_| char::from(rand::rng().random_range(b'!'..=b'~'))).collect();
        let all = ["a", long.as_str(), "b"].map(|id| recorder.record(verified(id)));
        let recorded = futures_util::future::join_all(all).await;
        let ended: Vec<bool> = recorded.iter().map(Result::is_ok).collect();
        assert_eq!(ended, [true, false, true]);
    }

    #[tokio::test]
    async fn without_a_database_everybody_is_told_at_once() {
        let test = TestDatabase::new().await;
        let recorder = Recorder::start(test.db.clone());
        test.db.close().await;
        let all = (0..100).map(|number| recorder.record(verified(&number.to_string())));
        assert!(futures_util::future::join_all(all).await.iter().all(Result::is_err));
    }
}
