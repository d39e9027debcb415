//! `GuestRegion`: a view with a guest address, and the methods that take snapshots of it and restore it.
//!
//! This file decides which methods may use the view. The view does the work, and `traits.rs` gives vm-memory access to
//! the bytes.
#![allow(unsafe_code)]

use std::fmt;
use std::io;
use std::ops::RangeBounds;

use ::vm_memory::bitmap::Bitmap as _;
use ::vm_memory::{Address, GuestAddress};

use super::bitmap::GuestAccess;
use crate::changes::Changes;
use crate::error;
use crate::snapshot::Snapshot;
use crate::stats::ViewStats;
use crate::view::kind::{Logged, Open};
use crate::view::{View, resolve};

/// A range of guest memory: a view, and the guest physical address of its first byte.
///
/// A [`GuestRegionCollection`] of such regions is guest memory, with all methods that vm-memory has for it.
/// [`take_snapshot`](Self::take_snapshot) captures what was written to the region, and [`restore`](Self::restore)
/// undoes it. The host addresses never change.
///
/// The view of a region is of one of two kinds:
///
/// - An open view, as [`Snapshot::view`] and similar methods return it. The type of vm-memory's dirty bitmap is `()`,
///   since memsnap finds the written pages itself.
/// - A [logged view](crate::LoggedView). The time of a snapshot or restore then depends on the number of written
///   pages, on every system. The type of the dirty bitmap is [`LogBitmap`](super::LogBitmap): vm-memory's own
///   accesses report what they write. The program has to report all other writes by
///   [`mark_written`](GuestRegion::mark_written).
///
/// # Examples
///
/// Keep each region in an [`Arc`](std::sync::Arc) beside the guest memory. When all clones of the guest memory are
/// dropped, the region can be borrowed exclusively again:
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
/// memory.write_slice(b"guest", GuestAddress(0x8000_1000))?; // any thread with a clone can do this
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
/// # Concurrent access
///
/// Any thread can read and write guest memory through a shared reference. vm-memory does this by volatile accesses
/// ([`VolatileSlice`](::vm_memory::VolatileSlice)), which may race with each other. Snapshots and restores use plain
/// accesses to the same bytes, which must not race with any other access. Two rules keep them apart:
///
/// - Each method that accesses bytes of the view by plain accesses takes the region by `&mut` or by value. A
///   `VolatileSlice` borrows the region, so no thread has one at that time.
/// - No method that takes the region by `&` uses the view. There is neither `Deref` nor `AsRef`, because the bytes
///   behind a `&[u8]` must not change. [`into_view`](Self::into_view) returns the view by value.
///
/// The compiler cannot check how virtual CPUs, devices or other code use a pointer from
/// [`get_host_address`](::vm_memory::GuestMemoryRegion::get_host_address). Such use needs `unsafe` code. That code
/// must ensure that nothing accesses the memory through the pointer while a method has the region by `&mut` or by
/// value, or after the region is dropped. For memory that is registered with the kernel, see [`View`].
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
    /// Used only by methods that take the region by `&mut` or by value.
    view: View<S, A>,
    pub(super) bitmap: A::Bitmap,
    pub(super) start: GuestAddress,
    /// The address of the view.
    ///
    /// Invariant: neither `host` nor `len` changes. The length of a view changes only by growth and by restores to
    /// snapshots of another length. The region has no method for growth, and rejects such restores.
    pub(super) host: *mut u8,
    /// The length of the view in bytes.
    pub(super) len: usize,
    /// The number of bytes that can be accessed: `len`, or 0 while the view has no bytes after a failed restore
    /// (Windows).
    pub(super) accessible: usize,
}

// SAFETY: all fields except `host` can be sent to another thread: `view` by the bound, and `A::Bitmap` by the bound of
// `GuestAccess`. `host` is the address of memory that belongs to `view`, and is used only while `view` exists.
unsafe impl<S, A: GuestAccess> Send for GuestRegion<S, A> where View<S, A>: Send {}
// SAFETY: methods with `&self` read fields that change only through `&mut self`, and the bitmap, which is `Sync` by
// the bound of `GuestAccess`. They return `VolatileSlice`s. Several threads may use these at once, since all accesses
// at that time are volatile: see `get_slice`.
unsafe impl<S, A: GuestAccess> Sync for GuestRegion<S, A> where View<S, A>: Sync {}

