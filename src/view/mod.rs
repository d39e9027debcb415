//! `View`: snapshots of it, restores, growth. How they work is told in `worktree.rs`.

// In the order in which the documentation is to show what each adds to the types.
pub(crate) mod kind;
mod logged;
mod memory;
mod opening;
pub(crate) mod options;
mod protected;
mod slice;
mod snapshots;

use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::ops::{Bound, Range, RangeBounds};
use std::ptr;
use std::sync::{Arc, Mutex};

use crate::engine::worktree::Worktree;
use crate::error;
use crate::page_size;
use crate::snapshot::Snapshot;
use crate::snapshot::head::Head;
use crate::stats::ViewStats;
use crate::sys::Tracking;
use crate::view::kind::{Logged, Open, Protected};

/// A copy-on-write view that borrows its snapshot. See [`View`].
pub type CowView<'a> = View<&'a Snapshot>;

/// A view whose changes its snapshot holds afterwards. See [`View`] and [`Snapshot::view_mut`].
pub type MutView<'a> = View<&'a mut Snapshot>;

/// A copy-on-write view that owns a handle on its snapshot. See [`View`] and [`Snapshot::into_view`].
pub type OwnedView = View<Snapshot>;

/// A copy-on-write view that keeps its snapshot alive. See [`View`].
pub type ArcView = View<Arc<Snapshot>>;

/// A view of which parts may be protected. See [`View::protect`].
pub type ProtectedView<S> = View<S, Protected>;

/// A view to which the program reports the bytes that it writes.
///
/// Use a logged view if the program knows which bytes it writes. Examples are an emulator, a virtual machine with a
/// dirty log, a database and a page cache. The time of a snapshot or restore then depends on the number of pages that
/// were reported, not on the length of the view. This holds on every system, since a logged view neither asks the
/// system for written pages nor compares pages. Where the system cannot name written pages ([`Tracking::Compare`]), all
/// other views compare all of their bytes.
///
/// [`ViewOptions::logged`](crate::ViewOptions::logged) opens a logged view. There are two ways to write to it:
///
/// - Borrow a range by [`get_mut`](View::get_mut), which reports the range.
/// - Write through a [pointer](View::as_mut_ptr), and report the range by [`mark_written`](View::mark_written) before
///   the next call on the view. Report bytes that the kernel writes (`read` into the view) in the same way, and pages
///   in the dirty log of a hypervisor.
///
/// A logged view can be read like a slice, but not written like one.
///
/// If a program writes a page and does not report it, the next snapshot does not contain the new bytes, and a restore
/// does not put the old bytes back. [`ViewOptions::checked`](crate::ViewOptions::checked) detects such pages. Checks
/// are the default in programs that are built with debug assertions.
///
/// # Costs
///
/// A reported page counts as changed. A snapshot captures it without a comparison, even if its bytes are the same. A
/// restore copies the old bytes back. The page then remains private memory of the view, unless the view has more of
/// that than [`ViewOptions::keep_resident`](crate::ViewOptions::keep_resident) permits. Reporting a page takes some
/// nanoseconds. The log takes two bits of address space for each page of the view. It takes memory only for pages that
/// were written.
///
/// # Examples
///
/// ```
/// use memsnap::{LoggedView, Snapshot, ViewOptions};
///
/// # fn main() -> std::io::Result<()> {
/// let boot = Snapshot::zeroed(1 << 30)?;
/// let mut ram: LoggedView<&Snapshot> = boot.view_with(&ViewOptions::logged())?;
///
/// ram.get_mut(0x1000..0x1004).expect("within the view").copy_from_slice(b"code");
/// // SAFETY: the byte is within the view, and no slice of the view is in use.
/// unsafe { ram.as_mut_ptr().add(0x8000).write(7) };
/// ram.mark_written(0x8000..0x8001)?;
///
/// let saved = ram.take_snapshot()?; // copies two pages, and looks at no others
/// ram.restore()?;
/// assert_eq!((ram[0x1000], saved.view()?[0x1000]), (0, b'c'));
/// # Ok(())
/// # }
/// ```
pub type LoggedView<S> = View<S, Logged>;

