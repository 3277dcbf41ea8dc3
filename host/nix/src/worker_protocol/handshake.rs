//! The greeting of both ends: magic numbers, versions, features, trust. [`greet_daemon`] and [`greet_client`].
//!
//! | bytes | from | since |
//! |---|---|---|
//! | magic, version | client | |
//! | magic, version | daemon | |
//! | features, and the daemon's in return | both | 1.38 |
//! | CPU affinity (never asked for), reserve space (obsolete) | client | |
//! | version of the daemon's program | daemon | 1.33 |
//! | trust | daemon | 1.35 |

use std::collections::BTreeSet;
use std::fmt;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use super::wire::{WireError, put_bytes, put_list, put_u64, read_string, read_strings, read_u64};

/// The first number that a client sends.
pub const CLIENT_MAGIC: u64 = 0x6e69_7863;

/// The first number that a daemon sends.
pub const DAEMON_MAGIC: u64 = 0x6478_696f;

/// A version of the protocol; all that exist are 1.x.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProtocolVersion {
    /// Ends with different major versions do not understand each other.
    pub major: u8,
    /// Both ends speak the smaller of their minor versions.
    pub minor: u8,
}

impl ProtocolVersion {
    /// The oldest that is spoken here: Nix 2.3.
    pub const OLDEST: Self = Self { major: 1, minor: 21 };
    /// The newest that is spoken here.
    pub const NEWEST: Self = Self { major: 1, minor: 38 };

    /// The number that travels.
    pub fn code(self) -> u64 {
        u64::from(self.major) << 8 | u64::from(self.minor)
    }

    /// Reads the number that travels.
    pub fn from_code(code: u64) -> Result<Self, WireError> {
        let bytes = u16::try_from(code).map_err(|_| WireError::bad_value("a protocol version", code))?;
        let [major, minor] = bytes.to_be_bytes();
        Ok(Self { major, minor })
    }
}

impl fmt::Display for ProtocolVersion {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}", self.major, self.minor)
    }
}

/// Whether the daemon lets this client import unsigned paths and change restricted settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// It does.
    Trusted,
    /// It does not.
    NotTrusted,
}

/// What a client says of itself.
#[derive(Debug, Clone)]
pub struct ClientGreeting {
    /// The newest version it will speak.
    pub version: ProtocolVersion,
    /// Protocol features it knows.
    pub features: BTreeSet<String>,
}

impl Default for ClientGreeting {
    fn default() -> Self {
        Self { version: ProtocolVersion::NEWEST, features: BTreeSet::new() }
    }
}

/// What a daemon says of itself.
#[derive(Debug, Clone)]
pub struct DaemonGreeting {
    /// The newest version it will speak.
    pub version: ProtocolVersion,
    /// Protocol features it knows.
    pub features: BTreeSet<String>,
    /// Version of its program.
    pub program_version: String,
    /// What it thinks of the client; `None` when it cannot say.
    pub trust: Option<Trust>,
}

/// What both ends agreed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// The version in force.
    pub version: ProtocolVersion,
    /// Features that both ends know.
    pub features: BTreeSet<String>,
    /// Version of the daemon's program, told since 1.33, such as `2.26.3`.
    pub daemon_program_version: Option<String>,
    /// Told since 1.35, unless the daemon does not know.
    pub trust: Option<Trust>,
}

/// Why no conversation came about.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The stream failed, or said something else than the protocol has.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The daemon hung up without a word.
    #[error("the daemon closed the connection without a greeting: is this user in its allowed-users?")]
    Refused,
    /// The other end is no daemon, or no client.
    #[error("the other end does not speak the worker protocol: it greeted with {0:#x}")]
    BadMagic(u64),
    /// No version that both ends speak.
    #[error("the other end speaks protocol {theirs}, at least {oldest} is needed", oldest = ProtocolVersion::OLDEST)]
    Version {
        /// Its version.
        theirs: ProtocolVersion,
    },
}

