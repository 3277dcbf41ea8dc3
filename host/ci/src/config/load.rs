//! File and environment → [`Config`], with errors that say where and what instead.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use harmonia_core::without_credentials;

use super::{Config, keys};

/// Environment variables with this prefix override keys: `HARMONIA_CI__BUILD__TIMEOUT=2h`.
pub(crate) const ENV_PREFIX: &str = "HARMONIA_CI__";

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("could not read the configuration file {}; check the path and its permissions", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{} is not valid TOML", path.display())]
    Syntax { path: PathBuf, source: TomlError },
    #[error("unknown key '{key}' in {origin}{}", did_you_mean(key))]
    UnknownKey { key: String, origin: String },
    #[error("a value in {origin} is wrong")]
    Value { origin: String, source: TomlError },
    #[error("could not read {what} from {}; check that it exists and that this user may read it", path.display())]
    Secret { what: &'static str, path: PathBuf, source: std::io::Error },
    #[error("{what} in {} is not usable", path.display())]
    Key { what: &'static str, path: PathBuf, source: Box<dyn std::error::Error + Send + Sync> },
}

/// What the TOML parser says. It quotes lines of the file, which may hold URLs with passwords.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub(crate) struct TomlError {
    text: String,
    /// Line and column, as the text's first line names them; without what stands there.
    place: Option<String>,
}

impl ConfigError {
    /// For everybody: which file and where, without a word of what it holds.
    pub(crate) fn public_text(&self) -> String {
        let place =
            |source: &TomlError| source.place.as_deref().map_or_else(String::new, |place| format!(" ({place})"));
        match self {
            Self::Syntax { path, source } => format!("{} is not valid TOML{}", path.display(), place(source)),
            Self::Value { origin, source } => format!("a value in {origin} is wrong{}", place(source)),
            Self::Read { .. } | Self::UnknownKey { .. } | Self::Secret { .. } | Self::Key { .. } => self.to_string(),
        }
    }
}

impl From<toml::de::Error> for TomlError {
    fn from(error: toml::de::Error) -> Self {
        let text = without_credentials(&error.to_string());
        // `TOML parse error at line 3, column 7`
        let place = text.lines().next().and_then(|first| first.split_once(" at ")).map(|(_, place)| place.to_owned());
        let place = place.filter(|place| place.starts_with("line "));
        Self { text, place }
    }
}

fn did_you_mean(key: &str) -> String {
    keys::nearest(key).map_or_else(
        || "; `harmonia-ci config check` lists the known keys".to_owned(),
        |near| format!("; did you mean '{near}'?"),
    )
}

/// Reads `path` (when given) and applies the overrides in `environment`.
pub(crate) fn load(path: Option<&Path>, environment: &BTreeMap<String, String>) -> Result<Config, ConfigError> {
    let mut table = toml::Table::new();
    if let Some(path) = path {
        let text =
            std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        table = text
            .parse::<toml::Table>()
            .map_err(|source| ConfigError::Syntax { path: path.to_owned(), source: source.into() })?;
        refuse_unknown(&table, &path.display().to_string())?;
        // Read once as a whole file, so that an error still has line and column.
        toml::from_str::<Config>(&text)
            .map_err(|source| ConfigError::Value { origin: path.display().to_string(), source: source.into() })?;
    }
    for (variable, text) in environment.iter().filter(|(name, _)| name.starts_with(ENV_PREFIX)) {
        override_key(&mut table, variable, text)?;
    }
    let mut config = Config::try_from_table(table)?;
    config.file = path.map(|path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned()));
    Ok(config)
}

impl Config {
    fn try_from_table(table: toml::Table) -> Result<Self, ConfigError> {
        table
            .try_into()
            .map_err(|source| ConfigError::Value { origin: "the environment".to_owned(), source: source.into() })
    }
}

