//! Finds the pages of a private mapping that may differ from its source.
//!
//! No call in POSIX reports written pages, so every search lists all pages, and the layers above compare them. No page
//! is write-protected.

use std::io;

use crate::pages::{PageRange, PageSet};
use crate::sys::Tracking;
use crate::sys::WhyNotFaster;
use crate::sys::unix::Mapping;
use crate::sys::{Collapsed, Found, Scope, Search, WriteProtected, cannot_be_chosen, cannot_track};

/// Finds the written pages of one mapping.
#[derive(Clone, Copy)]
pub(crate) struct Tracker {
    /// Whether `Tracking::Compare` was chosen.
    chosen: bool,
}

impl Tracker {
    /// Makes a tracker for a new mapping.
    ///
    /// Fails with `Unsupported` unless `tracking` is `Auto` or `Compare`.
    pub(crate) fn new(tracking: Tracking, _mapping: &Mapping) -> io::Result<Self> {
        let needs = match tracking {
            Tracking::Auto | Tracking::Compare => {
                return Ok(Self { chosen: tracking == Tracking::Compare });
            }
            Tracking::Armed | Tracking::Scan | Tracking::Pagemap => "Linux",
            Tracking::WorkingSet => "Windows",
            Tracking::Logged => return Err(cannot_be_chosen()),
        };
        Err(cannot_track(tracking, "pages are compared on this system", needs))
    }

    /// Makes a tracker for a mapping whose pages may be pinned. They are compared like all others.
    pub(crate) fn of_pinned(tracking: Tracking, mapping: &Mapping) -> io::Result<Self> {
        Self::new(tracking, mapping)
    }

    /// Changes to another tracking method. Fails and changes nothing if it cannot work.
    pub(crate) fn switch(&mut self, mapping: &Mapping, tracking: Tracking) -> io::Result<()> {
        *self = Self::new(tracking, mapping)?;
        Ok(())
    }

    /// Returns the tracking method in use.
    pub(crate) fn tracking(self) -> Tracking {
        Tracking::Compare
    }

    /// Returns why no faster tracking method is in use.
    ///
    /// There is none, so only the caller's choice can be the reason.
    pub(crate) fn why_not_faster(self) -> Option<WhyNotFaster> {
        self.chosen.then_some(WhyNotFaster::Chosen)
    }

    /// Lists all pages of `mapping`.
    pub(crate) fn find(
        &mut self,
        _search: Search,
        mapping: &Mapping,
        _count: bool,
        _expected: &PageSet,
        _shows_zeroes: impl Fn(usize) -> bool,
    ) -> io::Result<Found> {
        Ok(Found { known: false, ..Found::all_private(PageSet::all(mapping.pages())) })
    }

    /// Does nothing: no page can be write-protected.
    pub(crate) fn arm(&mut self, _mapping: &Mapping, _scope: Scope) -> WriteProtected {
        WriteProtected::Nothing
    }

    /// Does nothing: no page can be write-protected.
    pub(crate) fn write_protect(self, _mapping: &Mapping) -> WriteProtected {
        WriteProtected::Nothing
    }

    pub(crate) fn is_sparse(self) -> bool {
        false
    }

    /// Does nothing: no page can be write-protected.
    pub(crate) fn widen(&mut self) {}

    /// Does nothing: no memory is registered.
    pub(crate) fn renewed(&mut self, _mapping: &Mapping, _range: PageRange) {}

    /// Always returns `false`: pages cannot be moved into huge pages.
    pub(crate) fn gains_from_huge_pages(self) -> bool {
        false
    }

    /// Always fails with `Unsupported`: pages cannot be moved into huge pages.
    pub(crate) fn collapse(&mut self, _: &Mapping, _: PageRange) -> Collapsed {
        Collapsed { moved: Err(io::ErrorKind::Unsupported.into()), unprotected: false }
    }

    /// Does nothing: the mapping is never armed.
    pub(crate) fn disarm(&mut self) {}

    pub(crate) fn is_armed(self) -> bool {
        false
    }

    /// Always returns `false`: the mapping cannot be armed.
    pub(crate) fn must_arm(self) -> bool {
        false
    }
}
