//! Which pages of a private mapping may differ from what it shows.
//!
//! A write to a private mapping gives the page a frame of its own. The kernel tells such frames from
//! those of a file and from the zero page, and does so for writes that it makes itself (`read` into a
//! view) as well. Four tiers, from the best:
//!
//! - **armed**: pages are write-protected asynchronously (userfaultfd and `PAGEMAP_SCAN`, Linux 6.7), and one
//!   scan lists those written since; 1 to 2 ns for each page-table entry in use, and about a microsecond
//!   for the first write to each page. Starts when [`Tracker::arm`] is called. The scan reports pages without a
//!   page-table entry as written until they are protected, and protecting them takes page tables. So there is a second
//!   mode for mappings of which little is in memory ([`Scope::InMemory`]). It protects and reports only pages that are
//!   present or swapped out, and takes about 3 ns for each entry in use. No write is missed: a page that is not in
//!   memory becomes present when it is written, and its entry is not protected. A written page that is swapped out is
//!   still reported as written.
//! - **scan**: `PAGEMAP_SCAN` lists the pages that are "(present or swapped) and not a file's", and tells
//!   the zero page apart; 10 to 25 ns for each page-table entry in use.
//! - **pagemap**: the same from bits 61 to 63 of `/proc/self/pagemap`; about 50 ns an entry, in use or
//!   not. Zero pages that were only read are reported too.
//! - **compare**: nothing is known, so every page is reported.
//!
//! A tier that the kernel refuses (too old, seccomp, no `/proc`) gives way to the next for good, in this
//! view only, for a filter may hold for one thread alone. A shortage (descriptors, memory) is an error that goes back to the caller and may pass.
//!
//! Protection notices what goes through the page table. Memory that was pinned before it was protected is
//! written by devices without that. So nothing is protected in a mapping that is said to be pinned
//! ([`Tracker::of_pinned`]), nor while the kernel counts pinned or locked memory of the process. It does not count
//! all: pins are charged to the process that made a ring or opened a device, not to the one whose memory they hold,
//! and those of AF_XDP to the user alone. The other tiers need none of this: a page that is pinned for writing has
//! a frame of its own, and is neither swapped out nor merged as long as it is pinned.

use std::io;

use rustix::io::Errno;

use super::pagemap::{self, Look};
use super::process::Process;
use super::{may_have_pinned_memory, userfault};
use crate::pages::{PageRange, PageSet};
use crate::sys::Tracking;
use crate::sys::WhyNotFaster;
use crate::sys::unix::Mapping;
use crate::sys::{Closed, Collapsed, Found, Scope, Search, cannot_be_chosen, cannot_track, forced_tracking};

/// How written pages are found; see the module.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Tier {
    Armed,
    Scan,
    Pagemap,
    Compare,
}

/// Ranges of fewer written pages than this are not looked at more closely in the armed tier: to compare
/// their bytes takes no longer than to ask the kernel whose they are.
const SHORT: usize = 32;

/// Finds the written pages of one mapping.
#[derive(Clone, Copy)]
pub(crate) struct Tracker {
    tier: Tier,
    tracking: Tracking,
    /// Why the tier is none of the faster ones, where it could be.
    obstacle: Option<WhyNotFaster>,
    /// Pages may be written past the page table, so that none is ever protected.
    pinned: bool,
    /// The pages that the armed tier closes.
    scope: Scope,
}

impl Tracker {
    /// For a mapping just made. Fails where another way than the automatic one is wanted that cannot work.
    pub(crate) fn new(tracking: Tracking, mapping: &Mapping) -> io::Result<Self> {
        let mut tracker =
            Self { tier: Tier::Scan, tracking, obstacle: None, pinned: false, scope: Scope::All };
        tracker.choose(mapping, tracking)?;
        Ok(tracker)
    }

    /// For a mapping whose pages may be pinned, whatever the kernel counts: it is never armed.
    pub(crate) fn of_pinned(tracking: Tracking, mapping: &Mapping) -> io::Result<Self> {
        let mut tracker =
            Self { tier: Tier::Scan, tracking, obstacle: None, pinned: true, scope: Scope::All };
        tracker.choose(mapping, tracking)?;
        Ok(tracker)
    }