fn refuse_unknown(table: &toml::Table, origin: &str) -> Result<(), ConfigError> {
    for (section, value) in table {
        if section == "plugins"
            && let Some(plugins) = value.as_array()
        {
            for name in plugins.iter().filter_map(toml::Value::as_table).flat_map(toml::Table::keys) {
                let key = format!("plugins.{name}");
                if !keys::PLUGIN_KEYS.iter().any(|(known, _)| *known == key) {
                    return Err(ConfigError::UnknownKey { key, origin: origin.to_owned() });
                }
            }
            continue;
        }
        let Some(values) = value.as_table() else {
            return Err(ConfigError::UnknownKey { key: section.clone(), origin: origin.to_owned() });
        };
        if !keys::KEYS.iter().any(|(key, _)| key.split('.').next() == Some(section)) {
            let key = values.keys().next().map_or_else(|| section.clone(), |name| format!("{section}.{name}"));
            return Err(ConfigError::UnknownKey { key, origin: origin.to_owned() });
        }
        for name in values.keys() {
            let key = format!("{section}.{name}");
            if !keys::KEYS.iter().any(|(known, _)| *known == key) {
                return Err(ConfigError::UnknownKey { key, origin: origin.to_owned() });
            }
        }
    }
    Ok(())
}

fn override_key(table: &mut toml::Table, variable: &str, text: &str) -> Result<(), ConfigError> {
    let key = variable[ENV_PREFIX.len()..].to_lowercase().replace("__", ".");
    let unknown = || ConfigError::UnknownKey { key: key.clone(), origin: format!("the environment ({variable})") };
    let (section, name) = key.split_once('.').ok_or_else(unknown)?;
    if !keys::KEYS.iter().any(|(known, _)| *known == key) {
        return Err(unknown());
    }
    // A TOML value if it reads as one and the key wants it (numbers, booleans, arrays), else the text itself.
    let parsed = format!("value = {text}").parse::<toml::Table>().ok().and_then(|mut table| table.remove("value"));
    let section_table = |value: toml::Value| {
        toml::Table::from_iter([(
            section.to_owned(),
            toml::Value::Table(toml::Table::from_iter([(name.to_owned(), value)])),
        )])
    };
    let as_text = toml::Value::String(text.to_owned());
    let candidates = parsed.into_iter().chain([as_text]);
    let mut last_error = None;
    for value in candidates {
        match section_table(value.clone()).try_into::<Config>() {
            Ok(_) => {
                let entry = table.entry(section).or_insert_with(|| toml::Value::Table(toml::Table::new()));
                if let Some(values) = entry.as_table_mut() {
                    values.insert(name.to_owned(), value);
                }
                return Ok(());
            }
            Err(error) => last_error = Some(error),
        }
    }
    let origin = format!("the environment ({variable})");
    last_error.map_or(Ok(()), |source| Err(ConfigError::Value { origin, source: source.into() }))
}

