//! Restores pages of a view: those that were written, and those that differ between two images.
//!
//! A restore can put a page back in two ways. It can copy the old bytes into the page. Or it can discard the page,
//! which then shows the file that is mapped there. Copying is better for a page that will be written again: the page
//! stays private, so the next write takes no copy-on-write fault. A restore can also discard all pages at once, and
//! then copy the captured pages ([`start_over`](State::start_over)).
//!
//! This file does the work. The cost model chooses the way. `checkout.rs` decides whether to map the view anew instead.
//! `logged_tree.rs` restores logged views.
#![allow(unsafe_code)]

use std::io;
use std::sync::Arc;
use std::time::Instant;

use crate::engine::cost;
use crate::engine::rewritten::Rewritten;
use crate::engine::state::{Backing, State};
use crate::image::{Image, Reader};
use crate::pages::PageSet;
use crate::sys::{Found, Search};
use crate::trace;

/// The arguments of a restore, and what is known when it begins to rewrite pages.
struct Restore<'a> {
    image: &'a Arc<Image>,
    /// The pages in which `image` may differ from the image that the view showed.
    moved: &'a PageSet,
    /// The pages that are to stay as they are.
    keep: &'a PageSet,
    /// The result of the search for written or private pages.
    found: Found,
    /// Whether the view probably has more private pages than its limit.
    ///
    /// If so, the search was for private pages, and otherwise for written pages.
    keeps_too_many: bool,
    /// An upper bound for the number of captured pages that the layout does not show.
    ///
    /// These pages have to be private.
    hidden_at_most: usize,
    /// The pages to put back.
    pages: PageSet,
}

/// What [`State::rewrite`] did with each page.
#[derive(Default)]
struct Rewrite {
    /// Pages whose bytes differed, or were not compared.
    rewritten: PageSet,
    /// Pages that are still to be discarded.
    discarded: PageSet,
    /// The number of pages that were copied.
    copied: usize,
    /// The number of pages that already showed `image` and are not discarded.
    idle: usize,
    /// The number of `rewritten` pages in which the two images do not differ.
    unmoved: usize,
    /// The number of restores that a generation lasts.
    ///
    /// See [`RewrittenPages`](crate::engine::rewritten::RewrittenPages).
    generation: u64,
}

impl State {
    /// Shows `image` by rewriting the pages `moved` and the written pages, except the pages `keep`.
    ///
    /// `image` must not differ from `synced` in pages other than `moved`. If starting over or mapping the view anew
    /// takes less time, does that instead.
    pub(super) fn put_back(&mut self, image: &Arc<Image>, moved: &PageSet, keep: &PageSet) -> io::Result<()> {
        let uncovered = self.uncover(image, keep)?;
        if keep.is_empty()
            && !self.tracker.is_armed()
            && self.ledger.should_start_over(image.captured.len())
            && self.start_over(image)
        {
            return Ok(());
        }
        let hidden_at_most = match &self.backing {
            Backing::Private(layout) => layout.hidden_at_most(image),
            Backing::Direct(_) | Backing::Torn => 0,
        };
        let keeps_too_many =
            self.tracker.is_armed() && self.ledger.keeps_too_many(hidden_at_most, image.pages);
        let search = if keeps_too_many { Search::Private } else { Search::Written };
        let found = self.find_and_note(search)?;
        if !found.known && found.pages.len() > self.ledger.kept_pages {
            // The tracker does not know which pages were written. Comparing all pages would take longer than mapping
            // the view anew, and would leave more private memory to the view.
            return self.map_anew(image, keep);
        }
        let wanted = image.reader()?;
        // From here on only one step can fail: if the system refuses to start over, `put_back` is called again.
        //
        // The pages that this restore writes or discards are not write-protected.
        self.known.set_all_write_protected(false);
        let mut pages = self.pages_to_put_back(image, moved, &found, &uncovered);
        let kept = pages.intersection(keep);
        if !kept.is_empty() {
            pages = pages.minus(keep);
        }
        let same_as_last = &pages == self.rewritten.last() && pages.len() <= self.ledger.kept_pages;
        if same_as_last && self.ledger.should_assume_recurrence() {
            self.copy_back(&wanted, &pages);
            self.synced = Arc::clone(image);
            self.known.only_may_differ(kept);
            trace::restored("rewritten", image.pages, pages.len(), self.tracker.tracking());
            return Ok(());
        }
        let restore = Restore { image, moved, keep, found, keeps_too_many, hidden_at_most, pages };
        self.compare_and_put_back(restore, &wanted, kept, same_as_last)
    }

