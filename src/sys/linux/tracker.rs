//! Finds the pages of a private mapping that may differ from its source, and chooses the tracking method (tier).
//!
//! The layers above decide when to search and when to arm a view. The ioctls are in `pagemap.rs` and `userfault.rs`.
//!
//! A write to a private mapping makes the page private: it gets a frame of its own. The kernel distinguishes such
//! frames from those of a file and from the zero page. This includes pages that the kernel itself wrote (`read` into a
//! view). There are four tiers, the fastest first:
//!
//! - **armed**: pages are write-protected asynchronously (userfaultfd and `PAGEMAP_SCAN`, Linux 6.7), and one scan
//!   lists the pages written since. This takes 1 to 2 ns for each page-table entry in use, and about a microsecond for
//!   the first write to each page. A view is armed by [`Tracker::arm`]. The scan lists pages without a page-table entry
//!   as written until they are write-protected, and to write-protect them the kernel has to allocate page tables. So
//!   there is a second mode for mappings of which little is in memory ([`Scope::InMemory`]). It write-protects and
//!   lists only pages that are present or swapped out, and takes about 3 ns for each entry in use. It misses no write:
//!   a page that is not in memory becomes present when it is written, and its entry is not write-protected. A written
//!   page that is swapped out is still listed as written.
//! - **scan**: `PAGEMAP_SCAN` lists the pages that are present or swapped out and do not belong to a file, and
//!   distinguishes the zero page. This takes 10 to 25 ns for each page-table entry in use.
//! - **pagemap**: bits 61 to 63 of each entry of `/proc/self/pagemap` say the same. This takes about 50 ns for each
//!   entry, in use or not. Pages that were only read and are mapped to the zero page are listed too.
//! - **compare**: nothing is known, so every page is listed.
//!
//! If the kernel refuses a tier (it is too old, a seccomp filter refuses the call, or there is no `/proc`), the tracker
//! changes to the next tier for good. This applies to one view only, because a filter may apply to one thread only. A
//! lack of descriptors or memory may be temporary, so it is returned as an error.
//!
//! # Pinned memory
//!
//! Write-protection notices only writes that go through the page table. If memory was pinned before it was
//! write-protected, devices write to it without that. So no page is write-protected in a mapping that its owner
//! declares as pinned ([`Tracker::of_pinned`]), nor while the kernel counts pinned or locked memory of the process. The
//! kernel does not count all pins: it charges them to the process that made a ring or opened a device, which may not be
//! the one whose memory is pinned. It charges those of AF_XDP to the user only. The other tiers find pinned pages that
//! were written in any case: a page that is pinned for writing is private, and is neither swapped out nor merged as
//! long as it is pinned.

use std::io;

use rustix::io::Errno;

use super::pagemap::{self, Look};
use super::process::Process;
use super::{may_have_pinned_memory, userfault};
use crate::pages::{PageRange, PageSet};
use crate::sys::Tracking;
use crate::sys::WhyNotFaster;
use crate::sys::unix::Mapping;
use crate::sys::{
    Collapsed, Found, Scope, Search, WriteProtected, cannot_be_chosen, cannot_track, forced_tracking,
};

/// How written pages are found, as the module describes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Tier {
    Armed,
    Scan,
    Pagemap,
    Compare,
}

/// The least number of written pages in a row about which the armed tier asks the kernel again.
///
/// Comparing the bytes of a shorter range takes no longer than asking which of its pages are private.
const SHORT: usize = 32;

/// Finds the written pages of one mapping.
#[derive(Clone, Copy)]
pub(crate) struct Tracker {
    tier: Tier,
    /// The tracking method that was chosen.
    tracking: Tracking,
    /// Why the tracker does not use a faster tier: the kernel refused it, or memory may be pinned.
    obstacle: Option<WhyNotFaster>,
    /// Whether the owner declared that pages may be pinned. Then none is ever write-protected.
    pinned: bool,
    /// The pages that the armed tier write-protects.
    scope: Scope,
}

impl Tracker {
    /// Makes a tracker for a new mapping.
    ///
    /// Fails with `Unsupported` if `tracking` is not `Auto` and cannot work.
    pub(crate) fn new(tracking: Tracking, mapping: &Mapping) -> io::Result<Self> {
        let mut tracker =
            Self { tier: Tier::Scan, tracking, obstacle: None, pinned: false, scope: Scope::All };
        tracker.choose(mapping, tracking)?;
        Ok(tracker)
    }

