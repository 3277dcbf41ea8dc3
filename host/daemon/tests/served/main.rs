//! The daemon as its clients see it, in stores of its own.

mod clients;
mod corpus;
mod daemon;
