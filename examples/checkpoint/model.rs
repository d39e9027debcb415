//! Models of the image, its views and its snapshots: the bytes that they must have, kept without the library.

use std::collections::{BTreeMap, BTreeSet};
use std::iter;
use std::ops::Range;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use memsnap::page_size;
use rand::{Rng, RngExt};
use rand_xoshiro::Xoshiro256PlusPlus;
use xxhash_rust::xxh3::xxh3_64;

/// The image as plain bytes, with the hashes of its pages.
pub(crate) struct Original {
    /// The image, padded with zeroes to whole pages.
    bytes: Vec<u8>,
    /// Length of the image in bytes.
    len: usize,
    /// Hash of each page.
    hashes: Vec<u64>,
}

impl Original {
    /// Makes an image of `len` bytes that repeats `unit`.
    pub(crate) fn repeat(unit: &[u8], len: usize) -> Result<Self> {
        let whole_pages =
            len.checked_next_multiple_of(page_size()).context("longer than the address space")?;
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(whole_pages)?;
        while bytes.len() < len {
            bytes.extend_from_slice(&unit[..unit.len().min(len - bytes.len())]);
        }
        bytes.resize(whole_pages, 0);
        Ok(Self { hashes: page_hashes(&bytes), bytes, len })
    }

    /// Returns the image without the padding of its last page.
    pub(crate) fn content(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    pub(crate) fn pages(&self) -> usize {
        self.hashes.len()
    }

    pub(crate) fn page(&self, page: usize) -> &[u8] {
        &self.bytes[page * page_size()..][..page_size()]
    }
}

fn page_hashes(bytes: &[u8]) -> Vec<u64> {
    bytes.chunks(page_size()).map(xxh3_64).collect()
}

/// The bytes that a view or a snapshot must have: the original image with edited pages. Clones share these pages.
#[derive(Clone)]
pub(crate) struct Model<'a> {
    original: &'a Original,
    edited: BTreeMap<usize, Arc<[u8]>>,
}

impl<'a> Model<'a> {
    pub(crate) fn new(original: &'a Original) -> Self {
        Self { original, edited: BTreeMap::new() }
    }

    pub(crate) fn page(&self, page: usize) -> &[u8] {
        self.edited.get(&page).map_or(self.original.page(page), Arc::as_ref)
    }

    pub(crate) fn write(&mut self, page: usize, offset: usize, bytes: &[u8]) {
        let edited = self.edited.entry(page).or_insert_with(|| self.original.page(page).into());
        Arc::make_mut(edited)[offset..][..bytes.len()].copy_from_slice(bytes);
    }

    pub(crate) fn hashes(&self) -> Vec<u64> {
        let mut hashes = self.original.hashes.clone();
        self.edited.iter().for_each(|(&page, bytes)| hashes[page] = xxh3_64(bytes));
        hashes
    }

    /// Returns the pages in which the two models have different bytes.
    pub(crate) fn differing(&self, other: &Self) -> BTreeSet<usize> {
        let edited = self.edited.keys().chain(other.edited.keys()).copied();
        edited.filter(|&page| self.page(page) != other.page(page)).collect()
    }
}

/// Checks that `found`, all bytes of a view, is equal to `expected`.
pub(crate) fn check_bytes(found: &[u8], expected: &Model) -> Result<()> {
    let (found_hashes, expected_hashes) = (page_hashes(found), expected.hashes());
    if found_hashes == expected_hashes {
        return Ok(());
    }
    let pages = expected_hashes.len();
    ensure!(found_hashes.len() == pages, "{} pages instead of {pages}", found_hashes.len());
    let wrong: Vec<_> = (0..pages).filter(|&page| found_hashes[page] != expected_hashes[page]).collect();
    let start = wrong[0] * page_size();
    let (found, expected) = (&found[start..][..page_size()], expected.page(wrong[0]));
    let offset = iter::zip(found, expected).position(|(found, expected)| found != expected).unwrap_or(0);
    bail!(
        "{} of {pages} pages have wrong bytes; the first is page {}, which has {:#04x} instead of {:#04x} at byte {}",
        wrong.len(),
        wrong[0],
        found[offset],
        expected[offset],
        start + offset,
    );
}

/// Checks that `ranges`, which the call `what` returned, are exactly the pages `expected`.
pub(crate) fn check_pages(what: &str, ranges: &[Range<usize>], expected: &BTreeSet<usize>) -> Result<()> {
    let whole = |range: &Range<usize>| {
        range.start.is_multiple_of(page_size()) && range.end.is_multiple_of(page_size())
    };
    ensure!(ranges.iter().all(whole), "{what}: not all ranges are whole pages");
    ensure!(ranges.is_sorted_by(|a, b| a.end <= b.start), "{what}: the ranges are not in ascending order");
    let found: BTreeSet<_> =
        ranges.iter().flat_map(|range| range.start / page_size()..range.end / page_size()).collect();
    if let Some(page) = found.symmetric_difference(expected).next() {
        let error = if expected.contains(page) { "lacks" } else { "should not name" };
        bail!("{what} names {} pages instead of {}: it {error} page {page}", found.len(), expected.len());
    }
    Ok(())
}

/// Edits random pages in a view and in its model.
pub(crate) fn edit(view: &mut [u8], model: &mut Model, rng: &mut Xoshiro256PlusPlus) {
    let pages = model.original.pages();
    match rng.random_range(0..8) {
        0 => edit_page(view, model, rng.random_range(0..pages), rng),
        1 => {
            let run = pages.min(1000);
            let start = rng.random_range(0..=pages - run);
            (start..start + run).for_each(|page| edit_page(view, model, page, rng));
        }
        _ => {
            let count = pages.div_ceil(16).min(256);
            (0..count).for_each(|_| edit_page(view, model, rng.random_range(0..pages), rng));
        }
    }
}

/// Writes up to 64 bytes anywhere in a page. Most are random. Sometimes they are the bytes that the page already has,
/// so that the page is written but not changed.
fn edit_page(view: &mut [u8], model: &mut Model, page: usize, rng: &mut Xoshiro256PlusPlus) {
    let buffer = &mut [0; 64];
    let bytes = &mut buffer[..rng.random_range(1..=64)];
    let offset = rng.random_range(0..=page_size() - bytes.len());
    if rng.random_ratio(1, 16) {
        bytes.copy_from_slice(&model.page(page)[offset..][..bytes.len()]);
    } else {
        rng.fill_bytes(bytes);
    }
    view[page * page_size() + offset..][..bytes.len()].copy_from_slice(bytes);
    model.write(page, offset, bytes);
}
