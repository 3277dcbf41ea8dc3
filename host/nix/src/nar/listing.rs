//! The listing of an archive (`<hash>.ls` of a binary cache): which files it has and where their bytes are.
//!
//! [`ListingWriter`] makes the JSON text in passing, with its keys in the order in which current Nix writes it;
//! [`check_listing`] says whether a text from elsewhere is one. Neither recurses nor keeps the tree in memory: a tree may be
//! nested deeper than what readers of JSON usually take.

use std::io::{self, BufRead, Write};

use super::decoder::check_name;
use super::error::shown;
use super::{DEPTH_MAX, Decoder, Limits, NarError, Token};

/// Makes a listing of the archive that is written to it, in passing: put it beside the hash and the compressor.
///
/// A write fails with the [`NarError`] inside the [`io::Error`] when the bytes are not an archive, hold names that are not
/// UTF-8, or make too long a listing (such a tree has no listing, but is otherwise sound).
#[derive(Debug)]
pub struct ListingWriter {
    decoder: Decoder,
    text: String,
    bytes_max: usize,
    /// Whether the next entry is the first one of its directory.
    first: bool,
}

impl ListingWriter {
    /// A listing of nothing yet, which will have at most `bytes_max` bytes.
    pub fn new(limits: Limits, bytes_max: usize) -> Self {
        Self { decoder: Decoder::new(limits), text: "{\"root\":".to_owned(), bytes_max, first: true }
    }

    /// The listing; fails when the archive is not complete.
    pub fn finish(mut self) -> Result<String, NarError> {
        self.decoder.finish()?;
        self.push(",\"version\":1}")?;
        Ok(self.text)
    }

    fn feed(&mut self, mut input: &[u8]) -> Result<(), NarError> {
        while !input.is_empty() {
            if self.decoder.is_done() {
                return Err(NarError::TrailingData { offset: self.decoder.offset() });
            }
            let step = self.decoder.push(input)?;
            input = &input[step.consumed..];
            if let Some(token) = step.token {
                self.token(token)?;
            }
        }
        Ok(())
    }

    fn token(&mut self, token: Token) -> Result<(), NarError> {
        match token {
            Token::Directory => {
                self.first = true;
                self.push("{\"entries\":{")
            }
            Token::Entry { name } => {
                if !std::mem::replace(&mut self.first, false) {
                    self.push(",")?;
                }
                self.push(&quoted("the file name", name)?)?;
                self.push(":")
            }
            Token::DirectoryEnd => {
                self.first = false;
                self.push("},\"type\":\"directory\"}")
            }
            Token::Symlink { target } => {
                let target = quoted("the symlink target", target)?;
                self.push(&format!("{{\"target\":{target},\"type\":\"symlink\"}}"))
            }
            Token::Regular { executable, size, offset } => {
                let executable = if executable { "\"executable\":true," } else { "" };
                self.push(&format!("{{{executable}\"narOffset\":{offset},\"size\":{size},\"type\":\"regular\"}}"))
            }
            Token::Contents | Token::RegularEnd => Ok(()),
        }
    }

    fn push(&mut self, text: &str) -> Result<(), NarError> {
        if self.text.len() + text.len() > self.bytes_max {
            return Err(NarError::ListingTooLarge { max: self.bytes_max });
        }
        self.text.push_str(text);
        Ok(())
    }
}

