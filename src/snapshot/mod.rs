//! `Snapshot`: making, reading and comparing snapshots.
//!
//! `view/opening.rs` opens views, and `image/` decides how the bytes are stored.
#![allow(unsafe_code)]

mod derived;
pub(crate) mod head;
pub(crate) mod options;

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::mem;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use crate::changes::{Changes, Side};
use crate::image::flat::Flat;
use crate::image::label::Label;
use crate::image::{Base, Image};
use crate::pages::whole_pages;
use crate::snapshot::head::{Head, lock};
use crate::stats::{SnapshotStats, StoreStats};
use crate::sys::HugePages;
use crate::sys::{self, MemoryFile};
use crate::{error, page_size, trace};

/// An immutable image of memory.
///
/// Make a snapshot from [bytes](Self::from_slice), a [file](Self::from_file), a [stream](Self::from_reader) or
/// [zeroes](Self::zeroed), [take](crate::View::take_snapshot) one of a view, or make one from
/// [another one and some changes](Self::with_changes). Open [views](Self::view) to read and
/// write copies of its bytes:
///
/// ```
/// use memsnap::Snapshot;
///
/// # fn main() -> std::io::Result<()> {
/// let snapshot = Snapshot::from_slice(b"Hello, World!")?;
/// let mut view = snapshot.view()?;
/// view[0] = b'h';
/// let changed = view.take_snapshot()?;
///
/// assert_eq!(snapshot.view()?.content(), b"Hello, World!");
/// assert_eq!(changed.view()?.content(), b"hello, World!");
/// # Ok(())
/// # }
/// ```
///
/// Writes to views never change the snapshot. There is one exception: when a [`MutView`](crate::MutView) ends, it
/// stores its bytes in its snapshot. Clones of that snapshot stay as they are.
///
/// A `Snapshot` is a handle. [`clone`](Clone::clone) takes the same short time for any size, and clones share all
/// memory. A snapshot that is taken of a view shares all memory with the view's last snapshot, except for the pages
/// that differ. The memory of a page can be used again as soon as the last snapshot that contains the page is
/// dropped.
///
/// # Lengths
///
/// Memory consists of pages, so [`len`](Self::len) is a multiple of [`page_size()`].
/// [`content_len`](Self::content_len) is the number of bytes that the snapshot was made from. The bytes after the
/// content are zero at first. A snapshot may be empty. [`resized`](Self::resized) makes a snapshot with other lengths.
pub struct Snapshot {
    head: Arc<Mutex<Head>>,
}

/// Making snapshots.
impl Snapshot {
    /// Makes a snapshot of `len` zero bytes.
    ///
    /// The snapshot takes no memory. In a copy-on-write view of it, only written pages take memory. In a mutable view,
    /// pages that are only read may take memory too. Windows also reserves memory for all bytes that a view could
    /// write (commit charge).
    ///
    /// # Errors
    ///
    /// `InvalidInput` if `len` exceeds the length of the longest slice: `isize::MAX` bytes, rounded down to whole
    /// pages.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// # if cfg!(all(unix, target_pointer_width = "64")) {
    /// let snapshot = memsnap::Snapshot::zeroed(1 << 40)?; // a tebibyte
    /// let mut view = snapshot.view()?;
    /// view[1 << 39] = 1;
    /// assert_eq!(view[(1 << 39) + 1], 0);
    /// # }
    /// # Ok(())
    /// # }
    /// ```
    pub fn zeroed(len: usize) -> io::Result<Self> {
        Self::make_zeroed(len, Label::default())
    }

    /// Makes a snapshot of a copy of `bytes`.
    ///
    /// The call copies the bytes once, to new memory. The rest of the last page is zero.
    ///
    /// # Errors
    ///
    /// Those of the operating system: no memory, no file descriptor (a snapshot takes one).
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// let snapshot = memsnap::Snapshot::from_slice(b"abc")?;
    /// assert_eq!(snapshot.content_len(), 3);
    /// assert_eq!(snapshot.len(), memsnap::page_size());
    /// # Ok(())
    /// # }
    /// ```
    pub fn from_slice(bytes: &[u8]) -> io::Result<Self> {
        Self::make_from_slice(bytes, Label::default())
    }

