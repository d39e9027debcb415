//! The image: what a snapshot contains. It says for each page where its bytes are.
//!
//! This file decides how an image is made from another one, and where the bytes of a page are found. `engine/` decides
//! which pages may have changed, and how a view shows an image.
//!
//! An image consists of two parts:
//!
//! - The *base* has the bytes that the first snapshot was made with, or that a view has written in place. It is a file,
//!   or zeroes, which take no memory.
//! - The *page table* has the pages that were captured later. If a page is in the table, the image does not use its
//!   bytes in the base.
//!
//! An image that was made from another one shares its base with it, and all nodes of the page table that did not
//! change.
//!
//! The folders above use an image in these ways:
//!
//! | to | they use |
//! |---|---|
//! | make an image | [`Image::new`], [`Image::over`], [`Image::capture`], [`Image::written`] |
//! | read pages | [`Image::reader`] |
//! | compare images | [`Image::diff`], which reads pages; [`Image::may_differ`] and [`Image::origin`], which do not |
//! | find zeroes | [`Image::is_zero`], [`Image::shows_zeroes`], [`Image::may_hold_data`] |
//! | map pages into a view | [`Base::source`], [`Base::end`], [`Image::captured_pages`], [`Image::flat`] |
#![allow(unsafe_code)]

pub(crate) mod flat;
pub(crate) mod label;
pub(crate) mod store;
mod table;
pub(crate) mod writes;

use std::io;
use std::mem;
use std::ptr::NonNull;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, OnceLock};

use crate::error;
use crate::image::flat::Flat;
use crate::image::label::Label;
use crate::image::store::{Candidate, Freed, Page, Store, Usage};
use crate::image::table::{Lookup, Table};
use crate::image::writes::{Write, Writes};
use crate::pages::{PageRange, PageSet};
use crate::sys::{Mapping, MemoryFile, Source};
use crate::zero::zeroes;

/// What a snapshot contains: for each page, where its bytes are.
///
/// Invariant: the bytes of an image never change. Once an image refers to a file as its base, no code writes to the
/// file. No code writes to a captured page.
///
/// Code outside of this folder only reads the fields. The exception is `flat`, which `engine/flat_files.rs` locks and
/// changes. It has no influence on the bytes of the image.
pub(crate) struct Image {
    /// The length in pages.
    pub(crate) pages: usize,
    /// The length of the content in bytes, which need not be a multiple of the page size.
    pub(crate) content_len: usize,
    /// What the image shows in pages that were not captured.
    pub(crate) base: Base,
    /// The page table. It has no entries at or above `pages`, and the base ends there or before.
    pub(crate) captured: Table<Page>,
    store: Member,
    pub(crate) label: Label,
    /// The flat files of this image, which its views share.
    pub(crate) flat: Mutex<Flat>,
}

/// What an image shows in pages that were not captured.
#[derive(Clone)]
pub(crate) enum Base {
    /// All pages are zero.
    Zero,
    /// The pages below `end` show the file. The other pages are zero.
    ///
    /// `end` is less than the length of the file if this image, or one that it was made from, is shorter than the file.
    /// So bytes behind the end of an image do not come back in a longer image that is made from it.
    File { file: Arc<BaseFile>, end: usize },
}

/// Where an image has the bytes of a page.
///
/// If a page has the same origin in two images with the same base, it has the same bytes in both.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The page is zero. No memory has its bytes.
    Zeroes,
    /// In the file of the base.
    Base,
    /// In the captured page with this [`id`](Page::id).
    Captured(NonNull<()>),
}

impl Image {
    /// Makes an image of `base`, with a new store.
    pub(crate) fn new(base: Base, pages: usize, content_len: usize, label: Label) -> Self {
        let store = Member::of(&Arc::new(Store::new()));
        let captured = Table::new();
        Self { pages, content_len, base: base.below(pages), captured, store, label, flat: Mutex::default() }
    }

