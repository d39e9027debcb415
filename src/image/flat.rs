//! The flat files of an image, and what its views have in common.
//!
//! This file has the data. `engine/flat_files.rs` decides which pages are written into a flat file, and when.
//! `engine/layout.rs` maps flat files into views.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use crate::pages::PageSet;
use crate::sys::{MemoryFile, file_limit};

/// What the views of one image have in common.
#[derive(Default)]
pub(crate) struct Flat {
    /// The flat file from which new views map captured pages.
    pub(crate) file: Option<Arc<FlatFile>>,
    /// A flat file of the whole image, for other processes. If views may map it too, `file` is the same file.
    pub(crate) shared: Option<Arc<FlatFile>>,
    /// Locked while the file for `shared` is written, so that only one thread writes it.
    pub(crate) sharing: Option<Arc<Mutex<()>>>,
    /// `None` until a view needs it.
    pub(crate) runs: Option<Runs>,
    /// The number of pages that views have copied since a flat file of the whole image was last considered.
    ///
    /// For a view of an image of up to a gibibyte, `engine/flat_files.rs` counts at least a 64th of the image's pages.
    pub(crate) copied: usize,
    /// Whether a thread is writing a flat file. New views then neither wait for the file nor write another one.
    pub(crate) building: bool,
}

/// How the captured pages of an image are brought into a view.
#[derive(Clone, Default)]
pub(crate) struct Runs {
    /// The pages that are mapped from a flat file.
    pub(crate) flat: PageSet,
    /// The pages of zeroes for which anonymous memory is mapped.
    pub(crate) zeroes: PageSet,
    /// The number of pages that are copied: all other captured pages, except zeroes where the base is zero too.
    pub(crate) copied: usize,
}

/// A file with pages of an image, each at its own offset.
///
/// Invariant: the pages `covers` of `file` have the bytes of the image that the file was made for, and the file does
/// not change.
pub(crate) struct FlatFile {
    pub(crate) file: MemoryFile,
    pub(crate) covers: PageSet,
    pub(crate) _permit: Permit,
}

/// The right to keep one more flat file.
///
/// Each flat file takes a descriptor. There are permits for an eighth of the descriptors that the process may have.
pub(crate) struct Permit;

/// The number of permits that the process has taken. A forked child inherits it together with the files.
static FLAT_FILES: AtomicUsize = AtomicUsize::new(0);

impl FlatFile {
    /// Whether all pages of the image are in the file.
    pub(crate) fn is_whole(&self) -> bool {
        self.covers.len() == self.file.pages()
    }
}

impl Permit {
    /// Returns a permit, or an error if there are no more.
    pub(crate) fn take() -> io::Result<Self> {
        // If this function fails, dropping the permit decrements the number again.
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
