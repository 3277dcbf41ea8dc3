//! The text of `.drv` files, `Derive([…],…)`. Start at [`Derivation::parse`] and [`Derivation::to_aterm`].
//!
//! Only the text that Nix itself would write is read: sorted, without duplicates, each string escaped in the one
//! way. So what was read writes back byte for byte, and two texts never mean the same derivation.

use std::collections::{BTreeMap, BTreeSet};

use bstr::{BString, ByteSlice as _};

use super::{Derivation, DerivationOutput, DerivationOutputError};
use crate::store_path::{StorePath, StorePathError, StorePathNameError, check_name};

/// Largest text, in bytes. What is read from it takes at most about ten times as much memory.
pub const TEXT_BYTES_MAX: usize = 16 << 20;
/// Most outputs.
pub const OUTPUTS_MAX: usize = 1_000;
/// Most input derivations, and most outputs of one that can be named.
pub const INPUT_DRVS_MAX: usize = 200_000;
/// Most input sources.
pub const INPUT_SRCS_MAX: usize = 200_000;
/// Most arguments.
pub const ARGS_MAX: usize = 200_000;
/// Most environment variables.
pub const ENV_MAX: usize = 200_000;

/// Why a text is no derivation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("malformed derivation at byte {offset}")]
pub struct ParseDerivationError {
    /// Where, in bytes from the start: the first byte that cannot be, or the start of the string that cannot be.
    pub offset: usize,
    /// What is wrong there.
    #[source]
    pub problem: AtermProblem,
}

