//! How an image is laid out in the address range of a view.
//!
//! The base is mapped once, over the whole range. Captured pages live elsewhere, so:
//!
//! - long runs of them are written once into a *flat file*, where each page stands at its own offset,
//!   and each view maps them from there; no more than [`MAX_RUNS`], the longest ones;
//! - the others are copied into the view, privately;
//! - when the views of one image have together copied as many pages as the image has, or an image of
//!   up to [`PATIENT_BYTES`] has been viewed [`PATIENCE`] times, the whole image is written into a flat
//!   file, and a view is one mapping again. Not if that would take more than a share of the memory
//!   available, nor where it would make a sparse image dense ([`Flat::may_be_whole`]).
//!
//! A flat file takes a descriptor, which the program may need for other things. So flat files take no more
//! than a share of them ([`Permit`]), and small gains are not worth one.
//!
//! Nothing here is needed for correctness: what cannot be mapped or written is copied.
#![allow(unsafe_code)]

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, MutexGuard, PoisonError};

use crate::image::{Base, Image, is_zero};
use crate::pages::{PageRange, PageSet};
use crate::sys::{Mapping, MemoryFile, Source, available_memory, file_limit};
use crate::{error, page_size};

/// Pages from which on a run is mapped: one more mapping costs about as much as copying two pages, and
/// makes every other call on the address space a little slower.
const MIN_RUN: usize = 8;

/// Mappings that the runs of one view may take, of the 65,530 that a Linux process has.
const MAX_RUNS: usize = 1024;

/// Pages in long runs, all together, from which on they are worth a file.
const MIN_MAPPED: usize = 64;

/// Views after which an image is made flat even if each of them copies little, and page copies that are
/// not worth a file even if the image is small.
const PATIENCE: usize = 64;

/// The largest image that is made flat for the number of its views alone.
const PATIENT_BYTES: usize = 1 << 30;

/// Below this size, holes that become memory when they are read do no harm.
const SPARSE_BYTES: usize = 64 << 20;

/// What the views of one image have in common.
#[derive(Default)]
pub(crate) struct Flat {
    file: Option<Arc<FlatFile>>,
    runs: Option<PageSet>,
    /// Pages copied by views so far.
    copied: usize,
    building: bool,
}

/// Invariant: the pages `covers` of `file` hold the bytes of the image it was made for, and the file
/// does not change.
pub(crate) struct FlatFile {
    file: MemoryFile,
    covers: PageSet,
    _permit: Permit,
}

/// The right to keep one more flat file. There are as many as an eighth of the descriptors that the
/// process may have.
struct Permit;

/// Flat files of the process. A forked child inherits them, and the count.
static FLAT_FILES: AtomicUsize = AtomicUsize::new(0);

/// What a mapping shows where it has no private pages: the flat file where that covers the page, else
/// the base of the image.
pub(crate) struct Layout {
    image: Arc<Image>,
    flat: Option<Arc<FlatFile>>,
}

impl Layout {
    /// A new mapping that shows `image`.
    pub(crate) fn map(image: &Arc<Image>) -> io::Result<(Mapping, Self)> {
        let layout = Self::plan(image);
        layout.map_new().or_else(|error| match layout.flat {
            Some(_) => Self { image: Arc::clone(image), flat: None }.map_new(),
            None => Err(error),
        })
    }

    /// Shows `image` at the addresses of `mapping`, whatever they show now. After an error they show
    /// anything.
    pub(crate) fn remap(image: &Arc<Image>, mapping: &mut Mapping) -> io::Result<Self> {
        let mut layout = Self::plan(image);
        let mut result = layout.replace(mapping);
        if result.is_err() && layout.flat.take().is_some() {
            result = layout.replace(mapping);
        }
        result.map_err(error::context("mapping the image at the address of the view", image.pages))?;
        Ok(layout)
    }

    /// The layout of a mapping that shows the base of `image`, which has no captured pages.
    pub(crate) fn of_base(image: Arc<Image>) -> Self {
        debug_assert_eq!(image.captured.len(), 0);
        Self { image, flat: None }
    }

    /// Whether `image` is the same as the image of this layout outside of captured pages, so that only
    /// those have to be looked at.
    pub(crate) fn has_base_of(&self, image: &Image) -> bool {
        self.image.base.same(&image.base) && self.image.pages == image.pages
    }

    /// Whether the mapping shows `page` of `image` where it is not private. Both have the same base.
    pub(crate) fn shows(&self, page: usize, image: &Image) -> bool {
        let shown = match &self.flat {
            Some(flat) if flat.covers.contains(page) => self.image.captured.get(page),
            _ => None,
        };
        shown.map(Arc::as_ptr) == image.captured.get(page).map(Arc::as_ptr)
    }

    /// The pages of `image` that the mapping does not show where it has no private pages.
    pub(crate) fn hidden(&self, image: &Image) -> PageSet {
        let mut candidates = image.captured_pages();
        if let Some(flat) = &self.flat {
            candidates = candidates.union(&flat.covers);
        }
        candidates.iter().filter(|&page| !self.shows(page, image)).collect()
    }

    /// Address ranges with a source of their own.
    pub(crate) fn mappings(&self) -> usize {
        match &self.flat {
            Some(flat) if !flat.is_whole() => 2 * flat.covers.ranges().len() + 1,
            _ => 1,
        }
    }

    fn plan(image: &Arc<Image>) -> Self {
        Self { image: Arc::clone(image), flat: Flat::for_view(image) }
    }

