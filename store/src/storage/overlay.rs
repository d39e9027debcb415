//! `Overlay`: the storage of a database that is open for reading. Writes stay in memory.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::ReadFile;

/// The length of a page. Pages that were written are kept in memory.
const PAGE: usize = 4096;

/// The storage of a database over a file that is never written.
///
/// redb writes to a database when it is opened: it marks the database as open, and recovers it if a writer crashed.
/// Here, these writes stay in memory. So a database can be read without permission to write, and by several readers at
/// a time.
#[derive(Debug)]
pub(super) struct Overlay {
    file: Box<dyn ReadFile>,
    changes: Mutex<Changes>,
}

/// The writes of the database.
#[derive(Debug)]
struct Changes {
    /// The length of the database.
    len: u64,
    /// The bytes of the file before this offset are part of the database.
    ///
    /// Later bytes are zero: the database became shorter and then longer.
    file_len: u64,
    /// The pages that were written, by index.
    pages: BTreeMap<u64, Box<[u8; PAGE]>>,
}

impl Overlay {
    /// Returns a database with the bytes of `file`.
    pub(super) fn new(file: Box<dyn ReadFile>) -> io::Result<Self> {
        let len = file.len()?;
        Ok(Self { file, changes: Mutex::new(Changes { len, file_len: len, pages: BTreeMap::new() }) })
    }

    /// Returns the changes. They are valid also after a panic of another thread.
    fn changes(&self) -> MutexGuard<'_, Changes> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads bytes of the file. Bytes at or after `end` are zero.
    fn read_file(&self, end: u64, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let there =
            usize::try_from(end.saturating_sub(offset)).map_or(out.len(), |there| there.min(out.len()));
        let (read, zero) = out.split_at_mut(there);
        zero.fill(0);
        self.file.read_exact_at(read, offset)
    }
}

/// Splits a range into parts of pages: the index of the page, the offset in it, and the length.
fn parts(offset: u64, len: usize) -> impl Iterator<Item = (u64, usize, usize)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = offset + done as u64;
        #[expect(clippy::cast_possible_truncation, reason = "the remainder is less than a page")]
        let within = (at % PAGE as u64) as usize;
        let part = (PAGE - within).min(len - done);
        done += part;
        (part > 0).then_some((at / PAGE as u64, within, part))
    })
}

impl redb::StorageBackend for Overlay {
    fn len(&self) -> io::Result<u64> {
        Ok(self.changes().len)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let changes = self.changes();
        check(offset, out.len(), changes.len)?;
        let pages = offset / PAGE as u64..(offset + out.len() as u64).div_ceil(PAGE as u64);
        if changes.pages.range(pages).next().is_none() {
            return self.read_file(changes.file_len, offset, out);
        }
        let mut out = out;
        for (page, within, len) in parts(offset, out.len()) {
            let (part, rest) = std::mem::take(&mut out).split_at_mut(len);
            match changes.pages.get(&page) {
                Some(bytes) => part.copy_from_slice(&bytes[within..within + len]),
                None => self.read_file(changes.file_len, page * PAGE as u64 + within as u64, part)?,
            }
            out = rest;
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut changes = self.changes();
        if len < changes.len {
            changes.file_len = changes.file_len.min(len);
            // Pages after the end are dropped. In the last page, bytes after the end become zero.
            drop(changes.pages.split_off(&len.div_ceil(PAGE as u64)));
            for (page, within, _) in parts(len, 1).filter(|part| part.1 > 0) {
                if let Some(bytes) = changes.pages.get_mut(&page) {
                    bytes[within..].fill(0);
                }
            }
        }
        changes.len = len;
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut changes = self.changes();
        check(offset, data.len(), changes.len)?;
        let mut data = data;
        for (page, within, len) in parts(offset, data.len()) {
            let (part, rest) = data.split_at(len);
            if let Some(bytes) = changes.pages.get_mut(&page) {
                bytes[within..within + len].copy_from_slice(part);
            } else {
                let mut bytes = Box::new([0; PAGE]);
                if len < PAGE {
                    self.read_file(changes.file_len, page * PAGE as u64, &mut bytes[..])?;
                }
                bytes[within..within + len].copy_from_slice(part);
                changes.pages.insert(page, bytes);
            }
            data = rest;
        }
        Ok(())
    }
}

/// Checks that a range ends at or before the end of the database.
fn check(offset: u64, len: usize, end: u64) -> io::Result<()> {
    match offset.checked_add(len as u64) {
        Some(last) if last <= end => Ok(()),
        _ => Err(io::Error::new(
            ErrorKind::UnexpectedEof,
            format!("{len} bytes at {offset} are not within a database of {end} bytes"),
        )),
    }
}
