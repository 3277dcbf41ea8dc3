//! The WASI of guests whose toolchain cannot do without one.

use harmonia_core::ports::Plugins;
use harmonia_core::reporter::ReportError;
use harmonia_plugin_host::WasiGrant;

use crate::support::{World, notification, reporter_with};

const ENVIRONMENT: &str = "import wasi:cli/environment@0.2.3;";
const PREOPENS: &str = "import wasi:filesystem/preopens@0.2.3;";

fn traps_unless_zero(function: &str, module: &str) -> (String, String) {
    // A list comes back at 3000 as pointer and length; the length must be zero.
    let more = format!(r#"(import "{module}" "{function}" (func $list (param i32)))"#);
    (more, "(call $list (i32.const 3000)) (if (i32.load (i32.const 3004)) (then unreachable))".into())
}

#[tokio::test]
async fn there_is_nothing_in_it() {
    let world = World::new();
    for (imports, module, function) in [
        (ENVIRONMENT, "wasi:cli/environment@0.2.3", "get-environment"),
        (ENVIRONMENT, "wasi:cli/environment@0.2.3", "get-arguments"),
        (PREOPENS, "wasi:filesystem/preopens@0.2.3", "get-directories"),
    ] {
        let (more, body) = traps_unless_zero(function, module);
        let mut spec = world.spec("chat", &reporter_with(imports, &more, &body));
        let refused = world.refusal(spec.clone()).await;
        assert!(refused.contains(module) && refused.contains("wasi = \"empty\""), "{refused}");
        spec.wasi = WasiGrant::Empty;
        world.load(spec).await;
        let answer = world.host.reporter("chat").expect("loaded").report(notification("k")).await;
        assert_eq!(answer, Ok(()), "{function}");
    }
}

#[tokio::test]
async fn a_scratch_folder_is_a_grant_and_gone_after_the_call() {
    let world = World::new();
    let (more, body) = traps_unless_zero("get-directories", "wasi:filesystem/preopens@0.2.3");
    let mut spec = world.spec("chat", &reporter_with(PREOPENS, &more, &body));
    spec.wasi = WasiGrant::Scratch;
    world.load(spec).await;
    let answer = world.host.reporter("chat").expect("loaded").report(notification("k")).await;
    assert!(matches!(answer, Err(ReportError::Plugin(text)) if text.contains("unreachable")), "it has one now");
    let left = std::fs::read_dir(world.folder.path().join("scratch")).expect("there").count();
    assert_eq!(left, 0);
}
