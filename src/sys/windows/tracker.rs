//! Which pages of a private mapping may differ from what it shows.
//!
//! - **working set**: of memory of zeroes the system keeps track of the pages written (`MEM_WRITE_WATCH`), and
//!   `GetWriteWatch` lists them. Of the pages of a view of a section, `QueryWorkingSetEx` tells which are in memory,
//!   and which of those are the section's, shared or to be shared; and `VirtualQuery` which are still copy-on-write.
//!   Reported are all pages but those of which all three are true.
//! - **compare**: nothing is known, so every page is reported.
//!
//! The first never misses a page. A written page of a copy-on-write view is a private copy of the page, and marked
//! `PAGE_READWRITE` ("Memory Protection Constants"). While it is in the working set it is not sharable, which is what
//! `Shared` says of pages that are `Valid` (`PSAPI_WORKING_SET_EX_BLOCK`); trimmed, paged out or inaccessible it is not
//! valid. Should the system keep one frame for private pages of equal content and call it shared, the protection still
//! tells. None of this depends on who wrote: the system itself, for `ReadFile` or on behalf of a device,
//! writes to a private copy as well. The record of pages written to memory of zeroes lasts as long as the memory does, for it
//! is never reset here; so a page that a device may write to counts from when it was locked for that.
//!
//! What is reported is compared with the image, page by page. That brings the pages of the view that were not in memory
//! into it, so that they need not be compared the next time.
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
    Closed, Collapsed, Found, Scope, Search, call, cannot_be_chosen, cannot_track, forced_tracking,
};

/// What the automatic choice is.
fn default_tracking() -> Tracking {
    forced_tracking().unwrap_or(Tracking::WorkingSet)
}

/// Pages asked about in one call.
const BATCH: usize = 4096;

/// In the attributes of a page: it is in the working set, and it can be shared.
const VALID: usize = 1;
const SHARED: usize = 1 << 15;

/// Finds the written pages of one mapping.
#[derive(Clone, Copy)]
pub(crate) struct Tracker {
    tracking: Tracking,
    why_not_faster: Option<WhyNotFaster>,
}

impl Tracker {
    /// For a mapping just made. Fails where another way than the automatic one is wanted that cannot work.
    pub(crate) fn new(tracking: Tracking, mapping: &Mapping) -> io::Result<Self> {
        let mut tracker = Self { tracking: default_tracking(), why_not_faster: None };
        tracker.switch(mapping, tracking)?;
        Ok(tracker)
    }

    /// The same: pages that a device may write to are found like others.
    pub(crate) fn of_pinned(tracking: Tracking, mapping: &Mapping) -> io::Result<Self> {
        Self::new(tracking, mapping)
    }

    /// Finds pages in this way from now on, if it can work.
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

    /// The tier in use.
    pub(crate) fn tracking(self) -> Tracking {
        self.tracking
    }

    /// Why it is none of the faster ones.
    pub(crate) fn why_not_faster(self) -> Option<WhyNotFaster> {
        self.why_not_faster
    }

    /// Looks for pages of `mapping`.
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

    /// Nothing can be closed.
    pub(crate) fn arm(&mut self, _: &Mapping, _: Scope) -> Closed {
        Closed::Nothing
    }

    pub(crate) fn close(self, _: &Mapping) -> Closed {
        Closed::Nothing
    }

    pub(crate) fn is_sparse(self) -> bool {
        false
    }

    pub(crate) fn widen(&mut self) {}

    pub(crate) fn renewed(&mut self, _: &Mapping, _: PageRange) {}

    /// Always `false`: there are no huge pages.
    pub(crate) fn gains_from_huge_pages(self) -> bool {
        false
    }

    /// Always fails: there are no huge pages.
    pub(crate) fn collapse(&mut self, _: &Mapping, _: PageRange) -> Collapsed {
        Collapsed { moved: Err(io::ErrorKind::Unsupported.into()), opened: false }
    }

    pub(crate) fn disarm(&mut self) {}

    pub(crate) fn is_armed(self) -> bool {
        false
    }

    pub(crate) fn must_arm(self) -> bool {
        false
    }
}

/// The pages of memory of zeroes that were written.
fn watched(mapping: &Mapping, range: PageRange, pages: &mut PageSet) -> io::Result<()> {
    let first = mapping.as_ptr().addr().get();
    let mut addresses = vec![ptr::null_mut(); BATCH.min(range.len())];
    let mut from = range.start;
    while from < range.end {
        call("GetWriteWatch")?;
        let (mut count, mut granularity) = (addresses.len(), 0);
        let len = (range.end - from) * page_size();
        // SAFETY: the answers have places, as many as said.
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

/// The pages of a view that are in memory and not the section's and, unless private ones are looked for, all that are not
/// in memory.
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
        // SAFETY: the entries are as many as said.
        checked(unsafe { K32QueryWorkingSetEx(this_process(), entries.as_mut_ptr().cast(), size) })?;
        for (entry, page) in entries.iter().zip(batch.iter()) {
            // SAFETY: whatever the system wrote, it is a number too.
            let flags = unsafe { entry.VirtualAttributes.Flags };
            if if flags & VALID == 0 { absent } else { flags & SHARED == 0 } {
                pages.push(page);
            }
        }
    }
    Ok(pages)
}

/// The pages of a view of which no copy would be made if they were written now: written ones, and protected ones.
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
