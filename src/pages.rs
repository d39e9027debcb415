//! Page numbers, ranges of pages and sets of ranges.
//!
//! This file decides how bytes are rounded to pages. It never calls the operating system, except for the page size.

use std::io;
use std::ops::Range;

use crate::page_size;

/// A half-open range of page numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct PageRange {
    pub(crate) start: usize,
    pub(crate) end: usize,
}

impl PageRange {
    pub(crate) fn new(start: usize, end: usize) -> Self {
        debug_assert!(start <= end);
        Self { start, end }
    }

    pub(crate) fn len(self) -> usize {
        self.end - self.start
    }

    pub(crate) fn bytes(self) -> Range<usize> {
        self.start * page_size()..self.end * page_size()
    }

    pub(crate) fn iter(self) -> Range<usize> {
        self.start..self.end
    }

    /// Returns the pages that contain any of `bytes`.
    pub(crate) fn around(bytes: &Range<usize>) -> Self {
        let start = bytes.start / page_size();
        Self { start, end: if bytes.is_empty() { start } else { bytes.end.div_ceil(page_size()) } }
    }

    /// Returns the pages that contain only bytes of `bytes`.
    pub(crate) fn within(bytes: &Range<usize>) -> Self {
        let (start, end) = (bytes.start.div_ceil(page_size()), bytes.end / page_size());
        Self { start, end: end.max(start) }
    }
}

/// Returns the number of pages that contain `bytes` bytes, or `None` if no slice can be that long.
pub(crate) fn whole_pages(bytes: usize) -> Option<usize> {
    let pages = bytes.div_ceil(page_size());
    let mapped = pages.checked_mul(page_size())?;
    isize::try_from(mapped).is_ok().then_some(pages)
}

/// Converts a number of bytes to `usize`. Fails if it does not fit.
pub(crate) fn addressable(len: u64) -> io::Result<usize> {
    usize::try_from(len).map_err(|_| too_long(len))
}

/// Returns the error for a source of `len` bytes, which is longer than any slice can be.
pub(crate) fn too_long(len: u64) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidInput,
        format!(
            "{len} bytes are more than a slice can hold ({} bytes)",
            isize::MAX as usize / page_size() * page_size()
        ),
    )
}

/// A set of pages.
///
/// Invariant: the ranges are sorted, disjoint and not adjacent. `pages` is the sum of their lengths.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct PageSet {
    ranges: Vec<PageRange>,
    pages: usize,
}

impl PageSet {
    pub(crate) const fn new() -> Self {
        Self { ranges: Vec::new(), pages: 0 }
    }

    /// Returns an empty set with memory for `ranges` ranges.
    #[allow(dead_code, reason = "not every system names pages")]
    pub(crate) fn with_room(ranges: usize) -> Self {
        Self { ranges: Vec::with_capacity(ranges), pages: 0 }
    }

    /// Returns the set of all pages below `pages`.
    pub(crate) fn all(pages: usize) -> Self {
        let mut set = Self::new();
        set.push_range(PageRange::new(0, pages));
        set
    }

    /// Adds a page. It is faster if the page is not below the end of the set.
    pub(crate) fn push(&mut self, page: usize) {
        self.push_range(PageRange::new(page, page + 1));
    }

    /// Adds a range. It is faster if the range does not start below the end of the set.
    pub(crate) fn push_range(&mut self, range: PageRange) {
        if range.len() == 0 {
            return;
        }
        match self.ranges.last_mut() {
            // A kernel (powerpc64le) has reported pages late or twice.
            Some(last) if last.end > range.start => {
                *self = self.ranges.iter().copied().chain([range]).collect();
                return;
            }
            Some(last) if last.end == range.start => last.end = range.end,
            _ => self.ranges.push(range),
        }
        self.pages += range.len();
    }

    /// Returns the number of pages in the set.
    pub(crate) fn len(&self) -> usize {
        self.pages
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.pages == 0
    }