    /// Makes an image with the store and the label of this one.
    fn relative(&self, pages: usize, content_len: usize, base: Base, captured: Table<Page>) -> Self {
        Self {
            pages,
            content_len,
            base: base.below(pages),
            captured,
            store: Member::of(&self.store.0),
            label: self.label.clone(),
            flat: Mutex::default(),
        }
    }

    /// Makes an image of `base`, with no captured pages. It has the store and the label of this one.
    pub(crate) fn over(&self, base: Base, pages: usize, content_len: usize) -> Self {
        self.relative(pages, content_len, base, Table::new())
    }

    /// Whether all pages are known to be zero, without reading any.
    pub(crate) fn is_zero(&self) -> bool {
        matches!(self.base, Base::Zero) && self.captured.len() == 0
    }

    /// Makes an image from this one in which the changed pages of `candidates` are captured.
    ///
    /// `now` returns the current bytes of a candidate. If `written` is `false`, they are compared with this image, and
    /// only pages that differ are captured. If it is `true`, all candidates are captured without a comparison.
    ///
    /// The new image has the lengths `pages` and `content_len`. All candidates are below `pages`. It leaves out
    /// captured pages of this image that are not below `pages`.
    ///
    /// Returns the new image, or `None` if it would have the length of this one and no page was captured. Also returns
    /// the number of candidates that were not captured, because they did not differ. After an error, no page is
    /// captured.
    pub(crate) fn capture<'a>(
        &'a self,
        (pages, content_len): (usize, usize),
        candidates: &PageSet,
        written: bool,
        now: impl Fn(usize) -> &'a [u8],
    ) -> io::Result<(Option<Self>, usize)> {
        let reader = self.reader()?;
        let before = |page| if written { None } else { Some(reader.page(page)) };
        let both = |page| Candidate { page, now: now(page), before: before(page) };
        let changes = self
            .store
            .0
            .capture(candidates.iter().map(both))
            .map_err(error::context("allocating memory for the pages of a snapshot", candidates.len()))?;
        let same = candidates.len() - changes.len();
        Ok((self.with((pages, content_len), changes), same))
    }

    /// Makes an image from this one in which the bytes of `writes` are written, in their order.
    ///
    /// The new image has the lengths `pages` and `content_len`, and all writes are within it. It captures the pages
    /// whose bytes become others. It leaves out captured pages of this image that are not below `pages`.
    ///
    /// Returns `None` if the image would have the length and the bytes of this one. After an error, no page is
    /// captured.
    pub(crate) fn written(&self, size: (usize, usize), writes: &[Write<'_>]) -> io::Result<Option<Self>> {
        let before = self.reader()?;
        let mut writes = Writes::new(writes);
        let pages = mem::take(&mut writes.pages);
        let mut capture = self.store.0.start_capture(pages.len());
        for page in pages.iter() {
            let before = before.page(page);
            let now = writes.page(page, before);
            capture.add(Candidate { page, now, before: Some(before) }).map_err(error::context(
                "allocating memory for the changed pages of a snapshot",
                pages.len(),
            ))?;
        }
        Ok(self.with(size, capture.captured()))
    }

    /// Makes an image from this one with the lengths `pages` and `content_len`, in which `changes` are captured.
    ///
    /// Returns `None` if it would be the same image.
    fn with(&self, (pages, content_len): (usize, usize), changes: Vec<(usize, Page)>) -> Option<Self> {
        let captured = if pages < self.pages {
            self.captured.below(pages).with(changes)
        } else if (pages, content_len) != (self.pages, self.content_len) || !changes.is_empty() {
            self.captured.with(changes)
        } else {
            return None;
        };
        Some(self.relative(pages, content_len, self.base.clone(), captured))
    }

    /// Returns a reader for the bytes of all pages.
    ///
    /// The first call for a base maps its file, which can fail. Later calls for images of the same base cannot fail.
    pub(crate) fn reader(&self) -> io::Result<Reader<'_>> {
        let base = match &self.base {
            Base::Zero => None,
            Base::File { file, .. } => Some(file.mapping()?),
        };
        Ok(Reader { image: self, captured: self.captured.lookup(), base })
    }

    /// Returns the pages whose bytes differ, and all pages that only the longer image has.
    pub(crate) fn diff(&self, other: &Self) -> io::Result<PageSet> {
        let common = self.pages.min(other.pages);
        let (left, right) = (self.reader()?, other.reader()?);
        let differ = |page: &usize| *page < common && left.page(*page) != right.page(*page);
        let mut differing: PageSet = self.may_differ(other).iter().filter(differ).collect();
        differing.push_range(PageRange::new(common, self.pages.max(other.pages)));
        Ok(differing)
    }

    /// Returns a set that contains all pages whose bytes differ, without reading any page.
    ///
    /// The set may lack pages that only the longer image has.
    pub(crate) fn may_differ(&self, other: &Self) -> PageSet {
        let mut candidates = PageSet::new();
        if self.base.same(&other.base) {
            self.captured.diff(&other.captured, |page| candidates.push(page));
            let (end, other_end) = (self.base.end(), other.base.end());
            let only_one = PageRange::new(end.min(other_end), end.max(other_end));
            return candidates.union(&only_one.into());
        }
        self.may_hold_data().union(&other.may_hold_data())
    }

    /// Returns a set that contains all pages that are not zero, without reading any page.
    pub(crate) fn may_hold_data(&self) -> PageSet {
        let (mut data, mut zero) = (PageSet::new(), PageSet::new());
        self.captured.for_each(|page, entry| if entry.is_zero() { &mut zero } else { &mut data }.push(page));
        self.base.data().minus(&zero).union(&data)
    }

    /// Returns the pages that have an entry in the page table.
    pub(crate) fn captured_pages(&self) -> PageSet {
        let mut pages = PageSet::new();
        self.captured.for_each(|page, _| pages.push(page));
        pages
    }

    /// Whether `page` is known to be zero, without reading it.
    pub(crate) fn shows_zeroes(&self, page: usize) -> bool {
        self.origin(page) == Origin::Zeroes
    }

    /// Returns where the image has the bytes of `page`.
    pub(crate) fn origin(&self, page: usize) -> Origin {
        match self.captured.get(page) {
            Some(captured) => captured.id().map_or(Origin::Zeroes, Origin::Captured),
            None if page < self.base.end() => Origin::Base,
            None => Origin::Zeroes,
        }
    }

    /// Returns the memory in use by the store of this image.
    pub(crate) fn store_usage(&self) -> Usage {
        self.store.0.usage()
    }

    /// Returns the number of images that share the store, including this one.
    pub(crate) fn family(&self) -> usize {
        self.store.0.images.load(Ordering::Relaxed)
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        // `Freed` locks the store once for many slots. Pages in nodes that another table shares stay in use.
        let mut freed = Freed::new(&self.store.0);
        self.captured.for_each_unshared(|page| freed.add(mem::take(page)));
    }
}

