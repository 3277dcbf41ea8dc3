//! The WASI of guests whose toolchain cannot do without one. Start at [`WasiGrant`].
//!
//! There is nothing in it: no arguments, no environment, no standard input, no sockets, no names to resolve. Standard
//! output and error go to the plugin's log. `wasi:clocks` answers with the host's clock (which `clock.now-ms` gives anyway)
//! and `wasi:random` with random numbers, since these toolchains start neither without.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use harmonia_core::Clock;
use serde::Deserialize;
use wasmtime_wasi::p2::pipe::MemoryOutputPipe;
use wasmtime_wasi::{FsPerms, HostWallClock, WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};

use crate::state::State;

/// Whether a plugin gets a WASI.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WasiGrant {
    /// None: a component that imports one is refused.
    #[default]
    None,
    /// One with nothing in it.
    Empty,
    /// One with a folder `/scratch`, new and empty for each call and gone after it. What a call writes is bounded by its
    /// time alone: put the folder for scratch files onto a file system of its own.
    Scratch,
}

/// The WASI of one call.
pub(crate) struct Wasi {
    context: WasiCtx,
    output: MemoryOutputPipe,
    /// Removed with the call.
    _scratch: Option<tempfile::TempDir>,
}

impl Wasi {
    /// For one call; `None` without a grant.
    pub(crate) fn new(
        grant: WasiGrant,
        scratch_folder: &Path,
        stdio_bytes_max: usize,
        clock: Arc<dyn Clock>,
    ) -> std::io::Result<Option<Box<Self>>> {
        if grant == WasiGrant::None {
            return Ok(None);
        }
        let output = MemoryOutputPipe::new(stdio_bytes_max);
        let mut builder = WasiCtxBuilder::new();
        builder
            .stdout(output.clone())
            .stderr(output.clone())
            .wall_clock(OurClock(clock))
            .allow_tcp(false)
            .allow_udp(false)
            .allow_ip_name_lookup(false);
        let scratch = if grant == WasiGrant::Scratch {
            let folder = tempfile::Builder::new().prefix("call-").tempdir_in(scratch_folder)?;
            builder
                .preopened_dir(folder.path(), "/scratch", FsPerms::ReadWrite)
                .map_err(|error| std::io::Error::other(format!("{error:#}")))?;
            Some(folder)
        } else {
            None
        };
        Ok(Some(Box::new(Self { context: builder.build(), output, _scratch: scratch })))
    }

    /// What was written so far.
    pub(crate) fn output(&self) -> String {
        String::from_utf8_lossy(&self.output.contents()).into_owned()
    }
}

/// Where scratch folders go, made ready.
pub(crate) fn scratch_folder(folder: PathBuf) -> std::io::Result<PathBuf> {
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}

struct OurClock(Arc<dyn Clock>);

impl HostWallClock for OurClock {
    fn resolution(&self) -> Duration {
        Duration::from_millis(1)
    }

    fn now(&self) -> Duration {
        let since = self.0.now() - harmonia_core::Timestamp::UNIX_EPOCH;
        Duration::from_millis(u64::try_from(since.whole_milliseconds()).unwrap_or(0))
    }
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        let wasi = self.wasi.as_mut().expect("only components with the grant are linked with a WASI");
        WasiCtxView { ctx: &mut wasi.context, table: &mut self.table }
    }
}
