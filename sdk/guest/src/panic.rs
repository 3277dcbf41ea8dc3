//! Says in the server's log why a plugin panicked: without a hook the text is lost, and only "unreachable" is left.

use std::panic::PanicHookInfo;
use std::sync::Once;

use crate::log;

/// Installs the hook, once in an instance. Every export of [`export!`](crate::export) begins with it.
pub(crate) fn install_hook() {
    static INSTALLED: Once = Once::new();
    // Natively a panic is the test runner's, and there is no host to tell.
    if cfg!(target_arch = "wasm32") {
        INSTALLED.call_once(|| std::panic::set_hook(Box::new(tell)));
    }
}

fn tell(panic: &PanicHookInfo<'_>) {
    let text = panic.payload_as_str().unwrap_or("no text");
    match panic.location() {
        Some(at) => log::error(format!("panicked at {}:{}: {text}", at.file(), at.line())),
        None => log::error(format!("panicked: {text}")),
    }
}
