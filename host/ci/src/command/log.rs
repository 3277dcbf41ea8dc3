//! `log`: prints a build's log, and with `-f` follows it over Server-Sent Events, resuming where it broke off.

use std::io::Write as _;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use harmonia_core::JobId;
use harmonia_core::api::LogEvent;

use super::read::find_build;
use crate::cli::{LogArgs, job_id};
use crate::client::{CallError, Client};
use crate::exit::{Failure, chain};

/// How long `-f` keeps reconnecting to a server that does not answer.
const PATIENCE: Duration = Duration::from_mins(1);
/// Pause before a new connection.
const RECONNECT_AFTER: Duration = Duration::from_millis(500);

/// Prints the log of one job.
pub(crate) async fn run(args: &LogArgs) -> Result<(), Failure> {
    let client = Client::find(&args.server)?;
    let job = match job_id(&args.job) {
        Some(job) => job,
        None => find_build(&client, &args.job).await?.id,
    };
    if args.follow { follow(&client, job).await } else { print(&client, job).await }
}

async fn print(client: &Client, job: JobId) -> Result<(), Failure> {
    let request = client.request(reqwest::Method::GET, &format!("/api/v1/builds/{job}/log"));
    let mut body = client.send(request).await?.bytes_stream();
    while let Some(part) = body.next().await {
        let part = part.map_err(|error| Failure::unreachable(format!("the log broke off: {}", chain(&error))))?;
        write_out(&part)?;
    }
    Ok(())
}

fn write_out(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    out.write_all(bytes)
        .and_then(|()| out.flush())
        .map_err(|error| Failure::failed(format!("could not write to standard output: {error}")))
}

async fn follow(client: &Client, job: JobId) -> Result<(), Failure> {
    let mut last_id: Option<String> = None;
    let mut silent_since = Instant::now();
    loop {
        let mut request = client
            .request(reqwest::Method::GET, &format!("/api/v1/builds/{job}/log"))
            .header("accept", "text/event-stream");
        if let Some(id) = &last_id {
            request = request.header("last-event-id", id);
        }
        match client.send(request).await {
            Ok(answer) => {
                silent_since = Instant::now();
                if read_events(answer, &mut last_id).await? {
                    return Ok(());
                }
            }
            Err(CallError::Unreachable(_) | CallError::Refused { status: 503, .. })
                if silent_since.elapsed() < PATIENCE => {}
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(RECONNECT_AFTER).await;
    }
}

/// Reads one connection to its end; `true` when the build ended.
async fn read_events(answer: reqwest::Response, last_id: &mut Option<String>) -> Result<bool, Failure> {
    let mut body = answer.bytes_stream();
    let mut parser = EventParser::default();
    while let Some(Ok(part)) = body.next().await {
        for event in parser.feed(&part) {
            if let Some(id) = event.id {
                *last_id = Some(id);
            }
            let Ok(parsed) = serde_json::from_str::<LogEvent>(&event.data) else { continue };
            match parsed {
                LogEvent::Log { text } => write_out(text.as_bytes())?,
                LogEvent::Gap { bytes } => {
                    eprintln!("[{bytes} bytes are left out here; they come with the stored log]");
                }
                LogEvent::Attempt { attempt } => eprintln!("[attempt {attempt}]"),
                LogEvent::End { status } => {
                    eprintln!("[{status}]");
                    return Ok(true);
                }
            }
        }
    }
    Ok(false)
}

/// One dispatched event.
struct Event {
    id: Option<String>,
    data: String,
}

/// The line format of Server-Sent Events (WHATWG HTML, 9.2.6), for `id` and `data`.
#[derive(Default)]
struct EventParser {
    buffer: Vec<u8>,
    id: Option<String>,
    data: Vec<String>,
}

impl EventParser {
    fn feed(&mut self, bytes: &[u8]) -> Vec<Event> {
        self.buffer.extend_from_slice(bytes);
        let mut events = Vec::new();
        while let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.buffer.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            let line = line.trim_end_matches(['\n', '\r']);
            if line.is_empty() {
                if !self.data.is_empty() {
                    events.push(Event { id: self.id.take(), data: self.data.join("\n") });
                    self.data.clear();
                }
                continue;
            }
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "data" => self.data.push(value.to_owned()),
                "id" => self.id = Some(value.to_owned()),
                _ => {}
            }
        }
        events
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_arrive_whole_however_they_are_cut() {
        let stream = ": hi\n\nid: 3:10\nevent: log\ndata: {\"a\":\ndata: 1}\n\ndata:x\r\n\r\n";
        for cut in 1..stream.len() {
            let mut parser = EventParser::default();
            let (a, b) = stream.as_bytes().split_at(cut);
            let events: Vec<Event> = parser.feed(a).into_iter().chain(parser.feed(b)).collect();
            assert_eq!(events.len(), 2, "cut at {cut}");
            assert_eq!(events[0].id.as_deref(), Some("3:10"));
            assert_eq!(events[0].data, "{\"a\":\n1}");
            assert_eq!(events[1].data, "x");
        }
    }
}
