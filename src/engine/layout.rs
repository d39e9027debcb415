//! Decides which file and offset each part of a view is mapped from, and maps it.
//!
//! `flat_files.rs` decides which pages are in flat files.
//!
//! The base is mapped once, over the whole range. It does not have the captured pages, which are added as follows:
//!
//! - Long runs of captured pages are written once into a *flat file*, in which each page has the offset that it has in
//!   the image. Each view maps the runs from there. If there are more than [`MAX_RUNS`] runs, only the longest are
//!   written.
//! - Long runs of zeroes over a file are mapped as anonymous memory. So are the pages behind the end of the file.
//! - All other captured pages are copied into the view. They become private pages.
//! - If the views of an image have together copied as many pages as the image has, the whole image is written into a
//!   flat file. The same happens once an image of up to a gibibyte has been viewed 64 times. Each later view is then a
//!   single mapping. This is not done if the file could take more than a quarter of the available memory, or if it
//!   would give memory to the holes of a large sparse image ([`Flat::may_write_whole`]).
//!
//! A flat file takes a descriptor, which the program may need for other things. So flat files may take only an eighth
//! of the descriptors (`image::flat::Permit`), and no flat file is written for a few pages.
//!
//! Other processes receive the flat file of a whole image as well ([`Flat::share`]).
//!
//! Flat files only save time: a view copies the pages that cannot be written into one or mapped.
#![allow(unsafe_code)]

use std::io;
use std::sync::Arc;

use crate::error;
use crate::image::flat::{Flat, FlatFile};
use crate::image::{Base, Image, Origin};
use crate::pages::{PageRange, PageSet};
use crate::sys::{Mapping, MemoryFile, Overlay, Placement, Source};

/// The least number of pages in a run that is mapped.
///
/// One more mapping costs about as much as copying two pages, and slows every later call on the address space a little.
pub(super) const MIN_RUN: usize = 8;

/// The most runs that one view maps. A Linux process can have 65,530 mappings.
pub(super) const MAX_RUNS: usize = 1024;

/// What a mapping shows in pages that are not private.
///
/// A page in `zeroed` shows zeroes. Any other page shows the flat file if that covers the page, and otherwise the base
/// of the image.
pub(crate) struct Layout {
    image: Arc<Image>,
    flat: Option<Arc<FlatFile>>,
    zeroed: PageSet,
}

impl Layout {
    /// Makes a new mapping that shows `image`.
    pub(crate) fn map(image: &Arc<Image>, placement: &Placement) -> io::Result<(Mapping, Self)> {
        let mut layout = Self::plan(image);
        loop {
            match layout.map_new(placement) {
                Err(_) if layout.flat.is_some() => layout = Self::without_flat(image),
                mapping => return Ok((mapping?, layout)),
            }
        }
    }

    /// Makes `mapping`, which must have as many pages as `image`, show that image.
    ///
    /// No reference to bytes of the mapping may exist. After an error, the mapping may show anything.
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

    /// The layout of a mapping that shows the base of `image`.
    ///
    /// The image must have no captured pages. If its base is a file, the image must not be longer than the file.
    pub(crate) fn of_base(image: Arc<Image>) -> Self {
        debug_assert_eq!(image.captured.len(), 0);
        Self { image, flat: None, zeroed: PageSet::new() }
    }

    /// Whether `image` has the same base as the image of this layout.
    ///
    /// If so, the two images can differ only in captured pages and between the ends of their bases.
    pub(crate) fn has_base_of(&self, image: &Image) -> bool {
        self.image.base.same(&image.base)
    }

    /// Whether the mapping shows the bytes that `image` has at `page`, if the page is not private.
    ///
    /// `image` must have the same base as the image of this layout.
    pub(crate) fn shows(&self, page: usize, image: &Image) -> bool {
        self.origin(page) == image.origin(page)
    }

