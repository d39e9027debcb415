//! Bytes of files: a private copy that nobody else can change, the file itself in place, or a section of another
//! process.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::windows::fs::FileExt;
use std::os::windows::io::OwnedHandle;

use super::file::MemoryFile;
use super::page_size;
use super::section::{self, View};
use crate::error;
use crate::pages::{addressable, too_long, whole_pages};
use crate::store::is_zero;
use crate::sys::call;

/// Read at once: small enough to stay in the second-level cache between the read and the write.
const CHUNK: usize = 256 * 1024;

/// The bytes of `file` as they are now, in a section of our own, and their number.
///
/// A regular file is taken whole, whatever its offset; what has no size (pipes, consoles) is read to its end.
pub(crate) fn copy_of(file: &File, name: Option<&CStr>) -> io::Result<(MemoryFile, usize)> {
    if !section::is_on_disk(file) {
        return stream(file, name).map_err(unreadable);
    }
    let metadata = file.metadata()?;
    if metadata.is_dir() {
        return Err(io::Error::new(io::ErrorKind::IsADirectory, "it is a directory"));
    }
    let len = addressable(metadata.len())?;
    let pages = whole_pages(len).ok_or_else(|| too_long(metadata.len()))?;
    keeping_offset(file, || {
        probe(file)?;
        let mut copy = MemoryFile::create(pages, pages, name)?;
        let mut buffer = vec![0; CHUNK.min(len)];
        let mut offset = 0;
        while offset < len {
            let wanted = buffer.len().min(len - offset);
            match read_at(file, &mut buffer[..wanted], offset)? {
                0 => {
                    // Shortened meanwhile.
                    copy.set_pages(whole_pages(offset).unwrap_or(0))?;
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

/// All that `reader` gives until its end, and the number of bytes.
pub(crate) fn stream(mut reader: impl Read, name: Option<&CStr>) -> io::Result<(MemoryFile, usize)> {
    // A section has to be given its length when it is made.
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

/// `file` itself, and its length.
pub(crate) fn borrowed(file: &File) -> io::Result<(MemoryFile, usize)> {
    if !section::is_on_disk(file) || !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "only a regular file can be mapped"));
    }
    let bytes = file.metadata()?.len();
    let len = addressable(bytes)?;
    let pages = whole_pages(len).ok_or_else(|| too_long(bytes))?;
    let whole = len / page_size() * page_size();
    keeping_offset(file, || {
        probe(file)?;
        let body = (whole > 0).then(|| section::of_file(file, whole)).transpose()?;
        let tail = if whole < len {
            let mut page = vec![0; len - whole];
            let mut filled = 0;
            while filled < page.len() {
                match read_at(file, &mut page[filled..], whole + filled)? {
                    0 => break,
                    read => filled += read,
                }
            }
            let tail = MemoryFile::create(1, 1, None)?;
            tail.write_at(&page, 0)?;
            tail.into_section()
        } else {
            None
        };
        Ok((MemoryFile::adopt(body, tail, pages), len))
    })
}

/// The section of another process in place, of which `len` bytes can be read.
pub(crate) fn received(section: OwnedHandle, len: usize) -> io::Result<(MemoryFile, usize)> {
    let pages = whole_pages(len).ok_or_else(|| too_long(len as u64))?;
    if pages == 0 {
        return Ok((MemoryFile::adopt(None, None, 0), 0));
    }
    let committed = View::readable(&section)?.committed()?;
    if committed < pages * page_size() {
        return Err(error::invalid(format!(
            "{len} bytes are more than the section has, of which {committed} can be read"
        )));
    }
    Ok((MemoryFile::adopt(Some(section), None, pages), len))
}

/// Runs `read` and puts the offset back that it moves, for other handles of the same open file share it.
fn keeping_offset<T>(mut file: &File, read: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let offset = file.stream_position()?;
    let result = read();
    file.seek(SeekFrom::Start(offset))?;
    result
}

/// Whether the file can be read at all.
fn probe(file: &File) -> io::Result<()> {
    read_at(file, &mut [0], 0).map(drop).map_err(unreadable)
}

fn unreadable(error: io::Error) -> io::Error {
    if error.kind() != io::ErrorKind::PermissionDenied {
        return error;
    }
    io::Error::new(error.kind(), "it is not open for reading; open it with `read(true)`")
}

fn read_at(file: &File, buffer: &mut [u8], offset: usize) -> io::Result<usize> {
    loop {
        call("ReadFile")?;
        match file.seek_read(buffer, offset as u64) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// Reads until `buffer` is full or the reader at its end.
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

/// Writes what is not zero of `bytes`: zeroes that were never written take no memory.
fn write_data(copy: &MemoryFile, bytes: &[u8], mut offset: usize) -> io::Result<()> {
    for page in bytes.chunks(page_size()) {
        if !is_zero(page) {
            copy.write_at(page, offset)?;
        }
        offset += page.len();
    }
    Ok(())
}
