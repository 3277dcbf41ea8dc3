//! minimal-forge.
