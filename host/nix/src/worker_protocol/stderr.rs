//! What a daemon says before it answers: messages, activities and their results, questions for data, and at last
//! [`StderrMessage::Last`] or [`StderrMessage::Error`]. Named after where a `nix` without daemon would print it.

use bstr::BString;
use tokio::io::AsyncRead;

use super::handshake::ProtocolVersion;
use super::wire::{
    TEXT_BYTES_MAX, WireError, put_bytes, put_u64, read_bytes, read_count, read_string, read_text, read_u64,
};

const NEXT: u64 = 0x6f6c_6d67;
const READ: u64 = 0x6461_7461;
const WRITE: u64 = 0x6461_7416;
const LAST: u64 = 0x616c_7473;
/// The tag of an error, which may also stand in the middle of an archive that breaks off.
pub(super) const ERROR: u64 = 0x6378_7470;
const START_ACTIVITY: u64 = 0x5354_5254;
const STOP_ACTIVITY: u64 = 0x5354_4f50;
const RESULT: u64 = 0x5253_4c54;

/// Activity type of a build: its fields are the derivation, the machine, the round and the number of rounds.
pub const ACTIVITY_BUILD: u64 = 105;

const RESULT_BUILD_LOG_LINE: u64 = 101;
const RESULT_SET_PHASE: u64 = 104;
const RESULT_PROGRESS: u64 = 105;
const RESULT_SET_EXPECTED: u64 = 106;
const RESULT_POST_BUILD_LOG_LINE: u64 = 107;

/// Fields of one activity or result that are read at most.
const FIELDS_MAX: u64 = 1024;

/// Everything that can come before an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StderrMessage {
    /// Something to log.
    Log(LogMessage),
    /// The daemon wants at most this many bytes of the data that the operation sends (before 1.23 only).
    Read(u64),
    /// The daemon sends bytes out of turn (operations of old only).
    Write(Vec<u8>),
    /// The operation failed; no answer follows.
    Error(DaemonError),
    /// The answer follows.
    Last,
}

/// Something to log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogMessage {
    /// A plain message, usually a line with its line feed, perhaps with terminal colours.
    Text(String),
    /// Something long begins.
    Start(ActivityStart),
    /// Something long is over.
    Stop {
        /// Which activity.
        id: u64,
    },
    /// News of something long.
    Result {
        /// Which activity.
        id: u64,
        /// The news.
        result: ActivityResult,
    },
}

/// Something long begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ActivityStart {
    /// Its number, unique within the daemon.
    pub id: u64,
    /// 0 error, 1 warning, 2 notice, 3 info, 4 talkative, 5 chatty, 6 debug, 7 vomit.
    pub level: u64,
    /// What is done, for instance [`ACTIVITY_BUILD`].
    pub activity_type: u64,
    /// A sentence for people; may be empty.
    pub text: String,
    /// Details that depend on the type.
    pub fields: Vec<Field>,
    /// The activity that this one is part of, or 0.
    pub parent: u64,
}

/// News of an activity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ActivityResult {
    /// One line that the builder printed, without its line feed.
    BuildLogLine(BString),
    /// The builder entered a phase.
    SetPhase(BString),
    /// How far it is.
    Progress {
        /// Finished.
        done: u64,
        /// To be done in all.
        expected: u64,
        /// Going on now.
        running: u64,
        /// Failed.
        failed: u64,
    },
    /// How much of something is to be expected.
    SetExpected {
        /// Type of the activities.
        activity_type: u64,
        /// How many, or how many bytes.
        expected: u64,
    },
    /// One line that the hook after the build printed.
    PostBuildLogLine(BString),
    /// Anything else.
    Other {
        /// The type of the result.
        result_type: u64,
        /// Its details.
        fields: Vec<Field>,
    },
}

/// A detail of an activity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Field {
    /// A number.
    Number(u64),
    /// A string of any bytes.
    Text(BString),
}

/// The daemon's reason why an operation failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the daemon says: {}", self.plain_message())]
pub struct DaemonError {
    /// As the daemon wrote it: several lines, terminal colours.
    pub message: String,
    /// 0 for an error, as in [`ActivityStart::level`].
    pub level: u64,
    /// Where the error came from, innermost last; told since 1.26.
    pub traces: Vec<String>,
    /// What `nix` should exit with; told before 1.26.
    pub exit_status: Option<u64>,
}

impl DaemonError {
    /// The message without terminal colours.
    pub fn plain_message(&self) -> String {
        strip_ansi(&self.message)
    }
}

