//! The database layer against a real PostgreSQL. `world` is what tests are written with; `model`, `pairs` and
//! `histories` are the property tests of the state machine.

mod charging;
mod cost;
mod counts;
mod deliveries;
mod evaluations;
mod heads;
mod healing;
mod histories;
mod intake;
mod kept;
mod limits;
mod listen;
mod locks;
mod migrate;
mod model;
mod nodes;
mod outbox;
mod pairs;
mod plugin_kv;
mod projects;
mod queue;
mod repositories;
mod roles;
mod schema;
mod state;
mod statuses;
mod upstream;
mod vanished;
mod visibility;
mod world;