impl Write for ListingWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.feed(bytes).map_err(io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The listing of the archive that `input` holds, and nothing but the archive; at most `bytes_max` bytes of it.
pub fn listing_of(mut input: impl BufRead, limits: Limits, bytes_max: usize) -> Result<String, NarError> {
    let mut writer = ListingWriter::new(limits, bytes_max);
    loop {
        let buffer = match input.fill_buf() {
            Ok([]) => return writer.finish(),
            Ok(buffer) => buffer,
            Err(cause) if cause.kind() == io::ErrorKind::Interrupted => continue,
            Err(cause) => return Err(NarError::Read(cause)),
        };
        let length = buffer.len();
        writer.feed(buffer)?;
        input.consume(length);
    }
}

/// A JSON string.
fn quoted(what: &'static str, bytes: Vec<u8>) -> Result<String, NarError> {
    let text = String::from_utf8(bytes);
    let text = text.map_err(|error| NarError::NotUtf8 { what, text: shown(error.as_bytes()) })?;
    Ok(json_string(text))
}

fn json_string(text: String) -> String {
    serde_json::Value::String(text).to_string()
}

/// Why a text is no listing.
#[derive(Debug, thiserror::Error)]
#[error("expected {expected} at byte {offset} of the listing")]
pub struct ListingError {
    expected: &'static str,
    offset: usize,
}

/// Whether `text` is a listing in the one form that [`ListingWriter`] gives it: entries sorted by bytes, keys likewise, no
/// space.
pub fn check_listing(text: &str) -> Result<(), ListingError> {
    let mut cursor = Cursor { text, offset: 0 };
    // The name last seen in each directory that is open.
    let mut open: Vec<String> = Vec::new();
    cursor.expect("{\"root\":")?;
    'nodes: loop {
        if cursor.eat("{\"entries\":{") {
            if open.len() >= DEPTH_MAX {
                return Err(cursor.expected("an end of the nesting"));
            }
            if !cursor.eat("},\"type\":\"directory\"}") {
                open.push(cursor.name(None)?);
                continue;
            }
        } else if cursor.eat("{\"target\":") {
            if cursor.string()?.is_empty() {
                return Err(cursor.expected("a target"));
            }
            cursor.expect(",\"type\":\"symlink\"}")?;
        } else {
            cursor.regular()?;
        }
        // A node is complete; what follows belongs to the directory around it.
        while let Some(previous) = open.last_mut() {
            if cursor.eat(",") {
                *previous = cursor.name(Some(previous))?;
                continue 'nodes;
            }
            cursor.expect("},\"type\":\"directory\"}")?;
            open.pop();
        }
        cursor.expect(",\"version\":1}")?;
        return if cursor.offset == text.len() { Ok(()) } else { Err(cursor.expected("the end")) };
    }
}

struct Cursor<'a> {
    text: &'a str,
    offset: usize,
}