impl LogMessage {
    /// The line, when this is a line that a builder printed.
    pub fn build_log_line(&self) -> Option<&[u8]> {
        match self {
            Self::Result { result: ActivityResult::BuildLogLine(line), .. } => Some(line),
            _ => None,
        }
    }
}

/// Reads the next message.
pub async fn read_message<R: AsyncRead + Unpin>(
    reader: &mut R,
    version: ProtocolVersion,
) -> Result<StderrMessage, WireError> {
    Ok(match read_u64(reader).await? {
        LAST => StderrMessage::Last,
        NEXT => StderrMessage::Log(LogMessage::Text(read_text(reader, "a message").await?)),
        READ => StderrMessage::Read(read_u64(reader).await?),
        WRITE => StderrMessage::Write(read_bytes(reader, "data out of turn", TEXT_BYTES_MAX).await?),
        ERROR => StderrMessage::Error(read_error(reader, version).await?),
        START_ACTIVITY => StderrMessage::Log(LogMessage::Start(ActivityStart {
            id: read_u64(reader).await?,
            level: read_u64(reader).await?,
            activity_type: read_u64(reader).await?,
            text: read_text(reader, "an activity").await?,
            fields: read_fields(reader).await?,
            parent: read_u64(reader).await?,
        })),
        STOP_ACTIVITY => StderrMessage::Log(LogMessage::Stop { id: read_u64(reader).await? }),
        RESULT => {
            let id = read_u64(reader).await?;
            let result_type = read_u64(reader).await?;
            let fields = read_fields(reader).await?;
            StderrMessage::Log(LogMessage::Result { id, result: ActivityResult::from_fields(result_type, fields) })
        }
        other => return Err(WireError::bad_value("a message of the daemon", format_args!("{other:#x}"))),
    })
}

/// Reads what follows the tag of an error.
pub(super) async fn read_error<R: AsyncRead + Unpin>(
    reader: &mut R,
    version: ProtocolVersion,
) -> Result<DaemonError, WireError> {
    if version.minor < 26 {
        let message = read_text(reader, "an error message").await?;
        let exit_status = Some(read_u64(reader).await?);
        return Ok(DaemonError { message, level: 0, traces: Vec::new(), exit_status });
    }
    let kind = read_string(reader, "the type of an error").await?;
    if kind != "Error" {
        return Err(WireError::bad_value("the type of an error", kind));
    }
    let level = read_u64(reader).await?;
    read_string(reader, "the name of an error").await?; // obsolete
    let message = read_text(reader, "an error message").await?;
    no_position(read_u64(reader).await?)?;
    let mut traces = Vec::new();
    for _ in 0..read_count(reader, "the traces of an error").await? {
        no_position(read_u64(reader).await?)?;
        traces.push(read_text(reader, "the trace of an error").await?);
    }
    Ok(DaemonError { message, level, traces, exit_status: None })
}

/// Source positions were planned and never sent: their layout does not exist.
fn no_position(have_position: u64) -> Result<(), WireError> {
    if have_position == 0 { Ok(()) } else { Err(WireError::bad_value("the position of an error", have_position)) }
}

async fn read_fields<R: AsyncRead + Unpin>(reader: &mut R) -> Result<Vec<Field>, WireError> {
    let what = "the fields of an activity";
    let length = read_u64(reader).await?;
    if length > FIELDS_MAX {
        return Err(WireError::TooLong { what, length, max: FIELDS_MAX });
    }
    let mut fields = Vec::new();
    for _ in 0..length {
        fields.push(match read_u64(reader).await? {
            0 => Field::Number(read_u64(reader).await?),
            1 => Field::Text(read_bytes(reader, what, TEXT_BYTES_MAX).await?.into()),
            other => return Err(WireError::bad_value("the type of a field", other)),
        });
    }
    Ok(fields)
}

