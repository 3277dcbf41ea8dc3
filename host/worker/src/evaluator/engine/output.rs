//! What an engine's process prints on its standard error, taken apart: markers, the error it ended with, the rest. Start
//! at [`Output`]. Pure.
//!
//! Nix ends with its error: a line that begins with `error:`, and lines below it that are empty or indented. Builds and
//! traces print such lines, too. So they are held until it is clear what they were: when anything follows they go to the
//! log, all of them and in order.

use harmonia_core::evaluation_error::message_first;
use harmonia_nix::worker_protocol::strip_ansi;

use super::jobset::{is_frame_of_the_check, is_of_the_check};
use super::line::shorten_error;

/// The head and the end that are kept of a text that may be an error.
const HEAD_BYTES: usize = 96 << 10;
const END_BYTES: usize = 32 << 10;
/// Held lines; beyond, they go to the log at once, whatever they turn out to be.
const HELD_BYTES_MAX: usize = 256 << 10;
/// What is kept of everything else, for failures that say no error.
const TAIL_BYTES: usize = 8 << 10;
/// Lines below an error are indented by its length.
const INDENTATION: &str = "       ";

/// Reads the lines of one process.
#[derive(Debug)]
pub(super) struct Output {
    /// How markers begin, if there are any.
    prefix: Option<String>,
    /// Errors with this in them are none: results that were printed twice.
    hidden: Option<String>,
    /// Of a process that goes on past errors: how its traces call our own expression.
    jobset: Option<String>,
    /// The last text that may be an error, since the last marker.
    error: Option<Excerpt>,
    /// Lines of it that are in no log yet.
    held: Vec<String>,
    held_bytes: usize,
    /// Whether the next line may belong to it.
    is_open: bool,
    tail: String,
}

/// What one line gave.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Printed {
    /// For the log.
    pub(super) log: Vec<String>,
    /// A result: its tag and its JSON.
    pub(super) marker: Option<(char, Vec<u8>)>,
    /// With a marker that follows what may be an error: that, whose lines are in `log`, too. It is one if the marker says
    /// that an attribute had no result.
    pub(super) before: Option<Excerpt>,
}

/// Head and end of a text.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Excerpt {
    head: String,
    end: String,
    is_cut: bool,
}

impl Excerpt {
    fn push(&mut self, line: &str) {
        let text = if self.end.is_empty() && self.head.len() + line.len() <= HEAD_BYTES {
            &mut self.head
        } else {
            &mut self.end
        };
        text.push_str(line);
        text.push('\n');
        if self.end.len() > 2 * END_BYTES {
            self.is_cut = true;
            let start = self.end.ceil_char_boundary(self.end.len() - END_BYTES);
            self.end.drain(..start);
        }
    }

    fn text(&self) -> String {
        format!("{}{}{}", self.head, if self.is_cut { "\n[…]\n" } else { "" }, self.end)
    }
}

impl Output {
    /// Of a process whose results begin with this nonce.
    pub(super) fn new(nonce: &str) -> Self {
        Self { prefix: Some(format!("trace: {nonce}")), ..Self::plain() }
    }

    /// Of a process that goes on past errors, in whose traces our own expression is called `place`.
    pub(super) fn of_jobset(nonce: &str, place: String) -> Self {
        Self { jobset: Some(place), ..Self::new(nonce) }
    }

    /// Of a process that prints its results elsewhere, and those with this nonce here, too.
    pub(super) fn hiding(nonce: &str) -> Self {
        Self { hidden: Some(nonce.to_owned()), ..Self::plain() }
    }

    /// Of a process without results in it.
    pub(super) fn plain() -> Self {
        Self {
            prefix: None,
            hidden: None,
            jobset: None,
            error: None,
            held: Vec::new(),
            held_bytes: 0,
            is_open: false,
            tail: String::new(),
        }
    }

    pub(super) fn take(&mut self, line: &[u8]) -> Printed {
        if let Some(marker) = self.marker(line) {
            // Evaluation went on, so what looked like an error was printed by something else, or is that of an attribute
            // past which it went.
            let before = self.error.take();
            return Printed { log: self.release(), marker: Some(marker), before };
        }
        let mut text = strip_ansi(&String::from_utf8_lossy(line));
        if self.jobset.is_some() {
            if is_of_the_check(&text) {
                return Printed::default();
            }
            // As Nix says it up to 2.26; from 2.34 on it is like any other.
            if let Some(error) = text.strip_prefix("error (ignored): ").filter(|rest| rest.starts_with("error:")) {
                text = String::from(error);
            }
        }
        let mut log = Vec::new();
        if text.starts_with("error:") {
            log = self.release();
            self.error = Some(Excerpt::default());
            self.is_open = true;
        } else if !(self.is_open && (text.trim().is_empty() || text.starts_with(INDENTATION))) {
            log = self.release();
            self.tail.push_str(&text);
            self.tail.push('\n');
            if self.tail.len() > 2 * TAIL_BYTES {
                let start = self.tail.ceil_char_boundary(self.tail.len() - TAIL_BYTES);
                self.tail.drain(..start);
            }
            log.push(text);
            return Printed { log, ..Printed::default() };
        }
        if let Some(error) = &mut self.error {
            error.push(&text);
        }
        self.held_bytes += text.len() + 1;
        self.held.push(text);
        if self.held_bytes > HELD_BYTES_MAX {
            log.append(&mut self.held);
            self.held_bytes = 0;
        }
        Printed { log, ..Printed::default() }
    }

