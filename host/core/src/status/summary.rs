//! Markdown for those who want to know more. What repositories wrote appears in code only, so that it is neither markup
//! nor a mention of anybody.

use std::fmt::Write as _;

use super::describe::{cut, failure};
use super::{AttrReport, EvaluationReport, FAILURES_MAX, View};
use crate::foreign_text::is_unshown;

/// Longest error text in a summary, in bytes. Forges take 64 KiB; the page has all of it.
const ERROR_BYTES_MAX: usize = 8 << 10;
/// Longest cell of the table, in characters.
const CELL_CHARS_MAX: usize = 200;

/// A table of failed attributes, of `total`. Empty when there are none.
pub(super) fn failures<'a>(
    view: &View<'_>,
    evaluation: &EvaluationReport,
    attrs: impl Iterator<Item = &'a AttrReport>,
    total: u64,
) -> String {
    let mut rows = String::new();
    let mut listed = 0;
    for attr in attrs.take(FAILURES_MAX) {
        let url = view.options.failure_url(view.report, evaluation, attr);
        let _ = writeln!(rows, "| [{}]({url}) | {} |", code(&attr.attr), code(&failure(attr)));
        listed += 1;
    }
    if listed == 0 {
        return String::new();
    }
    let mut text = format!("| attribute | what happened |\n|---|---|\n{rows}");
    if total > listed {
        let url = view.options.evaluation_url(view.report, evaluation.id);
        let _ = writeln!(text, "\nand [{} more]({url})", total - listed);
    }
    text
}

/// An error as it was printed.
pub(super) fn error(error: &str) -> String {
    let error = error.trim();
    let end = error.floor_char_boundary(ERROR_BYTES_MAX);
    let mut text = String::new();
    for line in error[..end].lines() {
        // Indented: whatever the text holds, it cannot end the block.
        let clean: String = line.chars().filter(|c| !is_unshown(*c) || *c == '\t').collect();
        let _ = writeln!(text, "    {clean}");
    }
    if end < error.len() {
        text.push_str("\n(the page has the rest)\n");
    }
    text
}

fn code(text: &str) -> String {
    let text = cut(text, CELL_CHARS_MAX).replace('`', "'").replace('|', "\\|");
    if text.is_empty() { "–".to_owned() } else { format!("`{text}`") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_wrote_stays_code() {
        assert_eq!(code("a`b|c\n@everybody"), "`a'b\\|c @everybody`");
        assert_eq!(code(" \n"), "–");
        assert_eq!(error("x\n```\n\u{1b}[31m# n\u{202e}o"), "    x\n    ```\n    [31m# no\n");
        let long = error(&"ß\n".repeat(20_000));
        assert!(long.len() < 64 << 10 && long.contains("the page has the rest"));
    }
}
