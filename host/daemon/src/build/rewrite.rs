//! Replacing texts by others of the same kind: placeholders by paths, and hashes in paths by other hashes of the same
//! length. Start at [`Rewrites`].

use std::collections::BTreeMap;
use std::io::{self, Write};

/// What is replaced by what; no text of them is empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Rewrites(BTreeMap<Vec<u8>, Vec<u8>>);

impl Rewrites {
    pub(super) fn insert(&mut self, from: impl Into<Vec<u8>>, to: impl Into<Vec<u8>>) {
        self.0.insert(from.into(), to.into());
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Replaces one after the other, as Nix does, wherever they stand.
    pub(super) fn apply(&self, text: &[u8]) -> Vec<u8> {
        let mut text = text.to_vec();
        for (from, to) in &self.0 {
            text = bstr::ByteSlice::replace(text.as_slice(), from, to);
        }
        text
    }

    /// A writer that replaces in what passes; every text must be as long as what it is replaced by.
    pub(super) fn writer<W: Write>(self, output: W) -> RewritingWriter<W> {
        let longest = self.0.keys().map(Vec::len).max().unwrap_or(1);
        RewritingWriter { rewrites: self, longest, held: Vec::new(), output }
    }
}

/// [`Rewrites::writer`]. What is held back goes on with [`RewritingWriter::finish`].
pub(super) struct RewritingWriter<W> {
    rewrites: Rewrites,
    longest: usize,
    held: Vec<u8>,
    output: W,
}

impl<W: Write> RewritingWriter<W> {
    /// Writes what was held back, and hands the output back.
    pub(super) fn finish(mut self) -> io::Result<W> {
        self.output.write_all(&self.held)?;
        Ok(self.output)
    }
}

impl<W: Write> Write for RewritingWriter<W> {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        if self.rewrites.is_empty() {
            return self.output.write(piece);
        }
        self.held.extend_from_slice(piece);
        // What begins in the last bytes may go on in the next piece. What was replaced before is as long as it was, and a
        // hash that was put in is none that is replaced.
        self.held = self.rewrites.apply(&self.held);
        let ready = self.held.len().saturating_sub(self.longest - 1);
        self.output.write_all(&self.held[..ready])?;
        self.held.drain(..ready);
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_cut_anywhere_is_replaced() {
        let mut rewrites = Rewrites::default();
        rewrites.insert("abcdef", "uvwxyz");
        rewrites.insert("123456", "987654");
        let text = b"abcdef--123456abcdef/abcde 12345 abcdef";
        let expected = b"uvwxyz--987654uvwxyz/abcde 12345 uvwxyz";
        assert_eq!(rewrites.apply(text), expected);
        for size in 1..text.len() {
            let mut writer = rewrites.clone().writer(Vec::new());
            for piece in text.chunks(size) {
                writer.write_all(piece).expect("memory");
            }
            assert_eq!(writer.finish().expect("memory"), expected, "pieces of {size} bytes");
        }
    }
}
