//! Address ranges: what a [`Mapping`] consists of, and how it is made, resized and replaced.
//!
//! A mapping reserves its whole address range as one placeholder, and never gives up an address until it is dropped.
//! `placeholders.rs` maps memory in placeholders and turns mapped memory back into placeholders. `access.rs` sets the
//! protection of mapped pages. What files and sections are is up to `file.rs` and `section.rs`.
#![allow(unsafe_code)]

mod access;
mod placeholders;
#[cfg(test)]
mod tests;

use std::ffi::c_void;
use std::io;
use std::ops::Deref;
use std::ptr::{self, NonNull};

use windows_sys::Win32::Foundation::ERROR_INVALID_ADDRESS;
use windows_sys::Win32::System::Memory::{
    DiscardVirtualMemory, MEM_RELEASE, MEM_RESERVE, MEM_RESERVE_PLACEHOLDER, MEMORY_MAPPED_VIEW_ADDRESS,
    PAGE_NOACCESS, UnmapViewOfFile, VIRTUAL_FREE_TYPE, VirtualAlloc2, VirtualFree,
};

use super::page_size;
use super::section::{checked, this_process};
use crate::access::Access;
use crate::error::address_in_use;
use crate::pages::{PageRange, PageSet};
use crate::sys::Populate;
use crate::sys::{Entries, Overlay, Placement, Source, Span, call};

/// The number of inaccessible bytes before all other pages of a mapping.
///
/// They only work around Wine 10: if the first 64 KiB of a range are cut in two, it takes the range for free.
const LEAD: usize = 1 << 16;

/// What the address of a reserved range is a multiple of, in bytes.
const GRANULARITY: usize = 1 << 16;

/// An address range that belongs to its owner until it is dropped.
///
/// Invariants:
///
/// - The addresses are those of `before` pages (which include [`LEAD`]), of the pages of `span` and of `behind` pages.
///   All of them belong to this mapping. `regions` describes what is mapped there, in ascending order and without gaps.
/// - The pages outside of `span` are inaccessible, except where `truncate` or a failed `extend` could not make them so.
///   Those of `span` can be read and written as [`set_access`](Self::set_access) allows, except where a failed call
///   left placeholders, which are inaccessible, or stopgaps, which are read-only.
pub(crate) struct Mapping {
    span: Span,
    before: usize,
    behind: usize,
    regions: Vec<Region>,
    executable: bool,
    /// Whether the system is to keep track of the pages written in private memory of zeroes.
    watched: bool,
}

/// A part of a mapping that one system call made and one system call can release.
#[derive(Clone, Copy)]
struct Region {
    /// The pages, counted from the first page of the whole address range, `before` included.
    range: PageRange,
    content: Content,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    /// Reserved addresses in which nothing is mapped.
    Placeholder,
    /// Private memory. If it is `watched`, the system keeps track of the pages written.
    Zeroes { watched: bool },
    /// A copy-on-write view of a section.
    Private,
    /// A view of a section; writes go into the section.
    Shared,
    /// A read-only view of a section.
    ReadOnly,
    /// A read-only view of zeroes, where the system had no memory for what was to be mapped.
    Stopgap,
}

impl Deref for Mapping {
    type Target = Span;

    fn deref(&self) -> &Span {
        &self.span
    }
}

impl Mapping {
    /// Maps `pages` pages of `source` at an address that the system picks.
    pub(crate) fn new(pages: usize, source: Source<'_>) -> io::Result<Self> {
        let mut mapping = Self::reserve(pages, &Placement::default())?;
        mapping.fill(0, pages, source, &[])?;
        Ok(mapping)
    }

