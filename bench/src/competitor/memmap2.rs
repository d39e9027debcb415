//! memmap2: a private mapping of a file.
//!
//! A restore maps the file anew. A snapshot is a new file with a copy of the whole region.

use std::fs::File;
use std::io::Write;

use anyhow::{Context, Result};
use memmap2::MmapMut;

use super::{Competitor, Operation, Region, Taken, copies};
use crate::case::Case;
use crate::image::{Image, map_private, memory_file};
use crate::pages::Change;

pub(crate) struct Memmap2;

struct Mapping {
    file: File,
    map: MmapMut,
}

impl Competitor for Memmap2 {
    fn name(&self) -> &'static str {
        "memmap2"
    }

    fn memory(&self, case: &Case, operation: Operation) -> usize {
        copies(case, operation)
    }

    fn open(&self, image: &Image, _case: &Case) -> Result<Box<dyn Region>> {
        let file = image.file.try_clone()?;
        let map = map_private(&file)?;
        Ok(Box::new(Mapping { file, map }))
    }
}

impl Region for Mapping {
    fn bytes(&mut self) -> &mut [u8] {
        &mut self.map
    }

    fn take(&mut self, _changes: &[Change]) -> Result<Taken> {
        let mut file = memory_file()?;
        file.write_all(&self.map)?;
        Ok(Box::new(file))
    }

    fn restore(&mut self, _changes: &[Change]) -> Result<()> {
        self.map = map_private(&self.file)?;
        Ok(())
    }

    fn restore_to(&mut self, taken: &Taken, _changes: &[Change]) -> Result<()> {
        self.map = map_private(taken.downcast_ref().context("not a file of this region")?)?;
        Ok(())
    }
}
