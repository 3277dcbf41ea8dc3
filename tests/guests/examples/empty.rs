//! Does nothing: what a call costs at least.

harmonia_test_guests::guest!(|_| Ok(String::new()));
