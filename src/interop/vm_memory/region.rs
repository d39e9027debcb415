//! Views as guest memory of a virtual machine: a region for the `vm-memory` crate (0.18). Needs the feature
//! `vm-memory`.
//!
//! [`GuestRegion`] implements vm-memory's region traits; a [`GuestRegionCollection`] of them is the guest
//! memory. Like vm-memory, for 64-bit targets.
//!
//! [`GuestRegionCollection`]: ::vm_memory::GuestRegionCollection
#![allow(unsafe_code)]

use std::fmt;
use std::io;
use std::ops::RangeBounds;
use std::sync::Arc;

use ::vm_memory::bitmap::{BS, Bitmap, BitmapSlice, WithBitmapSlice};
use ::vm_memory::{
    Address, GuestAddress, GuestMemoryError, GuestMemoryRegion, GuestMemoryRegionBytes, GuestMemoryResult,
    GuestUsize, MemoryRegionAddress, VolatileSlice,
};

use crate::changes::Changes;
use crate::engine::dirty_log::AtomicPageSet;
use crate::error;
use crate::page_size;
use crate::pages::PageRange;
use crate::snapshot::Snapshot;
use crate::stats::ViewStats;
use crate::view::kind::{Logged, Open, Readable};
use crate::view::{View, resolve};

/// A range of guest memory: a view, and the guest physical address where it starts.
///
/// A [`GuestRegionCollection`] of such regions is guest memory, with all that vm-memory has for it. What
/// is written through it is captured by [`take_snapshot`](Self::take_snapshot) and undone by
/// [`restore`](Self::restore), at host addresses that never change.
///
/// A region is made of one of two kinds of view:
///
/// - A view as [`Snapshot::view`] opens it. The type of vm-memory's dirty bitmap is `()`, since memsnap finds the
///   written pages itself.
/// - A [logged view](crate::LoggedView), for which the time of a snapshot or restore depends on what was written, on
///   every system. The type of the dirty bitmap is [`LogBitmap`]: vm-memory's own accesses report what they write. The
///   program has to report all other writes by [`mark_written`](GuestRegion::mark_written).
///
/// # Who may touch the bytes
///
/// Guest memory is read and written through shared references, by any thread, with the volatile accesses of
/// [`VolatileSlice`], which vm-memory lets race with one another. Snapshots and restores access the same
/// bytes plainly, which must not race with anything. So the two are kept apart:
///
/// - All that reads or changes bytes of the view takes the region by `&mut` or by value. A `VolatileSlice`
///   borrows the region, so that no thread has one then.
/// - All that takes the region by `&` leaves the view alone. There is no `Deref` and no `AsRef`, for a
///   `&[u8]` promises that its bytes do not change. The view comes out [by value](Self::into_view).
///
/// The compiler does not see who uses a pointer from
/// [`get_host_address`](GuestMemoryRegion::get_host_address): virtual CPUs, devices. Such use takes
/// `unsafe`, and whoever writes that sees to it that nothing accesses the memory while a method has the
/// region by `&mut` or by value, nor after it is dropped. For memory that is registered with the kernel see
/// [`View`].
///
/// # Examples
///
/// Each region is kept in an [`Arc`] beside the guest memory. When all clones of the guest
/// memory are dropped, the region can be had by `&mut` again:
///
/// ```
/// use std::sync::Arc;
///
/// use memsnap::Snapshot;
/// use memsnap::vm_memory::GuestRegion;
/// use vm_memory::{Bytes, GuestAddress, GuestRegionCollection};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let booted = Arc::new(Snapshot::zeroed(128 << 20)?);
/// let mut ram = Arc::new(GuestRegion::new(booted.view_arc()?, GuestAddress(0x8000_0000))?);
///
/// let memory = GuestRegionCollection::from_arc_regions(vec![Arc::clone(&ram)])?;
/// memory.write_slice(b"guest", GuestAddress(0x8000_1000))?; // any thread with a clone could
/// drop(memory);
///
/// let region = Arc::get_mut(&mut ram).expect("the guest memory is dropped");
/// let snapshot = region.take_snapshot()?; // copies one page
/// region.restore()?;
/// assert_eq!(region.read_obj::<u8>(vm_memory::MemoryRegionAddress(0x1000))?, 0);
/// assert_eq!(&snapshot.view()?[0x1000..0x1005], b"guest");
/// # Ok(())
/// # }
/// ```
///
/// A slice of guest memory cannot be kept across a snapshot or a restore:
///
/// ```compile_fail,E0502
/// # use memsnap::{Snapshot, vm_memory::GuestRegion};
/// # use vm_memory::{Bytes, GuestAddress, GuestMemoryRegion};
/// # let snapshot = Snapshot::zeroed(1).unwrap();
/// let mut region = GuestRegion::new(snapshot.view().unwrap(), GuestAddress(0)).unwrap();
/// let slice = region.as_volatile_slice().unwrap();
/// region.restore().unwrap(); // error: `region` is borrowed by `slice`
/// slice.write_obj(1_u8, 0).unwrap();
/// ```
///
/// ```compile_fail,E0502
/// # use memsnap::{Snapshot, vm_memory::GuestRegion};
/// # use vm_memory::{Bytes, GuestAddress, GuestMemoryRegion};
/// # let snapshot = Snapshot::zeroed(1).unwrap();
/// let mut region = GuestRegion::new(snapshot.view().unwrap(), GuestAddress(0)).unwrap();
/// let slice = region.as_volatile_slice().unwrap();
/// region.take_snapshot().unwrap(); // error: `region` is borrowed by `slice`
/// slice.write_obj(1_u8, 0).unwrap();
/// ```
///
/// [`GuestRegionCollection`]: ::vm_memory::GuestRegionCollection
pub struct GuestRegion<S, A: GuestAccess = Open> {
    /// Used by methods that have the region by `&mut` or by value, and by no others.
    view: View<S, A>,
    bitmap: A::Bitmap,
    start: GuestAddress,
    /// Address and length of the view. Invariant: they never change. Only growth and restores to snapshots of other
    /// lengths change that of a view: the region has no growth, and refuses such restores.
    host: *mut u8,
    len: usize,
    /// Bytes that can be accessed: all, or none where the view has lost its memory until a restore repairs it (Windows).
    accessible: usize,
}

