//! What the benchmark and the examples of memsnap-heap have in common: workloads, their competitors, and plots.

pub mod game;
pub mod map;
pub mod measure;
pub mod physics;
pub mod plot;
pub mod rollback;
