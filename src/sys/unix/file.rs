//! Files that mappings show: memory of our own, and files of somebody else's.

use std::ffi::CStr;
use std::io::{self, IoSlice};
use std::os::fd::BorrowedFd;

use rustix::io::Errno;

use super::page_size;
use crate::sys::system::{FileDescriptor, Kind, borrowed_file, new_file};
use crate::sys::unix::Mapping;
use crate::sys::{Source, call};

/// The most buffers that one `pwritev` takes (`UIO_MAXIOV`).
const MAX_BUFFERS: usize = 1024;

/// The most bytes that are written by one call: macOS refuses 2 GiB.
const MAX_BYTES: usize = 1 << 30;

/// An open file of `pages` whole pages.
pub(crate) struct MemoryFile {
    pub(in crate::sys) fd: FileDescriptor,
    pub(in crate::sys) pages: usize,
    pub(in crate::sys) kind: Kind,
    /// Of a file on a disk, so that its descriptor can be told from others: as long as the file is mapped no other has its
    /// inode number.
    held: Option<Box<Mapping>>,
}

impl MemoryFile {
    /// A new file of `pages` pages, all zero and taking no memory. Can be given any length.
    pub(crate) fn create(pages: usize, _room: usize, name: Option<&CStr>) -> io::Result<Self> {
        let (fd, kind) = new_file(name.unwrap_or(c"memsnap"))?;
        let mut file = Self::new(fd, 0, kind);
        file.set_pages(pages)?;
        Ok(file)
    }

    /// Another handle on somebody else's file of `pages` pages.
    pub(super) fn borrow(fd: BorrowedFd<'_>, pages: usize) -> io::Result<Self> {
        let (fd, kind) = borrowed_file(fd)?;
        Self::on_disk(fd, pages, kind)
    }

    pub(in crate::sys) fn new(fd: FileDescriptor, pages: usize, kind: Kind) -> Self {
        Self { fd, pages, kind, held: None }
    }

    /// A file that has its length and its bytes.
    pub(in crate::sys) fn on_disk(fd: FileDescriptor, pages: usize, kind: Kind) -> io::Result<Self> {
        let file = Self::new(fd, pages, kind);
        let first = Mapping::new(pages.min(1), Source::ReadOnly(&file))?;
        Ok(Self { held: Some(Box::new(first)), ..file })
    }

    /// Makes the file `pages` pages long; what is added is zero.
    pub(crate) fn set_pages(&mut self, pages: usize) -> io::Result<()> {
        call("ftruncate")?;
        rustix::fs::ftruncate(self.fd()?, (pages * page_size()) as u64)?;
        self.pages = pages;
        Ok(())
    }

    /// The descriptor, for one call.
    pub(crate) fn fd(&self) -> io::Result<BorrowedFd<'_>> {
        self.fd.get().map_err(|error| match error {
            Errno::BADF => io::Error::other(
                "the descriptor of the snapshot's file is closed or another file: other code of this process closed it, or \
                 this thread has a file table of its own; code that closes all descriptors has to run before \
                 snapshots are made, or to leave those alone that it did not open",
            ),
            error => error.into(),
        })
    }

    /// Whether no forked child has the file.
    pub(in crate::sys) fn is_kept_from_children(&self) -> bool {
        self.fd.is_kept_from_children()
    }

    #[allow(dead_code, reason = "only some systems have to know")]
    pub(in crate::sys) fn is_on_disk(&self) -> bool {
        self.held.is_some()
    }

    pub(crate) fn pages(&self) -> usize {
        self.pages
    }

    /// Writes `bytes` at byte `offset`.
    pub(crate) fn write_at(&self, bytes: &[u8], offset: usize) -> io::Result<()> {
        let mut parts = bytes.chunks(MAX_BYTES).zip((offset..).step_by(MAX_BYTES));
        parts.try_for_each(|(part, offset)| self.write_vectored(&mut [IoSlice::new(part)], offset as u64))
    }

    /// Writes these pages behind each other, the first at page `first`.
    pub(crate) fn write_pages<'a>(
        &self,
        first: usize,
        pages: impl Iterator<Item = &'a [u8]>,
    ) -> io::Result<()> {
        let mut buffers: Vec<_> = pages.map(IoSlice::new).collect();
        let mut offset = (first * page_size()) as u64;
        for batch in buffers.chunks_mut(MAX_BUFFERS) {
            let len: usize = batch.iter().map(|buffer| buffer.len()).sum();
            self.write_vectored(batch, offset)?;
            offset += len as u64;
        }
        Ok(())
    }

    fn write_vectored(&self, mut buffers: &mut [IoSlice<'_>], mut offset: u64) -> io::Result<()> {
        let fd = self.fd()?;
        // Skips empty buffers, for which a write of no bytes is no failure.
        IoSlice::advance_slices(&mut buffers, 0);
        while !buffers.is_empty() {
            call("pwritev")?;
            match rustix::io::pwritev(fd, buffers, offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    offset += written as u64;
                    IoSlice::advance_slices(&mut buffers, written);
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}
