//! Address ranges: `mmap` and `madvise`.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::io;
use std::ptr::{self, NonNull};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};

use super::file::MemoryFile;
use super::page_size;
use super::process::{Process, Stamp};
use crate::pages::{PageRange, PageSet};
use crate::sys::call;

/// What a range of addresses shows. Page n of the mapping shows page n of the file.
#[derive(Clone, Copy)]
pub(crate) enum Source<'a> {
    /// Zeroes; writes are private. Never in huge pages, where one byte would cost 2 MiB.
    Zero,
    /// The file; writes are private.
    Private(&'a MemoryFile),
    /// The file; writes go into it. Kept out of forked children.
    Shared(&'a MemoryFile),
    /// The file, read-only.
    ReadOnly(&'a MemoryFile),
}

/// An address range that belongs to its owner until it is dropped.
///
/// Invariant: `start..start + pages` is mapped, and by nobody else, except in a forked child where
/// `shared_by` names the parent: there the range is not this process's to touch.
pub(crate) struct Mapping {
    start: NonNull<u8>,
    pages: usize,
    shared_by: Option<Stamp>,
}

// SAFETY: the mapping is an address range of the process, the same in each thread; what may be done
// with its bytes is decided by those who turn the pointer into references.
unsafe impl Send for Mapping {}
// SAFETY: as above; the methods on `&self` leave the bytes alone, or are `unsafe`.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `pages` pages of `source` at an address that the kernel picks.
    pub(crate) fn new(pages: usize, source: Source<'_>) -> io::Result<Self> {
        if pages == 0 {
            return Ok(Self::empty());
        }
        let shared_by = sharer(source)?;
        // SAFETY: without MAP_FIXED the kernel picks an unused address, so no memory in use changes.
        let start = unsafe { map(ptr::null_mut(), PageRange::new(0, pages), source, MapFlags::empty()) }?;
        let mapping = Self { start, pages, shared_by };
        mapping.advise(source)?;
        Ok(mapping)
    }

    /// No addresses at all; the pointer is aligned to a page.
    pub(crate) fn empty() -> Self {
        let start = NonNull::new(ptr::without_provenance_mut(page_size())).unwrap_or(NonNull::dangling());
        Self { start, pages: 0, shared_by: None }
    }

    /// Shows `source` in place of what the whole range shows now; private pages go.
    ///
    /// # Safety
    ///
    /// Nobody holds a reference to bytes of the range, unless the bytes that `source` shows are those
    /// that the range shows already.
    pub(crate) unsafe fn replace(&mut self, source: Source<'_>) -> io::Result<()> {
        let shared_by = sharer(source)?;
        // SAFETY: the caller's promise, for a part that is the whole.
        unsafe { self.replace_part(self.all(), source) }?;
        self.shared_by = shared_by;
        self.advise(source)
    }

    /// Shows the same pages of `source` in place of what `range` shows now; private pages go.
    ///
    /// # Safety
    ///
    /// As for [`replace`](Self::replace), for the bytes of `range`.
    pub(crate) unsafe fn replace_part(&mut self, range: PageRange, source: Source<'_>) -> io::Result<()> {
        debug_assert!(range.end <= self.pages);
        self.check_owner()?;
        if range.len() == 0 {
            return Ok(());
        }
        let start = self.address(range.start);
        // SAFETY: the range is inside this mapping, which `check_owner` found to be this process's, so
        // that MAP_FIXED replaces nothing of anybody else's; the bytes are the caller's promise.
        let replaced = unsafe { map(start, range, source, MapFlags::FIXED) };
        if replaced.is_err() {
            plug(start, range.len() * page_size());
        }
        replaced.map(drop)
    }

    /// Drops the private pages of `pages`, which show their source again.
    ///
    /// # Safety
    ///
    /// Nobody holds a reference to bytes of these pages.
    pub(crate) unsafe fn discard(&self, pages: &PageSet) -> io::Result<()> {
        for range in pages.ranges() {
            debug_assert!(range.end <= self.pages);
            call("madvise")?;
            let len = range.len() * page_size();
            // SAFETY: the range is inside this mapping, and its bytes are the caller's to change.
            unsafe { madvise(self.address(range.start), len, Advice::LinuxDontNeed) }?;
        }
        Ok(())
    }

    /// Makes frames for the pages of `range` in one go, which spares a fault a page. A wish: where the
    /// kernel knows no such thing (before 5.14), the first writes do it.
    pub(crate) fn populate(&self, range: PageRange) {
        debug_assert!(range.end <= self.pages);
        let len = range.len() * page_size();
        // SAFETY: the range is inside this mapping; populating changes no byte of it.
        let _ = unsafe { madvise(self.address(range.start), len, Advice::LinuxPopulateWrite) };
    }

    pub(crate) fn as_ptr(&self) -> NonNull<u8> {
        self.start
    }

    /// The first byte of `page`, which is at most the number of pages.
    pub(crate) fn page_ptr(&self, page: usize) -> NonNull<u8> {
        debug_assert!(page <= self.pages);
        // SAFETY: the offset is within the mapping or one past its end.
        unsafe { self.start.add(page * page_size()) }
    }

    /// The bytes of `page`.
    ///
    /// # Safety
    ///
    /// As for [`range`](Self::range).
    pub(crate) unsafe fn page(&self, page: usize) -> &[u8] {
        // SAFETY: forwarded to the caller.
        unsafe { self.range(PageRange::new(page, page + 1)) }
    }

    /// The bytes of `range`.
    ///
    /// # Safety
    ///
    /// The pages are the mapping's, and nobody writes to them as long as the slice is in use.
    pub(crate) unsafe fn range(&self, range: PageRange) -> &[u8] {
        debug_assert!(range.end <= self.pages);
        // SAFETY: the pages are mapped, at least readable, and their bytes are the caller's promise.
        unsafe { std::slice::from_raw_parts(self.page_ptr(range.start).as_ptr(), range.len() * page_size()) }
    }

    /// Overwrites the pages from `page` on with `bytes`, which are whole pages.
    ///
    /// # Safety
    ///
    /// The pages are the mapping's and writable; nobody holds a reference to their bytes, of which `bytes`
    /// are none.
    pub(crate) unsafe fn write(&self, page: usize, bytes: &[u8]) {
        debug_assert!(
            bytes.len().is_multiple_of(page_size()) && page + bytes.len() / page_size() <= self.pages
        );
        let source = NonNull::from(bytes).cast();
        // SAFETY: both are as long as `bytes`; that the pages may be written and are not the source is the
        // caller's promise.
        unsafe { self.page_ptr(page).copy_from_nonoverlapping(source, bytes.len()) };
    }

    pub(crate) fn pages(&self) -> usize {
        self.pages
    }

    /// All of its pages.
    pub(super) fn all(&self) -> PageRange {
        PageRange::new(0, self.pages)
    }

    /// The length in bytes.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.pages * page_size()
    }

    /// Fails in a forked child whose parent kept this mapping to itself.
    pub(crate) fn check_owner(&self) -> io::Result<()> {
        if self.owned_here() {
            return Ok(());
        }
        Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "this mutable view was opened before a fork and stays with the parent process; \
             open a view of your own in the child",
        ))
    }

    fn owned_here(&self) -> bool {
        self.shared_by.is_none_or(|owner| Process::current().and_then(Process::stamp) == Ok(owner))
    }

    fn address(&self, page: usize) -> *mut c_void {
        self.page_ptr(page).as_ptr().cast()
    }

    fn advise(&self, source: Source<'_>) -> io::Result<()> {
        let advice = match source {
            Source::Zero => Advice::LinuxNoHugepage,
            Source::Shared(_) => Advice::LinuxDontFork,
            Source::Private(_) | Source::ReadOnly(_) => return Ok(()),
        };
        // SAFETY: the range is this mapping; neither advice changes a byte of it.
        let advised = unsafe { madvise(self.address(0), self.len(), advice) };
        match source {
            Source::Shared(_) => Ok(call("madvise").and(advised.map_err(io::Error::from))?),
            // A kernel without huge pages refuses the advice, and has no need of it.
            _ => Ok(()),
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.pages == 0 || !self.owned_here() {
            return;
        }
        // SAFETY: the range is this mapping, and its owner is going, so no references are left.
        let unmapped = unsafe { munmap(self.address(0), self.len()) };
        if unmapped.is_err() {
            // The kernel merged the range with a neighbour's and has no mapping left to split it off:
            // give the memory back at least, and leave the addresses taken.
            // SAFETY: as above.
            let _ = unsafe { madvise(self.address(0), self.len(), Advice::LinuxDontNeed) };
        }
    }
}

