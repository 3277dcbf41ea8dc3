//! Small readings of text: positions, durations, the nearest known name.

use std::time::Duration;

/// Line and column (in characters), both from 1, of a byte offset.
pub(super) fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset.min(text.len())).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

/// Reads `90s`, `30m`, `2h`, `14d` or `6w`; `None` when it is none of these or too large to be meant.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let text = text.trim();
    let unit_start = text.find(|character: char| !character.is_ascii_digit())?;
    let number: u64 = text[..unit_start].parse().ok()?;
    let seconds = match text[unit_start..].trim() {
        "s" => 1,
        "m" | "min" => 60,
        "h" => 3_600,
        "d" => 86_400,
        "w" => 604_800,
        _ => return None,
    };
    number.checked_mul(seconds).map(Duration::from_secs)
}

/// The known name that `word` most likely was meant to be, if one is near.
pub fn nearest_name<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let fold = |text: &str| text.to_lowercase().replace(['_', '-', ' '], "");
    let wanted = fold(word);
    if wanted.len() > 64 {
        return None;
    }
    known
        .into_iter()
        .map(|name| (edit_distance(&wanted, &fold(name)), name))
        .filter(|(distance, name)| *distance <= (name.chars().count() / 3).max(1))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// Levenshtein's distance, over characters.
fn edit_distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, l) in left.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, r) in right.iter().enumerate() {
            let replaced = diagonal + usize::from(l != *r);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, seconds) in [("90s", 90), ("30m", 1_800), ("2h", 7_200), ("14d", 1_209_600), (" 1 w", 604_800)] {
            assert_eq!(parse_duration(text), Some(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "h", "5", "-1h", "1.5h", "1y", "99999999999999999999h", "9999999999999999999w"] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }

    #[test]
    fn the_nearest_name_is_near() {
        let known = ["attrs", "eval-timeout", "allow-ifd"];
        for (word, name) in [
            ("attr", Some("attrs")),
            ("eval_timeout", Some("eval-timeout")),
            ("alow-ifd", Some("allow-ifd")),
            ("zzz", None),
        ] {
            assert_eq!(nearest_name(word, known), name, "{word}");
        }
    }

    #[test]
    fn positions_count_characters() {
        assert_eq!(position("ä=1\nöü=", 9), (2, 3));
        assert_eq!(position("", 0), (1, 1));
    }
}
