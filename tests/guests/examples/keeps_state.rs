//! Counts its calls in a static: always the first.

use std::sync::atomic::{AtomicU32, Ordering};

static CALLS: AtomicU32 = AtomicU32::new(0);

harmonia_test_guests::guest!(|_| Ok((CALLS.fetch_add(1, Ordering::Relaxed) + 1).to_string()));