    pub(crate) fn ranges(&self) -> &[PageRange] {
        &self.ranges
    }

    pub(crate) fn iter(&self) -> Pages<'_> {
        Pages { ranges: self.ranges.iter(), range: 0..0, left: self.pages }
    }

    pub(crate) fn contains(&self, page: usize) -> bool {
        let after = self.ranges.partition_point(|range| range.start <= page);
        after > 0 && page < self.ranges[after - 1].end
    }

    /// Returns whether any page of `range` is in the set.
    pub(crate) fn meets(&self, range: PageRange) -> bool {
        let after = self.ranges.partition_point(|other| other.end <= range.start);
        self.ranges.get(after).is_some_and(|other| other.start < range.end)
    }

    /// Returns whether all pages of `range` are in the set.
    #[allow(dead_code, reason = "not every system names pages")]
    pub(crate) fn covers(&self, range: PageRange) -> bool {
        let after = self.ranges.partition_point(|other| other.start <= range.start);
        after > 0 && range.end <= self.ranges[after - 1].end
    }

    /// Returns a faster way to look up pages in ascending order.
    pub(crate) fn ascending(&self) -> Ascending<'_> {
        Ascending { rest: &self.ranges }
    }

    /// Returns the pages that are in either set.
    pub(crate) fn union(&self, other: &Self) -> Self {
        if other.is_empty() {
            return self.clone();
        }
        let mut union = Self::new();
        let (mut left, mut right) = (self.ranges.as_slice(), other.ranges.as_slice());
        let mut end = 0;
        loop {
            let next = match (left.first(), right.first()) {
                (Some(a), Some(b)) if b.start < a.start => &mut right,
                (Some(_), _) => &mut left,
                (None, Some(_)) => &mut right,
                (None, None) => return union,
            };
            let range = next[0];
            *next = &next[1..];
            if range.end > end {
                union.push_range(PageRange::new(range.start.max(end), range.end));
                end = range.end;
            }
        }
    }

    /// Returns the pages that are not in `other`.
    pub(crate) fn minus(&self, other: &Self) -> Self {
        if other.is_empty() {
            return self.clone();
        }
        let mut left = Self::new();
        let mut others = other.ranges.as_slice();
        for &PageRange { mut start, end } in &self.ranges {
            while let [other, rest @ ..] = others
                && other.start < end
            {
                if start < other.start {
                    left.push_range(PageRange::new(start, other.start));
                }
                start = start.max(other.end);
                if other.end > end {
                    break;
                }
                others = rest;
            }
            if start < end {
                left.push_range(PageRange::new(start, end));
            }
        }
        left
    }

    /// Returns the pages that are in both sets.
    pub(crate) fn intersection(&self, other: &Self) -> Self {
        if other.is_empty() { Self::new() } else { self.minus(&self.minus(other)) }
    }

    /// Returns the pages below `pages`.
    pub(crate) fn below(&self, pages: usize) -> Self {
        if self.ranges.last().is_none_or(|last| last.end <= pages) {
            return self.clone();
        }
        let mut below = Self::new();
        for range in self.ranges.iter().take_while(|range| range.start < pages) {
            below.push_range(PageRange::new(range.start, range.end.min(pages)));
        }
        below
    }
}

impl From<PageRange> for PageSet {
    fn from(range: PageRange) -> Self {
        let mut set = Self::new();
        set.push_range(range);
        set
    }
}

impl FromIterator<PageRange> for PageSet {
    /// Collects ranges in any order. They may overlap.
    fn from_iter<I: IntoIterator<Item = PageRange>>(ranges: I) -> Self {
        let mut ranges: Vec<_> = ranges.into_iter().collect();
        ranges.sort_unstable_by_key(|range| range.start);
        let (mut set, mut end) = (Self::new(), 0);
        for range in ranges {
            if range.end > end {
                set.push_range(PageRange::new(range.start.max(end), range.end));
                end = range.end;
            }
        }
        set
    }
}

