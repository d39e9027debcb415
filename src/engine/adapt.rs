//! Moves the image of a view into huge pages, and decides which of its regions are moved.
//!
//! `adaptation.rs` decides when. The tracker in `sys/` does the move itself.

use std::io;
use std::time::Instant;

use crate::access::Access;
use crate::engine::adaptation::Visit;
use crate::engine::cost::nanoseconds;
use crate::engine::state::{Backing, State};
use crate::pages::PageRange;
use crate::sys::{Collapsed, HugePages, huge_region};
use crate::trace;

/// At most one in `HOLES` pages of a region may be a hole of the file.
///
/// A move provides memory for the holes. So the image's memory grows by at most a seventh.
const HOLES: usize = 8;

/// At least one in `IN_USE` pages of a region must have a page-table entry.
///
/// If a region has fewer entries, moving it saves little time.
const IN_USE: usize = 4;

impl State {
    /// Moves a part of the image into huge pages, if a step is due.
    ///
    /// Each page of the view must show `synced` or be in `unsynced`.
    pub(crate) fn adapt(&mut self) {
        let Some(region) = self.adaptation.region() else { return };
        let pages = self.mapping.pages();
        let regions = pages / region;
        if self.synced.label.huge_pages == HugePages::Never
            || !self.tracker.gains_from_huge_pages()
            || !self.adaptation.may_step(regions)
        {
            return;
        }
        let start = Instant::now();
        let (mut step, mut moved) = (0, false);
        loop {
            let next = match self.adaptation.next(regions) {
                Ok(next) => next,
                Err(moved) => return trace::moved_to_huge_pages(pages, moved),
            };
            let visit = self.visit(PageRange::new(next * region, (next + 1) * region));
            let until_now = nanoseconds(start.elapsed());
            let took = until_now - step;
            (step, moved) = (until_now, moved || visit == Visit::Moved);
            if !self.adaptation.visited(visit, took) || !self.adaptation.has_time(step, moved) {
                return;
            }
        }
    }

    /// Moves `region` into a huge page, if a move saves time and takes little memory.
    fn visit(&mut self, region: PageRange) -> Visit {
        let Backing::Private(layout) = &self.backing else { return Visit::Skipped };
        let Some(file) = layout.file_of(region) else { return Visit::Skipped };
        // The kernel has a mapping of its own for each part with another access, and moves a region only if one mapping
        // has all of it.
        if !self.access.all(region, Access::can_write) {
            return Visit::Skipped;
        }
        match self.mapping.entries(region) {
            Ok(entries) if entries.huge == 0 && entries.small >= region.len() / IN_USE => {}
            _ => return Visit::Skipped,
        }
        if file.holes(&self.mapping, region).is_none_or(|holes| holes > region.len() / HOLES) {
            return Visit::Skipped;
        }
        let Collapsed { moved, unprotected } = self.tracker.collapse(&self.mapping, region);
        if unprotected {
            self.known.set_all_write_protected(false);
        }
        match moved {
            Ok(()) => Visit::Moved,
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Visit::Skipped,
            Err(_) => Visit::Refused,
        }
    }

    /// The number of the view's pages that are mapped in huge pages. 0 if the system does not report this.
    pub(crate) fn huge_pages(&self) -> usize {
        let all = PageRange::new(0, self.mapping.pages());
        let is_possible = huge_region().is_some_and(|region| all.len() >= region);
        if is_possible { self.mapping.entries(all).map_or(0, |entries| entries.huge) } else { 0 }
    }
}
