//! Answers what it was asked.

harmonia_test_guests::guest!(|argument| Ok(argument.to_owned()));