/// A range of memory that shows a snapshot and can be written, without changing any other view.
///
/// A view is a slice of bytes: it indexes and dereferences like one. Its address never changes, its length only
/// by [`grow`](Self::grow) and by going back from that. [`take_snapshot`](Self::take_snapshot) makes a snapshot of what it shows,
/// [`restore`](Self::restore) and [`restore_to`](Self::restore_to) have it show a snapshot again. All of
/// them cost what changed, not what there is. Bytes that the kernel writes for a system call
/// (`read` into the view) count like others.
///
/// Dropping a view frees what it holds privately; for a [`MutView`] see [`commit`](Self::commit).
///
/// # Memory for other code
///
/// A database, a runtime or a virtual machine that works on the memory of a view is given its
/// [address](Self::as_mut_ptr) once. While such code may write, no slice of the view may be in use, and no call on the
/// view may run. It goes before the view does, which the order of fields sees to:
///
/// ```
/// use memsnap::{OwnedView, Snapshot};
///
/// # struct Engine;
/// # impl Engine {
/// #     unsafe fn new(_: *mut u8, _: usize) -> Self { Engine }
/// #     fn run(&mut self) {}
/// # }
/// struct Machine {
///     engine: Engine, // dropped first
///     memory: OwnedView,
/// }
///
/// impl Machine {
///     fn new(image: Snapshot) -> std::io::Result<Self> {
///         let mut memory = image.into_view()?;
///         // SAFETY: the memory stays where it is and goes after the engine, which only `run` lets write to it.
///         let engine = unsafe { Engine::new(memory.as_mut_ptr(), memory.len()) };
///         Ok(Self { engine, memory })
///     }
///
///     fn run(&mut self) {
///         self.engine.run();
///     }
///
///     fn restore(&mut self) -> std::io::Result<()> {
///         self.memory.restore()
///     }
/// }
/// # fn main() -> std::io::Result<()> {
/// #     let mut machine = Machine::new(Snapshot::zeroed(1)?)?;
/// #     machine.run();
/// #     machine.restore()
/// # }
/// ```
///
/// Other code may read and write the bytes, but the mapping belongs to memsnap. On Linux, other code must not make
/// these calls for any part of the view:
///
/// - `madvise` with `MADV_DONTNEED`, `MADV_FREE` or `MADV_REMOVE`, by which memory balloons and allocators return
///   memory. Call [`discard`](Self::discard) or [`zero`](Self::zero) instead. After such an `madvise`, snapshots and
///   restores of a write-protected view ([`Tracking::Armed`]) can miss the pages. (With `Tracking::Scan` and
///   `Tracking::Pagemap` the pages are found.)
/// - `madvise` with `MADV_DONTFORK`, `MADV_WIPEONFORK` or their opposites. They change what a forked child inherits.
/// - `mprotect`, or `madvise` with `MADV_GUARD_INSTALL`. Call [`protect`](View::protect) instead. `take_snapshot`
///   reads the pages that were written; if one was made inaccessible without memsnap's knowledge, reading it kills
///   the process.
/// - `munmap`, `mremap`, or `mmap` with `MAP_FIXED`.
/// - `userfaultfd` registration. It fails (`EBUSY`) while the view is armed; otherwise it keeps the view from being
///   armed. A program that needs it chooses [`Tracking::Scan`], and registers again after a restore, which may map
///   the view anew.
///
/// The same holds for calls of other systems that have these effects (`VirtualProtect`, `VirtualFree` and
/// `UnmapViewOfFile` on Windows). Advice that changes no byte is harmless: `MADV_WILLNEED`, `MADV_PAGEOUT`,
/// `MADV_HUGEPAGE`, `MADV_MERGEABLE`, `MADV_DONTDUMP`, `mlock`.
///
/// # Pinned memory
///
/// A program can *pin* memory, so that the kernel or a device can write to it at any later time: as fixed buffers of
/// io_uring, memory regions of RDMA, or for VFIO, vhost-vdpa or AF_XDP. Such writes bypass the page table. A snapshot
/// captures each pinned page as it is at that moment. Programs that pin memory of a view follow three rules:
///
/// - **Open the view with [`ViewOptions::pinned`](crate::ViewOptions::pinned)**, which is exact in all cases. Without
///   this option, writes to pinned pages are not noticed while the view is write-protected ([`Tracking::Armed`]).
///   memsnap write-protects nothing while the kernel counts pinned or locked memory of the process (`VmPin` and
///   `VmLck` in `/proc/self/status`), which covers the usual case. But for the process that owns the memory, the
///   kernel does not count pins by a ring or device that another process opened, such as a ring made before `fork`
///   and used in the child. Nor does it count rings whose own memory the program provides (`IORING_SETUP_NO_MMAP`),
///   or AF_XDP.
/// - **Register pinned memory again after a restore, [`zero`](Self::zero) and [`discard`](Self::discard).** These
///   calls may give a page another frame. What a device then writes to the old frame does not appear in the view.
/// - **Write to a page once before it is pinned.** Linux does not note that io_uring wrote to a fixed buffer. If
///   nothing else ever wrote to the page, Linux can drop these bytes under memory pressure, in a view that is written
///   in place (seen on Linux 6.18). `ViewOptions::pinned` keeps views from being written in place.
///
/// The memory of a virtual machine (KVM) is not pinned. It is registered only once, since the kernel makes it follow
/// the view.
///
/// # Fork
///
/// A copy-on-write view and its snapshots go on in a forked child, where they and the parent's never
/// see each other's changes. A [`MutView`] of a snapshot that was all zeroes stays with the parent: in
/// the child its bytes must not be touched, and its methods return errors. As ever with `fork`, objects that
/// another thread was using at that moment must not be used in the child.
///
/// A child cannot change its parent's memory. All descriptors that memsnap opens are closed on `exec`. In a child
/// that goes on without `exec`, memsnap closes the descriptors that lead to the parent's memory before `fork` returns
/// there: those by which written pages are found, and the files of views that are written in place. If the child is
/// to run code that is not trusted, three limits matter:
///
/// - If the C library runs no fork handlers (a bare `clone`, `_Fork`, `vfork`), the child has these descriptors until
///   it first uses memsnap. The same is true if another thread opens one at the very moment of the fork. With its
///   parent's userfaultfd a child can write to the parent's memory. Close all descriptors before such code runs
///   (`close_range(3, ~0, 0)`), or `exec` a separate program.
/// - The files of snapshots stay open. They can only be read, and the child has their bytes anyway. Where there are
///   no memfds, this is different: see `PLATFORM.md`.
/// - memsnap does not keep a process from tracing another process of the same user, or from taking its descriptors
///   (`/proc/PID/mem`, `pidfd_getfd`). Give the child another user or a filter of system calls, or make the parent
///   undumpable (`PR_SET_DUMPABLE`).
///
/// # Descriptors that others close
///
/// Code that closes descriptors that it did not open, as daemons do, has to run before memsnap is used. Each snapshot
/// of bytes and each view that is written in place keeps a descriptor open, and each process keeps one or two more.
///
/// If such code runs later, memsnap does not use the file that the number then refers to. Open views go on and find
/// written pages, possibly in a slower way. Calls that have to map the closed file return an error: opening a new
/// view of the snapshot, restoring to another snapshot, and, for a snapshot of bytes of which no view was captured or
/// restored before, the first such call on a view that is not mutable. When a mutable view ends, its bytes are in its
/// snapshot. All of this also holds in a thread with a file table of its own (`unshare(CLONE_FILES)`); the other
/// threads are not affected.
pub struct View<S, A = Open> {
    /// `None`, like `snapshot`, only while the view is being dropped, committed or converted.
    pub(crate) tree: Option<Worktree>,
    /// Where a mutable view leaves its changes.
    head: Option<Arc<Mutex<Head>>>,
    snapshot: Option<S>,
    access: PhantomData<A>,
}

