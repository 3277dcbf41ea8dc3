//! Forges for tests.
