//! What people write elsewhere, as it may be shown: titles, names of authors, branches and attributes, words of other servers.

/// Characters that show nothing and change what stands around them: control characters (a terminal's cursor, another line),
/// and those that turn the direction of text, so that something else is read than stands there.
pub fn is_unshown(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{61c}'
                | '\u{200e}'
                | '\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2066}'..='\u{2069}'
                | '\u{feff}'
        )
}

/// One line of at most so many characters, without what is unshown; `None` when nothing is left.
pub fn one_line(text: &str, chars_max: usize) -> Option<String> {
    let line = text.lines().find(|line| !line.trim().is_empty())?;
    let shown: String = line.trim().chars().filter(|c| !is_unshown(*c)).take(chars_max).collect();
    let shown = shown.trim();
    (!shown.is_empty()).then(|| shown.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_turns_text_around_is_unshown_and_letters_are_not() {
        for character in
            "\u{0}\n\u{1b}\u{7f}\u{85}\u{61c}\u{200e}\u{200f}\u{2028}\u{202e}\u{2066}\u{2069}\u{feff}".chars()
        {
            assert!(is_unshown(character), "{character:?}");
        }
        // Right-to-left letters are letters, and a family is joined by U+200D.
        for character in "a ä日שلا…👩\u{200d}👧".chars() {
            assert!(!is_unshown(character), "{character:?}");
        }
    }

    #[test]
    fn a_line_is_the_first_with_something_in_it() {
        for (text, shown) in [
            ("Fix it\n\nbecause", Some("Fix it")),
            ("\n \r\n  late \n", Some("late")),
            ("\u{202e}evil\u{7}\u{1b}[31m", Some("evil[31m")),
            ("abcdefgh", Some("abcdef")),
            ("\u{202e}\n", None),
            ("", None),
        ] {
            assert_eq!(one_line(text, 6 + 2 * usize::from(text.contains("evil"))).as_deref(), shown, "{text:?}");
        }
        // Bounded by what is kept, however long the text.
        let huge = "x\u{202e}".repeat(200_000);
        assert_eq!(one_line(&huge, 3).as_deref(), Some("xxx"));
    }
}
