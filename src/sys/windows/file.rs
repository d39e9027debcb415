//! The files that mappings show: sections of the page file, and of files that other code has.
//!
//! Decides who may write to a section, and until when. Copies of files are up to `source.rs`, and the calls into the
//! system are in `section.rs`.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io;
use std::os::windows::io::OwnedHandle;
use std::sync::{Mutex, MutexGuard, PoisonError};

use windows_sys::Win32::System::Memory::{FILE_MAP_READ, SECTION_MAP_EXECUTE};

use super::section::{self, View};
use super::{Mapping, page_size};
use crate::pages::{PageRange, PageSet};

/// The most pages that a file can have room for, if it has room for more pages than it is made with.
///
/// The system uses 8 bytes for each page when such a section is made.
const MOST_ROOM: usize = 1 << 22;

/// A file of `pages` whole pages.
///
/// Invariant: if `own` is set and `writer` is `None`, the bytes of the file never change again, once no mapping is left
/// through which it was written. No other code ever had the right to write.
pub(crate) struct MemoryFile {
    /// A section that can be read or mapped privately; `None` if the file has no whole page.
    body: Option<OwnedHandle>,
    /// A section with a copy of the last page, if the file belongs to other code and ends inside that page.
    ///
    /// A view of the file itself cannot be longer than the file.
    tail: Option<OwnedHandle>,
    pages: usize,
    /// The number of committed pages, at least `pages`.
    committed: usize,
    /// The right to write; `None` if the file cannot be written any more.
    writer: Mutex<Option<Writer>>,
    /// Whether no other code ever had the right to write.
    own: bool,
}

/// The right to write to a section of `pages` pages.
struct Writer {
    section: OwnedHandle,
    pages: usize,
    view: Option<View>,
}

impl Writer {
    /// Returns a view to write to, which is mapped at the first use.
    fn view(&mut self) -> io::Result<&View> {
        let view = match self.view.take() {
            Some(view) => view,
            None => View::writable(&self.section)?,
        };
        Ok(self.view.insert(view))
    }
}

