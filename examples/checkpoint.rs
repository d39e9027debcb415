//! Checkpoints of a large image: eight threads edit, snapshot and restore it, and every step is verified.
//!
//! ```text
//! cargo run --release --example checkpoint [FILE] [--size 1GiB] [--threads 8] [--rounds 16] [--seed 1]
//! ```
//!
//! The bytes of FILE, by default this program's own, are repeated to an image of the size asked for, of
//! which one snapshot is made. Each thread opens a copy-on-write view of that snapshot and goes through
//! rounds of seeded random edits: mostly 256 pages anywhere, sometimes one page, sometimes a run of 1,000.
//! In between it takes snapshots of its view, restores it, has it jump between the snapshots taken so
//! far, compares these with each other, opens further views of them, and drops some.
//!
//! # What is verified
//!
//! Beside its view each thread keeps a [`Model`] of what the view must show: the image as plain bytes, and
//! copies of the pages it edited. Nothing in it comes from the library. After every step the *whole*
//! view is read, and the hash of each page compared with the model's; so no edit may be lost, and none
//! may come from another thread. `changes` and `diff` have to name exactly the pages in which the models
//! differ, and the address of a view must never change. In the end the first snapshot has to be what it
//! was, and a clone of it is edited through a mutable view. The first mismatch ends the program with what
//! and where it was, and exit code 1.
//!
//! # How to read the table
//!
//! Times are those of the library's calls alone. All threads work, but only as many at a time as there are
//! cores, so that waiting for a core is no part of a call; the first round is a warm-up that is not
//! counted. *Pages changed* is the number of pages whose bytes the call had to capture, rewrite, bring in or
//! name. What the library is compared with is a plain copy of all bytes of the image into a buffer that
//! has its memory already, while nothing else runs: what a checkpoint or a restore costs without it. The
//! last column is that copy's median divided by the call's, both from this run: 500 means that the call
//! took a 500th of the copy.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::hint::black_box;
use std::io::Read;
use std::iter;
use std::num::NonZero;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytesize::ByteSize;
use clap::Parser;
use comfy_table::{CellAlignment, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use memsnap::{CowView, Snapshot, page_size};
use rand::seq::IndexedRandom;
use rand::{Rng, RngExt, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use xxhash_rust::xxh3::xxh3_64;

/// Checkpoints of a large image: edits, snapshots and restores on many threads, every step verified.
#[derive(Parser)]
struct Options {
    /// File whose bytes are repeated to the image [default: this program]
    file: Option<PathBuf>,
    /// Size of the image: any number of bytes, also as 64MiB or 1.5GB
    #[arg(long, default_value = "1GiB")]
    size: ByteSize,
    /// Threads, each with a view of its own
    #[arg(long, default_value = "8")]
    threads: NonZero<usize>,
    /// Rounds of each thread, after one to warm up
    #[arg(long, default_value = "16")]
    rounds: NonZero<usize>,
    /// Seed of the random edits and jumps
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let file = match &options.file {
        Some(file) => file.clone(),
        None => std::env::current_exe().context("finding this program's own file")?,
    };
    let progress = ProgressBar::new_spinner().with_message("reading and hashing the image");
    progress.enable_steady_tick(Duration::from_millis(200));
    let original = Original::repeat(&file, options.size)?;

    progress.set_message("copying the image");
    let copies = time_plain_copies(&original.bytes);
    progress.set_message("making the first snapshot");
    let mut calls = Calls::default();
    let root = make_root(&original, &mut calls)?;

    let steps = options.threads.get() * (1 + options.rounds.get()) * Worker::STEPS.len();
    progress.set_style(ProgressStyle::with_template("{bar:40} {pos}/{len} steps verified, {eta} to go")?);
    progress.set_length(u64::try_from(steps)?);
    let stage = Stage { original, root, turns: Turns::new(), progress, failed: AtomicBool::new(false) };
    let snapshots = run_workers(&stage, &options, &mut calls)?;

    stage.progress.set_style(ProgressStyle::default_spinner());
    stage.progress.set_message("verifying the first snapshot and a mutable view");
    let Stage { original, root, progress, .. } = &stage;
    edit_a_clone(original, root, options.seed).context("a mutable view of a clone")?;
    check_bytes(&root.view()?, &Model::new(original))
        .context("the first snapshot after all threads ended")?;
    progress.finish_and_clear();

    println!(
        "{} repeated to {} ({} pages), {} threads on {} cores, seed {}.\nAll {steps} steps verified.\n",
        file.display(),
        options.size,
        original.pages(),
        options.threads,
        stage.turns.at_a_time,
        options.seed,
    );
    println!("{}\n", calls.table(percentile(copies, 50)));
    println!("{}", memory_report(root, &snapshots));
    Ok(())
}

/// The image as plain bytes, and what is known of it without the library.
struct Original {
    /// Whole pages: behind the image, zeroes.
    bytes: Vec<u8>,
    /// Length of the image.
    len: usize,
    /// Hash of each page.
    hashes: Vec<u64>,
}

impl Original {
    fn repeat(path: &PathBuf, size: ByteSize) -> Result<Self> {
        let context = || format!("reading {}", path.display());
        let len = usize::try_from(size.as_u64())?;
        ensure!(len > 0, "an image of no bytes has nothing to edit: --size must be 1 or more");
        let mut unit = Vec::new();
        File::open(path)
            .and_then(|file| file.take(size.as_u64()).read_to_end(&mut unit))
            .with_context(context)?;
        ensure!(!unit.is_empty(), "{} is empty: there is nothing to repeat", path.display());

        let mut bytes = Vec::new();
        let whole_pages = len.checked_next_multiple_of(page_size()).context("--size is too large")?;
        bytes.try_reserve_exact(whole_pages).with_context(|| format!("making an image of {size}"))?;
        bytes.extend(unit.iter().cycle().take(len));
        bytes.resize(whole_pages, 0);
        Ok(Self { hashes: page_hashes(&bytes), bytes, len })
    }

    fn pages(&self) -> usize {
        self.hashes.len()
    }

    fn page(&self, page: usize) -> &[u8] {
        &self.bytes[page * page_size()..][..page_size()]
    }
}

fn page_hashes(bytes: &[u8]) -> Vec<u64> {
    bytes.chunks(page_size()).map(xxh3_64).collect()
}

/// What a view or a snapshot must hold: the original, but for the pages edited since. Clones share pages.
#[derive(Clone)]
struct Model<'a> {
    original: &'a Original,
    edited: BTreeMap<usize, Arc<[u8]>>,
}

impl<'a> Model<'a> {
    fn new(original: &'a Original) -> Self {
        Self { original, edited: BTreeMap::new() }
    }

    fn page(&self, page: usize) -> &[u8] {
        self.edited.get(&page).map_or_else(|| self.original.page(page), |bytes| bytes)
    }

    fn write(&mut self, page: usize, offset: usize, bytes: &[u8]) {
        let edited = self.edited.entry(page).or_insert_with(|| self.original.page(page).into());
        Arc::make_mut(edited)[offset..][..bytes.len()].copy_from_slice(bytes);
    }

    fn hashes(&self) -> Vec<u64> {
        let mut hashes = self.original.hashes.clone();
        self.edited.iter().for_each(|(&page, bytes)| hashes[page] = xxh3_64(bytes));
        hashes
    }

    /// The pages in which the two hold different bytes.
    fn differing(&self, other: &Self) -> BTreeSet<usize> {
        let edited = self.edited.keys().chain(other.edited.keys()).copied();
        edited.filter(|&page| self.page(page) != other.page(page)).collect()
    }
}

/// Checks that `found`, all of a view, holds what `expected` says.
fn check_bytes(found: &[u8], expected: &Model) -> Result<()> {
    let hashes = (page_hashes(found), expected.hashes());
    if hashes.0 == hashes.1 {
        return Ok(());
    }
    ensure!(hashes.0.len() == hashes.1.len(), "{} pages instead of {}", hashes.0.len(), hashes.1.len());
    let wrong: Vec<_> = (0..hashes.0.len()).filter(|&page| hashes.0[page] != hashes.1[page]).collect();
    let found = &found[wrong[0] * page_size()..][..page_size()];
    let expected = expected.page(wrong[0]);
    let offset = iter::zip(found, expected).position(|(found, expected)| found != expected).unwrap_or(0);
    bail!(
        "{} of {} pages hold wrong bytes; page {} is the first, with {:#04x} instead of {:#04x} at byte {}",
        wrong.len(),
        hashes.0.len(),
        wrong[0],
        found[offset],
        expected[offset],
        wrong[0] * page_size() + offset,
    );
}

/// Checks that `ranges`, the answer of a call named `what`, are exactly the pages `expected`.
fn check_pages(what: &str, ranges: &[Range<usize>], expected: &BTreeSet<usize>) -> Result<()> {
    let whole = |range: &Range<usize>| range.start % page_size() == 0 && range.end % page_size() == 0;
    ensure!(ranges.iter().all(whole), "{what}: not all ranges are whole pages");
    ensure!(ranges.is_sorted_by(|a, b| a.end <= b.start), "{what}: the ranges are not in ascending order");
    let found: BTreeSet<_> =
        ranges.iter().flat_map(|range| range.start / page_size()..range.end / page_size()).collect();
    if let Some(page) = found.symmetric_difference(expected).next() {
        let error = if expected.contains(page) { "lacks" } else { "should not name" };
        bail!("{what} names {} pages instead of {}: it {error} page {page}", found.len(), expected.len());
    }
    Ok(())
}

/// What all threads share.
struct Stage {
    original: Original,
    root: Snapshot,
    turns: Turns,
    progress: ProgressBar,
    failed: AtomicBool,
}

/// Lets as many threads work at a time as there are cores, in the order in which they ask.
struct Turns {
    at_a_time: usize,
    /// How many turns were asked for, and how many are over.
    count: Mutex<(usize, usize)>,
    over: Condvar,
}

struct Turn<'a>(&'a Turns);