    /// Finds pages in this way from now on, if it can work.
    pub(crate) fn switch(&mut self, mapping: &Mapping, tracking: Tracking) -> io::Result<()> {
        let before = *self;
        self.choose(mapping, tracking)?;
        if before.tier == Tier::Armed {
            let _ = unregister(mapping, mapping.all());
        }
        Ok(())
    }

    fn choose(&mut self, mapping: &Mapping, tracking: Tracking) -> io::Result<()> {
        if self.pinned && tracking == Tracking::Armed {
            return Err(cannot_track(
                tracking,
                "ViewOptions::pinned",
                "memory that nothing writes while it is pinned",
            ));
        }
        if tracking == Tracking::Logged {
            return Err(cannot_be_chosen());
        }
        if tracking != Tracking::Auto {
            probe(tracking, mapping)?;
        }
        let chosen =
            if tracking == Tracking::Auto { forced_tracking().unwrap_or(tracking) } else { tracking };
        let tier = match chosen {
            Tracking::Auto | Tracking::Armed | Tracking::Scan => Tier::Scan,
            Tracking::Pagemap => Tier::Pagemap,
            Tracking::WorkingSet | Tracking::Compare | Tracking::Logged => Tier::Compare,
        };
        let obstacle = self.pinned.then_some(WhyNotFaster::PinnedMemory);
        *self = Self { tier, tracking: chosen, obstacle, ..*self };
        Ok(())
    }

    /// The tier in use.
    pub(crate) fn tracking(self) -> Tracking {
        match self.tier {
            Tier::Armed => Tracking::Armed,
            Tier::Scan => Tracking::Scan,
            Tier::Pagemap => Tracking::Pagemap,
            Tier::Compare => Tracking::Compare,
        }
    }

    /// Why it is none of the faster ones.
    pub(crate) fn why_not_faster(self) -> Option<WhyNotFaster> {
        match self.tier {
            Tier::Armed => None,
            tier if self.tracking == self.tracking() && tier != Tier::Armed => Some(WhyNotFaster::Chosen),
            _ => self.obstacle.or(Some(WhyNotFaster::NotWorthIt)),
        }
    }

    fn give_up(&mut self, next: Tier, error: Errno) {
        let refused = self.tracking();
        self.obstacle = Some(WhyNotFaster::Refused { tracking: refused, os_error: error.raw_os_error() });
        self.tier = next;
    }

    /// Looks for pages of `mapping`. With `count` the others are counted, where that is possible and the count
    /// makes a difference, which takes up to a third longer.
    ///
    /// `shows_zeroes` says of a page whether zeroes there are what the mapping shows. Elsewhere the zero page
    /// is a change: the kernel puts it in place of a written page that it found to be zero (KSM with
    /// `use_zero_pages`). `expected` are pages that likely have a frame of their own, so that a second scan of them
    /// does not pay.
    pub(crate) fn find(
        &mut self,
        search: Search,
        mapping: &Mapping,
        count: bool,
        expected: &PageSet,
        shows_zeroes: impl Fn(usize) -> bool,
    ) -> io::Result<Found> {
        if mapping.pages() == 0 {
            return Ok(Found::all_private(PageSet::new()));
        }
        if self.tier == Tier::Armed {
            let close = search == Search::WrittenAndClose && !may_have_pinned_memory();
            let mut found = pagemap::written(mapping, mapping.all(), self.scope, close)
                .and_then(|open| sift(mapping, &open, expected, &shows_zeroes));
            if let Ok(open) = &found
                && search == Search::Private
            {
                // A closed page without an entry is a marker, which looks as if it were swapped out.
                found = pagemap::private(mapping, mapping.all(), Look::InMemory, &shows_zeroes).map(
                    |(private, _)| Found {
                        complete: false,
                        ..Found::all_private(open.pages.union(&private))
                    },
                );
            }
            match found {
                Ok(found) => return Ok(Found { closed: self.closed(close), ..found }),
                Err(shortage @ (Errno::MFILE | Errno::NFILE | Errno::NOMEM)) => return Err(shortage.into()),
                // In a forked child, or after a filter came into force, nothing is protected (any more).
                Err(error) => self.give_up(Tier::Scan, error),
            }
        }
        loop {
            let found = match self.tier {
                Tier::Armed | Tier::Scan => {
                    let look = if count { Look::AndCount } else { Look::Everywhere };
                    pagemap::private(mapping, mapping.all(), look, &shows_zeroes)
                }
                Tier::Pagemap => {
                    pagemap::private_by_reading(mapping, mapping.all()).map(|pages| (pages, None))
                }
                Tier::Compare => {
                    let all = Found::all_private(PageSet::all(mapping.pages()));
                    return Ok(Found { known: false, ..all });
                }
            };
            match found {
                Ok((pages, others)) => return Ok(Found { others, ..Found::all_private(pages) }),
                Err(shortage @ (Errno::MFILE | Errno::NFILE | Errno::NOMEM)) => return Err(shortage.into()),
                Err(error) if self.tier == Tier::Pagemap => self.give_up(Tier::Compare, error),
                Err(error) => self.give_up(Tier::Pagemap, error),
            }
        }
    }