// SAFETY: `host` is the address of memory that belongs to `view`, and is used as long as that lives.
unsafe impl<S, A: GuestAccess> Send for GuestRegion<S, A> where View<S, A>: Send {}
// SAFETY: methods on `&self` read fields that only change by `&mut self`, and give out `VolatileSlice`s,
// which several threads may use at once, since then all access is volatile: see `get_slice`.
unsafe impl<S, A: GuestAccess> Sync for GuestRegion<S, A> where View<S, A>: Sync {}

/// The kinds of [`View`] that can be guest memory: [`Open`] and [`Logged`].
pub trait GuestAccess: Readable + Sized {
    /// The dirty bitmap of a [`GuestRegion`]: `()` for an open view, [`LogBitmap`] for a logged view.
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
/// Bytes that are marked in it are reported to the view. vm-memory marks the bytes that its own accesses write. A
/// marked page is dirty until the next snapshot or restore.
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
    reported: Option<Arc<AtomicPageSet>>,
    /// The length of the region in bytes. No bytes behind its end are reported.
    len: usize,
}

/// A part of a [`LogBitmap`], with offsets from its own start. It borrows the region.
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

impl<S, A: GuestAccess> GuestRegion<S, A> {
    /// The memory of `view` as guest memory from `start` on.
    ///
    /// The region has the current length of the view, in whole pages, and keeps it. `start` need not be aligned, but
    /// hypervisors want it to be.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if the view is empty, or if `start` plus its length exceeds `u64::MAX`. The view is
    /// dropped then.
    ///
    /// # Examples
    ///
    /// ```
    /// use memsnap::{Snapshot, page_size, vm_memory::GuestRegion};
    /// use vm_memory::{GuestAddress, GuestMemoryRegion};
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let snapshot = Snapshot::from_slice(b"firmware")?;
    /// let region = GuestRegion::new(snapshot.view()?, GuestAddress(0xF_0000))?;
    /// assert_eq!(region.len(), page_size() as u64);
    /// assert!(GuestRegion::new(snapshot.view()?, GuestAddress(u64::MAX)).is_err());
    /// # Ok(())
    /// # }
    /// ```
    pub fn new(mut view: View<S, A>, start: GuestAddress) -> io::Result<Self> {
        let len = view.len();
        if len == 0 {
            return Err(error::invalid("a view of 0 bytes cannot be guest memory".to_owned()));
        }
        if start.checked_add(len as u64).is_none() {
            let start = start.raw_value();
            return Err(error::invalid(format!(
                "a view of {len} bytes from guest address {start:#x} on exceeds the address space of a guest"
            )));
        }
        let (bitmap, host) = (A::bitmap(&view), view.as_mut_ptr());
        Ok(Self { start, host, len, accessible: len, bitmap, view })
    }

