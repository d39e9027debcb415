//! `Progress`: how far a long operation is.

use std::fmt;

/// How far a long operation is, in bytes.
///
/// Functions that get it are called from the thread that runs the operation, some times a second at most.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Progress {
    /// The bytes of the snapshot, the repository or the transfer that are done.
    pub done: u64,
    /// The bytes in all, as far as they are known by now.
    pub total: u64,
    /// The bytes that were written to the repository, to a file or to the other side.
    pub written: u64,
}

/// A function that is told the progress.
pub(crate) struct Observer<'a>(Option<Box<dyn FnMut(Progress) + Send + 'a>>);
impl fmt::Debug for Observer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Observer" } else { "None" })
    }
}

impl<'a> Observer<'a> {
    /// An observer that is told nothing.
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
