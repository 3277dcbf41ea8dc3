//! See `tests/journeys`: a scenario for each journey of a forge.
