//! The JSON lines of nix-eval-jobs. Start at [`parse_line`]. Unknown fields are left alone: each version adds some.

use harmonia_core::limits::ERROR_BYTES_MAX;
use harmonia_core::project_config::parse_attr_path;
use harmonia_nix::StorePath;
use serde::Deserialize;

/// One attribute, evaluated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EngineLine {
    /// Its path, relative to what the engine was asked for.
    pub(crate) attr_path: Vec<String>,
    /// Its derivation, or the error with its trace.
    pub(crate) result: Result<Evaluated, String>,
}

/// What evaluating an attribute gave. Everything else is in the `.drv` file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Evaluated {
    /// The derivation.
    pub(crate) drv_path: StorePath,
    /// `meta.timeout`, in seconds.
    pub(crate) timeout_s: Option<u64>,
    /// `meta.maxSilent`, in seconds.
    pub(crate) max_silent_s: Option<u64>,
}

/// A line that is none.
#[derive(Debug, thiserror::Error)]
#[error("line {number} is malformed ({shown})")]
pub(crate) struct LineError {
    number: u64,
    shown: String,
    #[source]
    cause: LineProblem,
}

#[derive(Debug, thiserror::Error)]
enum LineProblem {
    #[error("it is not the JSON of an attribute")]
    Json(#[source] serde_json::Error),
    #[error("it names no attribute")]
    NoAttribute,
}

/// What an attribute calls its derivation is none.
#[derive(Debug, thiserror::Error)]
pub(super) enum DerivationProblem {
    #[error("it has neither a derivation nor an error")]
    Nothing,
    #[error("its drvPath '{}' is no store path", .0.chars().take(200).collect::<String>())]
    StorePath(String),
    #[error("its drvPath {0} does not end in .drv")]
    Name(StorePath),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    attr: Option<String>,
    attr_path: Option<Vec<String>>,
    drv_path: Option<String>,
    error: Option<String>,
    meta: Option<Limits>,
}

/// What of `meta` counts.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Limits {
    timeout: Option<serde_json::Value>,
    max_silent: Option<serde_json::Value>,
}

/// Reads line `number` (from 1) of an engine's output. The error of an attribute is left as it was printed.
pub(super) fn parse_line(number: u64, line: &[u8]) -> Result<EngineLine, LineError> {
    parse(line).map_err(|cause| LineError {
        number,
        shown: String::from_utf8_lossy(&line[..line.len().min(120)]).into_owned(),
        cause,
    })
}

fn parse(line: &[u8]) -> Result<EngineLine, LineProblem> {
    let raw: Raw = serde_json::from_slice(line).map_err(LineProblem::Json)?;
    let attr_path = match (raw.attr_path, raw.attr) {
        (Some(path), _) => path,
        (None, Some(attr)) => parse_attr_path(&attr).map_err(|_| LineProblem::NoAttribute)?,
        (None, None) => return Err(LineProblem::NoAttribute),
    };
    let result = match (raw.error, raw.drv_path) {
        // A broken aggregate has both: it is broken.
        (Some(error), _) => Err(error),
        (None, drv_path) => evaluated(drv_path, &raw.meta.unwrap_or_default()).map_err(no_derivation),
    };
    Ok(EngineLine { attr_path, result })
}

/// A derivation with what `meta` says of it.
pub(super) fn evaluated(drv_path: Option<String>, limits: &Limits) -> Result<Evaluated, DerivationProblem> {
    let drv_path = drv_path.ok_or(DerivationProblem::Nothing)?;
    let drv_path = StorePath::parse(&drv_path).map_err(|_| DerivationProblem::StorePath(drv_path))?;
    if !drv_path.is_derivation() {
        return Err(DerivationProblem::Name(drv_path));
    }
    let seconds = |value: &Option<serde_json::Value>| value.as_ref()?.as_u64().filter(|seconds| *seconds > 0);
    Ok(Evaluated { timeout_s: seconds(&limits.timeout), max_silent_s: seconds(&limits.max_silent), drv_path })
}

/// The error of an attribute whose derivation is none.
pub(super) fn no_derivation(problem: DerivationProblem) -> String {
    format!("error: not a derivation: {problem}")
}

/// Keeps head and end of an error that is too long.
pub(crate) fn shorten_error(text: &str) -> String {
    let text = text.trim();
    if text.len() <= ERROR_BYTES_MAX {
        return text.to_owned();
    }
    let head = text.floor_char_boundary(ERROR_BYTES_MAX * 3 / 4);
    let end = text.ceil_char_boundary(text.len() - ERROR_BYTES_MAX / 5);
    format!("{}\n\n[… {} bytes left out …]\n\n{}", &text[..head], end - head, &text[end..])
}

