//! memsnap 0.1.2: a snapshot is a copy of the whole region, a restore maps the whole region anew.

use std::sync::Arc;

use anyhow::{Context, Result};
use memsnap_0_1::{ArcView, Snapshot};

use super::{Competitor, Operation, Region, Taken, copies};
use crate::case::Case;
use crate::image::Image;
use crate::pages::Change;
use crate::results::OLD;

pub(crate) struct Memsnap01;

struct Old {
    image: Arc<Snapshot>,
    view: ArcView,
    /// Whether `view` is a view of a later snapshot, and not of `image`.
    elsewhere: bool,
}

impl Competitor for Memsnap01 {
    fn name(&self) -> &'static str {
        OLD
    }

    fn memory(&self, case: &Case, operation: Operation) -> usize {
        copies(case, operation)
    }

    fn open(&self, image: &Image, _case: &Case) -> Result<Box<dyn Region>> {
        let image = Arc::new(Snapshot::from_file(image.file.try_clone()?)?);
        let view = image.view_arc()?;
        Ok(Box::new(Old { image, view, elsewhere: false }))
    }
}

impl Region for Old {
    fn bytes(&mut self) -> &mut [u8] {
        self.view.as_mut_slice()
    }

    fn take(&mut self, _changes: &[Change]) -> Result<Taken> {
        Ok(Box::new(Arc::new(self.view.take_snapshot()?)))
    }

    fn restore(&mut self, _changes: &[Change]) -> Result<()> {
        if self.elsewhere {
            self.view = self.image.view_arc()?;
            self.elsewhere = false;
            return Ok(());
        }
        Ok(self.view.restore()?)
    }

    /// Opens a new view, since a view of this version cannot be restored to another snapshot.
    fn restore_to(&mut self, taken: &Taken, _changes: &[Change]) -> Result<()> {
        let taken: &Arc<Snapshot> = taken.downcast_ref().context("not a snapshot of this region")?;
        self.view = taken.view_arc()?;
        self.elsewhere = true;
        Ok(())
    }
}
