//! Ordinary Rust values that can be marked, rolled back and branched, at the cost of the pages that changed.
//!
//! A [`Heap`] holds one value with everything that it owns: vectors, hash maps, strings, boxes. The value and all its
//! allocations are in one [view](memsnap::View) of memsnap. [`Heap::mark`] keeps the current state, and [`Heap::back_to`]
//! goes back to a kept one. The program can go to any state that it keeps, in any order, any number of times.
//!
//! ```
//! use memsnap_heap::{HashMap, Heap, Root, Snap, String};
//!
//! #[derive(Snap)]
//! struct World<'h> {
//!     turn: u32,
//!     names: HashMap<'h, u32, String<'h>>,
//! }
//!
//! /// Names the type of the value, without a lifetime.
//! struct Game;
//! impl Root for Game {
//!     type Of<'h> = World<'h>;
//! }
//!
//! # fn main() -> std::io::Result<()> {
//! let mut heap = Heap::<Game>::new(|memory| World { turn: 0, names: HashMap::new_in(memory) })?;
//! let start = heap.mark()?;
//!
//! heap.with_mut(|world, memory| {
//!     world.turn += 1;
//!     world.names.insert(7, String::from_str_in("seven", memory));
//! });
//! let second = heap.mark()?;
//!
//! heap.back_to(&start)?;
//! assert_eq!(heap.with(|world| (world.turn, world.names.len())), (0, 0));
//! heap.back_to(&second)?;
//! assert!(heap.with(|world| world.turn == 1 && world.names[&7] == "seven"));
//! # Ok(())
//! # }
//! ```
//!
//! # Heap or realm
//!
//! | | [`Heap`] | [`Realm`] |
//! |---|---|---|
//! | holds | types of your own, and the collections of this crate | any type, unchanged: a world of an entity component system, a physics engine |
//! | needs | types that implement [`Snap`], which is derived | a [`Router`] as the global allocator of the program |
//! | is checked by | the compiler | you: its functions are `unsafe`, and their documentation lists what you promise |
//! | can be opened by another process | yes, if the value implements [`Persist`] | no |
//!
//! Use a heap if the types are your own. Use a realm if the types belong to a library that allocates with the global
//! allocator.
//!
//! # Values in a heap
//!
//! Closures get the value: [`with`](Heap::with) lends it for reading, and [`with_mut`](Heap::with_mut) for changing.
//! `with_mut` also passes the allocator of the heap, an [`In`]. The lifetime `'h` is different in each call. So the
//! compiler refuses code that takes a value, a reference or the allocator out of the closure, or that mixes two heaps.
//! A closure returns results that do not have this lifetime, such as numbers or a `String` of the standard library.
//!
//! [`Vec`], [`Box`], [`HashMap`] and [`HashSet`] are the types of `allocator-api2` and `hashbrown`, with the allocator of
//! the heap. [`String`] is a type of this crate. Going back to a mark overwrites the bytes of all values, and runs no
//! destructor. So a heap cannot contain a `std::string::String`, an `Arc`, a `File`, a `Mutex`, or anything else that
//! owns memory or has an identity outside of the heap. [`Snap`] lists the conditions.
//!
//! # What it costs
//!
//! - A mark copies each page that was written since the last mark, however many values there are.
//! - Going back rewrites each page that differs from the mark.
//! - A changed byte costs a page, which is 4 KiB on most machines. The allocator writes few pages besides those of the
//!   values: it keeps its state apart from the blocks, and never writes to free memory.
//! - Reading a value costs what it costs in ordinary memory. `with` and `with_mut` cost a comparison and an addition.
//! - A kept mark takes memory for the pages that changed since the mark before it.
//! - On Linux, memsnap asks the kernel which pages were written. On macOS, the BSDs, illumos and Android it compares all
//!   pages of the heap, and on Windows all that are private or not in memory. There, the time of a mark depends on the size
//!   of the heap. [`memsnap::guide::platforms`] has the details.
//!
//! # When something else is better
//!
//! - **Persistent collections** (`im`, `imbl`, `rpds`) are faster if the state is small, or if a single entry changes
//!   between two marks: they copy a few nodes, and a heap copies at least one page and calls the system. They are slower to
//!   read.
//! - **A copy** is faster for a few megabytes of plain data of which most changes. Copy it with `clone` or `copy_from_slice`.
//! - **A [view](memsnap::View)** of the crate memsnap is simpler if the state is a range of bytes.
//! - **A journal** of the changes is smaller if each step changes a few bytes in many places.
//!
//! `README.md` has measured figures, and `DESIGN.md` explains why heaps are sound and how the allocator works.
//!
//! # Limits
//!
//! - A heap is used by one thread at a time. It can be moved to another thread between two calls.
//! - A heap grows within addresses that it reserves when it is made ([`HeapOptions::address_space`]). If they are used up,
//!   an allocation fails. A collection then aborts the process unless a method such as `try_reserve` is used.
//! - A heap does not become shorter, except by going back. Long free ranges are returned to the system at the next mark.
//! - Ordered maps and sets need the feature `btree`, which adds the types `BTreeMap` and `BTreeSet`.
//! - The value of a heap is never dropped. Its memory is freed with the heap.
//! - A mark belongs to the heap that made it. Another heap refuses it.
//! - State outside of the heap does not go back, such as files, random generators in statics, or the time.

#[doc(hidden)] // for the benchmark, which compares allocators
pub mod allocator;
mod arena;
mod boxed_memory;
#[cfg(feature = "btree")]
mod btree;
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
#[cfg(feature = "btree")]
pub use btree::{BTreeMap, BTreeSet};
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

// The collections of these crates are part of the interface, so programs need the same versions.
pub use allocator_api2;
pub use hashbrown;

/// A vector in a heap: [`allocator_api2::vec::Vec`] with the allocator [`In`].
pub type Vec<'h, T> = allocator_api2::vec::Vec<T, In<'h>>;
/// A box in a heap: [`allocator_api2::boxed::Box`] with the allocator [`In`].
pub type Box<'h, T> = allocator_api2::boxed::Box<T, In<'h>>;
/// A hash map in a heap: [`hashbrown::HashMap`] with the allocator [`In`].
pub type HashMap<'h, K, V, S = hashbrown::DefaultHashBuilder> = hashbrown::HashMap<K, V, S, In<'h>>;
/// A hash set in a heap: [`hashbrown::HashSet`] with the allocator [`In`].
pub type HashSet<'h, T, S = hashbrown::DefaultHashBuilder> = hashbrown::HashSet<T, S, In<'h>>;

/// Tests the programs in `README.md`.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
