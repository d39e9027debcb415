//! An image: for each page of a snapshot, where its bytes live.
//!
//! The bytes that a snapshot was made with are its base: one file, or no memory at all for zeroes.
//! Pages captured since are entries of the persistent page table, which win over the base. An image
//! shares its base and all but the changed nodes of its table with the image that it was made from.
#![allow(unsafe_code)]

pub(crate) mod flat;
pub(crate) mod label;
pub(crate) mod store;
mod table;

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
use crate::pages::{PageRange, PageSet};
use crate::sys::{Mapping, MemoryFile, Source};
use crate::zero::zeroes;

/// Invariant: the bytes of an image never change. Its base is not written once an image refers to it,
/// and pages of its table are not written at all.
pub(crate) struct Image {
    pub(crate) pages: usize,
    pub(crate) content_len: usize,
    pub(crate) base: Base,
    /// Of pages below `pages` only, as is the base.
    pub(crate) captured: Table<Page>,
    store: Member,
    pub(crate) label: Label,
    /// What the views of this image have in common; see [`crate::engine::layout`].
    pub(crate) flat: Mutex<Flat>,
}

/// What the pages show that were never captured.
#[derive(Clone)]
pub(crate) enum Base {
    Zero,
    /// The pages below `end` show the file, the others zeroes. `end` is less than the file has where an ancestor of the
    /// image was shorter: what lies behind the end of an image is gone, also when a later one is longer again.
    File {
        file: Arc<BaseFile>,
        end: usize,
    },
}

/// Where an image has the bytes of a page. The same origin in two images of one base means the same bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    Zeroes,
    Base,
    /// A captured page, with its [`id`](Page::id).
    Captured(NonNull<()>),
}

/// A store, counting the images that keep their pages in it.
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

pub(crate) struct BaseFile {
    pub(crate) file: MemoryFile,
    bytes: OnceLock<Mapping>,
}

impl Base {
    pub(crate) fn new(file: MemoryFile) -> Self {
        let end = file.pages();
        Self::File { file: Arc::new(BaseFile { file, bytes: OnceLock::new() }), end }
    }

    /// The same, but zeroes from `pages` on.
    fn below(self, pages: usize) -> Self {
        match self {
            Self::Zero => Self::Zero,
            Self::File { file, end } => Self::File { file, end: end.min(pages) },
        }
    }

    pub(crate) fn same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Zero, Self::Zero) => true,
            (Self::File { file, .. }, Self::File { file: other, .. }) => Arc::ptr_eq(file, other),
            _ => false,
        }
    }

    pub(crate) fn source(&self) -> Source<'_> {
        match self {
            Self::Zero => Source::Zero,
            Self::File { file, .. } => Source::Private(&file.file),
        }
    }

    /// The first page that shows zeroes.
    #[inline]
    pub(crate) fn end(&self) -> usize {
        match self {
            Self::Zero => 0,
            Self::File { end, .. } => *end,
        }
    }

    /// The pages that the file has, shown or not.
    pub(crate) fn file_pages(&self) -> usize {
        match self {
            Self::Zero => 0,
            Self::File { file, .. } => file.file.pages(),
        }
    }

    /// The file, if all its pages are shown and there are `pages` of them.
    #[allow(dead_code, reason = "not every system has a module in `os`")]
    pub(crate) fn whole_file(&self, pages: usize) -> Option<&MemoryFile> {
        match self {
            Self::File { file, end } if *end == pages && file.file.pages() == pages => Some(&file.file),
            _ => None,
        }
    }

    /// The pages that may be other than zero.
    pub(crate) fn data(&self) -> PageSet {
        match self {
            Self::Zero => PageSet::new(),
            Self::File { file, end } => file.file.data().below(*end),
        }
    }

    /// Has it in huge pages. A wish.
    pub(crate) fn collapse(&self) {
        if let Self::File { file, .. } = self {
            file.file.collapse();
        }
    }

    /// Memory or disk that the base takes up.
    pub(crate) fn allocated(&self) -> u64 {
        match self {
            Self::Zero => 0,
            Self::File { file, .. } => file.file.allocated(),
        }
    }
}

impl BaseFile {
    /// The file's pages, mapped once for all that compare with them or copy them.
    fn mapping(&self) -> io::Result<&Mapping> {
        if let Some(mapping) = self.bytes.get() {
            return Ok(mapping);
        }
        let mapping = Mapping::new(self.file.pages(), Source::ReadOnly(&self.file))
            .map_err(error::context("mapping the base image to compare with it", self.file.pages()))?;
        Ok(self.bytes.get_or_init(|| mapping))
    }
}

