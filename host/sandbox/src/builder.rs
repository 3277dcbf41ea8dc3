//! What is particular to the builder of a derivation. Start at [`Builder`].
//!
//! Its standard input is empty, its output and errors are one stream (the helper's standard error), and how it ended is
//! a [`Report`] that the helper writes to its own standard output, which no process of the build holds. When the
//! helper's standard input ends, every process of the build is killed, and the report says so.

use std::io;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::spec::User;

/// The builder of a derivation.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Builder {
    /// What runs.
    pub run: BuilderRun,
    /// The whole environment.
    pub env: Vec<(Bytes, Bytes)>,
    /// Without, it has the host's root and namespaces, and no filter of system calls but for setid bits.
    pub sandboxed: bool,
    /// Who it is on the host, when root starts it. In a sandbox [`crate::SandboxSpec::user`] is what it sees.
    pub host_user: Option<User>,
    /// Whether the kernel looks like one of 32 bits.
    pub linux32: bool,
    /// Size of `/dev/shm`, in bytes; 0: what the kernel gives, half of the memory.
    pub shm_bytes: u64,
}

/// What runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BuilderRun {
    /// A program.
    Program {
        /// Where it is, inside.
        path: Bytes,
        /// What it is told it is called.
        arg0: Bytes,
        /// Its arguments.
        args: Vec<Bytes>,
    },
    /// A function of the helper ([`crate::helper_main_with`]), with its input.
    Builtin(Bytes),
}

impl Default for BuilderRun {
    fn default() -> Self {
        Self::Builtin(Bytes::default())
    }
}

/// Bytes that need not be UTF-8; in JSON a string, one character a byte.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub Vec<u8>);

impl<T: AsRef<[u8]>> From<T> for Bytes {
    fn from(bytes: T) -> Self {
        Self(bytes.as_ref().to_vec())
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0.iter().map(|byte| char::from(*byte)).collect::<String>())
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = text.chars().map(|character| u8::try_from(character).map_err(serde::de::Error::custom));
        bytes.collect::<Result<_, _>>().map(Self)
    }
}

/// How a build ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// How.
    pub end: End,
    /// The most memory of one of its processes, in bytes.
    pub memory_peak_bytes: u64,
    /// Processor time of all its processes in user mode, in microseconds.
    pub cpu_user_us: u64,
    /// The same in the kernel.
    pub cpu_system_us: u64,
}

/// How the builder ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum End {
    /// By itself.
    Exited(i32),
    /// By a signal.
    Signalled(i32),
    /// The helper's standard input ended first.
    Stopped,
    /// It never ran: the walls could not be set up.
    NotSetUp(String),
}

impl Report {
    /// Reads what the helper wrote; `None`: nothing, since it was killed itself.
    pub fn read(bytes: &[u8]) -> io::Result<Option<Self>> {
        if bytes.is_empty() { Ok(None) } else { Ok(Some(serde_json::from_slice(bytes)?)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_bytes_come_back() {
        let all = Bytes((0..=255).collect());
        let json = serde_json::to_string(&all).expect("serializes");
        assert_eq!(serde_json::from_str::<Bytes>(&json).expect("reads"), all);
        assert!(serde_json::from_str::<Bytes>("\"\u{100}\"").is_err());
    }
}