    /// Makes a snapshot of the current contents of `file`.
    ///
    /// The file is captured from its first byte. The call neither uses nor moves the file offset, which other handles
    /// may share ([`File::try_clone`]). Later changes to the file do not affect the snapshot. If another thread or
    /// process writes to the file *during* the call, the snapshot may contain the old or the new bytes of each page.
    ///
    /// If the file system can clone files (XFS, Btrfs), files of a mebibyte and more are cloned. This copies no
    /// bytes, and pages stay on disk until they are read. Otherwise, the bytes are copied, and holes stay holes. To
    /// find the holes, the file is opened again (on Linux, through `/proc`). If that fails, holes are read, and only
    /// long ones stay holes.
    ///
    /// A block device is captured like a file. A pipe or a socket has no offset, and is read to its end. If it may
    /// never end, limit it by [`Read::take`] and use [`from_reader`](Self::from_reader).
    ///
    /// # Windows
    ///
    /// On Windows, reading a file moves its offset, so the file is opened again for reading. The system refuses that
    /// if any program, also the calling one, has opened the file without sharing it. If a part of the file is locked,
    /// the reopened file cannot be read. Then `file` itself is read, and its offset is restored afterwards. During
    /// such a call, no other code may read or write at the offset that it shares with `file`: the offset is elsewhere,
    /// and any change to it is lost.
    ///
    /// # Errors
    ///
    /// - `IsADirectory` if the file is a directory.
    /// - `PermissionDenied` if the file is not open for reading.
    /// - `InvalidInput` if it is a character device (a terminal, `/dev/zero`), which may never end, or if it is
    ///   longer than the longest slice.
    /// - Those of the operating system: reading failed, no memory, no file descriptor.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::io::Write;
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let mut file = tempfile::tempfile()?;
    /// file.write_all(b"as it was")?;
    /// let snapshot = memsnap::Snapshot::from_file(file)?;
    /// assert_eq!(snapshot.view()?.content(), b"as it was");
    /// # Ok(())
    /// # }
    /// ```
    #[allow(clippy::needless_pass_by_value)] // The signature of memsnap 0.1.
    pub fn from_file(file: File) -> io::Result<Self> {
        Self::make_from_file(&file, Label::default())
    }

    /// Makes a snapshot of all bytes that `reader` returns.
    ///
    /// The call reads until the end of the reader. Limit a reader that may never end by [`Read::take`]. Otherwise it
    /// is read until no memory is left.
    ///
    /// # Errors
    ///
    /// - Those of `reader`. After `Interrupted`, the call reads again.
    /// - Those of the operating system: no memory, no file descriptor.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// let snapshot = memsnap::Snapshot::from_reader(&b"any stream"[..])?;
    /// assert_eq!(snapshot.content_len(), 10);
    /// # Ok(())
    /// # }
    /// ```
    pub fn from_reader(reader: impl Read) -> io::Result<Self> {
        Self::make_from_reader(reader, Label::default())
    }

