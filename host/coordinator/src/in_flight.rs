//! Work that is in flight side by side: a forge that does not answer keeps nobody waiting but itself. Start at
//! [`keep_working`].

use std::collections::HashMap;
use std::future::Future;
use std::time::Duration;

use harmonia_core::chain;
use harmonia_db::{Channel, Db, DbError};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{error, warn};

/// Wakes loops when something happens on a channel. Never ends.
pub(crate) async fn wake_on(db: &Db, channel: Channel, wake: &watch::Sender<()>, every: Duration) {
    let mut listener = loop {
        match db.listen(&[channel]).await {
            Ok(listener) => break listener,
            Err(_) => tokio::time::sleep(every).await,
        }
    };
    loop {
        listener.next().await;
        wake.send_replace(());
    }
}

/// A kind of work that is leased from the database, piece by piece.
pub(crate) trait Due {
    /// Most that is in flight,
    const ALL_MAX: usize;
    /// and of one forge.
    const OF_FORGE_MAX: usize;

    /// Takes what is due and begins with it, as far as there is room.
    fn begin(&self, in_flight: &mut InFlight) -> impl Future<Output = Result<(), DbError>> + Send;
}

/// What is being processed, and for which forge. Dropped, it stops; what was leased goes on with the next holder.
pub(crate) struct InFlight {
    tasks: JoinSet<(String, Result<u64, DbError>)>,
    of_forge: HashMap<String, usize>,
    all_max: usize,
    of_forge_max: usize,
    refills: bool,
}

impl InFlight {
    /// Nothing is in flight yet of this kind.
    pub(crate) fn of<D: Due>() -> Self {
        let (all_max, of_forge_max) = (D::ALL_MAX, D::OF_FORGE_MAX);
        Self { tasks: JoinSet::new(), of_forge: HashMap::new(), all_max, of_forge_max, refills: false }
    }

    /// Whether more may begin because something ended, and for no other reason: not the time to look far.
    pub(crate) fn refills(&self) -> bool {
        self.refills
    }

    /// How much more may begin, whichever forge it is of. (One forge that has some room gets all of it: at most twice what it
    /// may have.)
    pub(crate) fn room(&self) -> usize {
        self.all_max.saturating_sub(self.tasks.len()).min(self.of_forge_max)
    }

    /// Whether there is as much of this forge as there may be.
    pub(crate) fn is_full(&self, forge: &str) -> bool {
        self.of_forge.get(forge).is_some_and(|count| *count >= self.of_forge_max)
    }

    /// Begins with a piece of work, which returns how much it did.
    pub(crate) fn begin(&mut self, forge: String, work: impl Future<Output = Result<u64, DbError>> + Send + 'static) {
        *self.of_forge.entry(forge.clone()).or_default() += 1;
        self.tasks.spawn(async move { (forge, work.await) });
    }

    /// The next that ends; `None` when nothing is in flight.
    pub(crate) async fn next(&mut self) -> Option<Result<u64, DbError>> {
        let ended = self.tasks.join_next().await?;
        self.refills = true;
        match ended {
            Ok((forge, ended)) => {
                if let Some(count) = self.of_forge.get_mut(&forge) {
                    *count = count.saturating_sub(1);
                }
                Some(ended)
            }
            Err(broken) => {
                // Which it was is unknown; its lease ends. Nothing may count as busy for ever.
                error!(error = %broken, "A piece of work broke; it is done again when its lease is over");
                self.of_forge.clear();
                Some(Ok(0))
            }
        }
    }
}

/// Processes all that is due. Returns how much was done.
pub(crate) async fn process_due<D: Due>(due: &D) -> Result<u64, DbError> {
    let mut in_flight = InFlight::of::<D>();
    let mut done = 0;
    loop {
        due.begin(&mut in_flight).await?;
        match in_flight.next().await {
            None => return Ok(done),
            Some(ended) => done += ended?,
        }
    }
}

/// Processes what is due, for ever: when woken, when something ended, and every so often.
pub(crate) async fn keep_working<D: Due>(due: D, what: &str, mut woken: watch::Receiver<()>, every: Duration) {
    let mut in_flight = InFlight::of::<D>();
    let trouble = |error: &DbError| warn!(error = %chain(error), "Trouble with {what}; next try in {every:?}");
    loop {
        if let Err(error) = due.begin(&mut in_flight).await {
            trouble(&error);
            tokio::time::sleep(every).await;
            continue;
        }
        tokio::select! {
            changed = woken.changed() => {
                if changed.is_err() {
                    return;
                }
                in_flight.refills = false;
            }
            () = tokio::time::sleep(every) => in_flight.refills = false,
            Some(ended) = in_flight.next() => {
                if let Err(error) = ended {
                    trouble(&error);
                }
            }
        }
    }
}
