//! Who computes when guests compute for long. Start at [`InTurn`].
//!
//! A call that is over within [`SHORT_TICKS`] concerns nobody: it runs where it was made, on a thread of the server, and
//! waits for no other. One that goes on runs in turns, each of a tick at most. A node has fewer turns at once than processors,
//! and a plugin has one, however many calls it is in: so hostile plugins share what the server does not need, in the order
//! of asking, and no number of them makes more threads busy. The tasks of the thread that takes a turn go on elsewhere
//! meanwhile. A plugin whose last call went on for long, or failed, takes turns from its first instruction: else many short
//! calls of it would be what one long call may not.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Ticks after which a call goes on in turns: it ran for one whole tick at least.
const SHORT_TICKS: u64 = 2;

/// The turns of a node.
pub(crate) struct Turns(Arc<Semaphore>);

impl Turns {
    /// As many at once as this machine has processors, but for one, which is the server's.
    pub(crate) fn of_this_machine() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self::at_once(processors.saturating_sub(1).max(1))
    }

    fn at_once(most: usize) -> Self {
        Self(Arc::new(Semaphore::new(most)))
    }

    /// For one plugin.
    pub(crate) fn queue(&self) -> Arc<Queue> {
        let plugin = Arc::new(Semaphore::new(1));
        Arc::new(Queue { plugin, node: self.0.clone(), is_slow: AtomicBool::new(false) })
    }
}

/// Where the long calls of one plugin wait for their turns.
pub(crate) struct Queue {
    plugin: Arc<Semaphore>,
    node: Arc<Semaphore>,
    /// Its last call was long, or failed.
    is_slow: AtomicBool,
}

/// The right to compute until the next tick.
struct Turn {
    _plugin: OwnedSemaphorePermit,
    _node: OwnedSemaphorePermit,
}

impl Queue {
    /// For a call that begins.
    pub(crate) fn pace(self: &Arc<Self>) -> Pace {
        let is_slow = self.is_slow.load(Ordering::Relaxed);
        Pace(Arc::new(Inner { queue: self.clone(), is_slow, ticks: AtomicU64::new(0) }))
    }

    /// `None`: never, since nobody closes a semaphore.
    async fn turn(self: Arc<Self>) -> Option<Turn> {
        // First among its own, so that a plugin stands in the node's queue once.
        let plugin = self.plugin.clone().acquire_owned().await.ok()?;
        let node = self.node.clone().acquire_owned().await.ok()?;
        Some(Turn { _plugin: plugin, _node: node })
    }
}

/// How far one call came. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Pace(Arc<Inner>);

struct Inner {
    queue: Arc<Queue>,
    is_slow: bool,
    ticks: AtomicU64,
}

impl Pace {
    /// Notes a tick of the guest's own time; gives their number.
    pub(crate) fn tick(&self) -> u64 {
        self.0.ticks.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(crate) fn ticks(&self) -> u64 {
        self.0.ticks.load(Ordering::Relaxed)
    }

    fn takes_turns(&self) -> bool {
        self.0.is_slow || self.ticks() >= SHORT_TICKS
    }

    /// Notes how the call ended, for those that come.
    pub(crate) fn ended(&self, failed: bool) {
        self.0.queue.is_slow.store(failed || self.ticks() >= SHORT_TICKS, Ordering::Relaxed);
    }
}

/// A future that runs a guest, polled when it is its turn.
pub(crate) struct InTurn<'a, F> {
    guest: Pin<&'a mut F>,
    pace: Pace,
    waiting: Option<Pin<Box<dyn Future<Output = Option<Turn>> + Send>>>,
    /// It was interrupted and goes on at once, if nobody else waits.
    over: Option<Turn>,
}

impl<'a, F: Future> InTurn<'a, F> {
    pub(crate) fn new(guest: Pin<&'a mut F>, pace: Pace) -> Self {
        Self { guest, pace, waiting: None, over: None }
    }
}

impl<F: Future> Future for InTurn<'_, F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let this = &mut *self;
        if !this.pace.takes_turns() {
            return this.guest.as_mut().poll(context);
        }
        this.over = None;
        let pace = &this.pace;
        let waiting = this.waiting.get_or_insert_with(|| Box::pin(pace.0.queue.clone().turn()));
        let turn = ready!(waiting.as_mut().poll(context));
        this.waiting = None;
        let ticks = this.pace.ticks();
        let answer = apart(|| this.guest.as_mut().poll(context));
        if answer.is_pending() && this.pace.ticks() > ticks {
            // Interrupted by a tick, it asks to be polled again when its thread has looked after others and the time; only
            // then may the next begin. One that waits for the host lets the next begin now.
            this.over = turn;
        }
        answer
    }
}

