//! Discovery, hooks and polling with a forge in memory and a real PostgreSQL.

mod hangs;
mod hooks;
mod poll;
mod sync;
mod world;