/// An iterator over the pages of a set, in ascending order.
pub(crate) struct Pages<'a> {
    ranges: std::slice::Iter<'a, PageRange>,
    range: Range<usize>,
    left: usize,
}

impl Iterator for Pages<'_> {
    type Item = usize;

    #[inline]
    fn next(&mut self) -> Option<usize> {
        while self.range.is_empty() {
            self.range = self.ranges.next()?.iter();
        }
        self.left -= 1;
        self.range.next()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Pages<'_> {}

/// The part of a set that is at or above the last page that was looked up.
pub(crate) struct Ascending<'a> {
    rest: &'a [PageRange],
}

impl Ascending<'_> {
    /// Returns whether the set has `page`, which must not be below any page that was looked up before.
    pub(crate) fn contains(&mut self, page: usize) -> bool {
        while let [first, rest @ ..] = self.rest {
            if page < first.end {
                return page >= first.start;
            }
            self.rest = rest;
        }
        false
    }
}

impl FromIterator<usize> for PageSet {
    /// Collects pages in any order. Ascending order is faster.
    fn from_iter<I: IntoIterator<Item = usize>>(pages: I) -> Self {
        let mut set = Self::new();
        pages.into_iter().for_each(|page| set.push(page));
        set
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn whole_pages_rounds_up_and_refuses_what_no_slice_can_be() {
        assert_eq!(whole_pages(0), Some(0));
        assert_eq!(whole_pages(1), Some(1));
        assert_eq!(whole_pages(page_size()), Some(1));
        assert_eq!(whole_pages(page_size() + 1), Some(2));
        assert_eq!(whole_pages(isize::MAX as usize), None);
        assert_eq!(whole_pages(usize::MAX), None);
    }

    /// All lookups rely on the order of the ranges, so a range that comes late must not break it.
    #[test]
    fn a_range_that_comes_late_or_twice_is_taken() {
        let mut set = PageSet::new();
        for (start, end) in [(5, 8), (12, 14), (1, 3), (6, 13), (6, 13)] {
            set.push_range(PageRange::new(start, end));
        }
        assert_eq!(set.ranges(), [PageRange::new(1, 3), PageRange::new(5, 14)]);
        assert_eq!(set.len(), 11);
    }

    proptest! {
        #[test]
        fn sets_behave_like_sets(
            a in prop::collection::btree_set(0_usize..64, 0..40),
            b in prop::collection::btree_set(0_usize..64, 0..40),
        ) {
            let (left, right): (PageSet, PageSet) = (a.iter().copied().collect(), b.iter().copied().collect());
            prop_assert_eq!(left.len(), a.len());
            prop_assert_eq!(left.iter().collect::<BTreeSet<_>>(), a.clone());
            let mut ascending = left.ascending();
            for page in 0..64 {
                prop_assert_eq!(left.contains(page), a.contains(&page));
                prop_assert_eq!(ascending.contains(page), a.contains(&page));
                for end in page + 1..65 {
                    let covers = (page..end).all(|page| a.contains(&page));
                    prop_assert_eq!(left.covers(PageRange::new(page, end)), covers);
                }
            }
            let union: BTreeSet<_> = a.union(&b).copied().collect();
            prop_assert_eq!(left.union(&right), union.into_iter().collect::<PageSet>());
            let minus: PageSet = a.difference(&b).copied().collect();
            prop_assert_eq!(left.minus(&right), minus);
            let intersection: PageSet = a.intersection(&b).copied().collect();
            prop_assert_eq!(left.intersection(&right), intersection);
            let below: PageSet = a.iter().copied().filter(|&page| page < 33).collect();
            prop_assert_eq!(left.below(33), below);
            let (mut ranges, mut wider) = (Vec::new(), a.clone());
            for &page in a.iter().rev() {
                ranges.push(PageRange::new(page, page + 3));
                wider.extend([page + 1, page + 2]);
            }
            prop_assert_eq!(ranges.into_iter().collect::<PageSet>(), wider.into_iter().collect::<PageSet>());
        }
    }
}
