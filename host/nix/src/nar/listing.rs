//! The listing of an archive (`<hash>.ls` of a binary cache): which files it has and where their bytes are.

use std::collections::BTreeMap;
use std::io::{self, BufRead, Write};

use serde::{Deserialize, Serialize};

use super::error::shown;
use super::{Decoder, Limits, NarError, Token};

/// A listing as binary caches publish it, `version` 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing {
    /// Version of the format, always 1.
    pub version: u32,
    /// The root of the tree.
    pub root: ListingNode,
}

/// One file, directory or symlink.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum ListingNode {
    /// A regular file.
    Regular {
        /// Bytes of the file.
        size: u64,
        /// Whether the file may be executed; left out of the JSON when not.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        executable: bool,
        /// Where the first byte of the file is in the archive; left out by `nix store ls`.
        #[serde(default, rename = "narOffset", skip_serializing_if = "Option::is_none")]
        nar_offset: Option<u64>,
    },
    /// A directory.
    Directory {
        /// What is in it, by name.
        entries: BTreeMap<String, ListingNode>,
    },
    /// A symlink.
    Symlink {
        /// Where it points to.
        target: String,
    },
}

/// Makes a listing of the archive that is written to it, in passing: put it beside the hash and the compressor.
///
/// A write fails with the [`NarError`] inside the [`io::Error`] when the bytes are not an archive, or hold names that are
/// not UTF-8 (such a tree has no listing, but is otherwise sound).
#[derive(Debug)]
pub struct ListingWriter {
    decoder: Decoder,
    /// Open directories with the name of each.
    open: Vec<(String, BTreeMap<String, ListingNode>)>,
    /// Name of the node that comes next; empty for the root.
    name: String,
    root: Option<ListingNode>,
}

impl ListingWriter {
    /// A listing of nothing yet. The memory it needs grows with the number of files: bound it by `limits.nodes_max`.
    pub fn new(limits: Limits) -> Self {
        Self { decoder: Decoder::new(limits), open: Vec::new(), name: String::new(), root: None }
    }

    /// The listing; fails when the archive is not complete.
    pub fn finish(self) -> Result<Listing, NarError> {
        self.decoder.finish()?;
        let offset = self.decoder.offset();
        // A complete archive has a root.
        let root = self.root.ok_or(NarError::Truncated { offset })?;
        Ok(Listing { version: 1, root })
    }

    fn feed(&mut self, mut input: &[u8]) -> Result<(), NarError> {
        while !input.is_empty() {
            if self.decoder.is_done() {
                return Err(NarError::TrailingData { offset: self.decoder.offset() });
            }
            let step = self.decoder.push(input)?;
            input = &input[step.consumed..];
            match step.token {
                Some(Token::Regular { executable, size, offset }) => {
                    self.add(ListingNode::Regular { size, executable, nar_offset: Some(offset) });
                }
                Some(Token::Symlink { target }) => {
                    let target = utf8("the symlink target", target)?;
                    self.add(ListingNode::Symlink { target });
                }
                Some(Token::Directory) => {
                    self.open.push((std::mem::take(&mut self.name), BTreeMap::new()));
                }
                Some(Token::Entry { name }) => self.name = utf8("the file name", name)?,
                Some(Token::DirectoryEnd) => {
                    if let Some((name, entries)) = self.open.pop() {
                        self.name = name;
                        self.add(ListingNode::Directory { entries });
                    }
                }
                Some(Token::Contents | Token::RegularEnd) | None => {}
            }
        }
        Ok(())
    }

    fn add(&mut self, node: ListingNode) {
        let name = std::mem::take(&mut self.name);
        match self.open.last_mut() {
            Some((_, entries)) => {
                entries.insert(name, node);
            }
            None => self.root = Some(node),
        }
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

/// The listing of the archive that `input` holds, and nothing but the archive.
pub fn listing_of(mut input: impl BufRead, limits: Limits) -> Result<Listing, NarError> {
    let mut writer = ListingWriter::new(limits);
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

fn utf8(what: &'static str, bytes: Vec<u8>) -> Result<String, NarError> {
    String::from_utf8(bytes).map_err(|error| NarError::NotUtf8 { what, text: shown(error.as_bytes()) })
}
