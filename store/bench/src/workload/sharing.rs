//! Measures the size of two images that have most pages in common, at other offsets.

use anyhow::Result;
use memsnap::Snapshot;
use memsnap_store::Repository;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_xoshiro::Xoshiro256PlusPlus;

use super::Bench;
use crate::changes::{Changes, Contents};
use crate::image::PAGE;
use crate::place::{allocated, remove};
use crate::results::{Results, STORED, Unit};

/// The name in the record.
pub(crate) const NAME: &str = "two images";
/// The images.
pub(crate) const WAY: &str = "90 % of the pages that are not zero are shared, at random places";
/// The size of a repository with both images, divided by that with one.
pub(crate) const RATIO: &str = "both / one";

pub(crate) fn run(bench: &Bench, results: &mut Results) -> Result<()> {
    bench.tell(NAME);
    let place = bench.disk();
    let path = bench.repository(place)?;
    let repository = Repository::create(&path)?;
    repository.save(&bench.snapshot).name("one").run()?;
    let one = allocated(&path)?;
    let other = Snapshot::from_slice(&shuffled(&bench.image))?;
    repository.save(&other).name("other").run()?;
    let both = allocated(&path)?;
    let key = |metric| [NAME, place.name, WAY, metric];
    results.bytes(key("one"), one);
    results.bytes(key(STORED), both);
    results.add(key(RATIO), Unit::Number, both as f64 / one as f64);
    drop(repository);
    remove(&path)
}

/// Returns an image that has all pages in random order, with new bytes in each tenth of them.
fn shuffled(image: &[u8]) -> Vec<u8> {
    let mut pages: Vec<&[u8]> = image.chunks_exact(PAGE).collect();
    pages.shuffle(&mut Xoshiro256PlusPlus::seed_from_u64(4));
    let mut other = pages.concat();
    let mut changes = Changes::new(5);
    for page in other.chunks_exact_mut(PAGE).step_by(10) {
        // A page of zeroes stays a page of zeroes, so that both images have about the same number of them.
        if page.iter().any(|byte| *byte != 0) {
            page.copy_from_slice(&changes.page(image, Contents::Memory));
        }
    }
    other
}
