//! The sets of pages that a working tree remembers in addition to what its tracker knows.
//!
//! This file keeps the sets. The files that search, capture, restore and discard pages decide what is in them.

use std::mem;

use crate::pages::{PageRange, PageSet};

/// What is known about the pages of a view, compared with the image that it last showed.
///
/// That image is `synced` in [`State`](super::state::State).
///
/// Invariant, if the mapping is private: a page shows `synced` if it is not in `unsynced` and the tracker does not list
/// it. In a logged view, the pages that the program has reported take the place of those that the tracker lists.
#[derive(Default)]
pub(super) struct KnownPages {
    /// Pages that may differ from `synced`, although the tracker may not list them (again).
    unsynced: PageSet,
    /// `None` if it is not known which pages are private.
    ///
    /// Otherwise, it contains at least the pages that were private after the last search, except those that the engine
    /// has discarded since. It may lack pages that were written since that search.
    private: Option<PageSet>,
    /// Whether every page was write-protected when the range last showed `synced`.
    ///
    /// If so, all pages that the tracker lists were written since then.
    all_write_protected: bool,
}

impl KnownPages {
    /// The unsynced pages: those that may differ from `synced` although the tracker may not list them.
    pub(super) fn unsynced(&self) -> &PageSet {
        &self.unsynced
    }

    /// Removes all unsynced pages, and returns them.
    ///
    /// The caller has to set `synced` to an image that the range shows, or to put the pages back.
    pub(super) fn take_unsynced(&mut self) -> PageSet {
        mem::take(&mut self.unsynced)
    }

    /// Adds `pages` to the unsynced pages.
    pub(super) fn may_differ(&mut self, pages: &PageSet) {
        self.unsynced = pages.union(&self.unsynced);
    }

    /// Replaces the unsynced pages by `pages`. All others show `synced`, or the tracker lists them.
    pub(super) fn only_may_differ(&mut self, pages: PageSet) {
        self.unsynced = pages;
    }

    /// Removes the pages of `range` from the unsynced pages, because they show `synced`.
    pub(super) fn show_synced(&mut self, range: PageRange) {
        self.unsynced = self.unsynced.minus(&range.into());
    }

    /// The pages that are private, if that is known.
    pub(super) fn private(&self) -> Option<&PageSet> {
        self.private.as_ref()
    }

    /// Notes which pages are private. `None` notes that this is not known.
    pub(super) fn set_private(&mut self, pages: Option<PageSet>) {
        self.private = pages;
    }

    /// Notes that `pages` have become private.
    pub(super) fn add_private(&mut self, pages: &PageSet) {
        if let Some(private) = &mut self.private
            && !pages.is_empty()
        {
            *private = private.union(pages);
        }
    }

    /// Notes that the engine has discarded `pages`.
    pub(super) fn remove_private(&mut self, pages: &PageSet) {
        if let Some(private) = &mut self.private
            && !pages.is_empty()
        {
            *private = private.minus(pages);
        }
    }

    /// Whether every page was write-protected when the range last showed `synced`.
    pub(super) fn all_write_protected(&self) -> bool {
        self.all_write_protected
    }

    /// Notes whether every page is write-protected now.
    pub(super) fn set_all_write_protected(&mut self, all: bool) {
        self.all_write_protected = all;
    }

    /// Notes that the range was shortened to `pages` pages.
    pub(super) fn truncate(&mut self, pages: usize) {
        self.unsynced = self.unsynced.below(pages);
    }
}