    /// Makes a tracker for a mapping whose pages may be pinned, whatever the kernel counts.
    ///
    /// The mapping is never armed.
    pub(crate) fn of_pinned(tracking: Tracking, mapping: &Mapping) -> io::Result<Self> {
        let mut tracker =
            Self { tier: Tier::Scan, tracking, obstacle: None, pinned: true, scope: Scope::All };
        tracker.choose(mapping, tracking)?;
        Ok(tracker)
    }

    /// Changes to another tracking method. Fails and changes nothing if it cannot work.
    pub(crate) fn switch(&mut self, mapping: &Mapping, tracking: Tracking) -> io::Result<()> {
        let before = *self;
        self.choose(mapping, tracking)?;
        if before.tier == Tier::Armed {
            let _ = unregister(mapping, mapping.all());
        }
        Ok(())
    }

    /// Sets the tier and the state that goes with it, after a check that the method can work.
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

    /// Returns the tier in use.
    pub(crate) fn tracking(self) -> Tracking {
        match self.tier {
            Tier::Armed => Tracking::Armed,
            Tier::Scan => Tracking::Scan,
            Tier::Pagemap => Tracking::Pagemap,
            Tier::Compare => Tracking::Compare,
        }
    }

    /// Returns why the tracker does not use a faster tier.
    pub(crate) fn why_not_faster(self) -> Option<WhyNotFaster> {
        match self.tier {
            Tier::Armed => None,
            tier if self.tracking == self.tracking() && tier != Tier::Armed => Some(WhyNotFaster::Chosen),
            _ => self.obstacle.or(Some(WhyNotFaster::NotWorthIt)),
        }
    }

    /// Changes to the tier `next` after the kernel refused the present one.
    fn give_up(&mut self, next: Tier, error: Errno) {
        let refused = self.tracking();
        self.obstacle = Some(WhyNotFaster::Refused { tracking: refused, os_error: error.raw_os_error() });
        self.tier = next;
    }

