//! Which bytes of a log a client gets next. Pure: start at [`Cursor::step`].

use std::fmt;
use std::str::FromStr;

use harmonia_core::AttemptId;

/// How far a client has read: the id of a Server-Sent Event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) attempt: AttemptId,
    /// Bytes of that attempt's log that it has.
    pub(crate) offset: u64,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.attempt, self.offset)
    }
}

impl FromStr for Position {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (attempt, offset) = text.split_once(':').ok_or(())?;
        Ok(Self { attempt: attempt.parse().map_err(|_| ())?, offset: offset.parse().map_err(|_| ())? })
    }
}

/// What is known of a running attempt's log: its last bytes and where they begin.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tail<'a> {
    pub(crate) start: u64,
    pub(crate) bytes: &'a [u8],
}

/// What to do for a client that stands at an offset.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step<'a> {
    /// It has everything that is known.
    Wait,
    /// Send these bytes.
    Send(&'a [u8]),
    /// Bytes from here to `end` are older than the tail: ask the builder's spool, else say that they are missing.
    Older {
        /// Where the tail begins.
        end: u64,
    },
}

/// Reads one attempt's log in order.
#[derive(Debug)]
pub(crate) struct Cursor {
    position: Position,
    text: TextDecoder,
}

impl Cursor {
    pub(crate) fn new(position: Position) -> Self {
        Self { position, text: TextDecoder::default() }
    }

    /// How far the client is: after the last whole character sent.
    pub(crate) fn position(&self) -> Position {
        Position { offset: self.position.offset - self.text.held.len() as u64, ..self.position }
    }

    /// Offset of the next byte to read.
    pub(crate) fn offset(&self) -> u64 {
        self.position.offset
    }

    pub(crate) fn attempt(&self) -> AttemptId {
        self.position.attempt
    }

    /// What comes next, given the newest tail.
    pub(crate) fn step<'a>(&self, tail: Tail<'a>) -> Step<'a> {
        let offset = self.position.offset;
        if offset < tail.start {
            return Step::Older { end: tail.start };
        }
        let known = usize::try_from(offset - tail.start).unwrap_or(usize::MAX);
        match tail.bytes.get(known..) {
            Some(rest) if !rest.is_empty() => Step::Send(rest),
            // Behind the tail: a client that made its position up, or a tail that was rewritten. Nothing to send yet.
            _ => Step::Wait,
        }
    }

    /// Takes the next bytes and gives the text to send; characters cut in two are held back until the rest comes.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> String {
        self.position.offset += bytes.len() as u64;
        self.text.push(bytes)
    }

    /// The log ended or goes on elsewhere: what was held back is sent as it is.
    pub(crate) fn flush(&mut self) -> String {
        self.text.flush()
    }

    /// Leaves out everything before `offset`.
    pub(crate) fn skip_to(&mut self, offset: u64) {
        self.text.held.clear();
        self.position.offset = offset;
    }
}

/// Bytes to text, lossy, without breaking characters at the joints.
#[derive(Debug, Default)]
struct TextDecoder {
    /// The beginning of a character, at most three bytes.
    held: Vec<u8>,
}

impl TextDecoder {
    fn push(&mut self, bytes: &[u8]) -> String {
        self.held.extend_from_slice(bytes);
        let cut = self.held.len() - unfinished(&self.held);
        let text = String::from_utf8_lossy(&self.held[..cut]).into_owned();
        self.held.drain(..cut);
        text
    }

    fn flush(&mut self) -> String {
        let text = String::from_utf8_lossy(&self.held).into_owned();
        self.held.clear();
        text
    }
}

/// How many bytes at the end are the beginning of a character whose rest has not come.
fn unfinished(bytes: &[u8]) -> usize {
    for back in 1..=bytes.len().min(3) {
        let byte = bytes[bytes.len() - back];
        let width = match byte {
            0x80..=0xbf => continue,
            0xc2..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xf4 => 4,
            _ => 1,
        };
        return if width > back { back } else { 0 };
    }
    0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(offset: u64) -> Cursor {
        Cursor::new(Position { attempt: AttemptId(3), offset })
    }

    #[test]
    fn positions_survive_their_text_and_anything_else_is_refused() {
        let position = Position { attempt: AttemptId(3), offset: 17 };
        assert_eq!(position.to_string().parse(), Ok(position));
        for bad in ["", "3", "3:", ":1", "x:1", "0:1", "3:-1", "3:1:1", "3:18446744073709551616"] {
            assert_eq!(bad.parse::<Position>(), Err(()), "{bad}");
        }
    }

    #[test]
    fn steps() {
        let tail = Tail { start: 10, bytes: b"abcdef" };
        assert_eq!(at(0).step(tail), Step::Older { end: 10 });
        assert_eq!(at(10).step(tail), Step::Send(b"abcdef"));
        assert_eq!(at(14).step(tail), Step::Send(b"ef"));
        assert_eq!(at(16).step(tail), Step::Wait);
        assert_eq!(at(u64::MAX).step(tail), Step::Wait);
    }

    #[test]
    fn a_character_in_two_pieces_is_one_character() {
        let mut cursor = at(0);
        assert_eq!(cursor.take("aé".as_bytes().get(..2).expect("two")), "a");
        assert_eq!(cursor.position().offset, 1, "a client that resumes here gets the whole character");
        assert_eq!(cursor.take(&"aé€".as_bytes()[2..4]), "é");
        assert_eq!(cursor.position().offset, 3);
        assert_eq!(cursor.flush(), "\u{fffd}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn pieces_give_the_same_text_as_the_whole(bytes in proptest::collection::vec(any::<u8>(), 0..200), cuts in proptest::collection::vec(1_usize..9, 0..200)) {
            let mut cursor = at(0);
            let mut text = String::new();
            let mut rest = bytes.as_slice();
            for cut in cuts {
                let (piece, left) = rest.split_at(cut.min(rest.len()));
                text.push_str(&cursor.take(piece));
                prop_assert!(cursor.offset() - cursor.position().offset <= 3);
                rest = left;
            }
            text.push_str(&cursor.take(rest));
            text.push_str(&cursor.flush());
            // Where invalid bytes meet a joint the number of replacement characters may differ; valid text never.
            let valid = |text: &str| text.replace('\u{fffd}', "");
            prop_assert_eq!(valid(&text), valid(&String::from_utf8_lossy(&bytes)));
        }

        #[test]
        fn valid_text_is_never_damaged(text in "\\PC{0,60}", at_byte in 0_usize..200) {
            let mut cursor = at(0);
            let (left, right) = text.as_bytes().split_at(at_byte.min(text.len()));
            let got = cursor.take(left) + &cursor.take(right) + &cursor.flush();
            prop_assert_eq!(got, text);
        }
    }
}
