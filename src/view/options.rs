//! `ViewOptions`: how a view is opened.
//!
//! This is a builder in the manner of `std::fs::OpenOptions`. It only collects options. `engine/settings.rs` checks
//! them when a view is opened.

use std::marker::PhantomData;
use std::num::NonZeroUsize;

use crate::engine::settings::{Checks, Settings};
use crate::sys::{HugePages, Populate, Tracking};
use crate::view::kind::{Logged, Open};

/// Options with which a view is opened.
///
/// Pass them to [`Snapshot::view_with`](crate::Snapshot::view_with),
/// [`view_mut_with`](crate::Snapshot::view_mut_with), [`into_view_with`](crate::Snapshot::into_view_with) or
/// [`view_arc_with`](crate::Snapshot::view_arc_with). One value can open any number of views.
///
/// Start with [`new`](Self::new) or, for a [logged view](crate::LoggedView), with [`logged`](Self::logged).
///
/// # Examples
///
/// Memory that can grow at the same address, between guard pages:
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
    /// Returns the default options, with which [`Snapshot::view`](crate::Snapshot::view) opens a view.
    ///
    /// # Examples
    ///
    /// ```
    /// use memsnap::{Snapshot, ViewOptions};
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let snapshot = Snapshot::from_slice(b"bytes")?;
    /// let view = snapshot.view_with(ViewOptions::new().keep_resident(0))?;
    /// assert_eq!(view.content(), b"bytes");
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl<A> ViewOptions<A> {
    /// Reserves addresses for a view of up to `bytes` bytes, rounded up to whole pages.
    ///
    /// The view can [`grow`](crate::View::grow) to this length. Reserved addresses take no memory. If `bytes` is less
    /// than the length of the view, the option has no effect. The default is 0.
    ///
    /// # Examples
    ///
    /// ```
    /// use memsnap::{Snapshot, ViewOptions};
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let snapshot = Snapshot::zeroed(1 << 16)?;
    /// let mut memory = snapshot.view_with(ViewOptions::new().reserve(1 << 24))?;
    /// memory.grow(1 << 20)?;
    /// assert_eq!(memory.len(), 1 << 20);
    /// assert!(memory.grow(1 << 25).is_err());
    /// # Ok(())
    /// # }
    /// ```
    pub fn reserve(&mut self, bytes: usize) -> &mut Self {
        self.settings.reserve = bytes;
        self
    }

    /// Makes at least `before` bytes before the view and `after` bytes after it inaccessible.
    ///
    /// If code reads or writes there, the system stops it (on Unix, by `SIGSEGV`). If the view can grow, the bytes
    /// after it begin behind the [reserved](Self::reserve) addresses. Both numbers are rounded up to whole pages.
    /// Guards take no memory. The default is 0 bytes on both sides.
    ///
    /// # Examples
    ///
    /// ```
    /// use memsnap::{Snapshot, ViewOptions, page_size};
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let stack = Snapshot::zeroed(1 << 20)?;
    /// let view = stack.view_with(ViewOptions::new().guard(page_size(), 0))?;
    /// assert_eq!(view.len(), 1 << 20);
    /// assert!(view.stats().reserved >= page_size());
    /// # Ok(())
    /// # }
    /// ```
    pub fn guard(&mut self, before: usize, after: usize) -> &mut Self {
        self.settings.guard = (before, after);
        self
    }

    /// Opens the view at `address`, which is a multiple of the page size. 0 lets the system pick an address, which is the
    /// default.
    ///
    /// Use this for memory that contains addresses of itself, such as a heap that another process saved. Two views cannot
    /// be at the same address at a time. [Guards](Self::guard) are before the address, and
    /// [reserved](Self::reserve) addresses behind the view.
    ///
    /// No address is free in every process, because systems place programs and libraries at random addresses. On 64-bit
    /// systems, addresses between 16 TiB and 64 TiB are rarely used (`1 << 44` to `1 << 46`). A view there may
    /// be refused by a system with fewer addresses.
    ///
    /// # Errors
    ///
    /// Opening the view fails with `AddrInUse` if other memory is in the way, with `InvalidInput` if the address is not a
    /// multiple of the page size, and with the error of the system if there is no such address.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::io::ErrorKind;
    ///
    /// use memsnap::{Snapshot, ViewOptions};
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let snapshot = Snapshot::from_slice(b"bytes")?;
    /// let view = snapshot.view()?;
    /// let mut options = ViewOptions::new();
    /// options.at(view.as_ptr().addr());
    /// assert_eq!(snapshot.view_with(&options).unwrap_err().kind(), ErrorKind::AddrInUse);
    /// # Ok(())
    /// # }
    /// ```
    pub fn at(&mut self, address: usize) -> &mut Self {
        self.settings.address = NonZeroUsize::new(address);
        self
    }

    /// Sets whether pages are prepared when the view is opened, instead of one by one when they are first used.
    ///
    /// The default is [`Populate::No`]. Preparing all pages in one call is faster than a page fault for each of them.
    /// But it also takes time for pages that are never used and, with [`Populate::Write`], memory for them.
    ///
    /// # Errors
    ///
    /// If there is not enough memory, opening the view fails.
    ///
    /// # Examples
    ///
    /// ```
    /// use memsnap::{Populate, Snapshot, ViewOptions};
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let snapshot = Snapshot::zeroed(1 << 20)?;
    /// let view = snapshot.view_with(ViewOptions::new().populate(Populate::Write))?;
    /// assert!(view.stats().private >= 1 << 20);
    /// # Ok(())
    /// # }
    /// ```
    pub fn populate(&mut self, populate: Populate) -> &mut Self {
        self.settings.populate = populate;
        self
    }

    /// Sets the most bytes of private memory that a [`restore`](crate::View::restore) leaves to the view.
    ///
    /// The number is rounded down to whole pages. The default is 64 MiB.
    ///
    /// A restore keeps the private pages that will likely be written again, and copies the old bytes into them. That
    /// takes a quarter of the time of discarding a page and faulting it in again. Which pages are kept depends on the
    /// view:
    ///
    /// - A view that is no longer than `bytes` keeps all pages that were written. A page that is not written again is
    ///   discarded after some restores, unless it is write-protected by then.
    /// - A longer view keeps the pages that were written before each of the last two restores. While it is
    ///   [armed](Tracking::Armed), it keeps all pages that were written, until they exceed `bytes`.
    /// - If all pages are [compared](Tracking::Compare), the private pages are not known. A view that is no longer
    ///   than `bytes` then keeps all pages that were ever written.
    ///
    /// A smaller number saves memory in a program with many views that are written in different places each time. With
    /// 0, each restore discards all private memory of the view, except for copies of
    /// [captured](crate::SnapshotStats::captured) pages.
    ///
    /// # Examples
    ///
    /// A pool of idle instances that hold no memory of their own:
    ///
    /// ```
    /// use memsnap::{Snapshot, ViewOptions};
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let image = Snapshot::from_slice(&[1; 1 << 20])?;
    /// let mut idle = Vec::new();
    /// for _ in 0..8 {
    ///     let mut instance = image.view_with(ViewOptions::new().keep_resident(0))?;
    ///     instance[..1 << 16].fill(2); // runs a task
    ///     instance.restore()?;
    ///     idle.push(instance);
    /// }
    /// assert!(idle.iter().all(|instance| instance[0] == 1));
    /// # Ok(())
    /// # }
    /// ```
    pub fn keep_resident(&mut self, bytes: usize) -> &mut Self {
        self.settings.keep_resident = bytes;
        self
    }

    /// Sets whether the view uses huge pages. The default is [`Auto`](HugePages::Auto).
    ///
    /// - [`Auto`](HugePages::Auto): the view moves the snapshot's bytes into huge pages once that saves time, as
    ///   described below. The view's private memory stays in pages of the usual size.
    /// - [`Advise`](HugePages::Advise): the same, and the view's private memory is in huge pages too. This saves page
    ///   faults if most of a large view is written. But writing one byte takes a huge page of memory (2 MiB on most
    ///   machines). Pages are still tracked, compared and captured in the usual size. The address of the view is a
    ///   multiple of the size of a huge page. For a [logged view](crate::LoggedView), `Advise` is the same as `Auto`:
    ///   the first write to a huge page would make all of it private, and not only the reported pages.
    /// - [`Never`](HugePages::Never): the view moves nothing. It may still map huge pages into which another view has
    ///   moved bytes.
    ///
    /// # How views move bytes into huge pages
    ///
    /// To find the written pages, the kernel walks over the view's page tables. If much of the view is in memory, a
    /// snapshot or restore of few pages spends most of its time on this walk. A huge page has one entry instead of
    /// 512, so it makes the walk shorter.
    ///
    /// Once the walks have taken as long as moving the bytes would take, `take_snapshot` and the `restore` methods
    /// move some bytes at the end of each call, until all are moved. Each of these calls takes about a millisecond
    /// longer. A few calls take longer than that, if the system has to make room for huge pages first. All views of
    /// the snapshot benefit. [`ViewStats::huge`](crate::ViewStats::huge) is the number of bytes that the view maps in
    /// huge pages.
    ///
    /// A view moves bytes only on Linux 6.7 or later, with pages of 4 KiB, and if it is at least 32 MiB long. It moves
    /// only bytes of memory files that memsnap made or received, not those of other files that it mapped. A huge page
    /// takes memory for all of its bytes, even where the snapshot's memory has gaps. So a view moves 2 MiB only if at
    /// most an eighth of them are gaps. The snapshot's memory then grows by a seventh at most.
    ///
    /// # Examples
    ///
    /// ```
    /// use memsnap::{HugePages, Snapshot, ViewOptions};
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let snapshot = Snapshot::zeroed(64 << 20)?;
    /// let mut heap = snapshot.view_with(ViewOptions::new().huge_pages(HugePages::Advise))?;
    /// heap.fill(1); // takes a page fault for each huge page, if the system has them
    /// # Ok(())
    /// # }
    /// ```
    pub fn huge_pages(&mut self, huge_pages: HugePages) -> &mut Self {
        self.settings.huge_pages = huge_pages;
        self
    }

    /// Sets the tracking method, by which the view finds written pages. The default is [`Tracking::Auto`].
    ///
    /// If the system starts to refuse the method while the view is in use, the view continues with the next slower
    /// method, and [`ViewStats::why_not_faster`](crate::ViewStats::why_not_faster) contains the reason.
    ///
    /// # Errors
    ///
    /// If the method cannot work, opening the view fails (`Unsupported`). The same happens if `Armed` is chosen for a
    /// view that is [pinned](Self::pinned).
    ///
    /// # Examples
    ///
    /// ```
    /// use memsnap::{Snapshot, Tracking, ViewOptions};
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let snapshot = Snapshot::zeroed(1 << 20)?;
    /// let view = snapshot.view_with(ViewOptions::new().tracking(Tracking::Compare))?;
    /// assert_eq!(view.stats().tracker, Tracking::Compare);
    /// # Ok(())
    /// # }
    /// ```
    pub fn tracking(&mut self, tracking: Tracking) -> &mut Self {
        self.settings.tracking = tracking;
        self
    }

    /// Sets whether parts of the view can be made executable. The default is `false`.
    ///
    /// [`protect`](crate::View::protect) with [`Access::READ_EXECUTE`](crate::Access::READ_EXECUTE) makes pages
    /// executable. The code in them then runs with all rights of the process. `protect` also makes the instruction
    /// caches coherent.
    ///
    /// # Errors
    ///
    /// If memsnap cannot make the instruction caches coherent, opening the view fails (`Unsupported`). memsnap
    /// supports x86, x86-64, AArch64 and s390x, on Linux and Android also Arm and 64-bit RISC-V, and all processors
    /// of Windows.
    ///
    /// # Examples
    ///
    /// ```
    /// use memsnap::{Access, Snapshot, ViewOptions, page_size};
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let snapshot = Snapshot::zeroed(2 * page_size())?;
    /// # if cfg!(all(target_os = "linux", target_arch = "x86_64")) {
    /// let mut code = snapshot.view_with(ViewOptions::new().executable(true))?.into_protected();
    /// // ... write machine code to the first page ...
    /// code.protect(..page_size(), Access::READ_EXECUTE)?;
    /// assert!(code.get_mut(..1).is_none());
    /// # }
    /// # Ok(())
    /// # }
    /// ```
    pub fn executable(&mut self, executable: bool) -> &mut Self {
        self.settings.executable = executable;
        self
    }

    /// Sets whether memory of the view may be pinned for writes that bypass the page table. The default is `false`.
    ///
    /// Set this if memory of the view is pinned now or later: as fixed buffers of io_uring, or for RDMA, VFIO, vhost
    /// or AF_XDP. Snapshots and restores of such a view are exact, whether or not the kernel counts the pins. The
    /// option has two costs:
    ///
    /// - The pages of the view are never write-protected, since a write that bypasses the page table does not cause
    ///   the write fault by which [`Tracking::Armed`] notices it. So [`Tracking::Auto`] stays with
    ///   [`Tracking::Scan`], and `Armed` is refused (`Unsupported`) when the view is opened and by
    ///   [`View::set_tracking`](crate::View::set_tracking).
    /// - A mutable view is not written in place, since pinned memory cannot become immutable. Its changes are copied
    ///   when a snapshot is taken and when the view ends.
    ///
    /// Without this option, memsnap knows only of the pins that the kernel counts. See [pinned
    /// memory](crate::View#pinned-memory).
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
    /// let taken = buffers.take_snapshot()?; // contains what the device wrote
    /// assert_ne!(buffers.stats().tracker, Tracking::Armed);
    /// # Ok(())
    /// # }
    /// ```
    pub fn pinned(&mut self, pinned: bool) -> &mut Self {
        self.settings.pinned = pinned;
        self
    }

    fn with(logged: Option<Checks>) -> Self {
        Self { settings: Settings::new(logged), access: PhantomData }
    }
}

impl ViewOptions<Logged> {
    /// Returns the options of a [logged view](crate::LoggedView), to which the program reports the bytes that it
    /// writes.
    ///
    /// The other options are the default ones.
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

    /// Sets whether the view checks that every written page was reported.
    ///
    /// A view that checks also searches for written pages, as other views do ([`tracking`](Self::tracking)). It does
    /// so before each snapshot, before each restore, and in [`changes`](crate::View::changes). While a mutable view is
    /// written in place, it does not check, because all pages in use count as written. If a page differs from the last
    /// snapshot and was not reported, the call fails (`InvalidData`), and the error names the page.
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
