//! Two threads, each with a region of its own, compared with one thread.
//!
//! Each measurement opens new regions and warms them up, in as many threads as it measures. Measurements of one and of
//! two threads take turns.

use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use memsnap::Snapshot;

use super::{Images, Scale};
use crate::case::{Case, MIB, size};
use crate::competitor::{
    Competitor, Crumbles, Limit, Memmap2, Memsnap, Memsnap01, MemsnapLogged, Operation, Private, Region,
    SystemCalls, Wasmtime,
};
use crate::image::{Image, map_private};
use crate::pages::{Change, WorkingSet, page, random_changes, read_all, rng, write};
use crate::results::{LIMIT, Metric, OLD, ONE_CALL, Results, SUBJECT, SYSTEM_CALLS, Samples};

const ONE: Metric = Metric { name: "one thread", unit: "1/s" };
pub(crate) const TWO: Metric = Metric { name: "two threads", unit: "1/s" };
pub(crate) const GAIN: Metric = Metric { name: "two threads / one", unit: "x" };

const NAME: &str = "threads";

/// The operations of a thread in each loop, on one region.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    Take,
    /// Takes a snapshot, writes every second page again, restores the region to the snapshot and then to the image.
    TakeAndReturn,
    Restore,
    TakeAndRestore,
}

/// A loop, and the bar for the loops of two threads divided by those of one.
pub(crate) struct Row {
    bytes: usize,
    changed: usize,
    pub(crate) working_set: WorkingSet,
    work: Work,
    pub(crate) bar: f64,
}

pub(crate) const ROWS: [Row; 6] = [
    Row::recurring(Work::Take, 1.6),
    Row::recurring(Work::TakeAndReturn, 1.6),
    Row::recurring(Work::Restore, 1.8),
    Row::moving(64 * MIB, 128, Work::TakeAndRestore, 1.3),
    Row::moving(MIB, 16, Work::Restore, 1.2),
    Row::moving(MIB, 16, Work::TakeAndRestore, 1.2),
];

impl Row {
    const fn recurring(work: Work, bar: f64) -> Self {
        Self { bytes: 64 * MIB, changed: 128, working_set: WorkingSet::Recurring, work, bar }
    }

    const fn moving(bytes: usize, changed: usize, work: Work, bar: f64) -> Self {
        Self { bytes, changed, working_set: WorkingSet::Moving, work, bar }
    }

    pub(crate) fn case(&self) -> Case {
        let variant = match self.work {
            Work::Take => "write + take",
            Work::TakeAndReturn => "write + take + write half + restore_to + restore",
            Work::Restore => "write + restore",
            Work::TakeAndRestore => "write + take + restore",
        };
        let case = Case::base(NAME).bytes(self.bytes).changed(self.changed).variant(variant);
        Case { working_set: Some(self.working_set), ..case }
    }

    /// Returns the two lines of the label in a plot.
    pub(crate) fn label(&self) -> [String; 2] {
        let work = match self.work {
            Work::Take => "take",
            Work::TakeAndReturn => "take + restore_to + restore",
            Work::Restore => "restore",
            Work::TakeAndRestore => "take + restore",
        };
        let Self { bytes, changed, working_set, .. } = self;
        [work.to_owned(), format!("{}, {changed} {working_set}", size(*bytes))]
    }
}

/// Returns the case in which each loop opens a new view, or restores a view that is kept.
pub(crate) fn opening() -> Case {
    Case::base(NAME).bytes(MIB).changed(16).sparse().moving().variant("open + write + drop")
}

/// The contender that restores a kept view, instead of opening and dropping one.
pub(crate) const RESTORED: &str = "memsnap, view kept: restore";
/// The contender that restores a kept view to a snapshot and to its child in turn.
pub(crate) const SWITCHED: &str = "memsnap, view kept: restore_to";

/// The contenders that are measured more often than others, and the only ones with `--quick`.
const IN_BARS: [&str; 6] = [SUBJECT, RESTORED, SWITCHED, LIMIT, SYSTEM_CALLS, ONE_CALL];

pub(crate) fn run(scale: Scale, results: &mut Results) -> Result<()> {
    let mut images = Images::default();
    for row in ROWS {
        let image = images.get(row.bytes)?;
        loops(&row, image, scale, results)?;
    }
    views(images.get(opening().bytes)?, scale, results)
}

/// The changes that one loop writes.
struct Turn {
    changes: Vec<Change>,
    ascending: Vec<Change>,
    /// Every second change of `ascending`.
    half: Vec<Change>,
}

impl Turn {
    fn new(changes: Vec<Change>) -> Self {
        let mut ascending = changes.clone();
        ascending.sort_by_key(|change| change.page);
        let half = ascending.iter().copied().step_by(2).collect();
        Self { changes, ascending, half }
    }

    /// Returns the turns that a thread repeats.
    ///
    /// Recurring pages need one turn. Moving pages need many, so that each turn writes pages that were not written
    /// recently.
    fn all(case: &Case, thread: usize) -> Vec<Self> {
        let mut rng = rng(99 + thread);
        let count = if case.working_set == Some(WorkingSet::Moving) { 16_384 / case.changed } else { 1 };
        (0..count).map(|_| Self::new(random_changes(case.pages(), case.changed, &mut rng))).collect()
    }

