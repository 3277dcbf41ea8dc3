//! `.harmonia-ci.toml` (and `buildbot-nix.toml`) as read from the commit under evaluation. Start at [`parse`].
//!
//! The file is written by whoever may push, so everything in it is bounded, and nothing security-relevant is read from
//! it. Unknown keys are warnings, not errors: an older server must be able to read a newer file.

mod attr_path;
mod text;

use std::collections::BTreeMap;
use std::time::Duration;

use toml::Spanned;
use toml::Value;

use crate::limits::ATTR_BYTES_MAX;

pub use attr_path::{AttrName, ParseAttrPathError, parse_attr_path, print_attr_path};
pub use text::{nearest_name, parse_duration};

/// Name of our own file, at the root of the repository.
pub const FILE_NAME: &str = ".harmonia-ci.toml";
/// Name of the file of buildbot-nix, read when ours is not there.
pub const COMPAT_FILE_NAME: &str = "buildbot-nix.toml";
/// Largest file read, in bytes.
pub const FILE_BYTES_MAX: usize = 64 << 10;
/// Most entries of one list in it.
pub const LIST_ENTRIES_MAX: usize = 256;

const EVAL_TIMEOUT_MAX: Duration = Duration::from_hours(24);
const RETENTION_MAX: Duration = Duration::from_hours(3_650 * 24);
const KEYS: [&str; 9] =
    ["attrs", "retention", "allow-ifd", "eval-timeout", "systems", "flake-dir", "branches", "paths", "allow-empty"];
const COMPAT_KEYS: [&str; 3] = ["attribute", "flake_dir", "lock_file"];
/// Keys of buildbot-nix that mean nothing here, and need no warning that suggests a misspelling.
const COMPAT_KEYS_IGNORED: [&str; 3] = ["effects_on_pull_requests", "effects_branches", "cachix"];

/// What a repository asks for. The operator's bounds are applied by whoever uses it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProjectConfig {
    /// Flake output prefixes to build, as attribute paths.
    pub attrs: Vec<Vec<String>>,
    /// The file names them, so that each must be there; otherwise they are the default.
    pub attrs_are_named: bool,
    /// How long evaluations are kept.
    pub retention: Option<Duration>,
    /// Whether evaluating may build.
    pub allow_ifd: bool,
    /// How long evaluating may take.
    pub eval_timeout: Option<Duration>,
    /// Systems to build; `None`: those that some node builds.
    pub systems: Option<Vec<String>>,
    /// Directory of `flake.nix`, relative to the root, without `.` or `..`; empty: the root.
    pub flake_dir: String,
    /// Globs of branches to build besides the default branch.
    pub branches: Vec<String>,
    /// Globs of files; a push that touches none is skipped. Empty: all.
    pub paths: Vec<String>,
    /// Whether an evaluation without any attribute is a success.
    pub allow_empty: bool,
}

impl Default for ProjectConfig {
    fn default() -> Self {
        Self {
            attrs: vec![vec!["checks".to_owned()]],
            attrs_are_named: false,
            retention: None,
            allow_ifd: true,
            eval_timeout: None,
            systems: None,
            flake_dir: String::new(),
            branches: Vec::new(),
            paths: Vec::new(),
            allow_empty: false,
        }
    }
}

/// A configuration and what is doubtful in it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ParsedConfig {
    /// The configuration.
    pub config: ProjectConfig,
    /// Sentences for the evaluation's page.
    pub warnings: Vec<String>,
}

/// Which of the two files a text is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// `.harmonia-ci.toml`.
    Harmonia,
    /// `buildbot-nix.toml`.
    BuildbotNix,
}

impl Dialect {
    /// The file's name.
    pub const fn file_name(self) -> &'static str {
        match self {
            Self::Harmonia => FILE_NAME,
            Self::BuildbotNix => COMPAT_FILE_NAME,
        }
    }
}

/// The file cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}:{column}: {message}")]
pub struct ProjectConfigError {
    /// Name of the file.
    pub file: &'static str,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// What is wrong and what would be right.
    pub message: String,
}

/// Reads the text of a configuration file.
pub fn parse(dialect: Dialect, bytes: &[u8]) -> Result<ParsedConfig, ProjectConfigError> {
    let file = dialect.file_name();
    let at = |text: &str, offset: usize, message: String| {
        let (line, column) = text::position(text, offset);
        ProjectConfigError { file, line, column, message }
    };
    if bytes.len() > FILE_BYTES_MAX {
        return Err(at("", 0, format!("the file has {} bytes, at most {FILE_BYTES_MAX} are read", bytes.len())));
    }
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            let good = std::str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or_default();
            return Err(at(good, good.len(), "the file is not UTF-8".to_owned()));
        }
    };
    let table: BTreeMap<Spanned<String>, Spanned<Value>> = toml::from_str(text).map_err(|error| {
        let offset = error.span().map_or(0, |span| span.start);
        at(text, offset, error.message().trim().to_owned())
    })?;
    let mut parsed = ParsedConfig::default();
    for (key, value) in table {
        let offset = value.span().start;
        let name = key.get_ref().as_str();
        let outcome = match dialect {
            Dialect::Harmonia => apply(&mut parsed, name, value.into_inner()),
            Dialect::BuildbotNix => apply_compat(&mut parsed, name, value.into_inner()),
        };
        outcome.map_err(|problem| at(text, offset, format!("{}: {problem}", shorten(name))))?;
    }
    Ok(parsed)
}

