//! A working tree of which the program reports the written pages: which pages a take captures and a restore rewrites.
//!
//! Nothing is asked of the operating system, and nothing is compared. So both cost what was reported, whatever the length
//! of the view. In a tree that checks, the tracker finds written pages as it does in others, and each of them must have
//! been reported.
//!
//! The log knows which pages are private: those that were reported, and those that were written here. So a restore copies
//! the old bytes back, and discards pages only if more are private than the view may keep.
#![allow(unsafe_code)]

use std::io;
use std::ptr::NonNull;
use std::sync::Arc;

use crate::engine::dirty_log::Sources;
use crate::engine::settings::Checks;
use crate::engine::state::{Backing, State};
use crate::image::Image;
use crate::pages::PageSet;
use crate::sys::Search;
use crate::sys::Tracking;
use crate::zero::zeroes;
use crate::{error, trace};

/// Where the system does not name the written pages, a view of more bytes is checked only if that was asked for.
const CHEAPLY_COMPARED: usize = 64 << 20;

/// Idle pages that a restore discards at least, if too many pages are private.
const SWEEP: usize = 64;

impl State {
    /// Adds the reported pages to `unsynced`. Returns whether there are no others in it.
    pub(crate) fn collect_log(&mut self) -> bool {
        let Some(log) = &mut self.log else { return false };
        let mut reported = log.take();
        // Reports are checked when they are made. But pages behind the end are read nowhere, so this does not rely on it.
        if reported.ranges().last().is_some_and(|last| last.end > self.mapping.pages()) {
            reported = reported.below(self.mapping.pages());
        }
        if self.unsynced.is_empty() {
            self.unsynced = reported;
            return true;
        }
        self.unsynced = self.unsynced.union(&reported);
        false
    }

    /// The same, and fails if a page was written and is not in `unsynced`.
    pub(crate) fn harvest_log(&mut self) -> io::Result<bool> {
        let all_reported = self.collect_log();
        let compares_all = matches!(self.tracker.tracking(), Tracking::Compare | Tracking::WorkingSet);
        let checks = match self.log.as_ref().map(|log| log.checks) {
            None | Some(Checks::Never) => false,
            Some(Checks::IfCheap) => !compares_all || self.mapping.len() <= CHEAPLY_COMPARED,
            Some(Checks::Always) => true,
        };
        if checks {
            self.check_log()?;
        }
        Ok(all_reported)
    }

