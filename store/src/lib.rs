//! Durable storage for memory snapshots.
#![deny(unsafe_code)]
#![allow(dead_code)] // Until all parts are there.

mod error;
mod id;
mod index;
#[cfg(feature = "remote")]
mod remote;
mod storage;

pub use error::{Error, Result};
pub use id::{Id, Reference};
#[cfg(feature = "testing")]
#[doc(hidden)]
pub use remote::kit;
#[cfg(feature = "remote")]
pub use remote::{Remote, RemoteName, RemoteOptions, Traffic};

/// A snapshot that is saved in a repository and is in memory.
pub struct Saved {
    id: Id,
}

impl Saved {
    /// Returns the id.
    #[must_use]
    pub fn id(&self) -> Id {
        self.id
    }
}
