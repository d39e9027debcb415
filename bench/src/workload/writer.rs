//! The stalls of a continuous writer while snapshots are taken.
//!
//! Each write is due at a fixed time, but has to wait for the writes before it. The latency of a write is the time from
//! when it is due until it is done. Another thread drops the snapshots that are not kept. A competitor that takes more
//! than twice the planned time is stopped, so its longest stall would have been longer than the reported one.

use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use memsnap::page_size;
use rand::RngExt;
use rand_xoshiro::Xoshiro256PlusPlus;

use super::Scale;
use crate::case::Case;
use crate::competitor::{Competitor, Copy, Fork, Memsnap, Memsnap01, Operation, Taken};
use crate::harness::{Entry, nanoseconds, open};
use crate::image::Image;
use crate::pages::rng;
use crate::results::{Metric, Results, Samples, quantile};

const LONGEST: Metric = Metric::nanoseconds("longest stall of a write");
const P999: Metric = Metric::nanoseconds("p99.9 of a write");
const PAUSE: Metric = Metric::nanoseconds("longest pause for a snapshot");

const WRITES_PER_SECOND: u64 = 150_000;
const INTERVAL: Duration = Duration::from_millis(100);
const KEPT: usize = 4;

fn case() -> Case {
    // There are as many changed pages as there are writes between two snapshots.
    let case =
        Case::base("writer").changed(15_000).variant("150,000 writes/s, a snapshot each 100 ms, 4 kept");
    Case { working_set: None, ..case }
}

pub(crate) fn run(scale: Scale, results: &mut Results) -> Result<()> {
    let case = case();
    eprintln!("{case}");
    let image = Image::new(case.bytes)?;
    let competitors: [Box<dyn Competitor>; 4] =
        [Box::new(Memsnap::default()), Box::new(Fork), Box::new(Memsnap01), Box::new(Copy)];
    let mut entries = Vec::new();
    for competitor in competitors {
        // Each competitor gets all the memory, because competitors keep no snapshots between their turns.
        entries.extend(open(&case, Operation::Take { kept: 1 }, &image, &[competitor], results)?);
    }
    let mut samples = Samples::default();
    for round in 0..scale.pick(1, 3) {
        for entry in &mut entries {
            eprintln!("  {}, round {round}", entry.name);
            let time = Duration::from_secs(scale.pick(1, 3));
            write_on(&case, entry, time, &mut samples).context(entry.name)?;
        }
    }
    samples.add_to(results);
    Ok(())
}

fn write_on(case: &Case, entry: &mut Entry, time: Duration, samples: &mut Samples) -> Result<()> {
    entry.region.prepare()?;
    let (dropped, receiver) = mpsc::channel::<Taken>();
    let dropper = thread::spawn(move || receiver.into_iter().for_each(drop));
    let mut writer = Writer::new(entry, time);
    writer.run(&dropped)?;
    let Writer { mut latencies, pause, .. } = writer;
    entry.taken.drain(..).try_for_each(|taken| dropped.send(taken))?;
    drop(dropped);
    dropper.join().ok().context("the thread that drops snapshots panicked")?;
    latencies.sort_by(f64::total_cmp);
    samples.record(case, entry.name, LONGEST, quantile(&latencies, 1000));
    samples.record(case, entry.name, P999, quantile(&latencies, 999));
    samples.record(case, entry.name, PAUSE, nanoseconds(pause));
    Ok(())
}

struct Writer<'a> {
    entry: &'a mut Entry,
    rng: Xoshiro256PlusPlus,
    time: Duration,
    latencies: Vec<f64>,
    pause: Duration,
}

impl<'a> Writer<'a> {
    fn new(entry: &'a mut Entry, time: Duration) -> Self {
        Self { entry, rng: rng(KEPT), time, latencies: Vec::new(), pause: Duration::ZERO }
    }

    fn run(&mut self, dropped: &mpsc::Sender<Taken>) -> Result<()> {
        let start = Instant::now();
        let mut snapshot_due = INTERVAL;
        for number in 0..self.time.as_secs() * WRITES_PER_SECOND {
            let due = Duration::from_nanos(number * 1_000_000_000 / WRITES_PER_SECOND);
            while start.elapsed() < due {
                std::hint::spin_loop();
            }
            self.write(number);
            self.latencies.push(nanoseconds(start.elapsed().saturating_sub(due)));
            if start.elapsed() > 2 * self.time {
                break;
            }
            if start.elapsed() >= snapshot_due {
                self.take(dropped)?;
                // If snapshots are late, there still has to be time for writes between them.
                snapshot_due = (snapshot_due + INTERVAL).max(start.elapsed() + INTERVAL / 2);
            }
        }
        Ok(())
    }

    fn write(&mut self, value: u64) {
        let bytes = self.entry.region.bytes();
        let page = self.rng.random_range(0..bytes.len() / page_size());
        let at = page * page_size() + self.rng.random_range(0..page_size() / 8) * 8;
        bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }

    fn take(&mut self, dropped: &mpsc::Sender<Taken>) -> Result<()> {
        while self.entry.taken.len() >= KEPT {
            self.entry.taken.pop_front().map_or(Ok(()), |taken| dropped.send(taken))?;
        }
        let start = Instant::now();
        let taken = self.entry.region.take(&[])?;
        self.pause = self.pause.max(start.elapsed());
        self.entry.taken.push_back(taken);
        Ok(())
    }
}
