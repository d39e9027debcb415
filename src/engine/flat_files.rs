//! Decides which pages of an image are written into a flat file, and when. Writes the file.
//!
//! `layout.rs` explains what flat files are for, and maps them into views. `image/flat.rs` keeps them with the image.

use std::io;
use std::sync::{Arc, MutexGuard, PoisonError};

use crate::image::flat::{Flat, FlatFile, Permit, Runs};
use crate::image::{Base, Image};
use crate::pages::{PageRange, PageSet};
use crate::sys::{Handle, HugePages, MemoryFile, available_memory};
use crate::zero::is_zero;
use crate::{page_size, trace};

use super::layout::{MAX_RUNS, MIN_RUN};

/// The least number of captured pages, in all long runs together, for which a flat file is written.
const MIN_MAPPED: usize = 64;

/// The number of views after which a whole image is written into a flat file.
///
/// This holds even if each view copies few pages.
const VIEWS_UNTIL_FLAT: usize = 64;

/// The least number of pages that views must have copied before the whole image becomes a flat file.
///
/// For an image with more pages than this, the limit is the number of its pages.
const MIN_COPIED: usize = 64;

/// The most bytes of an image that is written into a flat file because of the number of its views.
const MAX_BYTES_BY_VIEWS: usize = 1 << 30;

/// The most bytes of an image whose holes may become memory when they are read.
const SMALL_BYTES: usize = 64 << 20;

impl FlatFile {
    /// Writes a flat file that has the pages `covers` of `image`.
    ///
    /// Only the pages `written` may be other than zero.
    fn build(image: &Image, written: &PageSet, covers: PageSet) -> io::Result<Arc<Self>> {
        let permit = Permit::take()?;
        Ok(Arc::new(Self { file: Self::write(image, written)?, covers, _permit: permit }))
    }

    /// A file with the bytes of `image` in the pages `written`, and zeroes elsewhere.
    fn write(image: &Image, written: &PageSet) -> io::Result<MemoryFile> {
        let file = MemoryFile::create(image.pages, image.pages, image.label.name.as_deref())?;
        let reader = image.reader()?;
        // The holes of some bases are not known. Pages that are zero are not written, so that they take no memory.
        let written: PageSet = written.iter().filter(|&page| !is_zero(reader.page(page))).collect();
        for range in written.ranges() {
            file.write_pages(range.start, range.iter().map(|page| reader.page(page)))?;
        }
        file.finish();
        if image.label.huge_pages == HugePages::Advise {
            file.collapse();
        }
        trace::consolidated(image.pages, written.len());
        Ok(file)
    }
}

impl Flat {
    /// The memory of the image's flat files in bytes.
    pub(crate) fn allocated(image: &Image) -> u64 {
        let flat = Self::of(image);
        let other =
            |shared: &&Arc<FlatFile>| flat.file.as_ref().is_none_or(|file| !Arc::ptr_eq(file, shared));
        let files = flat.file.iter().chain(flat.shared.as_ref().filter(other));
        files.map(|flat| flat.file.allocated()).sum()
    }

