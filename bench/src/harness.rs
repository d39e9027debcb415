//! Runs the competitors in turns.
//!
//! In its turn, a competitor runs several rounds in a row, like a program that does the same work repeatedly. One more
//! round comes before them. It is not counted, because the caches then still hold the data of other competitors.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::case::{Case, MIB};
use crate::competitor::{Competitor, Operation, Region, Taken, keep_out_of_children};
use crate::image::Image;
use crate::pages::{Change, page, read_all};
use crate::results::{Metric, Results};
use crate::system;

/// How many rounds are measured, and for how long.
#[derive(Clone, Copy)]
pub(crate) struct Plan {
    /// The most rounds of each competitor.
    pub(crate) rounds: usize,
    /// The fewest rounds of a slow competitor.
    pub(crate) least: usize,
    /// The time that each competitor has for its rounds. A competitor that needs more time runs fewer rounds, but at
    /// least `least`.
    pub(crate) time: Duration,
}

/// Counted rounds in each turn of a competitor.
const RUN: usize = 10;

/// The length of rounds from which the contents of the caches do not matter. Longer rounds are all counted.
const LONG: Duration = Duration::from_millis(20);

/// Rounds before the measured ones, in which competitors reach a steady state.
const WARM_UP: usize = 20;
/// The time after which a competitor runs no more rounds of the warm-up.
const SLOW: Duration = Duration::from_millis(500);

/// The slowest call in the warm-up.
pub(crate) const SETTLING: Metric = Metric::nanoseconds("slowest of the first 20");

/// A competitor, its region, and its measurements.
pub(crate) struct Entry {
    pub(crate) name: &'static str,
    pub(crate) region: Box<dyn Region>,
    pub(crate) taken: VecDeque<Taken>,
    runs: usize,
    spent: Duration,
    /// Whether [`record`](Self::record) keeps values in the current round.
    counts: bool,
    /// The mean time of a round in the warm-up.
    pace: Duration,
    /// The time of the slowest call in the warm-up, in nanoseconds.
    slowest: f64,
    samples: Vec<(Metric, Vec<f64>)>,
}

/// Opens a region of each competitor that supports `operation` and for which enough memory is left.
///
/// The other competitors are listed as skipped in `results`.
pub(crate) fn open(
    case: &Case,
    operation: Operation,
    image: &Image,
    competitors: &[Box<dyn Competitor>],
    results: &mut Results,
) -> Result<Vec<Entry>> {
    let mut left = system::memory_limit()?.saturating_sub(case.bytes);
    let mut entries = Vec::new();
    for competitor in competitors {
        if let Some(obstacle) = competitor.obstacle(case, operation) {
            results.skip(case, competitor.name(), obstacle);
            continue;
        }
        let memory = competitor.memory(case, operation);
        if memory > left {
            let reason = format!("would hold {} MiB, more than the memory that is left", memory / MIB);
            results.skip(case, competitor.name(), &reason);
            continue;
        }
        left -= memory;
        let mut region = competitor.open(image, case).with_context(|| competitor.name())?;
        if case.is_resident() {
            read_all(region.bytes());
        }
        entries.push(Entry::new(competitor.name(), region));
    }
    for entry in entries.iter_mut().filter(|entry| entry.name != "fork") {
        let bytes = entry.region.bytes();
        // SAFETY: the children of the fork competitor use only their stacks and thread-local data, which are not in the
        // region.
        unsafe { keep_out_of_children(bytes.as_mut_ptr(), bytes.len()) }?;
    }
    Ok(entries)
}

/// Runs `step` for all entries in turns, with the same changes for each, and adds the measurements to `results`.
///
/// `fork` runs after all others. A child shares all memory of the process that is not kept out of it, for example the
/// memory in which other competitors keep their snapshots. Each later write to shared memory takes a fault.
pub(crate) fn interleave(
    case: &Case,
    plan: Plan,
    entries: Vec<Entry>,
    results: &mut Results,
    mut step: impl FnMut(&mut Entry, &Round) -> Result<()>,
) -> Result<()> {
    let (forks, others) = entries.into_iter().partition(|entry| entry.name == "fork");
    in_turns(case, plan, others, results, &mut step)?;
    in_turns(case, plan, forks, results, &mut step)
}