impl Turns {
    fn new() -> Self {
        let at_a_time = thread::available_parallelism().map_or(1, NonZero::get);
        Self { at_a_time, count: Mutex::default(), over: Condvar::new() }
    }

    fn wait(&self) -> Turn<'_> {
        let mut count = self.count.lock().expect("no panic while counting");
        let number = count.0;
        count.0 += 1;
        let waiting = |count: &mut (usize, usize)| number >= count.1 + self.at_a_time;
        let _count = self.over.wait_while(count, waiting).expect("no panic while counting");
        Turn(self)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.count.lock().expect("no panic while counting").1 += 1;
        self.0.over.notify_all();
    }
}

/// Runs all threads to their end, and gives the snapshots that they still hold.
fn run_workers(stage: &Stage, options: &Options, calls: &mut Calls) -> Result<Vec<Snapshot>> {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(options.seed);
    let results: Vec<_> = thread::scope(|scope| {
        let start = |number| {
            rng.jump();
            let rng = rng.clone();
            scope.spawn(move || {
                let result = Worker::run(stage, rng, options.rounds.get());
                stage.failed.fetch_or(result.is_err(), Ordering::Relaxed);
                result.with_context(|| format!("thread {number}"))
            })
        };
        let threads: Vec<_> = (1..=options.threads.get()).map(start).collect();
        threads.into_iter().map(|thread| thread.join().expect("a thread panicked")).collect()
    });
    let mut snapshots = Vec::new();
    for result in results {
        let (taken, timed) = result?;
        snapshots.extend(taken);
        calls.0.extend(timed.0);
    }
    Ok(snapshots)
}

