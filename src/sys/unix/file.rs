//! The files that mappings show: their length, their descriptor, and how they are written.
//!
//! `system` makes, seals and measures files. `source.rs` copies other files.

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

/// The most bytes that one call writes: macOS refuses 2 GiB.
const MAX_BYTES: usize = 1 << 30;

/// An open file of `pages` whole pages.
pub(crate) struct MemoryFile {
    pub(in crate::sys) fd: FileDescriptor,
    pub(in crate::sys) pages: usize,
    pub(in crate::sys) kind: Kind,
    /// A mapping of the first page of a file on a disk. It keeps the inode number from being given to another file.
    ///
    /// The file is recognized by that number. Temporary files of `posix` have no such mapping.
    held: Option<Box<Mapping>>,
}

impl MemoryFile {
    /// Makes a file of `pages` pages of zeroes, which take no memory. It can be given any length later.
    pub(crate) fn create(pages: usize, _room: usize, name: Option<&CStr>) -> io::Result<Self> {
        let (fd, kind) = new_file(name.unwrap_or(c"memsnap"))?;
        let mut file = Self::new(fd, 0, kind);
        file.set_pages(pages)?;
        Ok(file)
    }

    /// Makes a file of `pages` pages of a duplicate of `fd`, which refers to a file that other code has.
    pub(super) fn borrow(fd: BorrowedFd<'_>, pages: usize) -> io::Result<Self> {
        let (fd, kind) = borrowed_file(fd)?;
        Self::on_disk(fd, pages, kind)
    }

    /// Makes a file of a descriptor that is recognized without a mapping.
    pub(in crate::sys) fn new(fd: FileDescriptor, pages: usize, kind: Kind) -> Self {
        Self { fd, pages, kind, held: None }
    }

    /// Makes a file of the descriptor of a file on a disk, and maps its first page.
    ///
    /// The file must have its length and its bytes already.
    pub(in crate::sys) fn on_disk(fd: FileDescriptor, pages: usize, kind: Kind) -> io::Result<Self> {
        let file = Self::new(fd, pages, kind);
        let first = Mapping::new(pages.min(1), Source::ReadOnly(&file))?;
        Ok(Self { held: Some(Box::new(first)), ..file })
    }

    /// Makes the file `pages` pages long. Added pages are zero.
    pub(crate) fn set_pages(&mut self, pages: usize) -> io::Result<()> {
        call("ftruncate")?;
        rustix::fs::ftruncate(self.fd()?, (pages * page_size()) as u64)?;
        self.pages = pages;
        Ok(())
    }

    /// Returns the descriptor, to be used for one system call.
    ///
    /// Fails if it is closed or refers to another file.
    pub(crate) fn fd(&self) -> io::Result<BorrowedFd<'_>> {
        self.fd.get().map_err(|error| match error {
            Errno::BADF => io::Error::other(
                "the descriptor of the snapshot's file is closed or refers to another file: other code of this process \
                 closed it, or this thread has a file table of its own; code that closes all descriptors has to run \
                 before snapshots are made, or close only those that it opened",
            ),
            error => error.into(),
        })
    }

    /// Returns whether forked children close the file.
    pub(in crate::sys) fn is_kept_from_children(&self) -> bool {
        self.fd.is_kept_from_children()
    }

    #[allow(dead_code, reason = "some systems need not know this")]
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

    /// Writes `pages` one after another, the first at page `first`.
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

    /// Writes all bytes of `buffers` at byte `offset`.
    fn write_vectored(&self, mut buffers: &mut [IoSlice<'_>], mut offset: u64) -> io::Result<()> {
        let fd = self.fd()?;
        // Empty buffers are skipped, because a write of no bytes counts as a failure below.
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
