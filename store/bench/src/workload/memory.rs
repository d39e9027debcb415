//! Measures the greatest memory of saving and loading. Each call runs in its own process.

use std::env;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use memsnap::Snapshot;
use memsnap_store::{Depth, Repository};

use super::Bench;
use crate::image;
use crate::place::remove;
use crate::results::Results;
use crate::system;

/// The name in the record.
pub(crate) const NAME: &str = "memory";
/// The calls that are measured.
pub(crate) const CALLS: [&str; 5] = ["save", "save_file", "load", "extract", "verify"];
/// The metrics: the greatest memory besides the snapshot, for a quarter of the image and for all of it.
pub(crate) const BESIDES: [&str; 2] = ["besides a snapshot of a quarter", "besides the snapshot"];

/// The arguments of a process that measures a call.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Measure {
    /// Measure the memory of this call
    #[arg(long, hide = true, requires = "repository", requires = "file")]
    measure: Option<String>,
    /// The repository
    #[arg(long, hide = true)]
    repository: Option<PathBuf>,
    /// The file with the image, or the file to extract to
    #[arg(long, hide = true)]
    file: Option<PathBuf>,
}

pub(crate) fn run(bench: &Bench, results: &mut Results) -> Result<()> {
    let place = bench.disk();
    for (part, metric) in [4, 1].into_iter().zip(BESIDES) {
        let file = place.fresh("part")?;
        image::write(&bench.image[..bench.image.len() / part / image::PAGE * image::PAGE], &file)?;
        let saved = place.fresh("saved")?;
        Repository::create(&saved)?.save_file(&File::open(&file)?).name("image").run()?;
        for call in CALLS {
            bench.tell(&format!("{NAME}, {call}, {metric}"));
            let (repository, target) = match call {
                "save" | "save_file" => (place.fresh("repository")?, file.clone()),
                _ => (saved.clone(), place.fresh("target")?),
            };
            let besides = in_a_process(call, &repository, &target)?;
            results.bytes([NAME, place.name, call, metric], besides);
        }
        [file, saved, place.path("repository"), place.path("target")]
            .iter()
            .try_for_each(|path| remove(path))?;
    }
    Ok(())
}

/// Measures a call in its own process. Returns the greatest memory besides the snapshot, in bytes.
fn in_a_process(call: &str, repository: &Path, file: &Path) -> Result<u64> {
    let mut command = Command::new(env::current_exe()?);
    command.args(["--measure", call, "--repository"]).arg(repository).arg("--file").arg(file);
    let output = command.output().with_context(|| format!("starting {command:?}"))?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} failed: {error}");
    let said = String::from_utf8_lossy(&output.stdout);
    said.trim().parse().with_context(|| format!("{command:?} printed {said:?} instead of a number"))
}

impl Measure {
    /// Measures a call and prints the result, if the arguments ask for it. Returns whether they do.
    pub(crate) fn run(self) -> Result<bool> {
        let (Some(call), Some(path), Some(file)) = (self.measure, self.repository, self.file) else {
            return Ok(false);
        };
        println!("{}", besides(&call, &path, &file)?);
        Ok(true)
    }
}

/// Returns the greatest anonymous memory of a call, besides the snapshot.
///
/// A snapshot is in a memory file or in anonymous memory. Anonymous memory of the snapshot is subtracted.
fn besides(call: &str, path: &Path, file: &Path) -> Result<u64> {
    match call {
        "save" => {
            let (repository, snapshot) = (Repository::create(path)?, Snapshot::from_file(File::open(file)?)?);
            most(|| Ok(repository.save(&snapshot).run()?), |_| 0)
        }
        "save_file" => {
            let (repository, file) = (Repository::create(path)?, File::open(file)?);
            most(|| Ok(repository.save_file(&file).run()?), |_| 0)
        }
        "load" => {
            let repository = Repository::open(path)?;
            most(|| Ok(repository.load("image").run()?), |saved| saved.snapshot().len() as u64)
        }
        "extract" => {
            let repository = Repository::open(path)?;
            most(|| Ok(repository.extract("image", file).run()?), |_| 0)
        }
        _ => {
            let repository = Repository::open(path)?;
            most(|| Ok(repository.verify(Depth::Data)?), |_| 0)
        }
    }
}

/// Runs a call.
///
/// Returns its greatest anonymous memory, minus that of a snapshot whose length `len` returns.
fn most<T>(call: impl FnOnce() -> Result<T>, len: impl FnOnce(&T) -> u64) -> Result<u64> {
    let before = system::memory("RssAnon")?;
    let (result, most) = system::peak_of_anonymous_memory(call)?;
    let kept = system::memory("RssAnon")?.saturating_sub(before);
    // If the memory that remains is about as long as the snapshot, it is the snapshot. Otherwise, the allocator keeps
    // it. A quarter of the image is zeroes, which may take no memory.
    let len = len(&result);
    let snapshot = if len > 0 && kept > len / 2 { kept.min(len) } else { 0 };
    Ok(most.saturating_sub(before + snapshot))
}
