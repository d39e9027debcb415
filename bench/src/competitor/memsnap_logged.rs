//! memsnap with a logged view: writes borrow the bytes with `get_mut`, which reports the range to the view.
#![allow(unsafe_code)]

use std::slice;
use std::sync::Arc;

use anyhow::{Context, Result};
use memsnap::{LoggedView, Snapshot, ViewOptions};

use super::{Competitor, Operation, Region, Taken, captured};
use crate::case::Case;
use crate::image::Image;
use crate::pages::Change;
use crate::results::LOGGED;

#[derive(Default)]
pub(crate) struct MemsnapLogged {
    /// The snapshot that regions are views of.
    ///
    /// By default, each region has a snapshot that maps the file of the image without a copy.
    pub(crate) snapshot: Option<Arc<Snapshot>>,
}

impl Competitor for MemsnapLogged {
    fn name(&self) -> &'static str {
        LOGGED
    }

    fn memory(&self, case: &Case, operation: Operation) -> usize {
        captured(case, operation)
    }

    fn open(&self, image: &Image, _case: &Case) -> Result<Box<dyn Region>> {
        let snapshot = match &self.snapshot {
            Some(snapshot) => Arc::clone(snapshot),
            // SAFETY: nothing writes to the file of an image, or shortens it.
            None => Arc::new(unsafe { Snapshot::map_file(&image.file) }?),
        };
        Ok(Box::new(snapshot.view_arc_with(&ViewOptions::logged())?))
    }
}

impl Region for LoggedView<Arc<Snapshot>> {
    /// Borrows the bytes for reading only: writes to them are not reported to the view.
    fn bytes(&mut self) -> &mut [u8] {
        let (start, len) = (self.as_mut_ptr(), self.len());
        // SAFETY: the view has these bytes, and is borrowed mutably.
        unsafe { slice::from_raw_parts_mut(start, len) }
    }

    fn write(&mut self, changes: &[Change], value: u64) {
        for change in changes {
            self.get_mut(change.word()).expect("a word of the region").copy_from_slice(&value.to_le_bytes());
        }
    }

    fn take(&mut self, _changes: &[Change]) -> Result<Taken> {
        Ok(Box::new(self.take_snapshot()?))
    }

    fn restore(&mut self, _changes: &[Change]) -> Result<()> {
        Ok(LoggedView::restore(self)?)
    }

    fn restore_to(&mut self, taken: &Taken, _changes: &[Change]) -> Result<()> {
        let taken = taken.downcast_ref::<Snapshot>().context("not a snapshot of this region")?;
        Ok(LoggedView::restore_to(self, taken)?)
    }
}
