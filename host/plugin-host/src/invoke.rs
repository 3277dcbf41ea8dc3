//! One export of a plugin with JSON in and out, for `plugin call`. Works by the component's own types, so it needs no
//! adapter: start at [`PluginHost::call`].

mod json;

use serde_json::Value;
use wasmtime::component::types::{ComponentFunc, ComponentItem};
use wasmtime::component::{ComponentExportIndex, Val};

use self::json::{InputError, from_json, to_json};
use crate::call::{Caller, Network};
use crate::error::{CallError, LoadError};
use crate::plugin::{self, World};
use crate::registry::PluginHost;
use crate::spec::PluginSpec;
use crate::stats::Stats;

/// Why an export could not be called, or failed.
#[derive(Debug, thiserror::Error)]
pub enum InvokeError {
    /// The plugin is not let in.
    #[error("the plugin cannot be loaded")]
    Load(#[from] LoadError),
    /// It has no such export.
    #[error("the plugin does not export '{export}'; it exports {known}")]
    NoExport {
        /// As asked.
        export: String,
        /// What there is.
        known: String,
    },
    /// The input does not fit the export's parameters.
    #[error("the input does not fit: {at}: {reason}")]
    Input {
        /// Where in the input.
        at: String,
        /// Why.
        reason: String,
    },
    /// The call failed.
    #[error(transparent)]
    Call(#[from] CallError),
}

impl PluginHost {
    /// Calls `export` (`webhooks.parse`) of a plugin that need not be configured, with `input`: an object with a key for each
    /// parameter, or an array of them. Bytes are text, or `{"hex": "…"}`; a variant is its name, or `{"name": value}`; a result is
    /// `{"ok": …}` or `{"err": …}`. Secrets in the answer are `"[secret]"`.
    pub async fn call(&self, spec: PluginSpec, export: &str, input: Value) -> Result<Value, InvokeError> {
        call(self.world(), self, spec, export, input).await
    }
}

async fn call(
    world: &World,
    host: &PluginHost,
    spec: PluginSpec,
    export: &str,
    input: Value,
) -> Result<Value, InvokeError> {
    spec.check_name()?;
    let program = host.program(&spec).await?;
    let caller = plugin::link(world, &spec, program, std::sync::Arc::new(Stats::default()))?;
    let found = find(&caller, export)?;
    let parameters =
        arguments(&found.types, &input).map_err(|error| InvokeError::Input { at: error.at, reason: error.reason })?;
    // What the port promises holds here, too.
    let network = if found.name == "webhooks.parse" { Network::Closed } else { Network::Granted };
    let results = found.types.results().len();
    let function = found.function;
    let answers = caller
        .call(&found.name, network, move |guest| {
            Box::pin(async move {
                let function = guest
                    .instance
                    .get_func(&mut *guest.store, function)
                    .ok_or_else(|| wasmtime::format_err!("the export is gone"))?;
                let mut answers = vec![Val::Bool(false); results];
                function.call_async(&mut *guest.store, &parameters, &mut answers).await?;
                Ok(answers.iter().map(to_json).collect::<Vec<Value>>())
            })
        })
        .await?;
    Ok(match <[Value; 1]>::try_from(answers) {
        Ok([answer]) => answer,
        Err(answers) if answers.is_empty() => Value::Null,
        Err(answers) => Value::Array(answers),
    })
}

/// A function that a component exports.
struct Found {
    /// `interface.function`.
    name: String,
    types: ComponentFunc,
    function: ComponentExportIndex,
}

fn find(caller: &Caller, export: &str) -> Result<Found, InvokeError> {
    let component = &caller.program.component;
    let engine = component.engine();
    let mut known = Vec::new();
    for (interface, item) in component.component_type().exports(engine) {
        let ComponentItem::ComponentInstance(instance) = item.ty else { continue };
        let short = interface.rsplit('/').next().and_then(|name| name.split('@').next()).unwrap_or(interface);
        for (function, item) in instance.exports(engine) {
            let ComponentItem::ComponentFunc(types) = item.ty else { continue };
            let name = format!("{short}.{function}");
            if export == name || export == format!("{interface}#{function}") {
                let at = component.get_export_index(None, interface);
                let function = at.and_then(|at| component.get_export_index(Some(&at), function));
                if let Some(function) = function {
                    return Ok(Found { name, types, function });
                }
            }
            known.push(name);
        }
    }
    Err(InvokeError::NoExport { export: export.to_owned(), known: known.join(", ") })
}

fn arguments(types: &ComponentFunc, input: &Value) -> Result<Vec<Val>, InputError> {
    let parameters: Vec<_> = types.params().collect();
    match input {
        Value::Array(values) => {
            if values.len() != parameters.len() {
                let reason = format!("{} values for {} parameters", values.len(), parameters.len());
                return Err(InputError { at: "input".into(), reason });
            }
            parameters.iter().zip(values).map(|((name, ty), value)| from_json(ty, value, name)).collect()
        }
        Value::Null | Value::Object(_) => {
            let empty = serde_json::Map::new();
            let object = input.as_object().unwrap_or(&empty);
            if let Some(unknown) = object.keys().find(|key| !parameters.iter().any(|(name, _)| *name == key.as_str())) {
                let names: Vec<&str> = parameters.iter().map(|(name, _)| *name).collect();
                let reason = format!("no such parameter; there are: {}", names.join(", "));
                return Err(InputError { at: unknown.clone(), reason });
            }
            parameters.iter().map(|(name, ty)| from_json(ty, object.get(*name).unwrap_or(&Value::Null), name)).collect()
        }
        _ => Err(InputError { at: "input".into(), reason: "an object or an array is expected".into() }),
    }
}
