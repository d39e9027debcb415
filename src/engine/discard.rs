//! Zeroes and discards pages so that memory is given back, and finds pages that other code discarded.
//!
//! `layout.rs` decides which pages can show zeroes without memory. `worktree.rs` zeroes and discards bytes that are not
//! whole pages.
#![allow(unsafe_code)]

use std::io;

use crate::engine::state::{Backing, State};
use crate::image::Reader;
use crate::pages::{PageRange, PageSet};
use crate::sys::Search;
use crate::zero::zeroes;

impl State {
    /// Sets the pages of `range` to zero, and gives their memory back if that is possible.
    ///
    /// The caller ensures that all these pages can be written.
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
        // SAFETY: the pages are in the mapping and can be written. The tree is borrowed exclusively, and no slice of
        // its bytes is alive. The page of zeroes is not in the mapping.
        left.iter().for_each(|page| unsafe { self.mapping.write(page, zeroes()) });
        Ok(())
    }

    /// Puts the pages of `range` back to what `synced` holds. Gives memory back if that is possible.
    ///
    /// `old` reads the bytes of `synced`. The caller ensures that all these pages can be written.
    pub(crate) fn discard(&mut self, range: PageRange, old: &Reader<'_>) -> io::Result<()> {
        let pages = PageSet::from(range);
        self.collect_log();
        // The tracker may list discarded pages as if they had been written.
        self.known.set_all_write_protected(false);
        let left = match &self.backing {
            Backing::Direct(_) => {
                // Reading a hole of the file, or writing zeroes to it, would take memory. So this frees the memory of
                // all pages. Only those that are not zero in `synced` are compared and written below.
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
                    // Locked memory, for example, cannot be discarded.
                    Err(_) => pages,
                }
            }
        };
        self.mapping.check_usable()?;
        let mut written = PageSet::new();
        for page in left.iter() {
            // SAFETY: the page is in the mapping, and can be read and written. The tree is borrowed exclusively.
            let now = unsafe { self.page(page) };
            // Writing the same bytes again would make the page private, which takes memory.
            if now != old.page(page) {
                // SAFETY: as above, and `now` is not used again. The bytes are an image's, so they are not in the
                // mapping.
                unsafe { self.mapping.write(page, old.page(page)) };
                written.push(page);
            }
        }
        self.log_private(&written);
        if self.log.is_some() {
            // These pages show `synced` now. In a view that is not logged, they stay in `unsynced`, since the tracker
            // may still list them.
            self.known.show_synced(range);
        }
        Ok(())
    }

    /// Notes that the engine discarded `pages`, so that they are not private.
    pub(crate) fn forget_private(&mut self, pages: &PageSet) {
        self.known.remove_private(pages);
        if let Some(log) = &mut self.log {
            log.remove_private(pages);
        }
    }

    /// The pages of `pages`, in a private mapping, that may have bytes other than zero.
    ///
    /// Writing zeroes to the other pages would take memory.
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

    /// Adds the pages that other code has discarded to `unsynced`.
    ///
    /// `private` has the pages that are private now. If another page was private at the last search, other code has
    /// discarded it (`MADV_DONTNEED`), or has allowed the kernel to discard it (`MADV_FREE`). If it is not known which
    /// pages were private, this adds those that have to be private so that the view shows `synced`.
    pub(crate) fn add_discarded(&mut self, private: &PageSet) {
        let discarded = match (self.known.private(), &self.backing) {
            (Some(before), _) => before.minus(private),
            (None, Backing::Private(layout)) => layout.hidden(&self.synced, private),
            (None, Backing::Direct(_) | Backing::Torn) => return,
        };
        // During a restore, `synced` may be longer than the range.
        let discarded = discarded.below(self.mapping.pages());
        if !discarded.is_empty() {
            self.known.may_differ(&discarded);
        }
    }
}
