//! A reporter that answers as the event's title says.

use harmonia_plugin::reporter::{Error, Event, Reporter};
use harmonia_plugin::{Description, Plugin};

struct Guest;

impl Plugin for Guest {
    fn describe() -> Description {
        Description::new("guest", "0.0.1", "Answers as it is told.")
    }
}

impl Reporter for Guest {
    fn report(event: Event) -> Result<(), Error> {
        match event.title.split_once(' ') {
            Some(("denied", text)) => Err(Error::Denied(text.to_owned())),
            Some(("invalid", text)) => Err(Error::Invalid(text.to_owned())),
            Some(("unavailable", text)) => Err(Error::Unavailable(text.to_owned())),
            Some(("wait", seconds)) => Err(Error::RetryAfter(seconds.parse().unwrap_or(1))),
            _ => Ok(()),
        }
    }
}

harmonia_plugin::export!(Guest: reporter);