/// One thread's part: a view, and what it and the snapshots taken of it must hold.
struct Worker<'a> {
    stage: &'a Stage,
    view: CowView<'a>,
    address: *const u8,
    /// What the view must show now, and what it showed when it was last captured or restored.
    shown: Model<'a>,
    synced: Model<'a>,
    snapshots: Vec<(Snapshot, Model<'a>)>,
    rng: Xoshiro256PlusPlus,
    calls: Calls,
}

impl<'a> Worker<'a> {
    /// The steps of a round.
    const STEPS: [(&'static str, fn(&mut Self) -> Result<()>); 5] = [
        ("take_snapshot", Self::take_snapshot),
        ("restore_to", Self::restore_to),
        ("restore", Self::restore),
        ("view of a snapshot", Self::view_of_snapshot),
        ("restore_to", Self::restore_to),
    ];

    fn run(stage: &'a Stage, rng: Xoshiro256PlusPlus, rounds: usize) -> Result<(Vec<Snapshot>, Calls)> {
        let mut calls = Calls::default();
        stage.root.view()?;
        let view = calls.time(Operation::View, 0, || stage.root.view())?;
        ensure!(view.content().len() == stage.original.len, "the view has another length than the image");
        let shown = Model::new(&stage.original);
        let mut worker = Self {
            stage,
            address: view.as_ptr(),
            view,
            synced: shown.clone(),
            shown,
            snapshots: Vec::new(),
            rng,
            calls,
        };
        let before_warm_up = worker.calls.clone();
        worker.round().context("warm-up")?;
        worker.calls = before_warm_up;
        for round in 1..=rounds {
            worker.round().with_context(|| format!("round {round}"))?;
        }
        Ok((worker.snapshots.into_iter().map(|(snapshot, _)| snapshot).collect(), worker.calls))
    }

    fn round(&mut self) -> Result<()> {
        for (name, step) in Self::STEPS {
            let _turn = self.stage.turns.wait();
            if self.stage.failed.load(Ordering::Relaxed) {
                return Ok(());
            }
            step(self).context(name)?;
            self.stage.progress.inc(1);
        }
        Ok(())
    }

    fn take_snapshot(&mut self) -> Result<()> {
        edit(&mut self.view, &mut self.shown, &mut self.rng);
        let changed = self.shown.differing(&self.synced);
        check_pages("changes()", &self.view.changes()?, &changed)?;
        let snapshot =
            self.calls.time(Operation::TakeSnapshot, changed.len(), || self.view.take_snapshot())?;
        self.synced = self.shown.clone();
        self.check_view()?;

        if let Some((other, model)) = self.snapshots.choose(&mut self.rng) {
            let expected = model.differing(&self.shown);
            let found = self.calls.time(Operation::Diff, expected.len(), || other.diff(&snapshot))?;
            check_pages("diff()", &found, &expected)?;
        }
        if self.snapshots.len() > 1 && self.rng.random_ratio(1, 4) {
            self.snapshots.swap_remove(self.rng.random_range(0..self.snapshots.len()));
        }
        self.snapshots.push((snapshot, self.shown.clone()));
        Ok(())
    }

    fn restore(&mut self) -> Result<()> {
        edit(&mut self.view, &mut self.shown, &mut self.rng);
        let root = Model::new(self.shown.original);
        let moved = self.shown.differing(&root).len();
        self.calls.time(Operation::Restore, moved, || self.view.restore())?;
        self.now_shows(root)
    }

    /// Has the view show one of the snapshots, half of the times with edits not captured by any.
    fn restore_to(&mut self) -> Result<()> {
        if self.rng.random() {
            edit(&mut self.view, &mut self.shown, &mut self.rng);
        }
        let (snapshot, model) = self.snapshots.choose(&mut self.rng).context("no snapshot was taken")?;
        let moved = self.shown.differing(model).len();
        let clone = self.calls.time(Operation::TryClone, 0, || snapshot.try_clone())?;
        self.calls.time(Operation::RestoreTo, moved, || self.view.restore_to(&clone))?;
        self.now_shows(model.clone())
    }

    /// Opens another view of one of the snapshots, while this thread's shows something else.
    fn view_of_snapshot(&mut self) -> Result<()> {
        let (snapshot, model) = self.snapshots.choose(&mut self.rng).context("no snapshot was taken")?;
        let brought_in = model.differing(&Model::new(model.original)).len();
        let view = self.calls.time(Operation::ViewOfSnapshot, brought_in, || snapshot.view())?;
        check_bytes(&view, model)
    }

    fn now_shows(&mut self, model: Model<'a>) -> Result<()> {
        self.synced = model.clone();
        self.shown = model;
        self.check_view()
    }

    /// Checks the view after a call that left nothing to capture.
    fn check_view(&self) -> Result<()> {
        ensure!(self.view.as_ptr() == self.address, "the view has moved");
        check_bytes(&self.view, &self.shown)?;
        check_pages("changes()", &self.view.changes()?, &BTreeSet::new())
    }
}

/// Edits random pages, in the view and in the model of what it shows.
fn edit(view: &mut [u8], model: &mut Model, rng: &mut Xoshiro256PlusPlus) {
    let pages = model.original.pages();
    match rng.random_range(0..8) {
        0 => edit_page(view, model, rng.random_range(0..pages), rng),
        1 => {
            let run = pages.min(1000);
            let start = rng.random_range(0..=pages - run);
            (start..start + run).for_each(|page| edit_page(view, model, page, rng));
        }
        _ => {
            let count = pages.div_ceil(16).min(256);
            (0..count).for_each(|_| edit_page(view, model, rng.random_range(0..pages), rng));
        }
    }
}

/// Writes up to 64 random bytes anywhere in a page; now and then those that are there already, which is
/// no change.
fn edit_page(view: &mut [u8], model: &mut Model, page: usize, rng: &mut Xoshiro256PlusPlus) {
    let buffer = &mut [0; 64];
    let bytes = &mut buffer[..rng.random_range(1..=64)];
    let offset = rng.random_range(0..=page_size() - bytes.len());
    if rng.random_ratio(1, 16) {
        bytes.copy_from_slice(&model.page(page)[offset..][..bytes.len()]);
    } else {
        rng.fill_bytes(bytes);
    }
    view[page * page_size() + offset..][..bytes.len()].copy_from_slice(bytes);
    model.write(page, offset, bytes);
}

/// Makes the first snapshot, several times over.
fn make_root(original: &Original, calls: &mut Calls) -> Result<Snapshot> {
    let make = || Snapshot::from_slice(&original.bytes[..original.len]);
    drop(make()?);
    for _ in 0..2 {
        calls.time(Operation::MakeImage, original.pages(), make)?;
    }
    Ok(calls.time(Operation::MakeImage, original.pages(), make)?)
}

/// What is written through a mutable view has to show in its snapshot, and in no other.
fn edit_a_clone(original: &Original, root: &Snapshot, seed: u64) -> Result<()> {
    let mut clone = root.clone();
    let mut model = Model::new(original);
    let mut view = clone.view_mut()?;
    edit(&mut view, &mut model, &mut Xoshiro256PlusPlus::seed_from_u64(seed));
    view.commit()?;
    check_bytes(&clone.view()?, &model)?;
    check_pages("diff()", &root.diff(&clone)?, &model.differing(&Model::new(original)))
}

/// Times copies of `bytes` into memory that is there already.
fn time_plain_copies(bytes: &[u8]) -> Vec<Duration> {
    let mut buffer = bytes.to_vec();
    let copy = |_| {
        let start = Instant::now();
        black_box(&mut buffer).copy_from_slice(black_box(bytes));
        start.elapsed()
    };
    (0..9).map(copy).collect()
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Operation {
    MakeImage,
    View,
    ViewOfSnapshot,
    TakeSnapshot,
    Restore,
    RestoreTo,
    Diff,
    TryClone,
}

impl Operation {
    fn name(self) -> &'static str {
        match self {
            Self::MakeImage => "make the image",
            Self::View => "view",
            Self::ViewOfSnapshot => "view of a snapshot taken",
            Self::TakeSnapshot => "take_snapshot",
            Self::Restore => "restore",
            Self::RestoreTo => "restore_to",
            Self::Diff => "diff",
            Self::TryClone => "try_clone",
        }
    }
}

/// Timed calls: what, how many pages it was about, and how long it took.
#[derive(Clone, Default)]
struct Calls(Vec<(Operation, usize, Duration)>);

impl Calls {
    fn time<T>(&mut self, operation: Operation, pages: usize, call: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = call();
        self.0.push((operation, pages, start.elapsed()));
        result
    }

