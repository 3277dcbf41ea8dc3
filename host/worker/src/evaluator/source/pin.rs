//! Flake references that are evaluated purely. Start at [`pin`].

use std::io::Read;
use std::path::Path;

use cap_std::ambient_authority;
use cap_std::fs::Dir;
use serde_json::{Map, Value, json};

use super::{AddTreeError, SourceTree, add_tree};
use crate::store_daemon::Connection;

/// Largest lock file, in bytes.
const LOCK_BYTES_MAX: u64 = 16 << 20;
/// What the nodes of the inner lock file are called in the outer one.
const INNER: &str = "target/";

/// A flake pinned by hash, with the commit's facts, so that `self.rev` and `self.lastModified` are what they are in the
/// repository.
#[derive(Debug, Clone)]
pub(crate) struct PinnedFlake {
    /// For `builtins.getFlake`.
    pub(crate) reference: String,
    /// The reference is of a wrapper whose output `target` is the flake.
    pub(crate) is_wrapped: bool,
}

/// Pins the flake in `flake_dir` of a tree, which is checked out at `checkout`.
pub(crate) async fn pin(
    connection: &mut Connection,
    tree: &SourceTree,
    checkout: &Path,
    flake_dir: &str,
    commit: Option<&str>,
    committed_at_s: u64,
) -> Result<PinnedFlake, AddTreeError> {
    if flake_dir.is_empty() {
        return Ok(PinnedFlake { reference: reference(tree, commit, committed_at_s), is_wrapped: false });
    }
    // As a URL, Nix 2.8 knows no directory within a path; as the input of a flake it does. So there is a flake around
    // it, with a lock file that says of the inputs below what the inner lock file says.
    let mut target = Map::new();
    target.insert("type".to_owned(), json!("path"));
    target.insert("path".to_owned(), json!(tree.path.as_str()));
    target.insert("dir".to_owned(), json!(flake_dir));
    target.insert("narHash".to_owned(), json!(tree.nar_hash_sri));
    target.insert("lastModified".to_owned(), json!(committed_at_s));
    if let Some(commit) = commit {
        target.insert("rev".to_owned(), json!(commit));
    }
    let inner = read_lock(checkout, flake_dir).map_err(AddTreeError::Lock)?;
    let wrapper = tempfile::tempdir().map_err(AddTreeError::Spool)?;
    let directory = wrapper.path().join("source");
    std::fs::create_dir(&directory).map_err(AddTreeError::Spool)?;
    for (name, text) in
        [("flake.nix", wrapper_flake(&target)), ("flake.lock", wrapper_lock(&target, inner).to_string())]
    {
        std::fs::write(directory.join(name), text).map_err(AddTreeError::Spool)?;
    }
    let wrapper = add_tree(connection, &directory).await?;
    Ok(PinnedFlake { reference: reference(&wrapper, None, committed_at_s), is_wrapped: true })
}

/// The reference of a flake in the store's root of a tree.
pub(crate) fn reference(tree: &SourceTree, commit: Option<&str>, committed_at_s: u64) -> String {
    let revision = commit.map(|commit| format!("&rev={commit}")).unwrap_or_default();
    // In a query "+" may mean a space.
    let hash = tree.nar_hash_sri.replace('+', "%2B").replace('/', "%2F").replace('=', "%3D");
    format!("path:{}?lastModified={committed_at_s}&narHash={hash}{revision}", tree.path)
}

fn wrapper_flake(target: &Map<String, Value>) -> String {
    let mut text = "{\n".to_owned();
    for (name, value) in target {
        // JSON's strings are Nix's, but for the dollar.
        let value = value.to_string().replace('$', "\\$");
        text.extend(["  inputs.target.", name, " = ", &value, ";\n"]);
    }
    text.push_str("  outputs = { self, target }: { inherit target; };\n}\n");
    text
}

/// The lock file of the flake itself, if it has one.
fn read_lock(checkout: &Path, flake_dir: &str) -> std::io::Result<Option<Value>> {
    let dir = Dir::open_ambient_dir(checkout, ambient_authority())?;
    let file = match dir.open(Path::new(flake_dir).join("flake.lock")) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let mut bytes = Vec::new();
    file.take(LOCK_BYTES_MAX).read_to_end(&mut bytes)?;
    serde_json::from_slice(&bytes).map(Some).map_err(std::io::Error::other)
}

/// Version 7 of the format: nodes by name; inputs name a node, or a path of inputs from the root ("follows").
fn wrapper_lock(target: &Map<String, Value>, inner: Option<Value>) -> Value {
    let mut nodes = Map::new();
    nodes.insert("root".to_owned(), json!({ "inputs": { "target": "target" } }));
    let mut node = Map::new();
    let mut original = target.clone();
    original.insert("path".to_owned(), target["path"].clone());
    node.insert("locked".to_owned(), Value::Object(target.clone()));
    node.insert("original".to_owned(), Value::Object(original));
    if let Some(Value::Object(mut inner)) = inner {
        let root = inner.get("root").and_then(Value::as_str).unwrap_or("root").to_owned();
        if let Some(Value::Object(inner_nodes)) = inner.remove("nodes") {
            for (name, mut inner_node) in inner_nodes {
                let mut inputs = None;
                if let Some(Value::Object(found)) = inner_node.get_mut("inputs") {
                    found.values_mut().for_each(move_input);
                    inputs = Some(Value::Object(found.clone()));
                }
                if name == root {
                    node.extend(inputs.map(|inputs| ("inputs".to_owned(), inputs)));
                } else {
                    nodes.insert(format!("{INNER}{name}"), inner_node);
                }
            }
        }
    }
    nodes.insert("target".to_owned(), Value::Object(node));
    json!({ "nodes": nodes, "root": "root", "version": 7 })
}

fn move_input(input: &mut Value) {
    match input {
        Value::String(node) => node.insert_str(0, INNER),
        Value::Array(path) => path.insert(0, json!("target")),
        _ => {}
    }
}
