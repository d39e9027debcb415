//! `Saved`: a snapshot that is in memory and in a repository.

use memsnap::Snapshot;

use crate::id::Id;

/// A snapshot that is in memory and in a repository: its id and its bytes.
///
/// [`Save::parent`](crate::Save::parent) takes it, so that saving a snapshot that was made from it costs what changed.
#[derive(Clone, Debug)]
pub struct Saved {
    id: Id,
    snapshot: Snapshot,
}

impl Saved {
    pub(crate) fn new(id: Id, snapshot: Snapshot) -> Self {
        Self { id, snapshot }
    }

    /// Returns the id.
    #[must_use]
    pub fn id(&self) -> Id {
        self.id
    }

    /// Returns the snapshot.
    #[must_use]
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// Returns the snapshot by value.
    #[must_use]
    pub fn into_snapshot(self) -> Snapshot {
        self.snapshot
    }
}
