//! The state of a working tree: an address range that shows one image, plus what was written since.
//!
//! ```text
//!              open                        capture, or closed with an image
//!   zero image ──────────────▶ Direct ───────────────────────────┐
//!   (mutable view)               │                               ▼
//!              open              └────── show ─────────────▶  Private  ◀──┐ capture,
//!   any image ─────────────────────────────────────────────▶     │    ────┘ show
//!                                                    show fails │
//!                                                                ▼ show
//!                                                              Torn ──────▶ Private
//! ```
//!
//! - **Private**: a private mapping laid out as its [`Layout`] says. Pages that the tracker does not
//!   report, and that are not in `unsynced`, show `synced`, and zeroes beyond its end.
//! - **Direct**: a shared mapping of a file that no image refers to yet; the file is the truth, and
//!   `synced` is the zero image. The first capture makes the file the base of an image.
//! - **Torn**: a failed `show` left the range showing anything. Every page counts as possibly changed,
//!   so captures stay right, and the next `show` maps everything anew.
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
    /// What the range showed when it was last captured or restored, which may have had another length then.
    pub(super) synced: Arc<Image>,
    pub(super) tracker: Tracker,
    pub(super) known: KnownPages,
    /// Pages that recent calls of `show` had to rewrite.
    pub(super) rewritten: RewrittenPages,
    pub(super) ledger: Ledger,
    pub(super) adaptation: Adaptation,
    pub(super) access: Protections,
    /// The pages that the program reported, if the view is logged.
    ///
    /// Then the tracker is only used to check them.
    pub(super) log: Option<Box<DirtyLog>>,
}

/// See the module.
pub(crate) enum Backing {
    Private(Layout),
    Direct(MemoryFile),
    Torn,
}

impl State {
    /// The bytes of `page`.
    ///
    /// # Safety
    ///
    /// The page is the mapping's and can be read. Nobody writes to it as long as the slice is in use.
    pub(crate) unsafe fn page(&self, page: usize) -> &[u8] {
        // SAFETY: forwarded to the caller.
        unsafe { self.mapping.page(page) }
    }

    /// The bytes of `range`.
    ///
    /// # Safety
    ///
    /// As for [`page`](Self::page), for each page that has any of them.
    pub(super) unsafe fn bytes(&self, range: Range<usize>) -> &[u8] {
        let pages = PageRange::around(&range);
        // SAFETY: forwarded to the caller.
        let bytes = unsafe { self.mapping.range(pages) };
        &bytes[range.start - pages.bytes().start..][..range.len()]
    }

    /// Makes all pages ready.
    pub(super) fn populate(&self, populate: Populate) -> io::Result<()> {
        let pages = self.mapping.pages();
        match self.mapping.populate(PageRange::new(0, pages), populate) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                for page in 0..pages {
                    let start = self.mapping.page_ptr(page);
                    // SAFETY: the page is the mapping's, which nobody else has yet.
                    let byte = unsafe { start.read_volatile() };
                    if populate == Populate::Write {
                        // SAFETY: as above.
                        unsafe { start.write_volatile(byte) };
                    }
                }
                Ok(())
            }
            result => result.map_err(error::context("making the pages of a view ready", pages)),
        }
    }

    /// Makes the range so many pages long. What is added is zero; what is taken away is gone. An error changes
    /// nothing.
    pub(crate) fn resize(&mut self, pages: usize) -> io::Result<()> {
        let old = self.mapping.pages();
        if pages < old {
            // SAFETY: the tree is borrowed exclusively, and no slice of its bytes is alive.
            unsafe { self.mapping.truncate(pages) }
                .map_err(error::context("taking pages from the end of a view", old - pages))?;
            self.known.truncate(pages);
            self.forget_private(&PageRange::new(pages, old).into());
            self.rewritten.truncate(pages);
            self.access.truncate(pages);
            match &mut self.backing {
                Backing::Private(layout) => layout.truncated(pages),
                // The file still has what was taken away, which must not come back if the range grows again.
                Backing::Direct(_) => self.backing = Backing::Torn,
                Backing::Torn => {}
            }
        } else if pages > old {
            self.mapping.check_owner()?;
            let added = PageRange::new(old, pages);
            let context = error::context("adding pages to a view", added.len());
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
                    // A restore that failed after it shortened the range has left a longer `synced`.
                    self.known.may_differ(&PageSet::from(added).below(self.synced.pages));
                }
                Backing::Torn => self.mapping.extend(added.len(), Source::Zero).map_err(context)?,
            }
        }
        Ok(())
    }

    /// How written pages are found at present.
    pub(crate) fn tracking(&self) -> Tracking {
        if self.log.is_some() { Tracking::Logged } else { self.tracker.tracking() }
    }
}
