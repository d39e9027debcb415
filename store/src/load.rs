//! Loading.
use std::marker::PhantomData;

use crate::error::Result;
use crate::progress::Progress;
use crate::saved::Saved;

/// A snapshot that is about to be loaded. [`Repository::load`](crate::Repository::load) makes it.
#[must_use = "nothing is loaded until `run`"]
pub struct Load<'a>(PhantomData<&'a ()>);

impl<'a> Load<'a> {
    /// Names a snapshot that is in memory. Only what differs is read, and both share the rest.
    pub fn onto(self, saved: &Saved) -> Self {
        todo!("{saved:?}")
    }

    /// Sets a function that is told the progress.
    pub fn progress(self, tell: impl FnMut(Progress) + Send + 'a) -> Self {
        drop(tell);
        todo!()
    }

    /// Loads the snapshot.
    ///
    /// # Errors
    ///
    /// Many.
    pub fn run(self) -> Result<Saved> {
        todo!()
    }
}
