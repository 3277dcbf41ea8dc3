//! What guests may import, one adapter a track of `wit/plugin`. Start at [`linker`].

pub(crate) mod v0_1;

use harmonia_core::plugin::PluginKind;
use wasmtime::Engine;
use wasmtime::component::Linker;

use crate::state::State;

/// Everything that a plugin of this kind may import, in every track; a WASI only where it is wanted.
pub(crate) fn linker(engine: &Engine, kind: PluginKind, with_wasi: bool) -> wasmtime::Result<Linker<State>> {
    let mut linker = Linker::new(engine);
    if kind == PluginKind::Scheduler {
        v0_1::add_pure(&mut linker)?;
    } else {
        v0_1::add_connected(&mut linker)?;
        if with_wasi {
            wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
        }
    }
    Ok(linker)
}
