//! Events for those who watch: one for each snapshot taken, restore and consolidation (feature `tracing`).
#![cfg_attr(not(feature = "tracing"), allow(unused_variables))]

use crate::options::Tracking;

/// A view of `pages` pages was captured; `looked_at` pages were candidates, of which `captured` had changed.
pub(crate) fn taken(pages: usize, looked_at: usize, captured: usize, tracker: Tracking) {
    #[cfg(feature = "tracing")]
    tracing::debug!(target: "memsnap", pages, looked_at, captured, %tracker, "snapshot taken");
}

/// A view of `pages` pages was restored in this `way`; `rewritten` pages were looked at one by one.
pub(crate) fn restored(way: &'static str, pages: usize, rewritten: usize, tracker: Tracking) {
    #[cfg(feature = "tracing")]
    tracing::debug!(target: "memsnap", way, pages, rewritten, %tracker, "view restored");
}

/// `written` pages of an image of `pages` pages were written into a flat file.
pub(crate) fn consolidated(pages: usize, written: usize) {
    #[cfg(feature = "tracing")]
    tracing::debug!(target: "memsnap", pages, written, "image consolidated");
}