/// The process that a mapping of `source` has to stay in, if it has to.
fn sharer(source: Source<'_>) -> io::Result<Option<Stamp>> {
    let Source::Shared(_) = source else { return Ok(None) };
    Ok(Some(Process::current().and_then(Process::stamp)?))
}

/// Maps the pages `range` of `source` at `address`.
///
/// # Safety
///
/// With `MAP_FIXED` in `flags`, the addresses are the caller's, and nobody holds a reference to bytes
/// there that the new mapping does not show.
unsafe fn map(
    address: *mut c_void,
    range: PageRange,
    source: Source<'_>,
    flags: MapFlags,
) -> io::Result<NonNull<u8>> {
    call("mmap")?;
    let len = range.len() * page_size();
    let offset = (range.start * page_size()) as u64;
    let read_write = ProtFlags::READ | ProtFlags::WRITE;
    let private = MapFlags::PRIVATE | MapFlags::NORESERVE | flags;
    let mapped = match source {
        // SAFETY: forwarded to the caller.
        Source::Zero => unsafe { mmap_anonymous(address, len, read_write, private) },
        // SAFETY: forwarded to the caller.
        Source::Private(file) => unsafe { mmap(address, len, read_write, private, file.fd(), offset) },
        Source::Shared(file) => {
            let shared = MapFlags::SHARED | MapFlags::NORESERVE | flags;
            // SAFETY: forwarded to the caller.
            unsafe { mmap(address, len, read_write, shared, file.fd(), offset) }
        }
        // Private, since kernels before 6.7 refuse a shared mapping of a file that is sealed against
        // writes, also one that can only be read.
        // SAFETY: forwarded to the caller.
        Source::ReadOnly(file) => unsafe { mmap(address, len, ProtFlags::READ, private, file.fd(), offset) },
    }?;
    NonNull::new(mapped.cast()).ok_or_else(|| io::Error::other("mmap returned address zero"))
}

/// After a failed `MAP_FIXED`: kernels before 6.12 may have unmapped the old range already. Whatever is
/// missing is mapped again as zeroes, so that the owner's pointer never dangles.
fn plug(start: *mut c_void, len: usize) {
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED_NOREPLACE;
    // SAFETY: MAP_FIXED_NOREPLACE replaces nothing that is mapped.
    let plugged = unsafe { mmap_anonymous(start, len, ProtFlags::READ | ProtFlags::WRITE, flags) };
    if let Ok(elsewhere) = plugged
        && elsewhere != start
    {
        // A kernel before 4.17 ignored the flag, found the range in use, and mapped another.
        // SAFETY: that mapping was made just now and nobody knows its address.
        let _ = unsafe { munmap(elsewhere, len) };
    }
}