    /// Copies the pages of `region` that this turn writes.
    fn pages(&self, region: &[u8]) -> Vec<Vec<u8>> {
        self.changes.iter().map(|change| page(region, change.page).to_vec()).collect()
    }
}

/// A function that runs one loop with a turn and a value, which must differ from all earlier values.
type Loop<'a> = Box<dyn FnMut(&Turn, u64) -> Result<()> + 'a>;

/// A function that opens a region, checks it with a turn, and returns the loop on it.
type Begin<'a> = dyn Fn(&Turn) -> Result<Loop<'a>> + Sync + 'a;

/// A competitor in this workload. In each measurement, each thread calls `begin` once.
struct Contender<'a> {
    name: &'static str,
    begin: Box<Begin<'a>>,
}

impl<'a> Contender<'a> {
    fn new(name: &'static str, begin: impl Fn(&Turn) -> Result<Loop<'a>> + Sync + 'a) -> Self {
        Self { name, begin: Box::new(begin) }
    }

    /// Returns a contender that keeps nothing between loops.
    fn stateless(name: &'static str, work: impl Fn(&Turn, u64) -> Result<()> + Sync + Copy + 'a) -> Self {
        Self::new(name, move |_| Ok(Box::new(work)))
    }
}

/// Measures the loop of a row for all competitors.
fn loops(row: &Row, image: &Image, scale: Scale, results: &mut Results) -> Result<()> {
    let (case, work) = (row.case(), row.work);
    let snapshot = Some(Arc::new(Snapshot::from_slice(image.bytes())?));
    let competitors: [Box<dyn Competitor>; 9] = [
        Box::new(Memsnap { snapshot: snapshot.clone(), compares: false }),
        Box::new(MemsnapLogged { snapshot }),
        Box::new(Limit::WithEntries),
        Box::new(SystemCalls::CallEach),
        Box::new(SystemCalls::OneCall),
        Box::new(Memsnap01),
        Box::new(Wasmtime::keeping_all()),
        Box::new(Memmap2),
        Box::new(Crumbles),
    ];
    let mut contenders = Vec::new();
    for competitor in &competitors {
        let take = Operation::Take { kept: 1 };
        let operation = if work == Work::Restore { Operation::Restore } else { take };
        let obstacle = competitor.obstacle(&case, operation);
        if let Some(obstacle) = obstacle {
            results.skip(&case, competitor.name(), obstacle);
            continue;
        }
        let case = &case;
        contenders.push(Contender::new(competitor.name(), move |turn| {
            let mut region = competitor.open(image, case)?;
            read_all(region.bytes());
            check(region.as_mut(), work, turn)?;
            Ok(Box::new(move |turn, value| go_round(region.as_mut(), work, turn, value)))
        }));
    }
    measure(&case, contenders, scale, results)
}

/// Runs one loop.
fn go_round(region: &mut dyn Region, work: Work, turn: &Turn, value: u64) -> Result<()> {
    region.write(&turn.changes, value);
    if work == Work::Restore {
        return region.restore(&turn.ascending);
    }
    let taken = region.take(&turn.ascending)?;
    if work == Work::TakeAndReturn {
        region.write(&turn.half, !value);
        region.restore_to(&taken, &turn.half)?;
    }
    drop(taken);
    if work == Work::Take { Ok(()) } else { region.restore(&turn.ascending) }
}

/// Runs one loop, and checks that the region is restored.
fn check(region: &mut dyn Region, work: Work, turn: &Turn) -> Result<()> {
    let image = turn.pages(region.bytes());
    if work == Work::TakeAndReturn {
        region.write(&turn.changes, u64::MAX);
        let written = turn.pages(region.bytes());
        let taken = region.take(&turn.ascending)?;
        region.write(&turn.half, 0);
        region.restore_to(&taken, &turn.half)?;
        ensure!(turn.pages(region.bytes()) == written, "the region was not restored to the snapshot");
        region.restore(&turn.ascending)?;
    } else {
        go_round(region, work, turn, u64::MAX)?;
    }
    let restored = work == Work::Take || turn.pages(region.bytes()) == image;
    ensure!(restored, "the region was not restored");
    Ok(())
}

