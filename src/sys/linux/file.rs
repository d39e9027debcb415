//! What Linux does with files besides what all Unix systems do: creating memfds, sealing them, and finding their holes.
//!
//! A file that can change is kept from forked children until it is finished or sealed. `unix/file.rs` writes to files,
//! and `source.rs` copies other files.

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

/// The seals under which nothing can change the bytes or the length of a file.
///
/// `F_SEAL_FUTURE_WRITE` is not enough: a mapping that was made before it can still be written.
pub(super) const UNCHANGING: SealFlags = SealFlags::WRITE.union(SealFlags::SHRINK).union(SealFlags::GROW);

/// Whether other code also uses the open file description of a file, and so its offset.
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

/// Makes an empty memfd, which is kept from forked children until it is finished or sealed.
pub(in crate::sys) fn new_file(name: &CStr) -> io::Result<(Descriptor, Kind)> {
    call("memfd_create")?;
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Linux before 6.3 does not support MFD_NOEXEC_SEAL and returns EINVAL.
    let fd = match rustix::fs::memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL) {
        Err(Errno::INVAL) => rustix::fs::memfd_create(name, flags),
        result => result,
    }?;
    let fd = match Process::current() {
        Ok(_) => Descriptor::kept_from_children(fd),
        Err(Errno::NOMEM) => Err(Errno::NOMEM),
        // A child cannot be distinguished from its parent on this kernel. So no view is written in place, and the file
        // is sealed soon.
        Err(_) => Descriptor::new(fd),
    }?;
    Ok((fd, Kind::own()))
}

/// Duplicates the descriptor of a file that other code owns.
pub(in crate::sys) fn borrowed_file(fd: BorrowedFd<'_>) -> io::Result<(Descriptor, Kind)> {
    call("dup")?;
    Ok((Descriptor::new(fd.try_clone_to_owned()?)?, Kind::borrowed()))
}

impl MemoryFile {
    /// Makes a file of `fd`, which refers to a file of `pages` pages that has its bytes and that only memsnap has.
    pub(super) fn adopt(fd: OwnedFd, pages: usize) -> io::Result<Self> {
        Self::on_disk(Descriptor::new(fd)?, pages, Kind::own())
    }

    /// Makes a file of a descriptor that another process sent.
    ///
    /// The file must have `pages` pages and the seals [`UNCHANGING`]. Opens the file again if possible, so that its
    /// offset is not shared.
    pub(super) fn receive(fd: OwnedFd, pages: usize) -> io::Result<Self> {
        if let Ok(fd) = reopen(fd.as_fd()) {
            return Ok(Self::new(Descriptor::new(fd)?, pages, Kind::own()));
        }
        call("fcntl")?;
        rustix::io::fcntl_setfd(&fd, FdFlags::CLOEXEC)?;
        Ok(Self::new(Descriptor::new(fd)?, pages, Kind::borrowed()))
    }

    /// Makes the kernel enforce that the bytes and the length of the file never change.
    ///
    /// The file must never have been mapped for writing. The seals guard against mistakes. Only [`share`](Self::share)
    /// depends on them, and it checks them itself. If the kernel refuses (a file on a disk has no seals), the file
    /// stays as it is.
    pub(crate) fn finish(&self) {
        if !self.seal()
            && let Ok(fd) = self.fd()
        {
            let fixed = SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
            let _ = rustix::fs::fcntl_add_seals(fd, fixed | SealFlags::FUTURE_WRITE);
        }
        // Forked children need the files of snapshots, even if a filter refuses seals.
        self.fd.leave_to_children();
    }

    /// Makes the kernel guarantee that nothing writes to the file any more. Returns whether it does.
    ///
    /// The kernel refuses while the file is mapped for writing or one of its pages is pinned. It waits up to 150 ms for
    /// pinned pages to be released.
    pub(crate) fn seal(&self) -> bool {
        let seal = |fd| rustix::fs::fcntl_add_seals(fd, UNCHANGING | SealFlags::SEAL).is_ok();
        let sealed = call("fcntl").is_ok() && self.fd().is_ok_and(seal);
        if sealed {
            self.fd.leave_to_children();
        }
        sealed
    }

    /// Returns whether [`seal`](Self::seal) may succeed for a file that was mapped for writing.
    ///
    /// Returns `false` while the process has pinned memory, and if other code closed the descriptor.
    pub(crate) fn may_be_sealed(&self) -> bool {
        self.fd().is_ok() && !has_pinned_memory()
    }

    /// Makes the pages of `range` a hole: they are zero, and their memory is given back.
    pub(crate) fn punch(&self, range: PageRange) -> io::Result<()> {
        let bytes = range.bytes();
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        call("fallocate")?;
        Ok(rustix::fs::fallocate(self.fd()?, flags, bytes.start as u64, bytes.len() as u64)?)
    }

    /// Returns a handle for other processes.
    ///
    /// Returns `None` unless the kernel guarantees that no byte of the file changes.
    pub(crate) fn share(&self) -> io::Result<Option<OwnedFd>> {
        call("fcntl")?;
        // A file on a disk has no seals, so this call fails for it.
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

    /// Returns the pages that may contain bytes other than zero.
    pub(crate) fn data(&self) -> PageSet {
        if self.kind.is_borrowed() {
            // A search for holes would move the shared offset, and would wait for other code that reads at it.
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

    /// Returns the number of bytes of memory or disk that the file takes.
    ///
    /// Returns the length of the file if the kernel does not report that.
    pub(crate) fn allocated(&self) -> u64 {
        let most = (self.pages * page_size()) as u64;
        let blocks = self.fd.stat().map(|stat| u64::try_from(stat.st_blocks));
        blocks.map_or(most, |blocks| blocks.map_or(most, |blocks| blocks * 512))
    }
}

/// Opens the file of `fd` again for reading, so that the offset is not shared.
///
/// Fails without `/proc`, and if the file may not be opened.
pub(super) fn reopen(fd: impl AsFd) -> io::Result<OwnedFd> {
    call("open")?;
    // With NONBLOCK, the call fails at once instead of waiting for the holder of a lease on the file.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let own = rustix::fs::open(link_to(&fd), flags, Mode::empty())?;
    // Something else may be mounted at `/proc`. So this compares the files: another file would have other bytes.
    let file_of = |fd: BorrowedFd<'_>| {
        call("fstat")?;
        io::Result::Ok(rustix::fs::fstat(fd).map(|stat| (stat.st_dev, stat.st_ino))?)
    };
    if file_of(own.as_fd())? != file_of(fd.as_fd())? {
        return Err(io::Error::other("/proc leads to another file"));
    }
    Ok(own)
}

/// Returns the path in `/proc` of a descriptor of the calling thread.
///
/// `/proc/self/fd` contains the descriptors of the first thread of the process, which differ if a thread has a file
/// table of its own.
pub(super) fn link_to(fd: impl AsFd) -> String {
    format!("/proc/thread-self/fd/{}", fd.as_fd().as_raw_fd())
}

/// Returns the byte ranges below `len` that are not holes.
///
/// Moves the offset, so no other code may use the open file description.
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
            // A hole was punched between the calls, or the file system (FUSE) returns inconsistent offsets.
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
