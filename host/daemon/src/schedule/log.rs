//! What a client is told while its request is worked on. Start at [`Log`].

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bstr::BString;
use harmonia_nix::worker_protocol::{ActivityResult, ActivityStart, Field, LogMessage};

/// Levels of messages.
pub const ERROR: u64 = 0;
/// Something to worry about.
pub const WARN: u64 = 1;
/// What everybody sees.
pub const INFO: u64 = 3;
/// What is seen with `-v`.
pub const TALKATIVE: u64 = 4;

const COPY_PATH: u64 = 100;
const BUILD_WAITING: u64 = 111;
const SUBSTITUTE: u64 = 108;
const POST_BUILD_HOOK: u64 = 110;
const BUILD: u64 = harmonia_nix::worker_protocol::stderr::ACTIVITY_BUILD;
const REALISE: u64 = 102;

static NEXT_ACTIVITY: AtomicU64 = AtomicU64::new(1);

/// Takes messages to the client. Cheap to clone.
#[derive(Clone)]
pub struct Log {
    sink: Arc<dyn Fn(LogMessage) + Send + Sync>,
    verbosity: u64,
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log").field("verbosity", &self.verbosity).finish_non_exhaustive()
    }
}

impl Log {
    /// Messages go to `sink`, those above `verbosity` (0 to 7) nowhere.
    pub fn new(verbosity: u64, sink: Arc<dyn Fn(LogMessage) + Send + Sync>) -> Self {
        Self { sink, verbosity }
    }

    /// Nobody listens.
    pub fn none() -> Self {
        Self::new(0, Arc::new(|_| ()))
    }

    /// How much the client wants to hear.
    pub fn verbosity(&self) -> u64 {
        self.verbosity
    }

    /// An error that does not end the request by itself.
    pub fn error(&self, text: &str) {
        self.text(ERROR, &format!("\u{1b}[31;1merror:\u{1b}[0m {text}"));
    }

    /// Something to worry about.
    pub fn warn(&self, text: &str) {
        self.text(WARN, &format!("\u{1b}[35;1mwarning:\u{1b}[0m {text}"));
    }

    /// A message as it is.
    pub fn text(&self, level: u64, text: &str) {
        if level <= self.verbosity {
            (self.sink)(LogMessage::Text(format!("{text}\n")));
        }
    }

    /// The request as a whole: what others are part of.
    pub fn realise(&self) -> Activity {
        self.start(ERROR, REALISE, String::new(), Vec::new(), 0)
    }

    /// A build begins.
    pub fn build(&self, parent: &Activity, text: String, drv_path: &str) -> Activity {
        let fields = vec![text_field(drv_path), text_field(""), Field::Number(1), Field::Number(1)];
        self.start(INFO, BUILD, text, fields, parent.id)
    }

    /// A build or its slot has to be waited for.
    pub fn wait(&self, parent: &Activity, text: String) -> Activity {
        self.start(WARN, BUILD_WAITING, text, Vec::new(), parent.id)
    }

    /// A path comes from a cache.
    pub fn substitute(&self, parent: &Activity, path: &str, uri: &str) -> (Activity, Activity) {
        let outer = self.start(ERROR, SUBSTITUTE, String::new(), vec![text_field(path), text_field(uri)], parent.id);
        let fields = vec![text_field(path), text_field(uri), text_field("local")];
        let inner = self.start(INFO, COPY_PATH, format!("copying path '{path}' from '{uri}'"), fields, outer.id);
        (inner, outer)
    }

    /// The hook after a build begins.
    pub fn post_build_hook(&self, parent: &Activity, hook: &str, drv_path: &str) -> Activity {
        let fields = vec![text_field(drv_path)];
        self.start(INFO, POST_BUILD_HOOK, format!("running post-build-hook '{hook}'"), fields, parent.id)
    }

    fn start(&self, level: u64, activity_type: u64, text: String, fields: Vec<Field>, parent: u64) -> Activity {
        let id = NEXT_ACTIVITY.fetch_add(1, Ordering::Relaxed);
        (self.sink)(LogMessage::Start(ActivityStart { id, level, activity_type, text, fields, parent }));
        Activity { log: self.clone(), id }
    }
}

fn text_field(text: &str) -> Field {
    Field::Text(BString::from(text))
}

/// Something long, until it is dropped.
#[derive(Debug)]
pub struct Activity {
    log: Log,
    id: u64,
}

impl Activity {
    /// A line that the builder printed.
    pub fn build_line(&self, line: &[u8]) {
        self.result(ActivityResult::BuildLogLine(line.into()));
    }

    /// A line that the hook after the build printed.
    pub fn hook_line(&self, line: &[u8]) {
        self.result(ActivityResult::PostBuildLogLine(line.into()));
    }

    /// The phase that the builder is in.
    pub fn phase(&self, phase: &[u8]) {
        self.result(ActivityResult::SetPhase(phase.into()));
    }

    /// How far it is.
    pub fn progress(&self, done: u64, expected: u64) {
        self.result(ActivityResult::Progress { done, expected, running: 0, failed: 0 });
    }

    /// Who listens.
    pub fn log(&self) -> &Log {
        &self.log
    }

    fn result(&self, result: ActivityResult) {
        (self.log.sink)(LogMessage::Result { id: self.id, result });
    }
}

impl Drop for Activity {
    fn drop(&mut self) {
        (self.log.sink)(LogMessage::Stop { id: self.id });
    }
}
