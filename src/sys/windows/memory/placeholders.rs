//! What is mapped in the addresses of a [`Mapping`]: placeholders are cut, filled, emptied and joined.
//!
//! Which pages show what is up to `mod.rs`. Each function here keeps `regions` in step with the system.
#![allow(unsafe_code)]

use std::collections::BTreeSet;
use std::io;
use std::os::windows::io::{AsRawHandle, OwnedHandle};
use std::ptr;
use std::sync::OnceLock;

use windows_sys::Win32::System::Memory::{
    MEM_COMMIT, MEM_DECOMMIT, MEM_PRESERVE_PLACEHOLDER, MEM_RELEASE, MEM_REPLACE_PLACEHOLDER, MEM_RESERVE,
    MEMORY_MAPPED_VIEW_ADDRESS, MapViewOfFile3, PAGE_READWRITE, UnmapViewOfFile2, VirtualAlloc2,
};
use windows_sys::Win32::System::SystemServices::{MEM_COALESCE_PLACEHOLDERS, MEM_WRITE_WATCH};

use super::access::executable;
use super::{Content, Mapping, Region, free};
use crate::access::Access;
use crate::pages::PageRange;
use crate::sys::windows::page_size;
use crate::sys::windows::section::{self, checked, this_process};
use crate::sys::{Overlay, Source, call};

/// The number of pages in the section of zeroes that is mapped if there is no memory for anything else.
pub(super) const ZERO_PAGES: usize = 256;

