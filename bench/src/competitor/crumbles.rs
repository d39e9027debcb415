//! crumbles: a signal handler for `SIGSEGV` copies each page before its first write.
//!
//! The region contains zeroes. If it were filled with the image, crumbles would keep a second copy of the image.

use std::mem;

use anyhow::Result;
use crumbles::Mmap;
use memsnap::page_size;

use super::{Competitor, Operation, Region, Taken};
use crate::case::Case;
use crate::image::Image;
use crate::pages::{Change, Pattern};

pub(crate) struct Crumbles;

struct Stack {
    map: Mmap,
    /// The number of snapshots on the stack above that of the image.
    taken: usize,
}

/// The most scattered pages that can be written. Each takes two mappings, and a process can have 65,530.
const MOST_SCATTERED: usize = 16_384;

impl Competitor for Crumbles {
    fn name(&self) -> &'static str {
        "crumbles"
    }

    fn obstacle(&self, case: &Case, _operation: Operation) -> Option<&'static str> {
        let scattered = case.pattern != Some(Pattern::Contiguous) && case.changed > MOST_SCATTERED;
        scattered.then_some("needs more mappings than a process can have, and crashes")
    }

    fn memory(&self, case: &Case, operation: Operation) -> usize {
        // Snapshots can only be dropped in reverse order, so the snapshots of all rounds are kept.
        let rounds = match operation {
            Operation::Take { kept } => kept + 50,
            Operation::Restore => 1,
        };
        rounds * case.changed * page_size()
    }

    fn open(&self, _image: &Image, case: &Case) -> Result<Box<dyn Region>> {
        let mut map = Mmap::new(case.pages(), page_size())?;
        map.snap()?;
        Ok(Box::new(Stack { map, taken: 0 }))
    }
}

impl Region for Stack {
    fn bytes(&mut self) -> &mut [u8] {
        self.map.as_mut()
    }

    fn take(&mut self, _changes: &[Change]) -> Result<Taken> {
        self.map.snap()?;
        self.taken += 1;
        Ok(Box::new(()))
    }

    fn restore(&mut self, _changes: &[Change]) -> Result<()> {
        for _ in 0..=mem::take(&mut self.taken) {
            self.map.revert()?;
        }
        // `revert` removes the snapshot, so the next restore needs another one.
        Ok(self.map.snap()?)
    }

    /// Reverts to the snapshot on top of the stack, which removes it.
    fn restore_to(&mut self, _taken: &Taken, _changes: &[Change]) -> Result<()> {
        self.taken = self.taken.saturating_sub(1);
        Ok(self.map.revert()?)
    }
}
