//! How an image is laid out in the address range of a view.
//!
//! The base is mapped once, over the whole range. Captured pages live elsewhere, so:
//!
//! - long runs of them are written once into a *flat file*, where each page stands at its own offset,
//!   and each view maps them from there; no more than [`MAX_RUNS`], the longest ones;
//! - long runs of zeroes over a file are mapped anonymously, and so is what lies beyond the file's end;
//! - the others are copied into the view, privately;
//! - when the views of one image have together copied as many pages as the image has, or an image of
//!   up to [`PATIENT_BYTES`] has been viewed [`PATIENCE`] times, the whole image is written into a flat
//!   file, and a view is one mapping again. Not if that would take more than a share of the memory
//!   available, nor where it would make a sparse image dense ([`Flat::may_be_whole`]).
//!
//! A flat file takes a descriptor, which the program may need for other things. So flat files take no more
//! than a share of them ([`Permit`]), and small gains are not worth one.
//!
//! The flat file of a whole image is also what other processes are given ([`Flat::share`]).
//!
//! Views need nothing of this for correctness: what cannot be mapped or written is copied.
#![allow(unsafe_code)]

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::image::{Base, Image, Origin};
use crate::options::HugePages;
use crate::pages::{PageRange, PageSet};
use crate::store::is_zero;
use crate::sys::{Handle, Mapping, MemoryFile, Overlay, Placement, Source, available_memory, file_limit};
use crate::{error, page_size, trace};

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
    /// Of the whole image, for other processes. The same as `file` where views do well with it.
    shared: Option<Arc<FlatFile>>,
    /// Held while `shared` is being made.
    sharing: Option<Arc<Mutex<()>>>,
    runs: Option<Runs>,
    /// Pages copied by views so far.
    copied: usize,
    building: bool,
}

/// How the captured pages of an image are brought into a view.
#[derive(Clone, Default)]
struct Runs {
    /// Mapped from a flat file.
    flat: PageSet,
    /// Mapped anonymously.
    zeroes: PageSet,
    /// The number of the others.
    copied: usize,
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

/// What a mapping shows where it has no private pages: zeroes in `zeroed`; else the flat file where that covers the
/// page; else the base of the image.
pub(crate) struct Layout {
    image: Arc<Image>,
    flat: Option<Arc<FlatFile>>,
    zeroed: PageSet,
}

impl Layout {
    /// A new mapping that shows `image`.
    pub(crate) fn map(image: &Arc<Image>, placement: &Placement) -> io::Result<(Mapping, Self)> {
        let mut layout = Self::plan(image);
        loop {
            match layout.map_new(placement) {
                Err(_) if layout.flat.is_some() => layout = Self::without_flat(image),
                mapping => return Ok((mapping?, layout)),
            }
        }
    }

    /// Shows `image` at the addresses of `mapping`, which are as many, whatever they show now. After an error they
    /// show anything.
    pub(crate) fn remap(image: &Arc<Image>, mapping: &mut Mapping) -> io::Result<Self> {
        let mut layout = Self::plan(image);
        let mut result = layout.replace(mapping);
        if result.is_err() && layout.flat.is_some() {
            layout = Self::without_flat(image);
            result = layout.replace(mapping);
        }
        result.map_err(error::context("mapping the image at the address of the view", image.pages))?;
        Ok(layout)
    }

    /// The layout of a mapping that shows the base of `image`, which has no captured pages and no end beyond it.
    pub(crate) fn of_base(image: Arc<Image>) -> Self {
        debug_assert_eq!(image.captured.len(), 0);
        Self { image, flat: None, zeroed: PageSet::new() }
    }

    /// Whether `image` is the same as the image of this layout outside of captured pages, so that only
    /// those have to be looked at.
    pub(crate) fn has_base_of(&self, image: &Image) -> bool {
        self.image.base.same(&image.base)
    }

