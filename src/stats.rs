//! Numbers to look at.

use crate::sys::{Tracking, WhyNotFaster};

/// What a snapshot holds, in bytes.
///
/// Snapshots that descend from each other share pages, so these do not add up: `base` is held once by
/// all snapshots that were made from it, and `store` counts for the whole family.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct SnapshotStats {
    /// Bytes that a view maps.
    pub mapped: usize,
    /// Pages of this snapshot that were captured from views, rather than being part of its base. Those that are all
    /// zero take no memory.
    pub captured: usize,
    /// Images that share the base and the store with each other: those of this snapshot's relatives, as they are held
    /// by snapshots and views, and its own.
    pub images: usize,
    /// Memory (for a reflinked file, disk) of the bytes that the first snapshot was made with.
    pub base: u64,
    /// Memory of the flat copies that views of this snapshot map pages from, and other processes are given.
    pub flat: u64,
    /// What the family's captured pages take up together.
    pub store: StoreStats,
}

/// What the captured pages of a snapshot and all its relatives take up, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct StoreStats {
    /// Pages that at least one snapshot or view refers to.
    pub live: usize,
    /// Pages that nothing refers to, kept for the next capture.
    pub recyclable: usize,
}

/// What a view holds, in bytes, and how it is tracked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct ViewStats {
    /// How written pages are found at present; never [`Tracking::Auto`].
    pub tracker: Tracking,
    /// Why that is not a faster way; `None` of the fastest.
    pub why_not_faster: Option<WhyNotFaster>,
    /// Bytes that the view shows.
    pub mapped: usize,
    /// How many of these bytes are mapped in huge pages; 0 if the system does not say.
    #[cfg_attr(feature = "serde", serde(default))]
    pub huge: usize,
    /// Addresses around them that are taken and inaccessible: guards, and room to grow.
    pub reserved: usize,
    /// Bytes in pages of the view's own, which it does not share with the snapshot (an upper bound where
    /// the tracker is [`Tracking::Compare`], or [`Tracking::Pagemap`], which counts zero pages that were read).
    pub private: usize,
    /// Captured pages of the snapshot that was last taken of the view or restored to it.
    pub captured: usize,
    /// Images that share the base and the store with that snapshot, its own included.
    pub images: usize,
    /// Mappings of the process that the view takes up (an upper bound).
    pub mappings: usize,
    /// What the view's operations cost, as it has measured them.
    #[cfg_attr(feature = "serde", serde(default))]
    pub costs: ViewCosts,
}

/// What a view's operations cost, in nanoseconds, as the view has measured them.
///
/// The view uses these figures to decide whether to copy old bytes back or to discard pages, and when to write-protect
/// its pages. Each cost starts as a built-in constant, and is adjusted to the time that the view's own calls take. That
/// time depends on the machine and on the threads of the process. So a small view, or a view in a process with several
/// threads, may decide otherwise than a large view in a process with one thread.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct ViewCosts {
    /// The time to compare a page with the snapshot's, or to copy it.
    pub compare_page: u64,
    /// The time to discard a run of pages, without the part that grows with the number of its pages.
    pub discard_run: u64,
    /// The time of the first write to a page that the view shares with its snapshot: a page fault and a copy. It is
    /// derived from `compare_page`.
    pub first_write: u64,
    /// The time to write-protect all pages.
    pub protect: u64,
    /// The time spent, since all pages were last write-protected, on looking at pages and on comparing pages that had
    /// not been written. The time of the page faults that were saved because pages could be written is subtracted. When
    /// this exceeds about the sum of `protect` and the page faults that will follow, the view write-protects its pages.
    pub spent_in_vain: u64,
    /// The time to move 2 MiB of the snapshot into a huge page.
    ///
    /// See [`ViewOptions::huge_pages`](crate::ViewOptions::huge_pages).
    #[cfg_attr(feature = "serde", serde(default))]
    pub move_to_huge_page: u64,
    /// The time spent on walks over the view's page tables since the last pass over its regions of 2 MiB.
    ///
    /// In a pass, the view visits all of these regions and moves those that it can into huge pages. A pass begins when
    /// this exceeds about the time that a pass takes.
    #[cfg_attr(feature = "serde", serde(default))]
    pub spent_on_walks: u64,
}