    /// Makes a snapshot of `file` in place: maps the file instead of copying it.
    ///
    /// The call copies and reads nothing. Pages are read when they are first accessed. memsnap never writes to the
    /// file, and does not use the file offset. The snapshot has a descriptor of its own, so `file` can be closed.
    ///
    /// On Windows, the last page is read if the file does not fill it. This has the same effect on the file offset as
    /// [`from_file`](Self::from_file).
    ///
    /// # Errors
    ///
    /// - `InvalidInput` if `file` is not a regular file or is longer than the longest slice.
    /// - `PermissionDenied` if the file is not open for reading.
    /// - Those of the operating system: no file descriptor, no address space.
    ///
    /// # Safety
    ///
    /// As long as this snapshot exists, or any view or snapshot that descends from it, nothing may change the file's
    /// bytes or make it shorter, in this process or another. Otherwise, bytes change behind shared references, and
    /// reading beyond the new end kills the process (`SIGBUS`).
    ///
    /// # Examples
    ///
    /// ```
    /// use std::io::Write;
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let mut file = tempfile::tempfile()?;
    /// file.write_all(b"in place")?;
    /// // SAFETY: the file has no name and is open only here, and nothing writes to it after this line.
    /// let snapshot = unsafe { memsnap::Snapshot::map_file(&file) }?;
    /// assert_eq!(snapshot.view()?.content(), b"in place");
    /// # Ok(())
    /// # }
    /// ```
    pub unsafe fn map_file(file: &File) -> io::Result<Self> {
        let len = file.metadata().map_or(0, |metadata| metadata.len());
        let (file, len) = sys::borrowed(file).map_err(error::on("mapping a file in place", len))?;
        Ok(Self::of_file(file, len, Label::default()))
    }
}

/// Reading and comparing snapshots.
impl Snapshot {
    /// Copies bytes of the snapshot, from byte `offset` on, into `buffer`. Returns the number of copied bytes.
    ///
    /// The number is less than the length of `buffer` if the snapshot ends first, and 0 if `offset` is at or after the
    /// end ([`len`](Self::len)). The call opens no view.
    ///
    /// # Errors
    ///
    /// - Those of the operating system: no address space.
    /// - The error with which the last mutable view of the snapshot ended, if no call has returned it yet. See
    ///   [`View::commit`](crate::View::commit).
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// let snapshot = memsnap::Snapshot::from_slice(b"Hello, World!")?;
    /// let mut word = [0; 5];
    /// assert_eq!(snapshot.read_at(&mut word, 7)?, 5);
    /// assert_eq!(&word, b"World");
    /// # Ok(())
    /// # }
    /// ```
    pub fn read_at(&self, buffer: &mut [u8], offset: usize) -> io::Result<usize> {
        let image = self.image()?;
        let read = buffer.len().min(self.len().saturating_sub(offset));
        let reader = image.reader()?;
        let mut rest = &mut buffer[..read];
        let mut offset = offset;
        while !rest.is_empty() {
            let bytes = &reader.page(offset / page_size())[offset % page_size()..];
            let copied = bytes.len().min(rest.len());
            let (now, later) = mem::take(&mut rest).split_at_mut(copied);
            now.copy_from_slice(&bytes[..copied]);
            offset += copied;
            rest = later;
        }
        Ok(read)
    }

