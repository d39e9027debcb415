//! Tests the contract of [`super`] on the backend in use, one file for each item of the contract.
//!
//! Each item is tried before and after other calls, when a system call fails, on nothing, and at the edges of pages.
//! The tests use only what `super` offers to the rest of the crate, and [`fault`] to make calls fail. This file has
//! what they share.
//!
//! All bytes of a page are the same in each file and mapping, so a list with one byte for each page describes what is
//! shown.
#![allow(unsafe_code)]

mod access;
mod discarding;
mod files;
mod growth;
mod huge_pages;
mod mapping;
mod tracking;

use std::fs::File;
use std::io::{self, Seek, Write};
use std::ops::Deref;
use std::slice;

use super::{
    Mapping, MemoryFile, Overlay, Placement, Source, available_memory, fault, file_limit, page_size,
};
use crate::access::Access;
use crate::pages::{PageRange, PageSet};

/// A mapping that lends no reference to its bytes for longer than a call.
struct Area(Mapping);

impl Deref for Area {
    type Target = Mapping;

    fn deref(&self) -> &Mapping {
        &self.0
    }
}

impl Area {
    fn new(pages: usize, source: Source<'_>) -> io::Result<Self> {
        let area = Self(Mapping::new(pages, source)?);
        assert_eq!((area.pages(), area.len()), (pages, pages * page_size()));
        assert_eq!(area.inaccessible(), (0, 0));
        assert!(area.as_ptr().addr().get().is_multiple_of(page_size()));
        area.check_owner().unwrap();
        Ok(area)
    }

    fn placed(pages: usize, source: Source<'_>, over: &[Overlay<'_>], behind: usize) -> io::Result<Self> {
        let placement = Placement { before: 2, behind, ..Placement::default() };
        let area = Self(Mapping::placed(pages, source, over, &placement)?);
        assert_eq!(area.pages(), pages);
        let (before, after) = area.inaccessible();
        assert!(before >= 2 && after >= behind);
        Ok(area)
    }

    /// Returns the byte of each page.
    fn look(&self) -> Vec<u8> {
        let look = |page| {
            // SAFETY: tests make all pages readable before they call this, and nobody writes to them during the call.
            let bytes = unsafe { self.page(page) };
            assert!(bytes.iter().all(|byte| *byte == bytes[0]), "page {page} is a mixture");
            bytes[0]
        };
        (0..self.pages()).map(look).collect()
    }

    fn fill(&mut self, pages: impl IntoIterator<Item = usize>, byte: u8) {
        let bytes = vec![byte; page_size()];
        // SAFETY: the area is borrowed exclusively, so no reference to its pages exists. Tests make the pages writable
        // before they call this. `bytes` is a whole page and lies outside of the area.
        pages.into_iter().for_each(|page| unsafe { self.write(page, &bytes) });
    }

    /// The bytes of `range`, to pass to a system call that writes to them.
    fn bytes(&mut self, range: PageRange) -> &mut [u8] {
        let len = range.len() * page_size();
        // SAFETY: the pages are inside the mapping, readable, writable and initialized. The area is borrowed
        // exclusively for as long as the slice exists.
        unsafe { slice::from_raw_parts_mut(self.page_ptr(range.start).as_ptr(), len) }
    }

    fn extend(&mut self, pages: usize, source: Source<'_>) -> io::Result<()> {
        self.0.extend(pages, source)
    }

    fn replace(&mut self, source: Source<'_>, over: &[Overlay<'_>]) -> io::Result<()> {
        // SAFETY: the area is borrowed exclusively, so no reference to its bytes exists.
        unsafe { self.0.replace(source, over) }
    }

    fn replace_part(&mut self, range: PageRange, source: Source<'_>) -> io::Result<()> {
        // SAFETY: as above.
        unsafe { self.0.replace_part(range, source) }
    }

    fn truncate(&mut self, pages: usize) -> io::Result<()> {
        // SAFETY: as above.
        unsafe { self.0.truncate(pages) }
    }

    fn discard(&mut self, pages: &PageSet) -> io::Result<()> {
        // SAFETY: as above.
        unsafe { self.0.discard(pages) }
    }

    fn give_back(&mut self, pages: &PageSet) -> io::Result<()> {
        // SAFETY: as above.
        unsafe { self.0.give_back(pages) }
    }

    fn set_access(&mut self, range: PageRange, access: Access) -> io::Result<()> {
        // SAFETY: as above.
        unsafe { self.0.set_access(range, access) }
    }
}

fn range(start: usize, end: usize) -> PageRange {
    PageRange::new(start, end)
}

fn set(pages: impl IntoIterator<Item = usize>) -> PageSet {
    pages.into_iter().collect()
}

/// Returns the byte of each page of a file that [`file`] makes with `seed`.
fn looks(seed: u8, pages: usize) -> Vec<u8> {
    (0..pages).map(|page| seed + (page % 40).to_le_bytes()[0]).collect()
}

fn file(seed: u8, pages: usize) -> io::Result<MemoryFile> {
    let file = MemoryFile::create(pages, pages, Some(c"conformance"))?;
    let bytes: Vec<_> = looks(seed, pages).into_iter().flat_map(|byte| vec![byte; page_size()]).collect();
    file.write_pages(0, bytes.chunks(page_size()))?;
    file.finish();
    Ok(file)
}

/// Returns the byte of each page of `file`, read through a mapping.
fn content(file: &MemoryFile) -> Vec<u8> {
    Area::new(file.pages(), Source::ReadOnly(file)).unwrap().look()
}

/// Makes a file on a disk that holds `bytes`, with its offset at the start.
fn on_disk(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file.rewind().unwrap();
    file
}

/// Returns whether a call succeeded that a system may not support.
///
/// Panics on any error but `Unsupported`.
fn done(result: io::Result<()>) -> bool {
    match result {
        Ok(()) => true,
        Err(error) if error.kind() == io::ErrorKind::Unsupported => false,
        Err(error) => panic!("{error}"),
    }
}

/// Runs `script` once without a failure, and then once for each call into the system, which fails.
fn with_each_failure(script: impl Fn()) {
    let ((), calls) = fault::inject(u64::MAX, 0, &script);
    assert!(calls > 0, "no call can fail");
    for call in 0..calls {
        fault::inject(call, 1, &script);
    }
}

#[test]
fn a_page_is_a_power_of_two_and_the_process_may_open_files() {
    assert!(page_size().is_power_of_two() && page_size() <= 1 << 16);
    assert!(file_limit() > 2);
    assert_ne!(available_memory(), Some(0));
}
