//! `.harmonia-ci.toml` as read from the commit under evaluation.
