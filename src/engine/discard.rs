//! Bytes that become zero, or what the last snapshot holds, by giving memory back; and what other code discarded.
#![allow(unsafe_code)]

use std::io;

use crate::engine::state::{Backing, State};
use crate::image::Reader;
use crate::pages::{PageRange, PageSet};
use crate::sys::Search;
use crate::zero::zeroes;

impl State {
    /// Makes the pages of `range`, all of which can be written, zero, and gives their memory back where that can be
    /// done.
    pub(crate) fn zero(&mut self, range: PageRange) -> io::Result<()> {
        let pages = PageSet::from(range);
        let left = match &mut self.backing {
            Backing::Direct(file) if file.punch(range).is_ok() => return Ok(()),
            Backing::Direct(_) | Backing::Torn => pages,
            Backing::Private(layout) => {
                self.known.may_differ(&pages);
                // SAFETY: the tree is borrowed exclusively, and no slice of its bytes is alive.
                match unsafe { layout.show_zeroes(&mut self.mapping, range) } {
                    Ok(left) => {
                        self.forget_private(&pages);
                        self.tracker.renewed(&self.mapping, range);
                        self.may_hold_data(left)
                    }
                    Err(_) => {
                        self.backing = Backing::Torn;
                        self.tracker.disarm();
                        pages
                    }
                }
            }
        };
        self.mapping.check_usable()?;
        // SAFETY: the pages are the mapping's and can be written. The tree is borrowed exclusively, and no slice of its
        // bytes is alive; the page of zeroes is elsewhere.
        left.iter().for_each(|page| unsafe { self.mapping.write(page, zeroes()) });
        Ok(())
    }

    /// Puts the pages of `range`, all of which can be written, back to what `synced` holds, whose bytes `old` gives.
    pub(crate) fn discard(&mut self, range: PageRange, old: &Reader<'_>) -> io::Result<()> {
        let pages = PageSet::from(range);
        self.collect_log();
        // Discarded pages may be reported as if they had been written.
        self.known.set_all_write_protected(false);
        let left = match &self.backing {
            Backing::Direct(_) => {
                // To write zeroes would take memory, and so would reading them.
                self.zero(range)?;
                range.iter().filter(|&page| !self.synced.shows_zeroes(page)).collect()
            }
            Backing::Torn => pages,
            Backing::Private(layout) => {
                let shown = |page: &usize| match *page < self.synced.pages {
                    true => layout.shows(*page, &self.synced),
                    false => layout.shows_zeroes(*page),
                };
                let shown: PageSet = range.iter().filter(shown).collect();
                // SAFETY: the tree is borrowed exclusively, and no slice of its bytes is alive.
                match unsafe { self.mapping.discard(&shown) } {
                    Ok(()) => {
                        self.forget_private(&shown);
                        pages.minus(&shown)
                    }
                    // Locked memory, for one, cannot be discarded.
                    Err(_) => pages,
                }
            }
        };
        self.mapping.check_usable()?;
        let mut written = PageSet::new();
        for page in left.iter() {
            // SAFETY: the page is the mapping's, and can be read and written. The tree is borrowed exclusively.
            let now = unsafe { self.page(page) };
            // To write what is there already would take memory.
            if now != old.page(page) {
                // SAFETY: as above, and `now` is not used any more; the bytes are an image's.
                unsafe { self.mapping.write(page, old.page(page)) };
                written.push(page);
            }
        }
        self.log_private(&written);
        if self.log.is_some() {
            // These pages show `synced` now. In other views, the tracker may still report them.
            self.known.show_synced(range);
        }
        Ok(())
    }

    /// After `pages` were discarded here.
    pub(crate) fn forget_private(&mut self, pages: &PageSet) {
        self.known.remove_private(pages);
        if let Some(log) = &mut self.log {
            log.remove_private(pages);
        }
    }

    /// Those of `pages`, of a private mapping, that may be other than zero. To write zeroes to the others would take
    /// memory.
    fn may_hold_data(&mut self, pages: PageSet) -> PageSet {
        if let Some(log) = &mut self.log {
            log.add_private(&pages);
            return pages;
        }
        let Backing::Private(layout) = &self.backing else { return pages };
        let shown: PageSet = pages.iter().filter(|&page| layout.shows_zeroes(page)).collect();
        if shown.is_empty() {
            return pages;
        }
        match self.find(Search::Written) {
            Ok(found) if found.complete => pages.minus(&shown.minus(&found.pages)),
            _ => pages,
        }
    }

    /// Brings into `unsynced` the pages that were private to show `synced` and are not among those that are `private`
    /// now: other code has discarded them (`MADV_DONTNEED`), or let the kernel do it (`MADV_FREE`).
    pub(crate) fn add_discarded(&mut self, private: &PageSet) {
        let discarded = match (self.known.private(), &self.backing) {
            (Some(before), _) => before.minus(private),
            (None, Backing::Private(layout)) => layout.hidden(&self.synced, private),
            (None, Backing::Direct(_) | Backing::Torn) => return,
        };
        // In the middle of a restore, `synced` may be longer than the range.
        let discarded = discarded.below(self.mapping.pages());
        if !discarded.is_empty() {
            self.known.may_differ(&discarded);
        }
    }
}
