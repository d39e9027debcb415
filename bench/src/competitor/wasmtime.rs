//! The reset of Wasmtime's pooling allocator, for a copy-on-write memory image and with `PAGEMAP_SCAN`.
//!
//! A slot is a private mapping of the image. The reset lists the private pages. It copies the original bytes to the
//! first of them, up to a budget of bytes that stay resident. Then it discards everything after these pages, with one
//! `madvise`. Wasmtime lists at most 32 ranges of pages and discards the rest. This code continues its list after 512
//! ranges, which makes it faster than Wasmtime.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;

use anyhow::{Result, bail};
use memmap2::MmapMut;
use memsnap::page_size;

use super::{Competitor, Operation, Region, Taken};
use crate::case::{Case, MIB};
use crate::image::{Image, map_private};
use crate::pages::Change;

pub(crate) struct Wasmtime {
    name: &'static str,
    keep_resident: usize,
}

struct Slot {
    map: MmapMut,
    original: MmapMut,
    pagemap: File,
    keep_resident: usize,
}

impl Wasmtime {
    /// Keeps all pages resident, which is the best setting.
    pub(crate) fn keeping_all() -> Self {
        Self { name: "wasmtime-style, keep all", keep_resident: usize::MAX }
    }

    /// Keeps at most 1 MiB of private pages resident.
    pub(crate) fn keeping_one_mebibyte() -> Self {
        Self { name: "wasmtime-style, keep 1 MiB", keep_resident: MIB }
    }
}

impl Competitor for Wasmtime {
    fn name(&self) -> &'static str {
        self.name
    }

    fn obstacle(&self, _case: &Case, operation: Operation) -> Option<&'static str> {
        matches!(operation, Operation::Take { .. }).then_some("the reset cannot take snapshots")
    }

    fn memory(&self, case: &Case, _operation: Operation) -> usize {
        case.changed * page_size()
    }

    fn open(&self, image: &Image, _case: &Case) -> Result<Box<dyn Region>> {
        let map = map_private(&image.file)?;
        let original = map_private(&image.file)?;
        let pagemap = File::open("/proc/self/pagemap")?;
        Ok(Box::new(Slot { map, original, pagemap, keep_resident: self.keep_resident }))
    }
}

impl Region for Slot {
    fn bytes(&mut self) -> &mut [u8] {
        &mut self.map
    }

    fn take(&mut self, _changes: &[Change]) -> Result<Taken> {
        bail!("the reset cannot take snapshots")
    }

    fn restore(&mut self, _changes: &[Change]) -> Result<()> {
        let mut budget = self.keep_resident / page_size();
        let mut regions = [PageRegion::default(); REGIONS];
        let mut done = 0;
        while budget > 0 {
            let found = scan(&self.pagemap, &self.map[done..], PRESENT | SWAPPED, budget, &mut regions)?;
            let start = self.map.as_ptr().addr();
            for region in &regions[..found] {
                let range = region.within(start);
                self.map[range.clone()].copy_from_slice(&self.original[range.clone()]);
                budget -= range.len() / page_size();
                done = range.end;
            }
            if found < REGIONS && budget > 0 {
                return Ok(());
            }
        }
        let rest = &mut self.map[done..];
        // SAFETY: the range is in the mapping, and this is the only slice of it. Its pages then show the original bytes
        // again.
        match unsafe { libc::madvise(rest.as_mut_ptr().cast(), rest.len(), libc::MADV_DONTNEED) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error().into()),
        }
    }
}

/// Counts the resident pages that `region`, a private mapping, does not share with a file.
pub(crate) fn private_pages(region: &[u8]) -> Result<usize> {
    let pagemap = File::open("/proc/self/pagemap")?;
    let mut regions = [PageRegion::default(); REGIONS];
    let (mut done, mut pages) = (0, 0);
    loop {
        let found = scan(&pagemap, &region[done..], PRESENT, 0, &mut regions)?;
        for found in &regions[..found] {
            let range = found.within(region.as_ptr().addr());
            pages += range.len() / page_size();
            done = range.end;
        }
        if found < REGIONS {
            return Ok(pages);
        }
    }
}

/// The most ranges of pages that one scan lists.
const REGIONS: usize = 512;

/// `PAGE_IS_*` of `linux/fs.h`.
const FILE: u64 = 1 << 2;
const PRESENT: u64 = 1 << 3;
const SWAPPED: u64 = 1 << 4;

/// `PAGEMAP_SCAN`: `_IOWR('f', 16, struct pm_scan_arg)`.
const PAGEMAP_SCAN: libc::Ioctl = 0xC060_6610;

/// `struct page_region`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

/// `struct pm_scan_arg`.
#[repr(C)]
#[derive(Default)]
struct ScanArguments {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    regions: u64,
    regions_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

impl PageRegion {
    /// Returns the range as offsets from the address `start`.
    fn within(self, start: usize) -> Range<usize> {
        let offset = |address: u64| usize::try_from(address).unwrap_or(usize::MAX) - start;
        offset(self.start)..offset(self.end)
    }
}

/// Lists the first pages of `region` that are in one of the `states` and do not belong to a file.
///
/// Returns the number of ranges that it wrote to `regions`. If `max_pages` is 0, the number of pages is not limited.
fn scan(
    pagemap: &File,
    region: &[u8],
    states: u64,
    max_pages: usize,
    regions: &mut [PageRegion],
) -> io::Result<usize> {
    let mut arguments = ScanArguments {
        size: size_of::<ScanArguments>() as u64,
        start: region.as_ptr().addr() as u64,
        end: region.as_ptr_range().end.addr() as u64,
        regions: regions.as_mut_ptr().expose_provenance() as u64,
        regions_len: regions.len() as u64,
        max_pages: max_pages as u64,
        category_inverted: FILE,
        category_mask: FILE,
        category_anyof_mask: states,
        ..ScanArguments::default()
    };
    // SAFETY: `arguments` has the layout of `struct pm_scan_arg`. The call writes at most `regions_len` ranges, to
    // `regions`.
    let found = unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN, &raw mut arguments) };
    usize::try_from(found).map_err(|_| io::Error::last_os_error())
}
