//! `View`: the type, the checks that its methods share, and what happens when a view ends.
//!
//! The methods are in the modules below. `engine::worktree::Worktree` does their work.

// rustdoc shows the methods of `View` in the order of these modules. The empty lines keep rustfmt from sorting them.
mod snapshots;

mod slice;

mod properties;

mod memory;

mod logged;

mod protected;

pub(crate) mod kind;
mod opening;
pub(crate) mod options;

use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::ops::{Bound, Range, RangeBounds};
use std::sync::{Arc, Mutex};

use crate::engine::worktree::Worktree;
use crate::error;
use crate::snapshot::Snapshot;
use crate::snapshot::head::Head;
use crate::stats::ViewStats;
use crate::view::kind::{Logged, Open, Protected};

/// A copy-on-write view that borrows its snapshot.
///
/// [`Snapshot::view`] opens one. See [`View`] for the methods.
///
/// # Examples
///
/// ```
/// use memsnap::{CowView, Snapshot};
///
/// # fn main() -> std::io::Result<()> {
/// let snapshot = Snapshot::from_slice(b"template")?;
/// let mut view: CowView<'_> = snapshot.view()?;
/// view[0] = b'T';
/// assert_eq!(snapshot.view()?.content(), b"template");
/// # Ok(())
/// # }
/// ```
pub type CowView<'a> = View<&'a Snapshot>;

/// A mutable view, which stores its bytes in its snapshot when it ends.
///
/// [`Snapshot::view_mut`] opens one, and [`View::commit`] ends it. See [`View`] for the methods.
///
/// # Examples
///
/// ```
/// use memsnap::{MutView, Snapshot};
///
/// # fn main() -> std::io::Result<()> {
/// let mut snapshot = Snapshot::from_slice(b"draft")?;
/// let mut view: MutView<'_> = snapshot.view_mut()?;
/// view[..5].copy_from_slice(b"final");
/// view.commit()?;
/// assert_eq!(snapshot.view()?.content(), b"final");
/// # Ok(())
/// # }
/// ```
pub type MutView<'a> = View<&'a mut Snapshot>;

/// A copy-on-write view that owns a handle on its snapshot.
///
/// A struct can store it, and it can be sent to another thread. [`Snapshot::into_view`] opens one. See [`View`] for
/// the methods.
///
/// # Examples
///
/// ```
/// use memsnap::{OwnedView, Snapshot};
///
/// struct Instance {
///     memory: OwnedView,
/// }
///
/// # fn main() -> std::io::Result<()> {
/// let template = Snapshot::from_slice(b"template")?;
/// let mut instance = Instance { memory: template.clone().into_view()? };
/// instance.memory.fill(0);
/// instance.memory.restore()?;
/// assert_eq!(instance.memory.content(), b"template");
/// # Ok(())
/// # }
/// ```
pub type OwnedView = View<Snapshot>;

/// A copy-on-write view that shares the ownership of its snapshot through an [`Arc`].
///
/// [`Snapshot::view_arc`] opens one. See [`View`] for the methods.
///
/// # Examples
///
/// ```
/// use memsnap::{ArcView, Snapshot};
/// use std::sync::Arc;
///
/// # fn main() -> std::io::Result<()> {
/// let snapshot = Arc::new(Snapshot::from_slice(b"shared")?);
/// let view: ArcView = snapshot.view_arc()?;
/// drop(snapshot);
/// assert_eq!(view.content(), b"shared");
/// # Ok(())
/// # }
/// ```
pub type ArcView = View<Arc<Snapshot>>;

