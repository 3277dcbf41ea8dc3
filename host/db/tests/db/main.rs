//! The database layer against a real PostgreSQL. `world` is what tests are written with; `model`, `pairs` and
//! `histories` are the property tests of the state machine.

mod evaluations;
mod healing;
mod histories;
mod listen;
mod model;
mod nodes;
mod pairs;
mod queue;
mod roles;
mod schema;
mod world;
