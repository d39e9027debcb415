//! Ordinary Rust values that can be marked, rolled back and branched, at the cost of the pages that changed.
//!
//! A [`Heap`] holds a value with everything that it owns: vectors, hash maps, strings, boxes.

#[doc(hidden)] // for the benchmark, which compares allocators
pub mod allocator;
mod arena;
mod boxed_memory;
mod current;
mod handle;
mod heap;
mod mark;
mod memory;
mod options;
mod persist;
mod realm;
mod snap;
mod state;
mod stats;
mod string;

extern crate self as memsnap_heap;

pub use allocator::Usage;
pub use handle::In;
pub use heap::{Heap, Root};
pub use mark::Mark;
pub use memsnap::{HugePages, Tracking};
pub use memsnap_heap_derive::{Persist, Snap};
pub use options::HeapOptions;
pub use persist::Persist;
pub use realm::{Escape, Realm, Router};
pub use snap::Snap;
pub use stats::HeapStats;
pub use string::String;

/// A vector in a heap: [`allocator_api2::vec::Vec`] with the allocator [`In`].
pub type Vec<'h, T> = allocator_api2::vec::Vec<T, In<'h>>;
/// A box in a heap: [`allocator_api2::boxed::Box`] with the allocator [`In`].
pub type Box<'h, T> = allocator_api2::boxed::Box<T, In<'h>>;
/// A hash map in a heap: [`hashbrown::HashMap`] with the allocator [`In`].
pub type HashMap<'h, K, V, S = hashbrown::DefaultHashBuilder> = hashbrown::HashMap<K, V, S, In<'h>>;
/// A hash set in a heap: [`hashbrown::HashSet`] with the allocator [`In`].
pub type HashSet<'h, T, S = hashbrown::DefaultHashBuilder> = hashbrown::HashSet<T, S, In<'h>>;
