//! Finds the pages of a private mapping that may differ from its source, and chooses the tracking method.
//!
//! The layers above decide when to search, and compare the listed pages. `memory` decides what is mapped where.
//!
//! - **working set**: the system keeps track of the pages written in private memory of zeroes (`MEM_WRITE_WATCH`), and
//!   `GetWriteWatch` lists them. For the pages of a view of a section, `QueryWorkingSetEx` reports which are in memory
//!   and which of those belong to the section, and `VirtualQuery` reports which are still copy-on-write. A search lists
//!   all pages of the view except those that are in memory, belong to the section and are copy-on-write.
//! - **compare**: nothing is known, so every page is listed.
//!
//! The working set never misses a written page. A written page of a copy-on-write view is a private copy of the page,
//! and its protection is `PAGE_READWRITE` ("Memory Protection Constants"). While it is in the working set it cannot be
//! shared, which is what `Shared` means for pages that are `Valid` (`PSAPI_WORKING_SET_EX_BLOCK`). If it is trimmed,
//! paged out or inaccessible, it is not valid. If the system keeps one frame for private pages with equal bytes and
//! reports it as shared, the protection still shows that the page is private. This does not depend on what wrote the
//! page: the system also writes to a private copy, for `ReadFile` or for a device. The record of pages written in
//! memory of zeroes is never reset, so it lasts as long as the memory. A page that a device may write to is in it from
//! the time it was locked for the device.
//!
//! Comparing a listed page brings it into memory if it was not there. So it need not be compared the next time.
#![allow(unsafe_code)]

use std::io;
use std::ptr;

use windows_sys::Win32::System::Memory::{GetWriteWatch, PAGE_EXECUTE_WRITECOPY, PAGE_WRITECOPY};
use windows_sys::Win32::System::ProcessStatus::{K32QueryWorkingSetEx, PSAPI_WORKING_SET_EX_INFORMATION};

use super::memory::{Content, Mapping};
use super::page_size;
use super::section::{checked, query, this_process};
use crate::pages::{PageRange, PageSet};
use crate::sys::Tracking;
use crate::sys::WhyNotFaster;
use crate::sys::{
    Collapsed, Found, Scope, Search, WriteProtected, call, cannot_be_chosen, cannot_track, forced_tracking,
};

/// Returns the tracking method that `Tracking::Auto` stands for.
fn default_tracking() -> Tracking {
    forced_tracking().unwrap_or(Tracking::WorkingSet)
}

/// The most pages that one call asks about.
const BATCH: usize = 4096;

/// The bit in the attributes of a page that is set if it is in the working set.
const VALID: usize = 1;
/// The bit in the attributes of a page that is set if it can be shared.
const SHARED: usize = 1 << 15;

/// Finds the written pages of one mapping.
#[derive(Clone, Copy)]
pub(crate) struct Tracker {
    tracking: Tracking,
    why_not_faster: Option<WhyNotFaster>,
}

impl Tracker {
    /// Makes a tracker for a new mapping.
    ///
    /// Fails with `Unsupported` if `tracking` is not `Auto` and cannot work.
    pub(crate) fn new(tracking: Tracking, mapping: &Mapping) -> io::Result<Self> {
        let mut tracker = Self { tracking: default_tracking(), why_not_faster: None };
        tracker.switch(mapping, tracking)?;
        Ok(tracker)
    }

    /// Makes a tracker for a mapping whose pages may be pinned. They are found like all others.
    pub(crate) fn of_pinned(tracking: Tracking, mapping: &Mapping) -> io::Result<Self> {
        Self::new(tracking, mapping)
    }

    /// Changes to another tracking method. Fails and changes nothing if it cannot work.
    pub(crate) fn switch(&mut self, _: &Mapping, tracking: Tracking) -> io::Result<()> {
        let tracking = match tracking {
            Tracking::Auto => default_tracking(),
            Tracking::WorkingSet | Tracking::Compare => tracking,
            Tracking::Armed | Tracking::Scan | Tracking::Pagemap => {
                return Err(cannot_track(tracking, "this is Windows", "Linux"));
            }
            Tracking::Logged => return Err(cannot_be_chosen()),
        };
        let why_not_faster = (tracking == Tracking::Compare).then_some(WhyNotFaster::Chosen);
        *self = Self { tracking, why_not_faster };
        Ok(())
    }

    /// Returns the tracking method in use.
    pub(crate) fn tracking(self) -> Tracking {
        self.tracking
    }

    /// Returns why no faster tracking method is in use.
    pub(crate) fn why_not_faster(self) -> Option<WhyNotFaster> {
        self.why_not_faster
    }

