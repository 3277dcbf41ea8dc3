//! What is logged on the thread of a test. Start at [`Log::capture`].

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::field::{Field, Visit};
use tracing::subscriber::DefaultGuard;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};

/// One event.
#[derive(Debug, Clone)]
pub struct Line {
    /// Its level.
    pub level: Level,
    /// `plugin` for what plugins wrote.
    pub target: String,
    /// Its text, as it was logged.
    pub message: String,
    /// Field `plugin`.
    pub plugin: String,
    /// Field `dropped`.
    pub dropped: u64,
    /// All other fields.
    pub others: String,
}

/// Everything that is logged on this thread while it lives.
pub struct Log {
    lines: Arc<Mutex<Vec<Line>>>,
    _guard: DefaultGuard,
}

impl Log {
    /// Starts to capture.
    pub fn capture() -> Self {
        let lines = Arc::new(Mutex::default());
        let subscriber = tracing_subscriber::registry().with(Capture(Arc::clone(&lines)));
        Self { lines, _guard: tracing::subscriber::set_default(subscriber) }
    }

    /// What was logged so far.
    pub fn lines(&self) -> Vec<Line> {
        lock(&self.lines).clone()
    }

    /// What this plugin itself wrote.
    pub fn written_by(&self, plugin: &str) -> Vec<Line> {
        self.lines()
            .into_iter()
            .filter(|line| line.target == "plugin" && line.plugin == plugin && line.dropped == 0)
            .collect()
    }

    /// Everything as one text.
    pub fn text(&self) -> String {
        self.lines().iter().map(|line| format!("{line:?}")).collect::<Vec<_>>().join("\n")
    }
}

fn lock(lines: &Mutex<Vec<Line>>) -> MutexGuard<'_, Vec<Line>> {
    lines.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Capture(Arc<Mutex<Vec<Line>>>);

impl<S: Subscriber> Layer<S> for Capture {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        let mut line = Line {
            level: *metadata.level(),
            target: metadata.target().to_owned(),
            message: String::new(),
            plugin: String::new(),
            dropped: 0,
            others: String::new(),
        };
        event.record(&mut line);
        lock(&self.0).push(line);
    }
}

impl Visit for Line {
    fn record_u64(&mut self, field: &Field, value: u64) {
        if field.name() == "dropped" {
            self.dropped = value;
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        use fmt::Write as _;
        let text = format!("{value:?}");
        match field.name() {
            "message" => self.message = text,
            "plugin" => text.trim_matches('"').clone_into(&mut self.plugin),
            // Writing into a string does not fail.
            name => drop(write!(self.others, "{name}={text} ")),
        }
    }
}
