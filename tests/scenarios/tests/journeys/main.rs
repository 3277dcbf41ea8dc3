//! A scenario for each journey of forges.md, on each forge that can have it, with everything real but the forge: the plugin
//! as a component in the plugin host, PostgreSQL, the webhook's address over HTTP, and the coordinator's loops, stepped until
//! nothing is left to do. The forge is a fake that holds every request against the forge's published description; each
//! scenario ends by asking it for violations. Evaluators and builders are played through the same statements of the database
//! that real ones use.

mod access;
mod forge;
mod pull_requests;
mod pushes;
mod trees;
mod trouble;
mod world;
