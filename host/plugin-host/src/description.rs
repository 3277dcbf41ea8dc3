//! What a plugin says of itself: `harmonia:plugin/description`, which every plugin exports.

use serde::Serialize;
use wasmtime::component::InstancePre;

use self::bindings::exports::harmonia::plugin::description as wit;
use crate::call::{Caller, Network};
use crate::error::{CallError, LoadError};
use crate::spec::PluginSpec;
use crate::state::State;

mod bindings {
    wasmtime::component::bindgen!({
        path: "../../wit/plugin/0.1",
        inline: "package harmonia:host; world described { export harmonia:plugin/description@0.1.0; }",
        world: "harmonia:host/described",
        exports: { default: async },
    });
}

/// A setting or a secret that a plugin reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Parameter {
    /// Its key.
    pub name: String,
    /// What it is for.
    pub summary: String,
    /// Whether the plugin cannot work without it.
    pub required: bool,
}

/// What a plugin says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Description {
    /// Name of the program.
    pub name: String,
    /// Version of the program.
    pub version: String,
    /// One sentence.
    pub summary: String,
    /// Settings that it reads.
    pub settings: Vec<Parameter>,
    /// Secrets that it opens.
    pub secrets: Vec<Parameter>,
    /// Hosts that it calls with the given settings.
    pub hosts: Vec<String>,
}

impl Description {
    /// Checks that everything it cannot work without is configured.
    pub(crate) fn check_parameters(&self, spec: &PluginSpec) -> Result<(), LoadError> {
        let missing = |what: &'static str, parameter: &Parameter| LoadError::MissingParameter {
            plugin: spec.name.clone(),
            what,
            name: parameter.name.clone(),
            summary: parameter.summary.clone(),
        };
        for setting in self.settings.iter().filter(|setting| setting.required) {
            if !spec.settings.contains_key(&setting.name) {
                return Err(missing("setting", setting));
            }
        }
        for secret in self.secrets.iter().filter(|secret| secret.required) {
            if !spec.secrets.contains_key(&secret.name) {
                return Err(missing("secret", secret));
            }
        }
        Ok(())
    }

    /// Settings and secrets that are configured and that it does not have: misspelt, most likely.
    pub(crate) fn unknown_parameters(&self, spec: &PluginSpec) -> Option<String> {
        let unknown = |what: &str, configured: Vec<&String>, known: &[Parameter]| -> Vec<String> {
            let names: Vec<&str> = known.iter().map(|parameter| parameter.name.as_str()).collect();
            let reads = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            let odd = configured.into_iter().filter(|name| !names.contains(&name.as_str()));
            odd.map(|name| format!("it knows no {what} '{name}' (it reads {reads})")).collect()
        };
        let mut all = unknown("setting", spec.settings.keys().collect(), &self.settings);
        all.extend(unknown("secret", spec.secrets.keys().collect(), &self.secrets));
        (!all.is_empty()).then(|| all.join("; "))
    }
}

/// Checks that the component exports the interface with our types.
pub(crate) fn check(instances: &InstancePre<State>) -> wasmtime::Result<()> {
    wit::GuestIndices::new(instances).map(drop)
}

/// Asks a plugin what it is. It must not call out.
pub(crate) async fn describe(caller: &Caller) -> Result<Description, CallError> {
    const EXPORT: &str = "description.describe";
    let indices = wit::GuestIndices::new(&caller.instances).map_err(|_| caller.missing(EXPORT))?;
    let said = caller
        .call(EXPORT, Network::Closed, move |guest| {
            Box::pin(async move { indices.load(&mut *guest.store, guest.instance)?.call_describe(guest.store).await })
        })
        .await?;
    let parameters = |list: Vec<wit::Parameter>| {
        list.into_iter().map(|p| Parameter { name: p.name, summary: p.summary, required: p.required }).collect()
    };
    Ok(Description {
        name: said.name,
        version: said.version,
        summary: said.summary,
        settings: parameters(said.settings),
        secrets: parameters(said.secrets),
        hosts: said.hosts,
    })
}
