//! crumbles: a signal handler for `SIGSEGV` keeps a copy of each page before its first write.
//!
//! Its region shows zeroes, for it would keep a second copy of an image that it was filled with.

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

/// Each scattered page that is written takes up two mappings; a process can have 65,530.
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
        // Its snapshots can only be dropped from the last one on, so that those of all rounds stay.
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
        // `revert` gives the snapshot up.
        Ok(self.map.snap()?)
    }

    /// Reverts to the snapshot on top of the stack, which removes it.
    fn restore_to(&mut self, _taken: &Taken, _changes: &[Change]) -> Result<()> {
        self.taken = self.taken.saturating_sub(1);
        Ok(self.map.revert()?)
    }
}
