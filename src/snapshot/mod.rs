//! `Snapshot`: making one, viewing it, comparing two.
#![allow(unsafe_code)]

pub(crate) mod head;
pub(crate) mod options;

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::mem;
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
/// A snapshot is made from [bytes](Self::from_slice), a [file](Self::from_file), a
/// [stream](Self::from_reader) or [zeroes](Self::zeroed), or [taken](View::take_snapshot) of a view. It is
/// read and changed through views, which never change it, with one exception: what is written through
/// a [`MutView`] is what the snapshot holds afterwards.
///
/// A snapshot is a handle: [`clone`](Clone::clone) takes the same time whatever the size, and clones share
/// all memory. So do a snapshot and those taken of its views, but for the pages that differ; a page's
/// memory is free for reuse as soon as the last snapshot that shows it is dropped.
///
/// # Lengths
///
/// Memory comes in pages: [`len`](Self::len) is a multiple of [`page_size()`], the bytes behind
/// [`content_len`](Self::content_len) are zero at first. An empty snapshot is allowed everywhere.
pub struct Snapshot {
    head: Arc<Mutex<Head>>,
}

impl Snapshot {
    /// A snapshot of `len` zero bytes.
    ///
    /// Takes no memory, and neither does reading a view of it: only pages written do. Windows has to promise a view all
    /// the memory that it could write, also this one.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if `len` is more than a slice can hold (`isize::MAX` bytes, in whole pages).
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

    /// A snapshot of a copy of `bytes`.
    ///
    /// Costs one copy, written in whole pages into fresh memory.
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

    /// A snapshot of the current contents of `file`.
    ///
    /// The file is captured from its first byte. The call neither uses nor moves the file offset, which other handles
    /// may share ([`File::try_clone`]). Later changes to the file do not affect the snapshot. If somebody else writes
    /// to the file *during* the call, each page may be old or new.
    ///
    /// Where the file system can clone a file (XFS, Btrfs), files of a mebibyte and more are cloned. This copies
    /// nothing and leaves the pages on disk until they are read. Otherwise the bytes are copied, and holes stay
    /// holes. To find the holes, the file is opened anew (on Linux, through `/proc`). Where that fails, holes are
    /// read, and only long ones stay holes.
    ///
    /// A block device is captured like a file. A pipe or a socket has no first byte: it is read to its end. If it may
    /// never end, limit it by [`Read::take`] and use [`from_reader`](Self::from_reader).
    ///
    /// # Windows
    ///
    /// On Windows, reading a file moves its offset, so the file is opened anew to be read. That is refused if
    /// somebody, perhaps the caller, opened the file without sharing it or locked a part of it. Then `file` itself is
    /// read, and its offset is put back afterwards. During such a call nobody else may read or write at the offset
    /// that they share with `file`: the offset is elsewhere, and any change that they make to it is lost.
    ///
    /// # Errors
    ///
    /// `IsADirectory`; `PermissionDenied` if the file is not open for reading; `InvalidInput` if it is a character
    /// device (a terminal, `/dev/zero`), which may never end, or if it is longer than a slice can be; those of the
    /// operating system: reading, no memory, no descriptor.
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

    /// A snapshot of all that `reader` gives until its end.
    ///
    /// The call returns when the reader is at its end. Limit a reader that may never end by [`Read::take`]; otherwise
    /// it is read until memory is exhausted.
    ///
    /// # Errors
    ///
    /// Those of `reader`, but for `Interrupted`; those of the operating system: no memory, no descriptor.
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

    /// A snapshot that is the file itself, mapped in place.
    ///
    /// Copies and reads nothing now: pages are read when they are first looked at. Never writes to the
    /// file. Keeps a descriptor of its own, so that `file` may be closed. Does not use the file offset. On Windows the
    /// last page is read if it is not a whole one, with the same effect on the offset as in
    /// [`from_file`](Self::from_file).
    ///
    /// # Errors
    ///
    /// `InvalidInput` if it is not a regular file or longer than a slice can be; `PermissionDenied` if it is
    /// not open for reading; those of the operating system: no descriptor, no address space.
    ///
    /// # Safety
    ///
    /// As long as this snapshot exists, or any view or snapshot that descends from it, nobody may change
    /// the file's bytes or make it shorter, in this process or another. If somebody does, slices change
    /// behind shared references, and reading beyond the new end kills the process (`SIGBUS`).
    ///
    /// # Examples
    ///
    /// ```
    /// use std::io::Write;
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let mut file = tempfile::tempfile()?;
    /// file.write_all(b"in place")?;
    /// // SAFETY: the file is unnamed and only open here, where nothing writes to it any more.
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

    /// Another handle on the same image, in the same short time whatever its size.
    ///
    /// # Errors
    ///
    /// What [`clone`](Clone::clone) would put off: the changes of a mutable view that could not be captured
    /// when it was dropped, and still cannot.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// let snapshot = memsnap::Snapshot::from_slice(b"one")?;
    /// assert!(snapshot.try_clone()?.diff(&snapshot)?.is_empty());
    /// # Ok(())
    /// # }
    /// ```
    pub fn try_clone(&self) -> io::Result<Self> {
        let image = self.image()?;
        Ok(Self::from(image))
    }

    /// The length in bytes of a view: whole pages.
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

    /// The number of bytes that the snapshot, or the first of its ancestors, was made with.
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

    /// Whether there is not a single byte.
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

    /// Copies bytes from `offset` on into `buffer`, and gives their number: less than `buffer` holds
    /// where [`len`](Self::len) comes first, 0 beyond it. Needs no view.
    ///
    /// # Errors
    ///
    /// Those of the operating system: no address space.
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

    /// Where the two snapshots differ, with the bytes of both: `self` is the old one, `other` the new. Whole pages,
    /// ascending, neighbours as one range.
    ///
    /// Of snapshots that descend from one another, what they share is skipped without a look; the cost
    /// follows the pages that differ. Otherwise all pages are compared that are not known to be zero.
    /// Beyond the end of the shorter one, everything differs.
    ///
    /// # Errors
    ///
    /// Those of the operating system: no address space.
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

    /// What the snapshot holds.
    ///
    /// If a mutable view has ended and its changes could not be captured yet (see [`View::commit`]), only `mapped` is
    /// known. All other numbers are then 0.
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

    pub(crate) fn new(image: Image) -> Self {
        Self::from(Arc::new(image))
    }

    /// Where a mutable view leaves its changes.
    pub(crate) fn head(&self) -> &Arc<Mutex<Head>> {
        &self.head
    }

    /// The image, once an error of the last mutable view was reported.
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

/// The whole pages of `len` bytes.
fn checked_pages(len: usize) -> io::Result<usize> {
    whole_pages(len).ok_or_else(|| {
        let limit = isize::MAX as usize / page_size() * page_size();
        error::invalid(format!("a snapshot of {len} bytes is more than a slice can hold ({limit} bytes)"))
    })
}
