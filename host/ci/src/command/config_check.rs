//! `config check`: what is in force, where it came from, and what is wrong with it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use harmonia_core::without_credentials;

use crate::cli::ConfigArgs;
use crate::config::{Config, keys, load};
use crate::exit::Failure;
use crate::node;

/// Prints every key with its value, its origin and its meaning; then checks that the files it names can be used.
pub(crate) fn run(args: &ConfigArgs) -> Result<(), Failure> {
    let environment: BTreeMap<String, String> = std::env::vars().collect();
    let config = load::load(args.config.as_deref(), &environment)?;
    out!("{}", explain(&config, args.config.as_deref(), &environment)?);
    node::check(&config)?;
    outln!("\nThe configuration is usable.");
    Ok(())
}

fn explain(config: &Config, file: Option<&Path>, environment: &BTreeMap<String, String>) -> Result<String, Failure> {
    let broken = |error: toml::ser::Error| Failure::failed(error.to_string());
    let effective = toml::Table::try_from(config).map_err(broken)?;
    let written: toml::Table =
        file.and_then(|path| std::fs::read_to_string(path).ok()).and_then(|text| text.parse().ok()).unwrap_or_default();
    let mut text = String::new();
    let mut last_section = "";
    for (key, meaning) in keys::KEYS {
        let Some((section, name)) = key.split_once('.') else { continue };
        if section != last_section {
            let _ = writeln!(text, "\n[{section}]");
            last_section = section;
        }
        let variable = format!("{}{}", load::ENV_PREFIX, key.replace('.', "__").to_uppercase());
        let lookup = |table: &toml::Table| table.get(section).and_then(|values| values.get(name)).cloned();
        let origin = if environment.contains_key(&variable) {
            "environment"
        } else if lookup(&written).is_some() {
            "file"
        } else {
            "default"
        };
        match lookup(&effective) {
            Some(value) => drop(writeln!(text, "{name} = {value}  # {origin}: {meaning}")),
            None => drop(writeln!(text, "# {name} is not set: {meaning}")),
        }
    }
    for plugin in &config.plugins {
        let _ = write!(text, "\n[[plugins]]\n{}", toml::to_string(plugin).map_err(broken)?);
    }
    // Settings of plugins may be URLs, too.
    Ok(without_credentials(&text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_explained_with_its_origin_and_no_password() {
        let mut config = Config::default();
        config.database.url = Some("postgres://ci:hunter2@db.example.org/ci".parse().expect("a URL"));
        let environment = BTreeMap::from([("HARMONIA_CI__BUILD__CORES".to_owned(), "4".to_owned())]);
        let text = explain(&config, None, &environment).expect("explains");
        assert!(!text.contains("hunter2"), "{text}");
        assert!(text.contains("cores = 0  # environment"), "{text}");
        assert!(text.contains("timeout = \"4h\"  # default: longest build"), "{text}");
        assert!(text.contains("# url_file is not set"), "{text}");
    }
}
