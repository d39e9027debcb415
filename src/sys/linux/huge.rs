//! Moves pages of files into huge pages (`MADV_COLLAPSE`, Linux 6.1), and reports which pages are in huge pages.
//!
//! The layers above decide when pages are moved. Without `MADV_COLLAPSE`, all calls to move pages fail, and files stay
//! in pages of the usual size.
#![allow(unsafe_code)]

use std::io;

use super::memory::huge_page_size;
use super::pagemap;
use crate::pages::PageRange;
use crate::sys::HugePages;
use crate::sys::unix::{Mapping, MemoryFile, page_size};
use crate::sys::{Entries, Placement, Source, call};

/// The value is the same on all architectures that Rust supports. `libc` defines it only for glibc.
const MADV_COLLAPSE: libc::c_int = 25;

/// Returns the number of pages in a huge page, or `None` unless pages have 4 KiB.
///
/// With larger pages, a huge page has 32 MiB or more, and moving it takes more than a millisecond.
pub(crate) fn huge_region() -> Option<usize> {
    (page_size() == 4096).then(|| huge_page_size() / page_size())
}

impl Mapping {
    /// Moves the file's pages `region` into one huge page, and maps the huge page.
    ///
    /// The kernel copies the pages, takes them from all page tables, and puts the huge page in their place in the file.
    /// It refuses (`EINVAL`) if one of the pages is private or the mapping is registered with userfaultfd. The file may
    /// have the huge page even then.
    pub(super) fn collapse(&self, region: PageRange) -> io::Result<()> {
        debug_assert!(region.end <= self.pages());
        call("madvise")?;
        // SAFETY: the addresses are inside this mapping. The kernel moves the pages to other memory, and changes no
        // byte.
        let result =
            unsafe { libc::madvise(self.address(region.start), region.len() * page_size(), MADV_COLLAPSE) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Moves the file's pages `range` into huge pages, except those that do not fill a huge page. Best effort.
    fn collapse_within(&self, range: PageRange) {
        let start = self.address(range.start).addr().next_multiple_of(huge_page_size());
        let end = self.address(range.end).addr() / huge_page_size() * huge_page_size();
        if start < end {
            // SAFETY: the addresses are inside this mapping. The kernel moves the pages to other memory and changes no
            // byte.
            unsafe { libc::madvise(self.address(0).with_addr(start), end - start, MADV_COLLAPSE) };
        }
    }

    /// Returns how the pages of `range` are mapped. Fails if the kernel does not report that (before 6.7).
    pub(crate) fn entries(&self, range: PageRange) -> io::Result<Entries> {
        Ok(pagemap::entries(self, range)?)
    }
}

impl MemoryFile {
    /// Moves the data of the file into huge pages, except pages that do not fill a huge page.
    ///
    /// Best effort; needs Linux 6.1.
    pub(crate) fn collapse(&self) {
        let placement = Placement { huge_pages: HugePages::Advise, ..Placement::default() };
        if let Ok(mapping) = Mapping::placed(self.pages, Source::ReadOnly(self), &[], &placement) {
            self.data().ranges().iter().for_each(|&range| mapping.collapse_within(range));
        }
    }

    /// Returns the number of pages of `range` for which the file has no memory.
    ///
    /// `mapping` must show the file there. Returns `None` for a file on a disk, and for a file whose offset other code
    /// shares.
    ///
    /// This uses `mincore`, because a search for holes (`SEEK_HOLE`) may go on to the end of the file.
    pub(crate) fn holes(&self, mapping: &Mapping, range: PageRange) -> Option<usize> {
        debug_assert!(range.end <= mapping.pages());
        let stat = self.fd.stat().ok()?;
        // This does not use rustix, which panics in debug builds if a filter refuses the call.
        // SAFETY: the call takes no arguments and only returns a number.
        let user = unsafe { libc::geteuid() };
        // For files of other users, `mincore` reports that all pages are in memory.
        if self.is_on_disk() || self.kind.is_borrowed() || stat.st_uid != user {
            return None;
        }
        call("mincore").ok()?;
        let mut in_memory = vec![0_u8; range.len()];
        let (start, len) = (mapping.address(range.start), range.len() * page_size());
        // SAFETY: the range is inside the mapping, and `in_memory` has a byte for each page of it.
        let result = unsafe { libc::mincore(start, len, in_memory.as_mut_ptr().cast()) };
        (result == 0).then(|| in_memory.iter().filter(|&&page| page & 1 == 0).count())
    }
}
