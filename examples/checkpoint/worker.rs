//! The threads. Each edits, snapshots and restores a view of its own, and verifies every step.

use std::num::NonZero;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex};
use std::thread;

use anyhow::{Context, Result, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use memsnap::{CowView, Snapshot};
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;

use crate::Options;
use crate::model::{Model, Original, check_bytes, check_pages, edit};
use crate::report::{Calls, Operation};

/// The state that all threads share.
struct Stage<'a> {
    original: &'a Original,
    root: &'a Snapshot,
    progress: &'a ProgressBar,
    turns: Turns,
    failed: AtomicBool,
}

/// Runs all threads to their end. Returns the number of steps, and the snapshots that the threads still have.
pub(crate) fn run_all(
    options: &Options,
    original: &Original,
    root: &Snapshot,
    progress: &ProgressBar,
    calls: &mut Calls,
) -> Result<(usize, Vec<Snapshot>)> {
    let rounds = options.rounds.get();
    let steps = options.threads.get() * (1 + rounds) * Worker::STEPS.len();
    progress.set_length(steps as u64);
    progress.set_style(ProgressStyle::with_template("{bar:40} {pos}/{len} steps verified, {eta} to go")?);

    let stage = Stage { original, root, progress, turns: Turns::new(), failed: AtomicBool::new(false) };
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(options.seed);
    let results: Vec<_> = thread::scope(|scope| {
        let start = |number| {
            rng.jump();
            let (stage, rng) = (&stage, rng.clone());
            scope.spawn(move || {
                let result = Worker::new(stage, rng).and_then(|worker| worker.run(rounds));
                stage.failed.fetch_or(result.is_err(), Ordering::Relaxed);
                result.with_context(|| format!("thread {number}"))
            })
        };
        let threads: Vec<_> = (1..=options.threads.get()).map(start).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic in a thread")).collect()
    });
    let mut snapshots = Vec::new();
    for result in results {
        let (timed, taken) = result?;
        calls.extend(timed);
        snapshots.extend(taken);
    }
    Ok((steps, snapshots))
}

pub(crate) fn cores() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}

/// Lets as many threads work at a time as there are cores, in the order of their requests.
struct Turns {
    cores: usize,
    /// The number of turns that were requested, and the number of those that are over.
    count: Mutex<(usize, usize)>,
    over: Condvar,
}

struct Turn<'a>(&'a Turns);

impl Turns {
    fn new() -> Self {
        Self { cores: cores(), count: Mutex::default(), over: Condvar::new() }
    }