    /// Returns a handle for other processes on a file of all of `image`, to which nothing can write.
    ///
    /// If there is no such file, writes one. Keeps that file if there is a [`Permit`] for it.
    #[allow(dead_code, reason = "not every system has a module in `os`")]
    pub(crate) fn share(image: &Image) -> io::Result<Handle> {
        if image.captured.len() == 0
            && let Some(file) = image.base.whole_file(image.pages)
            && let Some(handle) = file.share()?
        {
            return Ok(handle);
        }
        let _events = trace::hold();
        let sharing = Arc::clone(Self::of(image).sharing.get_or_insert_default());
        let _one = sharing.lock().unwrap_or_else(PoisonError::into_inner);
        let (shared, file) = {
            let flat = Self::of(image);
            (flat.shared.clone(), flat.file.clone())
        };
        for flat in shared.iter().chain(&file).filter(|flat| flat.is_whole()) {
            if let Some(handle) = flat.file.share()? {
                return Ok(handle);
            }
        }
        let permit = Permit::take();
        // While `building` is set, new views of the image neither wait for the file nor write another one.
        Self::of(image).building = true;
        let written = FlatFile::write(image, &image.may_hold_data());
        Self::of(image).building = false;
        let file = written?;
        let handle = file.share()?.ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::ResourceBusy,
                "sharing a snapshot: the system did not seal the file, because something else uses its pages; try again",
            )
        })?;
        if let Ok(permit) = permit {
            let file = Arc::new(FlatFile { file, covers: PageSet::all(image.pages), _permit: permit });
            let for_views = Self::may_write_whole(image);
            let mut flat = Self::of(image);
            if for_views {
                flat.file = Some(Arc::clone(&file));
            }
            flat.shared = Some(file);
        }
        Ok(handle)
    }

    /// Locks the flat files of `image`.
    fn of(image: &Image) -> MutexGuard<'_, Self> {
        // No code that holds the lock can panic while it changes the value.
        image.flat.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The flat file of a new view of `image`, if any, and the pages that the view maps or copies.
    ///
    /// Writes a flat file if one is due.
    pub(super) fn for_view(image: &Image) -> (Option<Arc<FlatFile>>, Runs) {
        let mut flat = Self::of(image);
        if flat.file.as_ref().is_some_and(|file| file.is_whole()) {
            return (flat.file.clone(), Runs::default());
        }
        let runs = flat.runs.get_or_insert_with(|| Runs::of(image)).clone();
        let counts_views = image.pages <= MAX_BYTES_BY_VIEWS / page_size();
        flat.copied +=
            if counts_views { runs.copied.max(image.pages.div_ceil(VIEWS_UNTIL_FLAT)) } else { runs.copied };
        if flat.building {
            return (flat.file.clone(), runs);
        }
        let is_due = flat.copied >= image.pages.max(MIN_COPIED);
        if is_due {
            flat.copied = 0;
        }
        let whole = is_due && Self::may_write_whole(image);
        if !whole && (flat.file.is_some() || runs.flat.is_empty()) {
            return (flat.file.clone(), runs);
        }
        // The lock is released while the file is written. So other views of the image do not wait. They use the old
        // file, if there is one.
        flat.building = true;
        drop(flat);
        let built = if whole {
            FlatFile::build(image, &image.may_hold_data(), PageSet::all(image.pages))
        } else {
            FlatFile::build(image, &runs.flat, runs.flat.clone())
        };
        let mut flat = Self::of(image);
        flat.building = false;
        if let Ok(file) = built {
            flat.file = Some(file);
        }
        (flat.file.clone(), runs)
    }

    /// Whether the whole image may be written into a flat file.
    ///
    /// The file may take at most a quarter of the available memory. Its holes count as well, since a hole takes memory
    /// once it is read. For the same reason, a sparse image of more than [`SMALL_BYTES`] is never written as a whole.
    fn may_write_whole(image: &Image) -> bool {
        let bytes = image.pages * page_size();
        let sparse = matches!(image.base, Base::Zero) && image.captured.len() < image.pages / 16;
        (bytes <= SMALL_BYTES || !sparse)
            && available_memory().is_some_and(|available| bytes <= available / 4)
    }
}

impl Runs {
    /// The captured pages of `image` in runs that are mapped, and the number of the others.
    fn of(image: &Image) -> Self {
        let (mut captured, mut zeroes) = (PageSet::new(), PageSet::new());
        image.captured.for_each(|page, entry| match &image.base {
            _ if !entry.is_zero() => captured.push(page),
            Base::Zero => {}
            Base::File { .. } => zeroes.push(page),
        });
        let mut flat = long_runs(&captured);
        if flat.len() < MIN_MAPPED {
            flat = PageSet::new();
        }
        let zeroes_mapped = long_runs(&zeroes);
        let copied = captured.len() - flat.len() + zeroes.len() - zeroes_mapped.len();
        Self { flat, zeroes: zeroes_mapped, copied }
    }
}

/// The runs of `pages` of at least [`MIN_RUN`] pages.
///
/// If there are more than [`MAX_RUNS`], the longest ones.
fn long_runs(pages: &PageSet) -> PageSet {
    let mut runs: Vec<PageRange> =
        pages.ranges().iter().copied().filter(|run| run.len() >= MIN_RUN).collect();
    if runs.len() > MAX_RUNS {
        runs.sort_unstable_by_key(|run| std::cmp::Reverse(run.len()));
        runs.truncate(MAX_RUNS);
    }
    runs.into_iter().collect()
}
