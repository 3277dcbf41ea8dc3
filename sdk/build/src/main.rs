//! Builds plugins into components.

fn main() {}
