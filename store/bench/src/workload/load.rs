//! Measures loading the image, loading a child onto its parent, and mapping.
#![allow(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use memsnap_store::{Id, Repository};
use rand::{RngExt, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;

use super::first::{CP, RESTIC};
use super::{Bench, timed};
use crate::changes::{self, Changes, Contents};
use crate::image::PAGE;
use crate::place::{Place, remove};
use crate::results::{Results, TIME, Unit};
use crate::tool;

/// The name in the record.
pub(crate) const NAME: &str = "load";
/// The store loads all of the image into memory.
pub(crate) const WHOLE: &str = "memsnap-store, into memory";
/// The store writes all of the image to a file.
pub(crate) const EXTRACT: &str = "memsnap-store, to a file";
/// zstd decompresses all of the image to a file.
pub(crate) const UNZSTD: &str = "zstd -d";
/// The store loads a child onto its parent in memory.
pub(crate) const ONTO: &str = "memsnap-store, a child onto its parent";
/// The store maps the image the first time.
pub(crate) const MAP_FIRST: &str = "memsnap-store, mapped the first time";
/// The store maps the image again.
pub(crate) const MAP: &str = "memsnap-store, mapped again";
/// The time to map the image and to touch pages, together.
pub(crate) const MAP_AND_TOUCH: &str = "with 1,000 pages touched";

/// The number of pages that are touched in a mapped image.
const TOUCHED: usize = 1000;
/// The number of calls of the store in a round, for calls that take milliseconds.
const CALLS: usize = 10;

pub(crate) fn run(bench: &Bench, results: &mut Results) -> Result<()> {
    for place in &bench.places {
        let saved = Stored::new(bench, place)?;
        for round in 0..=bench.rounds {
            bench.tell(&format!("{NAME}, {}: round {round} of {}", place.name, bench.rounds));
            // The first round is not counted. It compares the loaded bytes with the image.
            let mut ignored = Results::default();
            let kept = if round > 0 { &mut *results } else { &mut ignored };
            for way in [WHOLE, EXTRACT, RESTIC, UNZSTD, CP] {
                if let Some(time) = saved.whole(way, round == 0)? {
                    kept.time([NAME, place.name, way], time);
                }
            }
        }
        bench.tell(&format!("{NAME}, {}: a child onto its parent, and maps", place.name));
        saved.onto(results)?;
        saved.map(results)?;
        saved.end()?;
    }
    Ok(())
}

/// The repositories and files with the saved image.
struct Stored<'a> {
    bench: &'a Bench,
    place: &'a Place,
    repository: PathBuf,
    restic: PathBuf,
    zstd: PathBuf,
    base: Id,
    child: Id,
    changes: Vec<changes::Change>,
}

impl<'a> Stored<'a> {
    fn new(bench: &'a Bench, place: &'a Place) -> Result<Self> {
        let path = bench.repository(place)?;
        let repository = Repository::create(&path)?;
        let base = repository.save(&bench.snapshot).name("base").run()?;
        let changes = Changes::new(6).next(&bench.image, Contents::Memory);
        let mut view = base.snapshot().view()?;
        changes::apply(&changes, &mut view);
        let child = repository.save(&view.take_snapshot()?).parent(&base).run()?;
        let (restic, zstd) = (place.fresh("restic")?, place.fresh("zstd")?);
        if bench.restic {
            tool::restic_init(&restic)?;
            tool::restic_backup(&restic, &place.image())?;
        }
        if bench.zstd {
            tool::zstd(2, &place.image(), &zstd)?;
        }
        let (base, child) = (base.id(), child.id());
        Ok(Self { bench, place, repository: path, restic, zstd, base, child, changes })
    }

    /// Loads all of the image in one way. Returns the time, or `None` if the program is not installed.
    fn whole(&self, way: &str, check: bool) -> Result<Option<Duration>> {
        let target = self.place.fresh("target")?;
        tool::sync()?;
        let (time, file) = match way {
            WHOLE => {
                let repository = Repository::open(&self.repository)?;
                let (saved, time) = timed(|| repository.load(self.base).run())?;
                if check {
                    ensure!(
                        saved.snapshot().view()?.content() == self.bench.image,
                        "{way}: the loaded snapshot has other bytes than the image"
                    );
                }
                return Ok(Some(time));
            }
            EXTRACT => {
                let repository = Repository::open(&self.repository)?;
                (timed(|| repository.extract(self.base, &target).run())?.1, target.clone())
            }
            RESTIC if self.bench.restic => {
                let image = fs::canonicalize(self.place.image())?;
                let time = tool::restic_restore(&self.restic, &target)?;
                (time, target.join(image.strip_prefix("/")?))
            }
            UNZSTD if self.bench.zstd => (tool::unzstd(&self.zstd, &target)?, target.clone()),
            CP => (tool::cp(&self.place.image(), &target)?, target.clone()),
            _ => return Ok(None),
        };
        if check {
            self.check(way, &file)?;
        }
        remove(&target)?;
        Ok(Some(time))
    }

    fn check(&self, way: &str, file: &Path) -> Result<()> {
        let bytes = fs::read(file).with_context(|| format!("reading {}", file.display()))?;
        ensure!(bytes == self.bench.image, "{way}: {} has other bytes than the image", file.display());
        Ok(())
    }

    /// Loads the child onto its parent.
    fn onto(&self, results: &mut Results) -> Result<()> {
        let repository = Repository::open(&self.repository)?;
        let base = repository.load(self.base).run()?;
        for call in 0..=CALLS * self.bench.rounds {
            let (child, time) = timed(|| repository.load(self.child).onto(&base).run())?;
            if call > 0 {
                results.time([NAME, self.place.name, ONTO], time);
                continue;
            }
            let view = child.snapshot().view()?;
            let differs = self.changes.iter().any(|(page, bytes)| view[page * PAGE..][..PAGE] != bytes[..]);
            ensure!(!differs, "the loaded child has other bytes than the saved one");
        }
        Ok(())
    }

    /// Maps the image the first time and again, and touches pages.
    fn map(&self, results: &mut Results) -> Result<()> {
        let place = self.place.name;
        let mut random = Xoshiro256PlusPlus::seed_from_u64(7);
        for call in 0..=CALLS * self.bench.rounds {
            let (repository, opened) = timed(|| Repository::open(&self.repository))?;
            // SAFETY: the repository is in a temporary folder of this run, which never writes to the files in the cache.
            let (saved, mapped) = timed(|| unsafe { repository.map(self.base) })?;
            // The expected bytes are read before the clock starts, because this takes time, too.
            let expected: Vec<(usize, u8)> = (0..TOUCHED)
                .map(|_| random.random_range(0..self.bench.image.len() / PAGE) * PAGE)
                .map(|at| (at, self.bench.image[at]))
                .collect();
            let (right, touched) = timed(|| -> Result<bool> {
                let view = saved.snapshot().view()?;
                Ok(expected.iter().all(|(at, byte)| view[*at] == *byte))
            })?;
            ensure!(right, "the mapped image has other bytes than the saved one");
            if call == 0 {
                results.time([NAME, place, MAP_FIRST], mapped);
                continue;
            }
            results.time([NAME, place, MAP], mapped);
            let both = (mapped + touched).as_secs_f64();
            results.add([NAME, place, MAP, MAP_AND_TOUCH], Unit::Seconds, both);
            results.add([NAME, place, "opening the repository", TIME], Unit::Seconds, opened.as_secs_f64());
        }
        Ok(())
    }

    fn end(self) -> Result<()> {
        [&self.repository, &self.restic, &self.zstd].into_iter().try_for_each(|path| remove(path))
    }
}