    #[cold]
    fn check_log(&mut self) -> io::Result<()> {
        let Backing::Private(layout) = &self.backing else { return Ok(()) };
        let shows_zeroes = |page| layout.shows_zeroes(page) && self.synced.shows_zeroes(page);
        let found = self.tracker.find(Search::Written, &self.mapping, false, &PageSet::new(), shows_zeroes);
        let context = "asking the kernel which pages of a logged view were written";
        let found = found.map_err(error::context(context, self.mapping.pages()))?;
        let old = self.synced.reader()?;
        // SAFETY: the pages are the mapping's, and can be read: parts of a logged view are never protected. The tree is
        // borrowed, so that nobody writes.
        let differs = |&page: &usize| unsafe { self.page(page) } != old.page(page);
        let missed: PageSet = found.pages.minus(&self.unsynced).iter().filter(differs).collect();
        // Pages that were zeroed or discarded are in `unsynced` too, but have no memory of their own unless they were
        // written since. Where that cannot be told, they count as private, so that a restore rewrites them.
        let is_bare = |page: &usize| self.log.as_ref().is_some_and(|log| !log.is_private(*page));
        let bare: PageSet = found.pages.intersection(&self.unsynced).iter().filter(is_bare).collect();
        // SAFETY: as above.
        let is_zero = |&page: &usize| layout.shows_zeroes(page) && unsafe { self.page(page) } == zeroes();
        let unclear: PageSet = bare.iter().filter(|page| !layout.shows_zeroes(*page)).collect();
        let written: PageSet = bare.minus(&unclear).iter().filter(|page| !is_zero(page)).collect();
        let missed = missed.union(&written);
        self.log_private(&unclear);
        let Some(first) = missed.ranges().first().map(|range| range.bytes()) else { return Ok(()) };
        self.unsynced = self.unsynced.union(&missed);
        if let Some(log) = &mut self.log {
            log.add_private(&missed);
        }
        Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!(
                "bytes {first:?} of a logged view were written but not reported, and {} pages in all; call \
                 View::mark_written for everything that is written by pointer. They count as reported now",
                missed.len()
            ),
        ))
    }

    /// Shows `image`, which differs from `synced` in the pages `moved` at most, by rewriting those and those in
    /// `unsynced`, but not `keep`.
    pub(crate) fn put_back_logged(
        &mut self,
        image: &Arc<Image>,
        moved: &PageSet,
        keep: &PageSet,
    ) -> io::Result<()> {
        let uncovered = self.uncover(image, keep)?;
        self.forget_private(&uncovered);
        let wanted = image.reader()?;
        let all = if moved.is_empty() { None } else { Some(self.unsynced.union(moved)) };
        let all = all.as_ref().unwrap_or(&self.unsynced);
        let (rewritten, kept) = if keep.is_empty() {
            (None, PageSet::new())
        } else {
            (Some(all.minus(keep)), all.intersection(keep))
        };
        let rewritten = rewritten.as_ref().unwrap_or(all);
        let (Backing::Private(layout), Some(log)) = (&self.backing, &mut self.log) else { return Ok(()) };

        // From here on nothing fails.
        let room = self.ledger.kept_pages + layout.hidden_at_most(image);
        let mut excess = log.private_len().saturating_sub(room);
        let shown = |page: &usize| layout.shows(*page, image);
        let idle: PageSet = match excess {
            0 => PageSet::new(),
            // Twice as many as can have become private since, so that it is not too many for long.
            _ => log.some_private((2 * rewritten.len()).max(SWEEP)).minus(all).iter().filter(shown).collect(),
        };
        excess = excess.saturating_sub(idle.len());
        let known = log.sources.take().filter(|sources| sources.are_of(image));
        let is_known = known.as_ref().is_some_and(|sources| sources.pages() == rewritten);
        let mut before = known.iter().flat_map(Sources::iter).peekable();
        // The bytes of a base are found without a search.
        let remembers = !is_known && image.captured.len() > 0;
        let mut starts = Vec::with_capacity(if remembers { rewritten.len() } else { 0 });
        let mut discarded = PageSet::new();
        for page in rewritten.iter() {
            while before.next_if(|(earlier, _)| *earlier < page).is_some() {}
            let bytes = match before.peek() {
                Some((known, bytes)) if *known == page => bytes,
                _ => wanted.page(page),
            };
            if remembers {
                starts.push(NonNull::from(bytes).cast());
            }
            let is_private = log.is_private(page);
            if (!is_private || discarded.len() < excess) && layout.shows(page, image) {
                if is_private {
                    discarded.push(page);
                }
                continue;
            }
            // SAFETY: the page is the mapping's and no page is protected. The tree is borrowed exclusively, and no slice
            // of its bytes is alive; the bytes are an image's.
            unsafe { self.mapping.write(page, bytes) };
            if !is_private {
                log.add_private(&PageSet::from_iter([page]));
            }
        }
        // SAFETY: as above.
        if !discarded.is_empty() && unsafe { self.mapping.discard(&discarded) }.is_err() {
            // Locked memory, for one, cannot be discarded.
            // SAFETY: as for the copies above.
            discarded.iter().for_each(|page| unsafe { self.mapping.write(page, wanted.page(page)) });
            discarded = PageSet::new();
        }
        log.remove_private(&discarded);
        // SAFETY: as above. These pages show what `image` holds, whether they are private or not.
        if !idle.is_empty() && unsafe { self.mapping.discard(&idle) }.is_ok() {
            log.remove_private(&idle);
        }
        trace::restored("rewritten", image.pages, rewritten.len(), Tracking::Logged);
        drop(before);
        log.sources = if remembers {
            // SAFETY: these are the addresses of the bytes that `image` holds of these pages, or that it held at the last
            // restore, which are the same.
            Some(unsafe { Sources::new(Arc::clone(image), rewritten.clone(), starts) })
        } else {
            known.filter(|_| is_known)
        };
        if !Arc::ptr_eq(&self.synced, image) {
            self.synced = Arc::clone(image);
        }
        self.unsynced = kept;
        Ok(())
    }

    /// Notes the pages that are private because the layout does not show them, and that no others are.
    pub(crate) fn log_hidden(&mut self) {
        if let (Some(log), Backing::Private(layout)) = (&mut self.log, &self.backing) {
            log.reset(&layout.hidden(&self.synced, &PageSet::new()));
        }
    }

    /// Forgets where the last restore found its bytes, and lets go of the image.
    pub(crate) fn forget_sources(&mut self) {
        if let Some(log) = &mut self.log {
            log.sources = None;
        }
    }

    /// Notes that `pages` have memory of the view's own because they were written here.
    pub(crate) fn log_private(&mut self, pages: &PageSet) {
        if let Some(log) = &mut self.log {
            log.add_private(pages);
        }
    }

    /// Notes that the bytes of the pages `keep` were put back by a restore that left them out.
    pub(crate) fn log_kept(&mut self, keep: &PageSet) {
        if let Some(log) = &mut self.log {
            log.add_private(keep);
            self.unsynced = keep.clone();
        }
    }
}
