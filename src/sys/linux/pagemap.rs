//! Asks the kernel about page-table entries and write-protects pages, through `/proc/self/pagemap`.
//!
//! `PAGEMAP_SCAN` (Linux 6.7) lists the pages whose entries match a query, and can write-protect them in the same step.
//! On older kernels, the entries are read one by one. `tracker.rs` decides which of these is used, and what the answers
//! mean for a view.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::mem;
use std::ptr;

use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, opcode};

use super::process::{Process, ProcessFile};
use crate::pages::{PageRange, PageSet};
use crate::sys::unix::{Mapping, page_size};
use crate::sys::{Entries, Scope, call};

/// `PAGE_IS_*` of `linux/fs.h`.
const WRITTEN: u64 = 1 << 1;
const FILE: u64 = 1 << 2;
const PRESENT: u64 = 1 << 3;
const SWAPPED: u64 = 1 << 4;
const PFNZERO: u64 = 1 << 5;
const HUGE: u64 = 1 << 6;

/// `PM_SCAN_*` of `linux/fs.h`.
const WP_MATCHING: u64 = 1 << 0;
const CHECK_WPASYNC: u64 = 1 << 1;

/// The most regions that a call returns. With more than 512, the kernel's `walk_end` can be stale.
const REGIONS: usize = 512;
/// The most regions that the first call returns.
///
/// The kernel allocates memory for as many regions as a call may return, so this number is small.
const FIRST_REGIONS: usize = 64;

/// Which page-table entries a scan lists, as sets of categories (`PAGE_IS_*`).
#[derive(Clone, Copy, Default)]
struct Query {
    /// `PM_SCAN_*`.
    flags: u64,
    /// The categories that are inverted before they are compared with `all` and `any`.
    inverted: u64,
    /// An entry must have all of these categories, after inversion.
    all: u64,
    /// An entry must have at least one of these categories, unless the set is empty.
    any: u64,
    /// The categories that the scan reports for each region.
    tell: u64,
}

/// Which pages [`private`] looks at.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    /// Pages in memory or swapped out.
    Everywhere,
    /// Pages in memory.
    InMemory,
    /// Pages in memory or swapped out. Pages that are not private are counted, which takes a little longer.
    AndCount,
}

/// Lists the private pages of `range`.
///
/// Also counts the other pages that are in memory if `look` asks for that. A page that is mapped to the zero page
/// counts as private if `shows_zeroes` returns `false` for it: the mapping shows something other than zeroes there.
pub(super) fn private(
    mapping: &Mapping,
    range: PageRange,
    look: Look,
    shows_zeroes: impl Fn(usize) -> bool,
) -> Result<(PageSet, Option<usize>), Errno> {
    let any = if look == Look::InMemory { PRESENT } else { PRESENT | SWAPPED };
    let query = if look == Look::AndCount {
        Query { any, tell: FILE | PFNZERO, ..Query::default() }
    } else {
        Query { inverted: FILE, all: FILE, any, tell: PFNZERO, ..Query::default() }
    };
    let (mut private, mut others) = (PageSet::with_room(FIRST_REGIONS), 0);
    scan(mapping, range, query, |range, categories| {
        if categories & FILE != 0 {
            others += range.len();
        } else if categories & PFNZERO == 0 {
            private.push_range(range);
        } else {
            others += range.len();
            range.iter().filter(|&page| !shows_zeroes(page)).for_each(|page| private.push(page));
        }
    })?;
    Ok((private, (look == Look::AndCount).then_some(others)))
}

