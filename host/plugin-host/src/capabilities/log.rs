//! Lines that a plugin writes for the operator: cleaned, cut, counted. Start at [`CallState::log`].

use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use harmonia_core::Timestamp;
use harmonia_core::foreign_text::is_unshown;

use super::CallState;

/// How much a line matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level {
    /// For whoever looks for a fault.
    Debug,
    /// Of interest.
    Info,
    /// Something is odd.
    Warn,
    /// Something does not work.
    Error,
}

/// Of a longer line no more is looked at.
const LOOKED_AT_BYTES_MAX: usize = 64 * 1024;

/// Bytes that are shown of what a guest said before it trapped.
pub(crate) const LAST_WORDS_BYTES_MAX: usize = 1024;

/// Ends a line that was cut.
const CUT: &str = "… [cut]";

/// Lines of all calls of a plugin, minute by minute.
#[derive(Default)]
pub(super) struct LineRate(Mutex<Option<Minute>>);

struct Minute {
    since: Timestamp,
    lines: u32,
    dropped: u64,
}

/// Whether a line may be written.
enum Admission {
    No,
    /// Yes, and so many were dropped in the minute before.
    Yes {
        dropped: u64,
    },
}

impl LineRate {
    fn admit(&self, now: Timestamp, lines_max: u32) -> Admission {
        let mut minute = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let begun = minute.as_ref().filter(|minute| now >= minute.since && now - minute.since < Duration::from_mins(1));
        let dropped = match (begun.is_some(), minute.as_mut()) {
            (true, Some(minute)) if minute.lines < lines_max => {
                minute.lines += 1;
                return Admission::Yes { dropped: 0 };
            }
            (true, Some(minute)) => {
                minute.dropped += 1;
                return Admission::No;
            }
            (_, minute) => minute.map_or(0, |minute| minute.dropped),
        };
        *minute = Some(Minute { since: now, lines: 1, dropped: 0 });
        Admission::Yes { dropped }
    }
}

/// One line without anything that would move a terminal's cursor, begin another line or change the direction of text.
fn escaped(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' => line.push_str("\\n"),
            '\t' => line.push_str("\\t"),
            '\r' => line.push_str("\\r"),
            c if is_unshown(c) => {
                let _ = write!(line, "\\u{{{:x}}}", u32::from(c));
            }
            c => line.push(c),
        }
    }
    line
}

/// The text up to a bound in bytes, between two characters.
pub(super) fn head(text: &str, bytes_max: usize) -> &str {
    &text[..text.floor_char_boundary(bytes_max)]
}

impl CallState {
    /// Writes one line with the plugin's name.
    pub(crate) fn log(&mut self, level: Level, message: &str) {
        if level == Level::Error {
            // Also of a line that is dropped: it may be what a trap is explained by.
            self.last_words.clear();
            self.last_words.push_str(head(message, LOOKED_AT_BYTES_MAX));
        }
        let limits = self.limits();
        let (lines_max, lines_per_minute, bytes_max) =
            (limits.log_lines_per_call, limits.log_lines_per_minute, limits.log_line_bytes);
        if self.lines >= lines_max {
            self.lines_dropped += 1;
            return;
        }
        self.lines += 1;
        let plugin = self.shared.grants.plugin.as_str();
        match self.shared.line_rate.admit(self.shared.clock.now(), lines_per_minute) {
            Admission::No => return,
            Admission::Yes { dropped: 0 } => {}
            Admission::Yes { dropped } => {
                let key = self.shared.grants.limit("log_lines_per_minute");
                tracing::warn!(target: "plugin", plugin, dropped, "lines of a plugin were dropped: more than {key} allows");
            }
        }
        let line = self.shown(message, bytes_max);
        match level {
            Level::Debug => tracing::debug!(target: "plugin", plugin, "{line}"),
            Level::Info => tracing::info!(target: "plugin", plugin, "{line}"),
            Level::Warn => tracing::warn!(target: "plugin", plugin, "{line}"),
            Level::Error => tracing::error!(target: "plugin", plugin, "{line}"),
        }
    }

    /// What the call logged last as an error, fit to be shown.
    pub(crate) fn last_words(&self) -> Option<String> {
        (!self.last_words.is_empty()).then(|| self.shown(&self.last_words, LAST_WORDS_BYTES_MAX))
    }

    /// A guest's text as one line: without secrets, escaped, cut.
    pub(crate) fn shown(&self, text: &str, bytes_max: usize) -> String {
        let looked_at = head(text, LOOKED_AT_BYTES_MAX);
        let mut line = escaped(&self.redact(looked_at));
        if line.len() > bytes_max || looked_at.len() < text.len() {
            line.truncate(head(&line, bytes_max.saturating_sub(CUT.len())).len());
            line.push_str(CUT);
        }
        line
    }
}

impl Drop for CallState {
    fn drop(&mut self) {
        if self.lines_dropped > 0 {
            let (plugin, dropped) = (self.shared.grants.plugin.as_str(), self.lines_dropped);
            let key = self.shared.grants.limit("log_lines_per_call");
            tracing::warn!(target: "plugin", plugin, dropped, "lines of one call were dropped: more than {key} allows");
        }
    }
}

#[cfg(test)]
mod tests;
