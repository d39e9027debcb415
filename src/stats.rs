//! Statistics of snapshots and views: how much memory they take, and what their operations cost.
//!
//! This file only defines the types. Snapshots and views fill in the numbers.

use crate::sys::{Tracking, WhyNotFaster};

/// Statistics of a snapshot, in bytes except where noted.
///
/// [`Snapshot::stats`](crate::Snapshot::stats) returns them. Relatives share memory, so do not add their numbers up.
/// (Relatives are snapshots that descend from each other or from a common snapshot.) For example, `base` is shared by
/// all snapshots that show the same base, and `store` by all relatives.
///
/// # Examples
///
/// The memory that a history of snapshots takes:
///
/// ```
/// use memsnap::{Snapshot, page_size};
///
/// # fn main() -> std::io::Result<()> {
/// let start = Snapshot::from_slice(&[1; 1 << 20])?;
/// let mut view = start.view()?;
/// let mut history = vec![start.clone()];
/// for step in 0..10 {
///     view[step * page_size()] = 2;
///     history.push(view.take_snapshot()?);
/// }
/// let stats = history[10].stats();
/// assert_eq!(stats.captured, 10 * page_size());
/// assert_eq!(stats.store.live, 10 * page_size()); // shared by all snapshots of the history
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct SnapshotStats {
    /// The length of a view of the snapshot.
    pub mapped: usize,
    /// The captured pages of this snapshot: those that were captured from views and are not part of its base.
    /// Captured pages that are all zero count, although they take no memory.
    pub captured: usize,
    /// The number of images that share this snapshot's store: its own, and those of its relatives that snapshots or
    /// views still hold.
    pub images: usize,
    /// The memory of the bytes that the first snapshot was made from. For a file that was cloned by the file system,
    /// this is its space on the disk.
    pub base: u64,
    /// The memory of the flat files of this snapshot. These are copies of its pages that views map or that were passed
    /// to other processes.
    pub flat: u64,
    /// The memory of all captured pages of this snapshot and its relatives.
    pub store: StoreStats,
}

/// The memory of the captured pages of a snapshot and all its relatives, in bytes.
///
/// [`SnapshotStats::store`] contains it.
///
/// # Examples
///
/// ```
/// use memsnap::{Snapshot, page_size};
///
/// # fn main() -> std::io::Result<()> {
/// let start = Snapshot::zeroed(1 << 20)?;
/// let mut view = start.view()?;
/// view[0] = 1;
/// let taken = view.take_snapshot()?;
/// view.restore()?;
/// assert_eq!(start.stats().store.live, page_size());
/// drop(taken); // the next snapshot can use the memory of the page
/// assert_eq!(start.stats().store.live, 0);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct StoreStats {
    /// Pages that are part of at least one snapshot or view.
    pub live: usize,
    /// Pages that no snapshot or view uses. Their memory is kept for the next snapshots.
    pub recyclable: usize,
}

/// Statistics of a view, in bytes except where noted, and its tracking method.
///
/// [`View::stats`](crate::View::stats) returns them.
///
/// # Examples
///
/// ```
/// use memsnap::Snapshot;
///
/// # fn main() -> std::io::Result<()> {
/// let snapshot = Snapshot::from_slice(&[1; 1 << 20])?;
/// let mut view = snapshot.view()?;
/// view.fill(2);
/// let stats = view.stats();
/// assert_eq!(stats.private, 1 << 20);
/// println!("written pages are found by: {}", stats.tracker);
/// if let Some(reason) = stats.why_not_faster {
///     println!("why not by a faster method: {reason}");
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct ViewStats {
    /// The tracking method in use. It is never [`Tracking::Auto`].
    pub tracker: Tracking,
    /// The reason why no faster tracking method is in use. `None` if there is no faster one.
    pub why_not_faster: Option<WhyNotFaster>,
    /// The length of the view.
    pub mapped: usize,
    /// The part of `mapped` that is mapped in huge pages. It is 0 if the system does not report it.
    #[cfg_attr(feature = "serde", serde(default))]
    pub huge: usize,
    /// The addresses before and after the view that are inaccessible: guards, and room to grow.
    pub reserved: usize,
    /// The private pages of the view, which it does not share with its snapshot. A view that is written in place has
    /// none.
    ///
    /// This is an upper bound if the tracking method is [`Tracking::Compare`], which counts all pages, or
    /// [`Tracking::Pagemap`], which also counts zero pages that were only read. With [`Tracking::Armed`] and
    /// [`Tracking::WorkingSet`], private pages that are not in memory may be missing.
    pub private: usize,
    /// The captured pages of the snapshot that was last taken of the view or restored to it.
    pub captured: usize,
    /// The number of images that share the store of that snapshot, including its own.
    pub images: usize,
    /// The most mappings that the view may take. The system limits the mappings of a process.
    pub mappings: usize,
    /// The costs of the view's operations, as the view has measured them.
    #[cfg_attr(feature = "serde", serde(default))]
    pub costs: ViewCosts,
}

/// The costs of a view's operations in nanoseconds, as the view has measured them.
///
/// [`ViewStats::costs`] contains them. The view uses these costs to decide whether to copy old bytes back or to
/// discard pages, and when to write-protect its pages. Each cost starts as an estimate, and is adjusted to the time
/// that the view's own calls take. That time depends on the machine, on what its caches hold, and on the number of
/// threads that run. So two views of the same snapshot may decide differently.
///
/// # Examples
///
/// ```
/// use memsnap::{Snapshot, page_size};
///
/// # fn main() -> std::io::Result<()> {
/// let snapshot = Snapshot::from_slice(&[1; 1 << 20])?;
/// let mut view = snapshot.view()?;
/// for _ in 0..20 {
///     view.iter_mut().step_by(page_size()).for_each(|byte| *byte = 2);
///     view.restore()?;
/// }
/// let costs = view.stats().costs;
/// println!("comparing a page takes {} ns, a first write {} ns", costs.compare_page, costs.first_write);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct ViewCosts {
    /// The time to compare or copy a page.
    pub compare_page: u64,
    /// The time to discard a run of adjacent pages, without the part that grows with their number.
    pub discard_run: u64,
    /// The time of the first write to a page that the view shares with its snapshot: a copy-on-write fault. It is
    /// derived from `compare_page`.
    pub first_write: u64,
    /// The time to write-protect all pages.
    pub protect: u64,
    /// The time spent needlessly since the view last write-protected its pages.
    ///
    /// This is the time spent on looking at pages and on comparing pages that had not been written, less the time of
    /// the page faults that did not occur because pages were not write-protected. When it exceeds about `protect` plus
    /// the time of the page faults that will follow, the view write-protects its pages.
    pub spent_in_vain: u64,
    /// The time to move 2 MiB of the snapshot into a huge page.
    ///
    /// See [`ViewOptions::huge_pages`](crate::ViewOptions::huge_pages).
    #[cfg_attr(feature = "serde", serde(default))]
    pub move_to_huge_page: u64,
    /// The time spent on walks over the view's page tables since the last pass over its regions of 2 MiB.
    ///
    /// In a pass, the view visits all of these regions and moves those that it can into huge pages. A pass begins when
    /// this exceeds about the time that a pass takes, or a multiple of that time if earlier passes saved little.
    #[cfg_attr(feature = "serde", serde(default))]
    pub spent_on_walks: u64,
}