impl<S, A: GuestAccess> GuestRegion<S, A> {
    /// Makes `view` guest memory from the guest address `start` on.
    ///
    /// The region has the current length of the view, and keeps it. `start` need not be aligned here, but hypervisors
    /// usually require a multiple of the page size.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if the view is empty, or if `start` plus the length of the view exceeds `u64::MAX`. The view is
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
            return Err(error::invalid("an empty view (0 bytes) cannot be guest memory".to_owned()));
        }
        if start.checked_add(len as u64).is_none() {
            let start = start.raw_value();
            return Err(error::invalid(format!(
                "a view of {len} bytes does not fit at guest address {start:#x}: its end exceeds 64 bits"
            )));
        }
        let (bitmap, host) = (A::bitmap(&view), view.as_mut_ptr());
        Ok(Self { start, host, len, accessible: len, bitmap, view })
    }

    /// Takes a snapshot of the region's current bytes. See [`View::take_snapshot`].
    ///
    /// A snapshot covers one region. For a consistent set of snapshots of several regions, ensure that nothing writes
    /// to any of them between the calls.
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

    /// Restores the snapshot that the region's view was opened on. See [`View::restore`].
    ///
    /// The host address stays the same.
    ///
    /// # Errors
    ///
    /// - Those of [`View::restore`].
    /// - `InvalidInput` if that snapshot and the region have different lengths, because the view had grown before it
    ///   became guest memory. Nothing has changed then. Such a region can go back to snapshots that were taken of it,
    ///   by [`restore_to`](Self::restore_to).
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
        self.check_len("restore its first snapshot,", self.view.root_len())?;
        self.with_view(View::restore)
    }

    /// Makes the region show another snapshot of the same length. See [`View::restore_to`].
    ///
    /// The host address stays the same.
    ///
    /// # Errors
    ///
    /// - Those of [`View::restore_to`].
    /// - `InvalidInput` if the lengths differ. Nothing has changed then.
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
        self.check_len("show a snapshot", snapshot.len())?;
        self.with_view(|view| view.restore_to(snapshot))
    }

    /// Makes the bytes of `range` zero, and returns the memory of whole pages to the system. See [`View::zero`].
    ///
    /// `range` is a range of offsets in the region.
    ///
    /// Use this for pages that the guest expects to be zero when it uses them again: those of free page reporting, if
    /// the guest negotiated `VIRTIO_BALLOON_F_PAGE_POISON` with a value of 0. For other pages,
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

    /// Restores the bytes of `range` from the last snapshot, and returns the memory of whole pages. See
    /// [`View::discard`].
    ///
    /// `range` is a range of offsets in the region.
    ///
    /// Use this for pages whose contents the guest does not need any more: those of a memory balloon and of free page
    /// reporting. Unlike [`zero`](Self::zero), it leaves nothing of these pages for the next snapshot to capture.
    /// Pages that earlier snapshots captured may keep their memory: see [`View::discard`]. If the guest reads the
    /// pages later, it finds the bytes of the last snapshot.
    ///
    /// Do not call `madvise(MADV_DONTNEED)` on the region's host addresses: see [memory for other
    /// code](View#memory-for-other-code).
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

    /// Lists the pages that differ from the last snapshot, by their offsets in the region. See [`View::changes`].
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

    /// Returns statistics of the region's view. See [`View::stats`].
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

    /// Returns the view, with all bytes that were written to the region.
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
    /// The region itself cannot be used like a slice:
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

/// Reporting written bytes.
impl<S> GuestRegion<S, Logged> {
    /// Reports that the bytes at the offsets `range` were written or will be written. See [`View::mark_written`].
    ///
    /// vm-memory's accesses (those of `Bytes`, [`VolatileSlice`](::vm_memory::VolatileSlice) and `VolatileRef`) report
    /// what they write. The program must report all other writes before the next call that takes a snapshot, restores,
    /// lists changes or discards these bytes:
    ///
    /// - writes through a pointer from [`get_host_address`](::vm_memory::GuestMemoryRegion::get_host_address): by
    ///   devices, and by virtual CPUs, whose writes are in the hypervisor's dirty log;
    /// - writes through a pointer or a reference from vm-memory: `ptr_guard_mut`, `get_atomic_ref`, `aligned_as_mut`.
    ///
    /// Several threads may call this at the same time.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if the range is not within the region. Nothing is reported then.
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
    /// // SAFETY: the byte is within the region, and no other code uses the region.
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
                "cannot report bytes {range:?}: the range is not within the guest region, which has {len} bytes"
            )));
        }
        self.bitmap.mark_dirty(range.start, range.len());
        Ok(())
    }
}

impl<S, A: GuestAccess> GuestRegion<S, A> {
    /// Calls `call` with the view, and then updates the number of accessible bytes.
    fn with_view<T>(&mut self, call: impl FnOnce(&mut View<S, A>) -> T) -> T {
        let result = call(&mut self.view);
        self.accessible = self.view.len();
        result
    }

    /// Returns an error if a snapshot of `wanted` bytes has another length than the region.
    fn check_len(&self, what: &str, wanted: usize) -> io::Result<()> {
        if wanted == self.len {
            return Ok(());
        }
        Err(error::invalid(format!(
            "a guest region of {} bytes cannot {what} of {wanted} bytes: the length of a region is fixed",
            self.len
        )))
    }
}

impl<S, A: GuestAccess> fmt::Debug for GuestRegion<S, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // `Debug` of the view would use the view, and methods with `&self` must not.
        let Self { start, host, len, bitmap: _, accessible: _, view: _ } = self;
        f.debug_struct("GuestRegion")
            .field("start", start)
            .field("len", len)
            .field("host", host)
            .finish_non_exhaustive()
    }
}
