//! Live logs: in order, without gaps or repetitions, across reconnects.

use std::time::Duration;

use futures_util::StreamExt as _;
use harmonia_core::api::LogEvent;
use harmonia_core::{AttemptId, JobId, JobStatus};
use reqwest::Method;

use crate::world::{Attempt, Drv, Nar, World};

/// Nothing in these tests may take longer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Events of one connection.
struct Events {
    body: std::pin::Pin<Box<dyn futures_util::Stream<Item = reqwest::Result<bytes::Bytes>> + Send>>,
    kept: String,
}

impl Events {
    async fn open(world: &World, job: JobId, last_id: Option<&str>) -> Self {
        let mut request =
            world.request(Method::GET, &format!("/api/v1/builds/{job}/log")).header("accept", "text/event-stream");
        if let Some(id) = last_id {
            request = request.header("last-event-id", id);
        }
        let response = request.send().await.expect("answered");
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self { body: Box::pin(response.bytes_stream()), kept: String::new() }
    }

    /// Id and data of the next event; `None` at the end.
    async fn next(&mut self) -> Option<(String, LogEvent)> {
        loop {
            if let Some((event, rest)) = self.kept.split_once("\n\n") {
                let (event, rest) = (event.to_owned(), rest.to_owned());
                self.kept = rest;
                let field = |name: &str| {
                    event.lines().find_map(|line| line.strip_prefix(name)).map(|text| text.trim().to_owned())
                };
                if let Some(data) = field("data:") {
                    let parsed: LogEvent = serde_json::from_str(&data).expect("a LogEvent");
                    let named = serde_json::from_str::<serde_json::Value>(&data).expect("JSON")["event"].clone();
                    assert_eq!(Some(named.as_str().expect("text")), field("event:").as_deref());
                    return Some((field("id:").unwrap_or_default(), parsed));
                }
                continue;
            }
            let piece = tokio::time::timeout(PATIENCE, self.body.next()).await.expect("an event in time")?;
            self.kept.push_str(&String::from_utf8_lossy(&piece.expect("a piece")));
        }
    }

    /// Reads until this much text came, and gives it with the last id.
    async fn text(&mut self, length: usize) -> (String, String) {
        let (mut text, mut last) = (String::new(), String::new());
        while text.len() < length {
            let (id, event) = self.next().await.expect("more events");
            match event {
                LogEvent::Log { text: more } => text.push_str(&more),
                LogEvent::Attempt { .. } => {}
                other => panic!("{other:?} after {text:?}"),
            }
            last = id;
        }
        (text, last)
    }
}

async fn running(world: &World, name: &str) -> (Drv, Attempt) {
    let drv = Drv::new(name, &[]);
    world.evaluate(&[&drv]).await;
    let attempt = world.claim(&drv).await;
    (drv, attempt)
}