impl<S, A> View<S, A> {
    pub(crate) fn new(tree: Worktree, head: Option<Arc<Mutex<Head>>>, snapshot: S) -> Self {
        Self { tree: Some(tree), head, snapshot: Some(snapshot), access: PhantomData }
    }

    pub(crate) fn with_access<B>(mut self) -> View<S, B> {
        let (tree, head, snapshot) = (self.tree.take(), self.head.take(), self.snapshot.take());
        View { tree, head, snapshot, access: PhantomData }
    }

    /// The address of the first byte, aligned to a page. It stays the same as long as the view lives.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// let snapshot = memsnap::Snapshot::zeroed(1)?;
    /// let mut view = snapshot.view()?;
    /// let address = view.as_ptr();
    /// view.restore()?;
    /// assert_eq!(view.as_ptr(), address);
    /// # Ok(())
    /// # }
    /// ```
    #[inline]
    #[must_use]
    pub fn as_ptr(&self) -> *const u8 {
        self.tree.as_ref().map_or(ptr::dangling(), |tree| tree.start().as_ptr())
    }

    /// The address of the first byte, aligned to a page. It stays the same as long as the view lives.
    ///
    /// The pointer may be kept as long as the view: snapshots, restores and growth leave it valid. The exception is a
    /// [restore](Self::restore) on Windows when memory is exhausted.
    ///
    /// Writes through it are tracked like others. In a [logged view](LoggedView), the program has to
    /// [report](View::mark_written) them. They must not race with calls on the view, nor happen
    /// while a slice of it is in use. See [memory for other code](Self#memory-for-other-code).
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// let snapshot = memsnap::Snapshot::zeroed(1)?;
    /// let mut view = snapshot.view()?;
    /// let pointer = view.as_mut_ptr();
    /// // SAFETY: the view has at least one byte, and no slice of it is in use.
    /// unsafe { pointer.write(1) };
    /// assert_eq!(view.changes()?.len(), 1);
    /// # Ok(())
    /// # }
    /// ```
    #[inline]
    #[must_use]
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.tree.as_mut().map_or(ptr::dangling_mut(), |tree| tree.start().as_ptr())
    }

    /// The length in bytes: whole pages.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.tree.as_ref().map_or(0, Worktree::len)
    }

    /// Whether there is not a single byte.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What the view holds.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// let snapshot = memsnap::Snapshot::from_slice(&[1; 1 << 20])?;
    /// let mut view = snapshot.view()?;
    /// view[0] = 2;
    /// assert!(view.stats().private >= memsnap::page_size());
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn stats(&self) -> ViewStats {
        self.tree.as_ref().map_or_else(ViewStats::default, Worktree::stats)
    }

    /// Has the written pages be found in another way from now on, which changes nothing but costs: what
    /// [`ViewOptions::tracking`](crate::ViewOptions::tracking) says when the view is opened.
    ///
    /// # Errors
    ///
    /// `Unsupported` where that way cannot work; the view goes on as before.
    ///
    /// # Examples
    ///
    /// ```
    /// use memsnap::{Snapshot, Tracking};
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let snapshot = Snapshot::zeroed(1)?;
    /// let mut view = snapshot.view()?;
    /// view.set_tracking(Tracking::Compare)?;
    /// assert_eq!(view.stats().tracker, Tracking::Compare);
    /// # Ok(())
    /// # }
    /// ```
    pub fn set_tracking(&mut self, tracking: Tracking) -> io::Result<()> {
        match &mut self.tree {
            Some(tree) => tree.set_tracking(tracking),
            None => Ok(()),
        }
    }

    /// The length of the snapshot that the view was opened on, in whole pages.
    #[cfg(feature = "vm-memory")]
    pub(crate) fn root_len(&self) -> usize {
        self.tree.as_ref().map_or(0, |tree| tree.root().pages * page_size())
    }

    /// The bytes that `range` means, if they are within the view.
    pub(crate) fn within(&self, what: &str, range: &impl RangeBounds<usize>) -> io::Result<Range<usize>> {
        let (len, range) = (self.len(), resolve(range, self.len()));
        if range.start > range.end || range.end > len { Err(self.outside(what, &range)) } else { Ok(range) }
    }

    /// Why there are no such bytes.
    fn outside(&self, what: &str, range: &Range<usize>) -> io::Error {
        match self.tree.as_ref().map(Worktree::check_usable) {
            Some(Err(error)) => error,
            _ => error::invalid(format!("cannot {what} {range:?} of a view of {} bytes", self.len())),
        }
    }

    fn finish(&mut self) -> io::Result<()> {
        match (self.tree.take(), &self.head) {
            (Some(tree), Some(head)) => Head::finish(head, tree),
            _ => Ok(()),
        }
    }
}