#[cfg(test)]
mod tests {
    use harmonia_fixtures::{Archive, recording};

    use super::*;

    #[test]
    fn every_recorded_line_is_read() {
        let mut found = recording(Archive::NixEvalJobs);
        // The text of its help was recorded, too.
        found.retain(|file, _| file.ends_with("/stdout.jsonl") && !file.contains("/help/"));
        let (mut derivations, mut errors) = (0, 0);
        for (file, bytes) in &found {
            for (index, line) in bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).enumerate() {
                let parsed = parse_line(index as u64 + 1, line).unwrap_or_else(|error| panic!("{file}: {error:?}"));
                let raw: serde_json::Value = serde_json::from_slice(line).expect("JSON");
                match parsed.result {
                    Ok(evaluated) => {
                        derivations += 1;
                        assert_eq!(raw["drvPath"], evaluated.drv_path.as_str());
                    }
                    Err(error) => {
                        errors += 1;
                        assert_eq!(raw["error"].as_str(), Some(error.as_str()));
                    }
                }
                assert_eq!(raw["attrPath"], serde_json::json!(parsed.attr_path));
            }
        }
        assert!(found.len() > 30 && derivations > 200 && errors > 50, "{} files, {derivations}, {errors}", found.len());
    }

    #[test]
    fn recorded_errors_are_shown_by_their_message() {
        let recorded = recording(Archive::NixEvalJobs);
        let mut shown = std::collections::BTreeMap::new();
        for line in recorded["b-errors/base/stdout.jsonl"].split(|byte| *byte == b'\n').filter(|line| !line.is_empty())
        {
            let parsed = parse_line(1, line).expect("reads");
            if let Err(error) = parsed.result {
                let error = super::super::output::presentable(&error);
                shown.insert(parsed.attr_path.join("."), error.lines().next().unwrap_or_default().to_owned());
            }
        }
        for (attr, message) in [
            ("aborts", "error: evaluation aborted with the following error message: 'this one aborts'"),
            ("assertion", "error: an integer with value '1' is not equal to an integer with value '2'"),
            (
                "badsystem",
                "error: derivation 'badsystem' does not have valid outputs: required attribute 'system' missing",
            ),
        ] {
            assert_eq!(shown.get(attr).map(String::as_str), Some(message));
        }
        assert!(shown.values().all(|line| !line.ends_with("error:")), "{shown:#?}");
    }

    #[test]
    fn what_names_no_attribute_is_an_error_with_its_number() {
        for (line, cause) in
            [(&b"warning: x"[..], "not the JSON"), (b"[]", "not the JSON"), (b"{}", "names no attribute")]
        {
            let error = parse_line(7, line).expect_err(cause);
            let source = std::error::Error::source(&error).expect("a cause").to_string();
            assert!(
                error.to_string().starts_with("line 7 is malformed") && source.contains(cause),
                "{error}: {source}"
            );
        }
    }

    #[test]
    fn what_names_one_is_its_result_or_its_error() {
        for (line, cause) in [
            (r#"{"attrPath":["a"]}"#, "neither a derivation nor an error"),
            (r#"{"attrPath":["a"],"drvPath":"/etc/passwd"}"#, "its drvPath '/etc/passwd' is no store path"),
            (r#"{"attrPath":["a"],"drvPath":"/nix/store/00000000000000000000000000000000-a"}"#, "does not end in .drv"),
        ] {
            let parsed = parse_line(7, line.as_bytes()).expect("an attribute's");
            assert_eq!(parsed.attr_path, ["a"]);
            let error = parsed.result.expect_err(line);
            assert!(error.starts_with("error: not a derivation: ") && error.contains(cause), "{error}");
        }
    }

    #[test]
    fn meta_and_unknown_fields() {
        let line = br#"{"attr":"a.\"b.c\"","new":{"x":[1]},"meta":{"timeout":60,"maxSilent":-1,"description":5},
            "drvPath":"/nix/store/00000000000000000000000000000000-a.drv"}"#;
        let parsed = parse_line(1, line).expect("reads");
        assert_eq!(parsed.attr_path, ["a", "b.c"]);
        let evaluated = parsed.result.expect("a derivation");
        assert_eq!((evaluated.timeout_s, evaluated.max_silent_s), (Some(60), None));
    }

    #[test]
    fn a_huge_error_keeps_both_ends() {
        let text = format!("error: first{}last", "ü".repeat(ERROR_BYTES_MAX));
        let short = shorten_error(&text);
        assert!(short.len() <= ERROR_BYTES_MAX && short.starts_with("error: first") && short.ends_with("last"));
    }
}