impl<'a> Cursor<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.offset..]
    }

    fn expected(&self, expected: &'static str) -> ListingError {
        ListingError { expected, offset: self.offset }
    }

    fn eat(&mut self, word: &str) -> bool {
        let is_there = self.rest().starts_with(word);
        if is_there {
            self.offset += word.len();
        }
        is_there
    }

    fn expect(&mut self, word: &'static str) -> Result<(), ListingError> {
        if self.eat(word) { Ok(()) } else { Err(self.expected(word)) }
    }

    fn regular(&mut self) -> Result<(), ListingError> {
        self.expect("{")?;
        self.eat("\"executable\":true,");
        self.expect("\"narOffset\":")?;
        self.number()?;
        self.expect(",\"size\":")?;
        self.number()?;
        self.expect(",\"type\":\"regular\"}")
    }

    fn number(&mut self) -> Result<(), ListingError> {
        let rest = self.rest();
        let digits = &rest[..rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len())];
        match digits.parse::<u64>() {
            Ok(number) if number.to_string() == digits => self.offset += digits.len(),
            _ => return Err(self.expected("a number")),
        }
        Ok(())
    }

    /// A name with the colon behind it, which must come after the one before it.
    fn name(&mut self, previous: Option<&String>) -> Result<String, ListingError> {
        let start = self.expected("the next name of a file");
        let name = self.string()?;
        if check_name(name.as_bytes(), 0).is_err() || previous.is_some_and(|previous| name <= *previous) {
            return Err(start);
        }
        self.expect(":")?;
        Ok(name)
    }

    fn string(&mut self) -> Result<String, ListingError> {
        let rest = self.rest();
        let mut escaped = false;
        let end = rest.bytes().enumerate().skip(1).find(|(_, byte)| match byte {
            _ if escaped => {
                escaped = false;
                false
            }
            b'\\' => {
                escaped = true;
                false
            }
            byte => *byte == b'"',
        });
        let quoted = end.map(|(end, _)| &rest[..=end]).ok_or_else(|| self.expected("a string"))?;
        let string: String = serde_json::from_str(quoted).map_err(|_| self.expected("a string"))?;
        if json_string(string.clone()) != quoted {
            return Err(self.expected("a string in its shortest form"));
        }
        self.offset += quoted.len();
        Ok(string)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_listing_is_one() {
        const FILE: &str = r#"{"narOffset":96,"size":3,"type":"regular"}"#;
        let listing = |root: &str| format!(r#"{{"root":{root},"version":1}}"#);
        let directory = |entries: &str| listing(&format!(r#"{{"entries":{{{entries}}},"type":"directory"}}"#));
        for sound in [
            listing(FILE),
            listing(r#"{"executable":true,"narOffset":0,"size":18446744073709551615,"type":"regular"}"#),
            listing(r#"{"target":"../\u0001\"\\ü","type":"symlink"}"#),
            directory(""),
            directory(&format!(
                r#""B":{FILE},"a":{{"entries":{{}},"type":"directory"}},"a.":{{"entries":{{"x":{FILE}}},"type":"directory"}}"#
            )),
        ] {
            check_listing(&sound).unwrap_or_else(|error| panic!("{sound}: {error}"));
        }
        for (bad, expected) in [
            (String::new(), "root"),
            ("[]".to_owned(), "root"),
            (format!("{} ", listing(FILE)), "the end"),
            (listing(r#"{"size":3,"type":"regular"}"#), "narOffset"),
            (listing(r#"{"narOffset":096,"size":3,"type":"regular"}"#), "a number"),
            (listing(r#"{"narOffset":-1,"size":3,"type":"regular"}"#), "a number"),
            (listing(r#"{"narOffset":18446744073709551616,"size":3,"type":"regular"}"#), "a number"),
            (listing(r#"{"narOffset":1,"size":3,"type":"regular","x":1}"#), "regular"),
            (listing(r#"{"target":"","type":"symlink"}"#), "a target"),
            (listing(r#"{"target":"\u0061","type":"symlink"}"#), "shortest form"),
            (listing(r#"{"target":"a"#), "symlink"),
            (listing(r#"{"target":"\"#), "a string"),
            (directory(&format!(r#""..":{FILE}"#)), "the next name"),
            (directory(&format!(r#""a/b":{FILE}"#)), "the next name"),
            (directory(&format!(r#""":{FILE}"#)), "the next name"),
            (directory(&format!(r#""b":{FILE},"a":{FILE}"#)), "the next name"),
            (directory(&format!(r#""a":{FILE},"a":{FILE}"#)), "the next name"),
            (directory(&format!(r#""a":{FILE},"#)), "a string"),
            (directory(r#""a":<script>"#), "{"),
            (r#"{"root":{"entries":{"a":"#.repeat(2), "narOffset"),
        ] {
            let error = check_listing(&bad).expect_err(&bad).to_string();
            assert!(error.contains(expected), "{bad}: {error}");
        }
        let nested = |depth: usize| {
            let inner = "},\"type\":\"directory\"}".repeat(depth - 1);
            listing(&format!(
                "{}{{\"entries\":{{}},\"type\":\"directory\"}}{inner}",
                "{\"entries\":{\"d\":".repeat(depth - 1)
            ))
        };
        check_listing(&nested(DEPTH_MAX)).expect("as deep as a path can be");
        check_listing(&nested(DEPTH_MAX + 1)).expect_err("too deep");
    }
}
