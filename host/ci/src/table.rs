//! Plain tables for terminals and pipes.

use std::fmt::{self, Write as _};

use harmonia_core::Timestamp;

/// Rows under headings, columns as wide as their widest cell.
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(headings: &[&str]) -> Self {
        Self { rows: vec![headings.iter().map(|&heading| heading.to_owned()).collect()] }
    }

    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.into_iter().map(|cell| clean(&cell)).collect());
    }
}

/// Escape sequences and control characters could move the cursor or fake lines: names come from repositories.
pub(crate) fn clean(text: &str) -> String {
    harmonia_core::log_text::clean(&text.replace(['\r', '\n'], " ")).replace('\t', " ")
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.rows.iter().filter_map(|row| row.get(column)).map(|c| c.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                let _ = write!(line, "{cell:width$}  ");
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// How long ago, in the largest sensible unit.
pub(crate) fn ago(now: Timestamp, then: Timestamp) -> String {
    let seconds = (now - then).whole_seconds().max(0);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{}h{:02}m", seconds / 3_600, seconds % 3_600 / 60),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_control_characters_are_gone() {
        let mut table = Table::new(&["A", "LONG"]);
        table.row(["wider".to_owned(), "x\u{1b}[1;31my\u{1b}[0m\u{8}z\u{202e}\n!".to_owned()]);
        assert_eq!(table.to_string(), "A      LONG\nwider  xyz !\n");
    }

    #[test]
    fn ages_use_one_unit_or_two() {
        let now = Timestamp::UNIX_EPOCH + time::Duration::days(3);
        for (seconds, text) in [(-5, "0s"), (59, "59s"), (61, "1m01s"), (7_260, "2h01m"), (200_000, "2d")] {
            assert_eq!(ago(now, now - time::Duration::seconds(seconds)), text);
        }
    }
}