/// Does `work` while other threads do what else this one would have done.
fn apart<R>(work: impl FnOnce() -> R) -> R {
    match Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        // There is but this thread.
        _ => work(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    /// How many guests compute, and how many ever did at once.
    #[derive(Default)]
    struct Computing {
        now: AtomicUsize,
        most: AtomicUsize,
        ended: AtomicUsize,
    }

    /// Computes for so many ticks, and gives way at each.
    async fn compute(computing: Arc<Computing>, pace: Pace, ticks: u64) {
        while pace.ticks() < ticks {
            let now = computing.now.fetch_add(1, Ordering::SeqCst) + 1;
            // What runs before the turns begin is not counted: it is as many as there are threads.
            if pace.takes_turns() {
                computing.most.fetch_max(now, Ordering::SeqCst);
            }
            // Long enough for others to begin, if they may.
            (0..10).for_each(|_| std::thread::yield_now());
            computing.now.fetch_sub(1, Ordering::SeqCst);
            pace.tick();
            tokio::task::yield_now().await;
        }
        computing.ended.fetch_add(1, Ordering::SeqCst);
    }

    async fn run(computing: Arc<Computing>, pace: Pace, ticks: u64) {
        let mut guest = std::pin::pin!(compute(computing, pace.clone(), ticks));
        InTurn::new(guest.as_mut(), pace.clone()).await;
        pace.ended(false);
    }

    fn slow(queue: &Arc<Queue>) -> Pace {
        queue.pace().ended(true);
        queue.pace()
    }

    async fn most_at_once(turns: usize, plugins: usize, calls_of_each: usize) -> usize {
        let turns = Turns::at_once(turns);
        let computing = Arc::new(Computing::default());
        let mut calls = Vec::new();
        for _ in 0..plugins {
            let queue = turns.queue();
            for _ in 0..calls_of_each {
                calls.push(tokio::spawn(run(computing.clone(), slow(&queue), 30)));
            }
        }
        for call in calls {
            call.await.expect("no panic");
        }
        assert_eq!(computing.ended.load(Ordering::SeqCst), plugins * calls_of_each);
        computing.most.load(Ordering::SeqCst)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn no_more_compute_at_once_than_there_are_turns_and_one_of_each_plugin() {
        assert_eq!(most_at_once(2, 8, 1).await, 2, "two of eight plugins");
        assert_eq!(most_at_once(1, 3, 3).await, 1, "one of nine calls");
        assert_eq!(most_at_once(3, 1, 8).await, 1, "a plugin has one turn");
    }

    #[tokio::test]
    async fn a_short_call_needs_no_turn_and_a_long_one_waits_for_it() {
        let turns = Turns::at_once(1);
        let taken = turns.queue().turn().await.expect("free");
        let computing = Arc::new(Computing::default());
        let queue = turns.queue();
        run(computing.clone(), queue.pace(), 1).await;
        assert_eq!(computing.ended.load(Ordering::SeqCst), 1, "it ended while another had the only turn");

        let pace = queue.pace();
        let long = tokio::spawn(run(computing.clone(), pace.clone(), 10));
        while pace.ticks() < SHORT_TICKS {
            tokio::task::yield_now().await;
        }
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert_eq!(pace.ticks(), SHORT_TICKS, "it waits");
        drop(taken);
        long.await.expect("no panic");

        // Its plugin begins in turns now, until it proved short again.
        assert!(queue.pace().takes_turns());
        run(computing, queue.pace(), 1).await;
        assert!(!queue.pace().takes_turns());
    }

    #[tokio::test]
    async fn who_goes_away_while_it_waits_keeps_nobody_waiting() {
        let turns = Turns::at_once(1);
        let (first, second) = (turns.queue(), turns.queue());
        let taken = first.clone().turn().await.expect("free");
        let mut gone = Box::pin(second.clone().turn());
        assert!(is_pending(gone.as_mut()).await);
        drop(gone);
        drop(taken);
        let _turn = second.turn().await.expect("neither its plugin's nor the node's is lost");
    }

    async fn is_pending<F: Future>(mut future: Pin<&mut F>) -> bool {
        std::future::poll_fn(|context| Poll::Ready(future.as_mut().poll(context).is_pending())).await
    }
}
