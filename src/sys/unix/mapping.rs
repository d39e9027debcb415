//! Address ranges: what is mapped where, by `mmap`, `mprotect` and `munmap`.
//!
//! `system` advises the kernel and discards pages. The layers above decide which bytes a view shows.
//!
//! # Holes
//!
//! A range is replaced by mapping over it (`MAP_FIXED`). Such a call can fail after it has removed the old mapping, and
//! then leaves a hole. Linux removes either the whole range or nothing. It fails after removing the range
//!
//! - before 6.12, if overcommit accounting is strict (`vm.overcommit_memory=2`) and the limit is reached;
//! - if the kernel has no memory for its own record of the mapping, or the file system refuses to map the file.
//!
//! Other systems do not document this. So after each failure [`plug`] restores the invariant of [`Mapping`]. Growth
//! leaves no hole for the first of these reasons: it maps inaccessible pages, which do not count against the limit, and
//! makes them accessible afterwards.
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
use super::reserve::{reserve, reserve_at};
use crate::access::Access;
use crate::pages::{PageRange, PageSet};
use crate::sys::HugePages;
use crate::sys::system::{NO_REPLACE, NO_RESERVE, Owner, Shown, alignment};
use crate::sys::{Overlay, Placement, Source, Span, call};

/// An address range that belongs to its owner until it is dropped.
///
/// Invariants:
///
/// - The addresses are those of `before` pages, of the pages of `span`, and of `behind` pages. All of them are mapped,
///   also after a failed call, and no other code has mapped anything there.
/// - The pages outside of `span` are inaccessible.
/// - If `shared_by` is another process than the current one, this process is a forked child of it. The child does not
///   have the mapping, and must not access or change the range.
pub(crate) struct Mapping {
    span: Span,
    before: usize,
    behind: usize,
    /// What the pages of `span` show, if the system needs to know.
    pub(in crate::sys) shown: Shown,
    pub(in crate::sys) huge_pages: HugePages,
    pub(in crate::sys) name: Option<Arc<CStr>>,
    /// The process in which the mapping has to stay, if there is a shared mapping of a file.
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

