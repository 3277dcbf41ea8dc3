//! The evaluator: claims evaluations, runs the engine, inserts the graph.

mod engine;
mod source;
