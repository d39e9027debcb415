//! Two threads, each with a view of its own, against one.

use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use memsnap::Snapshot;

use super::Scale;
use crate::case::{Case, MIB};
use crate::competitor::{Competitor, Limit, Memsnap, Memsnap01, Operation, Wasmtime};
use crate::harness::{Entry, Round, open};
use crate::image::Image;
use crate::results::{Metric, Results, Samples};

const ONE: Metric = Metric { name: "one thread", unit: "1/s" };
const TWO: Metric = Metric { name: "two threads", unit: "1/s" };
const GAIN: Metric = Metric { name: "two threads / one", unit: "x" };

const NAME: &str = "threads";

pub(crate) fn run(scale: Scale, results: &mut Results) -> Result<()> {
    let base = Case::base(NAME).bytes(128 * MIB);
    let image = Image::new(base.bytes)?;
    let shared = Memsnap { snapshot: Some(Arc::new(Snapshot::from_slice(image.bytes())?)) };
    let competitors: [Box<dyn Competitor>; 4] =
        [Box::new(shared), Box::new(Limit), Box::new(Memsnap01), Box::new(Wasmtime::keeping_all())];
    for (variant, operation) in
        [("write + restore", Operation::Restore), ("write + take", Operation::Take { kept: 1 })]
    {
        let case = base.clone().variant(variant);
        eprintln!("{case}");
        let mut first = open(&case, operation, &image, &competitors, results)?;
        let mut second = open(&case, operation, &image, &competitors, results)?;
        let mut samples = Samples::default();
        for _ in 0..scale.pick(2, 7) {
            for pair in first.iter_mut().zip(&mut second) {
                compare(&case, operation, pair, scale, &mut samples)?;
            }
        }
        samples.add_to(results);
    }
    Ok(())
}

fn compare(
    case: &Case,
    operation: Operation,
    (first, second): (&mut Entry, &mut Entry),
    scale: Scale,
    samples: &mut Samples,
) -> Result<()> {
    let time = Duration::from_millis(scale.pick(100, 300));
    let name = first.name;
    let one = throughput(case, operation, &mut [&mut *first], time)?;
    let two = throughput(case, operation, &mut [first, second], time)?;
    samples.record(case, name, ONE, one);
    samples.record(case, name, TWO, two);
    samples.record(case, name, GAIN, two / one);
    Ok(())
}

/// Loops a second, of one thread for each entry together.
fn throughput(case: &Case, operation: Operation, entries: &mut [&mut Entry], time: Duration) -> Result<f64> {
    let barrier = Barrier::new(entries.len());
    thread::scope(|scope| {
        let threads: Vec<_> = entries
            .iter_mut()
            .map(|entry| scope.spawn(|| work(case, operation, entry, &barrier, time)))
            .collect();
        let rates = threads.into_iter().map(|thread| {
            thread.join().map_err(|_| anyhow!("a thread panicked")).flatten().context(case.to_string())
        });
        rates.sum()
    })
}

fn work(
    case: &Case,
    operation: Operation,
    entry: &mut Entry,
    barrier: &Barrier,
    time: Duration,
) -> Result<f64> {
    let mut changes = case.changes();
    barrier.wait();
    let start = Instant::now();
    let mut loops = 0;
    while start.elapsed() < time {
        loops += 1;
        let round = Round::new(loops, changes.next_round());
        entry.write(&round);
        if operation == Operation::Restore {
            entry.restore(&round)?;
        } else {
            entry.taken.pop_front();
            let (taken, _) = entry.take(&round)?;
            entry.taken.push_back(taken);
        }
    }
    Ok(loops as f64 / start.elapsed().as_secs_f64())
}
