//! Files that mappings show: memory of our own, and files of somebody else's.

use std::ffi::CStr;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd};

use rustix::io::Errno;

use super::page_size;
use crate::sys::call;
use crate::sys::system::{Descriptor, Kind, borrowed_file, new_file};

/// The most buffers that one `pwritev` takes (`UIO_MAXIOV`).
const MAX_BUFFERS: usize = 1024;

/// The most bytes that are written by one call: macOS refuses 2 GiB.
const MAX_BYTES: usize = 1 << 30;

/// An open file of `pages` whole pages.
pub(crate) struct MemoryFile {
    pub(in crate::sys) fd: Descriptor,
    pub(in crate::sys) pages: usize,
    pub(in crate::sys) kind: Kind,
}

impl MemoryFile {
    /// A new file of `pages` pages, all zero and taking no memory. Can be given any length.
    pub(crate) fn create(pages: usize, _room: usize, name: Option<&CStr>) -> io::Result<Self> {
        let (fd, kind) = new_file(name.unwrap_or(c"memsnap"))?;
        let mut file = Self { fd, pages: 0, kind };
        file.set_pages(pages)?;
        Ok(file)
    }

    /// Another handle on somebody else's file of `pages` pages.
    pub(super) fn borrow(fd: BorrowedFd<'_>, pages: usize) -> io::Result<Self> {
        let (fd, kind) = borrowed_file(fd)?;
        Ok(Self { fd, pages, kind })
    }

    /// Makes the file `pages` pages long; what is added is zero.
    pub(crate) fn set_pages(&mut self, pages: usize) -> io::Result<()> {
        call("ftruncate")?;
        rustix::fs::ftruncate(&self.fd, (pages * page_size()) as u64)?;
        self.pages = pages;
        Ok(())
    }

    pub(in crate::sys) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
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
        // Skips empty buffers, for which a write of no bytes is no failure.
        IoSlice::advance_slices(&mut buffers, 0);
        while !buffers.is_empty() {
            call("pwritev")?;
            match rustix::io::pwritev(&self.fd, buffers, offset) {
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
