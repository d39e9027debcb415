//! Decides which pages of a logged view are captured, and which ones a restore rewrites or discards.
//!
//! `dirty_log.rs` keeps the log. `capture.rs` copies the captured pages.
//!
//! The program reports the written pages. So snapshots and restores do not ask the system for written pages, and the
//! time that they take depends on the number of reported pages, not on the length of the view. A restore compares no
//! pages. A snapshot compares pages only if `unsynced` has pages that were not reported, such as zeroed ones.
//!
//! In a view that checks, the tracker also finds written pages, as in other views. Each page that it finds and that
//! differs must have been reported.
//!
//! The log also has the private pages: those that were reported, and those that the view itself wrote. A restore copies
//! the old bytes back. It discards private pages only if there are more than the view may keep.
#![allow(unsafe_code)]

use std::io;
use std::ptr::NonNull;
use std::sync::Arc;

use crate::engine::dirty_log::{DirtyLog, Sources};
use crate::engine::layout::Layout;
use crate::engine::settings::Checks;
use crate::engine::state::{Backing, State};
use crate::image::{Image, Reader};
use crate::pages::PageSet;
use crate::sys::{Mapping, Search, Tracking};
use crate::zero::zeroes;
use crate::{error, trace};

/// The most bytes that a check compares if the program did not ask for checks.
///
/// If the system does not name the written pages, a check compares all bytes of the view. A longer view is then not
/// checked.
const MAX_COMPARED: usize = 64 << 20;

/// The least number of pages that a restore considers for discarding, if too many are private.
const MIN_CONSIDERED: usize = 64;

impl State {
    /// Moves the reported pages from the log to `unsynced`. Returns whether `unsynced` has no other pages.
    pub(crate) fn collect_log(&mut self) -> bool {
        let Some(log) = &mut self.log else { return false };
        let reported = log.take(self.mapping.pages());
        if self.known.unsynced().is_empty() {
            self.known.only_may_differ(reported);
            return true;
        }
        self.known.may_differ(&reported);
        false
    }

    /// Does the same as [`collect_log`](Self::collect_log), and checks the log if the view checks it.
    ///
    /// A check fails if a written page was not reported.
    pub(crate) fn collect_and_check_log(&mut self) -> io::Result<bool> {
        let all_reported = self.collect_log();
        let compares_all = matches!(self.tracker.tracking(), Tracking::Compare | Tracking::WorkingSet);
        let checks = match self.log.as_ref().map(|log| log.checks) {
            None | Some(Checks::Never) => false,
            Some(Checks::IfCheap) => !compares_all || self.mapping.len() <= MAX_COMPARED,
            Some(Checks::Always) => true,
        };
        if checks {
            self.check_log()?;
        }
        Ok(all_reported)
    }

    /// Compares the reported pages with those that the tracker finds.
    ///
    /// Fails if a written page was not reported.
    #[cold]
    fn check_log(&mut self) -> io::Result<()> {
        let Backing::Private(layout) = &self.backing else { return Ok(()) };
        let shows_zeroes = |page| layout.shows_zeroes(page) && self.synced.shows_zeroes(page);
        let found = self.tracker.find(Search::Written, &self.mapping, false, &PageSet::new(), shows_zeroes);
        let context = "asking the system which pages of a logged view were written";
        let found = found.map_err(error::context(context, self.mapping.pages()))?;
        let old = self.synced.reader()?;
        // SAFETY: the pages are in the mapping. They can be read, because no part of a logged view is ever protected.
        // The tree is borrowed, so nothing writes to it.
        let differs = |&page: &usize| unsafe { self.page(page) } != old.page(page);
        let missed: PageSet = found.pages.minus(self.known.unsynced()).iter().filter(differs).collect();
        // Pages that were zeroed or discarded are in `unsynced` too. They are private only if they were written since.
        // If that is not known, they count as private, so that a restore rewrites them.
        let is_not_private = |page: &usize| self.log.as_ref().is_some_and(|log| !log.is_private(*page));
        let not_private: PageSet =
            found.pages.intersection(self.known.unsynced()).iter().filter(is_not_private).collect();
        // SAFETY: as above.
        let is_zero = |&page: &usize| layout.shows_zeroes(page) && unsafe { self.page(page) } == zeroes();
        let unclear: PageSet = not_private.iter().filter(|page| !layout.shows_zeroes(*page)).collect();
        let written: PageSet = not_private.minus(&unclear).iter().filter(|page| !is_zero(page)).collect();
        let missed = missed.union(&written);
        self.log_private(&unclear);
        let Some(first) = missed.ranges().first().map(|range| range.bytes()) else { return Ok(()) };
        self.known.may_differ(&missed);
        self.log_private(&missed);
        Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!(
                "bytes {first:?} of a logged view were written but not reported ({} pages in all); call \
                 View::mark_written for all bytes that are written by pointer; these pages now count as reported",
                missed.len()
            ),
        ))
    }

    /// Shows `image` by rewriting the pages `moved` and those in `unsynced`, except the pages `keep`.
    ///
    /// `image` must not differ from `synced` in pages other than `moved`.
    pub(crate) fn put_back_logged(
        &mut self,
        image: &Arc<Image>,
        moved: &PageSet,
        keep: &PageSet,
    ) -> io::Result<()> {
        let uncovered = self.uncover(image, keep)?;
        self.forget_private(&uncovered);
        let wanted = image.reader()?;
        let (Backing::Private(layout), Some(log)) = (&self.backing, &mut self.log) else { return Ok(()) };
        // From here on nothing fails. `unsynced` keeps its pages until they show `image`.
        let all = if moved.is_empty() { None } else { Some(self.known.unsynced().union(moved)) };
        let all = all.as_ref().unwrap_or(self.known.unsynced());
        let (rewritten, kept) = if keep.is_empty() {
            (None, PageSet::new())
        } else {
            (Some(all.minus(keep)), all.intersection(keep))
        };
        let rewritten = rewritten.as_ref().unwrap_or(all);
        let room = self.ledger.kept_pages + layout.hidden_at_most(image);
        let excess = log.private_len().saturating_sub(room);
        let mut restore = Restore { mapping: &mut self.mapping, layout, log, image, wanted };
        let idle = if excess == 0 { PageSet::new() } else { restore.idle_pages(rewritten, all) };
        let discarded = restore.copy_back(rewritten, excess.saturating_sub(idle.len()));
        restore.discard(&discarded, &idle);
        trace::restored("rewritten", image.pages, rewritten.len(), Tracking::Logged);
        if !Arc::ptr_eq(&self.synced, image) {
            self.synced = Arc::clone(image);
        }
        self.known.only_may_differ(kept);
        Ok(())
    }

    /// Resets the log after the view was mapped.
    ///
    /// Only the pages at which the layout does not show `synced` are private then.
    pub(crate) fn log_hidden(&mut self) {
        if let (Some(log), Backing::Private(layout)) = (&mut self.log, &self.backing) {
            log.reset(&layout.hidden(&self.synced, &PageSet::new()));
        }
    }

    /// Drops the sources of the last restore, and thereby their image.
    pub(crate) fn forget_sources(&mut self) {
        if let Some(log) = &mut self.log {
            log.sources = None;
        }
    }

    /// Notes that `pages` are private because the view itself wrote them.
    pub(crate) fn log_private(&mut self, pages: &PageSet) {
        if let Some(log) = &mut self.log {
            log.add_private(pages);
        }
    }

    /// Notes that a restore mapped the view anew, and then wrote the bytes of the pages `keep` back.
    pub(crate) fn log_kept(&mut self, keep: &PageSet) {
        if let Some(log) = &mut self.log {
            log.add_private(keep);
            self.known.only_may_differ(keep.clone());
        }
    }
}

