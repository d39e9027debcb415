//! Address ranges: `mmap`, `mprotect` and `munmap`.
//!
//! A range is replaced by mapping over it (`MAP_FIXED`). Such a call can fail when the old mapping is gone already, and leaves
//! a hole then. Linux unmaps all of the range or nothing of it, and fails after that
//!
//! - before 6.12 where memory is promised strictly (`vm.overcommit_memory=2`) and cannot be had;
//! - where the kernel has no memory for its own record of the mapping, or the file system refuses to map the file.
//!
//! Other systems do not say. So each failure is followed by [`plug`], which keeps the invariant of [`Mapping`]. Growth
//! leaves no hole for the first of these reasons: pages are mapped inaccessible, which promises no memory, and opened.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_void};
use std::io::{self, Write};
use std::ops::Deref;
use std::process;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::io::Errno;
use rustix::mm::{
    MapFlags, MprotectFlags, MsyncFlags, ProtFlags, mmap, mmap_anonymous, mprotect, msync, munmap,
};

use super::code::synchronize;
use super::page_size;
use crate::access::Access;
use crate::pages::{PageRange, PageSet};
use crate::sys::HugePages;
use crate::sys::system::{NO_REPLACE, NO_RESERVE, Owner, Shown, alignment};
use crate::sys::{Overlay, Placement, Source, Span, call};

/// An address range that belongs to its owner until it is dropped.
///
/// Invariant: `before` pages, then those of `span`, and `behind` pages are mapped, and by nobody else, also after a failed
/// call; except in a forked child where `shared_by` names the parent: there the range is not this process's to touch.
/// All but those of `span` are inaccessible.
pub(crate) struct Mapping {
    span: Span,
    before: usize,
    behind: usize,
    pub(in crate::sys) shown: Shown,
    pub(in crate::sys) huge_pages: HugePages,
    pub(in crate::sys) name: Option<Arc<CStr>>,
    shared_by: Option<Owner>,
}

impl Deref for Mapping {
    type Target = Span;

    fn deref(&self) -> &Span {
        &self.span
    }
}

impl Mapping {
    /// Maps `pages` pages of `source` at an address that the kernel picks.
    pub(crate) fn new(pages: usize, source: Source<'_>) -> io::Result<Self> {
        Self::whole(pages, source, &Placement::default())
    }

    /// Maps `pages` pages of `source`, and `over` it others, at an address that has what `placement` asks for.
    #[inline]
    pub(crate) fn placed(
        pages: usize,
        source: Source<'_>,
        over: &[Overlay<'_>],
        placement: &Placement,
    ) -> io::Result<Self> {
        let mut mapping = Self::whole(pages, source, placement)?;
        over.iter().try_for_each(|&(range, source)| {
            // SAFETY: nobody knows of the mapping yet.
            unsafe { mapping.replace_part(range, source) }
        })?;
        Ok(mapping)
    }

    fn whole(pages: usize, source: Source<'_>, placement: &Placement) -> io::Result<Self> {
        let &Placement { before, behind, huge_pages, ref name, .. } = placement;
        let alignment = alignment(huge_pages, pages, source);
        let around = before.saturating_add(behind);
        // With `Auto` and nothing reserved around the mapping, `map_aligned` looks for an aligned address without
        // slack.
        let slack = if huge_pages == HugePages::Auto && around == 0 { 0 } else { alignment };
        let inaccessible = around.saturating_add(slack);
        let name = name.clone();
        if inaccessible == 0 && pages > 0 {
            let (all, mut shown, shared_by) = (PageRange::new(0, pages), Shown::default(), sharer(source)?);
            let start = map_aligned(alignment, all, source)?;
            shown.set(all, source);
            let span = Span { start, pages };
            let mapping = Self { span, before: 0, behind: 0, shown, huge_pages, name, shared_by };
            mapping.advise(all, source)?;
            return Ok(mapping);
        }
        let mut mapping = Self::empty();
        (mapping.huge_pages, mapping.name) = (huge_pages, name);
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
            mapping.before += (first.next_multiple_of(slack * page_size()) - first) / page_size();
        }
        mapping.behind = len / page_size() - mapping.before;
        // SAFETY: the area has room for all the pages before the first.
        mapping.span.start = unsafe { area.add(mapping.before * page_size()) };
        mapping.extend(pages, source)?;
        Ok(mapping)
    }

