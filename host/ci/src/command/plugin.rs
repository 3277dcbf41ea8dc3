//! `plugin inspect | check | call | list`: what a plugin is, whether it keeps to its contract, one call, and how those of a
//! server are. The first three need no server: they run the component here, with nothing granted but what is said.

use std::path::Path;
use std::sync::Arc;

use harmonia_core::SystemClock;
use harmonia_core::plugin::{PluginKind, PluginStatus};
use harmonia_plugin_host::{CheckResult, Inspection, MemoryStore, PluginHost, PluginSpec};
use serde::Serialize;

use crate::cli::{PluginCall, PluginCheck, PluginCommand, PluginGrants, PluginInspect, Reading};
use crate::client::Client;
use crate::exit::{Failure, chain};
use crate::node;
use crate::table::Table;

/// Runs one of them.
pub(crate) async fn run(command: &PluginCommand) -> Result<(), Failure> {
    match command {
        PluginCommand::Inspect(args) => inspect(args).await,
        PluginCommand::Check(args) => check(args).await,
        PluginCommand::Call(args) => call(args).await,
        PluginCommand::List(args) => list(args).await,
    }
}

/// An engine of its own, gone with the command. The folder is kept until then.
fn host() -> Result<(PluginHost, tempfile::TempDir), Failure> {
    let folder = tempfile::tempdir().map_err(|error| Failure::failed(format!("could not make a folder: {error}")))?;
    let store = Arc::new(MemoryStore::new(Arc::new(SystemClock)));
    Ok((node::plugins::host(folder.path(), store)?, folder))
}

fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(|error| Failure::failed(error.to_string()))?;
    outln!("{text}");
    Ok(())
}

async fn inspect(args: &PluginInspect) -> Result<(), Failure> {
    let (host, _folder) = host()?;
    let found = host.inspect(&args.file).await.map_err(|error| Failure::failed(chain(&error)))?;
    if args.json {
        return print_json(&found);
    }
    out!("{}", describe(&found, &args.file));
    Ok(())
}

fn describe(found: &Inspection, file: &Path) -> String {
    let kind = kind_name(found.kind);
    let mut lines = vec![format!("{}: a {kind}, {}", file.display(), found.tracks.join(", "))];
    if let Some(description) = &found.description {
        lines.push(format!("  {} {}: {}", description.name, description.version, description.summary));
    }
    lines.push(format!("  sha256 = \"{}\"  ({} KiB)", found.sha256, found.size_bytes.div_ceil(1024)));
    lines.push(format!("exports {}", found.exports.join(", ")));
    lines.push(format!(
        "imports {}",
        if found.imports.is_empty() { "nothing".to_owned() } else { found.imports.join(", ") }
    ));
    if found.needs_wasi {
        lines.push("needs wasi = \"empty\" (or \"scratch\") in its configuration".to_owned());
    }
    for refused in &found.refused {
        lines.push(format!("refused: {refused}"));
    }
    if let Some(problem) = &found.problem {
        lines.push(format!("could not be asked what it is: {problem}"));
    }
    if let Some(description) = &found.description {
        let mut parameters = |what: &str, list: &[harmonia_plugin_host::Parameter]| {
            for parameter in list {
                let need = if parameter.required { "required" } else { "optional" };
                lines.push(format!("{what} {} ({need}): {}", parameter.name, parameter.summary));
            }
        };
        parameters("setting", &description.settings);
        parameters("secret ", &description.secrets);
        if !description.hosts.is_empty() {
            lines.push(format!("calls {}", description.hosts.join(", ")));
        }
    }
    lines.join("\n") + "\n"
}

fn kind_name(kind: PluginKind) -> &'static str {
    match kind {
        PluginKind::Forge => "forge",
        PluginKind::Reporter => "reporter",
        PluginKind::Scheduler => "scheduler",
    }
}

/// A plugin as the arguments describe it: an instance of a configuration, or a file with the grants named here.
fn spec(file: &Path, grants: &PluginGrants) -> Result<PluginSpec, Failure> {
    let mut table = toml::Table::from_iter([
        ("name".to_owned(), "plugin".into()),
        ("path".to_owned(), file.display().to_string().into()),
    ]);
    let map = |pairs: &[(String, String)]| -> toml::Value {
        toml::Value::Table(pairs.iter().map(|(name, value)| (name.clone(), value.clone().into())).collect())
    };
    table.insert("allow_hosts".to_owned(), grants.allow_hosts.clone().into());
    table.insert("settings".to_owned(), map(&grants.settings));
    table.insert("secrets".to_owned(), map(&grants.secrets));
    if let Some(wasi) = &grants.wasi {
        table.insert("wasi".to_owned(), wasi.clone().into());
    }
    table.try_into().map_err(|error: toml::de::Error| Failure::usage(error.message().trim().to_owned()))
}