    /// Maps `pages` pages of `source` at an address that satisfies `placement`.
    ///
    /// `over` names other sources for some of the pages.
    pub(crate) fn placed(
        pages: usize,
        source: Source<'_>,
        over: &[Overlay<'_>],
        placement: &Placement,
    ) -> io::Result<Self> {
        let mut mapping = Self::reserve(pages, placement)?;
        mapping.executable = placement.executable;
        mapping.watched = true;
        mapping.fill(0, pages, source, over)?;
        Ok(mapping)
    }

    /// Returns a mapping without addresses. Its pointer is aligned to a page.
    pub(crate) fn empty() -> Self {
        let span = Span::empty();
        let regions = Vec::new();
        Self { span, before: 0, behind: 0, regions, executable: false, watched: false }
    }

    /// Reserves the addresses of a mapping of `pages` pages, as one placeholder.
    fn reserve(pages: usize, placement: &Placement) -> io::Result<Self> {
        let mut mapping = Self::empty();
        let &Placement { before, behind, address, .. } = placement;
        if before == 0 && pages == 0 && behind == 0 {
            return Ok(mapping);
        }
        let lead = LEAD / page_size();
        let total = [before, pages, behind].into_iter().try_fold(lead, usize::checked_add);
        let len = total.and_then(|total| total.checked_mul(page_size()));
        let len = len.filter(|&len| isize::try_from(len).is_ok()).ok_or(io::ErrorKind::OutOfMemory)?;
        let (start, lead) = match address {
            Some(address) => {
                // The addresses before the first page begin at a multiple of what the system can reserve.
                let in_use = || address_in_use(address.get(), len);
                let first = address.get().checked_sub((lead + before) * page_size()).ok_or_else(in_use)?;
                let unaligned = first % GRANULARITY;
                let start = reserve_placeholder(ptr::without_provenance(first - unaligned), len + unaligned)
                    .map_err(|error| if is_in_use(&error) { in_use() } else { error })?;
                (start, lead + unaligned / page_size())
            }
            None => (reserve_placeholder(ptr::null(), len)?, lead),
        };
        (mapping.before, mapping.behind) = (lead + before, behind);
        // SAFETY: the range has at least `before` pages, so the result is inside the allocation. Its length fits an
        // `isize`, as checked above.
        mapping.span.start = unsafe { start.add(mapping.before * page_size()) };
        mapping.span.pages = pages;
        let range = PageRange::new(0, mapping.before + pages + behind);
        mapping.regions.push(Region { range, content: Content::Placeholder });
        Ok(mapping)
    }

    /// Makes the next `pages` pages accessible, which then show the same pages of `source`.
    ///
    /// The mapping must have at least `pages` inaccessible pages behind.
    pub(crate) fn extend(&mut self, pages: usize, source: Source<'_>) -> io::Result<()> {
        debug_assert!(pages <= self.behind);
        self.check_owner()?;
        let (old, new) = (self.pages(), self.pages() + pages);
        self.vacate_covered(old)?;
        let hidden = self.hidden(old, new);
        let extended = hidden
            .iter()
            .try_for_each(|&part| self.uncover(part, source))
            .and_then(|()| self.fill(hidden.last().map_or(old, |&(range, _)| range.end), new, source, &[]));
        if extended.is_err() {
            let _ = self.cover(old, new);
            let _ = self.vacate_covered(old);
            return extended;
        }
        self.span.pages = new;
        self.behind -= pages;
        Ok(())
    }

    /// Makes the pages from `pages` on inaccessible.
    ///
    /// Gives back the memory of zeroes and of whole regions. A part of a view of a section stays mapped without access,
    /// because a view can only be unmapped as a whole.
    ///
    /// # Safety
    ///
    /// No reference to bytes of these pages may exist.
    pub(crate) unsafe fn truncate(&mut self, pages: usize) -> io::Result<()> {
        debug_assert!(pages <= self.pages());
        self.check_owner()?;
        let old = self.pages();
        if let Err((covered, error)) = self.cover(pages, old) {
            let range = PageRange::new(pages, covered);
            // SAFETY: the call takes no access away, so it invalidates no reference.
            if unsafe { self.set_access(range, Access::READ_WRITE) }.is_ok() {
                return Err(error);
            }
            // These pages cannot be made accessible again, so the mapping has to end before them. Some of the pages
            // behind its end may then still be accessible.
        }
        let _ = self.vacate_covered(pages);
        self.span.pages = pages;
        self.behind += old - pages;
        Ok(())
    }

    /// Maps `source` in place of the whole range. Private pages are lost.
    ///
    /// `over` names other sources for some of the pages. After an error, the bytes of the pages are unspecified. If
    /// [`check_usable`](Self::check_usable) fails as well, some of the pages cannot be read or written.
    ///
    /// # Safety
    ///
    /// No reference to bytes of the range may exist.
    pub(crate) unsafe fn replace(&mut self, source: Source<'_>, over: &[Overlay<'_>]) -> io::Result<()> {
        let pages = self.pages();
        let first = self.regions.partition_point(|region| region.range.end <= self.before);
        let replaced =
            self.vacate(first, self.regions.len()).and_then(|()| self.fill(0, pages, source, over));
        self.plug();
        replaced
    }