/// Lists the pages of `range` in `scope` that were written since they were write-protected.
///
/// Pages that were never write-protected count as written. In [`Scope::All`] this includes pages without an entry. If
/// `protect` is set, write-protects these pages in the same step. Fails with `PERM` if the mapping is not registered
/// with userfaultfd.
pub(super) fn written(
    mapping: &Mapping,
    range: PageRange,
    scope: Scope,
    protect: bool,
) -> Result<PageSet, Errno> {
    let flags = CHECK_WPASYNC | if protect { WP_MATCHING } else { 0 };
    let query = Query { flags, all: WRITTEN, any: populated(scope), tell: WRITTEN, ..Query::default() };
    let mut found = PageSet::with_room(FIRST_REGIONS);
    scan(mapping, range, query, |range, _| found.push_range(range))?;
    Ok(found)
}

/// Returns the categories of which a page in `scope` must have at least one, or 0 for all pages.
///
/// If this is 0 and a query asks only for `WRITTEN`, the kernel takes a faster path, in a third of the time.
fn populated(scope: Scope) -> u64 {
    match scope {
        Scope::All => 0,
        Scope::InMemory => PRESENT | SWAPPED,
    }
}

/// Returns how the pages of `range` are mapped. Takes as long as [`written`] in [`Scope::InMemory`].
pub(super) fn entries(mapping: &Mapping, range: PageRange) -> Result<Entries, Errno> {
    let query = Query { any: PRESENT | SWAPPED, tell: HUGE, ..Query::default() };
    let mut entries = Entries::default();
    scan(mapping, range, query, |range, categories| {
        if categories & HUGE != 0 {
            entries.huge += range.len();
        } else {
            entries.small += range.len();
        }
    })?;
    Ok(entries)
}

/// Write-protects every page of `range` in `scope`.
///
/// Whatever the scope, the kernel also write-protects the entries of pages that were never in memory, if these entries
/// are in a page table that exists.
pub(super) fn protect(mapping: &Mapping, range: PageRange, scope: Scope) -> Result<(), Errno> {
    let (start, end) = addresses(mapping, range);
    let arg = ScanArg {
        flags: CHECK_WPASYNC | WP_MATCHING,
        start,
        end,
        category_mask: WRITTEN,
        category_anyof_mask: populated(scope),
        ..ScanArg::default()
    };
    call("pagemap_scan").map_err(|_| Errno::NOMEM)?;
    // SAFETY: `Scan` describes this ioctl, and the descriptor is that of the pagemap. The ioctl changes no byte.
    // Asynchronous write-protection does not stop writes: the kernel resolves the page fault of the first write by
    // itself.
    unsafe { rustix::ioctl::ioctl(pagemap()?, Scan { arg, regions: &mut [] }) }.map(drop)
}

/// Lists the private pages of `range` without `PAGEMAP_SCAN`.
///
/// Every page that is mapped to the zero page counts as private.
pub(super) fn private_by_reading(mapping: &Mapping, range: PageRange) -> Result<PageSet, Errno> {
    const ENTRY: usize = mem::size_of::<u64>();
    const ENTRIES: usize = 8192;
    const ENTRY_PRESENT: u64 = 1 << 63;
    const ENTRY_SWAPPED: u64 = 1 << 62;
    const ENTRY_FILE: u64 = 1 << 61;
    let pagemap = pagemap()?;
    let first = mapping.as_ptr().addr().get() / page_size();
    let mut found = PageSet::new();
    let mut buffer = vec![0_u8; ENTRY * ENTRIES.min(range.len())];
    let mut page = range.start;
    while page < range.end {
        let wanted = (ENTRY * (range.end - page)).min(buffer.len());
        call("pread").map_err(|_| Errno::NOMEM)?;
        let read = match rustix::io::pread(&pagemap, &mut buffer[..wanted], ((first + page) * ENTRY) as u64) {
            Err(Errno::INTR) => continue,
            result => result?,
        };
        if read < ENTRY {
            return Err(Errno::IO);
        }
        for entry in buffer[..read].chunks_exact(ENTRY) {
            let entry = u64::from_ne_bytes(entry.try_into().map_err(|_| Errno::IO)?);
            if entry & (ENTRY_PRESENT | ENTRY_SWAPPED) != 0 && entry & ENTRY_FILE == 0 {
                found.push(page);
            }
            page += 1;
        }
    }
    Ok(found)
}