    /// What the mapping shows at `page`, if the page is not private.
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
        let is_flat = self.partial_flat().is_some_and(|flat| flat.covers.meets(range));
        match self.source() {
            Source::Private(file) => {
                let whole = range.end <= file.pages() && !is_flat && !self.zeroed.meets(range);
                whole.then_some(file)
            }
            _ => None,
        }
    }

    /// Whether the mapping shows zeroes at `page`, if the page is not private.
    pub(crate) fn shows_zeroes(&self, page: usize) -> bool {
        let is_flat = || self.flat.as_ref().is_some_and(|flat| flat.covers.contains(page));
        self.zeroed.contains(page) || (matches!(self.image.base, Base::Zero) && !is_flat())
    }

    /// The pages outside of `private` at which the mapping does not show `image`.
    ///
    /// `private` must be the private pages of the mapping. `image` must have the same base as the image of this layout.
    pub(crate) fn hidden(&self, image: &Image, private: &PageSet) -> PageSet {
        // Pages at which zeroes are mapped in place of a file.
        let mut candidates = self.zeroed.below(self.image.base.file_pages());
        // The pages for which the flat file has the bytes of `image`. For the pages `others`, one of the two images has
        // another captured page than the other.
        let mut shown = PageSet::new();
        if let Some(flat) = &self.flat {
            let mut others = PageSet::new();
            self.image.captured.diff(&image.captured, |page| others.push(page));
            candidates = candidates.union(&flat.covers.intersection(&self.zeroed)).union(&others);
            shown = flat.covers.minus(&others);
        }
        // Pages of the base that only one of the two images shows.
        let (end, file_pages) = (self.image.base.end().min(image.base.end()), self.image.base.file_pages());
        candidates = candidates.union(&PageRange::new(end, file_pages).into());
        // Captured pages that are not in the flat file. If `shown` has as many pages as were captured, there are none.
        if shown.len() < image.captured.len() {
            candidates = image.captured_pages().minus(&shown).union(&candidates);
        }
        let candidates = candidates.below(image.pages).minus(private);
        candidates.iter().filter(|&page| !self.shows(page, image)).collect()
    }

    /// An upper bound for the number of captured pages that [`hidden`](Self::hidden) returns for `image`.
    ///
    /// This does not visit each page.
    pub(crate) fn hidden_at_most(&self, image: &Arc<Image>) -> usize {
        let shown = match &self.flat {
            Some(flat) if Arc::ptr_eq(&self.image, image) => flat.covers.len(),
            _ => 0,
        };
        image.captured.len().saturating_sub(shown)
    }

    /// An upper bound for the number of mappings that the system needs for this layout.
    pub(crate) fn mappings(&self) -> usize {
        let runs = match &self.flat {
            Some(flat) if !flat.is_whole() => flat.covers.ranges().len(),
            _ => 0,
        };
        2 * (runs + self.zeroed.ranges().len()) + 1
    }

    /// Notes that the pages `added`, which show zeroes, were added to the end of the mapping.
    pub(crate) fn extended(&mut self, added: PageRange) {
        self.zeroed.push_range(added);
    }

    /// Notes that the pages from `pages` on were removed from the mapping.
    pub(crate) fn truncated(&mut self, pages: usize) {
        self.zeroed = self.zeroed.below(pages);
    }

    /// Makes the mapping show zeroes in `range`, by mapping zeroes and by discarding private pages.
    ///
    /// Returns the pages to which the caller has to write zeroes: those in short runs, and those that cannot be mapped
    /// or discarded. After an error, the range may show anything.
    ///
    /// # Safety
    ///
    /// No reference to bytes of `range` may exist.
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
            // SAFETY: the caller ensures that no reference to these bytes exists.
            match unsafe { mapping.replace_part(run, Source::Zero) } {
                Err(error) if error.kind() == io::ErrorKind::Unsupported => left.push_range(run),
                result => result?,
            }
        }
        self.zeroed = self.zeroed.union(&others.minus(&left));
        // SAFETY: as above.
        if unsafe { mapping.discard(&range.minus(&others)) }.is_err() {
            // Locked memory, for example, cannot be discarded.
            left = range;
        }
        Ok(left)
    }

    /// Whether zeroes are mapped in place of any page that the base or a flat file of the whole image has.
    pub(crate) fn covers_base(&self) -> bool {
        self.zeroed.ranges().first().is_some_and(|run| run.start < self.source_pages())
    }

    /// Maps the base or the flat file again in place of zeroes, outside of `keep`.
    ///
    /// Does so only for long runs of pages that are not known to be zero in `image`. Returns the pages that were
    /// mapped. After an error, the pages of these runs may show anything.
    ///
    /// # Safety
    ///
    /// No reference to bytes of the mapping outside of `keep` may exist.
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
        let flat = self.partial_flat();
        let of_flat = flat.map_or_else(PageSet::new, |flat| runs.intersection(&flat.covers));
        let of_source = runs.minus(&of_flat);
        let of_source = of_source.ranges().iter().map(|&part| (part, self.source()));
        let private = |flat| (of_flat.ranges().iter()).map(move |&part| (part, Source::Private(flat)));
        let mut uncovered = Vec::new();
        for (part, source) in of_source.chain(flat.into_iter().flat_map(|flat| private(&flat.file))) {
            // SAFETY: the caller ensures that no reference to these bytes exists.
            match unsafe { mapping.replace_part(part, source) } {
                Err(error) if error.kind() == io::ErrorKind::Unsupported => {}
                result => result.map(|()| uncovered.push(part))?,
            }
        }
        let uncovered = uncovered.into_iter().collect();
        self.zeroed = self.zeroed.minus(&uncovered);
        Ok(uncovered)
    }

    /// The layout for a new view of `image`. Writes a flat file if one is due.
    fn plan(image: &Arc<Image>) -> Self {
        if image.captured.len() == 0 {
            return Self::without_flat(image);
        }
        let (flat, runs) = Flat::for_view(image);
        Self::of(image, flat, runs.zeroes)
    }

    /// The layout of `image` without a flat file.
    fn without_flat(image: &Arc<Image>) -> Self {
        Self::of(image, None, PageSet::new())
    }

    /// The layout of `image` with the flat file `flat`.
    ///
    /// Zeroes are in the pages `zeroed` and behind the end of the base, except where `flat` covers pages.
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

    /// Makes a new mapping with this layout, and copies the other pages into it.
    fn map_new(&self, placement: &Placement) -> io::Result<Mapping> {
        let pages = self.image.pages;
        let mapping = Mapping::placed(pages, self.whole_source(), &self.overlays(), placement)
            .map_err(error::context("mapping a view", pages))?;
        self.copy_in(&mapping);
        Ok(mapping)
    }

    /// Replaces what `mapping` shows by this layout, and copies the other pages into it.
    fn replace(&self, mapping: &mut Mapping) -> io::Result<()> {
        // SAFETY: the caller of `remap` ensures that no reference to bytes of the mapping exists.
        unsafe { mapping.replace(self.whole_source(), &self.overlays()) }?;
        self.copy_in(mapping);
        Ok(())
    }

    /// The source of the pages that are neither in `zeroed` nor in runs of a flat file.
    fn source(&self) -> Source<'_> {
        match &self.flat {
            Some(flat) if flat.is_whole() => Source::Private(&flat.file),
            _ => self.image.base.source(),
        }
    }

    /// The number of pages that [`source`](Self::source) has. A read behind them would kill the process.
    fn source_pages(&self) -> usize {
        match &self.flat {
            Some(flat) if flat.is_whole() => flat.file.pages(),
            _ => self.image.base.file_pages(),
        }
    }

    /// The source that is mapped over the whole range first.
    ///
    /// This is not a file that is shorter than the image, since a read behind its end would kill the process.
    fn whole_source(&self) -> Source<'_> {
        if self.base_is_short() { Source::Zero } else { self.source() }
    }

    /// Whether the base is mapped and ends before the image does.
    fn base_is_short(&self) -> bool {
        !self.flat.as_ref().is_some_and(|flat| flat.is_whole()) && self.image.base.end() < self.image.pages
    }

    /// The flat file, if it has only runs of the image and not the whole image.
    fn partial_flat(&self) -> Option<&FlatFile> {
        self.flat.as_deref().filter(|flat| !flat.is_whole())
    }

    /// The sources that are mapped over [`whole_source`](Self::whole_source).
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
        if let Some(flat) = self.partial_flat() {
            overlays.extend(flat.covers.ranges().iter().map(|&run| (run, Source::Private(&flat.file))));
        }
        overlays
    }

    /// Copies the pages that the layout does not show into a mapping without private pages.
    ///
    /// No reference to bytes of the mapping may exist.
    fn copy_in(&self, mapping: &Mapping) {
        if self.flat.as_ref().is_none_or(|flat| flat.covers.len() < self.image.captured.len()) {
            self.image.captured.for_each(|page, captured| {
                if !self.shows(page, &self.image) {
                    // SAFETY: the page is in the mapping, which was just mapped, so it can be written. The callers
                    // ensure that no reference to its bytes exists. A captured page is not in the mapping.
                    unsafe { mapping.write(page, captured.bytes()) };
                }
            });
        }
    }
}