impl Mapping {
    /// Maps `source` from page `start` to `end`, and other sources in place of it as `over` says.
    ///
    /// The pages must be inside one placeholder.
    pub(super) fn fill(
        &mut self,
        start: usize,
        end: usize,
        source: Source<'_>,
        over: &[Overlay<'_>],
    ) -> io::Result<()> {
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

    /// Maps private memory of zeroes in the placeholder that contains `range`.
    fn map_zeroes(&mut self, range: PageRange) -> io::Result<()> {
        let index = self.carve(range)?;
        let watched = self.watched && self.allocate(range, MEM_WRITE_WATCH).is_ok();
        if !watched {
            self.allocate(range, 0)?;
        }
        self.regions[index].content = Content::Zeroes { watched };
        Ok(())
    }

    /// Allocates private memory in place of a placeholder of exactly the pages `range`.
    ///
    /// `more` are further flags.
    fn allocate(&self, range: PageRange, more: u32) -> io::Result<()> {
        call("VirtualAlloc2")?;
        let (start, len) = (self.address(self.before + range.start), range.len() * page_size());
        let kind = MEM_RESERVE | MEM_COMMIT | MEM_REPLACE_PLACEHOLDER | more;
        // SAFETY: the range is exactly one placeholder of this mapping, so no memory in use is replaced. No extended
        // parameters are passed, as their number says.
        let allocated =
            unsafe { VirtualAlloc2(this_process(), start, len, kind, PAGE_READWRITE, ptr::null_mut(), 0) };
        if allocated.is_null() { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Maps a view of `section`, from byte `offset` on, in the placeholder that contains `range`.
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
            // SAFETY: the section's handle is open. The range is exactly one placeholder of this mapping, so no memory
            // in use is replaced. No extended parameters are passed, as their number says.
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
        // A section that does not allow executable views still allows all others.
        let mapped = view(most)
            .map(|()| most)
            .or_else(|error| if most == access { Err(error) } else { view(access).map(|()| access) })?;
        self.regions[index].content = content;
        if content == Content::Shared {
            // The pages are committed already. Wine 10 knows that only in the view through which they were committed.
            self.commit(range)?;
        }
        if mapped != access {
            // SAFETY: the view was mapped just now, so no reference to its bytes exists.
            unsafe { self.protect(range, access) }?;
        }
        Ok(())
    }

    /// Maps zeroes in all placeholders after a failure, so that the owner's pointers stay valid.
    ///
    /// If there is no memory for that, maps read-only zeroes instead. If that fails too, the placeholders stay.
    /// [`check_usable`](Self::check_usable) reports both cases.
    pub(super) fn plug(&mut self) {
        let holes = self.contents(self.all()).filter(|(_, content)| *content == Content::Placeholder);
        for (hole, _) in holes.collect::<Vec<_>>() {
            let _ = self.map_zeroes(hole).or_else(|_| self.map_stopgap(hole));
        }
    }

    /// Maps read-only zeroes in the placeholder that contains `range`. This takes no memory.
    pub(super) fn map_stopgap(&mut self, range: PageRange) -> io::Result<()> {
        let zeroes = zeroes()?;
        range.iter().step_by(ZERO_PAGES).try_for_each(|start| {
            let part = PageRange::new(start, range.end.min(start + ZERO_PAGES));
            self.map_view(part, Content::Stopgap, zeroes, 0)
        })
    }

    /// Turns the regions from index `first` to before index `last` into one placeholder.
    ///
    /// Callers make sure that no reference to bytes of these regions exists.
    pub(super) fn vacate(&mut self, first: usize, last: usize) -> io::Result<()> {
        for index in first..last {
            let Region { range, content } = self.regions[index];
            let (start, len) = (self.address(range.start), range.len() * page_size());
            match content {
                Content::Placeholder => continue,
                Content::Zeroes { .. } => {
                    call("VirtualFree")?;
                    // SAFETY: the range is all of one allocation, and no reference to its bytes exists, as callers make
                    // sure.
                    unsafe { free(start, len, MEM_RELEASE | MEM_PRESERVE_PLACEHOLDER) }?;
                }
                Content::Private | Content::Shared | Content::ReadOnly | Content::Stopgap => {
                    call("UnmapViewOfFile2")?;
                    let view = MEMORY_MAPPED_VIEW_ADDRESS { Value: start };
                    // SAFETY: `start` is the start of a view, and no reference to its bytes exists, as callers make
                    // sure.
                    checked(unsafe { UnmapViewOfFile2(this_process(), view, MEM_PRESERVE_PLACEHOLDER) })?;
                }
            }
            self.regions[index].content = Content::Placeholder;
        }
        if last > first + 1 {
            let range = PageRange::new(self.regions[first].range.start, self.regions[last - 1].range.end);
            call("VirtualFree")?;
            let (start, len) = (self.address(range.start), range.len() * page_size());
            // SAFETY: the range consists of whole placeholders, in which nothing is mapped.
            unsafe { free(start, len, MEM_RELEASE | MEM_COALESCE_PLACEHOLDERS) }?;
            let merged = Region { range, content: Content::Placeholder };
            self.regions.splice(first..last, std::iter::once(merged));
        }
        Ok(())
    }

    /// Gives back what is mapped from page `start` on.
    ///
    /// Callers make sure that no reference to bytes of these pages exists. Whole regions become placeholders. If a
    /// region of zeroes begins before `start`, its memory from `start` on is given back. A view that begins before
    /// `start` stays mapped.
    pub(super) fn vacate_covered(&mut self, start: usize) -> io::Result<()> {
        let first = self.before + start;
        let next = self.regions.partition_point(|region| region.range.start < first);
        let straddling = next.checked_sub(1).map(|index| self.regions[index]);
        match straddling.filter(|region| region.range.end > first) {
            Some(Region { range, content: Content::Zeroes { .. } }) => {
                call("VirtualFree")?;
                let (start, len) = (self.address(first), (range.end - first) * page_size());
                // SAFETY: the range is the end of private memory of this mapping, and no reference to its bytes exists,
                // as callers make sure.
                unsafe { free(start, len, MEM_DECOMMIT) }?;
            }
            // A failed call left this placeholder.
            Some(Region { content: Content::Placeholder, .. }) => self.cut(first)?,
            _ => {}
        }
        self.vacate(next, self.regions.len())
    }

    /// Cuts the placeholder that contains `range`, so that one placeholder has exactly these pages.
    ///
    /// Returns its index in `regions`.
    fn carve(&mut self, range: PageRange) -> io::Result<usize> {
        let (start, end) = (self.before + range.start, self.before + range.end);
        self.cut(start)?;
        self.cut(end)?;
        Ok(self.regions.partition_point(|region| region.range.end <= start))
    }

    /// Cuts the placeholder that contains `page` in two at `page`. Does nothing if a region starts there.
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
        // SAFETY: the range is the beginning of a placeholder, in which nothing is mapped.
        unsafe { free(start, len, MEM_RELEASE | MEM_PRESERVE_PLACEHOLDER) }?;
        self.regions[index].range.start = page;
        self.regions.insert(index, Region { range: PageRange::new(range.start, page), content });
        Ok(())
    }
}

/// Returns a section of [`ZERO_PAGES`] pages of zeroes, which is never written.
fn zeroes() -> io::Result<&'static OwnedHandle> {
    static ZEROES: OnceLock<OwnedHandle> = OnceLock::new();
    if let Some(zeroes) = ZEROES.get() {
        return Ok(zeroes);
    }
    let zeroes = section::create(ZERO_PAGES * page_size(), false)?;
    Ok(ZEROES.get_or_init(|| zeroes))
}

/// Cuts `range` into parts, each with the source that its pages show.
///
/// A page shows the last source of `over` that names it, or `source` if none does.
pub(super) fn disjoint<'a>(range: PageRange, source: Source<'a>, over: &[Overlay<'a>]) -> Vec<Overlay<'a>> {
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
