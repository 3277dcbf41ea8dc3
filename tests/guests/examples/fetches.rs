//! Asks for a URL and answers status and body, or the error.

use harmonia_plugin::http::Request;

harmonia_test_guests::guest!(|argument| {
    Ok(match Request::get(argument).send() {
        Ok(answer) => format!("{} {}", answer.status, answer.text()),
        Err(error) => format!("{error:?}"),
    })
});
