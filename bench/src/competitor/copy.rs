//! Plain copies of the whole region: `to_vec` takes a snapshot, `copy_from_slice` restores the image.
#![allow(unsafe_code)]

use anyhow::Result;
use memmap2::{Mmap, MmapMut};

use super::{Competitor, Operation, Region, Taken, copies};
use crate::case::Case;
use crate::image::Image;
use crate::pages::Change;

pub(crate) struct Copy;

struct Buffer {
    bytes: MmapMut,
    original: Mmap,
}

impl Competitor for Copy {
    fn name(&self) -> &'static str {
        "plain copy"
    }

    fn memory(&self, case: &Case, operation: Operation) -> usize {
        case.bytes + copies(case, operation)
    }

    fn open(&self, image: &Image, _case: &Case) -> Result<Box<dyn Region>> {
        // SAFETY: nothing writes to the file of an image, or shortens it.
        let original = unsafe { Mmap::map(&image.file) }?;
        let mut bytes = MmapMut::map_anon(image.bytes().len())?;
        bytes.copy_from_slice(image.bytes());
        Ok(Box::new(Buffer { bytes, original }))
    }
}

impl Region for Buffer {
    fn bytes(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    fn take(&mut self, _changes: &[Change]) -> Result<Taken> {
        Ok(Box::new(self.bytes.to_vec()))
    }

    fn restore(&mut self, _changes: &[Change]) -> Result<()> {
        self.bytes.copy_from_slice(&self.original);
        Ok(())
    }
}