    /// Whether the mapping shows `page` of `image` where it is not private. Both have the same base.
    pub(crate) fn shows(&self, page: usize, image: &Image) -> bool {
        self.origin(page) == image.origin(page)
    }

    /// What the mapping shows at `page` where it is not private.
    fn origin(&self, page: usize) -> Origin {
        match (&self.flat, &self.image.base) {
            _ if self.zeroed.contains(page) => Origin::Zeroes,
            (Some(flat), _) if flat.covers.contains(page) => self.image.origin(page),
            (_, Base::Zero) => Origin::Zeroes,
            (_, Base::File { .. }) => Origin::Base,
        }
    }

    /// The file that the mapping shows in all of `range`, except in private pages.
    ///
    /// `None` unless it is a single file whose bytes do not change.
    pub(crate) fn file_of(&self, range: PageRange) -> Option<&MemoryFile> {
        let is_flat = self.runs_of_flat().is_some_and(|flat| flat.covers.meets(range));
        match self.source() {
            Source::Private(file) => {
                let whole = range.end <= file.pages() && !is_flat && !self.zeroed.meets(range);
                whole.then_some(file)
            }
            _ => None,
        }
    }

    /// Whether the mapping shows zeroes at `page` where it is not private.
    pub(crate) fn shows_zeroes(&self, page: usize) -> bool {
        let is_flat = || self.flat.as_ref().is_some_and(|flat| flat.covers.contains(page));
        self.zeroed.contains(page) || (matches!(self.image.base, Base::Zero) && !is_flat())
    }

    /// The pages of `image` that the mapping does not show, where the pages `private` are private and no others.
    pub(crate) fn hidden(&self, image: &Image, private: &PageSet) -> PageSet {
        // Where zeroes are mapped in place of a file.
        let mut candidates = self.zeroed.below(self.image.base.file_pages());
        // In the flat file: pages that are captured in another way than in the image it was made for.
        let mut shown = PageSet::new();
        if let Some(flat) = &self.flat {
            let mut others = PageSet::new();
            self.image.captured.diff(&image.captured, |page| others.push(page));
            candidates = candidates.union(&flat.covers.intersection(&self.zeroed)).union(&others);
            shown = flat.covers.minus(&others);
        }
        // What only one of them shows of the base.
        let (end, file_pages) = (self.image.base.end().min(image.base.end()), self.image.base.file_pages());
        candidates = candidates.union(&PageRange::new(end, file_pages).into());
        // Elsewhere: captured pages. There are none if all of them are in the flat file.
        if shown.len() < image.captured.len() {
            candidates = image.captured_pages().minus(&shown).union(&candidates);
        }
        let candidates = candidates.below(image.pages).minus(private);
        candidates.iter().filter(|&page| !self.shows(page, image)).collect()
    }

    /// The most of them that were captured, without looking at each.
    pub(crate) fn hidden_at_most(&self, image: &Arc<Image>) -> usize {
        let shown = match &self.flat {
            Some(flat) if Arc::ptr_eq(&self.image, image) => flat.covers.len(),
            _ => 0,
        };
        image.captured.len().saturating_sub(shown)
    }

    /// Address ranges with a source of their own.
    pub(crate) fn mappings(&self) -> usize {
        let runs = match &self.flat {
            Some(flat) if !flat.is_whole() => flat.covers.ranges().len(),
            _ => 0,
        };
        2 * (runs + self.zeroed.ranges().len()) + 1
    }

    /// After `added`, the last pages of the mapping, were added to it, showing zeroes.
    pub(crate) fn extended(&mut self, added: PageRange) {
        self.zeroed.push_range(added);
    }

    /// After the pages from `pages` on were taken from the mapping.
    pub(crate) fn truncated(&mut self, pages: usize) {
        self.zeroed = self.zeroed.below(pages);
    }