/// The client's half. Afterwards the daemon sends [messages](super::stderr) up to the first `LAST`.
pub async fn greet_daemon<R, W>(
    reader: &mut R,
    writer: &mut W,
    greeting: &ClientGreeting,
) -> Result<Session, HandshakeError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut buffer = Vec::new();
    put_u64(&mut buffer, CLIENT_MAGIC);
    put_u64(&mut buffer, greeting.version.code());
    send(writer, &mut buffer).await?;

    let magic = read_u64(reader).await.map_err(|error| match error {
        WireError::Closed => HandshakeError::Refused,
        other => HandshakeError::Wire(other),
    })?;
    if magic != DAEMON_MAGIC {
        return Err(HandshakeError::BadMagic(magic));
    }
    let version = agree(greeting.version, read_u64(reader).await?)?;

    let mut features = BTreeSet::new();
    if version.minor >= 38 {
        put_list(&mut buffer, &greeting.features);
        send(writer, &mut buffer).await?;
        let theirs = read_strings(reader, "a protocol feature").await?;
        features = theirs.into_iter().filter(|feature| greeting.features.contains(feature)).collect();
    }
    put_u64(&mut buffer, 0); // no CPU affinity
    put_u64(&mut buffer, 0); // no reserve space
    send(writer, &mut buffer).await?;

    let daemon_program_version =
        if version.minor >= 33 { Some(read_string(reader, "the daemon's version").await?) } else { None };
    let trust = if version.minor >= 35 {
        match read_u64(reader).await? {
            0 => None,
            1 => Some(Trust::Trusted),
            2 => Some(Trust::NotTrusted),
            other => return Err(WireError::bad_value("the trust of the daemon", other).into()),
        }
    } else {
        None
    };
    Ok(Session { version, features, daemon_program_version, trust })
}

/// The daemon's half. Afterwards the daemon sends what it has to say and `LAST`, then waits for operations.
pub async fn greet_client<R, W>(
    reader: &mut R,
    writer: &mut W,
    greeting: &DaemonGreeting,
) -> Result<Session, HandshakeError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let magic = read_u64(reader).await?;
    if magic != CLIENT_MAGIC {
        return Err(HandshakeError::BadMagic(magic));
    }
    let mut buffer = Vec::new();
    put_u64(&mut buffer, DAEMON_MAGIC);
    put_u64(&mut buffer, greeting.version.code());
    send(writer, &mut buffer).await?;
    let version = agree(greeting.version, read_u64(reader).await?)?;

    let mut features = BTreeSet::new();
    if version.minor >= 38 {
        let theirs = read_strings(reader, "a protocol feature").await?;
        features = theirs.into_iter().filter(|feature| greeting.features.contains(feature)).collect();
        put_list(&mut buffer, &greeting.features);
        send(writer, &mut buffer).await?;
    }
    if read_u64(reader).await? != 0 {
        read_u64(reader).await?; // the CPU it asks for, which no daemon honours any more
    }
    read_u64(reader).await?;

    let program_version = (version.minor >= 33).then(|| greeting.program_version.clone());
    if let Some(program_version) = &program_version {
        put_bytes(&mut buffer, program_version);
    }
    let trust = if version.minor >= 35 { greeting.trust } else { None };
    if version.minor >= 35 {
        put_u64(&mut buffer, trust.map_or(0, |trust| if trust == Trust::Trusted { 1 } else { 2 }));
    }
    send(writer, &mut buffer).await?;
    Ok(Session { version, features, daemon_program_version: program_version, trust })
}

fn agree(ours: ProtocolVersion, code: u64) -> Result<ProtocolVersion, HandshakeError> {
    let theirs = ProtocolVersion::from_code(code)?;
    let version = theirs.min(ours);
    if theirs.major != ours.major || version < ProtocolVersion::OLDEST {
        return Err(HandshakeError::Version { theirs });
    }
    Ok(version)
}

async fn send<W: AsyncWrite + Unpin>(writer: &mut W, buffer: &mut Vec<u8>) -> Result<(), WireError> {
    writer.write_all(buffer).await?;
    writer.flush().await?;
    buffer.clear();
    Ok(())
}
