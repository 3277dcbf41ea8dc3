//! The HTTP side against a real PostgreSQL, a real object store, the true signer and reader, and stock Nix as a client.

mod api;
mod cache;
mod dead_letters;
mod forge;
mod hostile;
mod lifecycle;
mod live;
mod looks;
mod pages;
mod private;
mod projects;
mod settings;
mod upload;
mod webhooks;
mod world;
