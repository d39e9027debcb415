//! Durable storage for memory snapshots.
#![deny(unsafe_code)]
#![allow(dead_code)] // Until all parts are there.

mod blocks;
mod chain;
mod collect;
mod error;
mod extract;
mod format;
mod id;
mod index;
mod inner;
mod load;
mod manifest;
mod map;
mod progress;
mod repair;
mod repository;
mod save;
mod saved;
mod sink;
mod source;
mod spool;
mod storage;
mod transfer;
mod verify;

pub use collect::{Collect, Collected};
pub use error::{Error, Result};
pub use extract::{Extract, Extracted};
pub use id::{Id, Reference};
pub use load::Load;
pub use manifest::{Manifest, Summary};
pub use progress::Progress;
pub use repair::Repaired;
pub use repository::Repository;
pub use save::{Save, Written};
pub use saved::Saved;
pub use transfer::{Remote, Transfer, Transferred};
pub use verify::{Depth, Verified};