    /// Has the mapping show zeroes in `range`, where nothing is private any more, as far as that is worth it. Returns
    /// the pages for which it is not. After an error the range shows anything.
    ///
    /// # Safety
    ///
    /// Nobody holds a reference to bytes of `range`.
    pub(crate) unsafe fn show_zeroes(
        &mut self,
        mapping: &mut Mapping,
        range: PageRange,
    ) -> io::Result<PageSet> {
        let range = PageSet::from(range);
        let others = match (&self.image.base, &self.flat) {
            (Base::Zero, None) => PageSet::new(),
            (Base::Zero, Some(flat)) => range.intersection(&flat.covers).minus(&self.zeroed),
            (Base::File { .. }, _) => range.minus(&self.zeroed),
        };
        let mut left = PageSet::new();
        let room = MAX_RUNS.saturating_sub(self.zeroed.ranges().len());
        for (i, &run) in others.ranges().iter().enumerate() {
            if run.len() < MIN_RUN || i >= room {
                left.push_range(run);
                continue;
            }
            // SAFETY: the caller's promise.
            match unsafe { mapping.replace_part(run, Source::Zero) } {
                Err(error) if error.kind() == io::ErrorKind::Unsupported => left.push_range(run),
                result => result?,
            }
        }
        self.zeroed = self.zeroed.union(&others.minus(&left));
        // SAFETY: as above.
        if unsafe { mapping.discard(&range.minus(&others)) }.is_err() {
            // Locked memory, for one, cannot be discarded.
            left = range;
        }
        Ok(left)
    }

    /// Whether there are zeroes over what the base has.
    pub(crate) fn covers_base(&self) -> bool {
        self.zeroed.ranges().first().is_some_and(|run| run.start < self.source_pages())
    }

    /// Maps what is under zeroes again, outside of `keep`, where `image` shows something else in long runs. Returns
    /// these. After an error they show anything.
    ///
    /// # Safety
    ///
    /// Nobody holds a reference to bytes of the mapping outside of `keep`.
    pub(crate) unsafe fn uncover(
        &mut self,
        mapping: &mut Mapping,
        image: &Image,
        keep: &PageSet,
    ) -> io::Result<PageSet> {
        let zeroed = self.zeroed.below(image.base.end().min(self.source_pages())).minus(keep);
        let others: PageSet = zeroed.iter().filter(|&page| !image.shows_zeroes(page)).collect();
        let runs = others.ranges().iter().filter(|run| run.len() >= MIN_RUN).take(MAX_RUNS);
        let runs: PageSet = runs.copied().collect();
        let flat = self.runs_of_flat();
        let of_flat = flat.map_or_else(PageSet::new, |flat| runs.intersection(&flat.covers));
        let of_source = runs.minus(&of_flat);
        let of_source = of_source.ranges().iter().map(|&part| (part, self.source()));
        let private = |flat| (of_flat.ranges().iter()).map(move |&part| (part, Source::Private(flat)));
        let mut uncovered = Vec::new();
        for (part, source) in of_source.chain(flat.into_iter().flat_map(|flat| private(&flat.file))) {
            // SAFETY: the caller's promise.
            match unsafe { mapping.replace_part(part, source) } {
                Err(error) if error.kind() == io::ErrorKind::Unsupported => {}
                result => result.map(|()| uncovered.push(part))?,
            }
        }
        let uncovered = uncovered.into_iter().collect();
        self.zeroed = self.zeroed.minus(&uncovered);
        Ok(uncovered)
    }

    fn plan(image: &Arc<Image>) -> Self {
        if image.captured.len() == 0 {
            return Self::without_flat(image);
        }
        let (flat, runs) = Flat::for_view(image);
        Self::of(image, flat, runs.zeroes)
    }

    fn without_flat(image: &Arc<Image>) -> Self {
        Self::of(image, None, PageSet::new())
    }