    /// No addresses at all; the pointer is aligned to a page.
    pub(crate) fn empty() -> Self {
        Self {
            span: Span::empty(),
            before: 0,
            behind: 0,
            shown: Shown::default(),
            huge_pages: HugePages::Never,
            name: None,
            shared_by: None,
        }
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
        let added = PageRange::new(self.pages(), self.pages() + pages);
        let (start, len) = (self.address(self.pages()), pages * page_size());
        // What is inaccessible shows zeroes once it is opened.
        if !matches!(source, Source::Zero) {
            // SAFETY: the range is this mapping's inaccessible part, where no references can be.
            let mapped = unsafe { map(start, added, source, ProtFlags::empty(), MapFlags::FIXED) };
            if let Err(error) = mapped {
                plug(start, len, ProtFlags::empty());
                return Err(error);
            }
        }
        self.span.pages += pages;
        self.behind -= pages;
        self.shown.set(added, source);
        // SAFETY: as above, and nothing is taken away.
        let opened = unsafe { self.protect(added, access_to(source)) };
        let opened = opened.and_then(|()| self.advise(added, source));
        if opened.is_err() {
            self.span.pages -= pages;
            self.behind += pages;
            self.shown.truncate(self.pages());
            // SAFETY: as above.
            if unsafe { reserve(start, len, MapFlags::FIXED) }.is_err() {
                plug(start, len, ProtFlags::empty());
                // SAFETY: as above.
                let _ = unsafe { mprotect(start, len, MprotectFlags::empty()) };
            }
        }
        opened
    }

    /// Makes the pages from `pages` on inaccessible and gives their memory back.
    ///
    /// # Safety
    ///
    /// Nobody holds a reference to bytes of these pages.
    pub(crate) unsafe fn truncate(&mut self, pages: usize) -> io::Result<()> {
        debug_assert!(pages <= self.pages());
        self.check_owner()?;
        let removed = self.pages() - pages;
        if removed == 0 {
            return Ok(());
        }
        call("mmap")?;
        let (start, len) = (self.address(pages), removed * page_size());
        // SAFETY: the range is inside this mapping; the bytes are the caller's promise.
        if let Err(error) = unsafe { reserve(start, len, MapFlags::FIXED) }
            && plug(start, len, ProtFlags::empty()) == Plugged::Nothing
        {
            return Err(error);
        }
        self.span.pages = pages;
        self.behind += removed;
        self.shown.truncate(pages);
        Ok(())
    }

