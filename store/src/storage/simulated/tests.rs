//! Tests of the simulated storage.
