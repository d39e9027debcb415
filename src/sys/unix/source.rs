//! Makes the files of snapshots from other files: a copy that no other code can change, or the file itself in place.
//!
//! Decides which files are accepted and how they are read. Clones and holes are up to `system`.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, FileTypeExt};

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::file::MemoryFile;
use super::page_size;
use crate::error;
use crate::pages::{addressable, too_long, whole_pages};
use crate::sys::system::{NOT_OPEN, clone_of, with_extents};
use crate::sys::{blocks, call};
use crate::zero::is_zero;

/// The number of bytes that are read at once.
///
/// They stay in the second-level cache between the read and the write.
const CHUNK: usize = 256 * 1024;

/// Copies the current bytes of `file` to a new file, and returns it with the number of bytes.
///
/// Regular files and block devices are read from their first byte. Their offset, which other code may share, is neither
/// used nor moved. Files without an offset (pipes, sockets) are read to their end.
pub(crate) fn copy_of(file: &File, name: Option<&CStr>) -> io::Result<(MemoryFile, usize)> {
    call("fstat")?;
    let metadata = file.metadata()?;
    let kind = metadata.file_type();
    if kind.is_dir() {
        return Err(io::Error::new(io::ErrorKind::IsADirectory, "the file is a directory"));
    }
    if kind.is_char_device() {
        return Err(error::endless_device());
    }
    if !readable(file)? {
        return Err(unreadable());
    }
    if !kind.is_file() && !kind.is_block_device() {
        return stream(file, name);
    }
    let copy = if metadata.len() == 0 {
        // A block device, a file in `/proc`, or a file that is still empty. The length of the first two is unknown.
        stream(FromStart { file, offset: 0 }, name)
    } else {
        sized_copy_of(file, metadata.len(), name)
    };
    match copy {
        // Some files of the kernel have no offset and can only be read from where the last read ended (`trace_pipe`).
        Err(error) if error.raw_os_error() == Some(Errno::SPIPE.raw_os_error()) => stream(file, name),
        copy => copy,
    }
}

/// Copies a file that reports a length of `bytes` bytes. Does what [`copy_of`] does otherwise.
fn sized_copy_of(file: &File, bytes: u64, name: Option<&CStr>) -> io::Result<(MemoryFile, usize)> {
    if let Some(clone) = clone_of(file, bytes) {
        return Ok(clone);
    }
    let len = addressable(bytes)?;
    let pages = whole_pages(len).ok_or_else(|| too_long(bytes))?;
    // This comes before the file is opened again: if one descriptor is left, the copy needs it more.
    let mut copy = MemoryFile::create(pages, pages, name)?;
    let opened_anew = with_extents(file, bytes);
    let (file, extents) = match &opened_anew {
        Some((own, extents)) => (own, &extents[..]),
        None => (file, &[0..bytes][..]),
    };
    let mut buffer = vec![0; CHUNK.min(len)];
    for extent in extents {
        let mut offset = addressable(extent.start)?;
        let end = addressable(extent.end)?;
        while offset < end {
            let wanted = buffer.len().min(end - offset);
            let read = read_at(file, &mut buffer[..wanted], offset)?;
            if read == 0 {
                // The file became shorter meanwhile, or it is a file in `/sys` that reports a wrong length.
                copy.set_pages(whole_pages(offset).ok_or_else(|| too_long(bytes))?)?;
                return Ok((copy, offset));
            }
            // The copy is zero already, so zeroes need not be written. They are mostly holes that could not be searched
            // for.
            if !buffer[..read].chunks(page_size()).all(is_zero) {
                copy.write_at(&buffer[..read], offset)?;
            }
            offset += read;
        }
    }
    Ok((copy, len))
}

/// A reader of a file that begins at the first byte and leaves the offset of the file alone.
struct FromStart<'a> {
    file: &'a File,
    offset: usize,
}

impl Read for FromStart<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = read_at(self.file, buffer, self.offset)?;
        self.offset += read;
        Ok(read)
    }
}

/// Reads from byte `offset` on. Leaves the offset of `file` alone.
fn read_at(file: &File, buffer: &mut [u8], offset: usize) -> io::Result<usize> {
    match pread(file, buffer, offset) {
        // Most files that were opened with `O_DIRECT` can only be read in whole blocks.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
            blocks::read_at(buffer, offset, |blocks, offset| pread(file, blocks, offset))
        }
        result => result,
    }
}

fn pread(file: &File, buffer: &mut [u8], offset: usize) -> io::Result<usize> {
    loop {
        call("pread")?;
        match file.read_at(buffer, offset as u64) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// Copies all bytes that `reader` returns to a new file, and returns it with their number.
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

/// Returns `file` itself, to be mapped in place, and its length in bytes.
pub(crate) fn borrowed(file: &File) -> io::Result<(MemoryFile, usize)> {
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "only a regular file can be mapped"));
    }
    if !readable(file)? {
        return Err(unreadable());
    }
    let len = addressable(metadata.len())?;
    let pages = whole_pages(len).ok_or_else(|| too_long(metadata.len()))?;
    Ok((MemoryFile::borrow(file.as_fd(), pages)?, len))
}

fn unreadable() -> io::Error {
    io::Error::new(
        io::ErrorKind::PermissionDenied,
        "the file is not open for reading; open it with `read(true)`",
    )
}

/// Returns whether the bytes of the file can be read through `file`.
pub(in crate::sys) fn readable(file: impl AsFd) -> Result<bool, Errno> {
    let mode = rustix::fs::fcntl_getfl(file)?;
    Ok(mode & OFlags::RWMODE != OFlags::WRONLY && !mode.intersects(NOT_OPEN))
}
