//! What one call of a plugin may use. Start at [`CallLimits`]; reaching a bound is an error that names it and its key.

use serde::Deserialize;

/// Most bytes of a component file.
pub const COMPONENT_BYTES_MAX: u64 = 64 << 20;
/// Most bytes of stack that a guest may use. One for all: it is compiled into the engine.
pub(crate) const STACK_BYTES_MAX: usize = 512 << 10;
/// Most calls in guests at once on a node that run in the pool.
pub(crate) const POOLED_CALLS_MAX: u32 = 256;
/// Most calls at once of guests that are too big for the pool.
pub(crate) const UNPOOLED_CALLS_MAX: usize = 16;
/// Most handles (secrets, WASI streams) that a call may hold.
pub(crate) const HANDLES_MAX: usize = 1_000;
/// Calls that fail in a row before a plugin is not called for a while.
pub(crate) const FAULTS_BEFORE_BREAK: u32 = 5;
/// How long the first break lasts, in seconds; each further one twice as long.
pub(crate) const BREAK_S_MIN: u64 = 10;
/// How long a break lasts at most, in seconds.
pub(crate) const BREAK_S_MAX: u64 = 600;

/// What one call may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallLimits {
    /// Processor time, in milliseconds, counted in ticks of [`crate::engine::TICK_MS`].
    pub cpu_ms_max: u64,
    /// Time of the whole call with all that the host does for it, in milliseconds.
    pub wall_ms_max: u64,
    /// Bytes of all memories of the instance together.
    pub memory_bytes_max: usize,
    /// Elements of one table.
    pub table_elements_max: usize,
    /// Core instances, tables and memories, each.
    pub instances_max: usize,
    /// Bytes that the guest may hand to the host at once: a result, or the arguments of one import.
    pub output_bytes_max: usize,
    /// Bytes of standard output and error together (only with a WASI).
    pub stdio_bytes_max: usize,
    /// Calls at once.
    pub concurrent_calls_max: usize,
}

/// For forges and reporters.
pub const CALL_LIMITS: CallLimits = CallLimits {
    cpu_ms_max: 2_000,
    wall_ms_max: 30_000,
    memory_bytes_max: 64 << 20,
    table_elements_max: 200_000,
    instances_max: 100,
    output_bytes_max: 8 << 20,
    stdio_bytes_max: 256 << 10,
    concurrent_calls_max: 32,
};

/// For policies: they run in the claim path.
pub const POLICY_LIMITS: CallLimits = CallLimits { cpu_ms_max: 100, wall_ms_max: 1_000, ..CALL_LIMITS };

/// What an operator changes of [`CallLimits`]: `[plugins.limits]`, the same names.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitOverrides {
    /// See [`CallLimits::cpu_ms_max`].
    pub cpu_ms_max: Option<u64>,
    /// See [`CallLimits::wall_ms_max`].
    pub wall_ms_max: Option<u64>,
    /// See [`CallLimits::memory_bytes_max`].
    pub memory_bytes_max: Option<usize>,
    /// See [`CallLimits::table_elements_max`].
    pub table_elements_max: Option<usize>,
    /// See [`CallLimits::instances_max`].
    pub instances_max: Option<usize>,
    /// See [`CallLimits::output_bytes_max`].
    pub output_bytes_max: Option<usize>,
    /// See [`CallLimits::stdio_bytes_max`].
    pub stdio_bytes_max: Option<usize>,
    /// See [`CallLimits::concurrent_calls_max`].
    pub concurrent_calls_max: Option<usize>,
}

impl LimitOverrides {
    /// The limits with these changes.
    #[must_use]
    pub fn apply(&self, base: CallLimits) -> CallLimits {
        CallLimits {
            cpu_ms_max: self.cpu_ms_max.unwrap_or(base.cpu_ms_max),
            wall_ms_max: self.wall_ms_max.unwrap_or(base.wall_ms_max),
            memory_bytes_max: self.memory_bytes_max.unwrap_or(base.memory_bytes_max),
            table_elements_max: self.table_elements_max.unwrap_or(base.table_elements_max),
            instances_max: self.instances_max.unwrap_or(base.instances_max),
            output_bytes_max: self.output_bytes_max.unwrap_or(base.output_bytes_max),
            stdio_bytes_max: self.stdio_bytes_max.unwrap_or(base.stdio_bytes_max),
            concurrent_calls_max: self.concurrent_calls_max.unwrap_or(base.concurrent_calls_max).max(1),
        }
    }
}

/// A bound that a guest ran into while it ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LimitReached {
    /// Processor time.
    #[error("more than {0} ms of processor time")]
    Cpu(u64),
    /// Time of the whole call.
    #[error("more than {0} ms")]
    Wall(u64),
    /// Memory.
    #[error("more than {0} bytes of memory")]
    Memory(usize),
    /// Elements of a table.
    #[error("more than {0} elements in a table")]
    Table(usize),
    /// Core instances, tables or memories.
    #[error("more than {0} core instances, tables or memories")]
    Instances(usize),
    /// Stack.
    #[error("more than {0} bytes of stack")]
    Stack(usize),
    /// Bytes handed to the host.
    #[error("more than {0} bytes handed to the host at once")]
    Output(usize),
    /// Standard output.
    #[error("more than {0} bytes of standard output")]
    Stdio(usize),
    /// Calls at once.
    #[error("more than {0} calls at once")]
    ConcurrentCalls(usize),
    /// Handles.
    #[error("more than {0} handles at once")]
    Handles(usize),
}

impl LimitReached {
    /// The key under `limits` of the plugin's configuration that raises it; `None` where it is fixed.
    pub const fn key(self) -> Option<&'static str> {
        Some(match self {
            Self::Cpu(_) => "cpu_ms_max",
            Self::Wall(_) => "wall_ms_max",
            Self::Memory(_) => "memory_bytes_max",
            Self::Table(_) => "table_elements_max",
            Self::Instances(_) => "instances_max",
            Self::Output(_) => "output_bytes_max",
            Self::Stdio(_) => "stdio_bytes_max",
            Self::ConcurrentCalls(_) => "concurrent_calls_max",
            Self::Stack(_) | Self::Handles(_) => return None,
        })
    }
}
