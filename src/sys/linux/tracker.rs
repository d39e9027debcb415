//! Which pages of a private mapping may differ from what it shows.
//!
//! A write to a private mapping gives the page a frame of its own. The kernel tells such frames from
//! those of a file and from the zero page, and does so for writes that it makes itself (`read` into a
//! view) as well. Three tiers, from the best:
//!
//! - **scan**: `PAGEMAP_SCAN` (Linux 6.7) lists the pages that are "(present or swapped) and not a
//!   file's", and tells the zero page apart; about 25 ns for each page-table entry in use.
//! - **pagemap**: the same from bits 61 to 63 of `/proc/self/pagemap`; about 50 ns an entry, in use or
//!   not. Zero pages that were only read are reported too.
//! - **compare**: nothing is known, so every page is reported.
//!
//! A tier that the kernel refuses (too old, seccomp, no `/proc`) gives way to the next for good, in this
//! view only, for a filter may hold for one thread alone. A shortage (descriptors, memory) is an error that goes back to the caller and may pass.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::io;
use std::mem;
use std::os::fd::BorrowedFd;

use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, opcode};

use super::memory::Mapping;
use super::page_size;
use super::process::Process;
use crate::pages::{PageRange, PageSet};
use crate::sys::call;

/// How written pages are found; see the module.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Tier {
    Scan,
    Pagemap,
    Compare,
}

/// The best tier that is tried: a worse one if the library is built with `MEMSNAP_TIER` set, for tests.
const FIRST: Tier = match option_env!("MEMSNAP_TIER") {
    Some(name) => match name.as_bytes() {
        b"scan" => Tier::Scan,
        b"pagemap" => Tier::Pagemap,
        b"compare" => Tier::Compare,
        _ => panic!("MEMSNAP_TIER is one of scan, pagemap and compare"),
    },
    None => Tier::Scan,
};

/// Finds the written pages of one mapping.
#[derive(Clone, Copy)]
pub(crate) struct Tracker {
    tier: Tier,
}

/// What a tracker found.
pub(crate) struct PrivatePages {
    pub(crate) pages: PageSet,
    /// Whether each reported page has a frame of its own; otherwise it only may.
    pub(crate) exact: bool,
}

impl Tracker {
    pub(crate) fn new() -> Self {
        Self { tier: FIRST }
    }

    /// The name of the tier in use.
    pub(crate) fn name(self) -> &'static str {
        match self.tier {
            Tier::Scan => "scan",
            Tier::Pagemap => "pagemap",
            Tier::Compare => "compare",
        }
    }

    /// The pages of `mapping` that may differ from what it shows. Pages swapped out, written by the
    /// kernel, or inherited through a fork are among them.
    ///
    /// `shows_zeroes` says of a page whether zeroes there are what the mapping shows. Elsewhere the zero page
    /// is a change: the kernel puts it in place of a written page that it found to be zero (KSM with
    /// `use_zero_pages`).
    pub(crate) fn private_pages(
        &mut self,
        mapping: &Mapping,
        shows_zeroes: impl Fn(usize) -> bool,
    ) -> io::Result<PrivatePages> {
        if mapping.pages() == 0 {
            return Ok(PrivatePages { pages: PageSet::new(), exact: true });
        }
        loop {
            let found = match self.tier {
                Tier::Scan => pagemap().and_then(|pagemap| scan(pagemap, mapping, &shows_zeroes)),
                Tier::Pagemap => pagemap().and_then(|pagemap| read_entries(pagemap, mapping)),
                Tier::Compare => {
                    return Ok(PrivatePages { pages: PageSet::all(mapping.pages()), exact: false });
                }
            };
            match found {
                Ok(pages) => return Ok(PrivatePages { pages, exact: true }),
                Err(shortage @ (Errno::MFILE | Errno::NFILE | Errno::NOMEM)) => return Err(shortage.into()),
                Err(_) if self.tier == Tier::Scan => self.tier = Tier::Pagemap,
                Err(_) => self.tier = Tier::Compare,
            }
        }
    }
}

fn pagemap() -> Result<BorrowedFd<'static>, Errno> {
    Process::current()?.pagemap()
}

