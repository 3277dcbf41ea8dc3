//! Live logs: one LISTEN connection and one query a tick for the whole process, whatever the number of browsers.
//!
//! Start at [`Hub`], which keeps the newest state of every watched job; [`stream`] turns it into events for one client;
//! [`cursor`] is the pure part that decides which bytes come next.

pub(crate) mod cursor;
mod hub;
pub(crate) mod stream;

pub(crate) use hub::{Hub, WatchError};
