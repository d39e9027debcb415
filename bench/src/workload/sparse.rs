//! An armed view of 64 GiB with 256 MiB in use, compared with an armed view of 1 GiB with as much in use.
//!
//! The memory in use is 64 runs of 4 MiB, one in each 64th of the view. It resembles a program whose heaps, stacks and
//! tables are scattered over its address space.
#![allow(unsafe_code)]

use std::{fs, io};

use anyhow::{Context, Result, ensure};
use memmap2::MmapOptions;
use memsnap::{OwnedView, Snapshot, Tracking, ViewOptions, page_size};
use rand::RngExt;

use super::Scale;
use crate::case::{Case, GIB, MIB};
use crate::harness::{nanoseconds, time};
use crate::image::memory_file;
use crate::pages::{Change, Changes, Pattern, WorkingSet, rng, write};
use crate::results::{Metric, Results, SUBJECT, SYSTEM_CALLS, Samples};
use crate::system::kib;

/// The growth of the kernel page tables of the process.
pub(crate) const PAGE_TABLES: Metric = Metric { name: "page tables", unit: "bytes" };
pub(crate) const TAKE: Metric = Metric::nanoseconds("take");
const WITH_WRITES: Metric = Metric::nanoseconds("writes + take");

pub(crate) const LARGE: usize = 64 * GIB;
pub(crate) const SMALL: usize = GIB;

const RUNS: usize = 64;
const RUN: usize = 4 * MIB;
const CHANGED: usize = 2000;

/// Counted snapshots in a row. In `takes`, one more snapshot comes first and is not counted.
const IN_A_ROW: usize = 10;

pub(crate) fn case(bytes: usize, working_set: WorkingSet) -> Case {
    let case = Case::of_size("sparse", bytes, "256 MiB in use, armed");
    Case { working_set: Some(working_set), pattern: Some(Pattern::Random), changed: CHANGED, ..case }
}

pub(crate) fn run(scale: Scale, results: &mut Results) -> Result<()> {
    if let Err(error) = open(SMALL) {
        results.skip(&case(LARGE, WorkingSet::Recurring), "all", &error.to_string());
        return Ok(());
    }
    for bytes in [LARGE, SMALL] {
        let case = case(bytes, WorkingSet::Recurring);
        eprintln!("{case}: page tables");
        results.add(&case, SUBJECT, PAGE_TABLES, &[tables(bytes)?]);
        results.add(&case, SYSTEM_CALLS, PAGE_TABLES, &[bare_tables(bytes)?]);
    }
    let mut samples = Samples::default();
    let mut workers = [Worker::new(LARGE)?, Worker::new(SMALL)?];
    for working_set in [WorkingSet::Recurring, WorkingSet::Moving] {
        eprintln!("{}", case(LARGE, working_set));
        takes(&mut workers, working_set, scale, &mut samples)?;
    }
    samples.add_to(results);
    Ok(())
}

/// Opens an armed view of zeroes. Fails if this system cannot write-protect pages.
fn open(bytes: usize) -> io::Result<OwnedView> {
    Snapshot::zeroed(bytes)?.into_view_with(ViewOptions::new().tracking(Tracking::Armed))
}

/// Chooses the pages that are to be in use, in a view of `bytes` bytes.
fn in_use(bytes: usize) -> Vec<usize> {
    let mut rng = rng(bytes);
    let (part, run) = (bytes / RUNS / page_size(), RUN / page_size());
    let starts = (0..RUNS).map(|number| number * part + rng.random_range(0..=part - run));
    starts.flat_map(|start| start..start + run).collect()
}

/// Writes to each page that is to be in use.
fn fill(region: &mut [u8], in_use: &[usize]) {
    let changes: Vec<_> = in_use.iter().map(|&page| Change::first_word(page)).collect();
    write(region, &changes, u64::MAX);
}

/// Measures the growth of the kernel page tables for a view of which snapshots are taken.
fn tables(bytes: usize) -> Result<f64> {
    let before = page_tables()?;
    let mut worker = Worker::new(bytes)?;
    for _ in 0..IN_A_ROW {
        worker.go_on(&mut |_, _| {})?;
    }
    Ok(page_tables()? as f64 - before as f64)
}

/// Measures the growth of the kernel page tables for a private mapping with the same pages in use.
fn bare_tables(bytes: usize) -> Result<f64> {
    let file = memory_file()?;
    file.set_len(bytes as u64)?;
    let before = page_tables()?;
    // SAFETY: nothing else uses the file.
    let mut map = unsafe { MmapOptions::new().no_reserve_swap().map_copy(&file) }?;
    fill(&mut map, &in_use(bytes));
    Ok(page_tables()? as f64 - before as f64)
}

/// Returns the size of the kernel page tables of this process.
fn page_tables() -> Result<usize> {
    kib(&fs::read_to_string("/proc/self/status")?, "VmPTE:")
}

/// Makes the workers take snapshots in turns, several in a row.
fn takes(workers: &mut [Worker], working_set: WorkingSet, scale: Scale, samples: &mut Samples) -> Result<()> {
    for worker in &mut *workers {
        worker.changes = changes(working_set);
    }
    for row in 0..=scale.pick(2, 20) {
        for worker in &mut *workers {
            let case = case(worker.view.len(), working_set);
            for number in 0..=IN_A_ROW {
                // The first row warms up the views. The first snapshot of each row fills the caches.
                let counts = row > 0 && number > 0;
                worker.go_on(&mut |metric, value| {
                    if counts {
                        samples.record(&case, SUBJECT, metric, value);
                    }
                })?;
            }
        }
    }
    Ok(())
}

/// Makes a generator of changes. Their page numbers are indices into the pages in use.
fn changes(working_set: WorkingSet) -> Changes {
    Changes::new(RUNS * RUN / page_size(), CHANGED, Pattern::Random, working_set)
}

/// A view of which snapshots are taken, and the pages that are in use.
struct Worker {
    view: OwnedView,
    in_use: Vec<usize>,
    changes: Changes,
    value: u64,
    last: Snapshot,
}

impl Worker {
    fn new(bytes: usize) -> Result<Self> {
        let in_use = in_use(bytes);
        let mut view = open(bytes)?;
        fill(&mut view, &in_use);
        let last = view.take_snapshot()?;
        ensure!(view.stats().tracker == Tracking::Armed, "the view is not armed");
        Ok(Self { view, in_use, changes: changes(WorkingSet::Moving), value: 0, last })
    }

    /// Writes the next changes, takes a snapshot, and passes the times to `record`.
    fn go_on(&mut self, record: &mut dyn FnMut(Metric, f64)) -> Result<()> {
        let changes = self.changes.next_round();
        let changes: Vec<_> = changes.into_iter().map(|change| change.on(self.in_use[change.page])).collect();
        self.value += 1;
        let ((), writes) = time(|| write(&mut self.view, &changes, self.value));
        let (taken, pause) = time(|| self.view.take_snapshot());
        self.last = taken.context("taking a snapshot")?;
        record(TAKE, nanoseconds(pause));
        record(WITH_WRITES, nanoseconds(writes + pause));
        Ok(())
    }
}
