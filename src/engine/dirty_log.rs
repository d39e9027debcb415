//! The dirty log of a logged view: keeps the pages that the program has reported, and those that are private.
//!
//! `logged_tree.rs` decides what to do with these pages.
//!
//! [`AtomicPageSet`] is a bitmap with summaries. A bit of level 0 stands for a page. A bit of each further level says
//! that a word of the level below is not zero. So the time to find the pages of the set depends on their number, not on
//! the length of the view. The levels are allocated as zeroed memory, and the system provides memory only for the parts
//! that are used.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc_zeroed};
use std::io;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::engine::settings::Checks;
use crate::error;
use crate::image::Image;
use crate::page_size;
use crate::pages::{PageRange, PageSet};

/// The number of bits in a word of a bitmap.
const BITS: usize = usize::BITS as usize;

/// A set of pages that several threads can add to at the same time, without a lock.
pub(crate) struct AtomicPageSet {
    /// The last level has one word.
    levels: Vec<Box<[AtomicUsize]>>,
}

impl AtomicPageSet {
    /// An empty set with room for the pages below `pages`. Fails if there is no memory for it.
    pub(crate) fn new(pages: usize) -> io::Result<Self> {
        let mut levels = Vec::new();
        let mut bits = pages;
        loop {
            let words = bits.div_ceil(BITS).max(1);
            levels.push(zeroes(words)?);
            if words == 1 {
                return Ok(Self { levels });
            }
            bits = words;
        }
    }

    /// Adds the pages of `range`. Returns how many of them were not in the set.
    ///
    /// If another thread calls [`take`](Self::take) at the same time, that call or a later one returns these pages.
    pub(crate) fn insert(&self, range: PageRange) -> usize {
        let mut added = 0;
        for (word, mask) in words(range) {
            // This is a read-modify-write operation even if the bits are set already, because such an operation reads
            // the latest value. So if `take` has just emptied the word, the loads in `summarize` see that it emptied
            // the words above.
            let before = self.levels[0][word].fetch_or(mask, Ordering::AcqRel);
            added += (mask & !before).count_ones() as usize;
            self.summarize(word);
        }
        added
    }

    /// Sets the bits that say that `word` of level 0 is not zero.
    fn summarize(&self, word: usize) {
        let mut index = word;
        for level in &self.levels[1..] {
            let (summary, bit) = (&level[index / BITS], 1 << (index % BITS));
            if summary.load(Ordering::Acquire) & bit == 0 {
                summary.fetch_or(bit, Ordering::AcqRel);
            }
            index /= BITS;
        }
    }

    /// Removes the pages of `range`. Returns how many of them were in the set.
    pub(crate) fn remove(&self, range: PageRange) -> usize {
        let mut removed = 0;
        self.visit(self.levels.len() - 1, 0, range, &mut |word, _| {
            let first = word * BITS;
            let mask = mask(range.start.saturating_sub(first), range.end.min(first + BITS) - first);
            removed += (self.levels[0][word].fetch_and(!mask, Ordering::AcqRel) & mask).count_ones() as usize;
            true
        });
        removed
    }

    /// Whether the set contains `page`.
    pub(crate) fn contains(&self, page: usize) -> bool {
        self.levels[0][page / BITS].load(Ordering::Acquire) & (1 << (page % BITS)) != 0
    }

    /// Removes all pages, and returns them.
    pub(crate) fn take(&self) -> PageSet {
        let mut pages = PageSet::new();
        let top = self.levels.len() - 1;
        if self.levels[top][0].load(Ordering::Acquire) != 0 {
            self.take_level(top, 0, &mut pages);
        }
        pages
    }

    /// Empties a word and all words below it, and adds their pages to `pages`.
    ///
    /// It empties the words from the top down, because `insert` sets bits from the bottom up: first the bit of a page,
    /// then the bits above it.
    ///
    /// It swaps each word even if a plain read would show zero. Such a read could miss a bit that another thread has
    /// just set. That thread could in turn read the bits above as they were before this call cleared them, and not set
    /// them again. Then no later call would find the page.
    fn take_level(&self, level: usize, word: usize, pages: &mut PageSet) {
        let mut bits = self.levels[level][word].swap(0, Ordering::AcqRel);
        while bits != 0 {
            let first = bits.trailing_zeros() as usize;
            let index = word * BITS + first;
            if level > 0 {
                self.take_level(level - 1, index, pages);
                bits &= bits - 1;
            } else {
                let len = (bits >> first).trailing_ones() as usize;
                pages.push_range(PageRange::new(index, index + len));
                bits &= !mask(first, first + len);
            }
        }
    }