/// Appends a message in the layout of `version`; the daemon's half of [`read_message`].
pub fn put_message(buffer: &mut Vec<u8>, version: ProtocolVersion, message: &StderrMessage) {
    match message {
        StderrMessage::Last => put_u64(buffer, LAST),
        StderrMessage::Read(length) => {
            put_u64(buffer, READ);
            put_u64(buffer, *length);
        }
        StderrMessage::Write(bytes) => {
            put_u64(buffer, WRITE);
            put_bytes(buffer, bytes);
        }
        StderrMessage::Error(error) => put_error(buffer, version, error),
        StderrMessage::Log(LogMessage::Text(text)) => {
            put_u64(buffer, NEXT);
            put_bytes(buffer, text);
        }
        StderrMessage::Log(LogMessage::Start(start)) => {
            put_u64(buffer, START_ACTIVITY);
            put_u64(buffer, start.id);
            put_u64(buffer, start.level);
            put_u64(buffer, start.activity_type);
            put_bytes(buffer, &start.text);
            put_fields(buffer, &start.fields);
            put_u64(buffer, start.parent);
        }
        StderrMessage::Log(LogMessage::Stop { id }) => {
            put_u64(buffer, STOP_ACTIVITY);
            put_u64(buffer, *id);
        }
        StderrMessage::Log(LogMessage::Result { id, result }) => {
            put_u64(buffer, RESULT);
            put_u64(buffer, *id);
            let (result_type, fields) = result.to_fields();
            put_u64(buffer, result_type);
            put_fields(buffer, &fields);
        }
    }
}

fn put_error(buffer: &mut Vec<u8>, version: ProtocolVersion, error: &DaemonError) {
    put_u64(buffer, ERROR);
    if version.minor < 26 {
        put_bytes(buffer, &error.message);
        put_u64(buffer, error.exit_status.unwrap_or(1));
        return;
    }
    put_bytes(buffer, "Error");
    put_u64(buffer, error.level);
    put_bytes(buffer, "Error");
    put_bytes(buffer, &error.message);
    put_u64(buffer, 0);
    put_u64(buffer, error.traces.len() as u64);
    for trace in &error.traces {
        put_u64(buffer, 0);
        put_bytes(buffer, trace);
    }
}

fn put_fields(buffer: &mut Vec<u8>, fields: &[Field]) {
    put_u64(buffer, fields.len() as u64);
    for field in fields {
        match field {
            Field::Number(number) => {
                put_u64(buffer, 0);
                put_u64(buffer, *number);
            }
            Field::Text(text) => {
                put_u64(buffer, 1);
                put_bytes(buffer, text);
            }
        }
    }
}

impl ActivityResult {
    fn from_fields(result_type: u64, fields: Vec<Field>) -> Self {
        match (result_type, fields.as_slice()) {
            (RESULT_BUILD_LOG_LINE, [Field::Text(line)]) => Self::BuildLogLine(line.clone()),
            (RESULT_POST_BUILD_LOG_LINE, [Field::Text(line)]) => Self::PostBuildLogLine(line.clone()),
            (RESULT_SET_PHASE, [Field::Text(phase)]) => Self::SetPhase(phase.clone()),
            (
                RESULT_PROGRESS,
                &[Field::Number(done), Field::Number(expected), Field::Number(running), Field::Number(failed)],
            ) => Self::Progress { done, expected, running, failed },
            (RESULT_SET_EXPECTED, &[Field::Number(activity_type), Field::Number(expected)]) => {
                Self::SetExpected { activity_type, expected }
            }
            _ => Self::Other { result_type, fields },
        }
    }

    fn to_fields(&self) -> (u64, Vec<Field>) {
        match self {
            Self::BuildLogLine(line) => (RESULT_BUILD_LOG_LINE, vec![Field::Text(line.clone())]),
            Self::PostBuildLogLine(line) => (RESULT_POST_BUILD_LOG_LINE, vec![Field::Text(line.clone())]),
            Self::SetPhase(phase) => (RESULT_SET_PHASE, vec![Field::Text(phase.clone())]),
            Self::Progress { done, expected, running, failed } => {
                (RESULT_PROGRESS, [*done, *expected, *running, *failed].map(Field::Number).to_vec())
            }
            Self::SetExpected { activity_type, expected } => {
                (RESULT_SET_EXPECTED, [*activity_type, *expected].map(Field::Number).to_vec())
            }
            Self::Other { result_type, fields } => (*result_type, fields.clone()),
        }
    }
}

/// Takes terminal control sequences (ECMA-48: `ESC [ … letter`, `ESC ] … BEL`, `ESC x`) out of a text.
pub fn strip_ansi(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        if character != '\u{1b}' {
            plain.push(character);
            continue;
        }
        match characters.next() {
            // Parameters, then one final character.
            Some('[') => while characters.next().is_some_and(|c| !('@'..='~').contains(&c)) {},
            // A command of the operating system, up to BEL or ESC \.
            Some(']') => {
                let mut previous = ']';
                for c in characters.by_ref() {
                    if c == '\u{7}' || (previous == '\u{1b}' && c == '\\') {
                        break;
                    }
                    previous = c;
                }
            }
            _ => {}
        }
    }
    plain
}
