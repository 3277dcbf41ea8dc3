//! Who may build now. Start at [`Slots::client`].
//!
//! Each client has its own limit (`max-jobs`), and all together have as many slots as the machine should have builds. A free
//! slot goes to the clients in turn, so that one with ten thousand builds holds up nobody's single one.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// All slots. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Slots(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// Builds at the same time, unless one client alone may have more.
    shared_max: usize,
    running: usize,
    clients: BTreeMap<u64, Waiting>,
    /// Whose turn it is.
    turns: VecDeque<u64>,
    next_client: u64,
}

#[derive(Debug)]
struct Waiting {
    max: usize,
    running: usize,
    queue: VecDeque<oneshot::Sender<Slot>>,
}

/// The slots as one client sees them.
#[derive(Debug)]
pub struct ClientSlots {
    slots: Slots,
    client: u64,
}

/// The right to build, until it is dropped.
#[derive(Debug)]
pub struct Slot {
    slots: Slots,
    client: u64,
}

impl Slots {
    /// So many builds at the same time, of all clients together.
    pub fn new(shared_max: usize) -> Self {
        Self(Arc::new(Mutex::new(State { shared_max, ..State::default() })))
    }

    /// For a client that may have `max` builds at the same time.
    pub fn client(&self, max: usize) -> ClientSlots {
        let mut state = self.state();
        let client = state.next_client;
        state.next_client += 1;
        state.clients.insert(client, Waiting { max, running: 0, queue: VecDeque::new() });
        state.turns.push_back(client);
        ClientSlots { slots: self.clone(), client }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives out what is free.
    fn hand_out(&self) {
        let mut state = self.state();
        while let Some(client) = state.next() {
            let Some(waiting) = state.clients.get_mut(&client) else { continue };
            let Some(sender) = waiting.queue.pop_front() else { continue };
            if sender.is_closed() {
                continue;
            }
            match sender.send(Slot { slots: self.clone(), client }) {
                Ok(()) => {
                    waiting.running += 1;
                    state.running += 1;
                }
                // It was never handed out, so there is nothing to give back (which would wait for the lock held here).
                Err(unwanted) => std::mem::forget(unwanted),
            }
        }
    }
}

impl State {
    /// The client that gets the next slot; it goes to the end of the line.
    fn next(&mut self) -> Option<u64> {
        let ready = |client: &u64| {
            self.clients.get(client).is_some_and(|waiting| {
                let total_max = self.shared_max.max(waiting.max);
                !waiting.queue.is_empty() && waiting.running < waiting.max && self.running < total_max
            })
        };
        let position = self.turns.iter().position(ready)?;
        let client = self.turns.remove(position)?;
        self.turns.push_back(client);
        Some(client)
    }
}

impl ClientSlots {
    /// Waits for a slot. Never comes for a client that may not build at all.
    pub async fn acquire(&self) -> Slot {
        loop {
            let (sender, receiver) = oneshot::channel();
            if let Some(waiting) = self.slots.state().clients.get_mut(&self.client) {
                waiting.queue.push_back(sender);
            }
            self.slots.hand_out();
            if let Ok(slot) = receiver.await {
                return slot;
            }
        }
    }
}

impl Drop for ClientSlots {
    fn drop(&mut self) {
        let mut state = self.slots.state();
        state.turns.retain(|client| *client != self.client);
        state.clients.remove(&self.client);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        {
            let mut state = self.slots.state();
            state.running = state.running.saturating_sub(1);
            if let Some(waiting) = state.clients.get_mut(&self.client) {
                waiting.running = waiting.running.saturating_sub(1);
            }
        }
        self.slots.hand_out();
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    /// What comes of a future that is looked at once.
    fn now<T>(future: impl Future<Output = T>) -> Option<T> {
        match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(value) => Some(value),
            Poll::Pending => None,
        }
    }

    #[test]
    fn free_slots_go_to_the_clients_in_turn() {
        let slots = Slots::new(2);
        let (greedy, modest) = (slots.client(2), slots.client(1));
        let held = [now(greedy.acquire()).expect("free"), now(greedy.acquire()).expect("free")];
        let mut context = Context::from_waker(Waker::noop());
        let mut waiting: Vec<_> = (0..3).map(|_| Box::pin(greedy.acquire())).collect();
        for future in &mut waiting {
            assert!(future.as_mut().poll(&mut context).is_pending());
        }
        let mut other = Box::pin(modest.acquire());
        assert!(other.as_mut().poll(&mut context).is_pending());
        drop(held);
        // Two became free: one each, although the first client has waited longer.
        let is_ready = |poll: Poll<Slot>| match poll {
            Poll::Ready(slot) => Some(slot),
            Poll::Pending => None,
        };
        let first = is_ready(waiting[0].as_mut().poll(&mut context));
        let second = is_ready(other.as_mut().poll(&mut context));
        assert!(first.is_some() && second.is_some());
        assert!(waiting[1].as_mut().poll(&mut context).is_pending());
        drop(second);
        assert!(is_ready(waiting[1].as_mut().poll(&mut context)).is_some());
    }

    #[test]
    fn a_client_has_no_more_than_it_may_and_may_have_more_than_all_share() {
        let slots = Slots::new(1);
        let (one, many) = (slots.client(1), slots.client(3));
        let first = now(one.acquire()).expect("free");
        assert!(now(one.acquire()).is_none());
        let more: Vec<Slot> = (0..2).map(|_| now(many.acquire()).expect("may have three in all")).collect();
        assert!(now(many.acquire()).is_none());
        drop((first, more));
        assert!(now(one.acquire()).is_some());
    }

    #[test]
    fn who_stops_waiting_leaves_the_slot_to_others() {
        let slots = Slots::new(1);
        let (one, other) = (slots.client(1), slots.client(1));
        let held = now(one.acquire()).expect("free");
        let mut context = Context::from_waker(Waker::noop());
        let mut given_up = Box::pin(one.acquire());
        assert!(given_up.as_mut().poll(&mut context).is_pending());
        let mut waits = Box::pin(other.acquire());
        assert!(waits.as_mut().poll(&mut context).is_pending());
        drop(given_up);
        drop(held);
        // The other one has it, although it has not looked yet; and gives it back without ever looking.
        assert!(now(one.acquire()).is_none());
        drop(waits);
        assert!(now(one.acquire()).is_some());
    }
}
