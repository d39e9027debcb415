//! Memfds, private copies on disk, and files of somebody else's.

use std::ffi::CStr;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{FallocateFlags, MemfdFlags, Mode, OFlags, SealFlags, SeekFrom};
use rustix::io::{Errno, FdFlags};

use super::has_pinned_memory;
use super::process::Process;
use crate::pages::{PageRange, PageSet};
use crate::sys::call;
use crate::sys::unix::{Descriptor, MemoryFile, page_size};

/// Under these seals neither a byte nor the length of a file can change, for nobody. `F_SEAL_FUTURE_WRITE` is
/// not enough: who mapped the file before can still write to it.
pub(super) const UNCHANGING: SealFlags = SealFlags::WRITE.union(SealFlags::SHRINK).union(SealFlags::GROW);

/// Whether the open file, and with it the offset, is somebody else's too.
pub(in crate::sys) struct Kind {
    borrowed: AtomicBool,
}

impl Kind {
    fn own() -> Self {
        Self { borrowed: AtomicBool::new(false) }
    }

    fn borrowed() -> Self {
        Self { borrowed: AtomicBool::new(true) }
    }

    pub(super) fn is_borrowed(&self) -> bool {
        self.borrowed.load(Ordering::Relaxed)
    }
}

/// A new memfd, empty, and kept from children as long as it can be written.
pub(in crate::sys) fn new_file(name: &CStr) -> io::Result<(Descriptor, Kind)> {
    call("memfd_create")?;
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Linux before 6.3 does not know MFD_NOEXEC_SEAL and says EINVAL.
    let fd = match rustix::fs::memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL) {
        Err(Errno::INVAL) => rustix::fs::memfd_create(name, flags),
        result => result,
    }?;
    let fd = match Process::current() {
        Ok(_) => Descriptor::kept_from_children(fd),
        Err(Errno::NOMEM) => Err(Errno::NOMEM),
        // Where a child cannot be told from its parent, no view is written in place, so that the file is sealed soon.
        Err(_) => Descriptor::new(fd),
    }?;
    Ok((fd, Kind::own()))
}

/// Another descriptor of somebody else's file.
pub(in crate::sys) fn borrowed_file(fd: BorrowedFd<'_>) -> io::Result<(Descriptor, Kind)> {
    call("dup")?;
    Ok((Descriptor::new(fd.try_clone_to_owned()?)?, Kind::borrowed()))
}

impl MemoryFile {
    /// Takes over a file of our own, of `pages` pages, that is finished.
    pub(super) fn adopt(fd: OwnedFd, pages: usize) -> io::Result<Self> {
        Self::on_disk(Descriptor::new(fd)?, pages, Kind::own())
    }

    /// Takes over somebody else's file of `pages` pages, whose seals are [`UNCHANGING`].
    pub(super) fn receive(fd: OwnedFd, pages: usize) -> io::Result<Self> {
        if let Ok(fd) = reopen(fd.as_fd()) {
            return Ok(Self::new(Descriptor::new(fd)?, pages, Kind::own()));
        }
        call("fcntl")?;
        rustix::io::fcntl_setfd(&fd, FdFlags::CLOEXEC)?;
        Ok(Self::new(Descriptor::new(fd)?, pages, Kind::borrowed()))
    }

    /// Has the kernel enforce from now on that bytes and length of a file that was never mapped for writing do not
    /// change.
    ///
    /// A guard against mistakes, on which only [`share`](Self::share) depends, and asks: where it is refused (a
    /// file on disk has no seals) the file stays as it is.
    pub(crate) fn finish(&self) {
        if !self.seal()
            && let Ok(fd) = self.fd()
        {
            let fixed = SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
            let _ = rustix::fs::fcntl_add_seals(fd, fixed | SealFlags::FUTURE_WRITE);
        }
        // Children need what snapshots are made of, also where a filter refuses seals.
        self.fd.leave_to_children();
    }

    /// Has the kernel guarantee from now on that nobody writes to the file, by any means. Returns whether it does: not
    /// while the file is mapped for writing, or one of its pages is pinned, for which the kernel waits a sixth of a second.
    pub(crate) fn seal(&self) -> bool {
        let seal = |fd| rustix::fs::fcntl_add_seals(fd, UNCHANGING | SealFlags::SEAL).is_ok();
        let sealed = call("fcntl").is_ok() && self.fd().is_ok_and(seal);
        if sealed {
            self.fd.leave_to_children();
        }
        sealed
    }

    /// Whether there is any use in asking for a [`seal`](Self::seal) of a file that was mapped for writing: not while
    /// the process has pinned memory, nor if other code closed the descriptor.
    pub(crate) fn may_be_sealed(&self) -> bool {
        self.fd().is_ok() && !has_pinned_memory()
    }