    /// Shows `source`, and `over` it others, in place of what the whole range shows now; private pages go.
    ///
    /// # Safety
    ///
    /// Nobody holds a reference to bytes of the range, unless the bytes that `source` shows are those
    /// that the range shows already.
    pub(crate) unsafe fn replace(&mut self, source: Source<'_>, over: &[Overlay<'_>]) -> io::Result<()> {
        let shared_by = sharer(source)?;
        // Before the first page can be there, and until the last is gone.
        self.shared_by = self.shared_by.or(shared_by);
        // SAFETY: the caller's promise, for a part that is the whole.
        unsafe { self.replace_part(self.all(), source) }?;
        self.shared_by = shared_by;
        over.iter().try_for_each(|&(range, source)| {
            // SAFETY: the caller's promise, for a part.
            unsafe { self.replace_part(range, source) }
        })
    }

    /// Shows the same pages of `source` in place of what `range` shows now; its private pages go, and all others
    /// stay. Fails with `Unsupported`, and changes nothing, where the system cannot do that.
    ///
    /// # Safety
    ///
    /// As for [`replace`](Self::replace), for the bytes of `range`.
    pub(crate) unsafe fn replace_part(&mut self, range: PageRange, source: Source<'_>) -> io::Result<()> {
        debug_assert!(range.end <= self.pages());
        self.check_owner()?;
        if range.len() == 0 {
            return Ok(());
        }
        // SAFETY: `check_owner` found the mapping to be this process's; the bytes are the caller's promise.
        unsafe { self.show(range, source) }?;
        self.shown.set(range, source);
        let advised = self.advise(range, source);
        if let (Err(_), Source::Shared(file)) = (&advised, source) {
            // A forked child would write to the same pages.
            // SAFETY: as above.
            let _ = unsafe { self.show(range, Source::Private(file)) };
            self.shown.set(range, Source::Private(file));
        }
        advised
    }

    /// Maps pages of `source` in place of what `range` shows, and takes no note of it.
    ///
    /// # Safety
    ///
    /// As for [`replace`](Self::replace), for the bytes of `range`; the mapping is this process's.
    pub(in crate::sys) unsafe fn show(&self, range: PageRange, source: Source<'_>) -> io::Result<()> {
        debug_assert!(range.end <= self.pages());
        let start = self.address(range.start);
        // SAFETY: the range is inside this mapping, all of which is ours (`plug` sees to that after each failure), so that
        // MAP_FIXED replaces nothing of anybody else's; the rest is the caller's promise.
        let mapped = unsafe { map(start, range, source, access_to(source), MapFlags::FIXED) };
        if mapped.is_err() {
            plug(start, range.len() * page_size(), ProtFlags::READ | ProtFlags::WRITE);
        }
        mapped.map(drop)
    }

    /// Says what may be done with the bytes of `range`; those that may be run are run as they are now. After an error that may be anything, for each page.
    ///
    /// # Safety
    ///
    /// Nobody holds a reference to bytes of `range` that needs what is taken away.
    pub(crate) unsafe fn set_access(&self, range: PageRange, access: Access) -> io::Result<()> {
        self.check_owner()?;
        let mut flags = ProtFlags::empty();
        flags.set(ProtFlags::READ, access.can_read());
        flags.set(ProtFlags::WRITE, access.can_write());
        flags.set(ProtFlags::EXEC, access.can_execute());
        // SAFETY: forwarded to the caller.
        unsafe { self.protect(range, flags) }?;
        if access.can_execute() {
            // SAFETY: the range is inside this mapping, and can be read now.
            unsafe { synchronize(self.address(range.start).cast(), range.len() * page_size()) }?;
        }
        Ok(())
    }

    /// # Safety
    ///
    /// As for [`set_access`](Self::set_access); the mapping is this process's.
    unsafe fn protect(&self, range: PageRange, access: ProtFlags) -> io::Result<()> {
        debug_assert!(range.end <= self.pages());
        call("mprotect")?;
        let flags = MprotectFlags::from_bits_retain(access.bits());
        // SAFETY: the range is inside this mapping; who refers to its bytes is the caller's promise.
        Ok(unsafe { mprotect(self.address(range.start), range.len() * page_size(), flags) }?)
    }

    /// The inaccessible pages before it and behind it.
    pub(crate) fn inaccessible(&self) -> (usize, usize) {
        (self.before, self.behind)
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

    /// All pages can be read and written, whatever failed.
    pub(crate) fn check_usable(&self) -> io::Result<()> {
        Ok(())
    }

    fn owned_here(&self) -> bool {
        self.shared_by.is_none_or(Owner::is_current)
    }

    pub(in crate::sys) fn address(&self, page: usize) -> *mut c_void {
        self.page_ptr(page).as_ptr().cast()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let pages = self.before + self.pages() + self.behind;
        if pages == 0 || !self.owned_here() {
            return;
        }
        let start = self.start.as_ptr().wrapping_sub(self.before * page_size()).cast();
        // SAFETY: the range is this mapping, mapped by us and nobody else (the type's invariant), and its owner is going, so
        // no references are left.
        let unmapped = unsafe { munmap(start, pages * page_size()) };
        if unmapped.is_err() {
            // The kernel merged the range with a neighbour's and has no mapping left to split it off:
            // give the memory back at least, and leave the addresses taken.
            // SAFETY: as above.
            let _ = unsafe { self.discard(&PageSet::all(self.pages())) };
        }
    }
}

/// The process that a mapping of `source` has to stay in, if it has to.
fn sharer(source: Source<'_>) -> io::Result<Option<Owner>> {
    let Source::Shared(file) = source else { return Ok(None) };
    Ok(Some(Owner::of_shared(file)?))
}