    /// Puts the pages of `restore` back, after a look at what they show.
    ///
    /// `kept` are the pages that stay as they are. `same_as_last` says whether the pages are those that the last restore
    /// rewrote.
    fn compare_and_put_back(
        &mut self,
        restore: Restore<'_>,
        wanted: &Reader<'_>,
        kept: PageSet,
        same_as_last: bool,
    ) -> io::Result<()> {
        let Restore { image, moved, keep, .. } = restore;
        let may_start_over = restore.found.known && !restore.found.since_protected && keep.is_empty();
        let excess = restore.pages.len().saturating_sub(self.ledger.kept_pages);
        let runs = cost::runs_of(restore.pages.ranges().len(), excess, restore.pages.len());
        let needed = restore.pages.len() - excess + image.captured.len();
        if may_start_over && self.ledger.should_start_over_instead_of_discarding(runs, excess, needed) {
            if !self.start_over(image) {
                return self.put_back(image, moved, keep);
            }
            self.rewritten.restored(restore.pages, false, 1);
            return Ok(());
        }
        let mut rewrite = self.rewrite(&restore, wanted);
        let (pages, found) = (restore.pages, restore.found);
        let written = rewrite.rewritten.len();
        if same_as_last {
            self.ledger.checked_recurrence(written == pages.len());
        }
        let discarded = rewrite.discarded;
        self.rewritten.restored(rewrite.rewritten, discarded.is_empty(), rewrite.generation);
        let (runs, needed) = (discarded.ranges().len(), rewrite.copied + image.captured.len());
        if may_start_over
            && self.ledger.should_start_over_instead_of_discarding(runs, discarded.len(), needed)
        {
            return if self.start_over(image) { Ok(()) } else { self.put_back(image, moved, keep) };
        }
        self.discard_or_copy_back(wanted, &discarded);
        if found.since_protected {
            // In an armed view, discarded pages are not write-protected until all pages are write-protected again. So
            // they count as idle.
            rewrite.idle += discarded.len();
        }
        self.ledger.found(written, rewrite.idle, found.unwritten);
        // Moved pages are not counted: they are rewritten whether they were written or not.
        self.ledger.found_written(rewrite.unmoved);
        self.synced = Arc::clone(image);
        self.known.only_may_differ(kept);
        self.write_protect_if_due(image.pages, found.pages.len() + moved.len());
        trace::restored("rewritten", image.pages, pages.len(), self.tracker.tracking());
        Ok(())
    }

    /// The pages that may show something other than `image`.
    ///
    /// `uncovered` are pages that were mapped anew just now. The result contains all private pages that the search
    /// found, even if they show `image`.
    fn pages_to_put_back(
        &mut self,
        image: &Image,
        moved: &PageSet,
        found: &Found,
        uncovered: &PageSet,
    ) -> PageSet {
        let Backing::Private(layout) = &self.backing else { return PageSet::new() };
        let others = self.known.unsynced().union(moved);
        // A page that is not private shows what the layout says. Only those at which that is not `image` are rewritten.
        let mut not_private = others.intersection(uncovered);
        if found.complete {
            not_private = not_private.union(&others.minus(&found.pages));
        }
        let hidden: PageSet = not_private.iter().filter(|&page| !layout.shows(page, image)).collect();
        let pages = found.pages.minus(&not_private).union(&others.minus(&not_private)).union(&hidden);
        // The restore will write these pages. That makes them private.
        self.known.add_private(&hidden);
        pages
    }

    /// Copies the bytes of `pages` into the view without comparing them first.
    fn copy_back(&mut self, wanted: &Reader<'_>, pages: &PageSet) {
        let start = Instant::now();
        for &range in pages.ranges() {
            for (page, bytes) in wanted.pieces(range) {
                // SAFETY: the pages are in the mapping, and none is protected. The tree is borrowed exclusively, and no
                // slice of its bytes is alive. `bytes` are an image's, so they are not in the mapping.
                unsafe { self.mapping.write(page, bytes) };
            }
        }
        self.ledger.costs.compared(pages.len(), start.elapsed());
    }

