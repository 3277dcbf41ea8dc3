//! Logs as many lines as it is asked for, each too long and with line breaks and escapes in it.

use harmonia_plugin::log;

harmonia_test_guests::guest!(|argument| {
    let line = format!("\u{1b}[31mfake\nline {}", "x".repeat(10_000));
    for _ in 0..argument.parse().unwrap_or(0_u64) {
        log::error(&line);
    }
    Ok(String::new())
});
