//! Makes the files of snapshots from other files: a copy that no other code can change, or the file itself in place.
//!
//! Also accepts sections of other processes. Decides which files are accepted and how they are read.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::windows::fs::FileExt;
use std::os::windows::io::OwnedHandle;

use windows_sys::Win32::Storage::FileSystem::{FILE_TYPE_CHAR, FILE_TYPE_DISK};

use super::file::MemoryFile;
use super::page_size;
use super::section::{self, View};
use crate::error;
use crate::pages::{addressable, too_long, whole_pages};
use crate::sys::{blocks, call};
use crate::zero::is_zero;

/// The number of bytes that are read at once.
///
/// They stay in the second-level cache between the read and the write.
const CHUNK: usize = 256 * 1024;

/// `ERROR_LOCK_VIOLATION`: other code has locked these bytes.
const LOCKED: i32 = 33;

/// Copies the current bytes of `file` to a new section, and returns it with the number of bytes.
///
/// A file is read from its first byte, whatever its offset. A file without an offset (a pipe) is read to its end.
pub(crate) fn copy_of(file: &File, name: Option<&CStr>) -> io::Result<(MemoryFile, usize)> {
    match section::file_type(file) {
        FILE_TYPE_CHAR => return Err(error::endless_device()),
        FILE_TYPE_DISK => {}
        _ if !section::is_readable(file)? => return Err(unreadable()),
        _ => return stream(file, name),
    }
    let metadata = file.metadata()?;
    if metadata.is_dir() {
        return Err(io::Error::new(io::ErrorKind::IsADirectory, "the file is a directory"));
    }
    let len = addressable(metadata.len())?;
    let pages = whole_pages(len).ok_or_else(|| too_long(metadata.len()))?;
    reading(file, |file| {
        let mut copy = MemoryFile::create(pages, pages, name)?;
        let mut buffer = vec![0; CHUNK.min(len)];
        let mut offset = 0;
        while offset < len {
            let wanted = buffer.len().min(len - offset);
            match read_at(file, &mut buffer[..wanted], offset)? {
                0 => {
                    // The file became shorter meanwhile.
                    copy.set_pages(whole_pages(offset).ok_or_else(|| too_long(metadata.len()))?)?;
                    break;
                }
                read => {
                    write_data(&copy, &buffer[..read], offset)?;
                    offset += read;
                }
            }
        }
        Ok((copy, offset))
    })
}

/// Copies all bytes that `reader` returns to a new section, and returns it with their number.
pub(crate) fn stream(mut reader: impl Read, name: Option<&CStr>) -> io::Result<(MemoryFile, usize)> {
    // The length of a section has to be known when it is made, so all bytes are read first.
    let mut chunks = Vec::new();
    let mut len = 0_usize;
    loop {
        let mut chunk = vec![0; CHUNK];
        let filled = fill(&mut reader, &mut chunk)?;
        len = len.checked_add(filled).ok_or_else(|| too_long(u64::MAX))?;
        let last = filled < chunk.len();
        chunk.truncate(filled);
        chunks.push(chunk);
        if last {
            break;
        }
    }
    let pages = whole_pages(len).ok_or_else(|| too_long(len as u64))?;
    let copy = MemoryFile::create(pages, pages, name)?;
    let mut offset = 0;
    for chunk in chunks {
        copy.write_at(&chunk, offset)?;
        offset += chunk.len();
    }
    Ok((copy, len))
}

/// Returns `file` itself, to be mapped in place, and its length in bytes.
pub(crate) fn borrowed(file: &File) -> io::Result<(MemoryFile, usize)> {
    if section::file_type(file) != FILE_TYPE_DISK || !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "only a regular file can be mapped"));
    }
    let bytes = file.metadata()?.len();
    let len = addressable(bytes)?;
    let pages = whole_pages(len).ok_or_else(|| too_long(bytes))?;
    let whole = len / page_size() * page_size();
    let tail = reading(file, |file| {
        let mut page = vec![0; len - whole];
        let mut filled = 0;
        while filled < page.len() {
            match read_at(file, &mut page[filled..], whole + filled)? {
                0 => break,
                read => filled += read,
            }
        }
        Ok(page)
    })?;
    let body = (whole > 0).then(|| section::of_file(file, whole)).transpose()?;
    let tail = if tail.is_empty() {
        None
    } else {
        let page = MemoryFile::create(1, 1, None)?;
        page.write_at(&tail, 0)?;
        page.into_section()
    };
    Ok((MemoryFile::adopt(body, tail, pages), len))
}

/// Returns the section of another process, to be mapped in place. `len` bytes of it must be readable.
pub(crate) fn received(section: OwnedHandle, len: usize) -> io::Result<(MemoryFile, usize)> {
    let pages = whole_pages(len).ok_or_else(|| too_long(len as u64))?;
    if pages == 0 {
        return Ok((MemoryFile::adopt(None, None, 0), 0));
    }
    let committed = View::readable(&section)?.committed()?;
    if committed < pages * page_size() {
        return Err(error::invalid(format!(
            "only {committed} bytes of the section can be read, which is fewer than {len}"
        )));
    }
    Ok((MemoryFile::adopt(Some(section), None, pages), len))
}

/// Runs `read` with a new file object of `file`, whose offset is not shared.
///
/// Reading moves the offset of a file object, which all code with a duplicate of the handle shares. If the system
/// refuses to open the file again, or bytes of it are locked, runs `read` with `file` itself and puts the offset back
/// afterwards.
fn reading<T>(file: &File, read: impl Fn(&File) -> io::Result<T>) -> io::Result<T> {
    if !section::is_readable(file)? {
        return Err(unreadable());
    }
    if let Ok(own) = section::reopen(file) {
        match read(&own) {
            // Bytes that are locked can only be read through the file object that holds the lock.
            Err(error) if error.raw_os_error() == Some(LOCKED) => {}
            result => return result,
        }
    }
    let mut shared = file;
    let offset = shared.stream_position()?;
    let result = read(file);
    shared.seek(SeekFrom::Start(offset))?;
    result
}

fn unreadable() -> io::Error {
    io::Error::new(
        io::ErrorKind::PermissionDenied,
        "the file is not open for reading; open it with `read(true)`",
    )
}

/// Reads from byte `offset` on, which moves the offset of `file`.
fn read_at(file: &File, buffer: &mut [u8], offset: usize) -> io::Result<usize> {
    match seek_read(file, buffer, offset) {
        // Files that were opened with `FILE_FLAG_NO_BUFFERING` can only be read in whole blocks.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
            blocks::read_at(buffer, offset, |blocks, offset| seek_read(file, blocks, offset))
        }
        result => result,
    }
}

fn seek_read(file: &File, buffer: &mut [u8], offset: usize) -> io::Result<usize> {
    loop {
        call("ReadFile")?;
        match file.seek_read(buffer, offset as u64) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// Reads until `buffer` is full or the reader is at its end.
fn fill(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match reader.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Writes the pages of `bytes` that are not all zero. Pages that are never written take no memory.
fn write_data(copy: &MemoryFile, bytes: &[u8], mut offset: usize) -> io::Result<()> {
    for page in bytes.chunks(page_size()) {
        if !is_zero(page) {
            copy.write_at(page, offset)?;
        }
        offset += page.len();
    }
    Ok(())
}
