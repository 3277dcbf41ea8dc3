//! The builder: claims jobs, builds them through a store daemon, uploads what came out.
