//! How a working tree comes to show another image.
#![allow(unsafe_code)]

use std::io;
use std::sync::Arc;
use std::time::Instant;

use crate::access::Access;
use crate::engine::layout::Layout;
use crate::engine::rewritten::Rewritten;
use crate::engine::state::{Backing, State};
use crate::image::Image;
use crate::pages::PageSet;
use crate::sys::Search;
use crate::{engine::cost, error, trace};

impl State {
    /// Gives all access back that was taken.
    pub(crate) fn unprotect(&mut self) -> io::Result<()> {
        while let Some((range, _)) = self.access.last() {
            // SAFETY: nothing is taken away.
            unsafe { self.mapping.set_access(range, Access::READ_WRITE) }
                .map_err(error::context("making protected pages of a view writable again", range.len()))?;
            self.access.truncate(range.start);
        }
        Ok(())
    }

    /// Shows `image` but in the pages `keep`, which stay as they are. All pages can be written.
    pub(crate) fn show(&mut self, image: &Arc<Image>, keep: &PageSet) -> io::Result<()> {
        debug_assert!(self.access.is_empty());
        if self.log.is_some() && matches!(self.backing, Backing::Private(_)) {
            self.harvest_log()?;
        }
        if image.pages != self.mapping.pages() {
            self.resize(image.pages)?;
        }
        if let Backing::Private(layout) = &self.backing
            && layout.has_base_of(image)
        {
            let moved = if Arc::ptr_eq(&self.synced, image) {
                PageSet::new()
            } else {
                self.synced.may_differ(image).below(image.pages)
            };
            if cost::rewriting_pays(moved.len(), image.pages) {
                return match self.log {
                    Some(_) => self.put_back_logged(image, &moved, keep),
                    None => self.put_back(image, &moved, keep),
                };
            }
        }
        self.map_anew(image, keep)
    }

    /// Shows `image` but in the pages `keep` by mapping all of it.
    fn map_anew(&mut self, image: &Arc<Image>, keep: &PageSet) -> io::Result<()> {
        self.mapping.check_owner()?;
        // SAFETY: `keep` is within the mapping, no page is protected, and the tree is borrowed exclusively.
        let bytes = |page| unsafe { self.page(page) }.to_vec();
        let kept: Vec<_> = keep.iter().map(|page| (page, bytes(page))).collect();
        self.backing = Backing::Torn;
        self.all_closed = false;
        self.tracker.disarm();
        let layout = Layout::remap(image, &mut self.mapping);
        if self.mapping.check_usable().is_ok() {
            // SAFETY: the pages are the mapping's and can be written, also if mapping them anew failed. The tree is borrowed
            // exclusively, and no slice of its bytes is alive.
            kept.iter().for_each(|(page, bytes)| unsafe { self.mapping.write(*page, bytes) });
        }
        self.backing = Backing::Private(layout?);
        self.private = None;
        self.synced = Arc::clone(image);
        self.unsynced = PageSet::new();
        self.log_hidden();
        self.log_kept(keep);
        self.ledger.started_over();
        self.adaptation.mapped_anew();
        trace::restored("mapped anew", image.pages, 0, self.tracking());
        Ok(())
    }

    /// Shows `image`, which has the same base, by discarding all and copying in what is not shown then. Returns
    /// whether the system let it; if not, any page may have changed.
    fn start_over(&mut self, image: &Arc<Image>) -> bool {
        let Backing::Private(layout) = &self.backing else { return false };
        let Ok(wanted) = image.reader() else { return false };
        // SAFETY: the tree is borrowed exclusively, and no slice of its bytes is alive.
        if let Err(error) = unsafe { self.mapping.discard(&PageSet::all(image.pages)) } {
            if error.kind() != io::ErrorKind::Unsupported {
                // What comes before memory that is locked is gone.
                self.unsynced = PageSet::all(image.pages);
            }
            self.ledger.cannot_start_over();
            return false;
        }
        let hidden = layout.hidden(image, &PageSet::new());
        // SAFETY: as above; `wanted` gives an image's bytes.
        hidden.iter().for_each(|page| unsafe { self.mapping.write(page, wanted.page(page)) });
        self.private = Some(hidden);
        self.synced = Arc::clone(image);
        self.unsynced = PageSet::new();
        self.ledger.started_over();
        trace::restored("started over", image.pages, 0, self.tracker.tracking());
        true
    }