/// The parts of a working tree that a restore of a logged view uses.
struct Restore<'a> {
    mapping: &'a mut Mapping,
    layout: &'a Layout,
    log: &'a mut DirtyLog,
    image: &'a Arc<Image>,
    wanted: Reader<'a>,
}

impl Restore<'_> {
    /// Some private pages that could be discarded, because the layout shows the image there.
    ///
    /// None of them is in `all`, the pages of which `rewritten` are a part.
    fn idle_pages(&mut self, rewritten: &PageSet, all: &PageSet) -> PageSet {
        // Considers twice as many pages as have become private since the last restore, so that the number of private
        // pages soon is within the limit.
        let some = self.log.some_private((2 * rewritten.len()).max(MIN_CONSIDERED));
        some.minus(all).iter().filter(|&page| self.layout.shows(page, self.image)).collect()
    }

    /// Copies the bytes of `pages` into the view.
    ///
    /// Skips pages that are not private, and for which the layout shows these bytes. Returns up to `excess` private
    /// pages that should be discarded instead.
    fn copy_back(&mut self, pages: &PageSet, excess: usize) -> PageSet {
        let mut discarded = PageSet::new();
        let known = self.log.sources.take().filter(|sources| sources.are_of(self.image));
        let is_known = known.as_ref().is_some_and(|sources| sources.pages() == pages);
        let mut before = known.iter().flat_map(Sources::iter).peekable();
        // If no page was captured, all bytes are in the base, and finding them there takes no search.
        let remembers = !is_known && self.image.captured.len() > 0;
        let mut starts = Vec::with_capacity(if remembers { pages.len() } else { 0 });
        for page in pages.iter() {
            while before.next_if(|(earlier, _)| *earlier < page).is_some() {}
            let bytes = match before.peek() {
                Some((known, bytes)) if *known == page => bytes,
                _ => self.wanted.page(page),
            };
            if remembers {
                starts.push(NonNull::from(bytes).cast());
            }
            let is_private = self.log.is_private(page);
            if (!is_private || discarded.len() < excess) && self.layout.shows(page, self.image) {
                if is_private {
                    discarded.push(page);
                }
                continue;
            }
            // SAFETY: the page is in the mapping, and no page is protected. The tree is borrowed exclusively, and no
            // slice of its bytes is alive. The bytes are an image's, so they are not in the mapping.
            unsafe { self.mapping.write(page, bytes) };
            if !is_private {
                self.log.add_private(&PageSet::from_iter([page]));
            }
        }
        drop(before);
        self.log.sources = if remembers {
            // SAFETY: the loop has added one address for each of `pages`, in ascending order. It is that of the bytes
            // that `image` holds for the page. Addresses that the last restore found are of the same image, whose bytes
            // neither change nor move.
            Some(unsafe { Sources::new(Arc::clone(self.image), pages.clone(), starts) })
        } else {
            known.filter(|_| is_known)
        };
        discarded
    }

    /// Discards the pages `discarded` and `idle`. If that fails, copies the bytes that have to change.
    fn discard(&mut self, discarded: &PageSet, idle: &PageSet) {
        let unneeded = discarded.union(idle);
        // SAFETY: the tree is borrowed exclusively, and no slice of its bytes is alive.
        match unsafe { self.mapping.discard(&unneeded) } {
            Ok(()) => self.log.remove_private(&unneeded),
            Err(error) => {
                // Idle pages have the bytes of the image already, unless the failed call has changed them.
                let is_unchanged = error.kind() == io::ErrorKind::Unsupported;
                let changed = if is_unchanged { discarded } else { &unneeded };
                // SAFETY: as in `copy_back`.
                changed.iter().for_each(|page| unsafe { self.mapping.write(page, self.wanted.page(page)) });
            }
        }
    }
}