    /// Closes the pages of `scope`, so that `find` from now on reports only pages that are written later. Best effort:
    /// `find` reports pages that could not be closed.
    pub(crate) fn arm(&mut self, mapping: &Mapping, scope: Scope) -> Closed {
        if self.may_arm() && mapping.pages() > 0 {
            if may_have_pinned_memory() {
                self.obstacle = Some(WhyNotFaster::PinnedMemory);
            } else {
                match register(mapping, mapping.all()) {
                    Ok(()) => self.tier = Tier::Armed,
                    Err(error) => {
                        let (tracking, os_error) = (Tracking::Armed, error.raw_os_error());
                        self.obstacle = Some(WhyNotFaster::Refused { tracking, os_error });
                    }
                }
            }
        }
        self.scope = scope;
        self.close(mapping)
    }

    /// Closes the pages of an armed mapping that are in its scope. Best effort: pages that stay open are reported
    /// again.
    pub(crate) fn close(self, mapping: &Mapping) -> Closed {
        let armed = self.tier == Tier::Armed && !may_have_pinned_memory();
        self.closed(armed && pagemap::protect(mapping, mapping.all(), self.scope).is_ok())
    }

    /// The pages of the scope if they were `closed`, otherwise nothing.
    fn closed(self, closed: bool) -> Closed {
        match self.scope {
            _ if !closed => Closed::Nothing,
            Scope::All => Closed::All,
            Scope::InMemory => Closed::InMemory,
        }
    }

    /// Whether only pages in memory are closed.
    pub(crate) fn is_sparse(self) -> bool {
        self.scope == Scope::InMemory
    }

    /// Makes later calls close all pages.
    pub(crate) fn widen(&mut self) {
        self.scope = Scope::All;
    }

    /// After other memory was mapped in place of what `range` showed, or was added there.
    pub(crate) fn renewed(&mut self, mapping: &Mapping, range: PageRange) {
        if self.tier == Tier::Armed && range.len() > 0 && register(mapping, range).is_err() {
            self.stop(mapping);
        }
    }

    /// Ends write-protection for good, after a part of the mapping could not be registered or unregistered. What stays
    /// registered would keep its markers, which searches for private pages take for pages that are swapped out. To
    /// unregister whole mappings takes no memory of the kernel.
    fn stop(&mut self, mapping: &Mapping) {
        self.tier = Tier::Scan;
        let _ = unregister(mapping, mapping.all());
    }

    /// Whether searches take less time in huge pages.
    pub(crate) fn gains_from_huge_pages(self) -> bool {
        matches!(self.tier, Tier::Armed | Tier::Scan)
    }