/// A secret from a file, without surrounding white space.
pub(crate) fn read_secret(what: &'static str, path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path).map(|text| text.trim().to_owned()).map_err(|source| ConfigError::Secret {
        what,
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn from(text: &str, environment: &[(&str, &str)]) -> Result<Config, String> {
        let mut file = tempfile::NamedTempFile::new().expect("temporary file");
        file.write_all(text.as_bytes()).expect("written");
        let environment = environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        load(Some(file.path()), &environment).map_err(|error| {
            let path = file.path().display().to_string();
            crate::exit::chain(&error).replace(&path, "FILE")
        })
    }

    #[test]
    fn file_then_environment() {
        let text = "[build]\ntimeout = \"2h\"\n[builder]\nmax_jobs = 3\n";
        let config =
            from(text, &[("HARMONIA_CI__BUILDER__MAX_JOBS", "5"), ("HARMONIA_CI__BUILD__CORES", "2")]).expect("loads");
        assert_eq!(config.build.timeout, crate::config::value::Span::seconds(7200));
        assert_eq!((config.builder.max_jobs, config.build.cores), (5, 2));
        let config = from("", &[("HARMONIA_CI__NODE__NAME", "7"), ("HARMONIA_CI__BUILDER__SYSTEMS", "[\"a-linux\"]")])
            .expect("loads");
        assert_eq!(config.node.name.as_deref(), Some("7"));
        assert_eq!(config.builder.systems, ["a-linux"]);
    }

    /// The nodes page shows why a changed configuration was not taken, to everybody.
    #[test]
    fn what_everybody_is_told_has_no_word_of_the_file() {
        for text in [
            "[[plugins]]\nname = \"chat\"\nsettings = { url = \"https://hooks.example/T0/hunter2\", }, }\n",
            "[node]\npublic_url = 3 # hunter2\n",
            "[build]\ntimeout = \"hunter2\"\n",
        ] {
            let mut file = tempfile::NamedTempFile::new().expect("temporary file");
            file.write_all(text.as_bytes()).expect("written");
            let error = load(Some(file.path()), &BTreeMap::new()).expect_err(text);
            assert!(crate::exit::chain(&error).contains("hunter2"), "the operator sees the line: {error}");
            let public = error.public_text();
            assert!(!public.contains("hunter2") && public.contains("(line "), "{public}");
            assert!(public.contains(&file.path().display().to_string()), "{public}");
        }
    }

    #[test]
    fn every_mistake_has_its_own_clear_error() {
        for (text, environment, wanted) in [
            ("[build]\ntime_out = 3\n", vec![], "unknown key 'build.time_out' in FILE; did you mean 'build.timeout'?"),
            ("[biuld]\ntimeout = 3\n", vec![], "unknown key 'biuld.timeout' in FILE; did you mean 'build.timeout'?"),
            ("build = 3\n", vec![], "unknown key 'build' in FILE"),
            ("[[plugins]]\nname = \"a\"\npaht = \"b\"\n", vec![], "did you mean 'plugins.path'?"),
            ("[build\n", vec![], "FILE is not valid TOML"),
            ("[build]\ntimeout = \"soon\"\n", vec![], "'soon' is not a duration"),
            (
                "[signer]\nverify = \"sample:5\"\n",
                vec![],
                "'sample:5' does not say which archives are read: write declared",
            ),
            ("[node]\ncapabilities = [\"bilder\"]\n", vec![], "bilder"),
            ("[eval]\nallow_hosts = [\"git.corp.example\"]\n", vec![], "write `private:` before it"),
            ("[eval]\nallow_hosts = [\"10.0.0.1/8\"]\n", vec![], "the address has bits behind the network's"),
            ("", vec![("HARMONIA_CI__BUILD__TIMOUT", "3")], "did you mean 'build.timeout'?"),
            ("", vec![("HARMONIA_CI__BUILD__TIMEOUT", "soon")], "HARMONIA_CI__BUILD__TIMEOUT"),
        ] {
            let error = from(text, &environment).expect_err(text);
            assert!(error.contains(wanted), "{text:?} gave: {error}");
        }
        for (text, environment) in [
            ("[database]\nurl = \"postgres://ci:hunter2@db/ci\nmax_connections = 3\n", vec![]),
            ("[database]\nmax_connections = \"postgres://ci:hunter2@db/ci\"\n", vec![]),
            ("[cache]\nsubstituters = [\"https://ci:hunter2@ho st\"]\n", vec![]),
            ("", vec![("HARMONIA_CI__CACHE__URL", "https://ci:hunter2@ho st")]),
            ("", vec![("HARMONIA_CI__BUILD__CORES", "https://ci:hunter2@host")]),
        ] {
            let error = from(text, &environment).expect_err(text);
            assert!(!error.contains("hunter2"), "{text:?} gave: {error}");
        }
        let error = load(Some(Path::new("/does/not/exist.toml")), &BTreeMap::new()).expect_err("absent");
        assert!(error.to_string().contains("/does/not/exist.toml"));
    }
}
