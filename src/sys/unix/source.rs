//! Bytes of files: a private copy that nobody else can change, or the file itself in place.

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

/// Read at once: small enough to stay in the second-level cache between the read and the write.
const CHUNK: usize = 256 * 1024;

/// The bytes of `file` as they are now, in a file of our own, and their number.
///
/// Regular files and block devices are read from their first byte, and the offset, which others may share, is neither
/// used nor moved. What has no offset (pipes, sockets) is read to its end.
pub(crate) fn copy_of(file: &File, name: Option<&CStr>) -> io::Result<(MemoryFile, usize)> {
    call("fstat")?;
    let metadata = file.metadata()?;
    let kind = metadata.file_type();
    if kind.is_dir() {
        return Err(io::Error::new(io::ErrorKind::IsADirectory, "it is a directory"));
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
        // A block device, a file in `/proc`, or one that somebody is about to write to.
        stream(FromStart { file, offset: 0 }, name)
    } else {
        sized_copy_of(file, metadata.len(), name)
    };
    match copy {
        // Some files of the kernel's own can only be read on, and have no offset (`trace_pipe`).
        Err(error) if error.raw_os_error() == Some(Errno::SPIPE.raw_os_error()) => stream(file, name),
        copy => copy,
    }
}

/// The same of a file that says that it has `bytes` bytes.
fn sized_copy_of(file: &File, bytes: u64, name: Option<&CStr>) -> io::Result<(MemoryFile, usize)> {
    if let Some(clone) = clone_of(file, bytes) {
        return Ok(clone);
    }
    let len = addressable(bytes)?;
    let pages = whole_pages(len).ok_or_else(|| too_long(bytes))?;
    // First, since the last descriptor is better spent on this.
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
                // Shortened meanwhile, or one of the files in `/sys` that name a length they do not have.
                copy.set_pages(whole_pages(offset).ok_or_else(|| too_long(bytes))?)?;
                return Ok((copy, offset));
            }
            // Zeroes are there already. Of holes that could not be looked for, these are most.
            if !buffer[..read].chunks(page_size()).all(is_zero) {
                copy.write_at(&buffer[..read], offset)?;
            }
            offset += read;
        }
    }
    Ok((copy, len))
}

/// Reads a file from its first byte on, wherever its offset is.
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

/// Reads what there is at `offset`, and leaves the offset of `file` alone.
fn read_at(file: &File, buffer: &mut [u8], offset: usize) -> io::Result<usize> {
    match pread(file, buffer, offset) {
        // Opened with `O_DIRECT`, most files can only be read in whole blocks.
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
        return Err(unreadable());
    }
    let len = addressable(metadata.len())?;
    let pages = whole_pages(len).ok_or_else(|| too_long(metadata.len()))?;
    Ok((MemoryFile::borrow(file.as_fd(), pages)?, len))
}

fn unreadable() -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, "it is not open for reading; open it with `read(true)`")
}

pub(in crate::sys) fn readable(file: impl AsFd) -> Result<bool, Errno> {
    let mode = rustix::fs::fcntl_getfl(file)?;
    Ok(mode & OFlags::RWMODE != OFlags::WRONLY && !mode.intersects(NOT_OPEN))
}
