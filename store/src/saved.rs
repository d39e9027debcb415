//! `Saved`: a snapshot that is in memory and in a repository.

use memsnap::Snapshot;

use crate::id::Id;

/// A snapshot that is in memory and in a repository, and its id.
///
/// Pass it to [`Save::parent`](crate::Save::parent) to save a snapshot that was made from it, and to
/// [`Load::onto`](crate::Load::onto) to load a snapshot that has most pages in common with it.
#[derive(Clone, Debug)]
pub struct Saved {
    id: Id,
    snapshot: Snapshot,
}

impl Saved {
    pub(crate) fn new(id: Id, snapshot: Snapshot) -> Self {
        Self { id, snapshot }
    }

    /// Returns the id of the snapshot.
    #[must_use]
    pub fn id(&self) -> Id {
        self.id
    }

    /// Returns the snapshot.
    #[must_use]
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// Returns the snapshot, and drops the id.
    #[must_use]
    pub fn into_snapshot(self) -> Snapshot {
        self.snapshot
    }
}
