//! Time as an argument: decisions take a [`Clock`], so tests can move it.

/// A moment in UTC.
pub type Timestamp = time::OffsetDateTime;

/// Where the current time comes from.
pub trait Clock: Send + Sync + 'static {
    /// The current time in UTC.
    fn now(&self) -> Timestamp;
}

/// The machine's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        time::OffsetDateTime::now_utc()
    }
}
