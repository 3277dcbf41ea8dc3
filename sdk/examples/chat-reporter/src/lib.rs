//! chat-reporter.
