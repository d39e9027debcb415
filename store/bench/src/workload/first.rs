//! Measures the first save of the image. Other programs save the file with the image.

use std::fs::File;

use anyhow::Result;
use memsnap_store::Repository;

use super::{Bench, timed};
use crate::place::{Place, allocated, remove};
use crate::results::{Results, STORED};
use crate::tool;

/// The name in the record.
pub(crate) const NAME: &str = "first save";
/// The store saves the snapshot in memory.
pub(crate) const SNAPSHOT: &str = "memsnap-store, snapshot";
/// The store saves the file.
pub(crate) const FILE: &str = "memsnap-store, file";
/// restic saves the file.
pub(crate) const RESTIC: &str = "restic";
/// zstd compresses the file with one thread.
pub(crate) const ZSTD: &str = "zstd -1";
/// zstd compresses the file with two threads.
pub(crate) const ZSTD_2: &str = "zstd -1 -T2";
/// cp copies the file.
pub(crate) const CP: &str = "cp --reflink=auto";

pub(crate) fn run(bench: &Bench, results: &mut Results) -> Result<()> {
    for place in &bench.places {
        for round in 0..=bench.rounds {
            bench.tell(&format!("{NAME}, {}: round {round} of {}", place.name, bench.rounds));
            for way in [SNAPSHOT, FILE, RESTIC, ZSTD, ZSTD_2, CP] {
                if way == RESTIC && !bench.restic || way.starts_with("zstd") && !bench.zstd {
                    results.skip(format!("{way}: not installed"));
                    continue;
                }
                let target = place.fresh("target")?;
                tool::sync()?;
                let (time, stored) = save(bench, place, way, &target)?;
                // The first round is not counted.
                if round > 0 {
                    results.time([NAME, place.name, way], time);
                    results.bytes([NAME, place.name, way, STORED], stored);
                }
                remove(&target)?;
            }
        }
    }
    Ok(())
}

/// Saves the image in one way. Returns the time, and the bytes that the saved image takes.
fn save(
    bench: &Bench,
    place: &Place,
    way: &str,
    target: &std::path::Path,
) -> Result<(std::time::Duration, u64)> {
    let image = place.image();
    let time = match way {
        SNAPSHOT => {
            let repository = Repository::create(target)?;
            timed(|| repository.save(&bench.snapshot).run())?.1
        }
        FILE => {
            let (repository, file) = (Repository::create(target)?, File::open(&image)?);
            timed(|| repository.save_file(&file).run())?.1
        }
        RESTIC => {
            tool::restic_init(target)?;
            tool::restic_backup(target, &image)?
        }
        ZSTD => tool::zstd(1, &image, target)?,
        ZSTD_2 => tool::zstd(2, &image, target)?,
        _ => tool::cp(&image, target)?,
    };
    Ok((time, allocated(target)?))
}