/// A borrowed image whose base is mapped, so that reading a page needs no system call and cannot fail.
pub(crate) struct Reader<'a> {
    image: &'a Image,
    captured: Lookup<'a, Page>,
    base: Option<&'a Mapping>,
}

impl<'a> Reader<'a> {
    /// Returns the bytes of `range` in pieces, each with the number of its first page.
    ///
    /// There is one piece if the image has no captured pages and its base has all of `range`. Otherwise there is a
    /// piece for each page. `range` is within the image.
    pub(crate) fn pieces(&self, range: PageRange) -> impl Iterator<Item = (usize, &'a [u8])> + '_ {
        let whole = match self.base {
            Some(base) if self.image.captured.len() == 0 && range.end <= self.image.base.end() => {
                // SAFETY: as in `page`, for each page of `range`.
                Some(unsafe { base.range(range) })
            }
            _ => None,
        };
        let single = if whole.is_some() { 0..0 } else { range.iter() };
        whole.map(|bytes| (range.start, bytes)).into_iter().chain(single.map(|page| (page, self.page(page))))
    }

    /// Returns the bytes of `page`. Pages behind the end of the image are zero.
    #[inline]
    pub(crate) fn page(&self, page: usize) -> &'a [u8] {
        if let Some(captured) = self.captured.get(page) {
            return captured.bytes();
        }
        match self.base {
            // SAFETY:
            // - `base` maps all pages of the file for reading (`BaseFile::mapping`). `page` is one of them, since a
            //   base does not end behind the end of its file.
            // - The mapping exists as long as the image, which is borrowed for `'a`.
            // - No code writes to these bytes. The mapping is read-only, and the file of a base is not written (see the
            //   invariant of `Image`).
            Some(base) if page < self.image.base.end() => unsafe { base.page(page) },
            _ => zeroes(),
        }
    }
}

