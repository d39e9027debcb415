//! Bytes of files: a private copy that nobody else can change, or the file itself in place.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::file::MemoryFile;
use crate::pages::{addressable, too_long, whole_pages};
use crate::sys::call;
use crate::sys::system::{NOT_OPEN, clone_of, data_extents};

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
    if let Some(clone) = clone_of(file, metadata.len()) {
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

pub(in crate::sys) fn readable(file: impl AsFd) -> Result<bool, Errno> {
    let mode = rustix::fs::fcntl_getfl(file)?;
    Ok(mode & OFlags::RWMODE != OFlags::WRONLY && !mode.intersects(NOT_OPEN))
}
