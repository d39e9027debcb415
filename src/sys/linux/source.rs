//! What other processes send, and copies of files that share their blocks.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags, SealFlags};
use rustix::io::Errno;

use super::file::{UNCHANGING, data_extents, link_to, reopen};
use crate::error;
use crate::pages::{addressable, too_long, whole_pages};
use crate::sys::call;
use crate::sys::unix::source::readable;
use crate::sys::unix::{MemoryFile, page_size};

/// Files below this size are copied also where they could be cloned: a clone costs a file of its own
/// and, when it is read, page cache of its own; this much is copied in less time.
const CLONE_FROM: u64 = 1 << 20;

/// The file system of memfds that are not in huge pages.
const TMPFS_MAGIC: rustix::fs::FsWord = 0x0102_1994;

/// The memfd of another process in place, and its length, if the kernel guarantees that neither can change.
pub(crate) fn received(fd: OwnedFd) -> io::Result<(MemoryFile, usize)> {
    if !readable(&fd)? {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "it is not open for reading; the sender has to open it so",
        ));
    }
    call("fcntl")?;
    let seals = match rustix::fs::fcntl_get_seals(&fd) {
        Err(Errno::INVAL) => Err(error::invalid(
            "it is not a memfd, so that nothing keeps its bytes from changing; \
             the sender has to copy them into a memfd and seal that"
                .to_owned(),
        )),
        seals => Ok(seals?),
    }?;
    if !seals.contains(UNCHANGING) {
        return Err(error::invalid(unsealed(seals)));
    }
    if rustix::fs::fstatfs(&fd)?.f_type != TMPFS_MAGIC {
        return Err(error::invalid(
            "the memfd is in huge pages, which cannot be mapped page by page; \
             the sender has to create it without MFD_HUGETLB"
                .to_owned(),
        ));
    }
    let bytes = u64::try_from(rustix::fs::fstat(&fd)?.st_size).unwrap_or(u64::MAX);
    let len = addressable(bytes)?;
    let pages = whole_pages(len).ok_or_else(|| too_long(bytes))?;
    Ok((MemoryFile::receive(fd, pages)?, len))
}

/// What is wrong with a memfd under no more than these `seals`.
fn unsealed(seals: SealFlags) -> String {
    let missing: Vec<_> = UNCHANGING.difference(seals).iter_names().map(|(name, _)| name).collect();
    let future = if seals.contains(SealFlags::FUTURE_WRITE) {
        "F_SEAL_FUTURE_WRITE is not enough, for mappings made before it can still be written; "
    } else {
        ""
    };
    format!(
        "the memfd lacks F_SEAL_{}: its bytes or its length could change; {future}\
         the sender has to unmap it where it can be written, and add F_SEAL_WRITE, F_SEAL_SHRINK and F_SEAL_GROW",
        missing.join(" and F_SEAL_")
    )
}

/// A copy that shares its blocks with `file`, where the file system makes such (XFS, Btrfs, bcachefs),
/// in an unnamed file beside it that only we have open.
pub(in crate::sys) fn clone_of(file: &File, len: u64) -> Option<(MemoryFile, usize)> {
    if len < CLONE_FROM {
        return None;
    }
    call("ficlone").ok()?;
    let path = std::fs::read_link(link_to(file)).ok()?;
    let flags = OFlags::TMPFILE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
    let clone: OwnedFd = rustix::fs::open(path.parent()?, flags, Mode::RUSR).ok()?;
    rustix::fs::ioctl_ficlone(&clone, file).ok()?;
    let len = addressable(u64::try_from(rustix::fs::fstat(&clone).ok()?.st_size).ok()?).ok()?;
    let pages = whole_pages(len)?;
    rustix::fs::ftruncate(&clone, (pages * page_size()) as u64).ok()?;
    // It cannot be sealed. So nobody is to inherit a descriptor by which it can be written.
    Some((MemoryFile::adopt(reopen(&clone).ok()?, pages).ok()?, len))
}

/// An open file description of our own of `file`, and the byte ranges below `len` that are not holes.
///
/// To ask for holes moves the offset (`SEEK_DATA`, `SEEK_HOLE`), and everybody who has the same description reads and
/// writes there. Bytes and holes have to come from one description: a network file system may show others in another.
pub(in crate::sys) fn with_extents(file: &File, len: u64) -> Option<(File, Vec<Range<u64>>)> {
    let own = reopen(file).ok()?;
    let extents = data_extents(&own, len).ok()?;
    Some((own.into(), extents))
}