impl Base {
    /// A base that shows all of `file`.
    pub(crate) fn new(file: MemoryFile) -> Self {
        let end = file.pages();
        Self::File { file: Arc::new(BaseFile { file, bytes: OnceLock::new() }), end }
    }

    /// Returns this base, with zeroes from page `pages` on.
    fn below(self, pages: usize) -> Self {
        match self {
            Self::Zero => Self::Zero,
            Self::File { file, end } => Self::File { file, end: end.min(pages) },
        }
    }

    /// Whether both bases are zeroes, or both show the same file. Their ends may differ.
    pub(crate) fn same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Zero, Self::Zero) => true,
            (Self::File { file, .. }, Self::File { file: other, .. }) => Arc::ptr_eq(file, other),
            _ => false,
        }
    }

    /// Returns what a view maps to show this base.
    pub(crate) fn source(&self) -> Source<'_> {
        match self {
            Self::Zero => Source::Zero,
            Self::File { file, .. } => Source::Private(&file.file),
        }
    }

    /// Returns the number of pages that the base shows of its file; 0 for zeroes. The pages behind them are zero.
    #[inline]
    pub(crate) fn end(&self) -> usize {
        match self {
            Self::Zero => 0,
            Self::File { end, .. } => *end,
        }
    }

    /// Returns the number of pages of the file, including those that the base does not show.
    pub(crate) fn file_pages(&self) -> usize {
        match self {
            Self::Zero => 0,
            Self::File { file, .. } => file.file.pages(),
        }
    }

    /// Returns the file if it has `pages` pages and the base shows all of them.
    #[allow(dead_code, reason = "not every system has a module in `os`")]
    pub(crate) fn whole_file(&self, pages: usize) -> Option<&MemoryFile> {
        match self {
            Self::File { file, end } if *end == pages && file.file.pages() == pages => Some(&file.file),
            _ => None,
        }
    }

    /// Returns a set that contains all pages that are not zero.
    pub(crate) fn data(&self) -> PageSet {
        match self {
            Self::Zero => PageSet::new(),
            Self::File { file, end } => file.file.data().below(*end),
        }
    }

    /// Asks the system to move the file into huge pages; best effort.
    pub(crate) fn collapse(&self) {
        if let Self::File { file, .. } = self {
            file.file.collapse();
        }
    }

    /// Returns the number of bytes that the file takes up in memory or on disk.
    pub(crate) fn allocated(&self) -> u64 {
        match self {
            Self::Zero => 0,
            Self::File { file, .. } => file.file.allocated(),
        }
    }
}

/// The file of a base.
pub(crate) struct BaseFile {
    pub(crate) file: MemoryFile,
    /// A read-only mapping of the whole file, made when the first page is read.
    bytes: OnceLock<Mapping>,
}

impl BaseFile {
    /// Returns a read-only mapping of the whole file.
    ///
    /// The first call makes the mapping, and all images of this base use it.
    fn mapping(&self) -> io::Result<&Mapping> {
        if let Some(mapping) = self.bytes.get() {
            return Ok(mapping);
        }
        let mapping = Mapping::new(self.file.pages(), Source::ReadOnly(&self.file))
            .map_err(error::context("mapping the base of an image to read it", self.file.pages()))?;
        Ok(self.bytes.get_or_init(|| mapping))
    }
}

/// The reference of one image to its store, which counts these references.
struct Member(Arc<Store>);

impl Member {
    fn of(store: &Arc<Store>) -> Self {
        store.images.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(store))
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.0.images.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
