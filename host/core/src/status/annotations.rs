//! Remarks at lines of the repository's files, found in evaluation errors. Start at [`of_error`].

use crate::api::AttrState;
use crate::evaluation_error::message_first;
use crate::forge::{Annotation, AnnotationLevel};

use super::AttrReport;
use super::describe::{cut, headline};

/// Most annotations of one status: what forges take in one call.
const ANNOTATIONS_MAX: usize = 50;
/// Longest message of one, in characters.
const MESSAGE_CHARS_MAX: usize = 1_000;
/// Longest path of a file, in bytes.
const PATH_BYTES_MAX: usize = 1_024;

/// The place in the repository that an error names, if any: `{source_path}/FILE:LINE:COLUMN`, as Nix prints positions.
pub(super) fn of_error(error: &str, source_path: Option<&str>, attr: Option<&str>) -> Vec<Annotation> {
    let Some((path, line)) = source_path.and_then(|source| position(error, source)) else { return Vec::new() };
    let headline = headline(error);
    let message = attr.map_or_else(|| headline.clone(), |attr| format!("{attr}: {headline}"));
    let message = cut(&message, MESSAGE_CHARS_MAX);
    vec![Annotation { path, line, level: AnnotationLevel::Failure, message }]
}

/// Of the attributes that did not evaluate; one a place.
pub(super) fn of_attributes<'a>(
    attrs: impl Iterator<Item = &'a AttrReport>,
    source_path: Option<&str>,
) -> Vec<Annotation> {
    let mut annotations: Vec<Annotation> = Vec::new();
    for attr in attrs.filter(|attr| attr.state == AttrState::Error) {
        for found in of_error(attr.message.as_deref().unwrap_or_default(), source_path, Some(&attr.attr)) {
            let is_known = annotations.iter().any(|there| there.path == found.path && there.line == found.line);
            if !is_known && annotations.len() < ANNOTATIONS_MAX {
                annotations.push(found);
            }
        }
    }
    annotations
}

/// The first place of the repository behind the message: what is deepest.
fn position(error: &str, source_path: &str) -> Option<(String, u32)> {
    let start = format!("{}/", source_path.trim_end_matches('/'));
    let error = message_first(error);
    error.match_indices(&start).find_map(|(at, _)| place(&error[at + start.len()..]))
}

/// Reads `FILE:LINE` at the start of a text.
fn place(text: &str) -> Option<(String, u32)> {
    let (path, rest) = text.split_once(':')?;
    let is_file = !path.is_empty()
        && path.len() <= PATH_BYTES_MAX
        && !path.contains(|c: char| c.is_control() || c == '\'' || c == '"')
        && path.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let line: u32 = rest[..digits].parse().ok()?;
    (is_file && line > 0).then(|| (path.to_owned(), line))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &str = "/nix/store/8hg8n6hzgx2y3wqk4jq1v4v2qf0l3h7a-source";
    const OTHER: &str = "/nix/store/00000000000000000000000000000000-source";

    #[test]
    fn only_the_repositorys_own_files_are_annotated() {
        let cases = [
            (format!("error: boom\n\n  at {SOURCE}/nix/a b.nix:12:5:\n\n  11| x"), Some(("nix/a b.nix", 12))),
            (format!("error: boom\n at {OTHER}/lib.nix:1:1:\n at {SOURCE}/flake.nix:3:9:"), Some(("flake.nix", 3))),
            (format!("error:\n … at {SOURCE}/a.nix:1:1:\n error: deep\n at {SOURCE}/b.nix:2:1:"), Some(("b.nix", 2))),
            (format!("error:\n … at {SOURCE}/a.nix:1:1:\n … at {SOURCE}/c.nix:7:1:\n error: deep"), Some(("c.nix", 7))),
            (format!("error: boom at {OTHER}/flake.nix:3:9"), None),
            (format!("error: boom at {SOURCE}/../../etc/passwd:1:1"), None),
            (format!("error: boom at {SOURCE}/a.nix:0:1"), None),
            (format!("error: boom at {SOURCE}/a.nix:99999999999:1"), None),
            (format!("error: path '{SOURCE}/missing.nix' does not exist: 3"), None),
            (format!("{SOURCE}/"), None),
        ];
        for (error, expected) in cases {
            let found = of_error(&error, Some(SOURCE), None);
            let found = found.first().map(|annotation| (annotation.path.as_str(), annotation.line));
            assert_eq!(found, expected, "{error}");
            assert!(of_error(&error, None, None).is_empty());
        }
    }
}
