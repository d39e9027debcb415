//! The state of a working tree: an address range that shows an image, with the changes written since.
//!
//! This file defines the state and changes its length. Other files of `engine/` add the methods that capture and
//! restore it.
//!
//! ```text
//!              open                        capture, or the view ends
//!   zero image ──────────────▶ Direct ───────────────────────────┐
//!   (mutable view)               │                               ▼
//!              open              └────── show ─────────────▶  Private  ◀──┐ capture,
//!   any image ─────────────────────────────────────────────▶     │    ────┘ show
//!                                                    show fails │
//!                                                                ▼ show
//!                                                              Torn ──────▶ Private
//! ```
//!
//! - **Private**: the range is a private mapping that is laid out as its [`Layout`] says. A page that the tracker does
//!   not list, and that is not in `unsynced`, shows `synced`. Behind the end of `synced`, it shows zeroes.
//! - **Direct**: the range is a shared mapping of a file, which no image refers to yet. Writes go into the file.
//!   `synced` is the zero image. The first capture makes the file the base of an image.
//! - **Torn**: a call failed after it had changed the range: `show` or, in rare cases, a capture or `zero`. It is not
//!   known what the range is mapped to. Every page counts as possibly changed, so captures are still exact. The next
//!   `show` maps the whole range anew.
#![allow(unsafe_code)]

use std::io;
use std::ops::Range;
use std::sync::Arc;

use crate::access::Protections;
use crate::engine::adaptation::Adaptation;
use crate::engine::cost::Ledger;
use crate::engine::dirty_log::DirtyLog;
use crate::engine::known_pages::KnownPages;
use crate::engine::layout::Layout;
use crate::engine::rewritten::RewrittenPages;
use crate::error;
use crate::image::Image;
use crate::pages::{PageRange, PageSet};
use crate::sys::{Mapping, MemoryFile, Populate, Source, Tracker, Tracking};

/// What a working tree shows, and what is known of its pages.
pub(crate) struct State {
    pub(super) mapping: Mapping,
    pub(super) backing: Backing,
    /// The image that the range showed when it was last captured or restored.
    ///
    /// The range may have had another length then.
    pub(super) synced: Arc<Image>,
    pub(super) tracker: Tracker,
    pub(super) known: KnownPages,
    /// The pages that recent calls of `show` had to rewrite.
    pub(super) rewritten: RewrittenPages,
    pub(super) ledger: Ledger,
    pub(super) adaptation: Adaptation,
    pub(super) access: Protections,
    /// The pages that the program reported, if the view is logged.
    ///
    /// In a logged view, the tracker is used only to check these reports.
    pub(super) log: Option<Box<DirtyLog>>,
}

/// What the address range is mapped to. The documentation of this module describes the three states.
pub(crate) enum Backing {
    /// A private mapping with this layout.
    Private(Layout),
    /// A shared mapping of this file.
    Direct(MemoryFile),
    /// Anything, after a call that failed when it had changed the range.
    Torn,
}

impl State {
    /// The bytes of `page`.
    ///
    /// # Safety
    ///
    /// The page must be in the mapping and readable. Nothing may write to it as long as the slice is in use.
    pub(crate) unsafe fn page(&self, page: usize) -> &[u8] {
        // SAFETY: the conditions are those of this function, which the caller ensures.
        unsafe { self.mapping.page(page) }
    }

    /// The bytes of `range`.
    ///
    /// # Safety
    ///
    /// As for [`page`](Self::page), for each page that contains any of these bytes.
    pub(super) unsafe fn bytes(&self, range: Range<usize>) -> &[u8] {
        let pages = PageRange::around(&range);
        // SAFETY: as in `page`.
        let bytes = unsafe { self.mapping.range(pages) };
        &bytes[range.start - pages.bytes().start..][..range.len()]
    }

    /// Populates all pages, so that their first use takes no page fault.
    ///
    /// `populate` says whether that use is a read or a write.
    pub(super) fn populate(&self, populate: Populate) -> io::Result<()> {
        let pages = self.mapping.pages();
        match self.mapping.populate(PageRange::new(0, pages), populate) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                for page in 0..pages {
                    let start = self.mapping.page_ptr(page);
                    // SAFETY: the page is in the mapping, which is new. So it can be read and written, and nothing else
                    // refers to it yet.
                    let byte = unsafe { start.read_volatile() };
                    if populate == Populate::Write {
                        // SAFETY: as above.
                        unsafe { start.write_volatile(byte) };
                    }
                }
                Ok(())
            }
            result => result.map_err(error::context("populating the pages of a view", pages)),
        }
    }

    /// Makes the range `pages` pages long.
    ///
    /// Added pages are zero, and the contents of removed pages are lost. An error changes nothing.
    pub(crate) fn resize(&mut self, pages: usize) -> io::Result<()> {
        let old = self.mapping.pages();
        if pages < old {
            // SAFETY: the tree is borrowed exclusively, and no slice of its bytes is alive.
            unsafe { self.mapping.truncate(pages) }
                .map_err(error::context("removing pages from the end of a view", old - pages))?;
            self.known.truncate(pages);
            self.forget_private(&PageRange::new(pages, old).into());
            self.rewritten.truncate(pages);
            self.access.truncate(pages);
            match &mut self.backing {
                Backing::Private(layout) => layout.truncated(pages),
                // The file still has the removed pages. They must not be shown if the range grows again.
                Backing::Direct(_) => self.backing = Backing::Torn,
                Backing::Torn => {}
            }
        } else if pages > old {
            self.mapping.check_owner()?;
            let added = PageRange::new(old, pages);
            let context = error::context("adding pages to the end of a view", added.len());
            match &mut self.backing {
                Backing::Direct(file) => {
                    let longer = if file.pages() < pages { file.set_pages(pages) } else { Ok(()) };
                    let added = longer.and_then(|()| self.mapping.extend(added.len(), Source::Shared(file)));
                    added.map_err(context)?;
                }
                Backing::Private(layout) => {
                    self.mapping.extend(added.len(), Source::Zero).map_err(context)?;
                    layout.extended(added);
                    self.tracker.renewed(&self.mapping, added);
                    self.known.set_all_write_protected(false);
                    // If a restore failed after it had shortened the range, `synced` is longer than the range was.
                    self.known.may_differ(&PageSet::from(added).below(self.synced.pages));
                }
                Backing::Torn => self.mapping.extend(added.len(), Source::Zero).map_err(context)?,
            }
        }
        Ok(())
    }

    /// The tracking method in use.
    pub(crate) fn tracking(&self) -> Tracking {
        if self.log.is_some() { Tracking::Logged } else { self.tracker.tracking() }
    }
}
