//! A ledger that can be checked: a seed and the number of steps so far determine each of its bytes.

use std::iter;

use anyhow::{Context, Result, bail, ensure};
use rand::{Rng, RngExt, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;

/// The length of a page of the ledger in bytes, whatever the page size of the machine.
pub(crate) const PAGE: usize = 4096;
/// The number of pages that a step updates. A page may be updated several times.
pub(crate) const UPDATES: usize = 256;

const RECORD: usize = 64;
const MAGIC: u64 = u64::from_le_bytes(*b"ledger01");
/// The words in the memos of records.
const WORDS: [&[u8; 8]; 16] = [
    b"payment ",
    b"salary  ",
    b"deposit ",
    b"refund  ",
    b"interest",
    b"to acct ",
    b"from the",
    b"account ",
    b"of 2024 ",
    b"of 2025 ",
    b"monthly ",
    b"yearly  ",
    b"by card ",
    b"in cash ",
    b"approved",
    b"pending ",
];

/// The contents of a ledger. The first page has the number of steps. Each other page has 64 records.
#[derive(Clone, Copy)]
pub(crate) struct Ledger {
    seed: u64,
    pages: usize,
}

impl Ledger {
    /// Returns the contents of a ledger of `bytes` bytes. Fails if these are less than two pages.
    pub(crate) fn new(seed: u64, bytes: usize) -> Result<Self> {
        let pages = bytes / PAGE;
        ensure!(pages >= 2, "a ledger of {bytes} bytes is too small: it needs at least {} bytes", 2 * PAGE);
        Ok(Self { seed, pages })
    }

    /// Returns the length of the ledger in bytes.
    pub(crate) fn len(self) -> usize {
        self.pages * PAGE
    }

    /// Writes the ledger as it is before the first step.
    pub(crate) fn create(self, bytes: &mut [u8]) {
        self.write_step(bytes, 0);
        for (number, page) in bytes.chunks_exact_mut(PAGE).enumerate().skip(1) {
            self.write_page(page, number, 0);
        }
    }

    /// Makes one step: updates some pages and the number of steps.
    pub(crate) fn advance(self, bytes: &mut [u8]) -> Result<()> {
        let step = self.step(bytes)? + 1;
        for number in self.updates(step) {
            self.write_page(&mut bytes[number * PAGE..][..PAGE], number, step);
        }
        self.write_step(bytes, step);
        Ok(())
    }

    /// Returns the number of steps so far, from the first page.
    pub(crate) fn step(self, bytes: &[u8]) -> Result<u64> {
        let fields = self.content(bytes)?.chunks_exact(8).take(3).map(number).collect::<Option<Vec<u64>>>();
        match fields.as_deref() {
            Some(&[MAGIC, seed, step]) if seed == self.seed => Ok(step),
            _ => bail!("the first page is not that of a ledger with the seed {}", self.seed),
        }
    }

    /// Compares every byte with its expected value. Returns the number of steps.
    pub(crate) fn check(self, bytes: &[u8]) -> Result<u64> {
        let (step, bytes) = (self.step(bytes)?, self.content(bytes)?);
        let mut expected = vec![0; PAGE];
        self.write_step(&mut expected, step);
        ensure!(bytes[..PAGE] == expected, "the first page has other bytes after step {step} than expected");
        let mut last_updates = vec![0; self.pages];
        for step in 1..=step {
            self.updates(step).for_each(|page| last_updates[page] = step);
        }
        for (page, (found, updated)) in bytes.chunks_exact(PAGE).zip(last_updates).enumerate().skip(1) {
            self.write_page(&mut expected, page, updated);
            if found != expected {
                let found = number(&found[8..16]).context("reading the first record of a page")?;
                bail!(
                    "page {page} is wrong after step {step}: it was last updated in step {updated}, but its first record \
                     is of step {found}"
                );
            }
        }
        Ok(step)
    }

    /// Returns the bytes of the ledger in the bytes of a view.
    ///
    /// The view may be longer, because it consists of whole pages of the machine.
    fn content(self, bytes: &[u8]) -> Result<&[u8]> {
        let content = bytes.get(..self.len());
        content.with_context(|| format!("the ledger has {} bytes instead of {}", bytes.len(), self.len()))
    }

    /// Returns the pages that a step updates.
    fn updates(self, step: u64) -> impl Iterator<Item = usize> {
        let mut random = self.random(step, 0);
        iter::repeat_with(move || random.random_range(1..self.pages)).take(UPDATES)
    }

    fn write_step(self, bytes: &mut [u8], step: u64) {
        for (place, value) in bytes.chunks_exact_mut(8).zip([MAGIC, self.seed, step]) {
            place.copy_from_slice(&value.to_le_bytes());
        }
    }

    /// Writes all records of a page: account, step, balance and a memo of five words.
    fn write_page(self, page: &mut [u8], number: usize, step: u64) {
        let mut random = self.random(step, number as u64);
        for (index, record) in page.chunks_exact_mut(RECORD).enumerate() {
            let account = (number * (PAGE / RECORD) + index) as u64;
            let (fields, memo) = record.split_at_mut(24);
            let choice = random.next_u64();
            for (place, value) in fields.chunks_exact_mut(8).zip([account, step, choice >> 32]) {
                place.copy_from_slice(&value.to_le_bytes());
            }
            for (place, shift) in memo.chunks_exact_mut(8).zip((0..).step_by(4)) {
                place.copy_from_slice(WORDS[(choice >> shift & 15) as usize]);
            }
        }
    }

    fn random(self, step: u64, page: u64) -> Xoshiro256PlusPlus {
        // With odd factors, different steps and pages have different seeds in practice.
        let seed =
            self.seed ^ step.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ page.wrapping_mul(0xd1b5_4a32_d192_ed03);
        Xoshiro256PlusPlus::seed_from_u64(seed)
    }
}

fn number(bytes: &[u8]) -> Option<u64> {
    bytes.try_into().ok().map(u64::from_le_bytes)
}