    /// Returns the first pages of the set from `start` on: `most` of them, and the rest of the last word.
    ///
    /// Returns fewer if the set has fewer.
    pub(crate) fn some_from(&self, start: usize, most: usize) -> PageSet {
        let mut pages = PageSet::new();
        self.visit(self.levels.len() - 1, 0, PageRange::new(start, usize::MAX), &mut |word, mut bits| {
            let first = word * BITS;
            if first < start {
                bits &= !mask(0, start - first);
            }
            while bits != 0 {
                let page = bits.trailing_zeros() as usize;
                pages.push(first + page);
                bits &= bits - 1;
            }
            pages.len() < most
        });
        pages
    }

    /// Calls `visit` for each nonzero word of level 0 that has pages of `range`, until it returns `false`.
    ///
    /// Visits only the part of the set that `word` of `level` summarizes. Returns `false` if `visit` did.
    fn visit(
        &self,
        level: usize,
        word: usize,
        range: PageRange,
        visit: &mut impl FnMut(usize, usize) -> bool,
    ) -> bool {
        let mut bits = self.levels[level][word].load(Ordering::Acquire);
        if level == 0 {
            return bits == 0 || visit(word, bits);
        }
        // The pages that one bit of this level stands for.
        let span = BITS.pow(u32::try_from(level).unwrap_or(u32::MAX));
        while bits != 0 {
            let index = word * BITS + bits.trailing_zeros() as usize;
            bits &= bits - 1;
            if index * span >= range.end {
                return true;
            }
            if (index + 1) * span > range.start && !self.visit(level - 1, index, range, visit) {
                return false;
            }
        }
        true
    }
}

/// Allocates `words` zeroed words, at least one.
///
/// The system provides their memory when they are first used.
fn zeroes(words: usize) -> io::Result<Box<[AtomicUsize]>> {
    let layout = Layout::array::<AtomicUsize>(words).map_err(|_| io::ErrorKind::OutOfMemory)?;
    // SAFETY: there is at least one word, so the size of the layout is not zero.
    let start = unsafe { alloc_zeroed(layout) }.cast::<AtomicUsize>();
    if start.is_null() {
        return Err(io::ErrorKind::OutOfMemory.into());
    }
    // SAFETY: the memory was allocated with the layout of `words` words, nothing else refers to it, and bytes of zero
    // are valid words.
    Ok(unsafe { Box::from_raw(ptr::slice_from_raw_parts_mut(start, words)) })
}

/// The addresses of the bytes that a restore copied.
///
/// The next restore will likely rewrite the same pages. Looking them up in the page table of the image again can take
/// as long as copying them.
///
/// Invariant: `starts` has an element for each of `pages`, in ascending order: the address of the bytes that `image`
/// holds for that page.
pub(crate) struct Sources {
    image: Arc<Image>,
    pages: PageSet,
    starts: Vec<NonNull<u8>>,
}

impl Sources {
    /// Remembers the addresses `starts`.
    ///
    /// # Safety
    ///
    /// `starts` must have an element for each of `pages`, in ascending order: the address of the bytes that `image`
    /// holds for that page.
    pub(crate) unsafe fn new(image: Arc<Image>, pages: PageSet, starts: Vec<NonNull<u8>>) -> Self {
        Self { image, pages, starts }
    }

    /// Whether these are addresses of bytes of `image`.
    pub(crate) fn are_of(&self, image: &Arc<Image>) -> bool {
        Arc::ptr_eq(&self.image, image)
    }

    /// The pages whose addresses are remembered.
    pub(crate) fn pages(&self) -> &PageSet {
        &self.pages
    }

    /// The pages in ascending order, with their bytes.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (usize, &[u8])> {
        self.pages.iter().zip(&self.starts).map(|(page, start)| {
            // SAFETY: these are the bytes of a page of `image` (the type's invariant). They neither change nor move as
            // long as the image exists, and `self` holds the image.
            (page, unsafe { std::slice::from_raw_parts(start.as_ptr(), page_size()) })
        })
    }
}

/// The reported pages and the private pages of a logged view.
pub(crate) struct DirtyLog {
    /// Pages reported as written since the last snapshot or restore.
    reported: Arc<AtomicPageSet>,
    /// Pages that are private because they were reported or because the view itself wrote them.
    ///
    /// The set may also have pages that are not private.
    private: AtomicPageSet,
    /// The number of pages in `private`.
    private_len: usize,
    /// The page at which the next call of [`some_private`](Self::some_private) starts.
    next_idle: usize,
    /// Whether the reports are checked.
    pub(crate) checks: Checks,
    /// The sources of the last restore, if no snapshot was taken since.
    pub(crate) sources: Option<Sources>,
}

