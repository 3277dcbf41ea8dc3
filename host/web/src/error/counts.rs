//! How often which kind of 5xx was answered, for `/metrics` and tests.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// 5xx answers by cause since the process started. The causes are words of ours: their number is bounded.
#[derive(Debug, Default)]
pub struct ErrorCounts(Mutex<BTreeMap<&'static str, u64>>);

impl ErrorCounts {
    pub(crate) fn add(&self, cause: &'static str) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(cause).or_default() += 1;
    }

    /// Cause → how often.
    pub fn snapshot(&self) -> BTreeMap<&'static str, u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