    /// Maps what is under zeroes again where `image` shows something else, outside of `keep`.
    pub(crate) fn uncover(&mut self, image: &Image, keep: &PageSet) -> io::Result<PageSet> {
        let Backing::Private(layout) = &mut self.backing else { return Ok(PageSet::new()) };
        if !layout.covers_base() {
            return Ok(PageSet::new());
        }
        // SAFETY: the tree is borrowed exclusively, and no slice of its bytes is alive.
        match unsafe { layout.uncover(&mut self.mapping, image, keep) } {
            Ok(uncovered) => {
                uncovered.ranges().iter().for_each(|&range| self.tracker.renewed(&self.mapping, range));
                self.unsynced = self.unsynced.union(&uncovered);
                Ok(uncovered)
            }
            Err(error) => {
                self.backing = Backing::Torn;
                self.tracker.disarm();
                Err(error::context("mapping the image under zeroed pages again", image.pages)(error))
            }
        }
    }

    /// Shows `image`, which differs from `synced` in the pages `moved` at most, by rewriting those and
    /// those written, but not `keep`; or in another way, where that costs less.
    fn put_back(&mut self, image: &Arc<Image>, moved: &PageSet, keep: &PageSet) -> io::Result<()> {
        let uncovered = self.uncover(image, keep)?;
        let captured = image.captured.len();
        if keep.is_empty()
            && !self.tracker.is_armed()
            && self.ledger.starting_over_pays(captured)
            && self.start_over(image)
        {
            return Ok(());
        }
        let hidden_at_most = match &self.backing {
            Backing::Private(layout) => layout.hidden_at_most(image),
            Backing::Direct(_) | Backing::Torn => 0,
        };
        let keeps_much = self.tracker.is_armed() && self.ledger.keeps_much(hidden_at_most, image.pages);
        let search = if keeps_much { Search::Private } else { Search::Written };
        let found = self.find_and_note(search)?;
        if !found.known && found.pages.len() > self.ledger.kept_pages {
            // To compare them all would cost more, and leave more memory to the view.
            return self.map_anew(image, keep);
        }
        let wanted = image.reader()?;
        // What is written and discarded here stays open.
        self.all_closed = false;
        let all_private = found.known && !found.since_closed;
        let Backing::Private(layout) = &self.backing else { return Ok(()) };
        let others = self.unsynced.union(moved);
        // Where nothing is private, what the mapping shows needs no rewriting.
        let mut bare = others.intersection(&uncovered);
        if found.complete {
            bare = bare.union(&others.minus(&found.pages));
        }
        let hidden: PageSet = bare.iter().filter(|&page| !layout.shows(page, image)).collect();
        let mut pages = found.pages.minus(&bare).union(&others.minus(&bare)).union(&hidden);
        // Those that are written here for the first time.
        if let Some(private) = &mut self.private
            && !hidden.is_empty()
        {
            *private = private.union(&hidden);
        }
        let kept = pages.intersection(keep);
        if !kept.is_empty() {
            pages = pages.minus(keep);
        }
        let again = &pages == self.rewritten.last() && pages.len() <= self.ledger.kept_pages;
        if again && self.ledger.trusts_recurrence() {
            let start = Instant::now();
            for &range in pages.ranges() {
                for (page, bytes) in wanted.pieces(range) {
                    // SAFETY: the tree is borrowed exclusively, and no slice of its bytes is alive; `bytes` are an
                    // image's.
                    unsafe { self.mapping.write(page, bytes) };
                }
            }
            self.ledger.costs.compared(pages.len(), start.elapsed());
            self.synced = Arc::clone(image);
            self.unsynced = kept;
            trace::restored("rewritten", image.pages, pages.len(), self.tracker.tracking());
            return Ok(());
        }
        let may_start_over = all_private && keep.is_empty();
        let excess = pages.len().saturating_sub(self.ledger.kept_pages);
        let runs = cost::runs_of(pages.ranges().len(), excess, pages.len());
        let needed = pages.len() - excess + captured;
        if may_start_over && self.ledger.starting_over_beats_discarding(runs, excess, needed) {
            if !self.start_over(image) {
                return self.put_back(image, moved, keep);
            }
            self.rewritten.restored(pages, false, 1);
            return Ok(());
        }
        let keeps_first_writes = self.ledger.keeps_first_writes(image.pages, found.since_closed);
        let keeps_idle = keeps_first_writes && !keeps_much;
        let generation = if all_private && keeps_idle { self.ledger.idle_restores() } else { 1 };
        let room = self.ledger.room(hidden_at_most, image.pages);
        let (mut copied, mut idle, mut compared, mut unmoved) = (0, 0, 0, 0);
        let (mut rewritten, mut discarded) = (PageSet::new(), PageSet::new());
        let (mut is_moved, mut before) = (moved.ascending(), self.rewritten.ascending(generation));
        let start = Instant::now();
        // From here on nothing fails.
        for page in pages.iter() {
            let (bytes, shown) = (wanted.page(page), layout.shows(page, image));
            let (moved, before) = (is_moved.contains(page), before.contains(page));
            // A page that is private for the first time was written, so it is not compared, except where the layout shows
            // zeroes. Not all ways of finding pages distinguish zeroes that were read from zeroes that were written, and
            // copying zeroes over the former would take memory.
            let compare = before.is_some() || !found.known || found.since_closed || layout.shows_zeroes(page);
            let compare = !moved && (compare || !shown);
            compared += usize::from(compare);
            // SAFETY: `pages` are the mapping's, none is protected, and the tree is borrowed exclusively.
            if compare && unsafe { self.page(page) } == bytes {
                let recent = matches!(before, Some(Rewritten::Last | Rewritten::Recently));
                let stays = found.since_closed || (keeps_idle && recent);
                if shown && found.known && !(stays && copied + idle < room) {
                    discarded.push(page);
                } else {
                    idle += 1;
                }
                continue;
            }
            rewritten.push(page);
            unmoved += usize::from(!moved);
            let room = match before {
                Some(Rewritten::Last) => self.ledger.kept_pages + hidden_at_most,
                _ if keeps_first_writes => room,
                _ => 0,
            };
            if !shown || copied + idle < room {
                // SAFETY: the tree is borrowed exclusively, and no slice of its bytes is alive; `bytes` are an
                // image's.
                unsafe { self.mapping.write(page, bytes) };
                copied += 1;
            } else {
                discarded.push(page);
            }
        }
        self.ledger.costs.compared(compared + copied, start.elapsed());
        if again {
            self.ledger.recurred(rewritten.len() == pages.len());
        }
        let written = rewritten.len();
        self.rewritten.restored(rewritten, discarded.is_empty(), generation);
        let (runs, needed) = (discarded.ranges().len(), copied + captured);
        if may_start_over && self.ledger.starting_over_beats_discarding(runs, discarded.len(), needed) {
            return if self.start_over(image) { Ok(()) } else { self.put_back(image, moved, keep) };
        }
        let start = Instant::now();
        // SAFETY: the tree is borrowed exclusively, and no slice of its bytes is alive.
        if unsafe { self.mapping.discard(&discarded) }.is_err() {
            // Locked memory, for one, cannot be discarded.
            // SAFETY: as for the copies above.
            discarded.iter().for_each(|page| unsafe { self.mapping.write(page, wanted.page(page)) });
        } else {
            self.ledger.costs.discarded(runs, discarded.len(), start.elapsed());
            self.forget_private(&discarded);
        }
        if found.since_closed {
            // A discarded page is open, until it is closed with all others.
            idle += discarded.len();
        }
        self.ledger.found(written, idle, found.unwritten);
        // Moved pages are not counted: they are rewritten whether they were written or not.
        self.ledger.found_written(unmoved);
        self.synced = Arc::clone(image);
        self.unsynced = kept;
        if self.tracker.is_armed() {
            if self.ledger.closing_pays(image.pages) {
                self.close(found.pages.len() + moved.len());
            }
        } else if self.tracker.must_arm()
            || (!self.ledger.starting_over_may_help() && self.ledger.arming_pays())
        {
            self.arm(found.pages.len() + moved.len());
        }
        trace::restored("rewritten", image.pages, pages.len(), self.tracker.tracking());
        Ok(())
    }
}
