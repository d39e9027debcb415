#![doc = include_str!("../README.md")]
#![deny(unsafe_code)]

mod blocks;
mod cache;
mod chain;
mod collect;
mod cores;
mod error;
mod extract;
mod format;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzz;
mod id;
mod image;
mod index;
mod inner;
mod load;
mod manifest;
mod map;
mod name;
mod progress;
#[cfg(feature = "remote")]
mod remote;
mod repair;
mod repository;
mod save;
mod saved;
mod sink;
mod source;
mod spool;
mod storage;
#[cfg(feature = "remote")]
mod transfer;
mod verify;

pub use collect::{Collect, Collected};
pub use error::{Error, Result};
pub use extract::{Extract, Extracted};
pub use id::{Id, Reference};
pub use load::Load;
pub use manifest::{Manifest, Summary};
pub use name::check_name;
pub use progress::Progress;
#[cfg(feature = "testing")]
#[doc(hidden)]
pub use remote::kit;
#[cfg(feature = "remote")]
pub use remote::{Remote, RemoteName, RemoteOptions, Traffic};
pub use repair::Repaired;
pub use repository::Repository;
pub use save::{Save, Written};
pub use saved::Saved;
#[cfg(feature = "remote")]
pub use transfer::{Transfer, Transferred};
pub use verify::{Depth, Verified};

#[cfg(test)]
mod tests;

/// Tests the programs in the chapter of the guide about this crate.
#[cfg(doctest)]
#[doc = include_str!("../../src/guide/saving.md")]
struct Guide;

/// Tests the programs in the chapter of the guide about heaps, some of which save a heap.
#[cfg(doctest)]
#[doc = include_str!("../../src/guide/heaps.md")]
struct Heaps;
