//! Which pages of a private mapping may differ from what it shows: nothing that POSIX has tells, so all are compared.

use std::io;

use crate::pages::{PageRange, PageSet};
use crate::sys::Tracking;
use crate::sys::WhyNotFaster;
use crate::sys::unix::Mapping;
use crate::sys::{Closed, Collapsed, Found, Scope, Search, cannot_be_chosen, cannot_track};

/// Finds the written pages of one mapping.
#[derive(Clone, Copy)]
pub(crate) struct Tracker {
    /// Whether comparing was asked for.
    chosen: bool,
}

impl Tracker {
    /// For a mapping just made. Fails where another way than to compare is wanted.
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

    /// The same: pinned pages can be compared like others.
    pub(crate) fn of_pinned(tracking: Tracking, mapping: &Mapping) -> io::Result<Self> {
        Self::new(tracking, mapping)
    }

    /// Finds pages in this way from now on, if it can work.
    pub(crate) fn switch(&mut self, mapping: &Mapping, tracking: Tracking) -> io::Result<()> {
        *self = Self::new(tracking, mapping)?;
        Ok(())
    }

    /// The way in use.
    pub(crate) fn tracking(self) -> Tracking {
        Tracking::Compare
    }

    /// Why it is none of the faster ones; there is none.
    pub(crate) fn why_not_faster(self) -> Option<WhyNotFaster> {
        self.chosen.then_some(WhyNotFaster::Chosen)
    }

    /// All pages of `mapping`.
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

    /// A wish that is not granted.
    pub(crate) fn arm(&mut self, _mapping: &Mapping, _scope: Scope) -> Closed {
        Closed::Nothing
    }

    /// A wish that is not granted.
    pub(crate) fn close(self, _mapping: &Mapping) -> Closed {
        Closed::Nothing
    }

    pub(crate) fn is_sparse(self) -> bool {
        false
    }

    /// Nothing is closed, whatever the scope.
    pub(crate) fn widen(&mut self) {}

    /// After other memory was mapped in place of what `range` showed, or was added there.
    pub(crate) fn renewed(&mut self, _mapping: &Mapping, _range: PageRange) {}

    /// Always `false`: there are no huge pages.
    pub(crate) fn gains_from_huge_pages(self) -> bool {
        false
    }

    /// Always fails: there are no huge pages.
    pub(crate) fn collapse(&mut self, _: &Mapping, _: PageRange) -> Collapsed {
        Collapsed { moved: Err(io::ErrorKind::Unsupported.into()), opened: false }
    }

    /// After other memory was mapped in place of all that the mapping showed.
    pub(crate) fn disarm(&mut self) {}

    pub(crate) fn is_armed(self) -> bool {
        false
    }

    /// Whether to arm without further thought.
    pub(crate) fn must_arm(self) -> bool {
        false
    }
}
