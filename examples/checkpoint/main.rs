//! Checkpoints of a large image: eight threads edit, snapshot and restore it, and every step is verified.
//!
//! ```text
//! cargo run --release --example checkpoint [FILE] [--size 1GiB] [--threads 8] [--rounds 6] [--seed 1]
//! ```
//!
//! The program repeats the bytes of FILE until the image has the given size, and makes one snapshot of it. FILE is
//! this program by default. Each thread opens a copy-on-write view of that snapshot and runs several rounds. In each
//! round it makes seeded random edits: mostly 256 pages anywhere, sometimes one page, sometimes a run of 1,000. Between
//! the edits it takes snapshots of its view, restores the view, restores it to any of the snapshots taken so far,
//! compares these with each other, opens more views of them, and drops some.
//!
//! # What is verified
//!
//! Beside its view, each thread keeps a [`Model`] of what the view must show: the image as plain bytes, and copies of
//! the pages that the thread edited. The model does not use the library. After every call that opens a view, changes it
//! or takes a snapshot of it, the thread reads the *whole* view and compares the hash of each page with that of the
//! model. This detects lost edits, and edits that come from another thread. `changes` and `diff` must return exactly
//! the pages in which the models differ, and the address of a view must not change. In the end, a clone of the first
//! snapshot is edited through a mutable view, and the first snapshot must be unchanged. At the first mismatch, the
//! program prints what differs and where, and ends with exit code 1.
//!
//! # How to read the table
//!
//! - *calls*: the number of calls. The first round is a warm-up and is not counted.
//! - *pages changed*: the pages whose bytes the call had to capture, rewrite, show or name.
//! - *median*, *p99*: the time of the library's call alone. With fewer than 100 calls, p99 is the slowest call. All
//!   threads work, but only as many at a time as there are cores. So the time of a call does not include waiting for
//!   a core.
//! - *plain copy of it all*: the median time to copy all bytes of the image into a buffer whose memory is resident,
//!   while nothing else runs. This is the time of a checkpoint or a restore without the library.
//! - *copy / median*: the time of that copy divided by the median time of the call, both from this run.
//!
//! The second table adds up the memory of all snapshots, and compares it with a copy for each snapshot.

mod model;
mod report;
mod worker;

use std::fs::File;
use std::hint::black_box;
use std::io::Read;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytesize::ByteSize;
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use memsnap::{Snapshot, page_size};
use rand::SeedableRng;
use rand_xoshiro::Xoshiro256PlusPlus;

use crate::model::{Model, Original, check_bytes, check_pages, edit};
use crate::report::{Calls, Operation, memory_table, percentile};

/// Checkpoints of a large image: edits, snapshots and restores on many threads, every step verified.
#[derive(Parser)]
struct Options {
    /// File whose bytes are repeated to make the image [default: this program]
    file: Option<PathBuf>,
    /// Size of the image in bytes, or with a unit, such as 64MiB or 1.5GB
    #[arg(long, default_value = "1GiB")]
    size: ByteSize,
    /// Number of threads, each with a view of its own
    #[arg(long, default_value = "8")]
    threads: NonZero<usize>,
    /// Rounds of each thread, after one round to warm up
    #[arg(long, default_value = "6")]
    rounds: NonZero<usize>,
    /// Seed of the random edits and jumps
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let file = options.file.clone().map_or_else(std::env::current_exe, Ok)?;
    let progress = ProgressBar::new_spinner().with_message("reading and hashing the image");
    progress.enable_steady_tick(Duration::from_millis(200));
    let original = read_repeated(&file, options.size)?;

    progress.set_message("copying the image");
    let copy = percentile(time_copies(original.content()), 50);
    progress.set_message("making the first snapshot");
    let mut calls = Calls::default();
    let root = make_snapshot(&original, &mut calls)?;

    let (steps, snapshots) = worker::run_all(&options, &original, &root, &progress, &mut calls)?;

    progress.set_style(ProgressStyle::default_spinner());
    progress.set_message("verifying a mutable view and the first snapshot");
    edit_in_place(&original, &root, options.seed).context("a mutable view of a clone")?;
    check_bytes(&root.view()?, &Model::new(&original)).context("the first snapshot, in the end")?;
    progress.finish_and_clear();

    let Options { size, threads, rounds, seed, .. } = options;
    println!(
        "{} repeated to {size}; pages of {}: {}",
        file.display(),
        ByteSize(page_size() as u64),
        original.pages()
    );
    println!("{threads} threads on {} cores, {rounds} rounds, seed {seed}", worker::cores());
    println!("all {steps} steps verified\n");
    println!("{}\n", calls.table(copy));
    println!("{}", memory_table(&root, &snapshots));
    Ok(())
}

/// Repeats the bytes of the file at `path` until the image has the length `size`.
fn read_repeated(path: &Path, size: ByteSize) -> Result<Original> {
    ensure!(size.as_u64() > 0, "an image of 0 bytes cannot be edited: give --size a value of 1 or more");
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(size.as_u64()).read_to_end(&mut bytes))
        .with_context(|| format!("reading {}", path.display()))?;
    ensure!(!bytes.is_empty(), "{} is empty: give a FILE with bytes to repeat", path.display());
    Original::repeat(&bytes, usize::try_from(size.as_u64())?)
        .with_context(|| format!("making an image of {size}"))
}

/// Times copies of `bytes` into a buffer whose memory is resident.
fn time_copies(bytes: &[u8]) -> Vec<Duration> {
    let mut buffer = bytes.to_vec();
    let copy = |_| {
        let start = Instant::now();
        black_box(&mut buffer).copy_from_slice(black_box(bytes));
        start.elapsed()
    };
    (0..9).map(copy).collect()
}

fn make_snapshot(original: &Original, calls: &mut Calls) -> Result<Snapshot> {
    let make = || Snapshot::from_slice(original.content());
    let mut snapshot = make()?;
    for _ in 0..3 {
        snapshot = calls.time(Operation::MakeImage, original.pages(), make)?;
    }
    Ok(snapshot)
}

/// Checks that writes through a mutable view change its snapshot, and not the snapshot from which that was cloned.
fn edit_in_place(original: &Original, root: &Snapshot, seed: u64) -> Result<()> {
    let mut model = Model::new(original);
    let mut clone = root.clone();
    let mut view = clone.view_mut()?;
    edit(&mut view, &mut model, &mut Xoshiro256PlusPlus::seed_from_u64(seed));
    view.commit()?;
    check_bytes(&clone.view()?, &model)?;
    check_pages("diff()", &root.diff(&clone)?.ranges(), &model.differing(&Model::new(original)))
}