async fn check(args: &PluginCheck) -> Result<(), Failure> {
    let (host, _folder) = host()?;
    let results = host.check(spec(&args.file, &args.grants)?).await;
    if args.json {
        print_json(&results)?;
    } else {
        for CheckResult { case, problem } in &results {
            match problem {
                None => outln!("ok      {case}"),
                Some(problem) => outln!("FAILED  {case}: {problem}"),
            }
        }
    }
    let failed = results.iter().filter(|result| !result.passed()).count();
    if failed > 0 {
        return Err(Failure::failed(format!("{failed} of {} cases failed for {}", results.len(), args.file.display())));
    }
    Ok(())
}

async fn call(args: &PluginCall) -> Result<(), Failure> {
    let input = match &args.input {
        None => serde_json::Value::Array(Vec::new()),
        Some(text) => serde_json::from_str(text).map_err(|error| {
            Failure::usage(format!("the input is no JSON: {error}"))
                .hint("an object with a key for each parameter, or an array of them: '{\"branch\": \"main\", …}'")
        })?,
    };
    let (host, _folder) = host()?;
    let answer = host.call(spec(&args.file, &args.grants)?, &args.export, input).await;
    let answer = answer.map_err(|error| Failure::failed(chain(&error)))?;
    print_json(&answer)?;
    if is_refusal(&answer) {
        return Err(Failure::failed(format!("{} answered with an error", args.export)));
    }
    Ok(())
}

/// Whether an export answered with the error of its result: `{"err": …}`, and nothing beside it.
fn is_refusal(answer: &serde_json::Value) -> bool {
    answer.as_object().is_some_and(|object| object.len() == 1 && object.contains_key("err"))
}

async fn list(args: &Reading) -> Result<(), Failure> {
    let plugins: Vec<PluginStatus> = Client::find(&args.server)?.get("/api/v1/plugins").await?;
    if args.json {
        return print_json(&plugins);
    }
    let mut table = Table::new(&["NAME", "KIND", "PROGRAM", "CALLS", "FAILED", "STATE"]);
    for plugin in &plugins {
        let state = match (plugin.broken_for_s, &plugin.last_error) {
            (Some(seconds), error) => {
                format!("not called for {seconds} s: {}", error.as_deref().unwrap_or("it failed too often"))
            }
            (None, Some(error)) => format!("last error: {error}"),
            (None, None) => "ok".to_owned(),
        };
        table.row([
            plugin.name.clone(),
            plugin.kind.map_or("not loaded", kind_name).to_owned(),
            plugin.program.clone(),
            plugin.calls.to_string(),
            plugin.failures.to_string(),
            state,
        ]);
    }
    out!("{table}");
    Ok(())
}

/// `NAME=VALUE` of the command line.
pub(crate) fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(format!("'{text}' is not NAME=VALUE")),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::PathBuf;

    use super::*;

    fn grants() -> PluginGrants {
        PluginGrants {
            settings: vec![("app_id".to_owned(), "7".to_owned())],
            secrets: vec![("key".to_owned(), "/run/key".to_owned())],
            allow_hosts: vec!["api.example.org".to_owned()],
            wasi: None,
        }
    }

    #[test]
    fn what_is_granted_on_the_command_line_is_granted() {
        let spec = spec(Path::new("a.wasm"), &grants()).expect("a plugin");
        assert_eq!(spec.settings, BTreeMap::from([("app_id".to_owned(), "7".to_owned())]));
        assert_eq!(spec.secrets["key"].file, PathBuf::from("/run/key"));
        assert_eq!(spec.allow_hosts.len(), 1);
    }

    #[test]
    fn an_answer_that_is_an_error_fails_the_command() {
        for (answer, fails) in [
            (serde_json::json!({"err": {"denied": "no"}}), true),
            (serde_json::json!({"err": null}), true),
            (serde_json::json!({"ok": {"err": 1}}), false),
            (serde_json::json!({"err": 1, "text": ""}), false), // a record with a field of that name
            (serde_json::json!([{"err": 1}]), false),
            (serde_json::json!(null), false),
        ] {
            assert_eq!(is_refusal(&answer), fails, "{answer}");
        }
    }

    #[test]
    fn what_cannot_be_granted_is_said() {
        let odd = PluginGrants { wasi: Some("all".to_owned()), ..grants() };
        assert!(spec(Path::new("a.wasm"), &odd).expect_err("no such grant").message().contains("all"));
        assert_eq!(pair("a=b=c"), Ok(("a".to_owned(), "b=c".to_owned())));
        for odd in ["", "a", "=b"] {
            assert!(pair(odd).is_err(), "{odd}");
        }
    }
}