    /// Lists the pages in which two snapshots differ, with the bytes of both.
    ///
    /// `self` is the old snapshot, `other` the new one. The ranges consist of whole pages and are in ascending order.
    /// Adjacent pages are in one range. Pages beyond the end of the shorter snapshot count as different.
    ///
    /// If one snapshot descends from the other, or both from a common one, the pages that they share are skipped, and
    /// the time depends on the pages that differ. Otherwise, the call compares all pages, except those that are known
    /// to be zero.
    ///
    /// # Errors
    ///
    /// - Those of the operating system: no address space.
    /// - The error with which the last mutable view of either snapshot ended, if no call has returned it yet.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// use memsnap::{Snapshot, page_size};
    ///
    /// let before = Snapshot::zeroed(10 * page_size())?;
    /// let mut view = before.view()?;
    /// view[3 * page_size()] = 1;
    /// let after = view.take_snapshot()?;
    /// for change in before.diff(&after)? {
    ///     assert_eq!(change.range(), 3 * page_size()..4 * page_size());
    ///     for page in change.pages() {
    ///         assert_eq!((page.old[0], page.new[0]), (0, 1));
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn diff(&self, other: &Self) -> io::Result<Changes<'static>> {
        let (old, new) = (self.image()?, other.image()?);
        let pages = old.diff(&new)?;
        Ok(Changes::new(Side::Image(old), Side::Image(new), &pages))
    }

    /// Lists the byte ranges that may hold data. All bytes outside of them are zero.
    ///
    /// The ranges consist of whole pages and are in ascending order. No two ranges are adjacent. The call reads no
    /// page. So it does not find pages of zeroes that take memory or disk space, and a range may contain only zeroes.
    ///
    /// Pages that no snapshot or view has written since the first snapshot was made are in the ranges unless the
    /// system knows that they are holes. Linux and Windows know the holes of memory and of files that were copied or
    /// cloned. Other systems know none, and no system is asked about a file that is [mapped](Self::map_file) in place.
    ///
    /// # Errors
    ///
    /// The error with which the last mutable view of the snapshot ended, if no call has returned it yet.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// use memsnap::{Snapshot, page_size};
    ///
    /// let snapshot = Snapshot::zeroed(1 << 30)?.with_changes([(5 * page_size() + 7, b"data")])?;
    /// assert_eq!(snapshot.data_ranges()?, [5 * page_size()..6 * page_size()]);
    /// # Ok(())
    /// # }
    /// ```
    pub fn data_ranges(&self) -> io::Result<Vec<Range<usize>>> {
        let data = self.image()?.may_hold_data();
        Ok(data.ranges().iter().map(|range| range.bytes()).collect())
    }

    /// Returns the length of the snapshot in bytes, a multiple of the page size. Its views have this length.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// assert_eq!(memsnap::Snapshot::zeroed(1)?.len(), memsnap::page_size());
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn len(&self) -> usize {
        lock(&self.head).size().0 * page_size()
    }

    /// Returns the length of the content in bytes, without the padding of the last page.
    ///
    /// It is the number of bytes that the snapshot was made from, or that was passed to [`resized`](Self::resized). A
    /// snapshot that is taken of a view has the content
    /// length of the view's last snapshot, or the length that was passed to [`View::grow`](crate::View::grow) since.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// let snapshot = memsnap::Snapshot::from_slice(b"123")?;
    /// assert_eq!(snapshot.content_len(), 3);
    /// assert_eq!(snapshot.view()?.take_snapshot()?.content_len(), 3);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn content_len(&self) -> usize {
        lock(&self.head).size().1
    }

    /// Returns `true` if the snapshot has no bytes.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// assert!(memsnap::Snapshot::from_slice(b"")?.is_empty());
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns another handle on the same bytes, and reports an earlier error.
    ///
    /// It differs from [`clone`](Clone::clone) if the changes of a mutable view could not be captured when it was
    /// dropped. `try_clone` then tries to capture them again, and fails if that is still impossible. `clone` leaves
    /// this to later calls.
    ///
    /// # Errors
    ///
    /// The error with which the last mutable view of the snapshot ended, if no call has returned it yet. Otherwise,
    /// the error of the new attempt.
    ///
    /// # Examples
    ///
    /// ```
    /// use memsnap::Snapshot;
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let mut snapshot = Snapshot::from_slice(b"one")?;
    /// snapshot.view_mut()?[..3].copy_from_slice(b"two"); // cannot return the error of the drop
    /// let copy = snapshot.try_clone()?; // returns it, if there was one
    /// assert_eq!(copy.view()?.content(), b"two");
    /// # Ok(())
    /// # }
    /// ```
    pub fn try_clone(&self) -> io::Result<Self> {
        let image = self.image()?;
        Ok(Self::from(image))
    }

    /// Returns statistics: how much memory the snapshot and its relatives take.
    ///
    /// If a mutable view has ended and its changes could not be captured yet (see
    /// [`View::commit`](crate::View::commit)), only `mapped` is known. All other numbers are then 0.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// let snapshot = memsnap::Snapshot::zeroed(1 << 20)?;
    /// let mut view = snapshot.view()?;
    /// view[0] = 1;
    /// assert_eq!(view.take_snapshot()?.stats().captured, memsnap::page_size());
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn stats(&self) -> SnapshotStats {
        let Some(image) = lock(&self.head).settled() else {
            return SnapshotStats { mapped: self.len(), ..SnapshotStats::default() };
        };
        let usage = image.store_usage();
        SnapshotStats {
            mapped: image.pages * page_size(),
            captured: image.captured.len() * page_size(),
            images: image.family(),
            base: image.base.allocated(),
            flat: Flat::allocated(&image),
            store: StoreStats { live: usage.live * page_size(), recyclable: usage.kept * page_size() },
        }
    }
}

