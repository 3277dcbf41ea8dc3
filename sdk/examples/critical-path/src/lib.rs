//! critical-path.
