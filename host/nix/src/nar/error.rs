//! What can be wrong with an archive, or with a tree that should become one.

use std::io;

/// Why an archive could not be read, written, unpacked or listed. Offsets are bytes from the start of the archive.
#[derive(Debug, thiserror::Error)]
pub enum NarError {
    /// The byte stream under the archive failed.
    #[error("could not read the archive")]
    Read(#[source] io::Error),
    /// The byte stream that takes the archive failed.
    #[error("could not write the archive")]
    Write(#[source] io::Error),
    /// A file of the tree could not be read or created.
    #[error("could not {action} {path}")]
    File {
        /// What was tried, as a verb.
        action: &'static str,
        /// Path relative to the root of the tree, bytes that are not UTF-8 replaced.
        path: String,
        /// The error of the operating system.
        #[source]
        cause: io::Error,
    },
    /// The stream ended inside the archive.
    #[error("the archive ends too early, after {offset} bytes")]
    Truncated {
        /// Bytes read.
        offset: u64,
    },
    /// Bytes follow the archive.
    #[error("something follows the end of the archive at byte {offset}")]
    TrailingData {
        /// Size of the archive proper.
        offset: u64,
    },
    /// A fixed word of the format is not there.
    #[error("expected {expected} at byte {offset} of the archive, found \"{found}\"")]
    BadTag {
        /// Where the word starts.
        offset: u64,
        /// The words allowed here.
        expected: &'static str,
        /// What is there, escaped.
        found: String,
    },
    /// A string declares a length that cannot be.
    #[error("{what} at byte {offset} of the archive declares {length} bytes, at most {max} are allowed")]
    StringTooLong {
        /// Where the string starts.
        offset: u64,
        /// What the string is.
        what: &'static str,
        /// The declared length in bytes.
        length: u64,
        /// The bound in bytes.
        max: u64,
    },
    /// The fill bytes behind a string are not zero.
    #[error("padding before byte {offset} of the archive is not zero")]
    BadPadding {
        /// The end of the padding.
        offset: u64,
    },
    /// An entry has no name.
    #[error("an entry before byte {offset} of the archive has an empty name")]
    EmptyName {
        /// The end of the name.
        offset: u64,
    },
    /// An entry is called `.` or `..`.
    #[error("an entry before byte {offset} of the archive is called \"{name}\"")]
    DotName {
        /// The end of the name.
        offset: u64,
        /// The name.
        name: String,
    },
    /// A name holds a slash.
    #[error("the name \"{name}\" before byte {offset} of the archive holds a slash")]
    SlashInName {
        /// The end of the name.
        offset: u64,
        /// The name, escaped.
        name: String,
    },
    /// A name or target holds a NUL byte.
    #[error("{what} before byte {offset} of the archive holds a NUL byte")]
    NulByte {
        /// The end of the string.
        offset: u64,
        /// What the string is.
        what: &'static str,
    },
    /// A symlink has no target.
    #[error("a symlink before byte {offset} of the archive has an empty target")]
    EmptyTarget {
        /// The end of the target.
        offset: u64,
    },
    /// Two entries of one directory have the same name.
    #[error("the entry \"{name}\" is twice in one directory")]
    DuplicateName {
        /// The name, escaped.
        name: String,
    },
    /// Entries are not in the order of their bytes.
    #[error("the entry \"{name}\" stands after \"{previous}\": entries must be sorted by bytes")]
    UnsortedName {
        /// The name before it, escaped.
        previous: String,
        /// The name, escaped.
        name: String,
    },
    /// Directories are nested too deep.
    #[error("directories are nested deeper than {max}")]
    TooDeep {
        /// The bound.
        max: usize,
    },
    /// The archive is, or says it will be, larger than allowed.
    #[error("the archive is larger than the allowed {max} bytes")]
    TooLarge {
        /// The bound in bytes.
        max: u64,
    },
    /// The archive has too many files.
    #[error("the archive holds more than the allowed {max} files")]
    TooManyNodes {
        /// The bound.
        max: u64,
    },
    /// A tree holds something that an archive cannot represent.
    #[error("{path} is {kind}: only regular files, directories and symlinks can be archived")]
    UnsupportedType {
        /// Path relative to the root of the tree.
        path: String,
        /// A socket, a device, a pipe.
        kind: &'static str,
    },
    /// A file became shorter while it was read.
    #[error("{path} changed while it was archived: {expected} bytes were announced, {found} were there")]
    Changed {
        /// Path relative to the root of the tree.
        path: String,
        /// Size when the file was opened, in bytes.
        expected: u64,
        /// Bytes that could be read.
        found: u64,
    },
    /// The listing of the archive would be larger than allowed.
    #[error("the listing of the archive is larger than the allowed {max} bytes")]
    ListingTooLarge {
        /// The bound in bytes.
        max: usize,
    },
    /// A name or target is not UTF-8, so that JSON cannot hold it.
    #[error("{what} \"{text}\" is not UTF-8 and cannot be listed")]
    NotUtf8 {
        /// What the string is.
        what: &'static str,
        /// The string, escaped.
        text: String,
    },
}

impl NarError {
    /// Whether the operating system failed, rather than that the tree or the archive is not as it must be: again may help.
    pub fn is_io(&self) -> bool {
        matches!(self, NarError::Read(_) | NarError::Write(_) | NarError::File { .. } | NarError::Changed { .. })
    }
}

/// For messages: printable ASCII as it is, all else escaped, at most 80 bytes of it.
pub(super) fn shown(bytes: &[u8]) -> String {
    let mut text = bytes[..bytes.len().min(80)].escape_ascii().to_string();
    if bytes.len() > 80 {
        text.push_str("...");
    }
    text
}
