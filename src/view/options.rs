//! `ViewOptions`: a builder in the manner of `std::fs::OpenOptions`.

use std::marker::PhantomData;

use crate::engine::settings::{Checks, Settings};
use crate::sys::{HugePages, Populate, Tracking};
use crate::view::kind::{Logged, Open};

/// How a view is opened: for [`Snapshot::view_with`](crate::Snapshot::view_with), [`view_mut_with`](crate::Snapshot::view_mut_with) and
/// [`view_arc_with`](crate::Snapshot::view_arc_with).
///
/// # Examples
///
/// ```
/// use memsnap::{Populate, Snapshot, ViewOptions};
///
/// # fn main() -> std::io::Result<()> {
/// let snapshot = Snapshot::zeroed(1 << 16)?;
/// let mut options = ViewOptions::new();
/// options.reserve(1 << 30).guard(0, 1 << 26).populate(Populate::Write);
/// let mut memory = snapshot.view_with(&options)?;
/// let address = memory.as_ptr();
/// memory.grow(1 << 20)?;
/// assert_eq!((memory.as_ptr(), memory.len()), (address, 1 << 20));
/// # Ok(())
/// # }
/// ```
///
/// [`ViewOptions::logged`] opens a [logged view](crate::LoggedView), to which the program reports what it writes.
#[derive(Clone, Debug)]
pub struct ViewOptions<A = Open> {
    pub(crate) settings: Settings,
    access: PhantomData<A>,
}

impl Default for ViewOptions {
    fn default() -> Self {
        Self::with(None)
    }
}

impl ViewOptions {
    /// What [`Snapshot::view`](crate::Snapshot::view) does.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl ViewOptions<Logged> {
    /// Opens a [logged view](crate::LoggedView), to which the program reports what it writes.
    ///
    /// # Examples
    ///
    /// ```
    /// use memsnap::{Snapshot, ViewOptions};
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let snapshot = Snapshot::zeroed(1 << 20)?;
    /// let mut memory = snapshot.view_with(&ViewOptions::logged())?;
    /// memory.get_mut(..5).expect("it is that long").copy_from_slice(b"hello");
    /// assert_eq!(memory.take_snapshot()?.stats().captured, memsnap::page_size());
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn logged() -> Self {
        Self::with(Some(if cfg!(debug_assertions) { Checks::IfCheap } else { Checks::Never }))
    }

    /// Whether the view checks that every written page was reported.
    ///
    /// A view that checks searches for written pages as other views do ([`tracking`](Self::tracking)). It does so
    /// before each snapshot, before each restore, and in [`changes`](crate::View::changes). If a page differs from the
    /// last snapshot and was not reported, the call fails (`InvalidData`), and the error names the page.
    ///
    /// By default, views check in programs that are built with debug assertions. The exception is a view of more than
    /// 64 MiB whose bytes would have to be compared because the system cannot name the written pages
    /// ([`Tracking::Compare`] and [`Tracking::WorkingSet`]).
    ///
    /// # Examples
    ///
    /// ```
    /// use memsnap::{Snapshot, ViewOptions};
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let snapshot = Snapshot::zeroed(1 << 20)?;
    /// let mut memory = snapshot.view_with(ViewOptions::logged().checked(true))?;
    /// // SAFETY: the view has at least one byte, and no slice of it is in use.
    /// unsafe { memory.as_mut_ptr().write(1) }; // and no `mark_written(0..1)`
    /// let error = memory.restore().unwrap_err();
    /// assert_eq!(error.kind(), std::io::ErrorKind::InvalidData);
    /// # Ok(())
    /// # }
    /// ```
    pub fn checked(&mut self, checked: bool) -> &mut Self {
        self.settings.logged = Some(if checked { Checks::Always } else { Checks::Never });
        self
    }
}

impl<A> ViewOptions<A> {
    fn with(logged: Option<Checks>) -> Self {
        Self { settings: Settings::new(logged), access: PhantomData }
    }

    /// Whether pages are made ready when the view is opened, all in one go, rather than by a fault when each is
    /// first used. [`Populate::No`], unless this is called.
    pub fn populate(&mut self, populate: Populate) -> &mut Self {
        self.settings.populate = populate;
        self
    }

    /// Whether the view is to have huge pages. [`Auto`](HugePages::Auto), unless this is called.
    ///
    /// - [`Auto`](HugePages::Auto): the view moves the snapshot's bytes into huge pages once that saves time, as
    ///   described below. The view's private memory stays in pages of the usual size.
    /// - [`Advise`](HugePages::Advise): the same, and the view's private memory is in huge pages too. This saves page
    ///   faults if most of a large view is written. But writing one byte takes a huge page of memory (2 MiB on most
    ///   machines). All pages of the usual size in it are then tracked, compared and captured, each by itself. The
    ///   address of the view is a multiple of the size of a huge page. In a [logged view](crate::LoggedView), this is the
    ///   same as `Auto`, since a huge page would have more pages than those that are reported.
    /// - [`Never`](HugePages::Never): the view moves nothing. It may still map huge pages into which another view has
    ///   moved bytes.
    ///
    /// # How views move bytes into huge pages
    ///
    /// To find the written pages, the kernel walks over the view's page tables. If much of the view is in memory, a
    /// snapshot or restore of few pages spends most of its time on this walk. A huge page has one entry instead of 512,
    /// so it makes the walk shorter.
    ///
    /// Once the walks have taken as long as moving the bytes takes, `take_snapshot` and the `restore` methods move some
    /// bytes at the end of each call, until all are moved. Each of these calls takes about a millisecond longer. A few
    /// calls take longer than that, if the system has to make room for huge pages first. All views of the snapshot
    /// benefit. [`ViewStats::huge`](crate::ViewStats::huge) is the number of bytes that the view maps in huge pages.
    ///
    /// Views move bytes on Linux 6.7 and later, with pages of 4 KiB, and if they have at least 32 MiB. They move only
    /// memory files that memsnap made or received, not other files that it mapped. A huge page has memory for all of its bytes, also where
    /// the snapshot's memory has gaps. So bytes are moved only if at most an eighth of the huge page was gaps. The
    /// snapshot's memory grows by a seventh at most.
    pub fn huge_pages(&mut self, huge_pages: HugePages) -> &mut Self {
        self.settings.huge_pages = huge_pages;
        self
    }