/// What is wrong in the text of a derivation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AtermProblem {
    /// The text is longer than [`TEXT_BYTES_MAX`].
    #[error("a derivation has at most {TEXT_BYTES_MAX} bytes")]
    TooLarge,
    /// A list is longer than its bound.
    #[error("more than {0} {1}")]
    TooMany(usize, &'static str),
    /// A derivation that depends on outputs of derivations which do not exist yet.
    #[error("dynamic derivations ('DrvWithVersion', an experiment of later Nix versions) are not supported")]
    Dynamic,
    /// Another text must stand here.
    #[error("expected '{0}'")]
    Expected(&'static str),
    /// The text ends within a string.
    #[error("the text ends within a string")]
    UnfinishedString,
    /// Nix would have escaped this byte, or not escaped it.
    #[error("a string is not escaped as Nix does it")]
    Escape,
    /// A string is not UTF-8 where it must be.
    #[error("not UTF-8")]
    NotUtf8,
    /// Nix writes entries sorted and each one once.
    #[error("entries are not sorted, or repeated")]
    Order,
    /// Not a store path.
    #[error("invalid store path")]
    StorePath(#[source] StorePathError),
    /// An input derivation whose name does not end in `.drv`.
    #[error("an input derivation whose name does not end in .drv")]
    NotADerivation,
    /// The name of an output is not allowed in a store path.
    #[error("invalid output name")]
    OutputName(#[source] StorePathNameError),
    /// The three strings of an output do not go together.
    #[error("invalid output")]
    Output(#[source] DerivationOutputError),
    /// The platform has a quote, a backslash or a control character.
    #[error("invalid platform")]
    Platform,
    /// Something follows the closing parenthesis.
    #[error("the derivation ends here, but the text goes on")]
    TrailingBytes,
}

impl Derivation {
    /// Reads the text of the `.drv` file of the derivation called `name` (its store path's name without `.drv`).
    pub fn parse(name: &str, text: &[u8]) -> Result<Self, ParseDerivationError> {
        let mut cursor = Cursor { text, offset: 0 };
        if text.len() > TEXT_BYTES_MAX {
            return Err(cursor.problem(AtermProblem::TooLarge));
        }
        if text.starts_with(b"DrvWithVersion(") {
            return Err(cursor.problem(AtermProblem::Dynamic));
        }
        cursor.expect("Derive(")?;
        let mut outputs = BTreeMap::new();
        cursor.list(OUTPUTS_MAX, "outputs", |cursor| {
            cursor.expect("(")?;
            let start = cursor.offset;
            let name = cursor.output_name()?;
            let output_start = cursor.offset + 1;
            let [path, algorithm, hash] = cursor.following_texts()?;
            cursor.expect(")")?;
            let output = DerivationOutput::from_fields(&path, &algorithm, &hash)
                .map_err(|cause| ParseDerivationError { offset: output_start, problem: AtermProblem::Output(cause) })?;
            insert_next(&mut outputs, name, output, start)
        })?;
        cursor.expect(",")?;
        let mut input_drvs = BTreeMap::new();
        cursor.list(INPUT_DRVS_MAX, "input derivations", |cursor| {
            cursor.expect("(")?;
            let start = cursor.offset;
            let path = cursor.store_path()?;
            if !path.is_derivation() {
                return Err(ParseDerivationError { offset: start, problem: AtermProblem::NotADerivation });
            }
            cursor.expect(",")?;
            let mut output_names = BTreeSet::new();
            cursor.list(OUTPUTS_MAX, "outputs", |cursor| {
                let start = cursor.offset;
                let name = cursor.output_name()?;
                add_next(&mut output_names, name, start)
            })?;
            cursor.expect(")")?;
            insert_next(&mut input_drvs, path, output_names, start)
        })?;
        cursor.expect(",")?;
        let mut input_srcs = BTreeSet::new();
        cursor.list(INPUT_SRCS_MAX, "input sources", |cursor| {
            let start = cursor.offset;
            let path = cursor.store_path()?;
            add_next(&mut input_srcs, path, start)
        })?;
        cursor.expect(",")?;
        let start = cursor.offset;
        let platform = cursor.text()?;
        if !platform.bytes().all(is_platform_byte) {
            return Err(ParseDerivationError { offset: start, problem: AtermProblem::Platform });
        }
        cursor.expect(",")?;
        let builder = cursor.string()?;
        cursor.expect(",")?;
        let mut args = Vec::new();
        cursor.list(ARGS_MAX, "arguments", |cursor| {
            args.push(cursor.string()?);
            Ok(())
        })?;
        cursor.expect(",")?;
        let mut env = BTreeMap::new();
        cursor.list(ENV_MAX, "environment variables", |cursor| {
            cursor.expect("(")?;
            let start = cursor.offset;
            let key = cursor.string()?;
            cursor.expect(",")?;
            let value = cursor.string()?;
            cursor.expect(")")?;
            insert_next(&mut env, key, value, start)
        })?;
        cursor.expect(")")?;
        if cursor.offset < text.len() {
            return Err(cursor.problem(AtermProblem::TrailingBytes));
        }
        Ok(Self { name: name.to_owned(), outputs, input_drvs, input_srcs, platform, builder, args, env })
    }

    /// The text of the `.drv` file, byte for byte as Nix writes it.
    pub fn to_aterm(&self) -> Vec<u8> {
        let inputs = self.input_drvs.iter().map(|(path, outputs)| (path.as_str(), outputs));
        self.write_aterm(inputs, false)
    }

    /// As [`Derivation::to_aterm`] with other names for the input derivations (these must be sorted), and, if
    /// `mask` is set, without the paths of the own outputs.
    pub(super) fn write_aterm<'a>(
        &self,
        input_drvs: impl Iterator<Item = (&'a str, &'a BTreeSet<String>)>,
        mask: bool,
    ) -> Vec<u8> {
        let mut text = b"Derive(".to_vec();
        write_list(&mut text, &self.outputs, |text, (name, output)| {
            let (path, algorithm, hash) = output.to_fields();
            let path = if mask { "" } else { path };
            text.push(b'(');
            write_strings(text, [name.as_str(), path, &algorithm, &hash]);
            text.push(b')');
        });
        text.push(b',');
        write_list(&mut text, input_drvs, |text, (input, output_names)| {
            text.push(b'(');
            write_string(text, input.as_bytes());
            text.push(b',');
            write_list(text, output_names, |text, name| write_string(text, name.as_bytes()));
            text.push(b')');
        });
        text.push(b',');
        write_list(&mut text, &self.input_srcs, |text, path| write_string(text, path.as_str().as_bytes()));
        text.push(b',');
        write_string(&mut text, self.platform.as_bytes());
        text.push(b',');
        write_string(&mut text, &self.builder);
        text.push(b',');
        write_list(&mut text, &self.args, |text, arg| write_string(text, arg));
        text.push(b',');
        write_list(&mut text, &self.env, |text, (key, value)| {
            let is_output = || key.to_str().is_ok_and(|key| self.outputs.contains_key(key));
            text.push(b'(');
            write_string(text, key);
            text.push(b',');
            write_string(text, if mask && is_output() { b"" } else { value });
            text.push(b')');
        });
        text.push(b')');
        text
    }
}

/// Nix writes the platform without escaping it, so nothing may stand there that would need it.
fn is_platform_byte(byte: u8) -> bool {
    byte >= b' ' && byte != b'"' && byte != b'\\' && byte != 0x7f
}

fn write_list<T>(text: &mut Vec<u8>, items: impl IntoIterator<Item = T>, mut write: impl FnMut(&mut Vec<u8>, T)) {
    text.push(b'[');
    for (index, item) in items.into_iter().enumerate() {
        if index > 0 {
            text.push(b',');
        }
        write(text, item);
    }
    text.push(b']');
}

fn write_strings(text: &mut Vec<u8>, strings: [&str; 4]) {
    for (index, string) in strings.into_iter().enumerate() {
        if index > 0 {
            text.push(b',');
        }
        write_string(text, string.as_bytes());
    }
}

fn write_string(text: &mut Vec<u8>, string: &[u8]) {
    text.reserve(string.len() + 2);
    text.push(b'"');
    let mut rest = string;
    while let Some(plain) = rest.find_byteset(b"\"\\\n\r\t") {
        text.extend_from_slice(&rest[..plain]);
        text.push(b'\\');
        text.push(match rest[plain] {
            b'\n' => b'n',
            b'\r' => b'r',
            b'\t' => b't',
            quote_or_backslash => quote_or_backslash,
        });
        rest = &rest[plain + 1..];
    }
    text.extend_from_slice(rest);
    text.push(b'"');
}

/// Adds an entry that must be greater than all before it.
fn insert_next<K: Ord, V>(
    map: &mut BTreeMap<K, V>,
    key: K,
    value: V,
    offset: usize,
) -> Result<(), ParseDerivationError> {
    if map.last_key_value().is_some_and(|(last, _)| *last >= key) {
        return Err(ParseDerivationError { offset, problem: AtermProblem::Order });
    }
    map.insert(key, value);
    Ok(())
}

/// As [`insert_next`] for sets.
fn add_next<K: Ord>(set: &mut BTreeSet<K>, key: K, offset: usize) -> Result<(), ParseDerivationError> {
    if set.last().is_some_and(|last| *last >= key) {
        return Err(ParseDerivationError { offset, problem: AtermProblem::Order });
    }
    set.insert(key);
    Ok(())
}

struct Cursor<'a> {
    text: &'a [u8],
    offset: usize,
}

impl Cursor<'_> {
    fn problem(&self, problem: AtermProblem) -> ParseDerivationError {
        ParseDerivationError { offset: self.offset, problem }
    }

    fn expect(&mut self, expected: &'static str) -> Result<(), ParseDerivationError> {
        if !self.text[self.offset..].starts_with(expected.as_bytes()) {
            return Err(self.problem(AtermProblem::Expected(expected)));
        }
        self.offset += expected.len();
        Ok(())
    }

    fn is_next(&self, byte: u8) -> bool {
        self.text.get(self.offset) == Some(&byte)
    }

    fn list(
        &mut self,
        count_max: usize,
        what: &'static str,
        mut item: impl FnMut(&mut Self) -> Result<(), ParseDerivationError>,
    ) -> Result<(), ParseDerivationError> {
        self.expect("[")?;
        let mut count = 0;
        while !self.is_next(b']') {
            if count > 0 {
                self.expect(",")?;
            }
            if count == count_max {
                return Err(self.problem(AtermProblem::TooMany(count_max, what)));
            }
            item(self)?;
            count += 1;
        }
        self.offset += 1;
        Ok(())
    }

    fn string(&mut self) -> Result<BString, ParseDerivationError> {
        self.expect("\"")?;
        let mut string = Vec::new();
        loop {
            let rest = &self.text[self.offset..];
            let Some(plain) = rest.find_byteset(b"\"\\\n\r\t") else {
                self.offset = self.text.len();
                return Err(self.problem(AtermProblem::UnfinishedString));
            };
            // Growing to just what is needed: a text full of short strings must not take far more memory.
            string.reserve_exact(plain);
            string.extend_from_slice(&rest[..plain]);
            self.offset += plain;
            match (rest[plain], rest.get(plain + 1)) {
                (b'"', _) => {
                    self.offset += 1;
                    return Ok(string.into());
                }
                (b'\\', None) => {
                    self.offset = self.text.len();
                    return Err(self.problem(AtermProblem::UnfinishedString));
                }
                (b'\\', Some(b'n')) => string.push(b'\n'),
                (b'\\', Some(b'r')) => string.push(b'\r'),
                (b'\\', Some(b't')) => string.push(b'\t'),
                (b'\\', Some(escaped @ (b'"' | b'\\'))) => string.push(*escaped),
                _ => return Err(self.problem(AtermProblem::Escape)),
            }
            self.offset += 2;
        }
    }

    fn text(&mut self) -> Result<String, ParseDerivationError> {
        let start = self.offset;
        String::from_utf8(self.string()?.into())
            .map_err(|_| ParseDerivationError { offset: start, problem: AtermProblem::NotUtf8 })
    }

    fn following_texts(&mut self) -> Result<[String; 3], ParseDerivationError> {
        let mut next = || {
            self.expect(",")?;
            self.text()
        };
        Ok([next()?, next()?, next()?])
    }

    fn output_name(&mut self) -> Result<String, ParseDerivationError> {
        let start = self.offset;
        let name = self.text()?;
        match check_name(&name) {
            Ok(()) => Ok(name),
            Err(cause) => Err(ParseDerivationError { offset: start, problem: AtermProblem::OutputName(cause) }),
        }
    }

    fn store_path(&mut self) -> Result<StorePath, ParseDerivationError> {
        let start = self.offset;
        StorePath::parse(&self.text()?)
            .map_err(|cause| ParseDerivationError { offset: start, problem: AtermProblem::StorePath(cause) })
    }
}

#[cfg(test)]
mod tests;
