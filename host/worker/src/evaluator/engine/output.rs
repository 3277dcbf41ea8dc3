//! What a plain Nix process prints, taken apart: markers, errors, the rest. Start at [`Output`]. Pure.

use harmonia_core::limits::ERROR_BYTES_MAX;
use harmonia_nix::worker_protocol::strip_ansi;
use serde::Deserialize;

use super::line::shorten_error;

/// Reads the lines of one process.
#[derive(Debug)]
pub(super) struct Output {
    prefix: String,
    /// What follows the first `error:` since the last marker: the engine's last words, unless a marker follows.
    error: String,
    /// The end of everything else, for failures without an `error:`.
    tail: String,
}

/// What one line is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Printed {
    /// A result: its tag and its JSON.
    Marker(char, String),
    /// For the log; may be several lines.
    Log(String),
    /// Kept: perhaps part of an error.
    Held,
}

/// What an enumeration's marker says.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Names {
    pub(super) outputs: Vec<String>,
    pub(super) prefixes: Vec<PrefixNames>,
}

/// Names below one prefix.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PrefixNames {
    pub(super) kind: String,
    pub(super) names: Vec<String>,
    pub(super) systems: Vec<SystemNames>,
    #[serde(default)]
    pub(super) left_out: Vec<String>,
}

/// Names below one system of a prefix.
#[derive(Debug, Deserialize)]
pub(super) struct SystemNames {
    pub(super) name: String,
    pub(super) kind: String,
    pub(super) names: Vec<String>,
}

impl Output {
    pub(super) fn new(nonce: &str) -> Self {
        Self { prefix: format!("trace: {nonce}"), error: String::new(), tail: String::new() }
    }

    pub(super) fn take(&mut self, line: &[u8]) -> Printed {
        let text = strip_ansi(&String::from_utf8_lossy(line));
        if let Some((tag, json)) = text.strip_prefix(&self.prefix).and_then(|rest| rest.split_once(' '))
            && let Some(tag) = tag.chars().next()
        {
            // Evaluation went on, so what looked like an error was printed by a trace of several lines.
            self.error.clear();
            return Printed::Marker(tag, json.to_owned());
        }
        if !self.error.is_empty() || text.starts_with("error:") {
            if self.error.len() < 2 * ERROR_BYTES_MAX {
                self.error.push_str(&text);
                self.error.push('\n');
            }
            return Printed::Held;
        }
        self.tail.push_str(&text);
        self.tail.push('\n');
        if self.tail.len() > 16 << 10 {
            let start = self.tail.ceil_char_boundary(self.tail.len() - (8 << 10));
            self.tail.drain(..start);
        }
        Printed::Log(format!("{text}\n"))
    }

    /// The error it ended with, if it said one.
    pub(super) fn error(&self) -> Option<String> {
        (!self.error.is_empty()).then(|| shorten_error(&without_our_frames(&self.error)))
    }

    /// The error, or else the last it printed.
    pub(super) fn last_words(&self) -> String {
        self.error().unwrap_or_else(|| self.tail.trim().to_owned())
    }
}

/// Leaves out what a trace says of our own expression, which is «stdin» to Nix: it would only confuse.
fn without_our_frames(error: &str) -> String {
    let mut frames: Vec<String> = vec![String::new()];
    for line in error.lines() {
        let trimmed = line.trim_start();
        if trimmed.starts_with('…') || trimmed.starts_with("error:") {
            frames.push(String::new());
        }
        if let Some(frame) = frames.last_mut() {
            frame.push_str(line);
            frame.push('\n');
        }
    }
    let ours = |frame: &str| frame.contains("at «stdin»:") || frame.contains("at (stdin):");
    let mut kept = String::new();
    for frame in frames {
        if !ours(&frame) {
            kept.push_str(&frame);
        } else if frame.trim_start().starts_with("error:") {
            // The message itself stays, without the place in our expression.
            let message: Vec<&str> =
                frame.lines().take_while(|line| !ours(line)).filter(|line| !line.trim().is_empty()).collect();
            kept.push_str(&message.join("\n"));
            kept.push('\n');
        }
    }
    kept.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markers_need_the_nonce() {
        let mut output = Output::new("N0NCE");
        assert_eq!(output.take(b"trace: N0NCEb [\"a\"]"), Printed::Marker('b', "[\"a\"]".to_owned()));
        assert_eq!(output.take(b"trace: OTHERb [\"a\"]"), Printed::Log("trace: OTHERb [\"a\"]\n".to_owned()));
        assert_eq!(output.take(b"warning: \x1b[31mred\x1b[0m"), Printed::Log("warning: red\n".to_owned()));
        assert_eq!(output.error(), None);
        assert!(output.last_words().ends_with("warning: red"));
    }

    #[test]
    fn an_error_is_kept_without_our_own_frames() {
        let mut output = Output::new("N");
        for line in [
            "error: attribute 'foo' missing",
            "",
            "       at /nix/store/x-source/flake.nix:13:21:",
            "           13|       missing = mk ({}.foo);",
            "",
            "       … while evaluating the attribute 'name'",
            "",
            "       at /nix/store/x-source/flake.nix:3:36:",
            "",
            "       … while evaluating 'get'",
            "",
            "       at «stdin»:6:9:",
            "",
            "            6|   get = path:",
        ] {
            assert_eq!(output.take(line.as_bytes()), Printed::Held);
        }
        let error = output.error().expect("an error");
        assert!(error.starts_with("error: attribute 'foo' missing\n") && error.contains("flake.nix:3:36"), "{error}");
        assert!(!error.contains("stdin") && !error.contains("get"), "{error}");
        let mut output = Output::new("N");
        output.take(b"error: attribute 'nope' missing");
        output.take("       at «stdin»:6:43:".as_bytes());
        assert_eq!(output.error().as_deref(), Some("error: attribute 'nope' missing"));
    }

    #[test]
    fn what_only_looks_like_an_error_is_forgotten_when_evaluation_goes_on() {
        let mut output = Output::new("N");
        assert_eq!(output.take(b"error: printed by a trace of several lines"), Printed::Held);
        assert_eq!(output.take(b"trace: Nr {}"), Printed::Marker('r', "{}".to_owned()));
        assert_eq!(output.error(), None);
    }
}