    /// Maps the same pages of `source` in place of `range`.
    ///
    /// Fails with `Unsupported` and changes nothing unless `range` consists of whole regions. A region can only be
    /// released as a whole, so its private pages outside of `range` would be lost.
    ///
    /// # Safety
    ///
    /// As for [`replace`](Self::replace), for the bytes of `range`.
    pub(crate) unsafe fn replace_part(&mut self, range: PageRange, source: Source<'_>) -> io::Result<()> {
        debug_assert!(range.end <= self.pages());
        if range.len() == 0 {
            return Ok(());
        }
        let (start, end) = (self.before + range.start, self.before + range.end);
        let first = self.regions.partition_point(|region| region.range.end <= start);
        let last = self.regions.partition_point(|region| region.range.start < end);
        let regions = &self.regions[first..last];
        if regions.first().is_none_or(|first| first.range.start != start)
            || regions.last().is_none_or(|last| last.range.end != end)
        {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let replaced = self.vacate(first, last).and_then(|()| self.fill(range.start, range.end, source, &[]));
        self.plug();
        replaced
    }

    /// Fails with `Unsupported` unless `pages` is empty.
    ///
    /// A view of a section cannot drop single private pages. Private memory can be decommitted, but committing it again
    /// may fail.
    ///
    /// # Safety
    ///
    /// No reference to bytes of these pages may exist.
    pub(crate) unsafe fn discard(&self, pages: &PageSet) -> io::Result<()> {
        if pages.is_empty() { Ok(()) } else { Err(io::ErrorKind::Unsupported.into()) }
    }

    /// Gives back the memory of `pages`, whose bytes are unspecified afterwards.
    ///
    /// Only for mappings of zeroes.
    ///
    /// # Safety
    ///
    /// No reference to bytes of these pages may exist.
    pub(crate) unsafe fn give_back(&self, pages: &PageSet) -> io::Result<()> {
        for &range in pages.ranges() {
            debug_assert!(range.end <= self.pages());
            call("DiscardVirtualMemory")?;
            let (start, len) = (self.page_ptr(range.start), range.len() * page_size());
            // SAFETY: the range is inside this mapping. The caller promises that no reference to its bytes exists, so
            // they may change.
            let result = unsafe { DiscardVirtualMemory(start.as_ptr().cast(), len) };
            if result != 0 {
                return Err(io::Error::from_raw_os_error(result.cast_signed()));
            }
        }
        Ok(())
    }

    /// Always fails with `Unsupported`: Windows does not report which pages are in huge pages.
    pub(crate) fn entries(&self, _: PageRange) -> io::Result<Entries> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Fails with `Unsupported` unless `populate` is `No`.
    ///
    /// Only an access brings pages into the working set.
    pub(crate) fn populate(&self, _: PageRange, populate: Populate) -> io::Result<()> {
        if populate == Populate::No { Ok(()) } else { Err(io::ErrorKind::Unsupported.into()) }
    }

    /// Returns the numbers of inaccessible pages before and behind the mapping, without [`LEAD`].
    pub(crate) fn inaccessible(&self) -> (usize, usize) {
        (self.before.saturating_sub(LEAD / page_size()), self.behind)
    }

    /// Always succeeds: Windows does not fork processes.
    pub(crate) fn check_owner(&self) -> io::Result<()> {
        Ok(())
    }

    /// Fails if an earlier failed call left pages that cannot be both read and written.
    pub(crate) fn check_usable(&self) -> io::Result<()> {
        let unusable = |content| matches!(content, Content::Placeholder | Content::Stopgap);
        if !self.contents(self.all()).any(|(_, content)| unusable(content)) {
            return Ok(());
        }
        Err(io::Error::new(
            io::ErrorKind::OutOfMemory,
            "there was no memory to map this view again, and its bytes are lost; restore it when memory is available",
        ))
    }

    /// Returns the parts of `range` with their contents, in ascending order.
    pub(super) fn contents(&self, range: PageRange) -> impl Iterator<Item = (PageRange, Content)> {
        let (start, end) = (self.before + range.start, self.before + range.end);
        let first = self.regions.partition_point(|region| region.range.end <= start);
        let regions = self.regions[first..].iter().take_while(move |region| region.range.start < end);
        let regions = regions.filter(move |_| start < end);
        regions.map(move |region| {
            let (start, end) = (region.range.start.max(start), region.range.end.min(end));
            (PageRange::new(start - self.before, end - self.before), region.content)
        })
    }

    /// Returns the address of a page that is counted as in `regions`.
    fn address(&self, page: usize) -> *mut c_void {
        let start = self.start.as_ptr().wrapping_sub(self.before * page_size());
        start.wrapping_add(page * page_size()).cast()
    }
}

/// Reserves `len` bytes as one placeholder, at `address` or, if that is null, where the system wants to.
fn reserve_placeholder(address: *const c_void, len: usize) -> io::Result<NonNull<u8>> {
    call("VirtualAlloc2")?;
    let kind = MEM_RESERVE | MEM_RESERVE_PLACEHOLDER;
    // SAFETY: the system reserves only unused addresses, so no memory in use changes. No extended parameters are passed,
    // as their number says.
    let start =
        unsafe { VirtualAlloc2(this_process(), address, len, kind, PAGE_NOACCESS, ptr::null_mut(), 0) };
    NonNull::new(start.cast::<u8>()).ok_or_else(io::Error::last_os_error)
}

/// Whether a call failed because addresses are in use.
fn is_in_use(error: &io::Error) -> bool {
    error.raw_os_error() == i32::try_from(ERROR_INVALID_ADDRESS).ok()
}

impl Drop for Mapping {
    fn drop(&mut self) {
        for &Region { range, content } in &self.regions {
            let start = self.address(range.start);
            // A region that cannot be released stays allocated.
            let _ = match content {
                // SAFETY: `start` is the start of one allocation of this mapping, as `regions` says. The mapping is
                // being dropped, so no reference to its bytes exists.
                Content::Placeholder | Content::Zeroes { .. } => unsafe { free(start, 0, MEM_RELEASE) },
                Content::Private | Content::Shared | Content::ReadOnly | Content::Stopgap => {
                    // SAFETY: as above, for a view.
                    checked(unsafe { UnmapViewOfFile(MEMORY_MAPPED_VIEW_ADDRESS { Value: start }) })
                }
            };
        }
    }
}

/// Releases, decommits, splits or joins the range, as `kind` says.
///
/// # Safety
///
/// The range must belong to a mapping, and must be what `VirtualFree` requires for `kind`. No reference to bytes that
/// the call removes may exist.
unsafe fn free(start: *mut c_void, len: usize, kind: VIRTUAL_FREE_TYPE) -> io::Result<()> {
    // SAFETY: the caller promises what `VirtualFree` requires.
    checked(unsafe { VirtualFree(start, len, kind) })
}
