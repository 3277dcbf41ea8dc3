//! Every guest of `tests/guests`, through the true plugin host: contained, told apart by name, and nobody else notices.

mod answers;
mod breaker;
mod computing;
mod conformance;
mod imports;
mod logging;
mod network;
mod policies;
mod reload;
mod secrets;
mod store;
mod traffic;
