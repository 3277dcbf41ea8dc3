//! What a builder finds in its environment and its build directory. Start at [`environment`].

use std::collections::BTreeMap;
use std::path::Path;

use harmonia_nix::hash::Sha256Hash;
use harmonia_nix::store_path::{STORE_DIR, StorePath};

use super::attributes::{Attributes, words};
use super::rewrite::Rewrites;
use super::{BuildFailure, BuildRequest, export, structured};

/// What a builder finds.
pub(super) struct Environment {
    pub(super) variables: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Files of the build directory: (name, text).
    pub(super) files: Vec<(String, Vec<u8>)>,
}

/// What decides over it.
pub(super) struct World<'a> {
    pub(super) request: &'a BuildRequest,
    pub(super) attributes: &'a Attributes<'a>,
    /// Whether its hash is known, so that it may reach the network and be told things of this machine.
    pub(super) is_fixed: bool,
    /// The build directory, as the builder sees it.
    pub(super) top: &'a Path,
    /// Where it is to leave its outputs.
    pub(super) outputs: &'a BTreeMap<String, StorePath>,
    /// The one way to the network, if there is just one.
    pub(super) proxy: Option<&'a str>,
    /// What is replaced in all that the derivation says.
    pub(super) rewrites: &'a Rewrites,
}

/// Puts it together.
pub(super) fn environment(world: &World<'_>) -> Result<Environment, BuildFailure> {
    use std::os::unix::ffi::OsStrExt;
    let World { request, attributes, .. } = world;
    let top = world.top.as_os_str().as_bytes();
    let below_top = |name: &str| [top, b"/", name.as_bytes()].concat();
    let mut variables: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
    let mut files = Vec::new();
    let cores = request.options.cores;
    for (name, value) in
        [("PATH", "/path-not-set"), ("HOME", HOME), ("NIX_STORE", STORE_DIR), ("NIX_BUILD_CORES", &cores.to_string())]
    {
        variables.insert(name.into(), value.into());
    }
    if let Some(structured) = &attributes.structured {
        files.extend(structured::files(request, structured, world.outputs, world.rewrites)?);
    } else {
        let as_files = words(attributes.variable("passAsFile").unwrap_or_default());
        for (name, value) in &request.derivation.env {
            if as_files.iter().any(|file| file.as_bytes() == name.as_slice()) {
                let file = format!(".attr-{}", Sha256Hash::of(name).to_base32());
                variables.insert([name.as_slice(), b"Path"].concat(), below_top(&file));
                files.push((file, world.rewrites.apply(value)));
            } else {
                variables.insert(name.to_vec(), value.to_vec());
            }
        }
    }
    for name in ["NIX_BUILD_TOP", "TMPDIR", "TEMPDIR", "TMP", "TEMP", "PWD"] {
        variables.insert(name.into(), top.into());
    }
    if world.is_fixed {
        variables.insert("NIX_OUTPUT_CHECKED".into(), "1".into());
        for name in attributes.strings("impureEnvVars")?.unwrap_or_default() {
            let value = std::env::var_os(&name).unwrap_or_default();
            variables.insert(name.into(), value.as_bytes().to_vec());
        }
    }
    if let Some(proxy) = world.proxy {
        for name in ["http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"] {
            variables.insert(name.into(), proxy.into());
        }
        // Whatever this machine excepts, for the build there is no other way.
        for name in ["no_proxy", "NO_PROXY"] {
            variables.insert(name.into(), Vec::new());
        }
    }
    variables.insert("NIX_LOG_FD".into(), "2".into());
    variables.insert("TERM".into(), "xterm-256color".into());
    if attributes.structured.is_some() {
        variables.insert("NIX_ATTRS_SH_FILE".into(), below_top(".attrs.sh"));
        variables.insert("NIX_ATTRS_JSON_FILE".into(), below_top(".attrs.json"));
    } else if let Some(graph) = attributes.variable("exportReferencesGraph") {
        files.extend(export::files(request, graph)?);
    }
    // Name and value together, as Nix does.
    let variables = variables
        .into_iter()
        .filter_map(|(name, value)| {
            let text = world.rewrites.apply(&[name.as_slice(), b"=", &value].concat());
            let end = text.iter().position(|byte| *byte == b'=')?;
            Some((text[..end].to_vec(), text[end + 1..].to_vec()))
        })
        .collect();
    Ok(Environment { variables, files })
}

/// A home that must not exist.
pub(super) const HOME: &str = "/homeless-shelter";