impl DirtyLog {
    /// An empty log for a view of up to `most` pages.
    pub(crate) fn new(most: usize, checks: Checks) -> io::Result<Self> {
        let set =
            || AtomicPageSet::new(most).map_err(error::context("allocating the dirty log of a view", most));
        let (reported, private) = (Arc::new(set()?), set()?);
        Ok(Self { reported, private, private_len: 0, next_idle: 0, checks, sources: None })
    }

    /// The set to which the program's reports are added.
    pub(crate) fn reported(&self) -> &Arc<AtomicPageSet> {
        &self.reported
    }

    /// Removes the reported pages from the log, and returns those of a view of `pages` pages.
    ///
    /// Reports are validated when they are made. This function does not rely on that: it ignores pages behind the end
    /// of the view, since they must be neither read nor discarded.
    pub(crate) fn take(&mut self, pages: usize) -> PageSet {
        let mut reported = self.reported.take();
        if reported.ranges().last().is_some_and(|last| last.end > pages) {
            reported = reported.below(pages);
        }
        self.add_private(&reported);
        reported
    }

    /// Notes that `pages` are private.
    pub(crate) fn add_private(&mut self, pages: &PageSet) {
        for &range in pages.ranges() {
            // Most written pages have been written before, so they are in the set. Reading it takes less time than an
            // atomic write.
            if range.len() > 1 || !self.private.contains(range.start) {
                self.private_len += self.private.insert(range);
            }
        }
    }

    /// Notes that `pages` are not private.
    pub(crate) fn remove_private(&mut self, pages: &PageSet) {
        self.private_len -= pages.ranges().iter().map(|&range| self.private.remove(range)).sum::<usize>();
    }

    /// Whether `page` may be private.
    pub(crate) fn is_private(&self, page: usize) -> bool {
        self.private.contains(page)
    }

    /// The number of private pages.
    pub(crate) fn private_len(&self) -> usize {
        self.private_len
    }

    /// The number of pages that are private, or are reported and not yet taken from the log.
    pub(crate) fn private_or_reported(&self) -> usize {
        let reported = self.reported.some_from(0, usize::MAX);
        self.private_len + reported.iter().filter(|&page| !self.is_private(page)).count()
    }

    /// Returns about `most` private pages.
    ///
    /// Each call starts where the last one ended, so later calls return the other private pages.
    pub(crate) fn some_private(&mut self, most: usize) -> PageSet {
        let pages = self.private.some_from(self.next_idle, most);
        self.next_idle = match pages.ranges().last() {
            Some(last) if pages.len() >= most => last.end,
            _ => 0,
        };
        pages
    }

    /// Empties the log after the view was mapped anew. Only the pages `private` are private then.
    pub(crate) fn reset(&mut self, private: &PageSet) {
        self.reported.take();
        self.sources = None;
        self.private_len = 0;
        self.private.take();
        self.add_private(private);
    }
}

/// A word in which the bits from `start` up to, but not including, `end` are set.
fn mask(start: usize, end: usize) -> usize {
    let below = |bit: usize| if bit >= BITS { usize::MAX } else { (1 << bit) - 1 };
    below(end) & !below(start)
}

