//! Builders that are built in. Start at [`run`], which runs in the place of a builder: in its sandbox, as its user, in a
//! process of its own with one thread.

mod buildenv;
mod fetchurl;
mod unpack_channel;

use std::collections::BTreeMap;

use harmonia_sandbox::{BuilderRun, Bytes};
use serde::{Deserialize, Serialize};

use super::rewrite::Rewrites;
use super::walls::Probe;
use super::{BuildRequest, walls};

/// What a builtin builder is given.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Input {
    /// Which one, without `builtin:`.
    name: String,
    /// The environment of the derivation, as it stands there.
    env: BTreeMap<String, Bytes>,
    /// Passwords for hosts.
    netrc: String,
    hashed_mirrors: Vec<String>,
    /// Variables of the daemon's environment that name proxies.
    proxies: BTreeMap<String, String>,
    /// Of a builder that no derivation can name: it tries the walls.
    #[serde(default)]
    probe: Option<Probe>,
}

const PROXIES: [&str; 7] =
    ["http_proxy", "https_proxy", "all_proxy", "no_proxy", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"];

impl Input {
    fn attribute(&self, name: &str) -> Result<String, String> {
        self.optional(name).ok_or_else(|| format!("attribute '{name}' missing"))
    }

    fn optional(&self, name: &str) -> Option<String> {
        self.env.get(name).map(|value| String::from_utf8_lossy(&value.0).into_owned())
    }

    fn flag(&self, name: &str) -> bool {
        self.env.get(name).is_some_and(|value| value.0 == b"1")
    }
}

/// What the helper is told to run.
///
/// `proxy` is the one way out that it has, if it has only one.
pub(super) fn prepare(request: &BuildRequest, rewrites: &Rewrites, proxy: Option<&str>) -> Result<BuilderRun, String> {
    let derivation = &request.derivation;
    let name = String::from_utf8_lossy(&derivation.builder["builtin:".len()..]).into_owned();
    if !["fetchurl", "buildenv", "unpack-channel"].contains(&name.as_str()) {
        return Err(format!("unsupported builtin builder '{name}'"));
    }
    let mut input = Input { name, ..Input::default() };
    for (name, value) in &derivation.env {
        let name = String::from_utf8_lossy(name).into_owned();
        input.env.insert(name, Bytes(rewrites.apply(value)));
    }
    if input.name == "fetchurl" {
        let netrc = request.options.netrc_file.as_ref().and_then(|file| std::fs::read_to_string(file).ok());
        input.netrc = netrc.unwrap_or_default();
        input.hashed_mirrors.clone_from(&request.options.hashed_mirrors);
        input.proxies = match proxy {
            Some(proxy) => BTreeMap::from([("all_proxy".to_owned(), proxy.to_owned())]),
            None => PROXIES
                .into_iter()
                .filter_map(|name| Some((name.to_ascii_lowercase(), std::env::var(name).ok()?)))
                .collect(),
        };
    }
    let json = serde_json::to_vec(&input).map_err(|error| error.to_string())?;
    Ok(BuilderRun::Builtin(Bytes(json)))
}

/// What the helper is told to run to try the walls.
pub(super) fn probing(probe: Probe) -> serde_json::Result<Vec<u8>> {
    serde_json::to_vec(&Input { probe: Some(probe), ..Input::default() })
}

/// Runs one; answers the exit code.
pub(super) fn run(input: &[u8]) -> i32 {
    let outcome =
        serde_json::from_slice::<Input>(input).map_err(|error| error.to_string()).and_then(|input| {
            match input.name.as_str() {
                _ if input.probe.is_some() => walls::run(&input.probe.unwrap_or_default()),
                "fetchurl" => fetchurl::run(&input),
                "buildenv" => buildenv::run(&input),
                "unpack-channel" => unpack_channel::run(&input),
                name => Err(format!("unsupported builtin builder '{name}'")),
            }
        });
    match outcome {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("error: {error}");
            1
        }
    }
}

/// Names what failed.
fn failed<E: std::fmt::Display>(step: impl std::fmt::Display) -> impl FnOnce(E) -> String {
    move |error| format!("{step}: {error}")
}
