//! Compares memsnap with memsnap 0.1.2: the time of a snapshot of 256 changed pages, and the memory of 100 snapshots.
//!
//! Run it with `cargo run --release -p memsnap-compare`. It runs on Linux and Windows, and with `--target
//! x86_64-pc-windows-gnu` also under Wine.

mod system;

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use memsnap::page_size;

/// The length of the view whose snapshots are timed, in bytes.
const TIMED: usize = 256 << 20;
/// The length of the view whose snapshots are kept. It is shorter, because memsnap 0.1.2 copies the whole view each time.
const KEPT: usize = 16 << 20;

/// Pages that change before each snapshot.
const CHANGED: usize = 256;

const SNAPSHOTS: usize = 100;
const ROUNDS: usize = 9;

/// A view of one of the versions, of which snapshots can be taken.
trait Region {
    fn bytes(&mut self) -> &mut [u8];
    fn take(&mut self) -> io::Result<Box<dyn Held>>;
}

/// A snapshot of one of the versions.
trait Held {
    /// Returns the bytes of the memory file or section that belongs to this snapshot alone.
    fn own(&self) -> io::Result<u64>;
}

impl Held for memsnap::Snapshot {
    fn own(&self) -> io::Result<u64> {
        // All snapshots share the base of the first one.
        Ok(self.stats().flat)
    }
}

impl Held for memsnap_0_1::Snapshot {
    fn own(&self) -> io::Result<u64> {
        Ok(self.view()?.as_slice().len() as u64)
    }
}

impl Region for memsnap::ArcView {
    fn bytes(&mut self) -> &mut [u8] {
        self
    }

    fn take(&mut self) -> io::Result<Box<dyn Held>> {
        Ok(Box::new(self.take_snapshot()?))
    }
}

impl Region for memsnap_0_1::ArcView {
    fn bytes(&mut self) -> &mut [u8] {
        self.as_mut_slice()
    }

    fn take(&mut self) -> io::Result<Box<dyn Held>> {
        Ok(Box::new(self.take_snapshot()?))
    }
}

/// A function that opens a view of this many bytes.
type Open = fn(usize) -> io::Result<Box<dyn Region>>;

const VERSIONS: [(&str, Open); 2] = [("memsnap 0.1.2", old), ("memsnap", new)];

fn image(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i / 61).to_le_bytes()[0] | 1).collect()
}

fn new(len: usize) -> io::Result<Box<dyn Region>> {
    Ok(Box::new(Arc::new(memsnap::Snapshot::from_slice(&image(len))?).view_arc()?))
}

fn old(len: usize) -> io::Result<Box<dyn Region>> {
    Ok(Box::new(Arc::new(memsnap_0_1::Snapshot::from_slice(&image(len))?).view_arc()?))
}

/// Changes [`CHANGED`] pages, distributed over the view. Each round changes other pages.
fn change(bytes: &mut [u8], round: usize) {
    let pages = bytes.len() / page_size();
    let step = pages / CHANGED;
    for i in 0..CHANGED {
        bytes[((i * step + round * 7) % pages) * page_size() + round] ^= 0xFF;
    }
}

/// Measures the median time of a snapshot.
fn time(open: Open) -> io::Result<Duration> {
    let mut view = open(TIMED)?;
    drop(view.take()?);
    let mut times = Vec::new();
    for round in 0..ROUNDS {
        change(view.bytes(), round);
        let start = Instant::now();
        let taken = view.take()?;
        times.push(start.elapsed());
        drop(taken);
    }
    times.sort_unstable();
    Ok(times[ROUNDS / 2])
}

/// Measures the memory of the kept snapshots: the growth of the process, and the files or sections of the snapshots.
fn memory(open: Open) -> io::Result<u64> {
    let mut view = open(KEPT)?;
    drop(view.take()?);
    let before = system::memory_in_use()?;
    let mut taken = Vec::new();
    for round in 0..SNAPSHOTS {
        change(view.bytes(), round);
        taken.push(view.take()?);
    }
    let own = taken.iter().map(|snapshot| snapshot.own()).sum::<io::Result<u64>>()?;
    Ok(system::memory_in_use()?.saturating_sub(before) + own)
}

fn main() -> io::Result<()> {
    println!(
        "| | snapshot of {CHANGED} changed pages, {} MiB | {SNAPSHOTS} snapshots, {} MiB |",
        TIMED >> 20,
        KEPT >> 20
    );
    println!("|---|---|---|");
    let mut figures = Vec::new();
    for (name, open) in VERSIONS {
        let figure = (time(open)?.as_secs_f64() * 1e3, memory(open)? as f64 / 1048576.0);
        println!("| {name} | {:.3} ms | {:.1} MiB |", figure.0, figure.1);
        figures.push(figure);
    }
    println!("| ratio | {:.1} | {:.1} |", figures[0].0 / figures[1].0, figures[0].1 / figures[1].1.max(1.0));
    Ok(())
}
