//! Does what sdk/README.md tells a newcomer to do.

use std::path::{Path, PathBuf};
use std::process::Command;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the repository")
}

/// Cargo's target folder, out of where this test was built.
fn target() -> PathBuf {
    let builder = Path::new(env!("CARGO_BIN_EXE_harmonia-plugin-build"));
    builder.parent().and_then(Path::parent).expect("target/debug/…").to_path_buf()
}

/// The blocks of a page that are marked `sh`, in order.
fn shell_blocks(page: &str) -> Vec<String> {
    let fenced = page.split("\n```").skip(1).step_by(2);
    fenced.filter_map(|block| block.strip_prefix("sh\n")).map(str::to_owned).collect()
}

/// The page's one command that is to fail, since a grant is missing: so it must, and the next ones run.
const DENIED: &str = r#"harmonia-ci() {
  [ "$1 $2 ${4-}" = "plugin call reporter.report" ] || { command harmonia-ci "$@"; return; }
  local status=0
  command harmonia-ci "$@" || status=$?
  [ "$status" = 1 ]
}"#;

#[test]
fn a_newcomer_gets_a_running_plugin() {
    let page = std::fs::read_to_string(repository().join("sdk/README.md")).expect("sdk/README.md");
    let blocks = shell_blocks(&page);
    assert!(blocks.len() >= 6, "the page has lost its commands: {blocks:#?}");
    // One shell for all of them, as a person would have; each is shown before it runs.
    // What it compiled goes, as its folder does: the next run has another.
    let script = format!("set -euo pipefail\n{DENIED}\n{}\ncargo clean --quiet -p my-chat\n", blocks.join("\n"));

    let server = std::env::var_os("HARMONIA_CI_BIN").map_or_else(|| target().join("debug/harmonia-ci"), PathBuf::from);
    assert!(server.exists(), "there is no {}: cargo build -p harmonia-ci, or run ./dev test", server.display());
    let programs = std::env::join_paths(
        server
            .parent()
            .map(Path::to_path_buf)
            .into_iter()
            .chain(std::env::split_paths(&std::env::var_os("PATH").expect("there is a PATH"))),
    )
    .expect("paths without colons");

    let folder = tempfile::tempdir().expect("a folder");
    let output = Command::new("bash")
        .arg("-c")
        .arg(&script)
        .current_dir(folder.path())
        .env("HARMONIA", repository())
        .env("PATH", programs)
        // What is compiled already is not compiled again.
        .env("CARGO_TARGET_DIR", target())
        .output()
        .expect("bash runs");
    let said = format!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "a command of sdk/README.md failed:\n{said}");
    assert!(folder.path().join("my-chat/my-chat.wasm").exists(), "{said}");
    assert!(said.contains("my-chat.wasm"), "the builder says what it built:\n{said}");
    assert!(said.contains("denied") && said.contains("chat.example.org"), "the missing grant is named:\n{said}");
}
