//! Numbers to look at.

/// What a snapshot holds, in bytes.
///
/// Snapshots that descend from each other share pages, so these do not add up: `base` is held once by
/// all snapshots that were made from it, and `store` counts for the whole family.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct SnapshotStats {
    /// Pages of this snapshot that were captured from views, rather than being part of its base.
    pub captured: usize,
    /// Memory (for a reflinked file, disk) of the bytes that the first snapshot was made with.
    pub base: u64,
    /// Memory of the flat copy that views of this snapshot map pages from.
    pub flat: u64,
    /// What the family's captured pages take up together.
    pub store: StoreStats,
}

/// What the captured pages of a snapshot and all its relatives take up, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct StoreStats {
    /// Pages that at least one snapshot or view refers to.
    pub live: usize,
    /// Pages that nothing refers to, kept for the next capture.
    pub recyclable: usize,
}

/// What a view holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct ViewStats {
    /// How written pages are found: `"armed"`, `"scan"`, `"pagemap"` or `"compare"`.
    pub tracker: &'static str,
    /// Bytes in pages of the view's own, which it does not share with the snapshot (an upper bound where
    /// the tracker is `"compare"`).
    pub private: usize,
    /// Mappings of the process that the view takes up (an upper bound).
    pub mappings: usize,
}
