//! Answers as many bytes as it is asked for.

harmonia_test_guests::guest!(|argument| Ok("x".repeat(argument.parse().unwrap_or(0))));
