//! The JSON lines of nix-eval-jobs. Start at [`parse_line`]. Unknown fields are left alone: each version adds some.

use harmonia_core::limits::{ATTR_BYTES_MAX, ERROR_BYTES_MAX};
use harmonia_core::project_config::{parse_attr_path, print_attr_path};
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
    #[error("the attribute's path is longer than {ATTR_BYTES_MAX} bytes")]
    LongAttribute,
    #[error("it has neither a derivation nor an error")]
    NoResult,
    #[error("its derivation is no store path")]
    StorePath(#[source] harmonia_nix::store_path::StorePathError),
    #[error("its derivation does not end in .drv")]
    NoDerivation,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    attr: Option<String>,
    attr_path: Option<Vec<String>>,
    drv_path: Option<String>,
    error: Option<String>,
    meta: Option<serde_json::Value>,
}

/// Reads line `number` (from 1) of an engine's output.
pub(crate) fn parse_line(number: u64, line: &[u8]) -> Result<EngineLine, LineError> {
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
    if print_attr_path(&attr_path).len() > ATTR_BYTES_MAX {
        return Err(LineProblem::LongAttribute);
    }
    // A broken aggregate has both: it is broken.
    if let Some(error) = raw.error {
        return Ok(EngineLine { attr_path, result: Err(shorten_error(&error)) });
    }
    let drv_path = StorePath::parse(&raw.drv_path.ok_or(LineProblem::NoResult)?).map_err(LineProblem::StorePath)?;
    if !drv_path.is_derivation() {
        return Err(LineProblem::NoDerivation);
    }
    let seconds = |name: &str| raw.meta.as_ref()?.get(name)?.as_u64().filter(|seconds| *seconds > 0);
    let evaluated = Evaluated { timeout_s: seconds("timeout"), max_silent_s: seconds("maxSilent"), drv_path };
    Ok(EngineLine { attr_path, result: Ok(evaluated) })
}

/// Keeps head and end of an error that is too long: the head says what, the end where (or the other way round,
/// depending on Nix's version).
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
                        assert_eq!(raw["error"].as_str().map(str::trim), Some(error.as_str()));
                    }
                }
                assert_eq!(raw["attrPath"], serde_json::json!(parsed.attr_path));
            }
        }
        assert!(found.len() > 30 && derivations > 200 && errors > 50, "{} files, {derivations}, {errors}", found.len());
    }

    #[test]
    fn anything_else_is_an_error_with_its_number() {
        for (line, cause) in [
            (&b"warning: x"[..], "not the JSON"),
            (b"[]", "not the JSON"),
            (b"{}", "names no attribute"),
            (br#"{"attrPath":["a"]}"#, "neither a derivation nor an error"),
            (br#"{"attrPath":["a"],"drvPath":"/etc/passwd"}"#, "no store path"),
            (
                br#"{"attrPath":["a"],"drvPath":"/nix/store/00000000000000000000000000000000-a"}"#,
                "does not end in .drv",
            ),
        ] {
            let error = parse_line(7, line).expect_err(cause);
            let source = std::error::Error::source(&error).expect("a cause").to_string();
            assert!(
                error.to_string().starts_with("line 7 is malformed") && source.contains(cause),
                "{error}: {source}"
            );
        }
        let long = format!(r#"{{"attrPath":["{}"],"error":"x"}}"#, "a".repeat(2_000));
        parse_line(1, long.as_bytes()).expect_err("too long");
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
