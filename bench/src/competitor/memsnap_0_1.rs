//! memsnap 0.1.2: a snapshot is a copy of everything, a restore maps everything anew.

use std::sync::Arc;

use anyhow::Result;
use memsnap_0_1::{ArcView, Snapshot};

use super::{Competitor, Operation, Region, Taken, copies};
use crate::case::Case;
use crate::image::Image;
use crate::pages::Change;

pub(crate) struct Memsnap01;

impl Competitor for Memsnap01 {
    fn name(&self) -> &'static str {
        "memsnap 0.1.2"
    }

    fn memory(&self, case: &Case, operation: Operation) -> usize {
        copies(case, operation)
    }

    fn open(&self, image: &Image, _case: &Case) -> Result<Box<dyn Region>> {
        let snapshot = Snapshot::from_file(image.file.try_clone()?)?;
        Ok(Box::new(Arc::new(snapshot).view_arc()?))
    }
}

impl Region for ArcView {
    fn bytes(&mut self) -> &mut [u8] {
        self.as_mut_slice()
    }

    fn take(&mut self, _changes: &[Change]) -> Result<Taken> {
        Ok(Box::new(self.take_snapshot()?))
    }

    fn restore(&mut self, _changes: &[Change]) -> Result<()> {
        Ok(ArcView::restore(self)?)
    }
}
