//! Guest programs, one for each behaviour of the plugin host, good and bad: see `examples/`.