/// The words of level 0 that have pages of `range`, with the bits of these pages.
fn words(range: PageRange) -> impl Iterator<Item = (usize, usize)> {
    (range.start / BITS..range.end.div_ceil(BITS)).map(move |word| {
        let first = word * BITS;
        (word, mask(range.start.saturating_sub(first), range.end.min(first + BITS) - first))
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::thread;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Op {
        Insert(usize, usize),
        Remove(usize, usize),
        Some(usize, usize),
        Take,
    }

    fn op() -> impl Strategy<Value = Op> {
        let len = prop_oneof![3 => 1_usize..4, 1 => 1_usize..300];
        prop_oneof![
            4 => (0_usize..9_000, len.clone()).prop_map(|(start, len)| Op::Insert(start, len)),
            2 => (0_usize..9_000, len).prop_map(|(start, len)| Op::Remove(start, len)),
            2 => (0_usize..9_500, 1_usize..200).prop_map(|(start, most)| Op::Some(start, most)),
            1 => Just(Op::Take),
        ]
    }

    proptest! {
        #[test]
        fn an_atomic_set_behaves_like_a_btree_set(ops in prop::collection::vec(op(), 1..if cfg!(miri) { 12 } else { 40 })) {
            let set = AtomicPageSet::new(9_300).unwrap();
            let mut model = BTreeSet::new();
            for op in ops {
                match op {
                    Op::Insert(start, len) => {
                        let before = model.len();
                        model.extend(start..start + len);
                        prop_assert_eq!(set.insert(PageRange::new(start, start + len)), model.len() - before);
                    }
                    Op::Remove(start, len) => {
                        let before = model.len();
                        model.retain(|page| !(start..start + len).contains(page));
                        prop_assert_eq!(set.remove(PageRange::new(start, start + len)), before - model.len());
                    }
                    Op::Some(start, most) => {
                        let some: Vec<_> = set.some_from(start, most).iter().collect();
                        let all: Vec<_> = model.range(start..).copied().collect();
                        prop_assert!(some.len() >= most.min(all.len()) && some.len() < most + BITS);
                        prop_assert_eq!(&some[..], &all[..some.len()]);
                    }
                    Op::Take => {
                        let taken: BTreeSet<_> = set.take().iter().collect();
                        prop_assert_eq!(&taken, &model);
                        model.clear();
                    }
                }
                // Under Miri, more operations and all pages would take minutes.
                let step = if cfg!(miri) { 997 } else { 1 };
                prop_assert!((0..9_300).step_by(step).all(|page| set.contains(page) == model.contains(&page)));
            }
        }
    }

    /// A set for a view of a tebibyte may take memory and time only for the parts that are used.
    #[test]
    fn a_large_set_takes_time_only_for_its_pages() {
        let pages = if cfg!(target_pointer_width = "64") { 1 << 28 } else { 1 << 20 };
        let set = AtomicPageSet::new(pages).unwrap();
        for page in [0, 63, 64, pages / 2, pages - 1] {
            assert_eq!(set.insert(PageRange::new(page, page + 1)), 1);
        }
        assert_eq!(set.take().iter().collect::<Vec<_>>(), [0, 63, 64, pages / 2, pages - 1]);
        assert!(set.take().is_empty());
        let empty = AtomicPageSet::new(0).unwrap();
        assert!(empty.take().is_empty() && empty.some_from(0, 1).is_empty());
    }

    /// `take` once skipped a word that it read as zero.
    ///
    /// On processors that reorder a read with an earlier write, it could miss a page that another thread had just
    /// added, while that thread still read the summary as it was before `take` cleared it. Then no later `take` found
    /// the page. On x86, only Miri shows this.
    #[test]
    fn a_page_that_one_take_misses_is_found_by_the_next() {
        let set = AtomicPageSet::new(64 * 64 * 4).unwrap();
        // A report of no bytes sets the bits above a word that is zero.
        set.insert(PageRange::new(5, 5));
        let mut taken = BTreeSet::new();
        thread::scope(|scope| {
            scope.spawn(|| set.insert(PageRange::new(3, 4)));
            taken.extend(set.take().iter());
        });
        taken.extend(set.take().iter());
        assert!(taken.into_iter().eq([3]));
    }

    /// Opening a view once ended the process if its reserve was so large that there was no memory for its log.
    #[test]
    #[cfg(all(target_pointer_width = "64", not(miri)))] // Miri stops at such a request.
    fn a_set_that_is_too_large_for_memory_is_an_error() {
        for pages in [usize::MAX, usize::MAX / 4] {
            assert_eq!(AtomicPageSet::new(pages).map(drop).unwrap_err().kind(), io::ErrorKind::OutOfMemory);
        }
    }

    /// Other code can still report pages that a view had before it was shortened.
    ///
    /// Pages behind the end once counted as private, so that a restore could discard addresses outside of the view.
    #[test]
    fn pages_behind_the_end_are_neither_reported_nor_private() {
        let mut log = DirtyLog::new(100, Checks::Never).unwrap();
        log.reported().insert(PageRange::new(8, 12));
        assert_eq!(log.take(10).ranges(), [PageRange::new(8, 10)]);
        assert_eq!((log.private_len(), log.some_private(9).len()), (2, 2));
    }

    /// Threads report pages while another thread takes them.
    ///
    /// No reported page may be missing from what is taken.
    #[test]
    fn no_page_is_lost_between_threads() {
        const ROUNDS: usize = if cfg!(miri) { 20 } else { 20_000 };
        const PAGES: usize = 64 * 64 * 4;
        // The pages of both threads are in the same few words.
        let page_of = |writer: usize, round: usize| round * 97 % PAGES / 2 * 2 + writer;
        let set = AtomicPageSet::new(PAGES).unwrap();
        let mut taken = BTreeSet::new();
        thread::scope(|scope| {
            let writers: Vec<_> = (0..2)
                .map(|writer| {
                    let set = &set;
                    scope.spawn(move || {
                        (0..ROUNDS).for_each(|round| {
                            let page = page_of(writer, round);
                            set.insert(PageRange::new(page, page + 1));
                        });
                    })
                })
                .collect();
            while writers.iter().any(|writer| !writer.is_finished()) {
                taken.extend(set.take().iter());
            }
        });
        taken.extend(set.take().iter());
        let reported = (0..2).flat_map(|writer| (0..ROUNDS).map(move |round| page_of(writer, round)));
        assert!(taken.iter().copied().eq(reported.collect::<BTreeSet<_>>()));
    }
}