    fn map_new(&self) -> io::Result<(Mapping, Self)> {
        let pages = self.image.pages;
        let mut mapping =
            Mapping::new(pages, self.source()).map_err(error::context("mapping a view", pages))?;
        self.fill(&mut mapping)?;
        Ok((mapping, Self { image: Arc::clone(&self.image), flat: self.flat.clone() }))
    }

    fn replace(&self, mapping: &mut Mapping) -> io::Result<()> {
        // SAFETY: the mapping is borrowed exclusively, and so are its bytes with it.
        unsafe { mapping.replace(self.source()) }?;
        self.fill(mapping)
    }

    /// What is mapped over the whole range first.
    fn source(&self) -> Source<'_> {
        match &self.flat {
            Some(flat) if flat.is_whole() => Source::Private(&flat.file),
            _ => self.image.base.source(),
        }
    }

    /// Brings in the captured pages, over a mapping that shows `self.source()` and has no private pages.
    fn fill(&self, mapping: &mut Mapping) -> io::Result<()> {
        let nothing = PageSet::new();
        let covered = self.flat.as_ref().map_or(&nothing, |flat| &flat.covers);
        if let Some(flat) = &self.flat
            && !flat.is_whole()
        {
            for &run in covered.ranges() {
                // SAFETY: the mapping is borrowed exclusively, and so are its bytes with it.
                unsafe { mapping.replace_part(run, Source::Private(&flat.file)) }?;
            }
        }
        if covered.len() < self.image.captured.len() {
            self.image.captured.for_each(|page, captured| {
                if !covered.contains(page) {
                    // SAFETY: the mapping is borrowed exclusively, and a captured page lives elsewhere.
                    unsafe { mapping.write(page, captured.bytes()) };
                }
            });
        }
        Ok(())
    }
}

impl FlatFile {
    fn is_whole(&self) -> bool {
        self.covers.len() == self.file.pages()
    }

    pub(crate) fn allocated(&self) -> u64 {
        self.file.allocated()
    }

    /// A file with the bytes of `image` in the pages `written`, and zeroes elsewhere.
    fn build(image: &Image, written: &PageSet, covers: PageSet) -> io::Result<Arc<Self>> {
        let permit = Permit::take()?;
        let file = MemoryFile::create(image.pages)?;
        let reader = image.reader()?;
        // Not every base tells its holes, and what is zero takes no memory.
        let written: PageSet = written.iter().filter(|&page| !is_zero(reader.page(page))).collect();
        for range in written.ranges() {
            file.write_pages(range.start, range.iter().map(|page| reader.page(page)))?;
        }
        file.finish();
        Ok(Arc::new(Self { file, covers, _permit: permit }))
    }
}

impl Permit {
    fn take() -> io::Result<Self> {
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

impl Flat {
    pub(crate) fn file(image: &Image) -> Option<Arc<FlatFile>> {
        Self::of(image).file.clone()
    }

    fn of(image: &Image) -> MutexGuard<'_, Self> {
        // Nothing under the lock panics half-way.
        image.flat.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The file that a new view of `image` maps pages from, if any; builds what has become worth it.
    fn for_view(image: &Image) -> Option<Arc<FlatFile>> {
        if image.captured.len() == 0 {
            return None;
        }
        let mut flat = Self::of(image);
        if flat.file.as_ref().is_some_and(|file| file.is_whole()) {
            return flat.file.clone();
        }
        let runs = flat.runs.get_or_insert_with(|| long_runs(image)).clone();
        let copied = image.captured.len() - runs.len();
        let patient = image.pages <= PATIENT_BYTES / page_size();
        flat.copied += if patient { copied.max(image.pages.div_ceil(PATIENCE)) } else { copied };
        if flat.building {
            return flat.file.clone();
        }
        let worth_it = flat.copied >= image.pages.max(PATIENCE);
        if worth_it {
            flat.copied = 0;
        }
        let whole = worth_it && Self::may_be_whole(image);
        if !whole && (flat.file.is_some() || runs.is_empty()) {
            return flat.file.clone();
        }
        // Other views of the image do not wait: they go on with what there is.
        flat.building = true;
        drop(flat);
        let built = if whole {
            FlatFile::build(image, &image.may_hold_data(), PageSet::all(image.pages))
        } else {
            FlatFile::build(image, &runs, runs.clone())
        };
        let mut flat = Self::of(image);
        flat.building = false;
        if let Ok(file) = built {
            flat.file = Some(file);
        }
        flat.file.clone()
    }

    /// Whether a flat file of the whole image is bearable: it takes no more than a quarter of the memory
    /// that is available, also after each of its holes was read, which gives them memory.
    fn may_be_whole(image: &Image) -> bool {
        let bytes = image.pages * page_size();
        let sparse = matches!(image.base, Base::Zero) && image.captured.len() < image.pages / 16;
        (bytes <= SPARSE_BYTES || !sparse)
            && available_memory().is_some_and(|available| bytes <= available / 4)
    }
}

/// The runs of captured pages that are worth a mapping each.
fn long_runs(image: &Image) -> PageSet {
    let captured = image.captured_pages();
    let mut runs: Vec<PageRange> =
        captured.ranges().iter().copied().filter(|run| run.len() >= MIN_RUN).collect();
    if runs.len() > MAX_RUNS {
        runs.sort_unstable_by_key(|run| std::cmp::Reverse(run.len()));
        runs.truncate(MAX_RUNS);
        runs.sort_unstable_by_key(|run| run.start);
    }
    let mut set = PageSet::new();
    runs.into_iter().for_each(|run| set.push_range(run));
    if set.len() < MIN_MAPPED { PageSet::new() } else { set }
}
