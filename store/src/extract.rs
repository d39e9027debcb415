//! Extracting.
use std::marker::PhantomData;

use crate::error::Result;
use crate::progress::Progress;

/// A file that is about to be written. [`Repository::extract`](crate::Repository::extract) makes it.
#[must_use = "nothing is written until `run`"]
pub struct Extract<'a>(PhantomData<&'a ()>);

impl<'a> Extract<'a> {
    /// Sets a function that is told the progress.
    pub fn progress(self, tell: impl FnMut(Progress) + Send + 'a) -> Self {
        drop(tell);
        todo!()
    }

    /// Writes the file. It replaces a file of that name only when it is complete.
    ///
    /// # Errors
    ///
    /// Many.
    pub fn run(self) -> Result<Extracted> {
        todo!()
    }
}

/// What was extracted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Extracted {
    /// The length of the file in bytes.
    pub len: u64,
    /// The bytes that were written; the others are holes or are shared with a mapped ancestor.
    pub written: u64,
    /// Whether the file shares bytes with a mapped ancestor (reflink).
    pub shared: bool,
}