    /// Copies the old bytes into those pages of `restore` that differ, if they may stay private.
    ///
    /// Returns which pages differed, and which are still to be discarded.
    fn rewrite(&mut self, restore: &Restore<'_>, wanted: &Reader<'_>) -> Rewrite {
        let &Restore { image, moved, ref found, keeps_too_many, hidden_at_most, ref pages, .. } = restore;
        let mut rewrite = Rewrite::default();
        let Backing::Private(layout) = &self.backing else { return rewrite };
        let keeps_first_writes = self.ledger.keeps_first_writes(image.pages, found.since_protected);
        let keeps_idle = keeps_first_writes && !keeps_too_many;
        let all_private = found.known && !found.since_protected;
        rewrite.generation = if all_private && keeps_idle { self.ledger.idle_restores() } else { 1 };
        let room = self.ledger.room(hidden_at_most, image.pages);
        let mut compared = 0;
        let (mut is_moved, mut before) = (moved.ascending(), self.rewritten.ascending(rewrite.generation));
        let start = Instant::now();
        for page in pages.iter() {
            let (bytes, shown) = (wanted.page(page), layout.shows(page, image));
            let (moved, before) = (is_moved.contains(page), before.contains(page));
            // A page that is private for the first time was written, so comparing it would be needless. Pages at which
            // the layout shows zeroes are compared all the same: some tracking methods also list such pages if they
            // were only read, and copying zeroes over them would take memory.
            let compare =
                before.is_some() || !found.known || found.since_protected || layout.shows_zeroes(page);
            let compare = !moved && (compare || !shown);
            compared += usize::from(compare);
            // SAFETY: `pages` are in the mapping, none is protected, and the tree is borrowed exclusively.
            if compare && unsafe { self.page(page) } == bytes {
                let recent = matches!(before, Some(Rewritten::Last | Rewritten::Recently));
                let stays = found.since_protected || (keeps_idle && recent);
                if shown && found.known && !(stays && rewrite.private() < room) {
                    rewrite.discarded.push(page);
                } else {
                    rewrite.idle += 1;
                }
                continue;
            }
            rewrite.rewritten.push(page);
            rewrite.unmoved += usize::from(!moved);
            let room = match before {
                Some(Rewritten::Last) => self.ledger.kept_pages + hidden_at_most,
                _ if keeps_first_writes => room,
                _ => 0,
            };
            if !shown || rewrite.private() < room {
                // SAFETY: as in `copy_back`.
                unsafe { self.mapping.write(page, bytes) };
                rewrite.copied += 1;
            } else {
                rewrite.discarded.push(page);
            }
        }
        self.ledger.costs.compared(compared + rewrite.copied, start.elapsed());
        rewrite
    }

    /// Discards `pages` or, if that fails, copies the old bytes into them.
    fn discard_or_copy_back(&mut self, wanted: &Reader<'_>, pages: &PageSet) {
        let start = Instant::now();
        // SAFETY: the tree is borrowed exclusively, and no slice of its bytes is alive.
        if unsafe { self.mapping.discard(pages) }.is_err() {
            // Locked memory, for example, cannot be discarded.
            // SAFETY: as in `copy_back`.
            pages.iter().for_each(|page| unsafe { self.mapping.write(page, wanted.page(page)) });
        } else {
            self.ledger.costs.discarded(pages.ranges().len(), pages.len(), start.elapsed());
            self.forget_private(pages);
        }
    }

    /// Write-protects the pages of an armed view, or arms another view, if the cost model says that this saves time.
    ///
    /// Also arms a view for which the tracking method `armed` was chosen. `private` of its `pages` pages are private.
    /// Each page must show `synced` or be in `unsynced`.
    fn write_protect_if_due(&mut self, pages: usize, private: usize) {
        if self.tracker.is_armed() {
            if self.ledger.should_write_protect(pages) {
                self.write_protect(private);
            }
        } else if self.tracker.must_arm() || (!self.ledger.should_defer_arming() && self.ledger.should_arm())
        {
            self.arm(private);
        }
    }
}

impl Rewrite {
    /// The number of pages that stay private.
    fn private(&self) -> usize {
        self.copied + self.idle
    }
}