fn pagemap() -> Result<ProcessFile, Errno> {
    Process::current()?.pagemap()
}

/// `struct page_region`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Region {
    start: u64,
    end: u64,
    categories: u64,
}

/// `struct pm_scan_arg`.
#[repr(C)]
#[derive(Default)]
struct ScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// The ioctl `PAGEMAP_SCAN`. Returns the number of regions filled and the address where the walk ended.
struct Scan<'a> {
    arg: ScanArg,
    regions: &'a mut [Region],
}

// SAFETY: the opcode is `_IOWR('f', 16, struct pm_scan_arg)`, and `ScanArg` has the layout of that struct. The kernel
// reads and writes the struct at `as_ptr`, which this value owns. It writes at most `vec_len` regions to `vec`, which
// this value borrows exclusively.
unsafe impl Ioctl for Scan<'_> {
    type Output = (usize, u64);

    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        opcode::read_write::<ScanArg>(b'f', 16)
    }

    fn as_ptr(&mut self) -> *mut c_void {
        // If there is no room for regions, the kernel requires a null address.
        let regions = if self.regions.is_empty() { ptr::null_mut() } else { self.regions.as_mut_ptr() };
        self.arg.size = mem::size_of::<ScanArg>() as u64;
        self.arg.vec = regions as u64;
        self.arg.vec_len = self.regions.len() as u64;
        (&raw mut self.arg).cast()
    }

    unsafe fn output_from_ptr(filled: IoctlOutput, arg: *mut c_void) -> rustix::io::Result<Self::Output> {
        let arg = arg.cast::<ScanArg>();
        // SAFETY: `arg` is what `as_ptr` returned, so it points at a `ScanArg` that still exists.
        let walk_end = unsafe { (*arg).walk_end };
        Ok((usize::try_from(filled).map_err(|_| Errno::INVAL)?, walk_end))
    }
}

fn addresses(mapping: &Mapping, range: PageRange) -> (u64, u64) {
    (mapping.page_ptr(range.start).addr().get() as u64, mapping.page_ptr(range.end).addr().get() as u64)
}

/// Calls `visit` with each part of `range` whose pages match `query`, and with the categories of that part.
///
/// The parts come in ascending order.
fn scan(
    mapping: &Mapping,
    range: PageRange,
    query: Query,
    mut visit: impl FnMut(PageRange, u64),
) -> Result<(), Errno> {
    let pagemap = pagemap()?;
    let base = mapping.as_ptr().addr().get();
    let page_of =
        |address: u64| usize::try_from(address).map_or(mapping.pages(), |a| (a - base) / page_size());
    let (mut start, end) = addresses(mapping, range);
    let mut first = [Region::default(); FIRST_REGIONS];
    let mut further = Vec::new();
    let mut regions = &mut first[..];
    while start < end {
        let arg = ScanArg {
            flags: query.flags,
            start,
            end,
            category_inverted: query.inverted,
            category_mask: query.all,
            category_anyof_mask: query.any,
            return_mask: query.tell,
            ..ScanArg::default()
        };
        call("pagemap_scan").map_err(|_| Errno::NOMEM)?;
        // SAFETY: `Scan` describes this ioctl, and the descriptor is that of the pagemap. The ioctl reads page-table
        // entries and changes no byte. Asynchronous write-protection does not stop writes.
        let (filled, walk_end) =
            unsafe { rustix::ioctl::ioctl(&pagemap, Scan { arg, regions: &mut *regions }) }?;
        for region in &regions[..filled] {
            visit(PageRange::new(page_of(region.start), page_of(region.end)), region.categories);
        }
        if filled < regions.len() {
            break;
        }
        start = walk_end;
        further.resize(REGIONS, Region::default());
        regions = &mut further;
    }
    Ok(())
}