    fn marker(&self, line: &[u8]) -> Option<(char, Vec<u8>)> {
        let rest = line.strip_prefix(self.prefix.as_ref()?.as_bytes())?;
        let (tag, json) = rest.split_first()?;
        Some((char::from(*tag), json.strip_prefix(b" ")?.to_vec()))
    }

    /// The lines that were held back, for the log: they are no error after all, or the error is not used.
    pub(super) fn release(&mut self) -> Vec<String> {
        (self.held_bytes, self.is_open) = (0, false);
        let held = std::mem::take(&mut self.held);
        match &self.hidden {
            Some(nonce) if held.iter().any(|line| line.contains(nonce.as_str())) => {
                self.error = None;
                Vec::new()
            }
            _ => held,
        }
    }

    /// The error it ended with, if it said one; the message first.
    pub(super) fn error(&self) -> Option<String> {
        self.error.as_ref().map(|error| self.present(error))
    }

    /// What was an error, the message first.
    pub(super) fn present(&self, error: &Excerpt) -> String {
        present(&error.text(), self.jobset.as_deref())
    }

    /// The error, or else the last it printed.
    pub(super) fn last_words(&self) -> String {
        self.error().unwrap_or_else(|| self.tail.trim().to_owned())
    }
}

/// An error of an engine as people see it: the message first, nothing of our own expression, not too long.
pub(super) fn presentable(error: &str) -> String {
    present(error, None)
}

fn present(error: &str, jobset: Option<&str>) -> String {
    shorten_error(&reason_first(&without_our_frames(&message_first(error), jobset)))
}

/// Of a build during evaluation that failed, Nix 2.30 and newer say why in the second line.
fn reason_first(error: &str) -> String {
    let found = error.split_once('\n').and_then(|(first, rest)| {
        let what = first.strip_prefix("error: Cannot build '")?.strip_suffix("'.")?;
        let (reason, rest) = rest.split_once('\n').unwrap_or((rest, ""));
        let mut reason = reason.trim_start().strip_prefix("Reason: ")?.to_owned();
        // Which system nobody here has.
        if let Some(system) = rest.lines().find_map(|line| line.trim_start().strip_prefix("Required system: ")) {
            reason = format!("{} (it requires {system})", reason.trim_end_matches('.'));
        }
        Some(format!("error: Cannot build '{what}': {reason}\n{rest}").trim_end().to_owned())
    });
    found.unwrap_or_else(|| error.to_owned())
}

