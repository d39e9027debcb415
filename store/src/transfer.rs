//! Pushing and pulling (feature `remote`).
use std::marker::PhantomData;

use crate::Repository;
use crate::error::Result;
use crate::id::{Id, Reference};
use crate::progress::Progress;
/// Placeholder; the real one is in `remote`.
pub struct Remote {}

impl Repository {
    /// Copies a snapshot, with what it needs, to a remote. [`Transfer::run`] does it.
    pub fn push(&self, remote: &Remote, id: impl Into<Reference>) -> Transfer<'_> {
        let _ = remote;
        todo!("{:?}", id.into())
    }

    /// Copies a snapshot, with what it needs, from a remote. [`Transfer::run`] does it.
    pub fn pull(&self, remote: &Remote, id: impl Into<Reference>) -> Transfer<'_> {
        let _ = remote;
        todo!("{:?}", id.into())
    }
}

/// A snapshot that is about to be copied.
#[must_use = "nothing is copied until `run`"]
pub struct Transfer<'a>(PhantomData<&'a ()>);

impl<'a> Transfer<'a> {
    /// Moves this name on the other side (or, with `pull`, here), too.
    pub fn name(self, name: impl Into<String>) -> Self {
        todo!("{}", name.into())
    }

    /// Sets a function that is told the progress.
    pub fn progress(self, tell: impl FnMut(Progress) + Send + 'a) -> Self {
        drop(tell);
        todo!()
    }

    /// Copies the snapshot.
    ///
    /// # Errors
    ///
    /// Many.
    pub fn run(self) -> Result<Transferred> {
        todo!()
    }
}

/// What was copied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Transferred {
    /// The id of the snapshot.
    pub id: Id,
    /// The bytes that were sent or received: packs, manifests and what was needed to find out what the other side lacks.
    pub bytes: u64,
    /// The number of blocks that the other side lacked.
    pub blocks: u64,
}
