//! Saving.
use std::fs::File;
use std::marker::PhantomData;

use memsnap::Snapshot;

use crate::error::Result;
use crate::id::{Id, Reference};
use crate::progress::Progress;
use crate::saved::Saved;

/// A snapshot or a file (`S`) that is about to be saved. [`Repository::save`](crate::Repository::save) and
/// [`Repository::save_file`](crate::Repository::save_file) make it.
#[must_use = "nothing is saved until `run`"]
pub struct Save<'a, S>(PhantomData<&'a S>);

impl<'a, S> Save<'a, S> {
    /// Says from which saved snapshot this one was made. Only what differs is read and saved.
    pub fn parent(self, saved: &Saved) -> Self {
        todo!("{saved:?}")
    }

    /// Says from which snapshot of the repository this one was made. It need not be in memory; all bytes are read.
    pub fn parent_id(self, id: impl Into<Reference>) -> Self {
        todo!("{:?}", id.into())
    }

    /// Adds a label.
    pub fn label(self, key: impl Into<String>, value: impl Into<String>) -> Self {
        todo!("{} {}", key.into(), value.into())
    }

    /// Adds an attachment: a small named blob, such as the registers of a processor.
    pub fn attach(self, name: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Self {
        todo!("{} {:?}", name.into(), bytes.into())
    }

    /// Gives the snapshot a name, in the same step.
    pub fn name(self, name: impl Into<String>) -> Self {
        todo!("{}", name.into())
    }

    /// Sets a function that is told the progress.
    pub fn progress(self, tell: impl FnMut(Progress) + Send + 'a) -> Self {
        drop(tell);
        todo!()
    }
}

impl Save<'_, &Snapshot> {
    /// Saves the snapshot. It is durable when the call returns.
    ///
    /// # Errors
    ///
    /// Many.
    pub fn run(self) -> Result<Saved> {
        todo!()
    }
}

impl Save<'_, &File> {
    /// Says that the holes of the file have the bytes of the parent, as in the diff snapshots of Firecracker.
    pub fn holes_are_parent(self) -> Self {
        todo!()
    }

    /// Saves the contents of the file. Returns what was saved and how much was written.
    ///
    /// # Errors
    ///
    /// As for a snapshot.
    pub fn run(self) -> Result<Written> {
        todo!()
    }
}

/// What a save has written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Written {
    /// The id of the snapshot.
    pub id: Id,
    /// The number of bytes that were added to the repository: packs and the manifest.
    pub bytes: u64,
    /// The number of blocks that were added.
    pub blocks: u64,
}
