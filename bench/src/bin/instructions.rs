//! Counts the instructions of five calls with callgrind, a tool of valgrind, and compares them with the record.
//!
//! ```text
//! cargo run --release -p memsnap-bench --bin instructions [-- --record]
//! ```
//!
//! Times depend on the load of the machine. These counts do not. They do not include the kernel, whose share the
//! benchmark measures. A record is valid for one compiler and one C library. Write a new one with `--record` if either
//! changes, or after a change that is meant to add or remove instructions.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use memsnap::{CowView, Snapshot, Tracking, page_size};

/// Rounds that are counted. As many rounds before them warm up.
const ROUNDS: usize = 8;

/// The largest relative difference from the record that is accepted.
const BAND: f64 = 0.05;

#[derive(Clone, Copy)]
enum Call {
    Take,
    Restore,
    View,
}

/// The calls that are counted: name, call, pages of the image, and pages written in each round.
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

/// Returns the path of the record.
fn path() -> PathBuf {
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
        let before = *recorded
            .get(&call)
            .with_context(|| format!("the record has no {call:?}; write it with --record"))?;
        #[allow(clippy::cast_precision_loss)] // The counts are far below 2^52.
        let change = count as f64 / before as f64 - 1.0;
        println!("{call}: {count} instructions, {:+.1} % against the record", 100.0 * change);
        if change.abs() > BAND {
            outside.push(call);
        }
    }
    ensure!(
        outside.is_empty(),
        "these differ from the record by more than {} %: {}; if this is intended, write a new one with --record",
        100.0 * BAND,
        outside.join(", ")
    );
    Ok(())
}

/// Counts the instructions of each of the calls.
fn count_all() -> Result<BTreeMap<String, u64>> {
    CALLS.iter().enumerate().map(|(i, (name, ..))| Ok(((*name).to_owned(), count(i)?))).collect()
}

fn count(call: usize) -> Result<u64> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--toggle-collect=*counted_call*"])
        .arg(env::current_exe()?)
        .args(["--call", &call.to_string()])
        // Callgrind counts `rep movsb` once for each byte that it copies, which would hide all other instructions.
        .env("GLIBC_TUNABLES", "glibc.cpu.x86_rep_movsb_threshold=1000000000")
        .output()
        .context("running valgrind; install it, for example from the Debian package valgrind")?;
    let messages = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "valgrind failed: {messages}");
    let collected = messages.lines().find_map(|line| line.split_once("Collected :"));
    let (_, count) = collected.with_context(|| format!("valgrind printed no count: {messages}"))?;
    Ok(count.trim().parse::<u64>()? / ROUNDS as u64)
}

/// Makes the calls with this number in [`CALLS`], in a process under callgrind.
fn run(number: usize) -> Result<()> {
    let (_, call, pages, written) = *CALLS.get(number).context("no such call")?;
    let snapshot = Snapshot::from_slice(&vec![1; pages * page_size()])?;
    let mut view = snapshot.view()?;
    // The counts must not depend on which tracking methods the kernel supports.
    view.set_tracking(Tracking::Scan)?;
    let mut last = snapshot.clone();
    for round in 0..2 * ROUNDS {
        for page in 0..written {
            // Writes scattered pages, each of them once.
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

/// Makes a call whose instructions callgrind counts; see `--toggle-collect`.
#[inline(never)]
fn counted_call<T>(call: impl FnOnce() -> T) -> T {
    black_box(call())
}
