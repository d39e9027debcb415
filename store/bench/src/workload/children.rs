//! Measures the size of a repository with a hundred children, each made from the one before.

use anyhow::Result;
use memsnap_store::Repository;

use super::{Bench, timed};
use crate::changes::{self, Changes, Contents};
use crate::place::{allocated, remove};
use crate::results::{Results, STORED, Unit};

/// The name in the record.
pub(crate) const NAME: &str = "100 children";
/// The contents of the changed pages, and their names in the record.
pub(crate) const ALL: [(&str, Contents); 2] =
    [("memory-like pages", Contents::Memory), ("random pages", Contents::Random)];
/// The growth of the repository / the length of the changes, compressed as one stream for each child.
pub(crate) const OF_STREAMS: &str = "growth / compressed changes";
/// The growth of the repository / the length of the changes, compressed in frames of 16 pages.
pub(crate) const OF_FRAMES: &str = "growth / changes compressed in frames of 64 KiB";

const CHILDREN: usize = 100;
/// The number of blocks in a frame of the store.
const FRAME: usize = 16;

pub(crate) fn run(bench: &Bench, results: &mut Results) -> Result<()> {
    let place = bench.disk();
    for (way, contents) in ALL {
        bench.tell(&format!("{NAME}, {way}"));
        let path = bench.repository(place)?;
        let repository = Repository::create(&path)?;
        let mut saved = repository.save(&bench.snapshot).name("base").run()?;
        let base = allocated(&path)?;
        let mut view = saved.snapshot().clone().into_view()?;
        let mut changes = Changes::new(3);
        let (mut streams, mut frames) = (0, 0);
        for _ in 0..CHILDREN {
            let change = changes.next(&bench.image, contents);
            changes::apply(&change, &mut view);
            let child = view.take_snapshot()?;
            let (next, time) = timed(|| repository.save(&child).parent(&saved).run())?;
            results.time([NAME, place.name, way], time);
            saved = next;
            streams += changes::compressed(&change)?;
            frames += change.chunks(FRAME).map(changes::compressed).sum::<Result<usize>>()?;
        }
        let grown = allocated(&path)?.saturating_sub(base);
        let key = |metric| [NAME, place.name, way, metric];
        results.bytes(key("base"), base);
        results.bytes(key(STORED), grown);
        results.bytes(key("compressed changes"), streams as u64);
        results.bytes(key("changes compressed in frames of 64 KiB"), frames as u64);
        results.add(key(OF_STREAMS), Unit::Number, grown as f64 / streams as f64);
        results.add(key(OF_FRAMES), Unit::Number, grown as f64 / frames as f64);
        for (metric, part) in [("packs", "packs"), ("manifests", "manifests"), ("index", "index.redb")] {
            results.bytes(key(metric), allocated(&path.join(part))?);
        }
        drop(repository);
        remove(&path)?;
    }
    Ok(())
}
