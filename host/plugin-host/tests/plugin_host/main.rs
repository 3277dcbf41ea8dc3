//! The plugin host with real components, written as text, called through core's ports.

mod calls;
mod limits;
mod loading;
mod policy;
mod reload;
mod support;
mod tools;
mod turns;
mod wasi;