/// What may be done with the bytes of a mapping of `source`.
fn access_to(source: Source<'_>) -> ProtFlags {
    match source {
        Source::Zero | Source::Private(_) | Source::Shared(_) => ProtFlags::READ | ProtFlags::WRITE,
        Source::ReadOnly(_) => ProtFlags::READ,
    }
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
    access: ProtFlags,
    flags: MapFlags,
) -> io::Result<NonNull<u8>> {
    call("mmap")?;
    let len = range.len() * page_size();
    let offset = (range.start * page_size()) as u64;
    let private = MapFlags::PRIVATE | NO_RESERVE | flags;
    let mapped = match source {
        // SAFETY: forwarded to the caller.
        Source::Zero => unsafe { mmap_anonymous(address, len, access, private) },
        Source::Shared(file) => {
            let shared = MapFlags::SHARED | NO_RESERVE | flags;
            // SAFETY: forwarded to the caller.
            unsafe { mmap(address, len, access, shared, file.fd()?, offset) }
        }
        // The second is private, too, since kernels before 6.7 refuse a shared mapping of a file that is sealed against
        // writes, also one that can only be read.
        Source::Private(file) | Source::ReadOnly(file) => {
            // SAFETY: forwarded to the caller.
            unsafe { mmap(address, len, access, private, file.fd()?, offset) }
        }
    }?;
    NonNull::new(mapped.cast()).ok_or_else(|| io::Error::other("mmap returned address zero"))
}

/// Maps the pages `range` of `source` at an unused address, aligned to `alignment` pages if possible.
///
/// It first proposes the address of the last such mapping. A program that drops each view before it opens the next gets
/// this address. In a program that keeps its views, the kernel places each mapping below the last one, where it mostly
/// is aligned as well. So both mostly make one system call for each mapping. Otherwise, it looks for an aligned address
/// in a free range of addresses that is long enough to have one.
fn map_aligned(alignment: usize, range: PageRange, source: Source<'_>) -> io::Result<NonNull<u8>> {
    static LAST: AtomicUsize = AtomicUsize::new(0);
    /// More than one, since another thread may take the addresses between two calls.
    const ATTEMPTS: usize = 2;
    let map_at = |address: usize| {
        let address = ptr::without_provenance_mut(address);
        // SAFETY: without MAP_FIXED the kernel picks an unused address, so no memory in use changes.
        unsafe { map(address, range, source, access_to(source), MapFlags::empty()) }
    };
    let unmap = |start: NonNull<u8>, len| {
        // SAFETY: the range was mapped just now, and nobody else knows of it.
        unsafe { munmap(start.as_ptr().cast(), len) }
    };
    if alignment == 0 {
        return map_at(0);
    }
    let (alignment, len) = (alignment * page_size(), range.len() * page_size());
    let last = LAST.load(Ordering::Relaxed);
    let mut start = map_at(last)?;
    for _ in 0..ATTEMPTS {
        if start.addr().get().is_multiple_of(alignment) || unmap(start, len).is_err() {
            break;
        }
        let place = call("mmap").and_then(|()| {
            let len = len.saturating_add(alignment);
            // SAFETY: without MAP_FIXED the kernel picks an unused address, so no memory in use changes.
            unsafe { reserve(ptr::null_mut(), len, MapFlags::empty()) }
        });
        let address = place.map_or(0, |place| {
            let _ = unmap(place, len + alignment);
            place.addr().get().next_multiple_of(alignment)
        });
        start = map_at(address)?;
    }
    let address = start.addr().get();
    if address != last && address.is_multiple_of(alignment) {
        LAST.store(address, Ordering::Relaxed);
    }
    Ok(start)
}

/// Takes `len` bytes of address space, inaccessible and without memory.
///
/// # Safety
///
/// As for [`map`].
unsafe fn reserve(address: *mut c_void, len: usize, flags: MapFlags) -> io::Result<NonNull<u8>> {
    let flags = MapFlags::PRIVATE | NO_RESERVE | flags;
    // SAFETY: forwarded to the caller.
    let mapped = unsafe { mmap_anonymous(address, len, ProtFlags::empty(), flags) }?;
    NonNull::new(mapped.cast()).ok_or_else(|| io::Error::other("mmap returned address zero"))
}

/// What [`plug`] found.
#[derive(PartialEq, Eq, Debug)]
enum Plugged {
    /// The old mapping is there.
    Nothing,
    /// The old mapping was gone, and zeroes are there now.
    All,
}

