//! The limit: copies exactly the changed pages between buffers that are in memory, and is told which these are.
//!
//! To the time of the copies 1 ns is added for each entry of the region's page table, which is what finding the
//! changed pages costs at the least: for a resident region its pages, for a sparse one the pages changed.
#![allow(unsafe_code)]

use std::time::Duration;

use anyhow::Result;
use memmap2::{MmapMut, MmapOptions};
use memsnap::page_size;

use super::{ChangedPages, Competitor, Operation, Region, Taken};
use crate::case::Case;
use crate::image::Image;
use crate::pages::{Change, page};
use crate::results::{COPIES, LIMIT};

pub(crate) enum Limit {
    WithEntries,
    /// The limit without the time for page-table entries.
    CopiesOnly,
}

struct Buffers {
    map: MmapMut,
    original: MmapMut,
    taken: ChangedPages,
    /// The page-table entries that add to the time.
    entries: Entries,
}

enum Entries {
    /// One for each page of the region.
    All,
    /// One for each change.
    Changed,
    None,
}

impl Competitor for Limit {
    fn name(&self) -> &'static str {
        match self {
            Self::WithEntries => LIMIT,
            Self::CopiesOnly => COPIES,
        }
    }

    fn memory(&self, case: &Case, _operation: Operation) -> usize {
        2 * case.changed * page_size()
    }

    fn open(&self, image: &Image, case: &Case) -> Result<Box<dyn Region>> {
        // SAFETY: nobody writes to the file of an image, or makes it shorter.
        let map = unsafe { MmapOptions::new().map_copy(&image.file) }?;
        // SAFETY: as above.
        let original = unsafe { MmapOptions::new().map_copy(&image.file) }?;
        let taken = ChangedPages::new(case.changed);
        let entries = match self {
            Self::CopiesOnly => Entries::None,
            Self::WithEntries if case.is_resident() => Entries::All,
            Self::WithEntries => Entries::Changed,
        };
        Ok(Box::new(Buffers { map, original, taken, entries }))
    }
}

/// A region of zeroes that only copies its changed pages. There are at most `changed` of them.
pub(crate) fn copies_of_zeroes(bytes: usize, changed: usize) -> Result<Box<dyn Region>> {
    let map = || MmapOptions::new().len(bytes).no_reserve_swap().map_anon();
    let taken = ChangedPages::new(changed);
    Ok(Box::new(Buffers { map: map()?, original: map()?, taken, entries: Entries::None }))
}

impl Region for Buffers {
    fn bytes(&mut self) -> &mut [u8] {
        &mut self.map
    }

    fn take(&mut self, changes: &[Change]) -> Result<Taken> {
        self.taken.take(&self.map, changes);
        Ok(Box::new(()))
    }

    fn restore(&mut self, changes: &[Change]) -> Result<()> {
        for change in changes {
            let at = change.page * page_size();
            self.map[at..at + page_size()].copy_from_slice(page(&self.original, change.page));
        }
        Ok(())
    }

    fn restore_to(&mut self, _taken: &Taken, changes: &[Change]) -> Result<()> {
        self.taken.put_back(&mut self.map, changes);
        Ok(())
    }

    fn surcharge(&self, changes: &[Change]) -> Duration {
        let entries = match self.entries {
            Entries::All => self.map.len() / page_size(),
            Entries::Changed => changes.len(),
            Entries::None => 0,
        };
        Duration::from_nanos(entries as u64)
    }
}
