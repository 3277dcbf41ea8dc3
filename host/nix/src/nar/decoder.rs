//! The grammar of an archive as a machine that is fed bytes: no I/O, constant memory. Start at [`Decoder::push`].

use super::error::shown;
use super::{Limits, NAME_BYTES_MAX, NAR_MAGIC, NarError, TARGET_BYTES_MAX};

/// Longest fixed word of the format; a declared length above it is refused before anything is kept.
const TAG_BYTES_MAX: u64 = NAR_MAGIC.len() as u64;

/// One step in the structure of the archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Token {
    /// A regular file begins; its bytes follow as [`Token::Contents`], then [`Token::RegularEnd`].
    Regular {
        /// Whether the file may be executed.
        executable: bool,
        /// Bytes of the file.
        size: u64,
        /// Where the first byte of the file is in the archive.
        offset: u64,
    },
    /// All bytes consumed by this step are bytes of the current file.
    Contents,
    /// The regular file is complete.
    RegularEnd,
    /// A directory begins; its entries follow, each one [`Token::Entry`] and a node, then [`Token::DirectoryEnd`].
    Directory,
    /// The next node is an entry of the current directory and has this name.
    Entry {
        /// The file name: never empty, `.`, `..`, nor with a slash or NUL; greater than the name before it.
        name: Vec<u8>,
    },
    /// The directory is complete.
    DirectoryEnd,
    /// A symlink.
    Symlink {
        /// Where it points to: not empty, no NUL byte, otherwise anything.
        target: Vec<u8>,
    },
}

/// What one call of [`Decoder::push`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// How many bytes of the input are used up.
    pub consumed: usize,
    /// What was recognised; `None` when more input is needed, or when the archive is over ([`Decoder::is_done`]).
    pub token: Option<Token>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Magic,
    NodeOpen,
    TypeKey,
    TypeValue,
    FileField,
    ExecutableValue,
    ContentsKey,
    ContentsLength,
    Contents { left: u64 },
    ContentsPadding,
    TargetKey,
    Target,
    FileClose,
    LinkClose,
    DirectoryNext,
    EntryOpen,
    NameKey,
    Name,
    NodeKey,
    EntryClose,
    Done,
}

/// Recognises one archive in the bytes it is fed.
#[derive(Debug)]
pub struct Decoder {
    limits: Limits,
    state: State,
    /// Bytes consumed.
    offset: u64,
    /// The unfinished length or string.
    partial: Vec<u8>,
    /// Where `partial` starts.
    partial_offset: u64,
    /// The last name seen in each directory that is open.
    open: Vec<Vec<u8>>,
    executable: bool,
    /// Size of the current file.
    size: u64,
    nodes: u64,
}