    fn table(&self, copy: Duration) -> Table {
        let mut calls: BTreeMap<Operation, Vec<(usize, Duration)>> = BTreeMap::new();
        for &(operation, pages, time) in &self.0 {
            calls.entry(operation).or_default().push((pages, time));
        }
        let mut table = Table::new();
        table.load_style(presets::UTF8_HORIZONTAL_ONLY).set_header([
            "operation",
            "calls",
            "pages changed\n(mean)",
            "time\n(median)",
            "time\n(p99)",
            "plain copy of\nall bytes",
            "copy / operation\n(ratio measured\nin this run)",
        ]);
        for (operation, calls) in calls {
            let (pages, times): (Vec<_>, Vec<_>) = calls.into_iter().unzip();
            let median = percentile(times.clone(), 50);
            table.add_row([
                operation.name().to_owned(),
                times.len().to_string(),
                (pages.iter().sum::<usize>() / pages.len()).to_string(),
                format!("{median:.1?}"),
                format!("{:.1?}", percentile(times, 99)),
                format!("{copy:.1?}"),
                three_digits(copy.as_secs_f64() / median.as_secs_f64()),
            ]);
        }
        table.column_iter_mut().skip(1).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
        table
    }
}

fn percentile(mut times: Vec<Duration>, percent: usize) -> Duration {
    times.sort_unstable();
    times[(times.len() * percent).div_ceil(100) - 1]
}

fn three_digits(ratio: f64) -> String {
    let decimals = if ratio < 1.0 {
        3
    } else if ratio < 10.0 {
        2
    } else if ratio < 100.0 {
        1
    } else {
        0
    };
    format!("{ratio:.decimals$}")
}

/// What all snapshots hold together, and what copies would.
fn memory_report(root: &Snapshot, taken: &[Snapshot]) -> String {
    let bytes = |len: usize| ByteSize(len as u64);
    let stats = root.stats();
    let flat = stats.flat + taken.iter().map(|snapshot| snapshot.stats().flat).sum::<u64>();
    let store = bytes(stats.store.live) + bytes(stats.store.recyclable);
    let together = ByteSize(stats.base + flat) + store;
    let copies = ByteSize(root.content_len() as u64 * (1 + taken.len() as u64));
    let mut table = Table::new();
    table
        .load_style(presets::UTF8_HORIZONTAL_ONLY)
        .set_header([format!("memory of {} snapshots", 1 + taken.len()), "bytes".to_owned()]);
    for (name, size) in [
        ("base: the image, held once by all", ByteSize(stats.base)),
        ("store, live: captured pages that a snapshot shows", bytes(stats.store.live)),
        ("store, recyclable: kept for the next capture", bytes(stats.store.recyclable)),
        ("flat: pages copied for views to map, of all snapshots", ByteSize(flat)),
        ("together", together),
        ("a full copy for each snapshot", copies),
    ] {
        table.add_row([name.to_owned(), size.to_string()]);
    }
    let ratio = copies.as_u64() as f64 / together.as_u64() as f64;
    table.add_row(["copies / together".to_owned(), three_digits(ratio)]);
    table.column_iter_mut().skip(1).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
    table.to_string()
}
