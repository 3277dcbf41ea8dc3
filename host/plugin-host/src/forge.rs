//! Forges: one adapter a track, each an implementation of core's port.

pub(crate) mod v0_1;