    fn of(image: &Arc<Image>, flat: Option<Arc<FlatFile>>, mut zeroed: PageSet) -> Self {
        if let Base::File { .. } = image.base
            && image.base.end() < image.pages
        {
            let beyond = PageRange::new(image.base.end(), image.pages);
            zeroed = zeroed.union(&beyond.into());
        }
        if let Some(flat) = &flat {
            zeroed = zeroed.minus(&flat.covers);
        }
        Self { image: Arc::clone(image), flat, zeroed }
    }

    fn map_new(&self, placement: &Placement) -> io::Result<Mapping> {
        let pages = self.image.pages;
        let mapping = Mapping::placed(pages, self.whole_source(), &self.overlays(), placement)
            .map_err(error::context("mapping a view", pages))?;
        self.copy_in(&mapping);
        Ok(mapping)
    }

    fn replace(&self, mapping: &mut Mapping) -> io::Result<()> {
        // SAFETY: the mapping is borrowed exclusively, and so are its bytes with it.
        unsafe { mapping.replace(self.whole_source(), &self.overlays()) }?;
        self.copy_in(mapping);
        Ok(())
    }

    /// What is shown where there are neither zeroes nor runs of a flat file.
    fn source(&self) -> Source<'_> {
        match &self.flat {
            Some(flat) if flat.is_whole() => Source::Private(&flat.file),
            _ => self.image.base.source(),
        }
    }

    /// The pages that this has. To read behind them kills the process.
    fn source_pages(&self) -> usize {
        match &self.flat {
            Some(flat) if flat.is_whole() => flat.file.pages(),
            _ => self.image.base.file_pages(),
        }
    }

    /// What is mapped over the whole range first. Not a file that ends earlier: to read there kills the process.
    fn whole_source(&self) -> Source<'_> {
        if self.base_is_short() { Source::Zero } else { self.source() }
    }

    fn base_is_short(&self) -> bool {
        !self.flat.as_ref().is_some_and(|flat| flat.is_whole()) && self.image.base.end() < self.image.pages
    }

    /// The flat file of which runs are mapped, if there is one.
    fn runs_of_flat(&self) -> Option<&FlatFile> {
        self.flat.as_deref().filter(|flat| !flat.is_whole())
    }

    /// What is mapped over that.
    fn overlays(&self) -> Vec<Overlay<'_>> {
        let mut overlays = Vec::new();
        if self.flat.is_none() && self.zeroed.is_empty() {
            return overlays;
        }
        let end = self.image.base.end();
        if self.base_is_short() && end > 0 {
            overlays.push((PageRange::new(0, end), self.source()));
        }
        let zeroed = self.zeroed.ranges().iter().take_while(|run| run.start < end);
        overlays.extend(zeroed.map(|run| (PageRange::new(run.start, run.end.min(end)), Source::Zero)));
        if let Some(flat) = self.runs_of_flat() {
            overlays.extend(flat.covers.ranges().iter().map(|&run| (run, Source::Private(&flat.file))));
        }
        overlays
    }

    /// Copies what is not mapped into a mapping without private pages, of which nobody knows yet.
    fn copy_in(&self, mapping: &Mapping) {
        if self.flat.as_ref().is_none_or(|flat| flat.covers.len() < self.image.captured.len()) {
            self.image.captured.for_each(|page, captured| {
                if !self.shows(page, &self.image) {
                    // SAFETY: the mapping's bytes are nobody's yet, and a captured page lives elsewhere.
                    unsafe { mapping.write(page, captured.bytes()) };
                }
            });
        }
    }
}

impl FlatFile {
    fn is_whole(&self) -> bool {
        self.covers.len() == self.file.pages()
    }

    fn build(image: &Image, written: &PageSet, covers: PageSet) -> io::Result<Arc<Self>> {
        let permit = Permit::take()?;
        Ok(Arc::new(Self { file: Self::write(image, written)?, covers, _permit: permit }))
    }

