use std::io;
use std::sync::Arc;

use tracing_subscriber::fmt::MakeWriter;

use super::*;
use crate::capabilities::testing::{Plan, World};

/// What was logged, line by line.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("not poisoned").extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Self;
    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// Runs with a subscriber of its own and gives the lines.
fn logged(run: impl FnOnce()) -> Vec<String> {
    let lines = Lines::default();
    let subscriber = tracing_subscriber::fmt()
        .with_writer(lines.clone())
        .with_max_level(tracing::Level::DEBUG)
        .with_ansi(false)
        .without_time()
        .finish();
    tracing::subscriber::with_default(subscriber, run);
    let bytes = lines.0.lock().expect("not poisoned").clone();
    String::from_utf8(bytes).expect("text").lines().map(str::to_owned).collect()
}

fn log_lines(world: &World, count: u32) {
    let mut call = world.call();
    for number in 0..count {
        call.log(Level::Info, &format!("line {number}"));
    }
}

#[test]
fn a_line_has_level_and_plugin() {
    let world = Plan::default().world();
    let lines = logged(|| {
        let mut call = world.call();
        for level in [Level::Debug, Level::Info, Level::Warn, Level::Error] {
            call.log(level, "hello");
        }
    });
    assert_eq!(lines.len(), 4);
    for (line, level) in lines.iter().zip(["DEBUG", "INFO", "WARN", "ERROR"]) {
        assert!(line.contains(level) && line.contains("hello") && line.contains("plugin=\"test-forge\""), "{line}");
    }
}

#[test]
fn a_line_cannot_forge_another_or_move_the_cursor() {
    let world = Plan::default().world();
    let lines = logged(|| world.call().log(Level::Info, "a\nERROR forged\r\u{1b}[2Jb\u{202e}c\u{2028}d\0\te é"));
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].contains(r"a\nERROR forged\r\u{1b}[2Jb\u{202e}c\u{2028}d\u{0}\te é"), "{}", lines[0]);
}

#[test]
fn a_long_line_is_cut_and_marked() {
    let world = Plan::default().secret("key", "hidden-secret").world();
    let lines = logged(|| {
        let mut call = world.call();
        call.open_secret("key").expect("opened");
        call.log(Level::Info, &"é".repeat(3000));
        call.log(Level::Info, &format!("{}hidden-secret", "x".repeat(4000)));
        call.log(Level::Info, &"y".repeat(1 << 20));
        call.log(Level::Info, &"z".repeat(4096));
    });
    assert!(lines[0].contains(CUT) && lines[0].len() < 4200, "{}", lines[0].len());
    assert!(lines[1].contains("x[secret]") && !lines[1].contains(CUT), "{}", lines[1]);
    assert!(lines[2].contains(CUT) && lines[2].len() < 4200);
    assert!(!lines[3].contains(CUT), "it just fits");
}

#[test]
fn a_call_writes_so_many_lines_and_the_rest_is_counted() {
    let world = Plan::default().world();
    let lines = logged(|| log_lines(&world, 250));
    assert_eq!(lines.len(), 201);
    assert!(lines[199].contains("line 199") && lines[200].contains("dropped=50"), "{}", lines[200]);
    assert!(lines[200].contains("limits.log_lines_per_call"));
}

#[test]
fn all_calls_together_write_so_many_lines_a_minute() {
    let world = Plan::default().limits(|limits| limits.log_lines_per_minute = 300).world();
    let lines = logged(|| {
        for _ in 0..5 {
            log_lines(&world, 100);
        }
    });
    assert_eq!(lines.len(), 300);
    world.clock.advance(Duration::from_secs(59));
    assert_eq!(logged(|| log_lines(&world, 1)).len(), 0);
    world.clock.advance(Duration::from_secs(1));
    let lines = logged(|| log_lines(&world, 2));
    assert_eq!(lines.len(), 3);
    assert!(lines[0].contains("dropped=201") && lines[0].contains("log_lines_per_minute"), "{}", lines[0]);
}

#[test]
fn the_last_words_are_those_of_the_last_error_without_secrets_and_cut() {
    let world = Plan::default().secret("key", "hidden-secret").world();
    let mut call = world.call();
    assert_eq!(call.last_words(), None);
    call.log(Level::Error, "the first");
    call.log(Level::Error, "panicked with\nhidden-secret");
    call.log(Level::Info, "no matter");
    assert_eq!(call.last_words().as_deref(), Some(r"panicked with\nhidden-secret"));
    // Whatever is known to be secret when they are shown.
    call.open_secret("key").expect("opened");
    assert_eq!(call.last_words().as_deref(), Some(r"panicked with\n[secret]"));
    for _ in 0..300 {
        call.log(Level::Error, &"é".repeat(100_000));
    }
    let words = call.last_words().expect("also of a line that was dropped");
    assert!(words.ends_with(CUT) && words.len() <= LAST_WORDS_BYTES_MAX, "{}", words.len());
}
