//! What a client is told while its request is worked on. Start at [`LogQueue::push`].

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use harmonia_nix::worker_protocol::{ActivityResult, Field, LogMessage};
use tokio::sync::Notify;

use crate::schedule::Log;

/// Bytes that wait for a client who does not read; further lines of builders are left out then.
const WAITING_BYTES_MAX: usize = 8 << 20;

/// Messages on their way to the client.
#[derive(Debug, Default)]
pub(super) struct LogQueue {
    state: Mutex<State>,
    filled: Notify,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<LogMessage>,
    waiting_bytes: usize,
    left_out: u64,
}

impl LogQueue {
    /// What the scheduler and the store write into.
    pub(super) fn log(self: &Arc<Self>, verbosity: u64) -> Log {
        let queue = Arc::clone(self);
        Log::new(verbosity, Arc::new(move |message| queue.push(message)))
    }

    /// Adds a message. Never waits: see [`WAITING_BYTES_MAX`].
    pub(super) fn push(&self, message: LogMessage) {
        let mut state = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let bytes = size(&message);
        let is_line = matches!(
            message,
            LogMessage::Text(_)
                | LogMessage::Result {
                    result: ActivityResult::BuildLogLine(_) | ActivityResult::PostBuildLogLine(_),
                    ..
                }
        );
        if is_line && state.waiting_bytes + bytes > WAITING_BYTES_MAX {
            state.left_out += 1;
            return;
        }
        state.waiting_bytes += bytes;
        state.waiting.push_back(message);
        self.filled.notify_one();
    }

    /// Waits for messages and takes all of them.
    pub(super) async fn take(&self) -> Vec<LogMessage> {
        loop {
            let waiting = self.take_now();
            if !waiting.is_empty() {
                return waiting;
            }
            self.filled.notified().await;
        }
    }

    /// Those that are there.
    pub(super) fn take_now(&self) -> Vec<LogMessage> {
        let mut state = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let left_out = std::mem::take(&mut state.left_out);
        state.waiting_bytes = 0;
        let mut taken: Vec<LogMessage> = std::mem::take(&mut state.waiting).into();
        if left_out > 0 {
            let text =
                format!("{left_out} lines were left out, as they were not read in time; the build log has them\n");
            taken.push(LogMessage::Text(text));
        }
        taken
    }
}

fn size(message: &LogMessage) -> usize {
    const FIXED: usize = 64;
    FIXED
        + match message {
            LogMessage::Text(text) => text.len(),
            LogMessage::Start(start) => start.text.len() + start.fields.iter().map(field_size).sum::<usize>(),
            LogMessage::Stop { .. } => 0,
            LogMessage::Result { result, .. } => match result {
                ActivityResult::BuildLogLine(line)
                | ActivityResult::PostBuildLogLine(line)
                | ActivityResult::SetPhase(line) => line.len(),
                ActivityResult::Progress { .. } | ActivityResult::SetExpected { .. } => 0,
                ActivityResult::Other { fields, .. } => fields.iter().map(field_size).sum(),
            },
        }
}

fn field_size(field: &Field) -> usize {
    match field {
        Field::Number(_) => 8,
        Field::Text(text) => text.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> LogMessage {
        LogMessage::Result { id: 1, result: ActivityResult::BuildLogLine(text.into()) }
    }

    #[tokio::test]
    async fn a_client_that_does_not_read_costs_bounded_memory_and_is_told() {
        let queue = LogQueue::default();
        let long = "x".repeat(1 << 20);
        for _ in 0..20 {
            queue.push(line(&long));
        }
        queue.push(LogMessage::Stop { id: 1 });
        let taken = queue.take().await;
        let bytes: usize = taken.iter().map(size).sum();
        assert!(bytes <= WAITING_BYTES_MAX + 1024, "{bytes}");
        assert_eq!(
            taken.iter().filter(|message| **message == LogMessage::Stop { id: 1 }).count(),
            1,
            "the end is told"
        );
        assert!(
            matches!(taken.last(), Some(LogMessage::Text(text)) if text.starts_with("13 lines")),
            "{:?}",
            taken.len()
        );
        queue.push(line("after"));
        assert_eq!(queue.take().await, [line("after")]);
    }
}
