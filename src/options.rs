//! How things are to be done: builders in the manner of `std::fs::OpenOptions`.

use std::ffi::{CStr, CString};
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::marker::PhantomData;
use std::sync::Arc;

use crate::cost;
use crate::error;
use crate::pages::whole_pages;
use crate::snapshot::Snapshot;
use crate::sys::{Placement, RUNS_CODE};
use crate::view::{Logged, Open};

/// How a snapshot is made.
///
/// [`Snapshot::zeroed`], [`from_slice`](Snapshot::from_slice), [`from_file`](Snapshot::from_file) and
/// [`from_reader`](Snapshot::from_reader) are the same without options. Snapshots taken of views have the options
/// of the one that they descend from.
///
/// # Examples
///
/// ```
/// use memsnap::{HugePages, SnapshotOptions};
///
/// # fn main() -> std::io::Result<()> {
/// let snapshot = SnapshotOptions::new().name("guest").huge_pages(HugePages::Advise).from_slice(b"boot")?;
/// assert_eq!(snapshot.view()?.content(), b"boot");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default)]
pub struct SnapshotOptions {
    name: Option<String>,
    huge_pages: HugePages,
}

impl SnapshotOptions {
    /// No name, and [`HugePages::Auto`].
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Has the system show the snapshot's memory, and that of its views, under this name: on Linux in
    /// `/proc/self/maps`, as `/memfd:NAME` or, where it is all zeroes and the kernel knows how (5.17), `[anon:NAME]`.
    /// What a file system cloned (see [`from_file`](Self::from_file)) has no name.
    ///
    /// At most 79 printable ASCII characters, none of them ``[]\$` ``; otherwise making the snapshot fails with
    /// `InvalidInput`.
    pub fn name(&mut self, name: &str) -> &mut Self {
        self.name = Some(name.to_owned());
        self
    }

    /// Whether the snapshot's own bytes are to be in huge pages.
    ///
    /// - [`Auto`](HugePages::Auto), the default: a large view moves the bytes into huge pages while it is in use, once
    ///   that saves time. See [`ViewOptions::huge_pages`].
    /// - [`Advise`](HugePages::Advise): the bytes are moved when the snapshot is made (Linux 6.1), which takes the time
    ///   of another copy. Views then take one page fault for each huge page that they read.
    /// - [`Never`](HugePages::Never): the bytes are in pages of the usual size, and no view moves them.
    ///
    /// Snapshots of files that the file system cloned, and `map_file`, go without.
    pub fn huge_pages(&mut self, huge_pages: HugePages) -> &mut Self {
        self.huge_pages = huge_pages;
        self
    }

    /// A snapshot of `len` zero bytes. See [`Snapshot::zeroed`].
    ///
    /// # Errors
    ///
    /// Those of [`Snapshot::zeroed`]; `InvalidInput` for a [`name`](Self::name) that is none.
    pub fn zeroed(&self, len: usize) -> io::Result<Snapshot> {
        Snapshot::make_zeroed(len, self.label()?)
    }

    /// A snapshot of a copy of `bytes`. See [`Snapshot::from_slice`].
    ///
    /// # Errors
    ///
    /// Those of [`Snapshot::from_slice`]; `InvalidInput` for a [`name`](Self::name) that is none.
    pub fn from_slice(&self, bytes: &[u8]) -> io::Result<Snapshot> {
        Snapshot::make_from_slice(bytes, self.label()?)
    }

    /// A snapshot of the bytes that `file` holds now. See [`Snapshot::from_file`].
    ///
    /// # Errors
    ///
    /// Those of [`Snapshot::from_file`]; `InvalidInput` for a [`name`](Self::name) that is none.
    pub fn from_file(&self, file: File) -> io::Result<Snapshot> {
        Snapshot::make_from_file(&file, self.label()?)
    }

