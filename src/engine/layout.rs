//! How an image is laid out in the address range of a view.
//!
//! The base is mapped once, over the whole range. Captured pages live elsewhere, so:
//!
//! - long runs of them are written once into a *flat file*, where each page stands at its own offset,
//!   and each view maps them from there; no more than [`MAX_RUNS`], the longest ones;
//! - long runs of zeroes over a file are mapped anonymously, and so is what lies beyond the file's end;
//! - the others are copied into the view, privately;
//! - when the views of one image have together copied as many pages as the image has, or an image of
//!   up to [`MAX_BYTES_BY_VIEWS`] has been viewed [`VIEWS_UNTIL_FLAT`] times, the whole image is written into a flat
//!   file, and a view is one mapping again. Not if that would take more than a share of the memory
//!   available, nor where it would make a sparse image dense ([`Flat::may_write_whole`]).
//!
//! A flat file takes a descriptor, which the program may need for other things. So flat files take no more
//! than a share of them ([`Permit`]), and small gains are not worth one.
//!
//! The flat file of a whole image is also what other processes are given ([`Flat::share`]).
//!
//! Views need nothing of this for correctness: what cannot be mapped or written is copied.
#![allow(unsafe_code)]

use std::io;
use std::sync::Arc;

use crate::error;
use crate::image::flat::{Flat, FlatFile};
use crate::image::{Base, Image, Origin};
use crate::pages::{PageRange, PageSet};
use crate::sys::{Mapping, MemoryFile, Overlay, Placement, Source};

/// Pages from which on a run is mapped: one more mapping costs about as much as copying two pages, and
/// makes every other call on the address space a little slower.
pub(super) const MIN_RUN: usize = 8;

/// Mappings that the runs of one view may take, of the 65,530 that a Linux process has.
pub(super) const MAX_RUNS: usize = 1024;

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
        let is_flat = self.partial_flat().is_some_and(|flat| flat.covers.meets(range));
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
        let flat = self.partial_flat();
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
    fn partial_flat(&self) -> Option<&FlatFile> {
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
        if let Some(flat) = self.partial_flat() {
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
