//! The limit: copies just the changed pages between buffers that are resident.
//!
//! It does not search for the changed pages, but gets a list of them. For the search, it adds 1 ns to the time of the
//! copies for each page-table entry of the region, which is the least time of a search that looks at all entries. A
//! resident region has an entry for each page, a sparse region for each changed page.

use std::time::Duration;

use anyhow::Result;
use memmap2::{MmapMut, MmapOptions};
use memsnap::page_size;

use super::{ChangedPages, Competitor, Operation, Region, Taken};
use crate::case::Case;
use crate::image::{Image, map_private};
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
    /// The page-table entries for which time is added.
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
        let map = map_private(&image.file)?;
        let original = map_private(&image.file)?;
        let taken = ChangedPages::new(case.changed);
        let entries = match self {
            Self::CopiesOnly => Entries::None,
            Self::WithEntries if case.is_resident() => Entries::All,
            Self::WithEntries => Entries::Changed,
        };
        Ok(Box::new(Buffers { map, original, taken, entries }))
    }
}

/// Opens a region of zeroes that only copies its changed pages, of which there are at most `changed`.
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
