//! Reports from rows to a forge and back, with everything that can go wrong between the two: `world` has a forge and a
//! reporter that do as they are told, `journeys` are told one by one, `histories` are random.

#[path = "report/histories.rs"]
mod histories;
#[path = "report/journeys.rs"]
mod journeys;
#[path = "report/world.rs"]
mod world;
