//! Counts the instructions that five calls take, in valgrind's callgrind, and compares them with the record.
//!
//! ```text
//! cargo run --release -p memsnap-bench --bin instructions [-- --record]
//! ```
//!
//! Times vary with whatever else a machine does; these counts do not. They leave out the kernel, whose
//! share the benchmark measures. The record belongs to one compiler and one C library: after a change of
//! either, and after one that is meant to cost or spare instructions, `--record` writes it anew.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::hint::black_box;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use memsnap::{CowView, Snapshot, Tracking, page_size};

/// Rounds that are counted, after as many to warm up.
const ROUNDS: usize = 8;

/// The difference from the record that is allowed.
const BAND: f64 = 0.05;

#[derive(Clone, Copy)]
enum Call {
    Take,
    Restore,
    View,
}

/// The calls that are counted: name, call, pages of the image, and pages that are written in each round.
const CALLS: [(&str, Call, usize, usize); 5] = [
    ("take_snapshot of 256 pages", Call::Take, 16 << 10, 256),
    ("restore of 256 pages", Call::Restore, 16 << 10, 256),
    ("view of a flat snapshot", Call::View, 16 << 10, 256),
    ("take_snapshot of 16 pages of 1 MiB", Call::Take, 256, 16),
    ("restore of 16 pages of 1 MiB", Call::Restore, 256, 16),
];

fn main() -> Result<()> {
    let arguments: Vec<_> = env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => compare(),
        ["--record"] => record(&count_all()?),
        ["--call", call] => run(call.parse()?),
        _ => bail!("usage: instructions [--record]"),
    }
}

fn path() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("record/instructions.csv")
}

fn record(counts: &BTreeMap<String, u64>) -> Result<()> {
    let mut writer = csv::Writer::from_path(path())?;
    writer.write_record(["call", "instructions"])?;
    for (call, count) in counts {
        println!("{call}: {count}");
        writer.write_record([call, &count.to_string()])?;
    }
    Ok(writer.flush()?)
}

fn compare() -> Result<()> {
    let text = fs::read(path()).with_context(|| format!("reading {}", path().display()))?;
    let recorded: BTreeMap<String, u64> =
        csv::Reader::from_reader(&text[..]).deserialize().collect::<Result<_, _>>()?;
    let mut outside = Vec::new();
    for (call, count) in count_all()? {
        let before = *recorded.get(&call).with_context(|| format!("no record of {call}"))?;
        #[allow(clippy::cast_precision_loss)] // Millions.
        let change = count as f64 / before as f64 - 1.0;
        println!("{call}: {count} instructions, {:+.1} % against the record", 100.0 * change);
        if change.abs() > BAND {
            outside.push(call);
        }
    }
    ensure!(outside.is_empty(), "more than {} % off the record: {}", 100.0 * BAND, outside.join(", "));
    Ok(())
}

/// The instructions of one of each of the calls.
fn count_all() -> Result<BTreeMap<String, u64>> {
    CALLS.iter().enumerate().map(|(i, (name, ..))| Ok(((*name).to_owned(), count(i)?))).collect()
}

fn count(call: usize) -> Result<u64> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--toggle-collect=*counted_call*"])
        .arg(env::current_exe()?)
        .args(["--call", &call.to_string()])
        // A copy by one repeated instruction would count as one for each byte, and hide everything else.
        .env("GLIBC_TUNABLES", "glibc.cpu.x86_rep_movsb_threshold=1000000000")
        .output()
        .context("running valgrind; it is in the Debian package of that name")?;
    let told = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{told}");
    let collected = told.lines().find_map(|line| line.split_once("Collected :"));
    let (_, count) = collected.with_context(|| format!("no count in: {told}"))?;
    Ok(count.trim().parse::<u64>()? / ROUNDS as u64)
}

/// Runs under callgrind.
fn run(number: usize) -> Result<()> {
    let (_, call, pages, written) = *CALLS.get(number).context("no such call")?;
    let snapshot = Snapshot::from_slice(&vec![1; pages * page_size()])?;
    let mut view = snapshot.view()?;
    // The same on every machine, whatever its kernel allows.
    view.set_tracking(Tracking::Scan)?;
    let mut last = snapshot.clone();
    for round in 0..2 * ROUNDS {
        for page in 0..written {
            // Scattered, and each once.
            let page = page * 37 % written * (pages / written);
            view[page * page_size() + 1000] = u8::try_from(2 + round)?;
        }
        last = match (call, round >= ROUNDS) {
            (Call::Take, true) => counted_call(|| view.take_snapshot())?,
            (Call::Take, false) => view.take_snapshot()?,
            (Call::Restore, true) => counted_call(|| view.restore()).map(|()| last)?,
            (Call::Restore, false) => view.restore().map(|()| last)?,
            (Call::View, true) => {
                counted_call(|| snapshot.view().map(|view: CowView<'_>| view.len())).map(|_| last)?
            }
            (Call::View, false) => last,
        };
    }
    black_box(last);
    Ok(())
}

/// What callgrind counts.
#[inline(never)]
fn counted_call<T>(call: impl FnOnce() -> T) -> T {
    black_box(call())
}
