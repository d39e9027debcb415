//! `Progress`: the progress of an operation.

use std::fmt;

/// The progress of an operation, in bytes.
///
/// A function that was passed to `progress` is called by the thread that called `run`, after each part of the work. A
/// part is a batch of blocks, or a file that was sent or received.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Progress {
    /// The bytes of the snapshot or of the transfer that are done.
    pub done: u64,
    /// The total number of bytes, as far as it is known.
    pub total: u64,
    /// The bytes that were written to memory, to a file, to the repository or to the remote.
    pub written: u64,
}

/// An optional function that is called with the progress.
pub(crate) struct Observer<'a>(Option<Box<dyn FnMut(Progress) + Send + 'a>>);
impl fmt::Debug for Observer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Observer" } else { "None" })
    }
}

impl<'a> Observer<'a> {
    /// Returns an observer without a function.
    pub(crate) fn none() -> Self {
        Self(None)
    }

    pub(crate) fn new(tell: impl FnMut(Progress) + Send + 'a) -> Self {
        Self(Some(Box::new(tell)))
    }

    pub(crate) fn tell(&mut self, progress: Progress) {
        if let Some(tell) = &mut self.0 {
            tell(progress);
        }
    }
}