    /// A snapshot of all that `reader` gives until its end. See [`Snapshot::from_reader`].
    ///
    /// # Errors
    ///
    /// Those of [`Snapshot::from_reader`]; `InvalidInput` for a [`name`](Self::name) that is none.
    pub fn from_reader(&self, reader: impl Read) -> io::Result<Snapshot> {
        Snapshot::make_from_reader(reader, self.label()?)
    }

    fn label(&self) -> io::Result<Label> {
        let name = self.name.as_deref().map(checked_name).transpose()?;
        Ok(Label { name, huge_pages: self.huge_pages })
    }
}

/// What the system is told of the memory of a snapshot, of its relatives and of their views.
#[derive(Clone, Default)]
pub(crate) struct Label {
    pub(crate) name: Option<Arc<CStr>>,
    pub(crate) huge_pages: HugePages,
}

fn checked_name(name: &str) -> io::Result<Arc<CStr>> {
    let allowed = |byte: u8| matches!(byte, b' '..=b'~') && !br"[]\$`".contains(&byte);
    match CString::new(name) {
        Ok(checked) if (1..80).contains(&name.len()) && name.bytes().all(allowed) => Ok(checked.into()),
        _ => Err(error::invalid(format!(
            "{name:?} cannot be the name of memory; up to 79 printable ASCII characters without []\\$` can"
        ))),
    }
}

/// How a view is opened: for [`Snapshot::view_with`], [`view_mut_with`](Snapshot::view_mut_with) and
/// [`view_arc_with`](Snapshot::view_arc_with).
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
    pub(crate) populate: Populate,
    huge_pages: HugePages,
    reserve: usize,
    guard: (usize, usize),
    pub(crate) keep_resident: usize,
    pub(crate) tracking: Tracking,
    pub(crate) executable: bool,
    pub(crate) pinned: bool,
    pub(crate) logged: Option<Checks>,
    access: PhantomData<A>,
}

/// Whether a logged view checks that the program reports every written page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Checks {
    Never,
    /// Checks unless that would compare many pages.
    IfCheap,
    Always,
}

impl Default for ViewOptions {
    fn default() -> Self {
        Self::with(None)
    }
}

impl ViewOptions {
    /// What [`Snapshot::view`] does.
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
        self.logged = Some(if checked { Checks::Always } else { Checks::Never });
        self
    }
}

impl<A> ViewOptions<A> {
    fn with(logged: Option<Checks>) -> Self {
        Self {
            populate: Populate::No,
            huge_pages: HugePages::Auto,
            reserve: 0,
            guard: (0, 0),
            keep_resident: cost::KEPT_BYTES,
            tracking: Tracking::Auto,
            executable: false,
            pinned: false,
            logged,
            access: PhantomData,
        }
    }

    /// Whether pages are made ready when the view is opened, all in one go, rather than by a fault when each is
    /// first used. [`Populate::No`], unless this is called.
    pub fn populate(&mut self, populate: Populate) -> &mut Self {
        self.populate = populate;
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
        self.huge_pages = huge_pages;
        self
    }

    /// Reserves address space for a view of up to `bytes` bytes, rounded up to whole pages, into which it can
    /// [`grow`](crate::View::grow). Takes no memory. What is less than the view's length has no effect.
    pub fn reserve(&mut self, bytes: usize) -> &mut Self {
        self.reserve = bytes;
        self
    }

    /// At least so many bytes before the view and after it (after all that is [reserved](Self::reserve)) are
    /// inaccessible: who reads or writes there is stopped by the system (on Unix, by `SIGSEGV`). Rounded up to
    /// whole pages. Takes no memory.
    pub fn guard(&mut self, before: usize, after: usize) -> &mut Self {
        self.guard = (before, after);
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
        self.keep_resident = bytes;
        self
    }

    /// How written pages are found. [`Tracking::Auto`], unless this is called.
    ///
    /// Opening the view is an error (`Unsupported`) if the chosen way cannot work, and if `Armed` is chosen for a
    /// view that is [pinned](Self::pinned). Should the system come to refuse it later, in the life of the view, the
    /// view goes on with the next one and [says so](crate::ViewStats::why_not_faster).
    pub fn tracking(&mut self, tracking: Tracking) -> &mut Self {
        self.tracking = tracking;
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
        self.executable = executable;
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
        self.pinned = pinned;
        self
    }

