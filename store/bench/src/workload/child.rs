//! Saves a child of the image with 256 changed pages. Other programs save the changed file.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use memsnap_store::{Repository, Saved};

use super::first::{CP, RESTIC, ZSTD, ZSTD_2};
use super::{Bench, timed};
use crate::changes::{self, Changes, Contents};
use crate::place::{Place, allocated, remove};
use crate::results::{Results, STORED, WRITTEN};
use crate::{image, system, tool};

/// The name in the record.
pub(crate) const NAME: &str = "child of 256 pages";
/// The changed pages are random bytes.
pub(crate) const RANDOM: &str = "memsnap-store, random pages";
/// The changed pages are like other pages of the image.
pub(crate) const LIKE: &str = "memsnap-store, memory-like pages";
/// The number of saves of the store in a round. Each other program saves once in a round.
const SAVES: usize = 10;

pub(crate) fn run(bench: &Bench, results: &mut Results) -> Result<()> {
    for place in &bench.places {
        let ways = Ways::new(bench, place)?;
        let (mut random, mut like) = (Changes::new(1), Changes::new(2));
        for round in 0..=bench.rounds {
            bench.tell(&format!("{NAME}, {}: round {round} of {}", place.name, bench.rounds));
            // The first round is not counted.
            let mut ignored = Results::default();
            let results = if round > 0 { &mut *results } else { &mut ignored };
            tool::sync()?;
            ways.store(RANDOM, Contents::Random, &mut random, results)?;
            ways.store(LIKE, Contents::Memory, &mut like, results)?;
            ways.programs(&random.next(&bench.image, Contents::Random), results)?;
        }
        ways.end()?;
    }
    Ok(())
}

/// The repositories in one place. Both contain the image.
struct Ways<'a> {
    bench: &'a Bench,
    place: &'a Place,
    repository: Repository,
    base: Saved,
    restic: PathBuf,
    /// The file that is changed and saved by the programs.
    file: PathBuf,
}

impl<'a> Ways<'a> {
    fn new(bench: &'a Bench, place: &'a Place) -> Result<Self> {
        let repository = Repository::create(bench.repository(place)?)?;
        let base = repository.save(&bench.snapshot).name("base").run()?;
        let (restic, file) = (place.fresh("restic")?, place.fresh("changing")?);
        image::write(&bench.image, &file)?;
        if bench.restic {
            tool::restic_init(&restic)?;
            tool::restic_backup(&restic, &file)?;
        }
        Ok(Self { bench, place, repository, base, restic, file })
    }

    /// Saves children of the image. Each is made from the image, with other changes.
    fn store(
        &self,
        way: &'static str,
        contents: Contents,
        changes: &mut Changes,
        results: &mut Results,
    ) -> Result<()> {
        let mut view = self.base.snapshot().view()?;
        for _ in 0..SAVES {
            changes::apply(&changes.next(&self.bench.image, contents), &mut view);
            let child = view.take_snapshot()?;
            let stored = allocated(self.repository.path())?;
            let written = system::written()?;
            let (saved, time) = timed(|| self.repository.save(&child).parent(&self.base).run())?;
            let written = system::written()? - written;
            let key = [NAME, self.place.name, way];
            results.time(key, time);
            results.bytes([key[0], key[1], key[2], WRITTEN], written);
            let stored = allocated(self.repository.path())?.saturating_sub(stored);
            results.bytes([key[0], key[1], key[2], STORED], stored);
            let manifest = self.repository.manifest(&saved)?.stored;
            results.bytes([key[0], key[1], key[2], "stored, by its manifest"], manifest);
            view.restore()?;
        }
        Ok(())
    }

    /// Changes the file, and saves it with each program.
    fn programs(&self, changes: &[changes::Change], results: &mut Results) -> Result<()> {
        changes::apply_to_file(changes, &self.file)?;
        let place = self.place.name;
        if self.bench.restic {
            tool::sync()?;
            let before = allocated(&self.restic)?;
            results.time([NAME, place, RESTIC], tool::restic_backup(&self.restic, &self.file)?);
            results.bytes([NAME, place, RESTIC, STORED], allocated(&self.restic)?.saturating_sub(before));
        }
        let target = self.place.path("target");
        let compress: [(&'static str, u32); 2] = [(ZSTD, 1), (ZSTD_2, 2)];
        for (way, threads) in compress.into_iter().filter(|_| self.bench.zstd) {
            let time = self.alone(&target, |target| tool::zstd(threads, &self.file, target))?;
            results.time([NAME, place, way], time);
            results.bytes([NAME, place, way, STORED], allocated(&target)?);
        }
        results.time([NAME, place, CP], self.alone(&target, |target| tool::cp(&self.file, target))?);
        results.bytes([NAME, place, CP, STORED], allocated(&target)?);
        remove(&target)
    }

    /// Runs a program that writes to `target`.
    ///
    /// Before that, deletes `target` and waits until the disk is idle.
    fn alone<T>(&self, target: &Path, run: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
        remove(target)?;
        tool::sync()?;
        run(target)
    }

    fn end(self) -> Result<()> {
        let path = self.repository.path().to_owned();
        drop(self.repository);
        fs::remove_file(&self.file).context("deleting the changed file")?;
        remove(&self.restic)?;
        remove(&path)
    }
}
