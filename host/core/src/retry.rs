//! When a transient failure is tried again: pure decisions over counts.
