//! Address ranges: placeholders, and what is mapped into them.
#![allow(unsafe_code)]

use std::collections::BTreeSet;
use std::ffi::c_void;
use std::io;
use std::ops::Deref;
use std::os::windows::io::{AsRawHandle, OwnedHandle};
use std::ptr::{self, NonNull};
use std::sync::OnceLock;

use windows_sys::Win32::System::Diagnostics::Debug::FlushInstructionCache;
use windows_sys::Win32::System::Memory::{
    DiscardVirtualMemory, MEM_COMMIT, MEM_DECOMMIT, MEM_PRESERVE_PLACEHOLDER, MEM_RELEASE,
    MEM_REPLACE_PLACEHOLDER, MEM_RESERVE, MEM_RESERVE_PLACEHOLDER, MEMORY_MAPPED_VIEW_ADDRESS,
    MapViewOfFile3, PAGE_EXECUTE_READ, PAGE_EXECUTE_READWRITE, PAGE_EXECUTE_WRITECOPY, PAGE_NOACCESS,
    PAGE_PROTECTION_FLAGS, PAGE_READONLY, PAGE_READWRITE, PAGE_WRITECOPY, UnmapViewOfFile, UnmapViewOfFile2,
    VIRTUAL_FREE_TYPE, VirtualAlloc, VirtualAlloc2, VirtualFree, VirtualProtect,
};
use windows_sys::Win32::System::SystemServices::{MEM_COALESCE_PLACEHOLDERS, MEM_WRITE_WATCH};

use super::page_size;
use super::section::{self, checked, this_process};
use crate::access::Access;
use crate::pages::{PageRange, PageSet};
use crate::sys::Populate;
use crate::sys::{Entries, Overlay, Placement, Source, Span, call};

/// Pages of the section of zeroes that stands in for memory where there is none to be had.
const ZERO_PAGES: usize = 256;

/// Bytes of inaccessible addresses before all others, of no use but this: Wine 10 takes a range for free whose first
/// 64 KiB are cut in two.
const LEAD: usize = 1 << 16;

/// An address range that belongs to its owner until it is dropped.
///
/// Invariant: `regions` are, in order and without gaps, what the system has in the addresses of `before` pages ([`LEAD`]
/// among them), those of `span`, and `behind` pages, and nobody else has any there. All but those of `span` are inaccessible; those
/// can be read and written, but for what a failed call left: placeholders, which are inaccessible, and stopgaps, which can
/// only be read.
pub(crate) struct Mapping {
    span: Span,
    before: usize,
    behind: usize,
    regions: Vec<Region>,
    executable: bool,
    /// Written pages of zeroes will be asked for.
    watched: bool,
}

/// What one call into the system made, and one can unmake.
#[derive(Clone, Copy)]
struct Region {
    /// Counted from the first page of the whole range, `before` included.
    range: PageRange,
    content: Content,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    Placeholder,
    /// Private memory; `watched` if the system keeps track of the pages written.
    Zeroes {
        watched: bool,
    },
    /// A view of a section, copied where it is written.
    Private,
    /// A view of a section that is written.
    Shared,
    /// A view of a section, read-only.
    ReadOnly,
    /// The same, of zeroes, in place of what there was no memory for.
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

    /// Maps `pages` pages of `source`, and in place of it others, at an address that has what `placement` asks for.
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

    /// No addresses at all; the pointer is aligned to a page.
    pub(crate) fn empty() -> Self {
        let span = Span::empty();
        let regions = Vec::new();
        Self { span, before: 0, behind: 0, regions, executable: false, watched: false }
    }

    /// A range of `pages` pages, none of which can be touched yet.
    fn reserve(pages: usize, placement: &Placement) -> io::Result<Self> {
        let mut mapping = Self::empty();
        let &Placement { before, behind, .. } = placement;
        if before == 0 && pages == 0 && behind == 0 {
            return Ok(mapping);
        }
        let lead = LEAD / page_size();
        let total = [before, pages, behind].into_iter().try_fold(lead, usize::checked_add);
        let len = total.and_then(|total| total.checked_mul(page_size()));
        let len = len.filter(|&len| isize::try_from(len).is_ok()).ok_or(io::ErrorKind::OutOfMemory)?;
        call("VirtualAlloc2")?;
        let kind = MEM_RESERVE | MEM_RESERVE_PLACEHOLDER;
        // SAFETY: the system picks an unused address, so that no memory in use changes.
        let start = unsafe {
            VirtualAlloc2(this_process(), ptr::null(), len, kind, PAGE_NOACCESS, ptr::null_mut(), 0)
        };
        let start = NonNull::new(start.cast::<u8>()).ok_or_else(io::Error::last_os_error)?;
        (mapping.before, mapping.behind) = (lead + before, behind);
        // SAFETY: the range has room for all the pages before the first.
        mapping.span.start = unsafe { start.add(mapping.before * page_size()) };
        mapping.span.pages = pages;
        let range = PageRange::new(0, len / page_size());
        mapping.regions.push(Region { range, content: Content::Placeholder });
        Ok(mapping)
    }

