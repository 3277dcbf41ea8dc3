//! Reads the number under a key and writes the next one, only if nobody else wrote in between.

use harmonia_plugin::kv::{self, Condition};

harmonia_test_guests::guest!(|argument| {
    let found = kv::get(argument)?;
    let count: u32 = found.as_ref().and_then(|entry| String::from_utf8_lossy(&entry.value).parse().ok()).unwrap_or(0);
    let condition = found.map_or(Condition::Absent, |entry| Condition::Version(entry.version));
    kv::set(argument, (count + 1).to_string().as_bytes(), None, condition)?;
    Ok((count + 1).to_string())
});
