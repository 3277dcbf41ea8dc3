//! The Nix worker protocol: what a client and a daemon say to each other over a Unix socket.
//!
//! Start reading at [`Client`], or at [`Request`] for the daemon's side. Below them, from the bottom up and for both ends of the conversation: [`wire`] (integers,
//! strings, lists), [`framed`] (bulk data in frames), [`handshake`] (versions), [`stderr`] (the messages that precede every
//! answer: log lines, activities, errors), [`operations`] (codes and since when), [`types`] (what travels).
//!
//! Nothing here opens a connection: the caller hands in two halves of a stream. Everything read is bounded ([`wire`] has
//! the constants). Spoken are the versions 1.21 (Nix 2.3) to 1.38 (Nix 2.24 and later).
//!
//! Format: as spoken by Nix; every statement here was checked against recorded conversations of 1.34 and 1.38, or lives
//! from the rules of the older versions that both still honour.

pub mod client;
pub mod framed;
pub mod handshake;
pub mod operations;
pub mod server;
pub mod stderr;
pub mod types;
pub mod wire;

pub use client::{Client, ClientError, LogTarget};
pub use handshake::{ClientGreeting, DaemonGreeting, HandshakeError, ProtocolVersion, Session, Trust};
pub use operations::Operation;
pub use server::Request;
pub use stderr::{ActivityResult, ActivityStart, DaemonError, Field, LogMessage, StderrMessage, strip_ansi};
pub use types::{
    BuildMode, BuildResult, BuildStatus, BuiltOutput, ClientOptions, DerivedPath, GcAction, GcReport, GcRequest,
    GcRoot, MissingPaths, OutputNames, PathInfo, ValidPathInfo,
};
pub use wire::WireError;
