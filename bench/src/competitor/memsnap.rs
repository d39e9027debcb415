//! memsnap: the version in this repository.

use std::sync::Arc;

use anyhow::{Context, Result};
use memsnap::{ArcView, Snapshot, Tracking, ViewOptions};

use super::{Competitor, Operation, Region, Taken, captured};
use crate::case::Case;
use crate::image::Image;
use crate::pages::Change;
use crate::results::{COMPARING, SUBJECT};

#[derive(Default)]
pub(crate) struct Memsnap {
    /// The snapshot that regions are views of. By default, each region has a snapshot of its own.
    pub(crate) snapshot: Option<Arc<Snapshot>>,
    /// Whether views compare all pages, as on systems that do not list the written pages.
    pub(crate) compares: bool,
}

impl Competitor for Memsnap {
    fn name(&self) -> &'static str {
        if self.compares { COMPARING } else { SUBJECT }
    }

    fn memory(&self, case: &Case, operation: Operation) -> usize {
        case.bytes + captured(case, operation)
    }

    fn open(&self, image: &Image, _case: &Case) -> Result<Box<dyn Region>> {
        let snapshot = match &self.snapshot {
            Some(snapshot) => Arc::clone(snapshot),
            None => Arc::new(Snapshot::from_slice(image.bytes())?),
        };
        let mut options = ViewOptions::new();
        if self.compares {
            // By default, a restore of a large view maps it anew, and the next access to each page takes a page fault.
            options.tracking(Tracking::Compare).keep_resident(usize::MAX);
        }
        Ok(Box::new(snapshot.view_arc_with(&options)?))
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

    fn restore_to(&mut self, taken: &Taken, _changes: &[Change]) -> Result<()> {
        let taken = taken.downcast_ref::<Snapshot>().context("not a snapshot of this region")?;
        Ok(ArcView::restore_to(self, taken)?)
    }
}
