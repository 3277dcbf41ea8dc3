//! Writes key after key.

use harmonia_plugin::kv::{self, Condition};

harmonia_test_guests::guest!(|_| {
    for count in 0_u32.. {
        if let Err(error) = kv::set(&format!("key {count}"), b"x", Some(60), Condition::Always) {
            return Ok(format!("{count} {error:?}"));
        }
    }
    Ok(String::new())
});