/// After a failed `MAP_FIXED`: keeps the range mapped, and by us. If the old mapping is gone, zeroes with this access take
/// its place.
///
/// In a hole, another thread may have mapped something meanwhile, or there may be no memory for zeroes. Then the
/// process is aborted, as where an allocation fails: other threads may hold slices of the range and pointers into it,
/// which no error takes from them.
///
/// The old mapping is there in full or not at all. So a range of which a part is missing and a part is mapped has memory of
/// somebody else's in it. One that fills the hole completely cannot be told from the old mapping: that takes one of
/// the rare failures above, and another thread that maps just these addresses before the next system call does.
fn plug(start: *mut c_void, len: usize, access: ProtFlags) -> Plugged {
    let flags = MapFlags::PRIVATE | NO_RESERVE | NO_REPLACE;
    // SAFETY: with these flags nothing that is mapped is replaced.
    match unsafe { mmap_anonymous(start, len, access, flags) } {
        Ok(mapped) if mapped == start => return Plugged::All,
        Ok(elsewhere) => {
            // The address was no more than a wish, and in use.
            // SAFETY: that mapping was made just now and nobody knows its address.
            let _ = unsafe { munmap(elsewhere, len) };
        }
        Err(_) => {}
    }
    // Says whether there are pages that are not mapped. That it starts to write pages of files back changes no byte.
    // SAFETY: no mapping changes.
    if unsafe { msync(start, len, MsyncFlags::ASYNC) } == Err(Errno::NOMEM) {
        let _ = writeln!(
            io::stderr(),
            "memsnap: {len} bytes of a view at {start:p} were lost when they could not be mapped anew"
        );
        process::abort();
    }
    Plugged::Nothing
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    #[test]
    fn a_plug_fills_a_hole_and_takes_the_place_of_nothing() {
        const PAGES: usize = 4;
        let mapping = Mapping::new(PAGES, Source::Zero).unwrap();
        let (start, len) = (mapping.address(0), mapping.len());
        let bytes = vec![7; page_size()];
        // SAFETY: nobody refers to the mapping's bytes.
        unsafe { mapping.write(1, &bytes) };
        assert_eq!(plug(start, len, ProtFlags::READ), Plugged::Nothing);
        // SAFETY: nobody writes to the mapping.
        assert_eq!(unsafe { mapping.page(1) }, bytes);
        // Were it gone, or only to be read, this would end the process.
        // SAFETY: as for the first.
        unsafe { mapping.write(1, &bytes) };

        // In a child, where no other thread takes the hole.
        // SAFETY: until it ends, the child does nothing but system calls and writes to memory of its own.
        let child = unsafe { libc::fork() };
        if child == 0 {
            // SAFETY: nobody refers to the mapping's bytes.
            let _ = unsafe { munmap(start, len) };
            plug(start, len, ProtFlags::READ | ProtFlags::WRITE);
            // SAFETY: as for the first; where the hole is still there, this ends the child.
            unsafe { mapping.write(1, &bytes) };
            // SAFETY: nobody writes to the mapping.
            let zero = unsafe { mapping.page(0) }.iter().all(|byte| *byte == 0);
            // SAFETY: ends the child at once.
            unsafe { libc::_exit(i32::from(!zero)) };
        }
        let mut status = -1;
        // SAFETY: `status` is written to and nothing else.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        assert_eq!(status, 0, "the hole is there, or not zero");
    }

    /// Another thread's mapping that came to lie in the hole was once taken for the view's own: the view showed it, and
    /// unmapped it when it was dropped.
    #[test]
    fn a_hole_in_which_something_else_lies_ends_the_process() {
        let name = "sys::unix::mapping::tests::a_plug_with_something_else_in_the_hole";
        let program = std::env::current_exe().unwrap();
        let output = process::Command::new(program).args([name, "--exact", "--ignored"]).output().unwrap();
        let messages = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{output:?}");
        assert!(messages.contains("could not be mapped anew"), "{messages}");
    }

    #[test]
    #[ignore = "ends the process; the test above runs it"]
    fn a_plug_with_something_else_in_the_hole() {
        let mapping = Mapping::new(4, Source::Zero).unwrap();
        // What is left stands for the other thread's mapping.
        // SAFETY: nobody refers to the mapping's bytes.
        unsafe { munmap(mapping.address(1), 2 * page_size()) }.unwrap();
        plug(mapping.address(0), mapping.len(), ProtFlags::READ | ProtFlags::WRITE);
    }
}
