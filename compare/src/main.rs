//! Measures memsnap beside memsnap 0.1.2: the time of a snapshot of 256 changed pages, and the memory of 100 of them.
//!
//! `cargo run --release -p memsnap-compare`. Runs wherever both do, also `--target x86_64-pc-windows-gnu` under Wine.

mod system;

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use memsnap::page_size;

/// Bytes of the view whose snapshots are timed, and of the one whose snapshots are kept: memsnap 0.1.2 copies all of
/// them each time.
const TIMED: usize = 256 << 20;
const KEPT: usize = 16 << 20;

/// Pages that change before each snapshot.
const CHANGED: usize = 256;

const SNAPSHOTS: usize = 100;
const ROUNDS: usize = 9;

/// A view of either version, and the snapshots taken of it.
trait Region {
    fn bytes(&mut self) -> &mut [u8];
    fn take(&mut self) -> io::Result<Box<dyn Held>>;
}

/// A snapshot.
trait Held {
    /// Bytes of the file in memory, or section, that it has for itself.
    fn own(&self) -> io::Result<u64>;
}

impl Held for memsnap::Snapshot {
    fn own(&self) -> io::Result<u64> {
        // Its base is that of the first snapshot, which all share.
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

/// Opens a view of so many bytes.
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

/// Changes [`CHANGED`] pages all over the view, others in each round.
fn change(bytes: &mut [u8], round: usize) {
    let pages = bytes.len() / page_size();
    let step = pages / CHANGED;
    for i in 0..CHANGED {
        bytes[((i * step + round * 7) % pages) * page_size() + round] ^= 0xFF;
    }
}

/// The median time of a snapshot.
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

/// What the process has more in memory while the snapshots are kept, and files or sections of their own.
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