    /// A new snapshot of what the region holds now. See [`View::take_snapshot`].
    ///
    /// Snapshots of several regions are of one moment if nothing writes to any of them in between.
    ///
    /// # Errors
    ///
    /// Those of [`View::take_snapshot`].
    ///
    /// # Examples
    ///
    /// ```
    /// # use memsnap::{Snapshot, vm_memory::GuestRegion};
    /// # use vm_memory::{Bytes, GuestAddress, MemoryRegionAddress};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let snapshot = Snapshot::zeroed(1 << 20)?;
    /// let mut region = GuestRegion::new(snapshot.view()?, GuestAddress(0))?;
    /// region.write_slice(b"guest", MemoryRegionAddress(0x100))?;
    /// assert_eq!(&region.take_snapshot()?.view()?[0x100..0x105], b"guest");
    /// # Ok(())
    /// # }
    /// ```
    pub fn take_snapshot(&mut self) -> io::Result<Snapshot> {
        self.view.take_snapshot()
    }

    /// Puts the region back to the snapshot that its view was opened on, at the same host address. See
    /// [`View::restore`].
    ///
    /// # Errors
    ///
    /// Those of [`View::restore`]. `InvalidInput`, with nothing changed, if that snapshot has another length than the
    /// region, because the view had grown before it became guest memory. Such a region can go back to snapshots taken
    /// of it, by [`restore_to`](Self::restore_to).
    ///
    /// # Examples
    ///
    /// ```
    /// # use memsnap::{Snapshot, vm_memory::GuestRegion};
    /// # use vm_memory::{Bytes, GuestAddress, MemoryRegionAddress};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let snapshot = Snapshot::zeroed(1 << 20)?;
    /// let mut region = GuestRegion::new(snapshot.view()?, GuestAddress(0))?;
    /// region.write_obj(1_u32, MemoryRegionAddress(0x100))?;
    /// region.restore()?;
    /// assert_eq!(region.read_obj::<u32>(MemoryRegionAddress(0x100))?, 0);
    /// # Ok(())
    /// # }
    /// ```
    pub fn restore(&mut self) -> io::Result<()> {
        self.check_len("go back to its first snapshot,", self.view.root_len())?;
        self.with_view(View::restore)
    }

    /// Has the region hold another snapshot of the same length, at the same host address. See
    /// [`View::restore_to`].
    ///
    /// # Errors
    ///
    /// Those of [`View::restore_to`]; `InvalidInput` if the lengths differ.
    ///
    /// # Examples
    ///
    /// ```
    /// # use memsnap::{Snapshot, vm_memory::GuestRegion};
    /// # use vm_memory::{Bytes, GuestAddress, MemoryRegionAddress};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let snapshot = Snapshot::zeroed(1 << 20)?;
    /// let mut region = GuestRegion::new(snapshot.view()?, GuestAddress(0))?;
    /// region.write_obj(1_u32, MemoryRegionAddress(0x100))?;
    /// let one = region.take_snapshot()?;
    /// region.restore()?;
    /// region.restore_to(&one)?;
    /// assert_eq!(region.read_obj::<u32>(MemoryRegionAddress(0x100))?, 1);
    /// # Ok(())
    /// # }
    /// ```
    pub fn restore_to(&mut self, snapshot: &Snapshot) -> io::Result<()> {
        self.check_len("hold a snapshot", snapshot.len())?;
        self.with_view(|view| view.restore_to(snapshot))
    }

    /// Makes the bytes of `range`, by offset, zero, and gives the memory of whole pages among them back. See
    /// [`View::zero`].
    ///
    /// Use this for pages that the guest expects to be zero when it uses them again: those of free page reporting, if
    /// the guest negotiated `VIRTIO_BALLOON_F_PAGE_POISON` with a value of 0. For other pages
    /// [`discard`](Self::discard) is better.
    ///
    /// # Errors
    ///
    /// Those of [`View::zero`].
    ///
    /// # Examples
    ///
    /// ```
    /// # use memsnap::{Snapshot, vm_memory::GuestRegion};
    /// # use vm_memory::{Bytes, GuestAddress, MemoryRegionAddress};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let snapshot = Snapshot::from_slice(&[1; 1 << 20])?;
    /// let mut region = GuestRegion::new(snapshot.view()?, GuestAddress(0))?;
    /// region.zero(0x1_0000..0x2_0000)?;
    /// assert_eq!(region.read_obj::<u8>(MemoryRegionAddress(0x1_0000))?, 0);
    /// # Ok(())
    /// # }
    /// ```
    pub fn zero(&mut self, range: impl RangeBounds<usize>) -> io::Result<()> {
        self.with_view(|view| view.zero(range))
    }

