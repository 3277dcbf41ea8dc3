//! What programs printed, as people see it: no sequences that move a cursor or name a window, no overwritten progress lines, the
//! last lines only. Pure.

use crate::foreign_text::is_unshown;

/// Longer parameters are no colour.
const COLOR_BYTES_MAX: usize = 64;

/// Ends whatever colour is on (ECMA-48, 8.3.117: select graphic rendition).
const PLAIN: &str = "\u{1b}[0m";

/// Drops ANSI escape sequences and other characters that are [unshown](is_unshown), and of a line that was overwritten with carriage returns
/// everything but its last version.
pub fn clean(text: &str) -> String {
    shown(text, false)
}

/// The same for a terminal: colours (and bold, and such) stay, and end with their line.
pub fn colored(text: &str) -> String {
    shown(text, true)
}

fn shown(text: &str, colors: bool) -> String {
    let mut out = String::with_capacity(text.len());
    for line in text.split_inclusive('\n') {
        let (content, end) = line.strip_suffix('\n').map_or((line, ""), |content| (content, "\n"));
        let content = content.strip_suffix('\r').unwrap_or(content);
        let shown = content.rsplit('\r').find(|part| !part.is_empty()).unwrap_or("");
        if strip_into(shown, colors, &mut out) {
            out.push_str(PLAIN);
        }
        out.push_str(end);
    }
    out
}

/// Whether colours were kept.
fn strip_into(text: &str, colors: bool, out: &mut String) -> bool {
    let mut kept = false;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\u{1b}' => match chars.next() {
                // Control sequence: parameters, then one final character.
                Some('[') => {
                    let mut parameters = String::new();
                    let end = loop {
                        match chars.next() {
                            Some(c) if !('@'..='~').contains(&c) => parameters.push(c),
                            end => break end,
                        }
                    };
                    let is_color = end == Some('m')
                        && parameters.len() <= COLOR_BYTES_MAX
                        && parameters.bytes().all(|b| b.is_ascii_digit() || matches!(b, b';' | b':'));
                    if colors && is_color {
                        out.extend(["\u{1b}[", &parameters, "m"]);
                        kept = true;
                    }
                }
                // Operating system command: up to BEL or ESC \.
                Some(']') => {
                    while let Some(c) = chars.next() {
                        if c == '\u{7}' || (c == '\u{1b}' && chars.next_if_eq(&'\\').is_some()) {
                            break;
                        }
                    }
                }
                // A character set: one more character.
                Some('(' | ')') => drop(chars.next()),
                _ => {}
            },
            '\t' => out.push(c),
            c if is_unshown(c) => {}
            c => out.push(c),
        }
    }
    kept
}

/// The last `lines_max` lines of a text, and how many lines came before.
pub fn last_lines(text: &str, lines_max: usize) -> (&str, usize) {
    let total = text.lines().count();
    let left_out = total.saturating_sub(lines_max);
    if left_out == 0 {
        return (text, 0);
    }
    let start = text.match_indices('\n').nth(left_out - 1).map_or(0, |(at, _)| at + 1);
    (&text[start..], left_out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cleaning() {
        for (raw, shown) in [
            ("plain\ntext", "plain\ntext"),
            ("\u{1b}[1;31merror:\u{1b}[0m x\n", "error: x\n"),
            ("10%\r50%\r100%\nnext\r\n", "100%\nnext\n"),
            ("progress\r", "progress"),
            ("\u{1b}]0;title\u{7}a\u{1b}]8;;u\u{1b}\\b", "ab"),
            ("a\u{1b}(Bb\u{8}c\td\u{0}", "abc\td"),
            ("\u{1b}", ""),
            ("\u{1b}[", ""),
            ("a\u{202e}b\u{2066}c\u{feff}", "abc"),
            ("<script>", "<script>"),
        ] {
            assert_eq!(clean(raw), shown, "{raw:?}");
        }
    }

    #[test]
    fn colours_stay_on_a_terminal_and_nothing_else_does() {
        for (raw, shown) in [
            ("plain\ntext", "plain\ntext"),
            ("\u{1b}[1;31merror:\u{1b}[0m x\n", "\u{1b}[1;31merror:\u{1b}[0m x\u{1b}[0m\n"),
            ("\u{1b}[38;2;1;2;3mred\nplain", "\u{1b}[38;2;1;2;3mred\u{1b}[0m\nplain"),
            ("\u{1b}[2J\u{1b}[1;1Hgone\u{1b}[?25l", "gone"),
            ("\u{1b}[1\u{7}mx", "x"),
            ("\u{1b}]0;title\u{7}a\u{8}", "a"),
            ("\u{1b}[31", ""),
        ] {
            assert_eq!(colored(raw), shown, "{raw:?}");
        }
    }

    #[test]
    fn the_end_of_a_text() {
        assert_eq!(last_lines("a\nb\nc\n", 2), ("b\nc\n", 1));
        assert_eq!(last_lines("a\nb\nc", 2), ("b\nc", 1));
        assert_eq!(last_lines("a\nb", 2), ("a\nb", 0));
        assert_eq!(last_lines("", 2), ("", 0));
    }
}