/// A view whose parts can be protected against reading and writing.
///
/// [`View::into_protected`] makes a protected view, [`View::protect`] protects a part of it, and [`View::into_open`]
/// converts it back.
///
/// A protected view cannot be used like a slice. An access to protected memory stops the process. The compiler may add
/// reads of any byte behind a `&[u8]`, and writes of any byte behind a `&mut [u8]`. So no such reference to protected
/// bytes may exist. Instead, [`get`](View::get) and [`get_mut`](View::get_mut) borrow ranges that have the necessary
/// access. Code that takes care of the access itself, such as a virtual machine, uses the pointers from
/// [`as_ptr`](View::as_ptr) and [`as_mut_ptr`](View::as_mut_ptr).
///
/// # Examples
///
/// ```
/// use memsnap::{Access, ProtectedView, Snapshot, page_size};
///
/// # fn main() -> std::io::Result<()> {
/// let snapshot = Snapshot::zeroed(4 * page_size())?;
/// let mut memory: ProtectedView<&Snapshot> = snapshot.view()?.into_protected();
/// memory.get_mut(..5).expect("nothing is protected").copy_from_slice(b"const");
/// memory.protect(..page_size(), Access::READ)?;
/// assert_eq!(memory.get(..5), Some(&b"const"[..]));
/// assert_eq!(memory.get_mut(..5), None);
///
/// let taken = memory.take_snapshot()?; // also captures protected pages
/// assert_eq!(&taken.view()?[..5], b"const");
/// memory.restore()?; // also removes the protection
/// assert!(memory.into_open().is_ok());
/// # Ok(())
/// # }
/// ```
pub type ProtectedView<S> = View<S, Protected>;

/// A view to which the program reports the bytes that it writes.
///
/// Use a logged view if the program knows which bytes it writes. Examples are an emulator, a virtual machine with a
/// dirty log, a database and a page cache. The time of a snapshot or restore then depends on the number of reported
/// pages, not on the length of the view. This holds on every system, since a logged view does not search for written
/// pages, unless it [checks](crate::ViewOptions::checked) the reports. Where the system cannot name written pages
/// ([`Tracking::Compare`](crate::Tracking::Compare)), all other views compare all of their bytes.
///
/// [`ViewOptions::logged`](crate::ViewOptions::logged) opens a logged view. There are two ways to write to it:
///
/// - Borrow a range by [`get_mut`](View::get_mut), which reports the range.
/// - Write through a [pointer](View::as_mut_ptr), and report the range by [`mark_written`](View::mark_written) before
///   the next call on the view. In the same way, report bytes that the kernel writes (`read` into the view), and pages
///   in the dirty log of a hypervisor.
///
/// A logged view can be read like a slice, but cannot be written like one.
///
/// If a program writes a page and does not report it, the next snapshot does not contain the new bytes, and a restore
/// does not restore the old bytes. [`ViewOptions::checked`](crate::ViewOptions::checked) makes the view detect such
/// pages. Most views check by default in programs that are built with debug assertions.
///
/// # Cost
///
/// A reported page counts as changed. A snapshot captures it without a comparison, even if its bytes are the same. (If
/// pages were also zeroed or excluded from a restore, the snapshot compares all of these pages.) A restore copies the
/// old bytes back. The page then remains private memory of the view, unless the view has more private memory than
/// [`ViewOptions::keep_resident`](crate::ViewOptions::keep_resident) permits. Reporting a page takes some nanoseconds.
/// The log takes about two bits of address space for each page that the view has or can grow to. Only the parts of the
/// log that are used take memory.
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

