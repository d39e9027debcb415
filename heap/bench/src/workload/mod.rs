//! The workloads.

pub(crate) mod allocator;
pub(crate) mod hecs;
pub(crate) mod map;
pub(crate) mod one;
pub(crate) mod rapier2d;

use anyhow::Result;
use clap::ValueEnum;

use crate::results::Results;

/// A workload.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Workload {
    /// A map of a million entries, 1,000 changes between marks
    Map,
    /// A map of 20,000 entries, one change between marks
    One,
    /// The allocator: written pages, memory and time
    Allocator,
    /// A game world of hecs that goes eight frames back
    Hecs,
    /// A physics world of rapier2d that goes eight frames back
    Rapier2d,
}

impl Workload {
    /// Measures.
    pub(crate) fn run(self, size: &Size, results: &mut Results) -> Result<()> {
        match self {
            Self::Map => map::run(size, results),
            Self::One => one::run(size, results),
            Self::Allocator => allocator::run(size, results),
            Self::Hecs => hecs::run(size, results),
            Self::Rapier2d => rapier2d::run(size, results),
        }
    }
}

/// The sizes of the workloads.
pub(crate) struct Size {
    /// The entries of the large map.
    pub(crate) entries: u64,
    /// The changes between marks of it.
    pub(crate) changes: usize,
    /// The entries of the small map.
    pub(crate) few_entries: u64,
    /// How often each way has its turn.
    pub(crate) turns: usize,
    /// The live objects in the allocators.
    pub(crate) objects: usize,
    /// The random operations on allocators.
    pub(crate) operations: usize,
    /// How often the worlds go back.
    pub(crate) returns: usize,
}

impl Size {
    /// Returns the sizes of a full run, or of a quick one.
    pub(crate) fn new(quick: bool) -> Self {
        if quick {
            Self {
                entries: 100_000,
                changes: 100,
                few_entries: 20_000,
                turns: 3,
                objects: 30_000,
                operations: 500_000,
                returns: 20,
            }
        } else {
            Self {
                entries: 1_000_000,
                changes: 1_000,
                few_entries: 20_000,
                turns: 12,
                objects: 300_000,
                operations: 10_000_000,
                returns: 1_000,
            }
        }
    }
}