    /// Moves the file's pages `region` into a huge page.
    ///
    /// There are as many pages as [`huge_region`](super::huge_region) says.
    ///
    /// As when pages are closed, each of them must show what the caller compares with. Fails with `Unsupported` if a
    /// page of the region is private.
    ///
    /// The kernel does not map a huge page in memory that is registered with userfaultfd. So in an armed mapping, the
    /// region is unregistered, moved, registered again and closed. While memory may be pinned, pages must not be
    /// closed, so nothing is moved either.
    pub(crate) fn collapse(&mut self, mapping: &Mapping, region: PageRange) -> Collapsed {
        let refused = |error| Collapsed { moved: Err(error), opened: false };
        // A closed page without an entry is a marker, which looks as if it were swapped out.
        let look = if self.tier == Tier::Armed { Look::InMemory } else { Look::Everywhere };
        match pagemap::private(mapping, region, look, |_| true) {
            Ok((private, _)) if private.is_empty() => {}
            Ok(_) => return refused(io::ErrorKind::Unsupported.into()),
            Err(error) => return refused(error.into()),
        }
        if self.tier != Tier::Armed {
            return Collapsed { moved: mapping.collapse(region), opened: false };
        }
        if may_have_pinned_memory() {
            return refused(io::ErrorKind::Unsupported.into());
        }
        if let Err(error) = unregister(mapping, region) {
            // Some or all of its pages may be open now.
            self.stop(mapping);
            return Collapsed { moved: Err(error.into()), opened: true };
        }
        let moved = mapping.collapse(region);
        self.renewed(mapping, region);
        let closed = self.tier == Tier::Armed && pagemap::protect(mapping, region, self.scope).is_ok();
        Collapsed { moved, opened: !closed }
    }

    /// After other memory was mapped in place of all that the mapping showed.
    pub(crate) fn disarm(&mut self) {
        if self.tier == Tier::Armed {
            self.tier = Tier::Scan;
        }
    }

    pub(crate) fn is_armed(self) -> bool {
        self.tier == Tier::Armed
    }

    /// Whether to arm without further thought.
    pub(crate) fn must_arm(self) -> bool {
        self.tracking == Tracking::Armed && self.tier == Tier::Scan && !self.pinned
    }

    fn may_arm(self) -> bool {
        self.tier == Tier::Scan && !self.pinned && matches!(self.tracking, Tracking::Auto | Tracking::Armed)
    }
}

fn register(mapping: &Mapping, range: PageRange) -> Result<(), Errno> {
    userfault::register(Process::current()?.userfault()?, mapping, range)
}

fn unregister(mapping: &Mapping, range: PageRange) -> Result<(), Errno> {
    userfault::unregister(Process::current()?.userfault()?, mapping, range)
}

/// Whether written pages can be found in this way. Says why, if they cannot.
fn probe(tracking: Tracking, mapping: &Mapping) -> io::Result<()> {
    let first = PageRange::new(0, mapping.pages().min(1));
    if first.len() == 0 {
        return Ok(());
    }
    let (needs, worked) = match tracking {
        Tracking::Auto | Tracking::Compare | Tracking::Logged => return Ok(()),
        Tracking::WorkingSet => return Err(cannot_track(tracking, "this is Linux", "Windows")),
        Tracking::Armed => {
            let needs = "Linux 6.7 and userfaultfd, or access to /dev/userfaultfd";
            let written = || pagemap::written(mapping, first, Scope::All, false).map(drop);
            let worked = register(mapping, first).and_then(|()| written());
            let _ = unregister(mapping, mapping.all());
            (needs, worked)
        }
        Tracking::Scan => {
            let private = pagemap::private(mapping, first, Look::Everywhere, |_| true);
            ("Linux 6.7 and access to /proc/self/pagemap", private.map(drop))
        }
        Tracking::Pagemap => {
            ("access to /proc/self/pagemap", pagemap::private_by_reading(mapping, first).map(drop))
        }
    };
    match worked {
        Err(shortage @ (Errno::MFILE | Errno::NFILE | Errno::NOMEM)) => Err(shortage.into()),
        Err(error) => Err(cannot_track(tracking, error, needs)),
        Ok(()) => Ok(()),
    }
}

/// The private pages among the `open` ones. Short ranges, and ranges of `expected` pages, are returned without a look
/// at each page. Pages that were never mapped are open too, in page tables that are newer than the last closing; they
/// come in long ranges.
fn sift(
    mapping: &Mapping,
    open: &PageSet,
    expected: &PageSet,
    shows_zeroes: impl Fn(usize) -> bool,
) -> Result<Found, Errno> {
    let mut pages = PageSet::new();
    for &range in open.ranges() {
        if range.len() < SHORT || expected.covers(range) {
            pages.push_range(range);
        } else {
            let (private, _) = pagemap::private(mapping, range, Look::Everywhere, &shows_zeroes)?;
            private.ranges().iter().for_each(|&range| pages.push_range(range));
        }
    }
    let unwritten = open.len() - pages.len();
    Ok(Found { since_closed: true, complete: false, unwritten, ..Found::all_private(pages) })
}
