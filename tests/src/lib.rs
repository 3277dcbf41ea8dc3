//! Tidy rules and black-box tests.