/// A range of memory that shows a snapshot and can be written without changing the snapshot or other views.
///
/// Use a view like a slice of bytes. [`take_snapshot`](Self::take_snapshot) makes a snapshot of its current bytes.
/// [`restore`](Self::restore) restores the snapshot that it was opened on, and [`restore_to`](Self::restore_to) shows
/// another one:
///
/// ```
/// use memsnap::Snapshot;
///
/// # fn main() -> std::io::Result<()> {
/// let start = Snapshot::from_slice(b"version 1")?;
/// let mut view = start.view()?;
/// view[8] = b'2';
/// let saved = view.take_snapshot()?;
///
/// view.restore()?;
/// assert_eq!(view.content(), b"version 1");
/// view.restore_to(&saved)?;
/// assert_eq!(view.content(), b"version 2");
/// # Ok(())
/// # }
/// ```
///
/// The address of a view never changes. Its length changes only by [`grow`](Self::grow) and by restores to snapshots
/// of another length. Snapshots and restores also find the pages that the kernel writes for a system call, such as
/// `read` into the view. (To a [logged view](LoggedView), the program reports them.)
///
/// The time of a snapshot or restore mostly depends on how many pages changed, not on how many there are.
/// [`Tracking`](crate::Tracking) lists the ways to find the written pages and what each costs.
///
/// Dropping a view frees its private memory. Dropping a [`MutView`] stores its bytes in its snapshot first; see
/// [`commit`](Self::commit).
///
/// # Kinds of views
///
/// The first type parameter is the owner of the snapshot. The type aliases name the usual cases: [`CowView`],
/// [`MutView`], [`OwnedView`] and [`ArcView`]. The second type parameter decides how the bytes can be used:
///
/// | type | reading | writing | opened by |
/// |---|---|---|---|
/// | `View<S>` | like a slice | like a slice | [`Snapshot::view`] |
/// | [`LoggedView<S>`](LoggedView) | like a slice | `get_mut`, `mark_written` | [`ViewOptions::logged`][logged] |
/// | [`ProtectedView<S>`](ProtectedView) | `get` | `get_mut` | [`into_protected`](View::into_protected) |
///
/// [logged]: crate::ViewOptions::logged
///
/// # Memory for other code
///
/// A database, a runtime or a virtual machine can use the memory of a view. Pass it the [address](Self::as_mut_ptr)
/// once. Three rules apply:
///
/// - While the other code can write, no slice of the view may be in use.
/// - While the other code can write, no call on the view may run.
/// - The other code must stop before the view is dropped. In a struct, declare the field of the other code before the
///   view:
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
///         // SAFETY: the memory keeps its address and is dropped after the engine, which writes only during `run`.
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
///   restores can miss the pages if the view is write-protected ([`Tracking::Armed`](crate::Tracking::Armed)) or
///   logged. (`Tracking::Scan`, `Tracking::Pagemap` and `Tracking::Compare` find them.)
/// - `madvise` with `MADV_DONTFORK`, `MADV_WIPEONFORK` or their opposites. They change what a forked child inherits.
/// - `mprotect`, or `madvise` with `MADV_GUARD_INSTALL`. Call [`protect`](View::protect) instead. `take_snapshot`
///   reads the written pages. If one of them was made inaccessible without memsnap's knowledge, reading it kills the
///   process.
/// - `munmap`, `mremap`, or `mmap` with `MAP_FIXED`.
/// - `userfaultfd` registration. It fails (`EBUSY`) while the view is armed. If it succeeds, the view cannot be armed.
///   A program that needs userfaultfd has to choose [`Tracking::Scan`](crate::Tracking::Scan), and to register the
///   view again after each restore, since a restore may map the whole view again.
///
/// It must not make calls of other systems that have these effects either (on Windows, `VirtualProtect`, `VirtualFree`
/// and `UnmapViewOfFile`). Calls that change no byte are harmless: `MADV_WILLNEED`, `MADV_PAGEOUT`, `MADV_HUGEPAGE`,
/// `MADV_MERGEABLE`, `MADV_DONTDUMP`, `mlock`.
///
/// # Pinned memory
///
/// A program can *pin* memory. The kernel or a device can then write to it at any later time. Fixed buffers of
/// io_uring and memory regions of RDMA are pinned, and so is memory for VFIO, vhost-vdpa and AF_XDP. Such writes
/// bypass the page table. A snapshot captures each pinned page as it is at that moment. Programs that pin memory of a
/// view follow three rules:
///
/// - **Open the view with [`ViewOptions::pinned`](crate::ViewOptions::pinned)**, with which all writes are found.
///   Without this option, writes to pinned pages are not noticed while the view is write-protected
///   ([`Tracking::Armed`](crate::Tracking::Armed)). memsnap does not write-protect any page while the kernel counts
///   pinned or locked memory of the process (`VmPin` and `VmLck` in `/proc/self/status`), which covers the usual case.
///   But the kernel counts pins for the process that made the ring or opened the device. If a ring is made before
///   `fork` and used in the child, the kernel does not count its pins for the child. It counts neither the pins of
///   rings whose own memory the program provides (`IORING_SETUP_NO_MMAP`) nor those of AF_XDP.
/// - **Register pinned memory again after a restore, [`zero`](Self::zero) and [`discard`](Self::discard).** These
///   calls may replace the physical memory of a page. What a device then writes to the old memory does not appear in
///   the view.
/// - **Write to a page once before it is pinned.** Linux does not record that io_uring wrote to a fixed buffer. If
///   nothing else ever wrote to the page and the view is written in place, Linux can drop these bytes under memory
///   pressure (seen on Linux 6.18). `ViewOptions::pinned` keeps views from being written in place.
///
/// The memory of a virtual machine (KVM) is not pinned. Register it only once, since KVM follows changes of the
/// view's mapping.
///
/// # Fork
///
/// A copy-on-write view and its snapshots can be used in a forked child. The parent and the child do not see each
/// other's changes. There is one exception: the [`MutView`] of a snapshot that was all zeroes stays with the parent.
/// In the child, its bytes must not be accessed, and its methods return errors. As always with `fork`, the child must
/// not use objects that another thread of the parent was using at the moment of the fork.
///
/// A child cannot change its parent's memory. All descriptors that memsnap opens are closed on `exec`. Before `fork`
/// returns in the child, memsnap closes the descriptors that lead to the parent's memory: those by which written pages
/// are found, and the files of views that are written in place. If the child runs untrusted code, three limits matter:
///
/// - If the C library runs no fork handlers (a bare `clone`, `_Fork`, `vfork`), the child has these descriptors until
///   it first uses memsnap. The same is true if another thread opens one at the moment of the fork. With its parent's
///   userfaultfd, a child can write to the parent's memory. Close all descriptors before such code runs
///   (`close_range(3, ~0, 0)`), or `exec` a separate program.
/// - The files of snapshots stay open. The child can only read them, and has their bytes in its memory anyway. Systems
///   without memfds are different: see `PLATFORM.md`.
/// - memsnap does not keep a process from tracing another process of the same user, or from copying its descriptors
///   (`/proc/PID/mem`, `pidfd_getfd`). Run the child as another user or under a system call filter, or make the
///   parent undumpable (`PR_SET_DUMPABLE`).
///
/// # Descriptors that other code closes
///
/// Some code closes descriptors that it did not open; daemons do this when they start. Run such code before the
/// program uses memsnap. Each snapshot of bytes and each view that is written in place keeps a descriptor open. On
/// Linux, memsnap keeps up to three more in each process.
///
/// If such code runs later, the number of a closed descriptor may come to refer to another file. memsnap notices this
/// and does not use that file. Open views continue to work and find written pages, possibly by a slower method. Calls
/// that have to map the closed file return an error:
///
/// - opening a new view of the snapshot,
/// - restoring to another snapshot,
/// - taking a snapshot of a copy-on-write view or restoring it, if no earlier call on a view of its snapshot did so.
///
/// A mutable view still stores its bytes in its snapshot when it ends. If a thread has its own file table
/// (`unshare(CLONE_FILES)`) and closes descriptors, all of this applies to that thread only.
pub struct View<S, A = Open> {
    /// `None` only while the view is dropped, committed or converted. The same holds for `snapshot`.
    pub(crate) tree: Option<Worktree>,
    /// Where a mutable view stores its bytes when it ends. `None` for other views.
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

