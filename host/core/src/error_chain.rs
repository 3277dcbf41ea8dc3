//! An error with its causes as one line: [`chain`]. Types keep causes as sources; this is for where they are shown.

use std::error::Error;
use std::fmt::Write as _;

/// `error: cause: cause of the cause`. What an outer message already says is not said again (some libraries format their
/// source into their own text).
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let part = error.to_string();
        if !text.contains(&part) {
            let _ = write!(text, ": {part}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Layer {
        text: &'static str,
        source: Option<Box<Layer>>,
    }

    #[test]
    fn every_cause_is_said_once() {
        let layer = |text, source: Option<Layer>| Layer { text, source: source.map(Box::new) };
        let error = layer("could not open", Some(layer("could not read: denied", Some(layer("denied", None)))));
        assert_eq!(chain(&error), "could not open: could not read: denied");
        assert_eq!(chain(&layer("alone", None)), "alone");
    }
}