    /// Searches `mapping` for pages.
    pub(crate) fn find(
        &mut self,
        search: Search,
        mapping: &Mapping,
        _count: bool,
        _expected: &PageSet,
        _shows_zeroes: impl Fn(usize) -> bool,
    ) -> io::Result<Found> {
        let all = Found { known: false, ..Found::all_private(PageSet::all(mapping.pages())) };
        if self.tracking == Tracking::Compare {
            return Ok(all);
        }
        let mut pages = PageSet::new();
        for (range, content) in mapping.contents(mapping.all()) {
            match content {
                Content::Zeroes { watched: true } => watched(mapping, range, &mut pages)?,
                Content::Private => {
                    let found =
                        not_shared(mapping, range, search)?.union(&not_copy_on_write(mapping, range)?);
                    found.ranges().iter().for_each(|&range| pages.push_range(range));
                }
                _ => pages.push_range(range),
            }
        }
        Ok(Found { pages, complete: search != Search::Private, ..all })
    }

    /// Does nothing: no page can be write-protected.
    pub(crate) fn arm(&mut self, _: &Mapping, _: Scope) -> WriteProtected {
        WriteProtected::Nothing
    }

    /// Does nothing: no page can be write-protected.
    pub(crate) fn write_protect(self, _: &Mapping) -> WriteProtected {
        WriteProtected::Nothing
    }

    pub(crate) fn is_sparse(self) -> bool {
        false
    }

    pub(crate) fn widen(&mut self) {}

    pub(crate) fn renewed(&mut self, _: &Mapping, _: PageRange) {}

    /// Always returns `false`: pages cannot be moved into huge pages.
    pub(crate) fn gains_from_huge_pages(self) -> bool {
        false
    }

    /// Always fails with `Unsupported`: pages cannot be moved into huge pages.
    pub(crate) fn collapse(&mut self, _: &Mapping, _: PageRange) -> Collapsed {
        Collapsed { moved: Err(io::ErrorKind::Unsupported.into()), unprotected: false }
    }

    pub(crate) fn disarm(&mut self) {}

    pub(crate) fn is_armed(self) -> bool {
        false
    }

    pub(crate) fn must_arm(self) -> bool {
        false
    }
}

/// Adds to `pages` the written pages of `range`, which is watched memory of zeroes.
fn watched(mapping: &Mapping, range: PageRange, pages: &mut PageSet) -> io::Result<()> {
    let first = mapping.as_ptr().addr().get();
    let mut addresses = vec![ptr::null_mut(); BATCH.min(range.len())];
    let mut from = range.start;
    while from < range.end {
        call("GetWriteWatch")?;
        let (mut count, mut granularity) = (addresses.len(), 0);
        let len = (range.end - from) * page_size();
        // SAFETY: `addresses` has room for `count` addresses. The range is inside the mapping, and the flags are 0, so
        // the record is not reset.
        let result = unsafe {
            GetWriteWatch(
                0,
                mapping.page_ptr(from).as_ptr().cast(),
                len,
                addresses.as_mut_ptr(),
                &raw mut count,
                &raw mut granularity,
            )
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        let written = &addresses[..count.min(addresses.len())];
        written.iter().for_each(|address| pages.push((address.addr() - first) / page_size()));
        from = match written.last() {
            Some(last) if written.len() == addresses.len() => (last.addr() - first) / page_size() + 1,
            _ => range.end,
        };
    }
    Ok(())
}

/// Returns the pages of a view that are in memory and do not belong to the section.
///
/// Unless the search is for private pages, also returns all pages that are not in memory.
fn not_shared(mapping: &Mapping, range: PageRange, search: Search) -> io::Result<PageSet> {
    let absent = search != Search::Private;
    let mut pages = PageSet::new();
    let mut entries = vec![PSAPI_WORKING_SET_EX_INFORMATION::default(); BATCH.min(range.len())];
    for start in range.iter().step_by(BATCH) {
        let batch = PageRange::new(start, range.end.min(start + BATCH));
        let entries = &mut entries[..batch.len()];
        for (entry, page) in entries.iter_mut().zip(batch.iter()) {
            entry.VirtualAddress = mapping.page_ptr(page).as_ptr().cast();
        }
        call("QueryWorkingSetEx")?;
        let size = u32::try_from(size_of_val(entries)).unwrap_or(0);
        // SAFETY: `entries` is writable and has `size` bytes.
        checked(unsafe { K32QueryWorkingSetEx(this_process(), entries.as_mut_ptr().cast(), size) })?;
        for (entry, page) in entries.iter().zip(batch.iter()) {
            // SAFETY: all fields of the union are numbers of the same size, so any bytes are a valid value.
            let flags = unsafe { entry.VirtualAttributes.Flags };
            if if flags & VALID == 0 { absent } else { flags & SHARED == 0 } {
                pages.push(page);
            }
        }
    }
    Ok(pages)
}

/// Returns the pages of a view that are not copy-on-write.
///
/// These are pages that were written, and pages that cannot be written.
fn not_copy_on_write(mapping: &Mapping, range: PageRange) -> io::Result<PageSet> {
    let mut pages = PageSet::new();
    let mut from = range.start;
    while from < range.end {
        let information = query(mapping.page_ptr(from))?;
        let end = range.end.min(from + (information.RegionSize / page_size()).max(1));
        if information.Protect & (PAGE_WRITECOPY | PAGE_EXECUTE_WRITECOPY) == 0 {
            pages.push_range(PageRange::new(from, end));
        }
        from = end;
    }
    Ok(pages)
}
