//! Changes of pages, which make a new image from an image.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result};
use rand::seq::index;
use rand::{Rng, RngExt, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;

use crate::image::PAGE;

/// The number of pages that differ between a child and its parent.
pub(crate) const PAGES: usize = 256;
/// The number of bytes in these pages.
pub(crate) const BYTES: usize = PAGES * PAGE;

/// The contents of changed pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Contents {
    /// Random bytes, which cannot be compressed.
    Random,
    /// Copies of other pages of the image that are not zero, with eight words changed.
    Memory,
}

/// Makes changes at random offsets.
pub(crate) struct Changes {
    random: Xoshiro256PlusPlus,
}

/// A changed page: its number and its bytes.
pub(crate) type Change = (usize, Vec<u8>);

impl Changes {
    /// Returns changes that depend only on `seed`, and whose random bytes are not those of the image.
    pub(crate) fn new(seed: u64) -> Self {
        let own = u64::from_le_bytes(*b"changes ");
        Self { random: Xoshiro256PlusPlus::seed_from_u64(own ^ seed) }
    }

    /// Returns the next [`PAGES`] changes of an image, in ascending order of their pages.
    pub(crate) fn next(&mut self, image: &[u8], contents: Contents) -> Vec<Change> {
        let mut places = index::sample(&mut self.random, image.len() / PAGE, PAGES).into_vec();
        places.sort_unstable();
        places.into_iter().map(|page| (page, self.page(image, contents))).collect()
    }

    /// Returns the bytes of a new page.
    pub(crate) fn page(&mut self, image: &[u8], contents: Contents) -> Vec<u8> {
        let mut page = vec![0; PAGE];
        match contents {
            Contents::Random => self.random.fill_bytes(&mut page),
            Contents::Memory => {
                while page.iter().all(|byte| *byte == 0) {
                    let from = self.random.random_range(0..image.len() / PAGE) * PAGE;
                    page.copy_from_slice(&image[from..][..PAGE]);
                }
                for _ in 0..8 {
                    let word = self.random.random_range(0..PAGE / 8) * 8;
                    page[word..][..8].copy_from_slice(&self.random.next_u64().to_le_bytes());
                }
            }
        }
        page
    }
}

/// Writes changes to memory.
pub(crate) fn apply(changes: &[Change], memory: &mut [u8]) {
    for (page, bytes) in changes {
        memory[page * PAGE..][..PAGE].copy_from_slice(bytes);
    }
}

/// Writes changes to a file.
pub(crate) fn apply_to_file(changes: &[Change], path: &Path) -> Result<()> {
    let write = || {
        let file = File::options().write(true).open(path)?;
        changes.iter().try_for_each(|(page, bytes)| file.write_all_at(bytes, (page * PAGE) as u64))
    };
    write().with_context(|| format!("changing {} pages of {}", changes.len(), path.display()))
}

/// The level of `zstd -1`.
const LEVEL: i32 = 1;

/// Returns the length of changed pages, compressed as one stream by `zstd -1` if that is shorter.
pub(crate) fn compressed(changes: &[Change]) -> Result<usize> {
    let bytes: Vec<u8> = changes.iter().flat_map(|(_, bytes)| bytes).copied().collect();
    Ok(zstd::bulk::compress(&bytes, LEVEL).context("compressing changed pages")?.len().min(bytes.len()))
}
