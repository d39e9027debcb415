//! Address ranges: `mmap` and `madvise`.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_void};
use std::io;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use rustix::io::Errno;
use rustix::mm::{
    Advice, MapFlags, MprotectFlags, ProtFlags, madvise, mmap, mmap_anonymous, mprotect, munmap,
};
use rustix::process::set_virtual_memory_region_name;

use super::file::MemoryFile;
use super::page_size;
use super::process::{Process, Stamp};
use crate::access::Access;
use crate::options::{HugePages, Populate};
use crate::pages::{PageRange, PageSet};
use crate::sys::{Placement, call};

/// The same on all architectures that Rust has; `libc` knows it with glibc only.
const MADV_COLLAPSE: libc::c_int = 25;

/// What a range of addresses shows. Page n of the mapping shows page n of the file.
#[derive(Clone, Copy)]
pub(crate) enum Source<'a> {
    /// Zeroes; writes are private. In huge pages only if asked for: one byte would cost 2 MiB.
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
/// Invariant: `before` pages, then the `pages` from `start` on, and `behind` pages are mapped, and by nobody else,
/// except in a forked child where `shared_by` names the parent: there the range is not this process's to touch.
/// All but the `pages` are inaccessible.
pub(crate) struct Mapping {
    start: NonNull<u8>,
    pages: usize,
    before: usize,
    behind: usize,
    huge_pages: HugePages,
    name: Option<Arc<CStr>>,
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
        Self::placed(pages, source, &Placement::default())
    }

    /// The same, at an address that has what `placement` asks for.
    pub(crate) fn placed(pages: usize, source: Source<'_>, placement: &Placement) -> io::Result<Self> {
        let &Placement { before, behind, huge_pages, ref name } = placement;
        let slack = match huge_pages {
            HugePages::Advise => huge_page_size() / page_size(),
            HugePages::Never => 0,
        };
        let inaccessible = before.saturating_add(behind).saturating_add(slack);
        let name = name.clone();
        if inaccessible == 0 && pages > 0 {
            let shared_by = sharer(source)?;
            // SAFETY: without MAP_FIXED the kernel picks an unused address, so no memory in use changes.
            let start = unsafe { map(ptr::null_mut(), PageRange::new(0, pages), source, MapFlags::empty()) }?;
            let mapping = Self { start, pages, before: 0, behind: 0, huge_pages, name, shared_by };
            mapping.advise(mapping.all(), source)?;
            return Ok(mapping);
        }
        let mut mapping = Self { huge_pages, name, ..Self::empty() };
        if inaccessible == 0 {
            return Ok(mapping);
        }
        let len = inaccessible.checked_add(pages).and_then(|total| total.checked_mul(page_size()));
        let len = len.filter(|&len| isize::try_from(len).is_ok()).ok_or(Errno::NOMEM)?;
        call("mmap")?;
        // SAFETY: without MAP_FIXED the kernel picks an unused address, so no memory in use changes.
        let area = unsafe { reserve(ptr::null_mut(), len, MapFlags::empty()) }?;
        mapping.before = before;
        if slack > 0 {
            let first = area.addr().get() + before * page_size();
            mapping.before += (first.next_multiple_of(huge_page_size()) - first) / page_size();
        }
        mapping.behind = len / page_size() - mapping.before;
        // SAFETY: the area has room for all the pages before the first.
        mapping.start = unsafe { area.add(mapping.before * page_size()) };
        mapping.extend(pages, source)?;
        Ok(mapping)
    }

    /// No addresses at all; the pointer is aligned to a page.
    pub(crate) fn empty() -> Self {
        let start = NonNull::new(ptr::without_provenance_mut(page_size())).unwrap_or(NonNull::dangling());
        let (pages, before, behind) = (0, 0, 0);
        Self { start, pages, before, behind, huge_pages: HugePages::Never, name: None, shared_by: None }
    }

    /// Makes `pages` more pages accessible, which show the same pages of `source`. There are at least as many
    /// inaccessible ones behind.
    pub(crate) fn extend(&mut self, pages: usize, source: Source<'_>) -> io::Result<()> {
        debug_assert!(pages <= self.behind);
        self.check_owner()?;
        // Before the first page is there as well.
        self.shared_by = self.shared_by.or(sharer(source)?);
        if pages == 0 {
            return Ok(());
        }
        let added = PageRange::new(self.pages, self.pages + pages);
        let start = self.start.as_ptr().wrapping_add(self.len()).cast();
        // SAFETY: the range is this mapping's inaccessible part, where no references can be.
        let mapped = unsafe { map(start, added, source, MapFlags::FIXED) };
        if mapped.is_err() {
            plug(start, pages * page_size(), ProtFlags::empty());
        }
        mapped?;
        self.pages += pages;
        self.behind -= pages;
        let advised = self.advise(added, source);
        if advised.is_err() {
            self.pages -= pages;
            self.behind += pages;
            // SAFETY: as above.
            let _ = unsafe { reserve(start, pages * page_size(), MapFlags::FIXED) };
        }
        advised
    }

    /// Makes the pages from `pages` on inaccessible and gives their memory back.
    ///
    /// # Safety
    ///
    /// Nobody holds a reference to bytes of these pages.
    pub(crate) unsafe fn truncate(&mut self, pages: usize) -> io::Result<()> {
        debug_assert!(pages <= self.pages);
        self.check_owner()?;
        let removed = self.pages - pages;
        if removed == 0 {
            return Ok(());
        }
        call("mmap")?;
        let (start, len) = (self.address(pages), removed * page_size());
        // SAFETY: the range is inside this mapping; the bytes are the caller's promise.
        if let Err(error) = unsafe { reserve(start, len, MapFlags::FIXED) } {
            plug(start, len, ProtFlags::READ | ProtFlags::WRITE);
            return Err(error);
        }
        self.pages = pages;
        self.behind += removed;
        Ok(())
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
        Ok(())
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
            plug(start, range.len() * page_size(), ProtFlags::READ | ProtFlags::WRITE);
        }
        replaced?;
        self.advise(range, source)
    }

    /// Says what may be done with the bytes of `range`. After an error that may be anything, for each page.
    ///
    /// # Safety
    ///
    /// Nobody holds a reference to bytes of `range` that needs what is taken away.
    pub(crate) unsafe fn set_access(&self, range: PageRange, access: Access) -> io::Result<()> {
        debug_assert!(range.end <= self.pages);
        self.check_owner()?;
        let mut flags = MprotectFlags::empty();
        flags.set(MprotectFlags::READ, access.can_read());
        flags.set(MprotectFlags::WRITE, access.can_write());
        flags.set(MprotectFlags::EXEC, access.can_execute());
        call("mprotect")?;
        // SAFETY: the range is inside this mapping; who refers to its bytes is the caller's promise.
        Ok(unsafe { mprotect(self.address(range.start), range.len() * page_size(), flags) }?)
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

    /// Makes the pages of `range` ready in one go, which spares a fault a page. Fails with `Unsupported` where the
    /// kernel cannot do that (before 5.14).
    pub(crate) fn populate(&self, range: PageRange, populate: Populate) -> io::Result<()> {
        debug_assert!(range.end <= self.pages);
        let advice = match populate {
            Populate::No => return Ok(()),
            Populate::Read => Advice::LinuxPopulateRead,
            Populate::Write => Advice::LinuxPopulateWrite,
        };
        call("madvise")?;
        // SAFETY: the range is inside this mapping; populating changes no byte of it.
        match unsafe { madvise(self.address(range.start), range.len() * page_size(), advice) } {
            Err(Errno::INVAL) => Err(io::ErrorKind::Unsupported.into()),
            result => Ok(result?),
        }
    }

    /// Moves the memory of a file's pages `range` into huge pages, as far as they fill any. A wish (Linux 6.1).
    pub(super) fn collapse(&self, range: PageRange) {
        let start = self.address(range.start).addr().next_multiple_of(huge_page_size());
        let end = self.address(range.end).addr() / huge_page_size() * huge_page_size();
        if start < end {
            // SAFETY: the addresses are inside this mapping; the bytes of its pages move, and none changes.
            unsafe { libc::madvise(self.address(0).with_addr(start), end - start, MADV_COLLAPSE) };
        }
    }

    /// The inaccessible pages before it and behind it.
    pub(crate) fn inaccessible(&self) -> (usize, usize) {
        (self.before, self.behind)
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

    fn advise(&self, range: PageRange, source: Source<'_>) -> io::Result<()> {
        let advise = |advice| {
            // SAFETY: the range is inside this mapping; no advice used here changes a byte of it.
            unsafe { madvise(self.address(range.start), range.len() * page_size(), advice) }
        };
        // A kernel without huge pages, or without names, refuses these, and has no need of them.
        match (self.huge_pages, source) {
            (HugePages::Advise, _) => _ = advise(Advice::LinuxHugepage),
            (HugePages::Never, Source::Zero) => _ = advise(Advice::LinuxNoHugepage),
            (HugePages::Never, _) => {}
        }
        if let (Some(name), Source::Zero) = (&self.name, source) {
            // SAFETY: the pages were mapped just now, readable, and nobody writes to them yet.
            let bytes = unsafe { self.range(range) };
            let _ = set_virtual_memory_region_name(bytes, Some(name));
        }
        if let Source::Shared(_) = source {
            call("madvise")?;
            advise(Advice::LinuxDontFork)?;
        }
        Ok(())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let pages = self.before + self.pages + self.behind;
        if pages == 0 || !self.owned_here() {
            return;
        }
        let start = self.start.as_ptr().wrapping_sub(self.before * page_size()).cast();
        // SAFETY: the range is this mapping, and its owner is going, so no references are left.
        let unmapped = unsafe { munmap(start, pages * page_size()) };
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

/// Takes `len` bytes of address space, inaccessible and without memory.
///
/// # Safety
///
/// As for [`map`].
unsafe fn reserve(address: *mut c_void, len: usize, flags: MapFlags) -> io::Result<NonNull<u8>> {
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | flags;
    // SAFETY: forwarded to the caller.
    let mapped = unsafe { mmap_anonymous(address, len, ProtFlags::empty(), flags) }?;
    NonNull::new(mapped.cast()).ok_or_else(|| io::Error::other("mmap returned address zero"))
}

/// Bytes in a huge page, of which a multiple is a good address for a mapping: what x86-64 has, and AArch64 with
/// pages of 4 KiB.
fn huge_page_size() -> usize {
    (2 << 20).max(page_size())
}

/// After a failed `MAP_FIXED`: kernels before 6.12 may have unmapped the old range already. Whatever is
/// missing is mapped again as zeroes with this access, so that the owner's pointer never dangles.
fn plug(start: *mut c_void, len: usize, access: ProtFlags) {
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED_NOREPLACE;
    // SAFETY: MAP_FIXED_NOREPLACE replaces nothing that is mapped.
    let plugged = unsafe { mmap_anonymous(start, len, access, flags) };
    if let Ok(elsewhere) = plugged
        && elsewhere != start
    {
        // A kernel before 4.17 ignored the flag, found the range in use, and mapped another.
        // SAFETY: that mapping was made just now and nobody knows its address.
        let _ = unsafe { munmap(elsewhere, len) };
    }
}