    /// Maps `pages` pages of `source` at an address that satisfies `placement`.
    ///
    /// `over` names other sources for some of the pages.
    #[inline]
    pub(crate) fn placed(
        pages: usize,
        source: Source<'_>,
        over: &[Overlay<'_>],
        placement: &Placement,
    ) -> io::Result<Self> {
        let mut mapping = Self::whole(pages, source, placement)?;
        over.iter().try_for_each(|&(range, source)| {
            // SAFETY: the mapping is new, so no reference to its bytes exists.
            unsafe { mapping.replace_part(range, source) }
        })?;
        Ok(mapping)
    }

    /// Maps one source at an address that satisfies `placement`.
    fn whole(pages: usize, source: Source<'_>, placement: &Placement) -> io::Result<Self> {
        let &Placement { before, behind, address, huge_pages, ref name, .. } = placement;
        // A given address cannot be aligned.
        let alignment = if address.is_none() { alignment(huge_pages, pages, source) } else { 0 };
        let around = before.saturating_add(behind);
        // With `Auto` and nothing reserved around the mapping, `map_aligned` looks for an aligned address without
        // slack.
        let slack = if huge_pages == HugePages::Auto && around == 0 { 0 } else { alignment };
        let inaccessible = around.saturating_add(slack);
        let name = name.clone();
        if inaccessible == 0 && pages > 0 && address.is_none() {
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
        if inaccessible == 0 && pages == 0 {
            return Ok(mapping);
        }
        let len = inaccessible.checked_add(pages).and_then(|total| total.checked_mul(page_size()));
        let len = len.filter(|&len| isize::try_from(len).is_ok()).ok_or(Errno::NOMEM)?;
        let area = match address {
            Some(address) => reserve_at(address, before * page_size(), len)?,
            None => {
                call("mmap")?;
                // SAFETY: without MAP_FIXED the kernel picks an unused address, so no memory in use changes.
                unsafe { reserve(ptr::null_mut(), len, MapFlags::empty()) }?
            }
        };
        mapping.before = before;
        if slack > 0 {
            let first = area.addr().get() + before * page_size();
            mapping.before += (first.next_multiple_of(slack * page_size()) - first) / page_size();
        }
        mapping.behind = len / page_size() - mapping.before;
        // SAFETY: `mapping.before` is at most `before + slack`, and the area has at least as many pages. So the result
        // is inside it or one past its end. Its length fits an `isize`, as checked above.
        mapping.span.start = unsafe { area.add(mapping.before * page_size()) };
        mapping.extend(pages, source)?;
        Ok(mapping)
    }

    /// Returns a mapping without addresses. Its pointer is aligned to a page.
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

    /// Makes the next `pages` pages accessible, which then show the same pages of `source`.
    ///
    /// The mapping must have at least `pages` inaccessible pages behind.
    pub(crate) fn extend(&mut self, pages: usize, source: Source<'_>) -> io::Result<()> {
        debug_assert!(pages <= self.behind);
        self.check_owner()?;
        // The owner is recorded before the first shared page is mapped.
        self.shared_by = self.shared_by.or(sharer(source)?);
        if pages == 0 {
            return Ok(());
        }
        let added = PageRange::new(self.pages(), self.pages() + pages);
        let (start, len) = (self.address(self.pages()), pages * page_size());
        // Inaccessible pages show zeroes once they are accessible, so zeroes need no mapping.
        if !matches!(source, Source::Zero) {
            // SAFETY: the range is in the inaccessible part of this mapping, so no reference to its bytes exists.
            let mapped = unsafe { map(start, added, source, ProtFlags::empty(), MapFlags::FIXED) };
            if let Err(error) = mapped {
                plug(start, len, ProtFlags::empty());
                return Err(error);
            }
        }
        self.span.pages += pages;
        self.behind -= pages;
        self.shown.set(added, source);
        // SAFETY: as above. The pages were inaccessible, so no access is taken away.
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
    /// `pages` must be at most the number of pages. No reference to bytes of the removed pages may exist.
    pub(crate) unsafe fn truncate(&mut self, pages: usize) -> io::Result<()> {
        debug_assert!(pages <= self.pages());
        self.check_owner()?;
        let removed = self.pages() - pages;
        if removed == 0 {
            return Ok(());
        }
        call("mmap")?;
        let (start, len) = (self.address(pages), removed * page_size());
        // SAFETY: the range is inside this mapping, since `pages` is at most the number of pages. The caller promises
        // that no reference to its bytes exists.
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

    /// Maps `source` in place of the whole range. Private pages are lost.
    ///
    /// `over` names other sources for some of the pages. After an error, the bytes of the range are unspecified.
    ///
    /// # Safety
    ///
    /// No reference to bytes of the range may exist, unless the range shows the same bytes before and after the call.
    pub(crate) unsafe fn replace(&mut self, source: Source<'_>, over: &[Overlay<'_>]) -> io::Result<()> {
        let shared_by = sharer(source)?;
        // The owner is recorded before the first shared page is mapped, and until the last one is gone.
        self.shared_by = self.shared_by.or(shared_by);
        // SAFETY: forwarded to the caller; the part is the whole range.
        unsafe { self.replace_part(self.all(), source) }?;
        self.shared_by = shared_by;
        over.iter().try_for_each(|&(range, source)| {
            // SAFETY: forwarded to the caller; the part is inside the range.
            unsafe { self.replace_part(range, source) }
        })
    }

    /// Maps the same pages of `source` in place of `range`.
    ///
    /// Private pages of `range` are lost; all others stay.
    ///
    /// After an error, the bytes of `range` are unspecified.
    ///
    /// # Safety
    ///
    /// As for [`replace`](Self::replace), for the bytes of `range`, which must be inside the mapping.
    pub(crate) unsafe fn replace_part(&mut self, range: PageRange, source: Source<'_>) -> io::Result<()> {
        debug_assert!(range.end <= self.pages());
        self.check_owner()?;
        if range.len() == 0 {
            return Ok(());
        }
        // SAFETY: `check_owner` found that this process has the mapping. The rest is forwarded to the caller.
        unsafe { self.show(range, source) }?;
        self.shown.set(range, source);
        let advised = self.advise(range, source);
        if let (Err(_), Source::Shared(file)) = (&advised, source) {
            // A forked child would get the shared mapping and write to the same pages. So it is replaced.
            // SAFETY: as above.
            let _ = unsafe { self.show(range, Source::Private(file)) };
            self.shown.set(range, Source::Private(file));
        }
        advised
    }

    /// Maps the same pages of `source` in place of `range`, without recording that in `shown`.
    ///
    /// # Safety
    ///
    /// As for [`replace_part`](Self::replace_part). This process must have the mapping.
    pub(in crate::sys) unsafe fn show(&self, range: PageRange, source: Source<'_>) -> io::Result<()> {
        debug_assert!(range.end <= self.pages());
        let start = self.address(range.start);
        // SAFETY: the range is inside this mapping. By its invariant, which `plug` restores after each failure, no
        // other code has mapped anything there, so MAP_FIXED replaces only this mapping. The rest is forwarded to the
        // caller.
        let mapped = unsafe { map(start, range, source, access_to(source), MapFlags::FIXED) };
        if mapped.is_err() {
            plug(start, range.len() * page_size(), ProtFlags::READ | ProtFlags::WRITE);
        }
        mapped.map(drop)
    }

    /// Sets what may be done with the bytes of `range`.
    ///
    /// If the bytes may be executed, the processor executes them as they are now. After an error, the access of each
    /// page of `range` is unspecified.
    ///
    /// # Safety
    ///
    /// The range must be inside the mapping. No reference to its bytes may need access that this call takes away.
    pub(crate) unsafe fn set_access(&self, range: PageRange, access: Access) -> io::Result<()> {
        self.check_owner()?;
        let mut flags = ProtFlags::empty();
        flags.set(ProtFlags::READ, access.can_read());
        flags.set(ProtFlags::WRITE, access.can_write());
        flags.set(ProtFlags::EXEC, access.can_execute());
        // SAFETY: forwarded to the caller.
        unsafe { self.protect(range, flags) }?;
        if access.can_execute() {
            // SAFETY: the range is inside this mapping, and was made readable above.
            unsafe { synchronize(self.address(range.start).cast(), range.len() * page_size()) }?;
        }
        Ok(())
    }

    /// Sets the protection of the pages of `range`.
    ///
    /// # Safety
    ///
    /// As for [`set_access`](Self::set_access). This process must have the mapping.
    unsafe fn protect(&self, range: PageRange, access: ProtFlags) -> io::Result<()> {
        debug_assert!(range.end <= self.pages());
        call("mprotect")?;
        let flags = MprotectFlags::from_bits_retain(access.bits());
        // SAFETY: the range is inside this mapping. The caller promises that no reference needs access that is taken
        // away.
        Ok(unsafe { mprotect(self.address(range.start), range.len() * page_size(), flags) }?)
    }

    /// Returns the numbers of inaccessible pages before the first page and behind the last.
    pub(crate) fn inaccessible(&self) -> (usize, usize) {
        (self.before, self.behind)
    }

    /// Fails in a forked child if the mapping stays with the parent.
    pub(crate) fn check_owner(&self) -> io::Result<()> {
        if self.owned_here() {
            return Ok(());
        }
        Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "this mutable view was opened before a fork and stays with the parent process; \
             open another view in the child",
        ))
    }

    /// Always succeeds: the pages stay mapped even after a failed call.
    pub(crate) fn check_usable(&self) -> io::Result<()> {
        Ok(())
    }

    fn owned_here(&self) -> bool {
        self.shared_by.is_none_or(Owner::is_current)
    }

    /// Returns the address of `page`.
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
        // SAFETY: the range is the whole mapping, and no other code has mapped anything there, by the invariant of the
        // type. The mapping is being dropped, so no reference to its bytes exists.
        let unmapped = unsafe { munmap(start, pages * page_size()) };
        if unmapped.is_err() {
            // The kernel joined the range with a neighbouring mapping, and the process has no mapping left to split it
            // off. The memory is given back, but the addresses stay mapped.
            // SAFETY: as above.
            let _ = unsafe { self.discard(&PageSet::all(self.pages())) };
        }
    }
}

