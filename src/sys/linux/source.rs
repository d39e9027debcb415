//! Files from elsewhere: memfds that other processes send, and copies of files that share blocks with the original.
//!
//! Decides which memfds are accepted. Copies by reading are up to `unix/source.rs`.

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

/// The least size in bytes of a file that is cloned rather than copied.
///
/// A clone needs its own file and, when it is read, its own page cache. Copying a smaller file takes less time.
const CLONE_FROM: u64 = 1 << 20;

/// The type of the file system of memfds, unless they are in huge pages.
const TMPFS_MAGIC: rustix::fs::FsWord = 0x0102_1994;

/// Returns the memfd of another process, to be mapped in place, and its length in bytes.
///
/// Fails unless the kernel guarantees that neither the bytes nor the length can change.
pub(crate) fn received(fd: OwnedFd) -> io::Result<(MemoryFile, usize)> {
    if !readable(&fd)? {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "the descriptor is not open for reading; the sender has to open the memfd for reading",
        ));
    }
    call("fcntl")?;
    let seals = match rustix::fs::fcntl_get_seals(&fd) {
        Err(Errno::INVAL) => Err(error::invalid(
            "the descriptor is not a memfd, so its bytes could change; \
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

/// Returns the message for a memfd that has only these `seals`.
fn unsealed(seals: SealFlags) -> String {
    let missing: Vec<_> = UNCHANGING.difference(seals).iter_names().map(|(name, _)| name).collect();
    let future = if seals.contains(SealFlags::FUTURE_WRITE) {
        "F_SEAL_FUTURE_WRITE is not enough, since mappings made before it can still be written; "
    } else {
        ""
    };
    format!(
        "the memfd lacks F_SEAL_{}: its bytes or its length could change; {future}\
         the sender has to remove its writable mappings, and add F_SEAL_WRITE, F_SEAL_SHRINK and F_SEAL_GROW",
        missing.join(" and F_SEAL_")
    )
}

/// Returns a copy that shares its blocks with `file`, and its length in bytes.
///
/// Returns `None` for a small file, if the file system cannot share blocks (XFS, Btrfs and bcachefs can), and after any
/// error. The copy is an unnamed file in the same directory, and only memsnap has it open.
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
    // The file cannot be sealed. It is opened again for reading, so that no child inherits a descriptor that can write
    // to it.
    Some((MemoryFile::adopt(reopen(&clone).ok()?, pages).ok()?, len))
}

/// Opens `file` again, and returns it with the byte ranges below `len` that are not holes.
///
/// Searching for holes (`SEEK_DATA`, `SEEK_HOLE`) moves the offset of the open file description, which other code may
/// share. So the search needs a description of its own. The bytes have to be read through the same description: on a
/// network file system, another description may show other bytes.
pub(in crate::sys) fn with_extents(file: &File, len: u64) -> Option<(File, Vec<Range<u64>>)> {
    let own = reopen(file).ok()?;
    let extents = data_extents(&own, len).ok()?;
    Some((own.into(), extents))
}