    /// Searches `mapping` for pages.
    ///
    /// - `count`: whether to count the pages in memory that are not private as well. Only the tier `scan` counts them,
    ///   and takes up to a third longer.
    /// - `expected`: pages that are probably private. The tier `armed` does not ask about them a second time, because
    ///   that would not save time.
    /// - `shows_zeroes` returns whether the mapping shows zeroes in a page that is not private. If it does not, the
    ///   zero page is a change there: the kernel puts it in place of a written page that is all zero (KSM with
    ///   `use_zero_pages`).
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
            let protects = search == Search::WrittenAndProtect && !may_have_pinned_memory();
            let mut found = pagemap::written(mapping, mapping.all(), self.scope, protects)
                .and_then(|unprotected| sift(mapping, &unprotected, expected, &shows_zeroes));
            if let Ok(unprotected) = &found
                && search == Search::Private
            {
                // A write-protected page without an entry is a marker, which looks as if it were swapped out.
                found = pagemap::private(mapping, mapping.all(), Look::InMemory, &shows_zeroes).map(
                    |(private, _)| Found {
                        complete: false,
                        ..Found::all_private(unprotected.pages.union(&private))
                    },
                );
            }
            match found {
                Ok(found) => return Ok(Found { write_protected: self.write_protected(protects), ..found }),
                Err(shortage @ (Errno::MFILE | Errno::NFILE | Errno::NOMEM)) => return Err(shortage.into()),
                // No page is write-protected in a forked child, or a filter refuses the call.
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

    /// Arms the mapping: write-protects the pages of `scope`.
    ///
    /// Later searches for written pages then list only pages that were written after this call. Best effort: such
    /// searches also list pages that could not be write-protected.
    pub(crate) fn arm(&mut self, mapping: &Mapping, scope: Scope) -> WriteProtected {
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
        self.write_protect(mapping)
    }

    /// Write-protects the pages of an armed mapping that are in its scope.
    ///
    /// Best effort: later searches also list pages that could not be write-protected.
    pub(crate) fn write_protect(self, mapping: &Mapping) -> WriteProtected {
        let armed = self.tier == Tier::Armed && !may_have_pinned_memory();
        self.write_protected(armed && pagemap::protect(mapping, mapping.all(), self.scope).is_ok())
    }

    /// Returns which pages are write-protected now: those of the scope if `protected` is set, otherwise none.
    fn write_protected(self, protected: bool) -> WriteProtected {
        match self.scope {
            _ if !protected => WriteProtected::Nothing,
            Scope::All => WriteProtected::All,
            Scope::InMemory => WriteProtected::InMemory,
        }
    }

    /// Returns whether only pages in memory or swapped out are write-protected.
    pub(crate) fn is_sparse(self) -> bool {
        self.scope == Scope::InMemory
    }

    /// Makes later calls write-protect all pages.
    pub(crate) fn widen(&mut self) {
        self.scope = Scope::All;
    }

    /// Registers `range`, in which other memory was mapped or added. Must be called after each such change.
    pub(crate) fn renewed(&mut self, mapping: &Mapping, range: PageRange) {
        if self.tier == Tier::Armed && range.len() > 0 && register(mapping, range).is_err() {
            self.stop(mapping);
        }
    }

    /// Ends write-protection for good, after a part of the mapping could not be registered or unregistered.
    ///
    /// A part that stays registered would keep its markers, and searches for private pages take those for pages that
    /// are swapped out. So the whole mapping is unregistered, for which the kernel needs no memory.
    fn stop(&mut self, mapping: &Mapping) {
        self.tier = Tier::Scan;
        let _ = unregister(mapping, mapping.all());
    }

    /// Returns whether searches take less time if pages are in huge pages.
    pub(crate) fn gains_from_huge_pages(self) -> bool {
        matches!(self.tier, Tier::Armed | Tier::Scan)
    }

    /// Moves the file's pages `region` into a huge page.
    ///
    /// The region has as many pages as [`huge_region`](super::huge_region) returns. Like write-protecting pages, this
    /// makes later searches leave out pages that were written before. So each page of the region must show what the
    /// caller compares with, or the caller must already count it as written. Fails with `Unsupported` if a page of the
    /// region is private.
    ///
    /// The kernel does not map a huge page in memory that is registered with userfaultfd. So in an armed mapping, the
    /// region is unregistered, moved, registered again and write-protected. While memory may be pinned, pages must not
    /// be write-protected, so nothing is moved.
    pub(crate) fn collapse(&mut self, mapping: &Mapping, region: PageRange) -> Collapsed {
        let refused = |error| Collapsed { moved: Err(error), unprotected: false };
        // A write-protected page without an entry is a marker, which looks as if it were swapped out.
        let look = if self.tier == Tier::Armed { Look::InMemory } else { Look::Everywhere };
        match pagemap::private(mapping, region, look, |_| true) {
            Ok((private, _)) if private.is_empty() => {}
            Ok(_) => return refused(io::ErrorKind::Unsupported.into()),
            Err(error) => return refused(error.into()),
        }
        if self.tier != Tier::Armed {
            return Collapsed { moved: mapping.collapse(region), unprotected: false };
        }
        if may_have_pinned_memory() {
            return refused(io::ErrorKind::Unsupported.into());
        }
        if let Err(error) = unregister(mapping, region) {
            // Some or all pages of the region may not be write-protected now.
            self.stop(mapping);
            return Collapsed { moved: Err(error.into()), unprotected: true };
        }
        let moved = mapping.collapse(region);
        self.renewed(mapping, region);
        let protected = self.tier == Tier::Armed && pagemap::protect(mapping, region, self.scope).is_ok();
        Collapsed { moved, unprotected: !protected }
    }

    /// Goes back to the tier `scan`, after other memory was mapped in place of the whole mapping.
    pub(crate) fn disarm(&mut self) {
        if self.tier == Tier::Armed {
            self.tier = Tier::Scan;
        }
    }

    pub(crate) fn is_armed(self) -> bool {
        self.tier == Tier::Armed
    }

    /// Returns whether the mapping is to be armed at once, because the tier `armed` was chosen.
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

/// Checks that a tracking method can work. The error says what it needs.
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

/// Returns the private pages among `unprotected`, the pages that are not write-protected.
///
/// Pages that were never mapped are also in `unprotected` if their page table was made after pages were last
/// write-protected. They come in long ranges, so the kernel is asked about each page of a long range. Short ranges, and
/// ranges of `expected` pages, are returned as they are.
fn sift(
    mapping: &Mapping,
    unprotected: &PageSet,
    expected: &PageSet,
    shows_zeroes: impl Fn(usize) -> bool,
) -> Result<Found, Errno> {
    let mut pages = PageSet::new();
    for &range in unprotected.ranges() {
        if range.len() < SHORT || expected.covers(range) {
            pages.push_range(range);
        } else {
            let (private, _) = pagemap::private(mapping, range, Look::Everywhere, &shows_zeroes)?;
            private.ranges().iter().for_each(|&range| pages.push_range(range));
        }
    }
    let unwritten = unprotected.len() - pages.len();
    Ok(Found { since_protected: true, complete: false, unwritten, ..Found::all_private(pages) })
}
