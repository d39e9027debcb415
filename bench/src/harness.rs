//! Runs competitors in turn, A B C, A B C, and so on: each for a few rounds, as a program has the machine for
//! itself for a while. The first of these finds the caches full of what others did, and is not counted.
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

/// How much is measured.
#[derive(Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) rounds: usize,
    /// Rounds of a competitor that is slow, at the least.
    pub(crate) least: usize,
    /// Time for each competitor, after which it only does the least.
    pub(crate) time: Duration,
}

/// Rounds that a competitor has in a row, besides the one that is not counted.
const RUN: usize = 10;

/// Rounds so long do not depend on what the caches hold.
const LONG: Duration = Duration::from_millis(20);

/// Rounds before those that are measured, in which competitors settle; fewer for those that are slow.
const WARM_UP: usize = 20;
const SLOW: Duration = Duration::from_millis(500);

/// The slowest call while competitors settle.
pub(crate) const SETTLING: Metric = Metric::nanoseconds("slowest of the first 20");

/// A competitor at work.
pub(crate) struct Entry {
    pub(crate) name: &'static str,
    pub(crate) region: Box<dyn Region>,
    pub(crate) taken: VecDeque<Taken>,
    runs: usize,
    spent: Duration,
    /// Whether what is recorded counts.
    counts: bool,
    /// Of a round while it settled, on average.
    pace: Duration,
    /// Of the calls while it settled.
    slowest: f64,
    samples: Vec<(Metric, Vec<f64>)>,
}

/// Opens a region of each competitor that can do this, as long as the memory is enough for all.
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
            let reason = format!("would hold {} MiB, more than is left", memory / MIB);
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
        // SAFETY: the children that the fork competitor makes only use their stacks.
        unsafe { keep_out_of_children(bytes.as_mut_ptr(), bytes.len()) }?;
    }
    Ok(entries)
}

/// Has each entry do `step` with the same changes, in turn, again and again; keeps the results.
///
/// `fork` comes last, by itself. A child shares all memory of the process that is not kept out of it, for example the
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
        // With one more, for caches.
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

    /// Spreads the rounds of slow competitors over all rounds.
    fn is_due(&self, number: usize, plan: Plan) -> bool {
        let Some(number) = number.checked_sub(WARM_UP) else { return self.spent < SLOW };
        self.runs * plan.rounds <= plan.least * number
            || self.spent.as_secs_f64() * plan.rounds as f64 <= plan.time.as_secs_f64() * number as f64
    }

    fn is_long(&self) -> bool {
        self.pace > LONG
    }

    /// Ends the warm-up.
    fn settle(&mut self) {
        self.pace = self.spent / u32::try_from(self.runs.max(1)).unwrap_or(u32::MAX);
        let calls = self.samples.first().map_or(&[][..], |(_, calls)| calls);
        self.slowest = calls.iter().copied().fold(0.0, f64::max);
        self.samples.clear();
        (self.runs, self.spent) = (0, Duration::ZERO);
    }

    /// Keeps a value; those of the first metric are the times of the competitor's own call.
    pub(crate) fn record(&mut self, metric: Metric, value: f64) {
        if !self.counts {
            return;
        }
        match self.samples.iter_mut().find(|(known, _)| *known == metric) {
            Some((_, samples)) => samples.push(value),
            None => self.samples.push((metric, vec![value])),
        }
    }

    /// Writes the changes; returns the time that took.
    pub(crate) fn write(&mut self, round: &Round) -> Duration {
        time(|| self.region.write(&round.changes, round.value)).1
    }

    /// Takes a snapshot; returns the time that took.
    pub(crate) fn take(&mut self, round: &Round) -> Result<(Taken, Duration)> {
        self.region.prepare()?;
        let (taken, pause) = time(|| self.region.take(&round.ascending));
        Ok((taken?, pause + self.region.surcharge(&round.changes)))
    }

    /// Restores the region; returns the time that took.
    pub(crate) fn restore(&mut self, round: &Round) -> Result<Duration> {
        let (restored, pause) = time(|| self.region.restore(&round.ascending));
        restored?;
        Ok(pause + self.region.surcharge(&round.changes))
    }

    /// Some of the pages that a round writes, to be compared with those after a restore.
    pub(crate) fn sample(&mut self, round: &Round) -> Vec<Vec<u8>> {
        let bytes = self.region.bytes();
        round.changes.iter().take(16).map(|change| page(bytes, change.page).to_vec()).collect()
    }

    pub(crate) fn check_restored(&mut self, round: &Round, before: &[Vec<u8>]) -> Result<()> {
        ensure!(self.sample(round) == before, "{} did not restore the region", self.name);
        Ok(())
    }
}

/// What all competitors do in one round.
pub(crate) struct Round {
    pub(crate) changes: Vec<Change>,
    /// The same, by page.
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