impl Decoder {
    /// A decoder for one archive.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            state: State::Magic,
            offset: 0,
            partial: Vec::with_capacity(64),
            partial_offset: 0,
            open: Vec::new(),
            executable: false,
            size: 0,
            nodes: 0,
        }
    }

    /// Bytes consumed so far: once the archive is over, its size.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Whether the archive is complete. To be asked before more input is fetched: nothing need follow an archive.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Bytes that are kept for the next call.
    #[cfg(test)]
    pub(super) fn buffered_bytes(&self) -> usize {
        self.partial.capacity()
    }

    /// To be called when the input is over: an error if the archive is not.
    pub fn finish(&self) -> Result<(), NarError> {
        if self.is_done() { Ok(()) } else { Err(NarError::Truncated { offset: self.offset }) }
    }

    /// Uses up bytes from the front of `input` until something is recognised or the input is used up.
    ///
    /// After an error the decoder is of no use any more. Memory stays below 8 KiB and the names of the open directories.
    pub fn push(&mut self, input: &[u8]) -> Result<Step, NarError> {
        let mut consumed = 0;
        loop {
            match self.state {
                State::Done => return Ok(Step { consumed, token: None }),
                State::Contents { left } => {
                    // Alone in its step, so that a caller finds the bytes at the front of its input.
                    if consumed > 0 || input.is_empty() {
                        return Ok(Step { consumed, token: None });
                    }
                    let take = left.min(input.len() as u64);
                    self.offset += take;
                    self.state = match left - take {
                        0 => State::ContentsPadding,
                        rest => State::Contents { left: rest },
                    };
                    return Ok(Step { consumed: take as usize, token: Some(Token::Contents) });
                }
                State::ContentsLength => {
                    if !self.fill(8, input, &mut consumed)? {
                        return Ok(Step { consumed, token: None });
                    }
                    let size = self.partial_length();
                    self.partial.clear();
                    // Refused by what is declared, not when it has all arrived.
                    if size > self.limits.nar_bytes_max - self.offset {
                        return Err(NarError::TooLarge { max: self.limits.nar_bytes_max });
                    }
                    self.size = size;
                    self.state = if size == 0 { State::FileClose } else { State::Contents { left: size } };
                    let token = Token::Regular { executable: self.executable, size, offset: self.offset };
                    return Ok(Step { consumed, token: Some(token) });
                }
                State::ContentsPadding => {
                    let padding = padding_of(self.size);
                    if !self.fill(padding, input, &mut consumed)? {
                        return Ok(Step { consumed, token: None });
                    }
                    if self.partial.iter().any(|byte| *byte != 0) {
                        return Err(NarError::BadPadding { offset: self.offset });
                    }
                    self.partial.clear();
                    self.state = State::FileClose;
                }
                _ => {
                    if !self.fill_string(input, &mut consumed)? {
                        return Ok(Step { consumed, token: None });
                    }
                    let length = self.partial_length() as usize;
                    let mut string = std::mem::take(&mut self.partial);
                    if string[8 + length..].iter().any(|byte| *byte != 0) {
                        return Err(NarError::BadPadding { offset: self.offset });
                    }
                    let token = self.string(&string[8..8 + length])?;
                    string.clear();
                    self.partial = string;
                    if token.is_some() {
                        return Ok(Step { consumed, token });
                    }
                }
            }
        }
    }

    /// Moves input into `partial` until it holds `want` bytes; whether it does.
    fn fill(&mut self, want: usize, input: &[u8], consumed: &mut usize) -> Result<bool, NarError> {
        if self.partial.is_empty() {
            self.partial_offset = self.offset;
        }
        let take = want.saturating_sub(self.partial.len()).min(input.len() - *consumed);
        if take as u64 > self.limits.nar_bytes_max - self.offset {
            return Err(NarError::TooLarge { max: self.limits.nar_bytes_max });
        }
        self.partial.extend_from_slice(&input[*consumed..*consumed + take]);
        *consumed += take;
        self.offset += take as u64;
        Ok(self.partial.len() >= want)
    }

    /// The same for a length and the padded string behind it.
    fn fill_string(&mut self, input: &[u8], consumed: &mut usize) -> Result<bool, NarError> {
        if !self.fill(8, input, consumed)? {
            return Ok(false);
        }
        let length = self.partial_length();
        let (what, max) = match self.state {
            State::Name => ("a file name", NAME_BYTES_MAX),
            State::Target => ("a symlink target", TARGET_BYTES_MAX),
            _ => ("a word of the format", TAG_BYTES_MAX),
        };
        if length > max {
            return Err(NarError::StringTooLong { offset: self.partial_offset, what, length, max });
        }
        self.fill(8 + length as usize + padding_of(length), input, consumed)
    }

    fn partial_length(&self) -> u64 {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self.partial[..8]);
        u64::from_le_bytes(bytes)
    }

    /// One complete string in the current state.
    fn string(&mut self, string: &[u8]) -> Result<Option<Token>, NarError> {
        let (next, token) = match (self.state, string) {
            (State::Magic, b"nix-archive-1") | (State::NodeKey, b"node") => (State::NodeOpen, None),
            (State::NodeOpen, b"(") => (State::TypeKey, None),
            (State::TypeKey, b"type") => (State::TypeValue, None),
            (State::TypeValue, b"regular") => {
                self.count_node()?;
                self.executable = false;
                (State::FileField, None)
            }
            (State::TypeValue, b"symlink") => {
                self.count_node()?;
                (State::TargetKey, None)
            }
            (State::TypeValue, b"directory") => {
                self.count_node()?;
                if self.open.len() >= self.limits.depth_max {
                    return Err(NarError::TooDeep { max: self.limits.depth_max });
                }
                self.open.push(Vec::new());
                (State::DirectoryNext, Some(Token::Directory))
            }
            (State::FileField, b"executable") => (State::ExecutableValue, None),
            (State::ExecutableValue, b"") => {
                self.executable = true;
                (State::ContentsKey, None)
            }
            (State::FileField | State::ContentsKey, b"contents") => (State::ContentsLength, None),
            (State::FileClose, b")") => (self.after_node(), Some(Token::RegularEnd)),
            (State::TargetKey, b"target") => (State::Target, None),
            (State::Target, target) => {
                self.check_target(target)?;
                (State::LinkClose, Some(Token::Symlink { target: target.to_vec() }))
            }
            (State::LinkClose, b")") => (self.after_node(), None),
            (State::DirectoryNext, b"entry") => (State::EntryOpen, None),
            (State::DirectoryNext, b")") => {
                self.open.pop();
                (self.after_node(), Some(Token::DirectoryEnd))
            }
            (State::EntryOpen, b"(") => (State::NameKey, None),
            (State::NameKey, b"name") => (State::Name, None),
            (State::Name, name) => {
                self.check_name(name)?;
                (State::NodeKey, Some(Token::Entry { name: name.to_vec() }))
            }
            (State::EntryClose, b")") => (State::DirectoryNext, None),
            (state, found) => {
                let expected = expected_in(state);
                return Err(NarError::BadTag { offset: self.partial_offset, expected, found: shown(found) });
            }
        };
        self.state = next;
        Ok(token)
    }

    /// Where a closed node leads to: back into its directory, or to the end.
    fn after_node(&self) -> State {
        if self.open.is_empty() { State::Done } else { State::EntryClose }
    }

    fn count_node(&mut self) -> Result<(), NarError> {
        self.nodes += 1;
        if self.nodes > self.limits.nodes_max {
            return Err(NarError::TooManyNodes { max: self.limits.nodes_max });
        }
        Ok(())
    }

    fn check_name(&mut self, name: &[u8]) -> Result<(), NarError> {
        check_name(name, self.offset)?;
        // A name is only read inside a directory, so there always is one.
        if let Some(previous) = self.open.last_mut() {
            if name == previous.as_slice() {
                return Err(NarError::DuplicateName { name: shown(name) });
            }
            if name < previous.as_slice() {
                return Err(NarError::UnsortedName { previous: shown(previous), name: shown(name) });
            }
            previous.clear();
            previous.extend_from_slice(name);
        }
        Ok(())
    }

    fn check_target(&self, target: &[u8]) -> Result<(), NarError> {
        if target.is_empty() {
            return Err(NarError::EmptyTarget { offset: self.offset });
        }
        if target.contains(&0) {
            return Err(NarError::NulByte { offset: self.offset, what: "a symlink target" });
        }
        Ok(())
    }
}

