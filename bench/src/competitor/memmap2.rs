//! memmap2: a private mapping of a file. A restore maps it anew; a snapshot is a new file with everything.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::Write;

use anyhow::{Context, Result};
use memmap2::{MmapMut, MmapOptions};

use super::{Competitor, Operation, Region, Taken, copies};
use crate::case::Case;
use crate::image::{Image, memory_file};
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
        let map = map(&file)?;
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
        self.map = map(&self.file)?;
        Ok(())
    }

    fn restore_to(&mut self, taken: &Taken, _changes: &[Change]) -> Result<()> {
        self.map = map(taken.downcast_ref().context("not a file of this region")?)?;
        Ok(())
    }
}

/// Maps the file of an image or of a snapshot.
pub(crate) fn map(file: &File) -> Result<MmapMut> {
    // SAFETY: nobody writes to the file of an image, or makes it shorter.
    Ok(unsafe { MmapOptions::new().map_copy(file) }?)
}