    pub(crate) fn may_adapt(&self) -> bool {
        self.huge_pages != HugePages::Never
    }

    /// The pages that a view of `pages` pages may grow to, and where it is to be.
    pub(crate) fn place(&self, pages: usize, label: &Label) -> io::Result<(usize, Placement)> {
        if self.executable && !RUNS_CODE {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "a view cannot be executable on this processor, whose instruction caches memsnap does not know",
            ));
        }
        if self.reserve == 0 && self.guard == (0, 0) {
            return Ok((pages, self.placement(0, 0, label)));
        }
        let rounded = |bytes| whole_pages(bytes).ok_or_else(|| self.too_much());
        let most = rounded(self.reserve)?.max(pages);
        let (before, after) = (rounded(self.guard.0)?, rounded(self.guard.1)?);
        let behind = (most - pages).checked_add(after).ok_or_else(|| self.too_much())?;
        Ok((most, self.placement(before, behind, label)))
    }

    fn placement(&self, before: usize, behind: usize, label: &Label) -> Placement {
        let &Self { executable, .. } = self;
        let huge_pages = match self.huge_pages {
            // A write to a huge page would make other pages private than those that are reported.
            HugePages::Advise if self.logged.is_some() => HugePages::Auto,
            HugePages::Auto if label.huge_pages == HugePages::Never => HugePages::Never,
            huge_pages => huge_pages,
        };
        Placement { before, behind, huge_pages, executable, name: label.name.clone() }
    }

    fn too_much(&self) -> io::Error {
        let (before, after) = self.guard;
        error::invalid(format!(
            "to reserve {} bytes with guards of {before} and {after} bytes is more than there are addresses",
            self.reserve
        ))
    }
}

/// Whether pages are made ready in advance.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[non_exhaustive]
pub enum Populate {
    /// They are not.
    #[default]
    No,
    /// For reading: later reads cause no fault, and the first write to a page costs its copy.
    Read,
    /// For writing: all pages are the view's own from the start, and take up memory as if all were written.
    Write,
}

/// Whether memory is to be in huge pages, in which the system then has fewer to look after.
///
/// If the system has no huge pages, or does not permit them, all memory is in pages of the usual size.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[non_exhaustive]
pub enum HugePages {
    /// Views move a snapshot's bytes into huge pages while they are in use, once that saves time.
    ///
    /// See [`ViewOptions::huge_pages`].
    #[default]
    Auto,
    /// The system is not asked for huge pages.
    Never,
    /// The system is asked for huge pages from the start.
    Advise,
}

/// How the written pages of a view are found, from the way that is fastest on a large view in use to the slowest.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum Tracking {
    /// The best way that works here, `Armed` once that pays.
    #[default]
    Auto,
    /// Pages are write-protected asynchronously: finding those written takes 1 to 2 ns for each page in memory, and
    /// the first write to each page after a snapshot about 1 us. Linux 6.7, userfaultfd.
    ///
    /// Writes to [pinned memory](crate::View#pinned-memory) are not noticed if the kernel does not count the pins.
    Armed,
    /// The kernel lists private pages: some 20 ns for each page in memory. Linux 6.7 (`PAGEMAP_SCAN`).
    Scan,
    /// The same, read from `/proc/self/pagemap`: some 50 ns for each page.
    Pagemap,
    /// The system tells which pages are in memory and the view's own; these, and all that are not in memory, are
    /// compared. Windows.
    WorkingSet,
    /// All bytes are compared. Works anywhere.
    Compare,
    /// The program reports them to a [logged view](crate::LoggedView). It cannot be chosen.
    Logged,
}

impl fmt::Display for Tracking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Armed => "armed",
            Self::Scan => "scan",
            Self::Pagemap => "pagemap",
            Self::WorkingSet => "working-set",
            Self::Compare => "compare",
            Self::Logged => "logged",
        })
    }
}