/// Measures views that are opened and dropped in each loop, and views that are kept.
fn views(image: &Image, scale: Scale, results: &mut Results) -> Result<()> {
    let case = opening();
    let root = &Snapshot::from_slice(image.bytes())?;
    let child = &child(&case, root)?;
    let old = &memsnap_0_1::Snapshot::from_file(image.file.try_clone()?)?;
    let contenders = vec![
        Contender::stateless(SUBJECT, |turn, value| {
            write(&mut root.view()?, &turn.changes, value);
            Ok(())
        }),
        Contender::new(RESTORED, |_| {
            let mut view = root.view()?;
            Ok(Box::new(move |turn, value| {
                write(&mut view, &turn.changes, value);
                Ok(view.restore()?)
            }))
        }),
        Contender::new(SWITCHED, |_| {
            let mut view = root.view()?;
            Ok(Box::new(move |turn, value| {
                write(&mut view, &turn.changes, value);
                Ok(view.restore_to(if value % 2 == 0 { root } else { child })?)
            }))
        }),
        Contender::stateless(SYSTEM_CALLS, |turn, value| {
            write(Private::map(image)?.bytes(), &turn.changes, value);
            Ok(())
        }),
        Contender::stateless(OLD, |turn, value| {
            write(old.view()?.as_mut_slice(), &turn.changes, value);
            Ok(())
        }),
        Contender::stateless("memmap2", |turn, value| {
            write(&mut map_private(&image.file)?, &turn.changes, value);
            Ok(())
        }),
    ];
    measure(&case, contenders, scale, results)
}

/// Takes a snapshot that differs from `root` in as many pages as a loop writes.
fn child(case: &Case, root: &Snapshot) -> Result<Snapshot> {
    let mut view = root.view()?;
    write(&mut view, &random_changes(case.pages(), case.changed, &mut rng(case.changed)), 1);
    Ok(view.take_snapshot()?)
}

/// The lengths of the warm-up and of the measurement.
struct Spans {
    warm_up: Duration,
    /// The most loops of the warm-up. After these, the region is in a steady state.
    settled: usize,
    measured: Duration,
}

impl Spans {
    fn new(case: &Case, in_bars: bool, scale: Scale) -> Self {
        // With moving pages, these loops write most pages of the region at least once.
        let moving = case.working_set == Some(WorkingSet::Moving);
        let settled = if moving { 2 * case.pages() / case.changed } else { 0 };
        let warm_up = scale.pick(40, if in_bars { 400 } else { 100 });
        let measured = Duration::from_millis(scale.pick(60, 200));
        Self { warm_up: Duration::from_millis(warm_up), settled: settled.max(40), measured }
    }
}

/// Measures each contender with one thread and with two threads in turn.
fn measure(
    case: &Case,
    mut contenders: Vec<Contender<'_>>,
    scale: Scale,
    results: &mut Results,
) -> Result<()> {
    eprintln!("{case}");
    let in_bars = |contender: &Contender<'_>| IN_BARS.contains(&contender.name);
    if scale.quick {
        contenders.retain(in_bars);
        results.skip(case, "competitors that no bar names", "takes too long for --quick");
    }
    let mut samples = Samples::default();
    for round in 0..scale.pick(2, 5) {
        for contender in contenders.iter().filter(|contender| round < 3 || in_bars(contender)) {
            let spans = Spans::new(case, in_bars(contender), scale);
            let measure = |threads| {
                throughput(case, contender, threads, &spans)
                    .with_context(|| format!("{case}: {}, {threads} threads", contender.name))
            };
            let (one, two) = (measure(1)?, measure(2)?);
            samples.record(case, contender.name, ONE, one);
            samples.record(case, contender.name, TWO, two);
            samples.record(case, contender.name, GAIN, two / one);
        }
    }
    samples.add_to(results);
    Ok(())
}

/// Measures the loops a second of all threads together.
fn throughput(case: &Case, contender: &Contender<'_>, threads: usize, spans: &Spans) -> Result<f64> {
    let barrier = Barrier::new(threads);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..threads)
            .map(|thread| {
                let barrier = &barrier;
                scope.spawn(move || work(&Turn::all(case, thread), contender, barrier, spans))
            })
            .collect();
        let rates = threads
            .into_iter()
            .map(|thread| thread.join().map_err(|_| anyhow!("a thread panicked")).flatten());
        rates.sum()
    })
}

/// Measures the loops a second of this thread.
fn work(turns: &[Turn], contender: &Contender<'_>, barrier: &Barrier, spans: &Spans) -> Result<f64> {
    let mut turns = turns.iter().cycle().zip(1..);
    let begun = turns.next().context("no turn").and_then(|(turn, _)| (contender.begin)(turn));
    // Waits even after an error, because otherwise the other thread would wait forever.
    barrier.wait();
    let warm = begun.and_then(|mut looped| {
        go_on(&mut looped, &mut turns, spans.warm_up, spans.settled)?;
        Ok(looped)
    });
    barrier.wait();
    go_on(&mut warm?, &mut turns, spans.measured, usize::MAX)
}

/// Runs loops until `time` has passed, but at most `most` loops. Returns the loops a second.
fn go_on<'t>(
    looped: &mut Loop<'_>,
    turns: &mut impl Iterator<Item = (&'t Turn, u64)>,
    time: Duration,
    most: usize,
) -> Result<f64> {
    let start = Instant::now();
    let mut loops = 0;
    for (turn, value) in turns.take(most) {
        looped(turn, value)?;
        loops += 1;
        if start.elapsed() >= time {
            break;
        }
    }
    Ok(f64::from(loops) / start.elapsed().as_secs_f64())
}
