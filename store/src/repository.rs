//! `Repository`: the interface of the store. Each operation is in a file of its own.

use std::fs::File;
use std::ops::Range;
use std::path::Path;

use memsnap::Snapshot;

use crate::collect::{Collect, Collected};
use crate::error::Result;
use crate::extract::Extract;
use crate::id::{Id, Reference};
use crate::load::Load;
use crate::manifest::{Manifest, Summary};
use crate::repair::Repaired;
use crate::save::Save;
use crate::saved::Saved;
use crate::verify::{Depth, Verified};

/// A repository of saved snapshots in a folder.
pub struct Repository {}

impl Repository {
    /// Makes an empty repository in a folder. Makes the folder if it does not exist.
    ///
    /// # Errors
    ///
    /// `NotEmpty` if the folder contains anything.
    pub fn create(path: impl AsRef<Path>) -> Result<Self> {
        todo!("{:?}", path.as_ref())
    }

    /// Opens the repository in a folder.
    ///
    /// # Errors
    ///
    /// `NoRepository`, `Newer`, `Mixed`, `Damaged`.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        todo!("{:?}", path.as_ref())
    }

    /// Returns the folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        todo!()
    }

    /// Saves a snapshot. [`Save::run`] does it.
    pub fn save<'a>(&'a self, snapshot: &'a Snapshot) -> Save<'a, &'a Snapshot> {
        todo!("{snapshot:?}")
    }

    /// Saves the contents of a file. Holes are not read. [`Save::run`] does it.
    pub fn save_file<'a>(&'a self, file: &'a File) -> Save<'a, &'a File> {
        todo!("{file:?}")
    }

    /// Loads a snapshot into memory. [`Load::run`] does it.
    pub fn load(&self, id: impl Into<Reference>) -> Load<'_> {
        todo!("{:?}", id.into())
    }

    /// Maps a snapshot from the cache.
    ///
    /// # Errors
    ///
    /// As `load`.
    ///
    /// # Safety
    ///
    /// Nothing changes the files in the folder `cache`.
    #[allow(unsafe_code)]
    pub unsafe fn map(&self, id: impl Into<Reference>) -> Result<Saved> {
        todo!("{:?}", id.into())
    }

    /// Writes a snapshot to a sparse file. [`Extract::run`] does it.
    pub fn extract(&self, id: impl Into<Reference>, to: impl AsRef<Path>) -> Extract<'_> {
        todo!("{:?} {:?}", id.into(), to.as_ref())
    }

    /// Returns the id of a name, of the first digits of an id, or of an id.
    ///
    /// # Errors
    ///
    /// `NotFound`, `Ambiguous`.
    pub fn resolve(&self, id: impl Into<Reference>) -> Result<Id> {
        todo!("{:?}", id.into())
    }

    /// Reads the manifest of a snapshot.
    ///
    /// # Errors
    ///
    /// `NotFound`, `Damaged`.
    pub fn manifest(&self, id: impl Into<Reference>) -> Result<Manifest> {
        todo!("{:?}", id.into())
    }

    /// Lists the snapshots, the oldest first.
    ///
    /// # Errors
    ///
    /// As `resolve`.
    pub fn list(&self) -> Result<Vec<Summary>> {
        todo!()
    }

    /// Lists the names in ascending order, with the snapshots that they stand for.
    ///
    /// # Errors
    ///
    /// As `resolve`.
    pub fn names(&self) -> Result<Vec<(String, Id)>> {
        todo!()
    }

    /// Gives a snapshot a name. Moves the name if it exists.
    ///
    /// # Errors
    ///
    /// `Invalid` if the text cannot be a name.
    pub fn set_name(&self, name: &str, id: impl Into<Reference>) -> Result<Id> {
        todo!("{name} {:?}", id.into())
    }

    /// Removes a name. The snapshot stays.
    ///
    /// # Errors
    ///
    /// `NotFound`.
    pub fn remove_name(&self, name: &str) -> Result<()> {
        todo!("{name}")
    }

    /// Returns the byte ranges in which two snapshots differ. No block is read.
    ///
    /// # Errors
    ///
    /// As `manifest`.
    pub fn diff(&self, a: impl Into<Reference>, b: impl Into<Reference>) -> Result<Vec<Range<u64>>> {
        todo!("{:?} {:?}", a.into(), b.into())
    }

    /// Removes a snapshot and its names. [`collect`](Self::collect) frees its space.
    ///
    /// # Errors
    ///
    /// As `resolve`.
    pub fn remove(&self, id: impl Into<Reference>) -> Result<Id> {
        todo!("{:?}", id.into())
    }

    /// Deletes what no snapshot needs.
    ///
    /// # Errors
    ///
    /// As `manifest`.
    pub fn collect(&self, options: &Collect) -> Result<Collected> {
        todo!("{options:?}")
    }

    /// Checks the repository.
    ///
    /// # Errors
    ///
    /// Those that prevent the check. Damage is in the result.
    pub fn verify(&self, depth: Depth) -> Result<Verified> {
        todo!("{depth:?}")
    }

    /// Rebuilds the index of the repository in a folder from its packs and manifests.
    ///
    /// # Errors
    ///
    /// Those of the system.
    pub fn repair(path: impl AsRef<Path>) -> Result<Repaired> {
        todo!("{:?}", path.as_ref())
    }
}