fn apply(parsed: &mut ParsedConfig, key: &str, value: Value) -> Result<(), String> {
    let config = &mut parsed.config;
    match key {
        "attrs" => {
            config.attrs = attr_paths(strings(value)?)?;
            config.attrs_are_named = true;
        }
        "retention" => config.retention = Some(duration(value, RETENTION_MAX)?),
        "allow-ifd" => config.allow_ifd = boolean(&value)?,
        "eval-timeout" => config.eval_timeout = Some(duration(value, EVAL_TIMEOUT_MAX)?),
        "systems" => config.systems = Some(systems(strings(value)?)?),
        "flake-dir" => config.flake_dir = directory(string(value)?)?,
        "branches" => config.branches = globs(strings(value)?)?,
        "paths" => config.paths = globs(strings(value)?)?,
        "allow-empty" => config.allow_empty = boolean(&value)?,
        unknown => parsed.warnings.push(unknown_key(FILE_NAME, unknown, &KEYS)),
    }
    Ok(())
}

fn apply_compat(parsed: &mut ParsedConfig, key: &str, value: Value) -> Result<(), String> {
    match key {
        "attribute" => {
            parsed.config.attrs = attr_paths(vec![string(value)?])?;
            parsed.config.attrs_are_named = true;
        }
        "flake_dir" => parsed.config.flake_dir = directory(string(value)?)?,
        "lock_file" => {
            let lock_file = string(value)?;
            if lock_file != "flake.lock" {
                parsed.warnings.push(format!(
                    "{COMPAT_FILE_NAME}: lock_file = '{}' is not supported: flake.lock is used",
                    shorten(&lock_file)
                ));
            }
        }
        ignored if COMPAT_KEYS_IGNORED.contains(&ignored) => {
            parsed.warnings.push(format!("{COMPAT_FILE_NAME}: '{ignored}' has no meaning here and is ignored"));
        }
        unknown => parsed.warnings.push(unknown_key(COMPAT_FILE_NAME, unknown, &COMPAT_KEYS)),
    }
    Ok(())
}

fn unknown_key(file: &str, key: &str, known: &[&str]) -> String {
    let hint = nearest_name(key, known.iter().copied())
        .map_or_else(|| format!("known keys: {}", known.join(", ")), |name| format!("did you mean '{name}'?"));
    format!("{file}: unknown key '{}' is ignored; {hint}", shorten(key))
}

fn shorten(text: &str) -> String {
    text.chars().take(60).collect()
}

fn string(value: Value) -> Result<String, String> {
    match value {
        Value::String(text) if text.len() <= ATTR_BYTES_MAX => Ok(text),
        Value::String(text) => Err(format!("the text has {} bytes, at most {ATTR_BYTES_MAX} are allowed", text.len())),
        other => Err(format!("expected a string, found {}", kind(&other))),
    }
}

fn strings(value: Value) -> Result<Vec<String>, String> {
    match value {
        Value::Array(values) if values.len() <= LIST_ENTRIES_MAX => values.into_iter().map(string).collect(),
        Value::Array(values) => {
            Err(format!("the list has {} entries, at most {LIST_ENTRIES_MAX} are allowed", values.len()))
        }
        other => Err(format!("expected a list of strings, found {}", kind(&other))),
    }
}

fn boolean(value: &Value) -> Result<bool, String> {
    value.as_bool().ok_or_else(|| format!("expected true or false, found {}", kind(value)))
}

fn duration(value: Value, max: Duration) -> Result<Duration, String> {
    let duration = match value {
        Value::Integer(seconds) => u64::try_from(seconds).ok().map(Duration::from_secs),
        Value::String(text) => parse_duration(&text),
        _ => None,
    };
    match duration {
        Some(duration) if duration.is_zero() => Err("must be more than nothing".to_owned()),
        Some(duration) if duration > max => {
            Err(format!("is {} s, at most {} s are allowed", duration.as_secs(), max.as_secs()))
        }
        Some(duration) => Ok(duration),
        None => Err("expected a duration such as \"90s\", \"30m\", \"2h\" or \"14d\"".to_owned()),
    }
}

fn attr_paths(texts: Vec<String>) -> Result<Vec<Vec<String>>, String> {
    if texts.is_empty() {
        return Err("names no attribute; leave it out for the default, [\"checks\"]".to_owned());
    }
    texts.iter().map(|text| parse_attr_path(text).map_err(|error| format!("'{}' {error}", shorten(text)))).collect()
}

fn systems(texts: Vec<String>) -> Result<Vec<String>, String> {
    if texts.is_empty() {
        return Err("names no system; leave it out for those that the nodes build".to_owned());
    }
    let part = |part: &str| {
        !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
    };
    match texts.iter().find(|text| !text.split_once('-').is_some_and(|(cpu, os)| part(cpu) && part(os))) {
        Some(bad) => Err(format!("'{}' is not a system such as x86_64-linux", shorten(bad))),
        None => Ok(texts),
    }
}

/// A folder of the repository, as `flake-dir` names it.
pub fn directory(text: String) -> Result<String, String> {
    if text.starts_with('/') || text.contains('\0') {
        return Err(format!("'{}' is not a directory relative to the repository's root", shorten(&text)));
    }
    let parts: Vec<&str> = text.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if parts.contains(&"..") {
        return Err(format!("'{}' leads out of the repository", shorten(&text)));
    }
    Ok(parts.join("/"))
}

fn globs(texts: Vec<String>) -> Result<Vec<String>, String> {
    match texts.iter().find(|text| text.is_empty() || text.contains('\0')) {
        Some(_) => Err("holds an empty pattern".to_owned()),
        None => Ok(texts),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "a string",
        Value::Integer(_) => "a whole number",
        Value::Float(_) => "a number",
        Value::Boolean(_) => "true or false",
        Value::Datetime(_) => "a date",
        Value::Array(_) => "a list",
        Value::Table(_) => "a table",
    }
}

#[cfg(test)]
mod tests;
