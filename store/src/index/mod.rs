//! The index: where each block is, and which snapshots and names there are.
