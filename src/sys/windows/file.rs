//! Files whose pages are memory: sections of the page file, and of files of somebody else's.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io;
use std::os::windows::io::OwnedHandle;
use std::sync::{Mutex, MutexGuard, PoisonError};

use windows_sys::Win32::System::Memory::{FILE_MAP_READ, SECTION_MAP_EXECUTE};

use super::section::{self, View};
use super::{Mapping, page_size};
use crate::pages::{PageRange, PageSet};

/// Pages that a file may have in advance of its length: for each of them the system takes 8 bytes when the section is
/// made.
const MOST_ROOM: usize = 1 << 22;

/// A section of `pages` whole pages.
pub(crate) struct MemoryFile {
    /// To be read, or mapped privately. `None` if there is not a single page.
    body: Option<OwnedHandle>,
    /// The last page, of a file of somebody else's that ends within it: no view of that can be longer than the file.
    tail: Option<OwnedHandle>,
    pages: usize,
    /// Pages that are committed, at least `pages`.
    committed: usize,
    /// To be written; `None` once nobody can any more.
    writer: Mutex<Option<Writer>>,
    /// Nobody else ever had the right to write.
    own: bool,
}

/// The right to write to a section of `pages` pages.
struct Writer {
    section: OwnedHandle,
    pages: usize,
    view: Option<View>,
}

impl Writer {
    fn view(&mut self) -> io::Result<&View> {
        let view = match self.view.take() {
            Some(view) => view,
            None => View::writable(&self.section)?,
        };
        Ok(self.view.insert(view))
    }
}

impl MemoryFile {
    /// A new section of `pages` pages, all zero and taking no memory, which can become up to `room` pages long.
    pub(crate) fn create(pages: usize, room: usize, _name: Option<&CStr>) -> io::Result<Self> {
        let room = room.max(pages);
        if room == 0 {
            return Ok(Self::of(None, None, 0, true));
        }
        if room > pages.max(MOST_ROOM) {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                format!("a section cannot have room for {room} pages in advance"),
            ));
        }
        // One page more than can be committed: Wine 10 takes no note of what is committed up to the very end.
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

    /// A section of somebody else's, of as many pages, and one for the page behind it.
    pub(super) fn adopt(body: Option<OwnedHandle>, tail: Option<OwnedHandle>, pages: usize) -> Self {
        Self::of(body, tail, pages, false)
    }

    /// What there is to be read of it.
    pub(super) fn into_section(self) -> Option<OwnedHandle> {
        self.body
    }

    fn of(body: Option<OwnedHandle>, tail: Option<OwnedHandle>, pages: usize, own: bool) -> Self {
        Self { body, tail, pages, committed: pages, writer: Mutex::new(None), own }
    }

    /// Makes the file `pages` pages long, for which there is room; what is added is zero, if it was never written.
    pub(crate) fn set_pages(&mut self, pages: usize) -> io::Result<()> {
        if pages > self.committed {
            let mut writer = self.lock();
            let writer = writer.as_mut().filter(|writer| pages <= writer.pages).ok_or_else(|| {
                let room = format!("a section that has no room for them cannot grow to {pages} pages");
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

    /// The pages that sections have, and those.
    pub(super) fn sections(&self) -> impl Iterator<Item = (PageRange, &OwnedHandle)> {
        let whole = self.pages - usize::from(self.tail.is_some());
        let body = self.body.iter().map(move |section| (PageRange::new(0, whole), section));
        body.chain(self.tail.iter().map(move |section| (PageRange::new(whole, whole + 1), section)))
    }

    /// Runs `map` with a section that can be written.
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
        // SAFETY: the view is writable and as long as the section; that nobody refers to bytes of a file that is
        // being written is what mappings of it promise.
        unsafe { view.write(bytes, offset) };
        Ok(())
    }

    /// Writes these pages behind each other, the first at page `first`.
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

    /// Gives up the right to write.
    pub(crate) fn finish(&self) {
        *self.lock() = None;
    }

    /// Gives up the right to write to a section that was mapped for writing. Nobody else had it, so that nobody writes
    /// from now on.
    pub(crate) fn seal(&self) -> bool {
        self.finish();
        true
    }

    /// Whether there is any use in asking for that.
    pub(crate) fn may_be_sealed(&self) -> bool {
        true
    }

    /// Sections have no holes.
    pub(crate) fn punch(&self, _: PageRange) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Huge pages of a section would have to be asked for when it is made, by a privileged user.
    pub(crate) fn collapse(&self) {}

    /// Always `None`: the system does not say.
    pub(crate) fn holes(&self, _: &Mapping, _: PageRange) -> Option<usize> {
        None
    }

    /// A handle for other processes, which cannot write through it; none unless no one can.
    pub(crate) fn share(&self) -> io::Result<Option<OwnedHandle>> {
        match &self.body {
            Some(body) if self.own && self.lock().is_none() => {
                section::duplicate(body, FILE_MAP_READ).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// The pages that may hold something other than zeroes.
    pub(crate) fn data(&self) -> PageSet {
        PageSet::all(self.pages)
    }

    /// Bytes that are promised, which is no less than what is in use.
    pub(crate) fn allocated(&self) -> u64 {
        (self.committed * page_size()) as u64
    }

    fn lock(&self) -> MutexGuard<'_, Option<Writer>> {
        // Nothing under the lock panics half-way.
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