fn in_turns(
    case: &Case,
    plan: Plan,
    mut entries: Vec<Entry>,
    results: &mut Results,
    step: &mut impl FnMut(&mut Entry, &Round) -> Result<()>,
) -> Result<()> {
    let mut changes = case.changes();
    let mut number = 0;
    while number < WARM_UP + plan.rounds {
        let count = if number < WARM_UP { WARM_UP } else { RUN.min(WARM_UP + plan.rounds - number) };
        // One round more than is counted, to fill the caches.
        let rounds: Vec<_> =
            (number..=number + count).map(|number| Round::new(number, changes.next_round())).collect();
        for entry in &mut entries {
            let skip = usize::from(entry.is_long());
            for (i, round) in rounds.iter().enumerate().skip(skip) {
                if !entry.is_due(number + i.saturating_sub(1), plan) {
                    continue;
                }
                let start = Instant::now();
                entry.counts = i > 0 || number < WARM_UP;
                step(entry, round).with_context(|| format!("{case}: {}", entry.name))?;
                if entry.counts {
                    entry.runs += 1;
                    entry.spent += start.elapsed();
                }
            }
            if number < WARM_UP {
                entry.settle();
            }
        }
        number += count;
    }
    for entry in &entries {
        for (metric, samples) in &entry.samples {
            results.add(case, entry.name, *metric, samples);
        }
        results.add(case, entry.name, SETTLING, &[entry.slowest]);
    }
    Ok(())
}

impl Entry {
    pub(crate) fn new(name: &'static str, region: Box<dyn Region>) -> Self {
        Self {
            name,
            region,
            taken: VecDeque::new(),
            runs: 0,
            spent: Duration::ZERO,
            counts: true,
            pace: Duration::ZERO,
            slowest: 0.0,
            samples: Vec::new(),
        }
    }

    /// Returns whether this competitor runs the round with this number.
    ///
    /// The rounds of slow competitors are spread evenly over all rounds.
    fn is_due(&self, number: usize, plan: Plan) -> bool {
        let Some(number) = number.checked_sub(WARM_UP) else { return self.spent < SLOW };
        self.runs * plan.rounds <= plan.least * number
            || self.spent.as_secs_f64() * plan.rounds as f64 <= plan.time.as_secs_f64() * number as f64
    }

    fn is_long(&self) -> bool {
        self.pace > LONG
    }

    /// Ends the warm-up. Keeps the mean time of its rounds and its slowest call, and discards its other values.
    fn settle(&mut self) {
        self.pace = self.spent / u32::try_from(self.runs.max(1)).unwrap_or(u32::MAX);
        let calls = self.samples.first().map_or(&[][..], |(_, calls)| calls);
        self.slowest = calls.iter().copied().fold(0.0, f64::max);
        self.samples.clear();
        (self.runs, self.spent) = (0, Duration::ZERO);
    }

    /// Keeps a value, if the current round is counted.
    ///
    /// The first metric of a round must be the time of the measured call, because [`SETTLING`] is computed from it.
    pub(crate) fn record(&mut self, metric: Metric, value: f64) {
        if !self.counts {
            return;
        }
        match self.samples.iter_mut().find(|(known, _)| *known == metric) {
            Some((_, samples)) => samples.push(value),
            None => self.samples.push((metric, vec![value])),
        }
    }

    /// Writes the changes. Returns the time that this took.
    pub(crate) fn write(&mut self, round: &Round) -> Duration {
        time(|| self.region.write(&round.changes, round.value)).1
    }

    /// Takes a snapshot. Returns it and the time that this took.
    pub(crate) fn take(&mut self, round: &Round) -> Result<(Taken, Duration)> {
        self.region.prepare()?;
        let (taken, pause) = time(|| self.region.take(&round.ascending));
        Ok((taken?, pause + self.region.surcharge(&round.changes)))
    }

    /// Restores the region. Returns the time that this took.
    pub(crate) fn restore(&mut self, round: &Round) -> Result<Duration> {
        let (restored, pause) = time(|| self.region.restore(&round.ascending));
        restored?;
        Ok(pause + self.region.surcharge(&round.changes))
    }

    /// Copies some of the pages that a round writes, to compare them after a restore.
    pub(crate) fn sample(&mut self, round: &Round) -> Vec<Vec<u8>> {
        let bytes = self.region.bytes();
        round.changes.iter().take(16).map(|change| page(bytes, change.page).to_vec()).collect()
    }

    /// Fails if the pages that [`sample`](Self::sample) copies differ from `before`.
    pub(crate) fn check_restored(&mut self, round: &Round, before: &[Vec<u8>]) -> Result<()> {
        ensure!(self.sample(round) == before, "{} did not restore the region", self.name);
        Ok(())
    }
}

/// The writes of one round, the same for all competitors.
pub(crate) struct Round {
    pub(crate) changes: Vec<Change>,
    /// The same changes, in ascending order of their pages.
    pub(crate) ascending: Vec<Change>,
    value: u64,
    pub(crate) is_first: bool,
}

impl Round {
    pub(crate) fn new(number: usize, changes: Vec<Change>) -> Self {
        let mut ascending = changes.clone();
        ascending.sort_by_key(|change| change.page);
        Self { changes, ascending, value: number as u64 + 1, is_first: number == 0 }
    }
}

pub(crate) fn time<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let start = Instant::now();
    let result = work();
    (result, start.elapsed())
}

pub(crate) fn nanoseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e9
}