impl MemoryFile {
    /// Makes a file of `pages` pages of zeroes. It can become up to `room` pages long.
    ///
    /// The pages count against the commit limit, and take no memory until they are written.
    pub(crate) fn create(pages: usize, room: usize, _name: Option<&CStr>) -> io::Result<Self> {
        let room = room.max(pages);
        if room == 0 {
            return Ok(Self::of(None, None, 0, true));
        }
        if room > pages.max(MOST_ROOM) {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                format!("a file cannot have room for {room} pages in advance: the most is {MOST_ROOM} pages"),
            ));
        }
        // The section has one page more than is ever committed: Wine 10 does not record a commitment up to the very
        // end.
        let reserved = room + usize::from(room > pages);
        let len = reserved.checked_mul(page_size()).ok_or(io::ErrorKind::OutOfMemory)?;
        let section = section::create(len, room > pages)?;
        let body = section::duplicate(&section, FILE_MAP_READ | SECTION_MAP_EXECUTE)?;
        let mut file = Self::of(Some(body), None, pages, true);
        *file.lock() = Some(Writer { section, pages: room, view: None });
        if room > pages {
            (file.pages, file.committed) = (0, 0);
            file.set_pages(pages)?;
        }
        Ok(file)
    }

    /// Makes a file of `pages` pages of a section that other code has.
    ///
    /// `tail` is a section with a copy of the last page.
    pub(super) fn adopt(body: Option<OwnedHandle>, tail: Option<OwnedHandle>, pages: usize) -> Self {
        Self::of(body, tail, pages, false)
    }

    /// Returns the section that can be read.
    pub(super) fn into_section(self) -> Option<OwnedHandle> {
        self.body
    }

    fn of(body: Option<OwnedHandle>, tail: Option<OwnedHandle>, pages: usize, own: bool) -> Self {
        Self { body, tail, pages, committed: pages, writer: Mutex::new(None), own }
    }

    /// Makes the file `pages` pages long, for which it must have room.
    ///
    /// Added pages are zero if they were never written.
    pub(crate) fn set_pages(&mut self, pages: usize) -> io::Result<()> {
        if pages > self.committed {
            let mut writer = self.lock();
            let writer = writer.as_mut().filter(|writer| pages <= writer.pages).ok_or_else(|| {
                let room = format!("a file without room for {pages} pages cannot grow to that length");
                io::Error::new(io::ErrorKind::Unsupported, room)
            })?;
            let added = PageRange::new(self.committed, pages).bytes();
            writer.view()?.commit(added.start, added.len())?;
        }
        self.committed = self.committed.max(pages);
        self.pages = pages;
        Ok(())
    }

    pub(crate) fn pages(&self) -> usize {
        self.pages
    }

    /// Returns the sections of the file, each with the pages that it has.
    pub(super) fn sections(&self) -> impl Iterator<Item = (PageRange, &OwnedHandle)> {
        let whole = self.pages - usize::from(self.tail.is_some());
        let body = self.body.iter().map(move |section| (PageRange::new(0, whole), section));
        body.chain(self.tail.iter().map(move |section| (PageRange::new(whole, whole + 1), section)))
    }

    /// Runs `map` with a section that can be written.
    ///
    /// Fails with `PermissionDenied` if the file is finished or sealed.
    pub(super) fn with_writer<T>(&self, map: impl FnOnce(&OwnedHandle) -> io::Result<T>) -> io::Result<T> {
        match &*self.lock() {
            Some(writer) => map(&writer.section),
            None => Err(io::ErrorKind::PermissionDenied.into()),
        }
    }

    /// Writes `bytes` at byte `offset`.
    pub(crate) fn write_at(&self, bytes: &[u8], offset: usize) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let mut writer = self.lock();
        let end = offset.checked_add(bytes.len()).filter(|&end| end <= self.committed * page_size());
        let (Some(writer), Some(_)) = (writer.as_mut(), end) else {
            return Err(io::ErrorKind::WriteZero.into());
        };
        let view = writer.view()?;
        // SAFETY: the view is writable and as long as the section, and the bytes are committed, as checked above.
        // Mappings of a file give out no references to bytes that are still written.
        unsafe { view.write(bytes, offset) };
        Ok(())
    }

    /// Writes `pages` one after another, the first at page `first`.
    pub(crate) fn write_pages<'a>(
        &self,
        first: usize,
        mut pages: impl Iterator<Item = &'a [u8]>,
    ) -> io::Result<()> {
        let mut offset = first * page_size();
        pages.try_for_each(|page| {
            self.write_at(page, offset)?;
            offset += page.len();
            Ok(())
        })
    }

    /// Makes the file immutable by giving up the right to write. The file must never have been mapped for writing.
    pub(crate) fn finish(&self) {
        *self.lock() = None;
    }

    /// Gives up the right to write to a file that was mapped for writing.
    ///
    /// No other code had this right, so nothing writes to the file from now on. Always returns `true`.
    pub(crate) fn seal(&self) -> bool {
        self.finish();
        true
    }

    /// Always returns `true`: [`seal`](Self::seal) always succeeds.
    pub(crate) fn may_be_sealed(&self) -> bool {
        true
    }

    /// Always fails with `Unsupported`: sections have no holes.
    pub(crate) fn punch(&self, _: PageRange) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Does nothing: huge pages can only be requested when a section is made, and that needs a privilege.
    pub(crate) fn collapse(&self) {}

    /// Always returns `None`: the system does not report holes.
    pub(crate) fn holes(&self, _: &Mapping, _: PageRange) -> Option<usize> {
        None
    }

    /// Returns a handle by which other processes can read, or `None` unless nothing can write to the file.
    pub(crate) fn share(&self) -> io::Result<Option<OwnedHandle>> {
        match &self.body {
            Some(body) if self.own && self.lock().is_none() => {
                section::duplicate(body, FILE_MAP_READ).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// Returns all pages: the system does not report which ones are zero.
    pub(crate) fn data(&self) -> PageSet {
        PageSet::all(self.pages)
    }

    /// Returns the number of committed bytes, which is at least the memory in use.
    pub(crate) fn allocated(&self) -> u64 {
        (self.committed * page_size()) as u64
    }

    fn lock(&self) -> MutexGuard<'_, Option<Writer>> {
        // A panic under the lock leaves the writer in a valid state, so a poisoned lock can be used.
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
