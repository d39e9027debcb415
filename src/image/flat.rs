//! Flat files: what the views of one image have in common. Which pages are in them, and when one is written, is decided by
//! `engine/layout.rs`.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use crate::pages::PageSet;
use crate::sys::{MemoryFile, file_limit};

/// What the views of one image have in common.
#[derive(Default)]
pub(crate) struct Flat {
    pub(crate) file: Option<Arc<FlatFile>>,
    /// Of the whole image, for other processes. The same as `file` where views do well with it.
    pub(crate) shared: Option<Arc<FlatFile>>,
    /// Held while `shared` is being made.
    pub(crate) sharing: Option<Arc<Mutex<()>>>,
    pub(crate) runs: Option<Runs>,
    /// Pages copied by views so far.
    pub(crate) copied: usize,
    pub(crate) building: bool,
}

/// How the captured pages of an image are brought into a view.
#[derive(Clone, Default)]
pub(crate) struct Runs {
    /// Mapped from a flat file.
    pub(crate) flat: PageSet,
    /// Mapped anonymously.
    pub(crate) zeroes: PageSet,
    /// The number of the others.
    pub(crate) copied: usize,
}

/// Invariant: the pages `covers` of `file` hold the bytes of the image it was made for, and the file
/// does not change.
pub(crate) struct FlatFile {
    pub(crate) file: MemoryFile,
    pub(crate) covers: PageSet,
    pub(crate) _permit: Permit,
}

/// The right to keep one more flat file. There are as many as an eighth of the descriptors that the
/// process may have.
pub(crate) struct Permit;

/// Flat files of the process. A forked child inherits them, and the count.
static FLAT_FILES: AtomicUsize = AtomicUsize::new(0);

impl FlatFile {
    /// Whether all pages of the image are in the file.
    pub(crate) fn is_whole(&self) -> bool {
        self.covers.len() == self.file.pages()
    }
}

impl Permit {
    pub(crate) fn take() -> io::Result<Self> {
        let permit = Self;
        let taken = FLAT_FILES.fetch_add(1, Ordering::Relaxed);
        if taken < file_limit() / 8 { Ok(permit) } else { Err(io::ErrorKind::QuotaExceeded.into()) }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        FLAT_FILES.fetch_sub(1, Ordering::Relaxed);
    }
}
