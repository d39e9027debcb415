//! Shows another image: decides whether to rewrite pages or to map the whole range anew.
//!
//! `put_back.rs` and `logged_tree.rs` rewrite pages. `layout.rs` decides what the range is mapped from.
#![allow(unsafe_code)]

use std::io;
use std::sync::Arc;

use crate::access::Access;
use crate::engine::layout::Layout;
use crate::engine::state::{Backing, State};
use crate::image::Image;
use crate::pages::PageSet;
use crate::{engine::cost, error, trace};

impl State {
    /// Makes all pages readable and writable again.
    pub(crate) fn unprotect(&mut self) -> io::Result<()> {
        while let Some((range, _)) = self.access.last() {
            // SAFETY: this does not make any page unreadable or unwritable.
            unsafe { self.mapping.set_access(range, Access::READ_WRITE) }
                .map_err(error::context("making protected pages of a view writable again", range.len()))?;
            self.access.truncate(range.start);
        }
        Ok(())
    }

    /// Shows `image`, except that the pages `keep` do not change.
    ///
    /// The caller ensures that all pages can be written.
    pub(crate) fn show(&mut self, image: &Arc<Image>, keep: &PageSet) -> io::Result<()> {
        debug_assert!(self.access.is_empty());
        if self.log.is_some() && matches!(self.backing, Backing::Private(_)) {
            self.collect_and_check_log()?;
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
            if cost::should_rewrite(moved.len(), image.pages) {
                return match self.log {
                    Some(_) => self.put_back_logged(image, &moved, keep),
                    None => self.put_back(image, &moved, keep),
                };
            }
        }
        self.map_anew(image, keep)
    }

    /// Shows `image`, except in the pages `keep`, by mapping the whole range anew.
    pub(super) fn map_anew(&mut self, image: &Arc<Image>, keep: &PageSet) -> io::Result<()> {
        self.mapping.check_owner()?;
        // SAFETY: `keep` is within the mapping, no page is protected, and the tree is borrowed exclusively.
        let bytes = |page| unsafe { self.page(page) }.to_vec();
        let kept: Vec<_> = keep.iter().map(|page| (page, bytes(page))).collect();
        self.backing = Backing::Torn;
        self.known.set_all_write_protected(false);
        self.tracker.disarm();
        let layout = Layout::remap(image, &mut self.mapping);
        if self.mapping.check_usable().is_ok() {
            // SAFETY: the pages are in the mapping and can be written, even if mapping them anew failed. The tree is
            // borrowed exclusively, and no slice of its bytes is alive.
            kept.iter().for_each(|(page, bytes)| unsafe { self.mapping.write(*page, bytes) });
        }
        self.backing = Backing::Private(layout?);
        self.known.set_private(None);
        self.synced = Arc::clone(image);
        self.known.only_may_differ(PageSet::new());
        self.log_hidden();
        self.log_kept(keep);
        self.ledger.started_over();
        self.adaptation.mapped_anew();
        trace::restored("mapped anew", image.pages, 0, self.tracking());
        Ok(())
    }

    /// Shows `image`, which has the same base, by discarding all pages and copying the hidden ones.
    ///
    /// Returns whether this succeeded. If not, any page may have changed, and `unsynced` has all pages that did.
    pub(super) fn start_over(&mut self, image: &Arc<Image>) -> bool {
        let Backing::Private(layout) = &self.backing else { return false };
        let Ok(wanted) = image.reader() else { return false };
        // SAFETY: the tree is borrowed exclusively, and no slice of its bytes is alive.
        if let Err(error) = unsafe { self.mapping.discard(&PageSet::all(image.pages)) } {
            if error.kind() != io::ErrorKind::Unsupported {
                // Some pages may have been discarded: if a part of the range is locked, for example, the pages before
                // it.
                self.known.only_may_differ(PageSet::all(image.pages));
            }
            self.ledger.cannot_start_over();
            return false;
        }
        let hidden = layout.hidden(image, &PageSet::new());
        // SAFETY: as above. The bytes of `wanted` are an image's, so they are not in the mapping.
        hidden.iter().for_each(|page| unsafe { self.mapping.write(page, wanted.page(page)) });
        self.known.set_private(Some(hidden));
        self.synced = Arc::clone(image);
        self.known.only_may_differ(PageSet::new());
        self.ledger.started_over();
        trace::restored("started over", image.pages, 0, self.tracker.tracking());
        true
    }

    /// Maps the base or flat file again where zeroes hide bytes of `image`, outside of `keep`.
    ///
    /// Returns the pages that were mapped, and adds them to `unsynced`. The layout chooses these pages.
    pub(crate) fn uncover(&mut self, image: &Image, keep: &PageSet) -> io::Result<PageSet> {
        let Backing::Private(layout) = &mut self.backing else { return Ok(PageSet::new()) };
        if !layout.covers_base() {
            return Ok(PageSet::new());
        }
        // SAFETY: the tree is borrowed exclusively, and no slice of its bytes is alive.
        match unsafe { layout.uncover(&mut self.mapping, image, keep) } {
            Ok(uncovered) => {
                uncovered.ranges().iter().for_each(|&range| self.tracker.renewed(&self.mapping, range));
                self.known.may_differ(&uncovered);
                Ok(uncovered)
            }
            Err(error) => {
                self.backing = Backing::Torn;
                self.tracker.disarm();
                Err(error::context("mapping the image again in place of zeroed pages", image.pages)(error))
            }
        }
    }
}