    /// Puts the bytes of `range`, by offset, back to what the last snapshot holds, and gives the memory of whole pages
    /// among them back. See [`View::discard`].
    ///
    /// Use this for pages whose contents the guest has given up: those of a memory balloon and of free page
    /// reporting. It returns at least as much memory as [`zero`](Self::zero), and leaves nothing of these pages for
    /// the next snapshot to capture. If the guest reads the pages later, it finds bytes that it held itself before.
    ///
    /// Do not call `madvise(MADV_DONTNEED)` on the region's host addresses: see
    /// [memory for other code](View#memory-for-other-code).
    ///
    /// # Errors
    ///
    /// Those of [`View::discard`].
    ///
    /// # Examples
    ///
    /// ```
    /// # use memsnap::{Snapshot, vm_memory::GuestRegion};
    /// # use vm_memory::{Bytes, GuestAddress, MemoryRegionAddress};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let snapshot = Snapshot::zeroed(1 << 20)?;
    /// let mut region = GuestRegion::new(snapshot.view()?, GuestAddress(0))?;
    /// region.write_obj(1_u32, MemoryRegionAddress(0x1_0000))?;
    /// region.discard(0x1_0000..0x2_0000)?;
    /// assert!(region.changes()?.is_empty());
    /// # Ok(())
    /// # }
    /// ```
    pub fn discard(&mut self, range: impl RangeBounds<usize>) -> io::Result<()> {
        self.with_view(|view| view.discard(range))
    }

    /// Where the region, by offset, differs from the snapshot that was last taken of it or
    /// restored to it. See [`View::changes`].
    ///
    /// # Errors
    ///
    /// Those of [`View::changes`].
    ///
    /// # Examples
    ///
    /// ```
    /// # use memsnap::{Snapshot, page_size, vm_memory::GuestRegion};
    /// # use vm_memory::{Bytes, GuestAddress, MemoryRegionAddress};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let snapshot = Snapshot::zeroed(1 << 20)?;
    /// let mut region = GuestRegion::new(snapshot.view()?, GuestAddress(0x8000_0000))?;
    /// region.write_obj(1_u32, MemoryRegionAddress(0x100))?;
    /// assert_eq!(region.changes()?.ranges(), [0..page_size()]);
    /// # Ok(())
    /// # }
    /// ```
    pub fn changes(&mut self) -> io::Result<Changes<'_>> {
        self.view.changes()
    }

    /// What the region's view holds.
    ///
    /// # Examples
    ///
    /// ```
    /// # use memsnap::{Snapshot, page_size, vm_memory::GuestRegion};
    /// # use vm_memory::{Bytes, GuestAddress, MemoryRegionAddress};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let snapshot = Snapshot::zeroed(1 << 20)?;
    /// let mut region = GuestRegion::new(snapshot.view()?, GuestAddress(0))?;
    /// region.write_obj(1_u32, MemoryRegionAddress(0x100))?;
    /// assert!(region.stats().private >= page_size());
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn stats(&mut self) -> ViewStats {
        self.view.stats()
    }

    /// The view, with all that was written to the region.
    ///
    /// # Examples
    ///
    /// ```
    /// # use memsnap::{Snapshot, vm_memory::GuestRegion};
    /// # use vm_memory::{Bytes, GuestAddress, MemoryRegionAddress};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let snapshot = Snapshot::zeroed(1 << 20)?;
    /// let region = GuestRegion::new(snapshot.view()?, GuestAddress(0))?;
    /// region.write_slice(b"guest", MemoryRegionAddress(0x100))?;
    /// assert_eq!(&region.into_view()[0x100..0x105], b"guest");
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// The region itself is no slice:
    ///
    /// ```compile_fail,E0608
    /// # use memsnap::{Snapshot, vm_memory::GuestRegion};
    /// # use vm_memory::GuestAddress;
    /// # let snapshot = Snapshot::zeroed(1).unwrap();
    /// let region = GuestRegion::new(snapshot.view().unwrap(), GuestAddress(0)).unwrap();
    /// assert_eq!(region[0], 0);
    /// ```
    #[must_use]
    pub fn into_view(self) -> View<S, A> {
        self.view
    }
}

