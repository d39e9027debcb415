//! Bytes of files: a private copy that nobody else can change, the file itself in place, or a file of another
//! process that nobody can change.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags, SealFlags};
use rustix::io::Errno;

use super::file::{MemoryFile, UNCHANGING, data_extents};
use crate::error;
use crate::pages::{addressable, too_long, whole_pages};
use crate::sys::call;

/// Files below this size are copied also where they could be cloned: a clone costs a file of its own
/// and, when it is read, page cache of its own; this much is copied in less time.
const CLONE_FROM: u64 = 1 << 20;

/// The file system of memfds that are not in huge pages.
const TMPFS_MAGIC: rustix::fs::FsWord = 0x0102_1994;

/// Read at once: small enough to stay in the second-level cache between the read and the write.
const CHUNK: usize = 256 * 1024;

/// The bytes of `file` as they are now, in a file of our own, and their number.
///
/// A regular file is taken whole, whatever its offset; what has no size (pipes, sockets, `/proc`)
/// is read from where it stands to its end.
pub(crate) fn copy_of(file: &File, name: Option<&CStr>) -> io::Result<(MemoryFile, usize)> {
    let metadata = file.metadata()?;
    if metadata.is_dir() {
        return Err(io::Error::new(io::ErrorKind::IsADirectory, "it is a directory"));
    }
    if !readable(file)? {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "it is not open for reading; open it with `read(true)`",
        ));
    }
    if !metadata.is_file() || metadata.len() == 0 {
        return stream(file, name);
    }
    if metadata.len() >= CLONE_FROM
        && let Some(clone) = clone_of(file)
    {
        return Ok(clone);
    }
    let len = addressable(metadata.len())?;
    let pages = whole_pages(len).ok_or_else(|| too_long(metadata.len()))?;
    let mut copy = MemoryFile::create(pages, pages, name)?;
    let mut buffer = vec![0; CHUNK.min(len)];
    for extent in data_extents(file, metadata.len()) {
        let mut offset = addressable(extent.start)?;
        let end = addressable(extent.end)?;
        while offset < end {
            let wanted = buffer.len().min(end - offset);
            call("pread")?;
            match file.read_at(&mut buffer[..wanted], offset as u64) {
                Ok(0) => {
                    // Shortened meanwhile, or one of the files in `/sys` that name a length they do not have.
                    copy.set_pages(whole_pages(offset).unwrap_or(0))?;
                    return Ok((copy, offset));
                }
                Ok(read) => {
                    copy.write_at(&buffer[..read], offset)?;
                    offset += read;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok((copy, len))
}

/// All that `reader` gives until its end, and the number of bytes.
pub(crate) fn stream(mut reader: impl Read, name: Option<&CStr>) -> io::Result<(MemoryFile, usize)> {
    let mut copy = MemoryFile::create(0, 0, name)?;
    let mut buffer = vec![0; CHUNK];
    let mut len = 0_usize;
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => {
                copy.write_at(&buffer[..read], len)?;
                len = len.checked_add(read).ok_or_else(|| too_long(u64::MAX))?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    copy.set_pages(whole_pages(len).ok_or_else(|| too_long(len as u64))?)?;
    Ok((copy, len))
}

/// `file` itself, and its length.
pub(crate) fn borrowed(file: &File) -> io::Result<(MemoryFile, usize)> {
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "only a regular file can be mapped"));
    }
    if !readable(file)? {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "it is not open for reading; open it with `read(true)`",
        ));
    }
    let len = addressable(metadata.len())?;
    let pages = whole_pages(len).ok_or_else(|| too_long(metadata.len()))?;
    Ok((MemoryFile::borrow(file.as_fd(), pages)?, len))
}

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
fn clone_of(file: &File) -> Option<(MemoryFile, usize)> {
    call("ficlone").ok()?;
    let path = std::fs::read_link(PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))).ok()?;
    let flags = OFlags::TMPFILE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
    let clone: OwnedFd = rustix::fs::open(path.parent()?, flags, Mode::RUSR).ok()?;
    rustix::fs::ioctl_ficlone(&clone, file).ok()?;
    let len = addressable(u64::try_from(rustix::fs::fstat(&clone).ok()?.st_size).ok()?).ok()?;
    let mut clone = MemoryFile::adopt(clone);
    clone.set_pages(whole_pages(len)?).ok()?;
    Some((clone, len))
}

fn readable(file: impl AsFd) -> Result<bool, Errno> {
    let mode = rustix::fs::fcntl_getfl(file)?;
    Ok(mode & OFlags::RWMODE != OFlags::WRONLY && !mode.contains(OFlags::PATH))
}