    /// Reserves address space for a view of up to `bytes` bytes, rounded up to whole pages, into which it can
    /// [`grow`](crate::View::grow). Takes no memory. What is less than the view's length has no effect.
    pub fn reserve(&mut self, bytes: usize) -> &mut Self {
        self.settings.reserve = bytes;
        self
    }

    /// At least so many bytes before the view and after it (after all that is [reserved](Self::reserve)) are
    /// inaccessible: who reads or writes there is stopped by the system (on Unix, by `SIGSEGV`). Rounded up to
    /// whole pages. Takes no memory.
    pub fn guard(&mut self, before: usize, after: usize) -> &mut Self {
        self.settings.guard = (before, after);
        self
    }

    /// The most bytes of private memory that a [`restore`](crate::View::restore) leaves to the view, rounded down to whole
    /// pages. The default is 64 MiB.
    ///
    /// A restore keeps the private pages that will likely be written again, and copies the old bytes into them. That
    /// takes a quarter of the time of discarding a page and faulting it in again. Which pages are kept depends on the
    /// view:
    ///
    /// - A view that is no longer than `bytes` keeps all pages that were written. A page that is not written again is
    ///   discarded after some restores, unless it is write-protected by then.
    /// - A longer view keeps the pages that were written before each of the last two restores. While it is
    ///   [armed](Tracking::Armed), it keeps all pages that were written, until they exceed `bytes`.
    /// - If all pages are [compared](Tracking::Compare), the private pages are not known. A view that is no longer than
    ///   `bytes` then keeps all pages that were ever written.
    ///
    /// A smaller number bounds the memory of a program with many views that are written in different places each time.
    /// With 0, each restore discards all private memory of the view, except for pages that show
    /// [captured](crate::SnapshotStats::captured) ones.
    pub fn keep_resident(&mut self, bytes: usize) -> &mut Self {
        self.settings.keep_resident = bytes;
        self
    }

    /// How written pages are found. [`Tracking::Auto`], unless this is called.
    ///
    /// Opening the view is an error (`Unsupported`) if the chosen way cannot work, and if `Armed` is chosen for a
    /// view that is [pinned](Self::pinned). Should the system come to refuse it later, in the life of the view, the
    /// view goes on with the next one and [says so](crate::ViewStats::why_not_faster).
    pub fn tracking(&mut self, tracking: Tracking) -> &mut Self {
        self.settings.tracking = tracking;
        self
    }

    /// Whether parts of the view may be made executable, by [`protect`](crate::View::protect) with
    /// [`Access::READ_EXECUTE`](crate::Access::READ_EXECUTE): what was written there runs with all rights of the
    /// process. They may not, unless this is called.
    ///
    /// `protect` makes the instruction caches coherent. Where memsnap cannot do that, opening a view with this option
    /// is an error (`Unsupported`). memsnap supports x86, x86-64, AArch64 and s390x, on Linux and Android also Arm
    /// and 64-bit RISC-V, and all processors of Windows.
    pub fn executable(&mut self, executable: bool) -> &mut Self {
        self.settings.executable = executable;
        self
    }

    /// Whether memory of the view may be pinned for writes that bypass the page table.
    ///
    /// It may not, unless this is called. Set this if memory of the view is pinned now or later: as fixed buffers of
    /// io_uring, or for RDMA, VFIO, vhost or AF_XDP. Such a view is exact, whatever the kernel knows of the pins. It
    /// has two costs:
    ///
    /// - Its pages are never write-protected, since a write that bypasses the page table does not cause the fault by
    ///   which [`Tracking::Armed`] notices it. So [`Tracking::Auto`] stays with [`Tracking::Scan`], and `Armed` is
    ///   refused (`Unsupported`) when the view is opened and by [`View::set_tracking`](crate::View::set_tracking).
    /// - A mutable view is not written in place, since pinned memory cannot become immutable. Its changes are copied
    ///   when a snapshot is taken and when the view ends.
    ///
    /// Without this option memsnap notices only the pins that the kernel counts. See
    /// [pinned memory](crate::View#pinned-memory).
    ///
    /// # Examples
    ///
    /// ```
    /// use memsnap::{Snapshot, Tracking, ViewOptions};
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let snapshot = Snapshot::zeroed(1 << 20)?;
    /// let mut buffers = snapshot.view_with(ViewOptions::new().pinned(true))?;
    /// // ... register parts of `buffers` with the kernel or a device ...
    /// let taken = buffers.take_snapshot()?; // what was written to them by any means
    /// assert_ne!(buffers.stats().tracker, Tracking::Armed);
    /// # Ok(())
    /// # }
    /// ```
    pub fn pinned(&mut self, pinned: bool) -> &mut Self {
        self.settings.pinned = pinned;
        self
    }
}