    fn wait(&self) -> Turn<'_> {
        let mut count = self.count.lock().expect("no panic while counting");
        let number = count.0;
        count.0 += 1;
        let waiting = |count: &mut (usize, usize)| number >= count.1 + self.cores;
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

/// The work of one thread: a view, snapshots taken of it, and the bytes that they must have.
struct Worker<'a> {
    stage: &'a Stage<'a>,
    view: CowView<'a>,
    address: *const u8,
    /// The bytes that the view must show now.
    shown: Model<'a>,
    /// The bytes that the view showed after its last snapshot or restore.
    synced: Model<'a>,
    snapshots: Vec<(Snapshot, Model<'a>)>,
    rng: Xoshiro256PlusPlus,
    calls: Calls,
}

/// The name of a step, and the function that does and verifies it.
type Step<'a> = (&'static str, fn(&mut Worker<'a>) -> Result<()>);

impl<'a> Worker<'a> {
    /// The steps of a round, in this order.
    const STEPS: [Step<'a>; 6] = [
        ("edit", Self::edit),
        ("take_snapshot", Self::take_snapshot),
        ("restore_to", Self::restore_to),
        ("restore", Self::restore),
        ("view of a snapshot", Self::view_of_snapshot),
        ("restore_to", Self::restore_to),
    ];

    fn new(stage: &'a Stage<'a>, rng: Xoshiro256PlusPlus) -> Result<Self> {
        let mut calls = Calls::default();
        stage.root.view()?; // Warms up.
        let view = calls.time(Operation::View, 0, || stage.root.view())?;
        let address = view.as_ptr();
        let shown = Model::new(stage.original);
        let synced = shown.clone();
        Ok(Self { stage, view, address, shown, synced, snapshots: Vec::new(), rng, calls })
    }

    fn run(mut self, rounds: usize) -> Result<(Calls, Vec<Snapshot>)> {
        let counted = self.calls.clone();
        self.round().context("warm-up")?;
        self.calls = counted;
        for round in 1..=rounds {
            self.round().with_context(|| format!("round {round}"))?;
        }
        Ok((self.calls, self.snapshots.into_iter().map(|(snapshot, _)| snapshot).collect()))
    }

    fn round(&mut self) -> Result<()> {
        for (name, step) in Self::STEPS {
            let _turn = self.stage.turns.wait();
            if self.stage.failed.load(Ordering::Relaxed) {
                break;
            }
            step(self).context(name)?;
            self.stage.progress.inc(1);
        }
        Ok(())
    }

    fn edit(&mut self) -> Result<()> {
        edit(&mut self.view, &mut self.shown, &mut self.rng);
        self.check_changes()
    }

    fn take_snapshot(&mut self) -> Result<()> {
        let changed = self.shown.differing(&self.synced).len();
        let snapshot = self.calls.time(Operation::TakeSnapshot, changed, || self.view.take_snapshot())?;
        self.now_shows(self.shown.clone())?;

        if let Some((earlier, model)) = self.snapshots.choose(&mut self.rng) {
            let differing = model.differing(&self.shown);
            let found = self.calls.time(Operation::Diff, differing.len(), || earlier.diff(&snapshot))?;
            check_pages("diff()", &found.ranges(), &differing)?;
        }
        if self.snapshots.len() > 1 && self.rng.random_ratio(1, 4) {
            self.snapshots.swap_remove(self.rng.random_range(0..self.snapshots.len()));
        }
        self.snapshots.push((snapshot, self.shown.clone()));
        Ok(())
    }

    /// Edits the view, and drops these edits by a restore.
    fn restore(&mut self) -> Result<()> {
        edit(&mut self.view, &mut self.shown, &mut self.rng);
        let root = Model::new(self.stage.original);
        let changed = self.shown.differing(&root).len();
        self.calls.time(Operation::Restore, changed, || self.view.restore())?;
        self.now_shows(root)
    }

    /// Restores the view to any of the snapshots. Half of the time, this drops new edits.
    fn restore_to(&mut self) -> Result<()> {
        if self.rng.random() {
            edit(&mut self.view, &mut self.shown, &mut self.rng);
        }
        let (snapshot, model) = self.snapshots.choose(&mut self.rng).context("no snapshot was taken")?;
        let changed = self.shown.differing(model).len();
        let clone = self.calls.time(Operation::TryClone, 0, || snapshot.try_clone())?;
        self.calls.time(Operation::RestoreTo, changed, || self.view.restore_to(&clone))?;
        self.now_shows(model.clone())
    }

    /// Opens another view of any of the snapshots.
    fn view_of_snapshot(&mut self) -> Result<()> {
        let (snapshot, model) = self.snapshots.choose(&mut self.rng).context("no snapshot was taken")?;
        let changed = model.differing(&Model::new(self.stage.original)).len();
        let view = self.calls.time(Operation::ViewOfSnapshot, changed, || snapshot.view())?;
        check_bytes(&view, model)
    }

    fn now_shows(&mut self, model: Model<'a>) -> Result<()> {
        self.synced = model.clone();
        self.shown = model;
        self.check_view()
    }

    fn check_view(&self) -> Result<()> {
        ensure!(self.view.as_ptr() == self.address, "the view has moved");
        let (found, expected) = (self.view.content().len(), self.stage.original.content().len());
        ensure!(found == expected, "the view shows {found} bytes instead of {expected}");
        check_bytes(&self.view, &self.shown)?;
        self.check_changes()
    }

    fn check_changes(&self) -> Result<()> {
        check_pages("changes()", &self.view.changes()?.ranges(), &self.shown.differing(&self.synced))
    }
}