/// Reporting what the program writes.
impl<S> GuestRegion<S, Logged> {
    /// Reports that the bytes at the offsets `range` were written, or are about to be.
    ///
    /// vm-memory's accesses (those of `Bytes`, [`VolatileSlice`] and `VolatileRef`) report what they write. The program
    /// must report all other writes before the next snapshot, restore or list of changes:
    ///
    /// - those through a pointer from [`get_host_address`](GuestMemoryRegion::get_host_address): by devices, and by
    ///   virtual CPUs, whose writes are in the hypervisor's dirty log;
    /// - those through a pointer or a reference from vm-memory: `ptr_guard_mut`, `get_atomic_ref`, `aligned_as_mut`.
    ///
    /// Several threads may call this at the same time. See also [`View::mark_written`].
    ///
    /// # Errors
    ///
    /// `InvalidInput` if the range is not within the region. Then nothing is reported.
    ///
    /// # Examples
    ///
    /// ```
    /// # use memsnap::{Snapshot, ViewOptions, vm_memory::GuestRegion};
    /// # use vm_memory::{Bytes, GuestAddress, GuestMemoryRegion, MemoryRegionAddress};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let snapshot = Snapshot::zeroed(1 << 20)?;
    /// let mut region = GuestRegion::new(snapshot.view_with(&ViewOptions::logged())?, GuestAddress(0))?;
    /// let host = region.get_host_address(MemoryRegionAddress(0x8000))?;
    /// // SAFETY: the byte is within the region, which nobody else uses.
    /// unsafe { host.write(1) };
    /// region.mark_written(0x8000..0x8001)?;
    /// region.restore()?;
    /// assert_eq!(region.read_obj::<u8>(MemoryRegionAddress(0x8000))?, 0);
    /// # Ok(())
    /// # }
    /// ```
    pub fn mark_written(&self, range: impl RangeBounds<usize>) -> io::Result<()> {
        let range = resolve(&range, self.len);
        if range.start > range.end || range.end > self.len {
            let len = self.len;
            return Err(error::invalid(format!(
                "cannot report bytes {range:?} of a guest region of {len} bytes"
            )));
        }
        self.bitmap.mark_dirty(range.start, range.len());
        Ok(())
    }
}

impl<S, A: GuestAccess> GuestRegion<S, A> {
    fn with_view<T>(&mut self, call: impl FnOnce(&mut View<S, A>) -> T) -> T {
        let result = call(&mut self.view);
        self.accessible = self.view.len();
        result
    }

    fn check_len(&self, what: &str, wanted: usize) -> io::Result<()> {
        if wanted == self.len {
            return Ok(());
        }
        Err(error::invalid(format!(
            "a guest region of {} bytes cannot {what} of {wanted} bytes: its neighbours stay where they are",
            self.len
        )))
    }
}

impl<S, A: GuestAccess> GuestMemoryRegion for GuestRegion<S, A> {
    type B = A::Bitmap;

    fn len(&self) -> GuestUsize {
        self.len as GuestUsize
    }

    fn start_addr(&self) -> GuestAddress {
        self.start
    }

    fn bitmap(&self) -> BS<'_, A::Bitmap> {
        self.bitmap.slice_at(0)
    }

    fn get_host_address(&self, addr: MemoryRegionAddress) -> GuestMemoryResult<*mut u8> {
        let addr = self.check_address(addr).ok_or(GuestMemoryError::InvalidBackendAddress)?;
        Ok(self.host.wrapping_add(offset(addr)?))
    }

    fn get_slice(
        &self,
        addr: MemoryRegionAddress,
        count: usize,
    ) -> GuestMemoryResult<VolatileSlice<'_, BS<'_, A::Bitmap>>> {
        // SAFETY: the `accessible` bytes from `host` on are the view's memory: mapped, readable and writable until the next
        // call that has the view by `&mut`, and the slice borrows the region. Meanwhile all other users access them
        // volatilely too: they have slices like this one, since whatever uses the view needs the region by `&mut` or by
        // value.
        let all = unsafe { VolatileSlice::with_bitmap(self.host, self.accessible, self.bitmap(), None) };
        Ok(all.subslice(offset(addr)?, count)?)
    }
}

impl<S, A: GuestAccess> GuestMemoryRegionBytes for GuestRegion<S, A> {}

/// An address in a region as an offset from its host address.
fn offset(addr: MemoryRegionAddress) -> GuestMemoryResult<usize> {
    usize::try_from(addr.raw_value()).map_err(|_| GuestMemoryError::InvalidBackendAddress)
}

impl<S, A: GuestAccess> fmt::Debug for GuestRegion<S, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The view's own `Debug` looks at the view, which `&self` must not.
        let Self { start, host, len, bitmap: _, accessible: _, view: _ } = self;
        f.debug_struct("GuestRegion")
            .field("start", start)
            .field("len", len)
            .field("host", host)
            .finish_non_exhaustive()
    }
}