    /// Returns the length in bytes of the snapshot that the view was opened on.
    #[cfg(feature = "vm-memory")]
    pub(crate) fn root_len(&self) -> usize {
        self.tree.as_ref().map_or(0, |tree| tree.root().pages * crate::page_size())
    }

    /// Returns the bounds of `range` if it is within the view. Otherwise, fails with an error that says that the
    /// program cannot `what` these bytes.
    pub(crate) fn within(&self, what: &str, range: &impl RangeBounds<usize>) -> io::Result<Range<usize>> {
        let (len, range) = (self.len(), resolve(range, self.len()));
        if range.start > range.end || range.end > len { Err(self.outside(what, &range)) } else { Ok(range) }
    }

    /// Returns the error for a `range` that is not within the view.
    fn outside(&self, what: &str, range: &Range<usize>) -> io::Error {
        match self.tree.as_ref().map(Worktree::check_usable) {
            Some(Err(error)) => error,
            _ => error::invalid(format!(
                "cannot {what} bytes {range:?}: the range is not within the view, which has {} bytes",
                self.len()
            )),
        }
    }

    /// Drops the working tree. A mutable view stores its bytes in its snapshot first.
    fn finish(&mut self) -> io::Result<()> {
        match (self.tree.take(), &self.head) {
            (Some(tree), Some(head)) => Head::finish(head, tree),
            _ => Ok(()),
        }
    }
}

/// Returns the bounds of `range` in a slice of `len` bytes. They may be outside of the slice.
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