/// Returns the process in which a mapping of `source` has to stay, if it is shared.
fn sharer(source: Source<'_>) -> io::Result<Option<Owner>> {
    let Source::Shared(file) = source else { return Ok(None) };
    Ok(Some(Owner::of_shared(file)?))
}

/// Returns the protection of a new mapping of `source`.
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
/// With `MAP_FIXED` in `flags`, the addresses must belong to a mapping of the caller. No reference to bytes there may
/// exist, unless the new mapping shows the same bytes.
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
        // A read-only mapping is private too: kernels before 6.7 refuse any shared mapping of a file that is sealed
        // against writes.
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
/// is aligned as well. So both mostly make one system call for each mapping. If the address is not aligned, it looks
/// for a free range that is long enough to contain an aligned address.
fn map_aligned(alignment: usize, range: PageRange, source: Source<'_>) -> io::Result<NonNull<u8>> {
    static LAST: AtomicUsize = AtomicUsize::new(0);
    /// This is more than one because another thread may take the addresses between two calls.
    const ATTEMPTS: usize = 2;
    let map_at = |address: usize| {
        let address = ptr::without_provenance_mut(address);
        // SAFETY: without MAP_FIXED the kernel picks an unused address, so no memory in use changes.
        unsafe { map(address, range, source, access_to(source), MapFlags::empty()) }
    };
    let unmap = |start: NonNull<u8>, len| {
        // SAFETY: the range was mapped just now, and its address was not stored anywhere.
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

/// What [`plug`] found.
#[derive(PartialEq, Eq, Debug)]
enum Plugged {
    /// The old mapping is still there.
    Nothing,
    /// The old mapping was gone, and zeroes were mapped in its place.
    All,
}

/// Keeps a range mapped after a failed `MAP_FIXED`.
///
/// If the old mapping is gone, maps zeroes with `access` in its place.
///
/// Aborts the process if that is impossible, because another thread has mapped something in the hole or there is no
/// memory for zeroes. Other threads may hold slices of the range and pointers into it, which an error cannot take back.
///
/// The old mapping is there in full or not at all. So if only a part of the range is mapped, that part belongs to
/// another thread. If another thread's mapping fills the hole exactly, it cannot be distinguished from the old mapping.
/// This requires one of the rare failures above, and that the thread maps exactly these addresses before the next
/// system call here.
fn plug(start: *mut c_void, len: usize, access: ProtFlags) -> Plugged {
    let flags = MapFlags::PRIVATE | NO_RESERVE | NO_REPLACE;
    // SAFETY: with these flags the call replaces no mapping, so no memory in use changes.
    match unsafe { mmap_anonymous(start, len, access, flags) } {
        Ok(mapped) if mapped == start => return Plugged::All,
        Ok(elsewhere) => {
            // This system treats the address as a hint, and it was in use.
            // SAFETY: the mapping was made just now, and its address was not stored anywhere.
            let _ = unsafe { munmap(elsewhere, len) };
        }
        Err(_) => {}
    }
    // The call fails with ENOMEM if a page of the range is not mapped. It may also start to write pages of files back.
    // SAFETY: the call changes no mapping and no byte.
    if unsafe { msync(start, len, MsyncFlags::ASYNC) } == Err(Errno::NOMEM) {
        let _ = writeln!(
            io::stderr(),
            "memsnap: {len} bytes of a view at {start:p} were lost, because they could not be mapped again"
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
        // SAFETY: the page is inside the mapping and writable, no reference to its bytes exists, and `bytes` is
        // elsewhere.
        unsafe { mapping.write(1, &bytes) };
        assert_eq!(plug(start, len, ProtFlags::READ), Plugged::Nothing);
        // SAFETY: the page is inside the mapping and readable, and nothing writes to it.
        assert_eq!(unsafe { mapping.page(1) }, bytes);
        // If the page were gone or read-only, this would end the process.
        // SAFETY: as for the first write.
        unsafe { mapping.write(1, &bytes) };

        // This runs in a child, because another thread of this process could map something in the hole.
        // SAFETY: until it ends, the child only makes system calls and writes to its own memory.
        let child = unsafe { libc::fork() };
        if child == 0 {
            // SAFETY: no reference to the mapping's bytes exists.
            let _ = unsafe { munmap(start, len) };
            plug(start, len, ProtFlags::READ | ProtFlags::WRITE);
            // SAFETY: as for the first write. If the hole is still there, this ends the child.
            unsafe { mapping.write(1, &bytes) };
            // SAFETY: the page is inside the mapping and readable, and nothing writes to it.
            let zero = unsafe { mapping.page(0) }.iter().all(|byte| *byte == 0);
            // SAFETY: the call ends the child at once and runs no other code.
            unsafe { libc::_exit(i32::from(!zero)) };
        }
        let mut status = -1;
        // SAFETY: the kernel writes to `status` only.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        assert_eq!(status, 0, "the hole is there, or not zero");
    }

    /// Regression test: the view took another thread's mapping in a part of the hole for its own.
    ///
    /// It showed its bytes, and unmapped it when the view was dropped.
    #[test]
    fn a_hole_in_which_something_else_lies_ends_the_process() {
        let name = "sys::unix::mapping::tests::a_plug_with_something_else_in_the_hole";
        let program = std::env::current_exe().unwrap();
        let output = process::Command::new(program).args([name, "--exact", "--ignored"]).output().unwrap();
        let messages = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{output:?}");
        assert!(messages.contains("could not be mapped again"), "{messages}");
    }

    #[test]
    #[ignore = "ends the process; the test above runs it"]
    fn a_plug_with_something_else_in_the_hole() {
        let mapping = Mapping::new(4, Source::Zero).unwrap();
        // The pages that stay mapped stand for the other thread's mapping.
        // SAFETY: no reference to the mapping's bytes exists.
        unsafe { munmap(mapping.address(1), 2 * page_size()) }.unwrap();
        plug(mapping.address(0), mapping.len(), ProtFlags::READ | ProtFlags::WRITE);
    }
}
