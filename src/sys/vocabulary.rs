//! The public types for what a backend is asked to do: how pages are prepared, backed and tracked.
//!
//! The crate root re-exports them. What a backend does with them is up to the backend.

use std::fmt;
use std::io;

/// Whether the pages of a view are prepared when it is opened.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[non_exhaustive]
pub enum Populate {
    /// Pages are not prepared.
    #[default]
    No,
    /// Prepares pages for reading.
    ///
    /// Later reads take no page fault; the first write to a page takes a copy-on-write fault.
    Read,
    /// Prepares pages for writing.
    ///
    /// All pages are private from the start and take as much memory as if all were written.
    Write,
}

/// Whether memory is in huge pages, of which the system has to manage fewer.
///
/// If the system has no huge pages, or does not permit them, all memory is in pages of the usual size.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[non_exhaustive]
pub enum HugePages {
    /// Views move the bytes of their snapshot into huge pages while they are in use, once that saves time.
    ///
    /// See [`ViewOptions::huge_pages`](crate::ViewOptions::huge_pages).
    #[default]
    Auto,
    /// Does not ask the system for huge pages.
    Never,
    /// Asks the system for huge pages from the start; best effort.
    Advise,
}

/// A tracking method: how the written pages of a view are found.
///
/// From `Armed` to `Compare`, the methods are in the order of their speed on a large view in use, fastest first.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum Tracking {
    /// The fastest method that works here. A view changes to `Armed` once that saves time.
    #[default]
    Auto,
    /// The kernel write-protects pages and notes the first write to each of them.
    ///
    /// Finding the written pages takes 1 to 2 ns for each page in memory. The first write to a write-protected page
    /// takes about 1 us. Needs Linux 6.7 and userfaultfd.
    ///
    /// Writes to [pinned memory](crate::View#pinned-memory) are not noticed if the kernel does not count the pins.
    Armed,
    /// The kernel lists private pages.
    ///
    /// This takes about 20 ns for each page in memory. Needs Linux 6.7 (`PAGEMAP_SCAN`).
    Scan,
    /// Private pages are found by reading `/proc/self/pagemap`.
    ///
    /// This takes about 50 ns for each page. Needs Linux.
    Pagemap,
    /// The system reports which pages are in memory and private.
    ///
    /// These pages, and all that are not in memory, are compared. Needs Windows.
    WorkingSet,
    /// All pages are compared. Works on every system.
    Compare,
    /// The program reports the written pages to a [logged view](crate::LoggedView).
    ///
    /// This method cannot be chosen for other views.
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

/// Why a view does not use a faster tracking method.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum WhyNotFaster {
    /// A faster method would not have saved time so far.
    NotWorthIt,
    /// The method was chosen with [`ViewOptions::tracking`](crate::ViewOptions::tracking).
    Chosen,
    /// The view is written in place: all pages in use count as written until its first snapshot is taken.
    InPlace,
    /// The process has pinned or locked memory, or the view was opened with
    /// [`ViewOptions::pinned`](crate::ViewOptions::pinned).
    ///
    /// Devices may write to such memory without a page fault.
    PinnedMemory,
    /// The system refused a faster method.
    Refused {
        /// The method that was refused.
        tracking: Tracking,
        /// The error number, as for [`std::io::Error::from_raw_os_error`].
        os_error: i32,
    },
}

impl fmt::Display for WhyNotFaster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotWorthIt => f.write_str("a faster tracking method would not have saved time so far"),
            Self::Chosen => f.write_str("this tracking method was chosen"),
            Self::InPlace => f.write_str("the view is written in place until its first snapshot"),
            Self::PinnedMemory => f.write_str("memory of the process or the view may be pinned"),
            Self::Refused { tracking, os_error } => {
                write!(f, "{tracking} is refused: {}", io::Error::from_raw_os_error(*os_error))
            }
        }
    }
}
