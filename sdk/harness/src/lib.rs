//! Runs a plugin against the true plugin host with scripted HTTP.