/// Leaves out what a trace says of our own expression, which is «stdin» or «string» to Nix, or a place in the store: it would
/// only confuse.
fn without_our_frames(error: &str, jobset: Option<&str>) -> String {
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
    let ours = |frame: &str| {
        ["at «stdin»:", "at (stdin):", "at «string»:"].into_iter().chain(jobset).any(|place| frame.contains(place))
            || (jobset.is_some() && is_frame_of_the_check(frame))
    };
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

    /// Everything that reaches the log, then what it ended with.
    fn read(output: &mut Output, lines: &[&str]) -> (String, Option<String>) {
        let mut log = Vec::new();
        for line in lines {
            log.extend(output.take(line.as_bytes()).log);
        }
        (log.join("|"), output.error())
    }

    #[test]
    fn markers_need_the_nonce() {
        let mut output = Output::new("N0NCE");
        assert_eq!(output.take(b"trace: N0NCEb [\"a\xff\"]").marker, Some(('b', b"[\"a\xff\"]".to_vec())));
        for no_marker in ["trace: OTHERb [\"a\"]", "trace: N0NCE", "N0NCEb 0", "trace: N0NCEb"] {
            assert_eq!(
                output.take(no_marker.as_bytes()),
                Printed { log: vec![no_marker.to_owned()], ..Printed::default() }
            );
        }
        assert_eq!(output.take(b"warning: \x1b[31mred\x1b[0m").log, ["warning: red"]);
        assert_eq!(output.error(), None);
        assert!(output.last_words().ends_with("warning: red"));
        assert_eq!(Output::plain().take(b"trace: x y").marker, None);
    }

    #[test]
    fn an_error_is_kept_without_our_own_frames() {
        let mut output = Output::new("N");
        let (log, error) = read(
            &mut output,
            &[
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
            ],
        );
        assert_eq!(log, "");
        let error = error.expect("an error");
        assert!(error.starts_with("error: attribute 'foo' missing\n") && error.contains("flake.nix:3:36"), "{error}");
        assert!(!error.contains("stdin") && !error.contains("get"), "{error}");
        let mut output = Output::new("N");
        output.take(b"error: attribute 'nope' missing");
        output.take("       at «stdin»:6:43:".as_bytes());
        assert_eq!(output.error().as_deref(), Some("error: attribute 'nope' missing"));
        // Nix 2.20 and newer.
        let mut output = Output::new("N");
        let lines =
            ["error:", "       … while evaluating 'a'", "         at «stdin»:6:43:", "", "       error: out of order"];
        assert_eq!(read(&mut output, &lines), (String::new(), Some("error: out of order".to_owned())));
    }

    #[test]
    fn what_only_looks_like_an_error_is_in_the_log_with_all_that_follows() {
        // A build, a trace, and then the true end; both forms.
        let noise = [
            "building '/nix/store/x.drv'...",
            "error: out of memory",
            "       at the end of the world",
            "",
            "warning: beware",
            "trace: first",
            "error: this is only a trace",
            "error: of three lines",
        ];
        for end in [
            &["error: builder failed", "       last 1 log lines:", "       > error: 5"][..],
            &[
                "error:",
                "       … while calling the 'readFile' builtin",
                "       error: builder failed",
                "       last 1 log lines:",
                "       > error: 5",
            ],
        ] {
            let mut output = Output::new("N");
            let (log, error) = read(&mut output, &[&noise[..], end].concat());
            assert_eq!(log, noise.join("|"));
            assert!(error.expect("an error").starts_with("error: builder failed\n       last 1 log lines:"));
        }
        let mut output = Output::new("N");
        let (log, error) = read(&mut output, &[&noise[..], &["trace: Nr {}"]].concat());
        assert_eq!((log, error), (noise.join("|"), None), "evaluation went on");
        // What is said behind the error does not hide it.
        let mut output = Output::new("N");
        let (log, error) = read(&mut output, &["error: boom", "       at /x:1:1:", "GC Warning: bye"]);
        assert_eq!(
            (log.as_str(), error.as_deref()),
            ("error: boom|       at /x:1:1:|GC Warning: bye", Some("error: boom\n       at /x:1:1:"))
        );
    }

    #[test]
    fn a_build_that_failed_says_why_in_the_first_line() {
        let error = "error:\n       … while calling the 'import' builtin\n         at /nix/store/x-source/flake.nix:1:1:\n\n       \
            error: Cannot build '/nix/store/x.drv'.\n       Reason: builder failed with exit code 5.\n       Output paths:";
        let shown = presentable(error);
        assert!(
            shown.starts_with(
                "error: Cannot build '/nix/store/x.drv': builder failed with exit code 5.\n       Output paths:"
            ),
            "{shown}"
        );
        let foreign = "error: Cannot build '/nix/store/x.drv'.\n       Reason: platform mismatch\n       \
                       Required system: 'm68k-linux' with features {}\n       Current system: 'x86_64-linux'";
        let said = reason_first(foreign);
        let first = said.lines().next();
        assert_eq!(
            first,
            Some(
                "error: Cannot build '/nix/store/x.drv': platform mismatch (it requires 'm68k-linux' with features {})"
            )
        );
        assert!(said.ends_with("Current system: 'x86_64-linux'"), "{said}");
        assert_eq!(reason_first("error: Cannot build it\n  Reason: none"), "error: Cannot build it\n  Reason: none");
    }

    #[test]
    fn results_that_are_printed_as_errors_are_in_no_log() {
        let mut output = Output::hiding("N0NCE");
        let lines =
            ["building", "error:", "       … while calling 'throw'", "       error: N0NCEn []", "error: boom", "  x"];
        assert_eq!(read(&mut output, &lines), ("building|error: boom|  x".to_owned(), Some("error: boom".to_owned())));
        output.take(b"error: N0NCEx 0");
        assert_eq!((output.release(), output.error()), (Vec::new(), None));
    }

    #[test]
    fn held_lines_are_bounded_and_none_is_lost() {
        let mut output = Output::new("N");
        let mut log = output.take(b"error: begins").log;
        for index in 0..20_000 {
            log.extend(output.take(format!("       line {index}, {}", "x".repeat(50)).as_bytes()).log);
            assert!(output.held_bytes <= HELD_BYTES_MAX);
        }
        let error = output.error().expect("an error");
        assert!(error.starts_with("error: begins\n") && error.contains("line 19999,"), "both ends");
        log.extend(output.release());
        assert_eq!(log.len(), 20_001);
        assert!(log[20_000].starts_with("       line 19999"));
    }
}
