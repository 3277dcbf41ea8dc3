//! Bounds on what travels between processes, in one place, with the unit in the name. `docs/limits.md` lists them.

/// Longest attribute path, in bytes.
pub const ATTR_BYTES_MAX: usize = 1_024;
/// Longest error text kept of one attribute or evaluation, in bytes; longer ones keep head and end.
pub const ERROR_BYTES_MAX: usize = 64 << 10;
/// Largest git bundle that `eval PATH` may send, in bytes.
pub const BUNDLE_BYTES_MAX: u64 = 512 << 20;
/// Largest `.drv` file, in bytes.
pub const DRV_BYTES_MAX: usize = 16 << 20;
/// Most `.drv` files in one upload call.
pub const DRVS_PER_CALL_MAX: usize = 500;
/// Largest JSON body of a signer call, in bytes.
pub const SIGNER_BODY_BYTES_MAX: usize = 64 << 20;
/// Most store paths in one call to a signer.
pub const PATHS_PER_CALL_MAX: usize = 1_000;
/// Most references of one store path.
pub const REFERENCES_MAX: usize = 20_000;
/// Largest NAR listing sent along with a completion, in bytes; larger ones are left out.
pub const LISTING_BYTES_MAX: usize = 8 << 20;
/// What `build_log_tails` keeps of a running build's log, in bytes.
pub const LOG_TAIL_BYTES: usize = 64 << 10;
/// Largest object that goes up in one PUT, in bytes.
pub const SINGLE_PUT_BYTES_MAX: u64 = 5 << 30;
/// How long a presigned PUT is valid, in seconds.
pub const SLOT_SECONDS: u64 = 900;
/// Most transient tries of one job before it is an infrastructure failure.
pub const TRANSIENT_TRIES_MAX: u32 = 3;
/// Most nodes that one job or evaluation may lose (they crashed, were killed, or vanished while they held it) before it is an
/// infrastructure failure.
pub const LOST_NODES_MAX: u32 = 5;
/// For so long after some builder last offered a system, it is evaluated, whether a builder is there or not.
pub const SYSTEMS_KNOWN_FOR: std::time::Duration = std::time::Duration::from_hours(30 * 24);

/// Logs (compressed) and listings up to this size are kept in the database instead of becoming objects of their own.
pub const SMALL_OBJECT_BYTES_MAX: usize = 4 << 10;