    /// A file with the bytes of `image` in the pages `written`, and zeroes elsewhere.
    fn write(image: &Image, written: &PageSet) -> io::Result<MemoryFile> {
        let file = MemoryFile::create(image.pages, image.pages, image.label.name.as_deref())?;
        let reader = image.reader()?;
        // Not every base tells its holes, and what is zero takes no memory.
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
    /// Memory of the image's flat files.
    pub(crate) fn allocated(image: &Image) -> u64 {
        let flat = Self::of(image);
        let other =
            |shared: &&Arc<FlatFile>| flat.file.as_ref().is_none_or(|file| !Arc::ptr_eq(file, shared));
        let files = flat.file.iter().chain(flat.shared.as_ref().filter(other));
        files.map(|flat| flat.file.allocated()).sum()
    }

    /// A handle for other processes on a file of all of `image` that nobody can write to: one that there is, else
    /// one that is written now, and kept if there is a [`Permit`].
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
        // Views of the image neither wait nor write another.
        Self::of(image).building = true;
        let written = FlatFile::write(image, &image.may_hold_data());
        Self::of(image).building = false;
        let file = written?;
        let handle = file.share()?.ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::ResourceBusy,
                "the kernel did not seal the file, since something else is using pages of it; try again",
            )
        })?;
        if let Ok(permit) = permit {
            let file = Arc::new(FlatFile { file, covers: PageSet::all(image.pages), _permit: permit });
            let for_views = Self::may_be_whole(image);
            let mut flat = Self::of(image);
            if for_views {
                flat.file = Some(Arc::clone(&file));
            }
            flat.shared = Some(file);
        }
        Ok(handle)
    }

    fn of(image: &Image) -> MutexGuard<'_, Self> {
        // Nothing under the lock panics half-way.
        image.flat.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The file that a new view of `image` maps pages from, if any, and how its captured pages are brought in;
    /// builds what has become worth it.
    fn for_view(image: &Image) -> (Option<Arc<FlatFile>>, Runs) {
        let mut flat = Self::of(image);
        if flat.file.as_ref().is_some_and(|file| file.is_whole()) {
            return (flat.file.clone(), Runs::default());
        }
        let runs = flat.runs.get_or_insert_with(|| Runs::of(image)).clone();
        let patient = image.pages <= PATIENT_BYTES / page_size();
        flat.copied += if patient { runs.copied.max(image.pages.div_ceil(PATIENCE)) } else { runs.copied };
        if flat.building {
            return (flat.file.clone(), runs);
        }
        let worth_it = flat.copied >= image.pages.max(PATIENCE);
        if worth_it {
            flat.copied = 0;
        }
        let whole = worth_it && Self::may_be_whole(image);
        if !whole && (flat.file.is_some() || runs.flat.is_empty()) {
            return (flat.file.clone(), runs);
        }
        // Other views of the image do not wait: they go on with what there is.
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

    /// Whether a flat file of the whole image is bearable: it takes no more than a quarter of the memory
    /// that is available, also after each of its holes was read, which gives them memory.
    fn may_be_whole(image: &Image) -> bool {
        let bytes = image.pages * page_size();
        let sparse = matches!(image.base, Base::Zero) && image.captured.len() < image.pages / 16;
        (bytes <= SPARSE_BYTES || !sparse)
            && available_memory().is_some_and(|available| bytes <= available / 4)
    }
}

impl Runs {
    /// The runs of captured pages that are worth a mapping each.
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

/// Those of the runs of `pages` that are long, and no more than may be mapped.
fn long_runs(pages: &PageSet) -> PageSet {
    let mut runs: Vec<PageRange> =
        pages.ranges().iter().copied().filter(|run| run.len() >= MIN_RUN).collect();
    if runs.len() > MAX_RUNS {
        runs.sort_unstable_by_key(|run| std::cmp::Reverse(run.len()));
        runs.truncate(MAX_RUNS);
    }
    runs.into_iter().collect()
}
