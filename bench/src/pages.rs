//! The pages that rounds write, and functions that write and read pages.

use std::fmt;
use std::hint::black_box;
use std::ops::Range;

use rand::seq::SliceRandom;
use rand::{Rng, RngExt, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;

use memsnap::page_size;

/// How the pages of a round are distributed over the region.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Pattern {
    Random,
    Contiguous,
    /// Runs of this many pages, at random places.
    Runs(usize),
}

/// Whether all rounds write the same pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum WorkingSet {
    /// All rounds write the same pages.
    Recurring,
    /// Each round writes other pages than the round before.
    Moving,
}

/// Which pages of a region have a page-table entry before the first round.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Residency {
    /// All pages, because the region was read in full.
    Resident,
    /// No pages, because nothing read the region.
    Sparse,
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Random => f.write_str("random"),
            Self::Contiguous => f.write_str("contiguous"),
            Self::Runs(length) => write!(f, "runs of {length}"),
        }
    }
}

impl fmt::Display for WorkingSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Recurring => "recurring",
            Self::Moving => "moving",
        })
    }
}

impl fmt::Display for Residency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Resident => "resident",
            Self::Sparse => "sparse",
        })
    }
}

/// The write of one word in one page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Change {
    pub(crate) page: usize,
    /// The position of the word in the page, in bytes: a multiple of 8.
    offset: usize,
}

impl Change {
    pub(crate) fn first_word(page: usize) -> Self {
        Self { page, offset: 0 }
    }

    /// Returns the range of bytes of the region that is written.
    pub(crate) fn word(self) -> Range<usize> {
        let start = self.page * page_size() + self.offset;
        start..start + 8
    }

    /// Returns a change of the same word in another page.
    pub(crate) fn on(self, page: usize) -> Self {
        Self { page, ..self }
    }
}

/// A generator of the changes of each round.
pub(crate) struct Changes {
    /// All pages of the region, in the order in which rounds use them.
    order: Vec<usize>,
    next: usize,
    changed: usize,
    working_set: WorkingSet,
    rng: Xoshiro256PlusPlus,
}

impl Changes {
    pub(crate) fn new(pages: usize, changed: usize, pattern: Pattern, working_set: WorkingSet) -> Self {
        let mut rng = rng(changed);
        let order = match pattern {
            Pattern::Random => shuffled_runs(pages, 1, &mut rng),
            Pattern::Runs(length) => shuffled_runs(pages, length, &mut rng),
            Pattern::Contiguous => {
                let mut order: Vec<usize> = (0..pages).collect();
                order.rotate_left(pages / 3);
                order
            }
        };
        Self { order, next: 0, changed: changed.min(pages), working_set, rng }
    }

    /// Returns the changes of the next round, in which no page occurs twice.
    pub(crate) fn next_round(&mut self) -> Vec<Change> {
        if self.next + self.changed > self.order.len() {
            self.next = 0;
        }
        let pages = &self.order[self.next..][..self.changed];
        if self.working_set == WorkingSet::Moving {
            self.next += self.changed;
        }
        pages.iter().map(|&page| Change { page, offset: offset(&mut self.rng) }).collect()
    }
}

pub(crate) fn rng(seed: usize) -> Xoshiro256PlusPlus {
    Xoshiro256PlusPlus::seed_from_u64(seed as u64)
}

/// Returns changes of `count` different random pages, out of `pages` pages.
pub(crate) fn random_changes(pages: usize, count: usize, rng: &mut impl Rng) -> Vec<Change> {
    let chosen = rand::seq::index::sample(rng, pages, count);
    chosen.into_iter().map(|page| Change { page, offset: offset(rng) }).collect()
}

fn offset(rng: &mut impl Rng) -> usize {
    rng.random_range(0..page_size() / 8) * 8
}

fn shuffled_runs(pages: usize, length: usize, rng: &mut impl Rng) -> Vec<usize> {
    let mut starts: Vec<usize> = (0..pages / length).map(|run| run * length).collect();
    starts.shuffle(rng);
    starts.into_iter().flat_map(|start| start..start + length).collect()
}

/// Writes `value` to the word of each change. It must differ from the bytes that it replaces.
pub(crate) fn write(region: &mut [u8], changes: &[Change], value: u64) {
    for change in changes {
        region[change.word()].copy_from_slice(&value.to_le_bytes());
    }
    black_box(region);
}

/// Reads a byte of each page, so that each has a page-table entry.
pub(crate) fn read_all(region: &[u8]) -> u64 {
    black_box(region.iter().step_by(page_size()).map(|&byte| u64::from(byte)).sum())
}

/// Reads a byte of each of these pages.
pub(crate) fn read(region: &[u8], pages: &[Change]) -> u64 {
    black_box(pages.iter().map(|change| u64::from(region[change.page * page_size()])).sum())
}

/// Returns the bytes of one page.
pub(crate) fn page(bytes: &[u8], page: usize) -> &[u8] {
    &bytes[page * page_size()..][..page_size()]
}
