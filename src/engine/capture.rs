//! Captures a working tree: decides which pages may have changed, and copies those that differ.
//!
//! `search.rs` finds the written pages. The image decides where the copies are kept. `in_place.rs` captures a view that
//! is written in place.
#![allow(unsafe_code)]

use std::io;
use std::sync::Arc;
use std::time::Instant;

use crate::access::Access;
use crate::engine::cost;
use crate::engine::state::{Backing, State};
use crate::image::Image;
use crate::pages::{PageRange, PageSet};
use crate::sys::{Search, WriteProtected};
use crate::{error, trace};

impl State {
    /// Adds the pages that may differ from `synced` to `unsynced`.
    ///
    /// Write-protects pages if the cost model says so.
    ///
    /// Returns whether all pages in `unsynced` are known to have been written. Also returns the number of other pages
    /// that the search looked at needlessly because they were not write-protected.
    fn collect_written(&mut self) -> io::Result<(bool, usize)> {
        if self.log.is_some() {
            return Ok((self.collect_and_check_log()?, 0));
        }
        let pages = self.mapping.pages();
        let protects = self.tracker.is_armed()
            && (self.ledger.should_write_protect(pages) || self.ledger.should_write_protect_at_once(pages));
        // In a sparse view, pages that were never resident are not write-protected. A search that write-protects all
        // pages in the same step would list them too. So a view that stops being sparse is first searched, and then
        // write-protected.
        let widens = protects && self.tracker.is_sparse() && !self.ledger.stays_sparse(self.mapping.pages());
        let search = if protects && !widens { Search::WrittenAndProtect } else { Search::Written };
        let found = self.find_and_note(search).inspect_err(|_| {
            if search == Search::WrittenAndProtect {
                self.known.only_may_differ(PageSet::all(self.mapping.pages()));
                self.known.set_all_write_protected(false);
            }
        })?;
        // If an earlier call failed, `unsynced` may have pages that were not written.
        let written =
            found.since_protected && self.known.all_write_protected() && self.known.unsynced().is_empty();
        self.known.set_all_write_protected(found.write_protected == WriteProtected::All);
        self.known.may_differ(&found.pages);
        if !found.since_protected {
            if self.tracker.must_arm() || self.ledger.should_arm() {
                self.arm(found.pages.len());
            }
        } else if widens {
            self.write_protect(found.pages.len());
        } else if protects {
            self.note_write_protected(found.write_protected, found.pages.len());
        }
        // If pages were write-protected just now, these pages were as well, and later searches do not look at them.
        let unwritten = if found.write_protected == WriteProtected::Nothing { found.unwritten } else { 0 };
        Ok((written, unwritten))
    }

    /// The pages of a mapping that is not private that may differ from `synced`.
    pub(super) fn all_candidates(&self) -> io::Result<PageSet> {
        match &self.backing {
            Backing::Direct(file) => {
                self.mapping.check_owner()?;
                // Pages that were captured may have been zeroed since. Then the file has no data for them.
                Ok(file.data().below(self.mapping.pages()).union(&self.synced.captured_pages()))
            }
            Backing::Private(_) | Backing::Torn => {
                self.mapping.check_owner()?;
                self.mapping.check_usable()?;
                Ok(PageSet::all(self.mapping.pages()))
            }
        }
    }

    /// The pages of `candidates` that differ from `synced`.
    ///
    /// The result also has the pages that only the range or only `synced` has.
    pub(super) fn differing(&self, candidates: &PageSet) -> io::Result<PageSet> {
        let synced = self.synced.reader()?;
        let common = self.mapping.pages().min(self.synced.pages);
        // SAFETY: pages below `common` are in the mapping. They can be read, because no page of a view that has
        // `changes` is protected. The tree is borrowed, so nothing writes to them.
        let differ = |page: &usize| *page < common && unsafe { self.page(*page) } != synced.page(*page);
        let mut differing: PageSet = candidates.iter().filter(differ).collect();
        differing.push_range(PageRange::new(common, self.mapping.pages().max(self.synced.pages)));
        Ok(differing)
    }

    /// Captures the pages that changed since `synced`, by copying them.
    ///
    /// Returns the new image, which becomes `synced`. If no page has changed, returns `synced` as it was.
    pub(crate) fn capture_changed(&mut self, content_len: usize) -> io::Result<Arc<Image>> {
        let (written, unwritten) = match &self.backing {
            Backing::Private(_) => self.collect_written()?,
            Backing::Direct(_) | Backing::Torn => {
                let candidates = self.all_candidates()?;
                self.known.only_may_differ(candidates);
                (false, 0)
            }
        };
        let candidates = self.known.unsynced();
        let unreadable = self.access.unreadable(candidates);
        self.set_access(&unreadable, Access::READ).or_else(|error| {
            self.set_access(&unreadable, Access::NONE)?;
            Err(error)
        })?;
        let size = (self.mapping.pages(), content_len);
        // SAFETY: the candidates are pages of the mapping. Those that could not be read were made readable above. The
        // tree is borrowed, so nothing writes to them.
        let now = |page| unsafe { self.page(page) };
        let start = (candidates.len() >= cost::OBSERVED).then(Instant::now);
        let captured = self.synced.capture(size, candidates, written, now);
        let took = start.map(|start| start.elapsed());
        // All steps that can fail come before `take_unsynced`. So after an error, the next call finds the same
        // candidates.
        let protected = self.set_access(&unreadable, Access::NONE);
        let (image, idle) = captured?;
        protected?;
        let candidates = self.known.take_unsynced().len();
        let changed = candidates - idle;
        if let Some(took) = took {
            self.ledger.costs.compared(if written { changed } else { candidates + changed }, took);
        }
        if let Some(image) = image {
            self.synced = Arc::new(image);
            // Otherwise the sources would keep the captured pages of the previous image in memory.
            self.forget_sources();
        }
        self.ledger.found(changed, idle, unwritten);
        self.ledger.found_written(changed);
        trace::taken(size.0, candidates, changed, self.tracking());
        Ok(Arc::clone(&self.synced))
    }

    /// Sets the access of all `ranges`, while their pages are captured.
    fn set_access(&self, ranges: &[PageRange], access: Access) -> io::Result<()> {
        ranges.iter().try_for_each(|&range| {
            // SAFETY: the program cannot read these pages, so it has no reference to their bytes. The capture has none
            // before the pages become readable, and none any more when they become unreadable again.
            unsafe { self.mapping.set_access(range, access) }.map_err(error::context(
                "changing the access to pages of a view to capture them",
                range.len(),
            ))
        })
    }
}
