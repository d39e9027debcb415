//! `HeapStats`: how much memory a heap takes.

use memsnap::ViewStats;

use crate::memory::Memory;

/// Statistics of a [`Heap`](crate::Heap) or a [`Realm`](crate::Realm).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct HeapStats {
    /// The length in bytes of the memory that the heap divides. Parts that were never used take no memory.
    pub len: usize,
    /// The statistics of the view that the heap is in. `None` if the memory is [boxed](crate::HeapOptions::boxed).
    pub view: Option<ViewStats>,
}

impl HeapStats {
    pub(crate) fn new(memory: &Memory) -> Self {
        Self { len: memory.len(), view: memory.stats() }
    }
}
