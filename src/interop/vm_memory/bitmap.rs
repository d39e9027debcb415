//! The dirty bitmap of a region, in which vm-memory marks the bytes that it writes.
//!
//! This file converts offsets to pages. `engine/dirty_log.rs` keeps the reported pages.

use std::fmt;
use std::sync::Arc;

use ::vm_memory::bitmap::{Bitmap, BitmapSlice, WithBitmapSlice};

use crate::engine::dirty_log::AtomicPageSet;
use crate::page_size;
use crate::pages::PageRange;
use crate::view::View;
use crate::view::kind::{Logged, Open, Readable};

/// The kinds of [`View`] that can be guest memory: [`Open`] and [`Logged`].
///
/// Other crates cannot implement this trait.
///
/// # Examples
///
/// ```
/// use memsnap::Snapshot;
/// use memsnap::vm_memory::{GuestAccess, GuestRegion};
///
/// /// Restores all regions of a guest of either kind.
/// fn reset<A: GuestAccess>(regions: &mut [GuestRegion<Snapshot, A>]) -> std::io::Result<()> {
///     regions.iter_mut().try_for_each(GuestRegion::restore)
/// }
///
/// # fn main() -> std::io::Result<()> {
/// let ram = Snapshot::zeroed(1 << 20)?;
/// reset(&mut [GuestRegion::new(ram.into_view()?, vm_memory::GuestAddress(0))?])
/// # }
/// ```
pub trait GuestAccess: Readable + Sized {
    /// The type of the dirty bitmap of a [`GuestRegion`](super::GuestRegion): `()` for an open view, [`LogBitmap`]
    /// for a logged view.
    type Bitmap: Bitmap + Send + Sync;

    #[doc(hidden)]
    fn bitmap<S>(view: &View<S, Self>) -> Self::Bitmap;
}

impl GuestAccess for Open {
    type Bitmap = ();

    fn bitmap<S>(_: &View<S>) {}
}

impl GuestAccess for Logged {
    type Bitmap = LogBitmap;

    fn bitmap<S>(view: &View<S, Self>) -> LogBitmap {
        LogBitmap { reported: view.tree.as_ref().and_then(|tree| tree.reported()), len: view.len() }
    }
}

/// The dirty bitmap of a region of a [logged view](crate::LoggedView).
///
/// Marking bytes in the bitmap reports them to the view. vm-memory marks the bytes that its own accesses write. A
/// marked page is dirty until the next call that takes a snapshot, restores, lists changes or discards bytes.
///
/// # Examples
///
/// ```
/// use memsnap::{Snapshot, ViewOptions, vm_memory::GuestRegion};
/// use vm_memory::bitmap::Bitmap;
/// use vm_memory::{Bytes, GuestAddress, GuestMemoryRegion, MemoryRegionAddress};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let snapshot = Snapshot::zeroed(1 << 20)?;
/// let mut region = GuestRegion::new(snapshot.view_with(&ViewOptions::logged())?, GuestAddress(0))?;
/// region.write_obj(1_u32, MemoryRegionAddress(0x8000))?;
/// assert!(region.bitmap().dirty_at(0x8000));
/// region.restore()?;
/// assert!(!region.bitmap().dirty_at(0x8000));
/// # Ok(())
/// # }
/// ```
pub struct LogBitmap {
    /// The log of the view. Marked pages are added to it.
    reported: Option<Arc<AtomicPageSet>>,
    /// The length of the region in bytes. Bytes after it are not reported.
    len: usize,
}

/// A part of a [`LogBitmap`]. Its offsets count from the start of the part, and it borrows the region.
///
/// # Examples
///
/// ```
/// use memsnap::vm_memory::{GuestRegion, LogBitmapSlice};
/// use memsnap::{Snapshot, ViewOptions};
/// use vm_memory::bitmap::Bitmap;
/// use vm_memory::{Bytes, GuestAddress, GuestMemoryRegion, MemoryRegionAddress};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let snapshot = Snapshot::zeroed(1 << 20)?;
/// let region = GuestRegion::new(snapshot.view_with(&ViewOptions::logged())?, GuestAddress(0))?;
/// let slice = region.get_slice(MemoryRegionAddress(0x8000), 0x4000)?;
/// slice.write_obj(1_u8, 0x100)?;
/// let bitmap: &LogBitmapSlice<'_> = slice.bitmap();
/// assert!(bitmap.dirty_at(0x100));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy)]
pub struct LogBitmapSlice<'a> {
    reported: Option<&'a AtomicPageSet>,
    start: usize,
    /// The end of the region.
    end: usize,
}

impl<'a> WithBitmapSlice<'a> for LogBitmap {
    type S = LogBitmapSlice<'a>;
}

impl Bitmap for LogBitmap {
    fn mark_dirty(&self, offset: usize, len: usize) {
        self.slice_at(offset).mark_dirty(0, len);
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.slice_at(offset).dirty_at(0)
    }

    fn slice_at(&self, offset: usize) -> LogBitmapSlice<'_> {
        LogBitmapSlice { reported: self.reported.as_deref(), start: 0, end: self.len }.slice_at(offset)
    }
}

impl<'a> WithBitmapSlice<'a> for LogBitmapSlice<'_> {
    type S = Self;
}

impl BitmapSlice for LogBitmapSlice<'_> {}

impl Bitmap for LogBitmapSlice<'_> {
    fn mark_dirty(&self, offset: usize, len: usize) {
        let start = self.slice_at(offset).start;
        let end = start.saturating_add(len).min(self.end);
        if let Some(reported) = self.reported
            && start < end
        {
            reported.insert(PageRange::around(&(start..end)));
        }
    }

    fn dirty_at(&self, offset: usize) -> bool {
        let start = self.slice_at(offset).start;
        let is_reported = |reported: &AtomicPageSet| reported.contains(start / page_size());
        start < self.end && self.reported.is_some_and(is_reported)
    }

    fn slice_at(&self, offset: usize) -> Self {
        Self { start: self.start.saturating_add(offset).min(self.end), ..*self }
    }
}

impl fmt::Debug for LogBitmapSlice<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { reported: _, start, end } = self;
        f.debug_struct("LogBitmapSlice").field("start", start).field("end", end).finish_non_exhaustive()
    }
}