/// `PAGE_IS_*` of `linux/fs.h`.
const FILE: u64 = 1 << 2;
const PRESENT: u64 = 1 << 3;
const SWAPPED: u64 = 1 << 4;
const PFNZERO: u64 = 1 << 5;

/// Regions a call. With more than 512 the kernel's `walk_end` can be stale.
const REGIONS: usize = 512;

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

/// One `PAGEMAP_SCAN`. Gives the number of regions filled and the address where the walk ended.
struct Scan<'a> {
    arg: ScanArg,
    regions: &'a mut [Region; REGIONS],
}

// SAFETY: the opcode is `_IOWR('f', 16, struct pm_scan_arg)`, whose layout `ScanArg` repeats. The kernel
// reads and writes that struct through `as_ptr`, and writes at most `vec_len` regions to `vec`, both of
// which this value borrows exclusively.
unsafe impl Ioctl for Scan<'_> {
    type Output = (usize, u64);

    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        opcode::read_write::<ScanArg>(b'f', 16)
    }

    fn as_ptr(&mut self) -> *mut c_void {
        self.arg.vec = self.regions.as_mut_ptr() as u64;
        self.arg.vec_len = REGIONS as u64;
        (&raw mut self.arg).cast()
    }

    unsafe fn output_from_ptr(filled: IoctlOutput, arg: *mut c_void) -> rustix::io::Result<Self::Output> {
        let arg = arg.cast::<ScanArg>();
        // SAFETY: `arg` is what `as_ptr` returned, so it points at a `ScanArg` that is still borrowed.
        let walk_end = unsafe { (*arg).walk_end };
        Ok((usize::try_from(filled).map_err(|_| Errno::INVAL)?, walk_end))
    }
}

fn scan(
    pagemap: BorrowedFd<'_>,
    mapping: &Mapping,
    shows_zeroes: impl Fn(usize) -> bool,
) -> Result<PageSet, Errno> {
    let base = mapping.as_ptr().addr().get();
    let end = (base + mapping.len()) as u64;
    let page_of =
        |address: u64| usize::try_from(address).map_or(mapping.pages(), |a| (a - base) / page_size());
    let mut found = PageSet::new();
    let mut regions = [Region::default(); REGIONS];
    let mut start = base as u64;
    while start < end {
        let arg = ScanArg {
            size: mem::size_of::<ScanArg>() as u64,
            start,
            end,
            category_inverted: FILE,
            category_mask: FILE,
            category_anyof_mask: PRESENT | SWAPPED,
            return_mask: PFNZERO,
            ..ScanArg::default()
        };
        call("pagemap_scan").map_err(|_| Errno::NOMEM)?;
        // SAFETY: `Scan` describes this ioctl; the addresses are only looked up, not accessed.
        let (filled, walk_end) =
            unsafe { rustix::ioctl::ioctl(pagemap, Scan { arg, regions: &mut regions }) }?;
        for region in &regions[..filled] {
            let range = PageRange::new(page_of(region.start), page_of(region.end));
            if region.categories & PFNZERO == 0 {
                found.push_range(range);
            } else {
                range.iter().filter(|&page| !shows_zeroes(page)).for_each(|page| found.push(page));
            }
        }
        if filled < REGIONS {
            break;
        }
        start = walk_end;
    }
    Ok(found)
}

/// Bits of an entry of `/proc/pid/pagemap`.
const ENTRY_PRESENT: u64 = 1 << 63;
const ENTRY_SWAPPED: u64 = 1 << 62;
const ENTRY_FILE: u64 = 1 << 61;

fn read_entries(pagemap: BorrowedFd<'_>, mapping: &Mapping) -> Result<PageSet, Errno> {
    const ENTRY: usize = mem::size_of::<u64>();
    const ENTRIES: usize = 8192;
    let first = mapping.as_ptr().addr().get() / page_size();
    let mut found = PageSet::new();
    let mut buffer = vec![0_u8; ENTRY * ENTRIES.min(mapping.pages())];
    let mut page = 0;
    while page < mapping.pages() {
        let wanted = (ENTRY * (mapping.pages() - page)).min(buffer.len());
        call("pread").map_err(|_| Errno::NOMEM)?;
        let read = match rustix::io::pread(pagemap, &mut buffer[..wanted], ((first + page) * ENTRY) as u64) {
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
