//! The public enums that say how pages are populated, whether they are in huge pages, and how written pages are found.
//!
//! `lib.rs` re-exports them. Each backend in `sys/` decides which of these values it supports.

use std::fmt;
use std::io;

/// Whether the pages of a view are prepared when it is opened.
///
/// See [`ViewOptions::populate`](crate::ViewOptions::populate).
///
/// # Examples
///
/// ```
/// use memsnap::{Populate, Snapshot, ViewOptions};
///
/// # fn main() -> std::io::Result<()> {
/// let snapshot = Snapshot::from_slice(&[1; 1 << 20])?;
/// let view = snapshot.view_with(ViewOptions::new().populate(Populate::Read))?;
/// assert_eq!(view[1 << 19], 1); // takes no page fault
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[non_exhaustive]
pub enum Populate {
    /// No page is prepared. Pages are prepared by page faults when they are first used.
    #[default]
    No,
    /// All pages are prepared for reading. Reads take no page faults. The first write to a page takes a copy-on-write
    /// fault.
    Read,
    /// All pages are prepared for writing. Neither reads nor writes take page faults. All pages are private from the
    /// start, and take as much memory as if all had been written.
    Write,
}

/// Whether memory is in huge pages, which need fewer page faults and page-table entries.
///
/// If the system has no huge pages, or does not permit them, all memory is in pages of the usual size. See
/// [`ViewOptions::huge_pages`](crate::ViewOptions::huge_pages) and
/// [`SnapshotOptions::huge_pages`](crate::SnapshotOptions::huge_pages).
///
/// # Examples
///
/// ```
/// use memsnap::{HugePages, SnapshotOptions, ViewOptions};
///
/// # fn main() -> std::io::Result<()> {
/// let model = SnapshotOptions::new().huge_pages(HugePages::Advise).from_slice(&vec![1; 4 << 20])?;
/// let view = model.view_with(ViewOptions::new().huge_pages(HugePages::Never))?;
/// println!("{} bytes of the view are in huge pages", view.stats().huge);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[non_exhaustive]
pub enum HugePages {
    /// A view moves its snapshot's bytes into huge pages while it is in use, once that saves time.
    ///
    /// See [`ViewOptions::huge_pages`](crate::ViewOptions::huge_pages).
    #[default]
    Auto,
    /// memsnap does not ask the system for huge pages.
    Never,
    /// memsnap asks the system for huge pages from the start.
    Advise,
}

/// A tracking method: how the written pages of a view are found.
///
/// The methods from `Armed` to `Compare` are listed from the fastest to the slowest for a large view. They find the
/// same changes, in different times. [`ViewOptions::tracking`](crate::ViewOptions::tracking) chooses a method, and
/// [`ViewStats::tracker`](crate::ViewStats::tracker) is the one in use.
///
/// # Examples
///
/// ```
/// use memsnap::{Snapshot, Tracking, ViewOptions};
///
/// # fn main() -> std::io::Result<()> {
/// let snapshot = Snapshot::zeroed(1 << 20)?;
/// let view = snapshot.view_with(ViewOptions::new().tracking(Tracking::Compare))?;
/// assert_eq!(view.stats().tracker, Tracking::Compare);
/// assert_eq!(Tracking::Compare.to_string(), "compare");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum Tracking {
    /// The fastest method that works, except that the view changes to `Armed` only once that saves time.
    #[default]
    Auto,
    /// Pages are write-protected asynchronously: the kernel records the first write to a page, and the program
    /// continues.
    ///
    /// Finding the written pages takes 1 to 3 ns for each page in memory. The first write to a write-protected page
    /// takes about 1 us. Needs Linux 6.7 and userfaultfd.
    ///
    /// Writes to [pinned memory](crate::View#pinned-memory) are not noticed if the kernel does not count the pins.
    Armed,
    /// The kernel lists private pages, which takes some 20 ns for each page in memory. Needs Linux 6.7
    /// (`PAGEMAP_SCAN`).
    Scan,
    /// The view lists private pages by reading `/proc/self/pagemap`, which takes some 50 ns for each page. Needs
    /// Linux.
    Pagemap,
    /// The system lists the pages that are in memory and private. The view compares these, and also all pages that are
    /// not in memory. Where the view shows zeroes, the system lists the written pages instead. Needs Windows.
    WorkingSet,
    /// All bytes are compared. Works everywhere.
    Compare,
    /// The program reports the written pages. This is the method of [logged views](crate::LoggedView), and cannot be
    /// chosen.
    Logged,
}

impl fmt::Display for Tracking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Armed => "armed",
            Self::Scan => "scan",
            Self::Pagemap => "pagemap",
            Self::WorkingSet => "working-set",
            Self::Compare => "compare",
            Self::Logged => "logged",
        })
    }
}

/// The reason why a view does not use a faster tracking method.
///
/// [`ViewStats::why_not_faster`](crate::ViewStats::why_not_faster) contains it.
///
/// # Examples
///
/// ```
/// use memsnap::{Snapshot, Tracking, ViewOptions, WhyNotFaster};
///
/// # fn main() -> std::io::Result<()> {
/// let snapshot = Snapshot::zeroed(1 << 20)?;
/// let view = snapshot.view_with(ViewOptions::new().tracking(Tracking::Compare))?;
/// assert_eq!(view.stats().why_not_faster, Some(WhyNotFaster::Chosen));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum WhyNotFaster {
    /// A faster method would not have saved time so far.
    NotWorthIt,
    /// The program chose this method ([`ViewOptions::tracking`](crate::ViewOptions::tracking)).
    Chosen,
    /// The view is written in place, until its first snapshot or restore. Until then, all pages in use count as
    /// written.
    InPlace,
    /// Memory of the process is pinned or locked, or the view was opened with
    /// [`ViewOptions::pinned`](crate::ViewOptions::pinned). Write-protection does not notice what devices write to
    /// such memory.
    PinnedMemory,
    /// The system refused the faster method.
    Refused {
        /// The method that was refused.
        tracking: Tracking,
        /// The error number, as in [`std::io::Error::from_raw_os_error`].
        os_error: i32,
    },
}

impl fmt::Display for WhyNotFaster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotWorthIt => f.write_str("a faster method would not have saved time so far"),
            Self::Chosen => f.write_str("this method was chosen"),
            Self::InPlace => f.write_str("the view is written in place until its first snapshot"),
            Self::PinnedMemory => f.write_str("memory of the process or the view may be pinned"),
            Self::Refused { tracking, os_error } => {
                write!(f, "{tracking} is refused: {}", io::Error::from_raw_os_error(*os_error))
            }
        }
    }
}