/// What a file name must be, whoever asks.
pub(super) fn check_name(name: &[u8], offset: u64) -> Result<(), NarError> {
    if name.is_empty() {
        return Err(NarError::EmptyName { offset });
    }
    if name == b"." || name == b".." {
        return Err(NarError::DotName { offset, name: shown(name) });
    }
    if name.contains(&b'/') {
        return Err(NarError::SlashInName { offset, name: shown(name) });
    }
    if name.contains(&0) {
        return Err(NarError::NulByte { offset, what: "a file name" });
    }
    if name.len() as u64 > NAME_BYTES_MAX {
        let length = name.len() as u64;
        return Err(NarError::StringTooLong { offset, what: "a file name", length, max: NAME_BYTES_MAX });
    }
    Ok(())
}

/// Zero bytes that fill a string of this length up to a multiple of 8.
pub(super) fn padding_of(length: u64) -> usize {
    ((8 - length % 8) % 8) as usize
}

fn expected_in(state: State) -> &'static str {
    match state {
        State::Magic => "\"nix-archive-1\"",
        State::NodeOpen | State::EntryOpen => "\"(\"",
        State::TypeKey => "\"type\"",
        State::TypeValue => "\"regular\", \"directory\" or \"symlink\"",
        State::FileField => "\"contents\" or \"executable\"",
        State::ExecutableValue => "an empty string",
        State::ContentsKey => "\"contents\"",
        State::TargetKey => "\"target\"",
        State::FileClose | State::LinkClose | State::EntryClose => "\")\"",
        State::DirectoryNext => "\"entry\" or \")\"",
        State::NameKey => "\"name\"",
        State::NodeKey => "\"node\"",
        State::ContentsLength
        | State::Contents { .. }
        | State::ContentsPadding
        | State::Target
        | State::Name
        | State::Done => "nothing",
    }
}