/// The bytes that `range` means in a slice of `len` bytes. They may be outside of the slice.
pub(crate) fn resolve(range: &impl RangeBounds<usize>, len: usize) -> Range<usize> {
    let start = match range.start_bound() {
        Bound::Included(&start) => start,
        Bound::Excluded(&before) => before.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(&last) => last.saturating_add(1),
        Bound::Excluded(&end) => end,
        Bound::Unbounded => len,
    };
    start..end
}

impl<A> View<&mut Snapshot, A> {
    /// Ends the view: the snapshot holds what it shows.
    ///
    /// Dropping the view does the same, but cannot say if it failed: then the next fallible call on the
    /// snapshot returns the error.
    ///
    /// # Errors
    ///
    /// Those of the operating system: no memory, no address space. Nothing written is lost: the changes are
    /// kept, and the next call on the snapshot tries again.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// let mut snapshot = memsnap::Snapshot::from_slice(b"draft")?;
    /// let mut view = snapshot.view_mut()?;
    /// view[..5].copy_from_slice(b"final");
    /// view.commit()?;
    /// assert_eq!(snapshot.view()?.content(), b"final");
    /// # Ok(())
    /// # }
    /// ```
    pub fn commit(mut self) -> io::Result<()> {
        self.finish()
    }
}

impl<S, A> Drop for View<S, A> {
    fn drop(&mut self) {
        if let Err(error) = self.finish()
            && let Some(head) = &self.head
        {
            Head::report_later(head, error);
        }
    }
}

impl<S, A> fmt::Debug for View<S, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ViewStats { tracker, mapped, private, captured, mappings, .. } = self.stats();
        f.debug_struct("View")
            .field("len", &mapped)
            .field("private", &private)
            .field("captured", &captured)
            .field("mappings", &mappings)
            .field("tracker", &tracker)
            .finish_non_exhaustive()
    }
}