fn attempt_of(event: Option<(String, LogEvent)>) -> AttemptId {
    match event {
        Some((_, LogEvent::Attempt { attempt })) => attempt,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_log_is_followed_to_its_end() {
    let world = World::start().await;
    let (drv, attempt) = running(&world, "thing").await;
    let mut events = Events::open(&world, attempt.job, None).await;
    assert_eq!(attempt_of(events.next().await), attempt.id);
    world.tail(&attempt, 0, b"one\n").await;
    assert_eq!(events.text(4).await, ("one\n".to_owned(), format!("{}:4", attempt.id)));
    // A character in two halves comes as one.
    world.tail(&attempt, 0, "one\ntwo é".as_bytes().split_last().expect("bytes").1).await;
    assert_eq!(events.text(4).await.0, "two ");
    world.tail(&attempt, 0, "one\ntwo é\n".as_bytes()).await;
    assert_eq!(events.text(3).await, ("é\n".to_owned(), format!("{}:11", attempt.id)));
    let log = "one\ntwo é\nthe rest that no tail ever had\n";
    world.complete(&attempt, &drv, &Nar::file(b"x"), &[], log).await;
    let rest = &log[11..];
    assert_eq!(events.text(rest.len()).await.0, rest);
    assert_eq!(events.next().await.map(|event| event.1), Some(LogEvent::End { status: JobStatus::Succeeded }));
    assert_eq!(events.next().await, None, "the stream closes");

    // Who comes afterwards gets all of it, from the store.
    let mut later = Events::open(&world, attempt.job, None).await;
    assert_eq!(later.text(log.len()).await.0, log);
    assert!(matches!(later.next().await, Some((_, LogEvent::End { .. }))));
    // And who was cut off gets the rest, no byte twice.
    let mut resumed = Events::open(&world, attempt.job, Some(&format!("{}:4", attempt.id))).await;
    assert_eq!(resumed.text(log.len() - 4).await.0, &log[4..]);
    let mut at_end = Events::open(&world, attempt.job, Some(&format!("{}:{}", attempt.id, log.len()))).await;
    assert!(matches!(at_end.next().await, Some((_, LogEvent::End { .. }))));
    world.stop().await;
}

#[tokio::test]
async fn reconnecting_while_it_runs_repeats_nothing() {
    let world = World::start().await;
    let (_, attempt) = running(&world, "thing").await;
    let mut log = String::new();
    let mut received = String::new();
    let mut last: Option<String> = None;
    for round in 0..6 {
        let mut events = Events::open(&world, attempt.job, last.as_deref()).await;
        let more = (0..40).fold(String::new(), |text, line| text + &format!("round {round} line {line} ä\n"));
        log.push_str(&more);
        world.tail(&attempt, 0, log.as_bytes()).await;
        let (text, id) = events.text(more.len()).await;
        received.push_str(&text);
        last = Some(id);
    }
    assert_eq!(received, log);
    world.stop().await;
}

#[tokio::test]
async fn what_the_tail_lost_comes_from_the_spool_or_is_a_gap() {
    let world = World::start().await;
    let (_, attempt) = running(&world, "thing").await;
    let log = (0..9_000).fold(String::new(), |text, line| text + &format!("line {line}\n"));
    let start = log.len() - 1_000;
    world.tail(&attempt, start as u64, &log.as_bytes()[start..]).await;
    let mut events = Events::open(&world, attempt.job, None).await;
    assert_eq!(attempt_of(events.next().await), attempt.id);
    let gap = events.next().await.expect("an event");
    assert_eq!(gap, (format!("{}:{start}", attempt.id), LogEvent::Gap { bytes: start as u64 }));
    assert_eq!(events.text(1_000).await.0, &log[start..]);
    let text = world.text(&format!("/api/v1/builds/{}/log", attempt.job)).await;
    assert!(text.starts_with(&format!("[{start} bytes come with")) && text.ends_with(&log[start..]), "{}", &text[..80]);

    world.spool.0.lock().expect("lock").insert(attempt.id, log.clone().into_bytes());
    let mut events = Events::open(&world, attempt.job, None).await;
    assert_eq!(events.text(log.len()).await.0, log);
    let mut resumed = Events::open(&world, attempt.job, Some(&format!("{}:5", attempt.id))).await;
    assert_eq!(resumed.text(log.len() - 5).await.0, &log[5..]);
    assert_eq!(world.text(&format!("/api/v1/builds/{}/log", attempt.job)).await, log);
    world.stop().await;
}

#[tokio::test]
async fn a_new_attempt_begins_again_at_nothing() {
    let world = World::start().await;
    let (drv, first) = running(&world, "thing").await;
    world.tail(&first, 0, b"first\n").await;
    let mut events = Events::open(&world, first.job, Some("not an id")).await;
    let (text, last) = events.text(6).await;
    assert_eq!(text, "first\n");
    world.db().release_attempt(first.id, &first.token, "shut down").await.expect("released");
    let second = world.claim(&drv).await;
    world.tail(&second, 0, b"second\n").await;
    assert_eq!(attempt_of(events.next().await), second.id);
    assert_eq!(events.text(7).await.0, "second\n");
    let mut resumed = Events::open(&world, first.job, Some(&last)).await;
    assert_eq!(attempt_of(resumed.next().await), second.id);
    assert_eq!(resumed.text(7).await.0, "second\n");
    world.stop().await;
}

#[tokio::test]
async fn many_watchers_share_one_query_and_leave_nothing_behind() {
    let world = World::start().await;
    let (_, attempt) = running(&world, "thing").await;
    let mut watchers = Vec::new();
    for _ in 0..50 {
        watchers.push(Events::open(&world, attempt.job, None).await);
    }
    world.tail(&attempt, 0, b"hello\n").await;
    for watcher in &mut watchers {
        assert_eq!(watcher.text(6).await.0, "hello\n");
    }
    drop(watchers);
    let absent = world.request(Method::GET, "/api/v1/builds/999999/log").header("accept", "text/event-stream");
    assert_eq!(absent.send().await.expect("answered").status().as_u16(), 404);
    world.stop().await;
}

#[tokio::test]
async fn stopping_the_server_ends_streams() {
    let world = World::start().await;
    let (_, attempt) = running(&world, "thing").await;
    let mut events = Events::open(&world, attempt.job, None).await;
    attempt_of(events.next().await);
    world.shutdown.cancel();
    assert_eq!(events.next().await, None);
    world.stop().await;
}