    /// Makes the pages of `range` zero, and gives their memory back.
    pub(crate) fn punch(&self, range: PageRange) -> io::Result<()> {
        let bytes = range.bytes();
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        call("fallocate")?;
        Ok(rustix::fs::fallocate(self.fd()?, flags, bytes.start as u64, bytes.len() as u64)?)
    }

    /// A handle for other processes; none unless the kernel guarantees that all pages stay as they are.
    pub(crate) fn share(&self) -> io::Result<Option<OwnedFd>> {
        call("fcntl")?;
        // A file on disk has no seals, which is an error.
        let fd = self.fd()?;
        let seals = rustix::fs::fcntl_get_seals(fd).unwrap_or(SealFlags::empty());
        let len = u64::try_from(rustix::fs::fstat(fd)?.st_size).unwrap_or(0);
        if !seals.contains(UNCHANGING) || len != (self.pages * page_size()) as u64 {
            return Ok(None);
        }
        if let Ok(fd) = reopen(fd) {
            return Ok(Some(fd));
        }
        self.kind.borrowed.store(true, Ordering::Relaxed);
        call("dup")?;
        Ok(Some(fd.try_clone_to_owned()?))
    }

    /// The pages that may hold something other than zeroes.
    pub(crate) fn data(&self) -> PageSet {
        if self.kind.is_borrowed() {
            // To look for holes would move the offset, and wait for whoever is reading from there.
            return PageSet::all(self.pages);
        }
        let Ok(fd) = self.fd() else { return PageSet::all(self.pages) };
        let page_size = page_size() as u64;
        let len = self.pages as u64 * page_size;
        let mut data = PageSet::new();
        let mut end = 0;
        for extent in data_extents(fd, len).unwrap_or_else(|_| vec![0..len]) {
            let first = usize::try_from(extent.start / page_size).unwrap_or(usize::MAX).max(end);
            end = usize::try_from(extent.end.div_ceil(page_size)).unwrap_or(usize::MAX).min(self.pages);
            if first < end {
                data.push_range(PageRange::new(first, end));
            }
        }
        data
    }

    /// Bytes of memory or disk that the file takes up: all that it can, where the kernel does not say.
    pub(crate) fn allocated(&self) -> u64 {
        let most = (self.pages * page_size()) as u64;
        let blocks = self.fd.stat().map(|stat| u64::try_from(stat.st_blocks));
        blocks.map_or(most, |blocks| blocks.map_or(most, |blocks| blocks * 512))
    }
}

/// Another open file description of the same file, for reading only, whose offset is nobody else's. Fails where there
/// is no `/proc`, or the file may not be opened (any more).
pub(super) fn reopen(fd: impl AsFd) -> io::Result<OwnedFd> {
    call("open")?;
    // A lease that somebody took is no reason to wait for him.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let own = rustix::fs::open(link_to(&fd), flags, Mode::empty())?;
    // Whatever is mounted at `/proc`, bytes of another file must never pass for those of this one.
    let file_of = |fd: BorrowedFd<'_>| {
        call("fstat")?;
        io::Result::Ok(rustix::fs::fstat(fd).map(|stat| (stat.st_dev, stat.st_ino))?)
    };
    if file_of(own.as_fd())? != file_of(fd.as_fd())? {
        return Err(io::Error::other("/proc leads to another file"));
    }
    Ok(own)
}

/// The path by which the calling thread reaches an open file of its own. `/proc/self/fd` has those of the process's
/// first thread, which are others where a thread has a file table to itself.
pub(super) fn link_to(fd: impl AsFd) -> String {
    format!("/proc/thread-self/fd/{}", fd.as_fd().as_raw_fd())
}

/// The byte ranges below `len` that are not holes. Moves the offset of the open file description, so it has to be our own.
pub(super) fn data_extents(fd: impl AsFd, len: u64) -> io::Result<Vec<Range<u64>>> {
    let seek = |from| {
        call("lseek")?;
        io::Result::Ok(rustix::fs::seek(&fd, from))
    };
    let mut extents = Vec::new();
    let mut from = 0;
    while from < len {
        let start = match seek(SeekFrom::Data(from))? {
            Err(Errno::NXIO) => break,
            start => start?,
        };
        let end = seek(SeekFrom::Hole(start))??;
        if start < from || end <= start {
            // A hole was punched in between, or the file system (FUSE) does not know what it says.
            return Err(Errno::INVAL.into());
        }
        if start >= len {
            break;
        }
        extents.push(start..end.min(len));
        from = end;
    }
    Ok(extents)
}
