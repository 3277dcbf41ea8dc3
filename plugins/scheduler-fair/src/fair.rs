//! Fair shares. Start at [`order`].
//!
//! A project's account is the build seconds it consumed, which fade by 5 % an hour, over its shares. The smallest account
//! goes first. Seconds are charged while builds run, but only every few seconds, and a claim may fill many slots at once: so
//! each job that the project runs, and each that this order already gave it, counts as [`EXPECTED_SECONDS`] in advance. That
//! is an estimate: too small, and a claim of many slots goes to one project; too large, and a project with many long builds
//! waits although little is charged to it. The median build takes about that long, and what is wrong with the estimate is
//! put right within seconds by what is charged.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

/// What a job that began a moment ago, or is about to, counts before it is charged.
pub(crate) const EXPECTED_SECONDS: f64 = 10.0;
/// What is left of consumption after an hour.
const LEFT_AFTER_AN_HOUR: f64 = 0.95;

/// A project's account.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    pub(crate) project: u64,
    pub(crate) shares: u32,
    pub(crate) consumed_seconds: f64,
    pub(crate) running: u32,
}

/// A job that may be next.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Head {
    pub(crate) job: u64,
    pub(crate) project: u64,
    pub(crate) priority: i32,
}

/// An account as it is compared: a total order over finite numbers, ties by the older job.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Turn {
    account: u64,
    oldest_job: u64,
    place: usize,
}

/// All jobs, in the order in which they should be tried.
///
/// Jobs of a project stay among themselves by priority, then by age. A project that is not among `loads` counts as one
/// that consumed nothing.
pub(crate) fn order(loads: &[Load], heads: &[Head]) -> Vec<u64> {
    let mut queues: HashMap<u64, Vec<Head>> = HashMap::new();
    for head in heads {
        queues.entry(head.project).or_default().push(*head);
    }
    let known: HashMap<u64, Load> = loads.iter().map(|load| (load.project, *load)).collect();
    let mut projects: Vec<(Load, std::vec::IntoIter<Head>)> = queues
        .into_iter()
        .map(|(project, mut queue)| {
            queue.sort_by_key(|head| (Reverse(head.priority), head.job));
            let nothing = Load { project, shares: 100, consumed_seconds: 0.0, running: 0 };
            (known.get(&project).copied().unwrap_or(nothing), queue.into_iter())
        })
        .collect();
    let mut turns: BinaryHeap<Reverse<Turn>> = projects
        .iter()
        .enumerate()
        .filter_map(|(place, (load, queue))| Some(Reverse(turn(load, place, queue.as_slice().first()?))))
        .collect();
    let mut order = Vec::with_capacity(heads.len());
    while let Some(Reverse(Turn { place, .. })) = turns.pop() {
        let (load, queue) = &mut projects[place];
        order.extend(queue.next().map(|head| head.job));
        load.running = load.running.saturating_add(1);
        turns.extend(queue.as_slice().first().map(|next| Reverse(turn(load, place, next))));
    }
    order
}

fn turn(load: &Load, place: usize, next: &Head) -> Turn {
    let account = account(load);
    // The bits of numbers that are not negative are ordered like the numbers.
    Turn { account: account.to_bits(), oldest_job: next.job, place }
}

/// Seconds for each share, with what runs counted in advance.
fn account(load: &Load) -> f64 {
    let consumed = if load.consumed_seconds.is_finite() { load.consumed_seconds.max(0.0) } else { f64::MAX / 4.0 };
    (consumed + f64::from(load.running) * EXPECTED_SECONDS) / f64::from(load.shares.max(1))
}

/// Consumption after builds ran for `seconds` more.
pub(crate) fn charge(consumed_seconds: f64, seconds: f64) -> f64 {
    consumed_seconds + seconds.max(0.0)
}

/// Consumption after `seconds` went by.
pub(crate) fn decay(consumed_seconds: f64, seconds: f64) -> f64 {
    consumed_seconds * LEFT_AFTER_AN_HOUR.powf(seconds.max(0.0) / 3600.0)
}

#[cfg(test)]
mod tests;
