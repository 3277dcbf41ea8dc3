//! Asks for a URL again and again: bounded by requests and by time, not by computing.

use harmonia_plugin::http::Request;

harmonia_test_guests::guest!(|argument| {
    for count in 0_u32.. {
        if let Err(error) = Request::get(argument).send() {
            return Ok(format!("{count} {error:?}"));
        }
    }
    Ok(String::new())
});
