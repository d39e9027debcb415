//! Making snapshots from bytes, files and zeroes.
#![allow(unsafe_code)]

use std::fs::{self, File};
use std::hint::black_box;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result};
use memmap2::MmapOptions;
use memsnap::Snapshot;

use super::Scale;
use crate::case::{Case, GIB, KIB, MIB, size};
use crate::harness::{nanoseconds, time};
use crate::image::{Image, fill, memory_file};
use crate::mounted::Mounted;
use crate::pages::read_all;
use crate::results::{LIMIT, Metric, OLD, Results, SUBJECT, Samples};

pub(crate) const TIME: Metric = Metric::nanoseconds("time");

const NAME: &str = "create";

pub(crate) fn case(how: &str, bytes: usize) -> Case {
    Case::of_size(NAME, bytes, how)
}

pub(crate) const FROM_SLICE: &str = "from_slice";
pub(crate) const FROM_FILE: &str = "from_file";
pub(crate) const READ_FILE: &str = "from_file, then all read";
pub(crate) const READ_MAPPED: &str = "map_file (0.1.2: from_file), then all read";
pub(crate) const FILL: &str = "zeroed, then all filled through view_mut";
pub(crate) const ON_XFS: &str = "from_file on XFS";
pub(crate) const ON_BTRFS: &str = "from_file on Btrfs";

pub(crate) fn run(scale: Scale, results: &mut Results) -> Result<()> {
    let rounds = scale.pick(2, 7);
    let mut samples = Samples::default();
    for (bytes, rounds) in [(64 * KIB, 50 * rounds), (MIB, 20 * rounds), (GIB, scale.pick(1, rounds))] {
        eprintln!("create: {} from a slice", size(bytes));
        let image = Image::new(bytes)?;
        for _ in 0..rounds {
            from_slice(&image, &mut samples)?;
        }
    }
    eprintln!("create: {} from a file and filled", size(GIB));
    let image = Image::new(GIB)?;
    let file = warm_file(&tempfile::NamedTempFile::new()?.into_temp_path(), GIB)?;
    for _ in 0..rounds {
        from_file(&case(FROM_FILE, GIB), &file, &mut samples)?;
        read_file(&file, &mut samples)?;
        filled(image.bytes(), &mut samples)?;
    }
    drop((image, file));
    let mkfs: [(&str, &[&str]); 2] =
        [(ON_XFS, &["mkfs.xfs", "-q", "-m", "reflink=1"]), (ON_BTRFS, &["mkfs.btrfs", "-q"])];
    for (how, mkfs) in mkfs {
        let case = case(how, scale.pick(256 * MIB, GIB));
        eprintln!("{case}");
        match Mounted::new(mkfs, 2 * GIB) {
            Ok(mounted) => on_mounted(&case, &mounted, rounds, &mut samples)?,
            Err(error) => results.skip(&case, "all", &format!("{error:#}")),
        }
    }
    samples.add_to(results);
    Ok(())
}

/// Measures the time of `make`, without the time for dropping its result.
fn measure<T>(
    case: &Case,
    competitor: &str,
    samples: &mut Samples,
    make: impl FnOnce() -> Result<T>,
) -> Result<()> {
    let (made, time) = time(make);
    black_box(made.with_context(|| format!("{case}: {competitor}"))?);
    samples.record(case, competitor, TIME, nanoseconds(time));
    Ok(())
}

fn from_slice(image: &Image, samples: &mut Samples) -> Result<()> {
    let bytes = image.bytes();
    let case = case(FROM_SLICE, bytes.len());
    measure(&case, SUBJECT, samples, || Ok(Snapshot::from_slice(bytes)?))?;
    measure(&case, OLD, samples, || Ok(memsnap_0_1::Snapshot::from_slice(bytes)?))?;
    measure(&case, "plain copy", samples, || Ok(bytes.to_vec()))?;
    measure(&case, LIMIT, samples, || written(bytes))
}

/// Copies `bytes` to a new memory file, which is the least work that isolates a snapshot from its source.
fn written(bytes: &[u8]) -> Result<File> {
    let file = memory_file()?;
    for (number, chunk) in bytes.chunks(MIB).enumerate() {
        file.write_all_at(chunk, (number * MIB) as u64)?;
    }
    Ok(file)
}

fn from_file(case: &Case, file: &File, samples: &mut Samples) -> Result<()> {
    measure(case, SUBJECT, samples, || Ok(Snapshot::from_file(file.try_clone()?)?))?;
    measure(case, LIMIT, samples, || {
        // SAFETY: nothing writes to the file or shortens it.
        let source = unsafe { MmapOptions::new().populate().map(file) }?;
        written(&source)
    })
}

fn read_file(file: &File, samples: &mut Samples) -> Result<()> {
    let copied = case(READ_FILE, GIB);
    measure(&copied, SUBJECT, samples, || {
        let snapshot = Snapshot::from_file(file.try_clone()?)?;
        Ok(read_all(&snapshot.view()?))
    })?;
    let mapped = case(READ_MAPPED, GIB);
    measure(&mapped, SUBJECT, samples, || {
        // SAFETY: nothing writes to the file or shortens it.
        let snapshot = unsafe { Snapshot::map_file(file) }?;
        Ok(read_all(&snapshot.view()?))
    })?;
    let (read, time) = time(|| {
        let snapshot = memsnap_0_1::Snapshot::from_file(file.try_clone()?)?;
        anyhow::Ok(read_all(snapshot.view()?.as_slice()))
    });
    read?;
    samples.record(&copied, OLD, TIME, nanoseconds(time));
    samples.record(&mapped, OLD, TIME, nanoseconds(time));
    Ok(())
}

fn filled(bytes: &[u8], samples: &mut Samples) -> Result<()> {
    let case = case(FILL, bytes.len());
    measure(&case, SUBJECT, samples, || {
        let mut snapshot = Snapshot::zeroed(bytes.len())?;
        let mut view = snapshot.view_mut()?;
        view.copy_from_slice(bytes);
        view.commit()?;
        Ok(snapshot)
    })?;
    measure(&case, OLD, samples, || {
        let mut snapshot = memsnap_0_1::Snapshot::zeroed(bytes.len())?;
        snapshot.view_mut()?.as_mut_slice().copy_from_slice(bytes);
        Ok(snapshot)
    })
}

fn on_mounted(case: &Case, mounted: &Mounted, rounds: usize, samples: &mut Samples) -> Result<()> {
    let file = warm_file(&mounted.point().join("file"), case.bytes)?;
    for _ in 0..rounds {
        from_file(case, &file, samples)?;
    }
    Ok(())
}

/// Makes a file of random bytes that are on the disk and in the page cache.
fn warm_file(path: &Path, bytes: usize) -> Result<File> {
    let file = File::create(path)?;
    fill(&file, bytes)?;
    file.sync_all()?;
    drop(fs::read(path)?);
    Ok(File::open(path)?)
}
