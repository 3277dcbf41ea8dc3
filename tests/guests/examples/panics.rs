//! Panics with a text, which the operator should read in the log.

harmonia_test_guests::guest!(|argument| panic!("on purpose: {argument}"));