impl Snapshot {
    pub(crate) fn new(image: Image) -> Self {
        Self::from(Arc::new(image))
    }

    /// Returns the place where a mutable view stores its bytes when it ends.
    pub(crate) fn head(&self) -> &Arc<Mutex<Head>> {
        &self.head
    }

    /// Returns the image.
    ///
    /// If the changes of the last mutable view could not be captured, this returns the error if no call has returned
    /// it yet. Otherwise it tries to capture them again.
    pub(crate) fn image(&self) -> io::Result<Arc<Image>> {
        let _events = trace::hold();
        lock(&self.head).image()
    }

    pub(crate) fn of_file(file: MemoryFile, len: usize, label: Label) -> Self {
        let pages = file.pages();
        let base = if pages == 0 { Base::Zero } else { Base::new(file) };
        if label.huge_pages == HugePages::Advise {
            base.collapse();
        }
        Self::new(Image::new(base, pages, len, label))
    }

    fn of_finished(file: MemoryFile, len: usize, label: Label) -> Self {
        file.finish();
        Self::of_file(file, len, label)
    }

    pub(crate) fn make_zeroed(len: usize, label: Label) -> io::Result<Self> {
        Ok(Self::new(Image::new(Base::Zero, checked_pages(len)?, len, label)))
    }

    pub(crate) fn make_from_slice(bytes: &[u8], label: Label) -> io::Result<Self> {
        let pages = checked_pages(bytes.len())?;
        if pages == 0 {
            return Self::make_zeroed(0, label);
        }
        let context = || error::context("copying bytes into a snapshot", pages);
        let file = MemoryFile::create(pages, pages, label.name.as_deref()).map_err(context())?;
        file.write_at(bytes, 0).map_err(context())?;
        Ok(Self::of_finished(file, bytes.len(), label))
    }

    pub(crate) fn make_from_file(file: &File, label: Label) -> io::Result<Self> {
        let len = file.metadata().map_or(0, |metadata| metadata.len());
        let copy = sys::copy_of(file, label.name.as_deref());
        let (copy, len) = copy.map_err(error::on("making a snapshot of a file", len))?;
        Ok(Self::of_finished(copy, len, label))
    }

    pub(crate) fn make_from_reader(reader: impl Read, label: Label) -> io::Result<Self> {
        let copy = sys::stream(reader, label.name.as_deref());
        let (copy, len) = copy.map_err(error::on("making a snapshot of a stream", 0))?;
        Ok(Self::of_finished(copy, len, label))
    }
}

impl From<Arc<Image>> for Snapshot {
    fn from(image: Arc<Image>) -> Self {
        Self { head: Arc::new(Mutex::new(Head::Image(image))) }
    }
}

impl Clone for Snapshot {
    fn clone(&self) -> Self {
        Self { head: Arc::new(Mutex::new(lock(&self.head).clone())) }
    }
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stats = self.stats();
        f.debug_struct("Snapshot")
            .field("len", &self.len())
            .field("content_len", &self.content_len())
            .field("captured", &stats.captured)
            .field("base", &stats.base)
            .field("images", &stats.images)
            .finish_non_exhaustive()
    }
}

/// Returns the number of pages for `len` bytes, if a slice can be that long.
fn checked_pages(len: usize) -> io::Result<usize> {
    whole_pages(len).ok_or_else(|| {
        let limit = isize::MAX as usize / page_size() * page_size();
        error::invalid(format!(
            "cannot make a snapshot of {len} bytes: they are more than a slice can hold ({limit} bytes)"
        ))
    })
}