impl Image {
    /// An image of `base`, with a store of its own.
    pub(crate) fn new(base: Base, pages: usize, content_len: usize, label: Label) -> Self {
        let store = Member::of(&Arc::new(Store::new()));
        let captured = Table::new();
        Self { pages, content_len, base: base.below(pages), captured, store, label, flat: Mutex::default() }
    }

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

    /// An image of `base`, whose relative this one is.
    pub(crate) fn over(&self, base: Base, pages: usize, content_len: usize) -> Self {
        self.relative(pages, content_len, base, Table::new())
    }

    /// Whether no page can be other than zero.
    pub(crate) fn is_zero(&self) -> bool {
        matches!(self.base, Base::Zero) && self.captured.len() == 0
    }

    /// A copy of this image, as long as given, in which those of `candidates` that differ from the bytes that
    /// `now` gives of them are captured, if it is another; and how many do not differ. If they are known to have
    /// been `written`, all are captured.
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
            .map_err(error::context("making room for the captured pages", candidates.len()))?;
        let same = candidates.len() - changes.len();
        let captured = if pages < self.pages {
            self.captured.below(pages).with(changes)
        } else if (pages, content_len) != (self.pages, self.content_len) || !changes.is_empty() {
            self.captured.with(changes)
        } else {
            return Ok((None, same));
        };
        Ok((Some(self.relative(pages, content_len, self.base.clone(), captured)), same))
    }

    /// Access to the bytes of all pages.
    pub(crate) fn reader(&self) -> io::Result<Reader<'_>> {
        let base = match &self.base {
            Base::Zero => None,
            Base::File { file, .. } => Some(file.mapping()?),
        };
        Ok(Reader { image: self, captured: self.captured.lookup(), base })
    }

    /// The pages whose bytes differ, among them all that only the longer image has.
    pub(crate) fn diff(&self, other: &Self) -> io::Result<PageSet> {
        let common = self.pages.min(other.pages);
        let (left, right) = (self.reader()?, other.reader()?);
        let differ = |page: &usize| *page < common && left.page(*page) != right.page(*page);
        let mut differing: PageSet = self.may_differ(other).iter().filter(differ).collect();
        differing.push_range(PageRange::new(common, self.pages.max(other.pages)));
        Ok(differing)
    }

    /// Pages outside of which both images hold the same bytes, as far as both go, found without reading any.
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

    /// Pages outside of which the image is zero.
    pub(crate) fn may_hold_data(&self) -> PageSet {
        self.base.data().union(&self.captured_pages())
    }

    pub(crate) fn captured_pages(&self) -> PageSet {
        let mut pages = PageSet::new();
        self.captured.for_each(|page, _| pages.push(page));
        pages
    }

    /// Whether `page` is known to be zero.
    pub(crate) fn shows_zeroes(&self, page: usize) -> bool {
        self.origin(page) == Origin::Zeroes
    }

    pub(crate) fn origin(&self, page: usize) -> Origin {
        match self.captured.get(page) {
            Some(captured) => captured.id().map_or(Origin::Zeroes, Origin::Captured),
            None if page < self.base.end() => Origin::Base,
            None => Origin::Zeroes,
        }
    }

    pub(crate) fn store_usage(&self) -> Usage {
        self.store.0.usage()
    }

    /// The images of the family, this one included.
    pub(crate) fn family(&self) -> usize {
        self.store.0.images.load(Ordering::Relaxed)
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let mut freed = Freed::new(&self.store.0);
        self.captured.for_each_unshared(|page| freed.add(mem::take(page)));
    }
}

/// An image whose pages can be read without a further system call, and so without failure.
pub(crate) struct Reader<'a> {
    image: &'a Image,
    captured: Lookup<'a, Page>,
    base: Option<&'a Mapping>,
}

impl<'a> Reader<'a> {
    /// The bytes of `range`, which is within the image, in pieces that each start at a page: all of it where
    /// the base has it all.
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

    /// The bytes of `page`: zeroes beyond the end of the image.
    #[inline]
    pub(crate) fn page(&self, page: usize) -> &'a [u8] {
        if let Some(captured) = self.captured.get(page) {
            return captured.bytes();
        }
        match self.base {
            // SAFETY: `base` maps all pages of the base's file for reading (`BaseFile::mapping`), of which `page` is one,
            // for the end of a base is at most that of its file. It lives in the image, which is borrowed for `'a`. Nobody
            // writes to these bytes: the mapping is read-only, and the file of a base is not written (the invariant of
            // `Image`).
            Some(base) if page < self.image.base.end() => unsafe { base.page(page) },
            _ => zeroes(),
        }
    }
}

#[cfg(test)]
mod tests;
