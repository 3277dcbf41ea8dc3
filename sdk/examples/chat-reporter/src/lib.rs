//! A reporter that posts what happened, as JSON, to the webhook of a chat.

use harmonia_plugin::reporter::{Error, Event, Reporter};
use harmonia_plugin::serde_json::Value;
use harmonia_plugin::{Description, Plugin, http, json, secrets, settings};

struct Chat;

impl Plugin for Chat {
    fn describe() -> Description {
        Description::new("chat-reporter", env!("CARGO_PKG_VERSION"), "Posts failures and repairs to a chat's webhook.")
            .required_setting("url", "Where to post.")
            .setting("all", "`true`: post successes too. Without it only failures, and the first success after one.")
            .required_secret("token", "Sent as bearer token.")
    }
}

impl Reporter for Chat {
    fn report(event: Event) -> Result<(), Error> {
        if !event.is_news() && settings::get("all").as_deref() != Some("true") {
            return Ok(());
        }
        let token = secrets::open("token")?;
        http::Request::post(settings::required("url")?)
            .header("idempotency-key", &event.key)
            .bearer(&token)
            .json(&message(&event))
            .fetch()?;
        Ok(())
    }
}

fn message(event: &Event) -> Value {
    let failures = event.failures.iter().map(|failure| format!("• {}: {}", failure.attr, failure.message));
    let lines: Vec<String> = [event.headline()].into_iter().chain(failures).collect();
    json!({ "text": lines.join("\n"), "link": event.url })
}

harmonia_plugin::export!(Chat: reporter);
