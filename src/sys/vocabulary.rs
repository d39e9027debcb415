//! What the layers above ask of a system: how pages are made ready, backed and tracked.

use std::fmt;
use std::io;

/// Whether pages are made ready in advance.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[non_exhaustive]
pub enum Populate {
    /// They are not.
    #[default]
    No,
    /// For reading: later reads cause no fault, and the first write to a page costs its copy.
    Read,
    /// For writing: all pages are the view's own from the start, and take up memory as if all were written.
    Write,
}

/// Whether memory is to be in huge pages, in which the system then has fewer to look after.
///
/// If the system has no huge pages, or does not permit them, all memory is in pages of the usual size.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[non_exhaustive]
pub enum HugePages {
    /// Views move a snapshot's bytes into huge pages while they are in use, once that saves time.
    ///
    /// See [`ViewOptions::huge_pages`](crate::ViewOptions::huge_pages).
    #[default]
    Auto,
    /// The system is not asked for huge pages.
    Never,
    /// The system is asked for huge pages from the start.
    Advise,
}

/// How the written pages of a view are found, from the way that is fastest on a large view in use to the slowest.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum Tracking {
    /// The best way that works here, `Armed` once that pays.
    #[default]
    Auto,
    /// Pages are write-protected asynchronously: finding those written takes 1 to 2 ns for each page in memory, and
    /// the first write to each page after a snapshot about 1 us. Linux 6.7, userfaultfd.
    ///
    /// Writes to [pinned memory](crate::View#pinned-memory) are not noticed if the kernel does not count the pins.
    Armed,
    /// The kernel lists private pages: some 20 ns for each page in memory. Linux 6.7 (`PAGEMAP_SCAN`).
    Scan,
    /// The same, read from `/proc/self/pagemap`: some 50 ns for each page.
    Pagemap,
    /// The system tells which pages are in memory and the view's own; these, and all that are not in memory, are
    /// compared. Windows.
    WorkingSet,
    /// All bytes are compared. Works anywhere.
    Compare,
    /// The program reports them to a [logged view](crate::LoggedView). It cannot be chosen.
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

/// Why the written pages of a view are not found in a faster way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum WhyNotFaster {
    /// A faster way has not been worth its price so far.
    NotWorthIt,
    /// This way was asked for ([`ViewOptions::tracking`](crate::ViewOptions::tracking)).
    Chosen,
    /// The view is written in place, where all pages in use count as written until the first snapshot is taken.
    InPlace,
    /// The process has pinned or locked memory, or the view was opened with
    /// [`ViewOptions::pinned`](crate::ViewOptions::pinned). Devices may write to such memory unnoticed.
    PinnedMemory,
    /// The system refused it, with this error number.
    Refused {
        /// What was refused.
        tracking: Tracking,
        /// As in [`std::io::Error::from_raw_os_error`].
        os_error: i32,
    },
}

impl fmt::Display for WhyNotFaster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotWorthIt => f.write_str("a faster way has not been worth its price so far"),
            Self::Chosen => f.write_str("this way was asked for"),
            Self::InPlace => f.write_str("the view is written in place until its first snapshot"),
            Self::PinnedMemory => f.write_str("memory of the process or the view may be pinned"),
            Self::Refused { tracking, os_error } => {
                write!(f, "{tracking} is refused: {}", io::Error::from_raw_os_error(*os_error))
            }
        }
    }
}