    /// Makes `pages` more pages accessible, which show the same pages of `source`. There are at least as many
    /// inaccessible ones behind.
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

    /// Makes the pages from `pages` on inaccessible and gives their memory back, as far as whole regions are among
    /// them.
    ///
    /// # Safety
    ///
    /// Nobody holds a reference to bytes of these pages.
    pub(crate) unsafe fn truncate(&mut self, pages: usize) -> io::Result<()> {
        debug_assert!(pages <= self.pages());
        self.check_owner()?;
        let old = self.pages();
        if let Err((covered, error)) = self.cover(pages, old) {
            let range = PageRange::new(pages, covered);
            // SAFETY: nothing is taken away.
            if unsafe { self.set_access(range, Access::READ_WRITE) }.is_ok() {
                return Err(error);
            }
            // Pages that cannot be had back are not the view's any more, though some of the others may be accessible.
        }
        let _ = self.vacate_covered(pages);
        self.span.pages = pages;
        self.behind += old - pages;
        Ok(())
    }

    /// Shows `source`, and in place of it others, instead of what the whole range shows now; private pages go.
    ///
    /// # Safety
    ///
    /// Nobody holds a reference to bytes of the range.
    pub(crate) unsafe fn replace(&mut self, source: Source<'_>, over: &[Overlay<'_>]) -> io::Result<()> {
        let pages = self.pages();
        let first = self.regions.partition_point(|region| region.range.end <= self.before);
        let replaced =
            self.vacate(first, self.regions.len()).and_then(|()| self.fill(0, pages, source, over));
        self.plug();
        replaced
    }

    /// Shows the same pages of `source` in place of what `range` shows now. Fails with `Unsupported`, and changes nothing,
    /// unless that is whole regions: of others, the private pages around would be lost.
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

    /// Says what may be done with the bytes of `range`; those that may be run are run as they are now. After an error that may be anything, for each page.
    ///
    /// # Safety
    ///
    /// Nobody holds a reference to bytes of `range` that needs what is taken away.
    pub(crate) unsafe fn set_access(&self, range: PageRange, access: Access) -> io::Result<()> {
        debug_assert!(range.end <= self.pages());
        let mut mapped = self.contents(range).filter(|(_, content)| *content != Content::Placeholder);
        mapped.try_for_each(|(part, content)| {
            // SAFETY: the caller's promise.
            unsafe { self.protect(part, content.protection(access)) }
        })?;
        if access.can_execute() {
            call("FlushInstructionCache")?;
            let (start, len) = (self.page_ptr(range.start), range.len() * page_size());
            // SAFETY: the range is inside this mapping, and can be read now; no byte of it changes.
            checked(unsafe { FlushInstructionCache(this_process(), start.as_ptr().cast(), len) })?;
        }
        Ok(())
    }

    /// Private pages of a view of a section cannot be dropped one by one, and those of zeroes not without the risk of
    /// not getting others for them.
    ///
    /// # Safety
    ///
    /// Nobody holds a reference to bytes of these pages.
    pub(crate) unsafe fn discard(&self, pages: &PageSet) -> io::Result<()> {
        if pages.is_empty() { Ok(()) } else { Err(io::ErrorKind::Unsupported.into()) }
    }

    /// Gives back the memory of `pages`, whose bytes are anything afterwards. For mappings of zeroes.
    ///
    /// # Safety
    ///
    /// Nobody holds a reference to bytes of these pages.
    pub(crate) unsafe fn give_back(&self, pages: &PageSet) -> io::Result<()> {
        for &range in pages.ranges() {
            debug_assert!(range.end <= self.pages());
            call("DiscardVirtualMemory")?;
            let (start, len) = (self.page_ptr(range.start), range.len() * page_size());
            // SAFETY: the range is inside this mapping, and its bytes are the caller's to change.
            let result = unsafe { DiscardVirtualMemory(start.as_ptr().cast(), len) };
            if result != 0 {
                return Err(io::Error::from_raw_os_error(result.cast_signed()));
            }
        }
        Ok(())
    }

    /// Always fails: the system does not say.
    pub(crate) fn entries(&self, _: PageRange) -> io::Result<Entries> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// There is nothing that brings pages into the working set but to touch them.
    pub(crate) fn populate(&self, _: PageRange, populate: Populate) -> io::Result<()> {
        if populate == Populate::No { Ok(()) } else { Err(io::ErrorKind::Unsupported.into()) }
    }

    /// The inaccessible pages before it and behind it.
    pub(crate) fn inaccessible(&self) -> (usize, usize) {
        (self.before.saturating_sub(LEAD / page_size()), self.behind)
    }

    /// There are no forked children.
    pub(crate) fn check_owner(&self) -> io::Result<()> {
        Ok(())
    }

    /// Fails if a failed call left pages that cannot be read and written.
    pub(crate) fn check_usable(&self) -> io::Result<()> {
        let unusable = |content| matches!(content, Content::Placeholder | Content::Stopgap);
        if !self.contents(self.all()).any(|(_, content)| unusable(content)) {
            return Ok(());
        }
        Err(io::Error::new(
            io::ErrorKind::OutOfMemory,
            "there was no memory to map this view anew, and its bytes are gone; restore it once there is memory",
        ))
    }

    /// What `range` shows, part by part.
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

    /// The address of a page counted as in `regions`.
    fn address(&self, page: usize) -> *mut c_void {
        let start = self.start.as_ptr().wrapping_sub(self.before * page_size());
        start.wrapping_add(page * page_size()).cast()
    }

    /// The pages from `start` to `end`, behind the last, that are mapped all the same: they were truncated.
    fn hidden(&self, start: usize, end: usize) -> Vec<(PageRange, Content)> {
        let is_mapped = |(_, content): &(PageRange, Content)| *content != Content::Placeholder;
        self.contents(PageRange::new(start, end)).take_while(is_mapped).collect()
    }

    /// Makes a truncated part accessible again, so that it shows `source`.
    fn uncover(&self, (range, content): (PageRange, Content), source: Source<'_>) -> io::Result<()> {
        let (start, len) = (self.address(self.before + range.start), range.len() * page_size());
        match (content, source) {
            (Content::Zeroes { .. }, Source::Zero) => self.commit(range),
            (Content::Private, Source::Zero) | (Content::Shared, Source::Zero | Source::Shared(_)) => {
                // SAFETY: nothing is taken away.
                unsafe { self.protect(range, content.protection(Access::READ_WRITE)) }?;
                if let Source::Zero = source {
                    // SAFETY: the range is inside this mapping, writable, and nobody refers to it yet.
                    unsafe { start.cast::<u8>().write_bytes(0, len) };
                }
                Ok(())
            }
            (Content::Stopgap, _) => {
                // SAFETY: nothing is taken away.
                unsafe { self.protect(range, PAGE_READONLY) }
            }
            _ => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Makes pages accessible that are not yet, and nobody knows of.
    fn commit(&self, range: PageRange) -> io::Result<()> {
        call("VirtualAlloc")?;
        let (start, len) = (self.address(self.before + range.start), range.len() * page_size());
        // SAFETY: the range is inside this mapping, and nobody refers to it yet.
        let start = unsafe { VirtualAlloc(start, len, MEM_COMMIT, PAGE_READWRITE) };
        if start.is_null() { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Makes the pages from `start` to `end` inaccessible where they are mapped. An error tells the page from which on they
    /// are not.
    fn cover(&self, start: usize, end: usize) -> Result<(), (usize, io::Error)> {
        let mut mapped =
            self.contents(PageRange::new(start, end)).filter(|(_, content)| *content != Content::Placeholder);
        mapped.try_for_each(|(range, _)| {
            // SAFETY: the callers' promise, or nobody knows of these pages yet.
            unsafe { self.protect(range, PAGE_NOACCESS) }.map_err(|error| (range.start, error))
        })
    }

    /// Gives back what is mapped from page `start` on, which is inaccessible: whole regions, and memory.
    fn vacate_covered(&mut self, start: usize) -> io::Result<()> {
        let first = self.before + start;
        let next = self.regions.partition_point(|region| region.range.start < first);
        let straddling = next.checked_sub(1).map(|index| self.regions[index]);
        match straddling.filter(|region| region.range.end > first) {
            Some(Region { range, content: Content::Zeroes { .. } }) => {
                call("VirtualFree")?;
                let (start, len) = (self.address(first), (range.end - first) * page_size());
                // SAFETY: the range is private memory of this mapping, and inaccessible, so that nobody refers to it.
                unsafe { free(start, len, MEM_DECOMMIT) }?;
            }
            // A failed call left it.
            Some(Region { content: Content::Placeholder, .. }) => self.cut(first)?,
            _ => {}
        }
        self.vacate(next, self.regions.len())
    }

    /// # Safety
    ///
    /// As for [`set_access`](Self::set_access).
    unsafe fn protect(&self, range: PageRange, protection: PAGE_PROTECTION_FLAGS) -> io::Result<()> {
        call("VirtualProtect")?;
        let mut before = 0;
        let (start, len) = (self.address(self.before + range.start), range.len() * page_size());
        // SAFETY: the range is inside this mapping; who refers to its bytes is the caller's promise.
        checked(unsafe { VirtualProtect(start, len, protection, &raw mut before) })
    }

    /// Turns the regions number `first` to `last` into one placeholder.
    fn vacate(&mut self, first: usize, last: usize) -> io::Result<()> {
        for index in first..last {
            let Region { range, content } = self.regions[index];
            let (start, len) = (self.address(range.start), range.len() * page_size());
            match content {
                Content::Placeholder => continue,
                Content::Zeroes { .. } => {
                    call("VirtualFree")?;
                    // SAFETY: the range is all of one allocation; callers own its bytes.
                    unsafe { free(start, len, MEM_RELEASE | MEM_PRESERVE_PLACEHOLDER) }?;
                }
                Content::Private | Content::Shared | Content::ReadOnly | Content::Stopgap => {
                    call("UnmapViewOfFile2")?;
                    let view = MEMORY_MAPPED_VIEW_ADDRESS { Value: start };
                    // SAFETY: the range is all of one view; callers own its bytes.
                    checked(unsafe { UnmapViewOfFile2(this_process(), view, MEM_PRESERVE_PLACEHOLDER) })?;
                }
            }
            self.regions[index].content = Content::Placeholder;
        }
        if last > first + 1 {
            let range = PageRange::new(self.regions[first].range.start, self.regions[last - 1].range.end);
            call("VirtualFree")?;
            let (start, len) = (self.address(range.start), range.len() * page_size());
            // SAFETY: the range is placeholders, in which nothing is.
            unsafe { free(start, len, MEM_RELEASE | MEM_COALESCE_PLACEHOLDERS) }?;
            let merged = Region { range, content: Content::Placeholder };
            self.regions.splice(first..last, std::iter::once(merged));
        }
        Ok(())
    }

    /// Maps `source`, and in place of it others, from page `start` to `end`, which is within one placeholder.
    fn fill(&mut self, start: usize, end: usize, source: Source<'_>, over: &[Overlay<'_>]) -> io::Result<()> {
        for (range, source) in disjoint(PageRange::new(start, end), source, over) {
            let (Source::Private(file) | Source::Shared(file) | Source::ReadOnly(file)) = source else {
                self.map_zeroes(range)?;
                continue;
            };
            for (pages, section) in file.sections() {
                let (start, end) = (range.start.max(pages.start), range.end.min(pages.end));
                if start >= end {
                    continue;
                }
                let (part, offset) = (PageRange::new(start, end), (start - pages.start) * page_size());
                match source {
                    Source::Shared(_) => {
                        file.with_writer(|section| self.map_view(part, Content::Shared, section, offset))
                    }
                    Source::ReadOnly(_) => self.map_view(part, Content::ReadOnly, section, offset),
                    Source::Private(_) | Source::Zero => {
                        self.map_view(part, Content::Private, section, offset)
                    }
                }?;
            }
        }
        Ok(())
    }

    /// Maps private memory in the placeholder that has `range`.
    fn map_zeroes(&mut self, range: PageRange) -> io::Result<()> {
        let index = self.carve(range)?;
        let watched = self.watched && self.allocate(range, MEM_WRITE_WATCH).is_ok();
        if !watched {
            self.allocate(range, 0)?;
        }
        self.regions[index].content = Content::Zeroes { watched };
        Ok(())
    }

    fn allocate(&self, range: PageRange, more: u32) -> io::Result<()> {
        call("VirtualAlloc2")?;
        let (start, len) = (self.address(self.before + range.start), range.len() * page_size());
        let kind = MEM_RESERVE | MEM_COMMIT | MEM_REPLACE_PLACEHOLDER | more;
        // SAFETY: the range is a placeholder of this mapping, in which nothing is.
        let allocated =
            unsafe { VirtualAlloc2(this_process(), start, len, kind, PAGE_READWRITE, ptr::null_mut(), 0) };
        if allocated.is_null() { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Maps a view of `section` from byte `offset` on in the placeholder that has `range`.
    fn map_view(
        &mut self,
        range: PageRange,
        content: Content,
        section: &OwnedHandle,
        offset: usize,
    ) -> io::Result<()> {
        let index = self.carve(range)?;
        call("MapViewOfFile3")?;
        let access = content.protection(Access::READ_WRITE);
        let most = if self.executable { executable(access) } else { access };
        let (start, len) = (self.address(self.before + range.start), range.len() * page_size());
        let view = |protection| {
            // SAFETY: the range is a placeholder of this mapping, in which nothing is.
            let view = unsafe {
                MapViewOfFile3(
                    section.as_raw_handle(),
                    this_process(),
                    start,
                    offset as u64,
                    len,
                    MEM_REPLACE_PLACEHOLDER,
                    protection,
                    ptr::null_mut(),
                    0,
                )
            };
            if view.Value.is_null() { Err(io::Error::last_os_error()) } else { Ok(()) }
        };
        // A section that cannot be executable still has all other views.
        let mapped = view(most)
            .map(|()| most)
            .or_else(|error| if most == access { Err(error) } else { view(access).map(|()| access) })?;
        self.regions[index].content = content;
        if content == Content::Shared {
            // They are committed, but Wine 10 does not know that of a view other than the one by which they were.
            self.commit(range)?;
        }
        if mapped != access {
            // SAFETY: nobody knows of these pages yet, or what they showed is gone.
            unsafe { self.protect(range, access) }?;
        }
        Ok(())
    }

    /// Cuts a placeholder of just the pages `range` out of the one that has them, and gives its number among the regions.
    fn carve(&mut self, range: PageRange) -> io::Result<usize> {
        let (start, end) = (self.before + range.start, self.before + range.end);
        self.cut(start)?;
        self.cut(end)?;
        Ok(self.regions.partition_point(|region| region.range.end <= start))
    }

    /// Cuts the placeholder in two that has `page`, unless it starts there.
    fn cut(&mut self, page: usize) -> io::Result<()> {
        let index = self.regions.partition_point(|region| region.range.end <= page);
        let Some(&Region { range, content }) = self.regions.get(index) else { return Ok(()) };
        if range.start == page {
            return Ok(());
        }
        if content != Content::Placeholder {
            return Err(io::ErrorKind::Unsupported.into());
        }
        call("VirtualFree")?;
        let (start, len) = (self.address(range.start), (page - range.start) * page_size());
        // SAFETY: the range is a part of a placeholder, in which nothing is.
        unsafe { free(start, len, MEM_RELEASE | MEM_PRESERVE_PLACEHOLDER) }?;
        self.regions[index].range.start = page;
        self.regions.insert(index, Region { range: PageRange::new(range.start, page), content });
        Ok(())
    }

    /// After a failure: maps zeroes where nothing is mapped, so that the owner's pointer never dangles. Where there is no
    /// memory for that, they cannot be written, or nothing can be mapped at all, as
    /// [`check_usable`](Self::check_usable) tells.
    fn plug(&mut self) {
        let holes = self.contents(self.all()).filter(|(_, content)| *content == Content::Placeholder);
        for (hole, _) in holes.collect::<Vec<_>>() {
            let _ = self.map_zeroes(hole).or_else(|_| self.map_stopgap(hole));
        }
    }

    /// Maps zeroes that can be read, which takes no memory, in the placeholder that has `range`.
    fn map_stopgap(&mut self, range: PageRange) -> io::Result<()> {
        let zeroes = zeroes()?;
        range.iter().step_by(ZERO_PAGES).try_for_each(|start| {
            let part = PageRange::new(start, range.end.min(start + ZERO_PAGES));
            self.map_view(part, Content::Stopgap, zeroes, 0)
        })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        for &Region { range, content } in &self.regions {
            let start = self.address(range.start);
            // What cannot be released stays taken.
            let _ = match content {
                // SAFETY: the region is this mapping's, and its owner is going, so no references are left.
                Content::Placeholder | Content::Zeroes { .. } => unsafe { free(start, 0, MEM_RELEASE) },
                Content::Private | Content::Shared | Content::ReadOnly | Content::Stopgap => {
                    // SAFETY: as above.
                    checked(unsafe { UnmapViewOfFile(MEMORY_MAPPED_VIEW_ADDRESS { Value: start }) })
                }
            };
        }
    }
}

impl Content {
    fn protection(self, access: Access) -> PAGE_PROTECTION_FLAGS {
        match self {
            _ if !access.can_read() => PAGE_NOACCESS,
            _ if access.can_execute() => PAGE_EXECUTE_READ,
            Self::Zeroes { .. } | Self::Shared if access.can_write() => PAGE_READWRITE,
            Self::Private if access.can_write() => PAGE_WRITECOPY,
            _ => PAGE_READONLY,
        }
    }
}

/// The protection that lets a view be executable later.
fn executable(protection: PAGE_PROTECTION_FLAGS) -> PAGE_PROTECTION_FLAGS {
    match protection {
        PAGE_WRITECOPY => PAGE_EXECUTE_WRITECOPY,
        PAGE_READWRITE => PAGE_EXECUTE_READWRITE,
        PAGE_READONLY => PAGE_EXECUTE_READ,
        other => other,
    }
}

/// # Safety
///
/// The range is a mapping's own, and nobody holds a reference to bytes of it that do not stay.
unsafe fn free(start: *mut c_void, len: usize, kind: VIRTUAL_FREE_TYPE) -> io::Result<()> {
    // SAFETY: forwarded to the caller.
    checked(unsafe { VirtualFree(start, len, kind) })
}

/// A section of [`ZERO_PAGES`] zeroes, which nobody can write to.
fn zeroes() -> io::Result<&'static OwnedHandle> {
    static ZEROES: OnceLock<OwnedHandle> = OnceLock::new();
    if let Some(zeroes) = ZEROES.get() {
        return Ok(zeroes);
    }
    let zeroes = section::create(ZERO_PAGES * page_size(), false)?;
    Ok(ZEROES.get_or_init(|| zeroes))
}

/// The pages `range` with the source that counts for each: the last of `over` that has it, else `source`.
fn disjoint<'a>(range: PageRange, source: Source<'a>, over: &[Overlay<'a>]) -> Vec<Overlay<'a>> {
    let mut cuts = vec![(range.start, true, 0), (range.end, false, 0)];
    for (number, (part, _)) in over.iter().enumerate().filter(|(_, (part, _))| part.len() > 0) {
        cuts.push((part.start, true, number + 1));
        cuts.push((part.end, false, number + 1));
    }
    cuts.sort_unstable();
    let (mut parts, mut here, mut from) = (Vec::new(), BTreeSet::<usize>::new(), range.start);
    for (page, starts, number) in cuts {
        if let Some(&last) = here.last()
            && from < page
        {
            let source = if last == 0 { source } else { over[last - 1].1 };
            parts.push((PageRange::new(from, page), source));
        }
        from = page;
        if starts {
            here.insert(number)
        } else {
            here.remove(&number)
        };
    }
    parts
}

#[cfg(test)]
mod tests {
    use windows_sys::Win32::System::Memory::MEM_FREE;

    use super::*;
    use crate::sys::MemoryFile;
    use crate::sys::fault::inject;

    const PAGES: usize = 40;
    const CAN_BE_WRITTEN: PAGE_PROTECTION_FLAGS = PAGE_READWRITE | PAGE_WRITECOPY;

    fn file(value: u8) -> MemoryFile {
        let file = MemoryFile::create(PAGES, PAGES, None).unwrap();
        file.write_at(&vec![value; PAGES * page_size()], 0).unwrap();
        file.finish();
        file
    }

    fn shown(mapping: &Mapping, page: usize) -> u8 {
        // SAFETY: nobody writes to the mapping meanwhile.
        let bytes = unsafe { mapping.page(page) };
        bytes[0]
    }

    #[test]
    fn of_overlays_the_last_counts() {
        let ranges = [(3, 9), (0, 4), (8, 8), (5, 7), (5, 20), (6, 12)];
        let files: Vec<_> = (0..ranges.len()).map(|_| MemoryFile::create(0, 0, None).unwrap()).collect();
        let over: Vec<_> = ranges
            .iter()
            .zip(&files)
            .map(|(&(start, end), file)| (PageRange::new(start, end), Source::Private(file)))
            .collect();
        let parts = disjoint(PageRange::new(0, PAGES), Source::Zero, &over);
        let mut next = 0;
        for (range, source) in parts {
            assert_eq!(range.start, next);
            next = range.end;
            for page in range.iter() {
                let last = over.iter().rposition(|(part, _)| part.iter().contains(&page));
                match source {
                    Source::Private(file) => assert!(ptr::eq(file, &raw const files[last.unwrap()])),
                    _ => assert_eq!(last, None),
                }
            }
        }
        assert_eq!(next, PAGES);
    }

    #[test]
    fn after_a_failure_no_address_is_free_and_every_page_can_be_read() {
        let (one, two) = (file(1), file(2));
        let placement = Placement { before: 3, behind: 5, ..Placement::default() };
        let over = [(PageRange::new(4, 9), Source::Zero), (PageRange::new(20, 30), Source::Private(&two))];
        for failing in 0..30 {
            let mut mapping = Mapping::placed(PAGES, Source::Private(&one), &over, &placement).unwrap();
            // SAFETY: nobody has the mapping's bytes.
            let (result, _) = inject(failing, 1, || unsafe { mapping.replace(Source::Private(&two), &over) });
            mapping.check_usable().unwrap();
            for page in 0..PAGES {
                let (start, byte) = (mapping.page_ptr(page).as_ptr(), shown(&mapping, page));
                // SAFETY: the page is the mapping's, and nobody else has it.
                unsafe { start.write(byte) };
                assert!(query(&mapping, page).State & MEM_COMMIT != 0);
            }
            // SAFETY: as above.
            result.or_else(|_| unsafe { mapping.replace(Source::Private(&two), &over) }).unwrap();
            let expected = |page| if (4..9).contains(&page) { 0 } else { 2 };
            assert!((0..PAGES).all(|page| shown(&mapping, page) == expected(page)));
        }
    }

    fn query(mapping: &Mapping, page: usize) -> windows_sys::Win32::System::Memory::MEMORY_BASIC_INFORMATION {
        section::query(mapping.page_ptr(page)).unwrap()
    }

    #[test]
    fn without_memory_zeroes_can_still_be_read() {
        let mut mapping = Mapping::reserve(2 * ZERO_PAGES + 3, &Placement::default()).unwrap();
        mapping.check_usable().unwrap_err();
        let range = mapping.all();
        mapping.map_stopgap(range).unwrap();
        assert!((0..range.end).all(|page| shown(&mapping, page) == 0));
        assert_eq!(query(&mapping, 5).Protect, PAGE_READONLY);
        mapping.check_usable().unwrap_err();
    }

    /// Where the repair of a failed call failed as well, the mapping once took itself for whole, or for lost for ever: no
    /// test made the repair fail.
    #[test]
    fn a_repair_that_fails_is_known_and_can_be_repaired() {
        let (one, two) = (file(1), file(2));
        let placement = Placement { before: 3, behind: 5, ..Placement::default() };
        let over = [(PageRange::new(4, 9), Source::Zero), (PageRange::new(20, 30), Source::Private(&two))];
        let mut unusable = 0;
        for (failing, failures) in
            (0..40).flat_map(|failing| [(failing, 2), (failing, 5), (failing, u64::MAX)])
        {
            let mut mapping = Mapping::placed(PAGES, Source::Private(&one), &over, &placement).unwrap();
            // SAFETY: nobody has the mapping's bytes.
            let replace = |mapping: &mut Mapping| unsafe { mapping.replace(Source::Private(&two), &over) };
            let (result, _) = inject(failing, failures, || replace(&mut mapping));
            assert!(result.is_err() || mapping.check_usable().is_ok());
            if mapping.check_usable().is_ok() {
                // SAFETY: the pages are the mapping's, and nobody else has them.
                (0..PAGES).for_each(|page| unsafe { mapping.page_ptr(page).write(9) });
            } else {
                unusable += 1;
                // All addresses are taken still, and what goes on being unusable says so.
                assert!((0..PAGES).all(|page| query(&mapping, page).State & MEM_FREE == 0));
                // SAFETY: as above.
                unsafe { mapping.truncate(25) }.unwrap();
                mapping.extend(PAGES - 25, Source::Zero).unwrap();
                let part = PageRange::new(4, 9);
                // SAFETY: as above.
                let _ = unsafe { mapping.replace_part(part, Source::Zero) };
                let whole = (0..PAGES).all(|page| query(&mapping, page).Protect & CAN_BE_WRITTEN != 0);
                assert_eq!(mapping.check_usable().is_ok(), whole);
            }
            replace(&mut mapping).unwrap();
            mapping.check_usable().unwrap();
            let expected = |page| if (4..9).contains(&page) { 0 } else { 2 };
            assert!((0..PAGES).all(|page| shown(&mapping, page) == expected(page)));
        }
        assert!(unusable > 20, "{unusable}");
    }

    #[test]
    fn only_whole_regions_are_replaced_in_part() {
        let (one, two) = (file(1), file(2));
        let over = [(PageRange::new(10, 20), Source::Zero)];
        let mut mapping =
            Mapping::placed(PAGES, Source::Private(&one), &over, &Placement::default()).unwrap();
        // SAFETY: nobody has the mapping's bytes.
        let mut replace =
            |start, end| unsafe { mapping.replace_part(PageRange::new(start, end), Source::Private(&two)) };
        for (start, end) in [(0, 9), (1, 10), (5, 25), (10, 19)] {
            assert_eq!(replace(start, end).unwrap_err().kind(), io::ErrorKind::Unsupported);
        }
        replace(10, 20).unwrap();
        replace(10, PAGES).unwrap();
        replace(0, 0).unwrap();
        assert!((0..PAGES).all(|page| shown(&mapping, page) == if page < 10 { 1 } else { 2 }));
    }

    #[test]
    fn what_was_truncated_comes_back_as_zeroes() {
        let file = file(1);
        let placement = Placement { behind: 10, ..Placement::default() };
        for (failing, failures) in (0..12).flat_map(|failing| [(failing, 1), (failing, u64::MAX)]) {
            for source in [Source::Zero, Source::Private(&file)] {
                let over = [(PageRange::new(30, PAGES), Source::Zero)];
                let mut mapping = Mapping::placed(PAGES, source, &over, &placement).unwrap();
                for page in 0..PAGES {
                    // SAFETY: the page is the mapping's, and nobody else has it.
                    unsafe { mapping.page_ptr(page).write(7) };
                }
                // SAFETY: nobody has the mapping's bytes.
                let (result, _) = inject(failing, failures, || unsafe { mapping.truncate(20) });
                if result.is_err() {
                    assert_eq!((mapping.pages(), mapping.inaccessible()), (PAGES, (0, 10)));
                    assert!((0..PAGES).all(|page| shown(&mapping, page) == 7));
                    // SAFETY: as above.
                    unsafe { mapping.truncate(20) }.unwrap();
                }
                assert_eq!((mapping.pages(), mapping.inaccessible()), (20, (0, 30)));
                let (result, _) = inject(failing, failures, || mapping.extend(25, Source::Zero));
                if result.is_err() {
                    assert_eq!((mapping.pages(), mapping.inaccessible()), (20, (0, 30)));
                    mapping.extend(25, Source::Zero).unwrap();
                }
                assert!((0..45).all(|page| shown(&mapping, page) == if page < 20 { 7 } else { 0 }));
            }
        }
    }
    /// A view that had failed to grow, and grew further then, could not be made shorter under Wine.
    #[test]
    fn what_was_committed_in_two_steps_is_one_region() {
        let mut file = MemoryFile::create(PAGES, PAGES + 20, None).unwrap();
        let placement = Placement { behind: 20, ..Placement::default() };
        let mut mapping = Mapping::placed(PAGES, Source::Shared(&file), &[], &placement).unwrap();
        for pages in [PAGES + 5, PAGES + 20] {
            file.set_pages(pages).unwrap();
        }
        mapping.extend(20, Source::Shared(&file)).unwrap();
        // SAFETY: nobody has the mapping's bytes.
        unsafe { mapping.truncate(PAGES) }.unwrap();
    }
}
