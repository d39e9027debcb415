//! How things are to be done.

/// How the written pages of a view are found.
#[doc(hidden)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tracking {
    /// The best way that works, `Armed` where it pays.
    Auto,
    /// Write-protected asynchronously, from the first search on.
    Armed,
    /// By `PAGEMAP_SCAN`.
    Scan,
    /// By reading `/proc/self/pagemap`.
    Pagemap,
    /// By comparing all bytes.
    Compare,
}
