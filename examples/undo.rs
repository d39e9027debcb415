//! Undo without limit: a document of 100 MB, 100,000 steps of edits, and jumps from any step to any other.
//!
//! ```text
//! cargo run --release --example undo
//! ```
//!
//! The editor takes a snapshot after each step, and jumps by `restore_to`. It knows what it writes, so the document is
//! a logged view: `get_mut` borrows a range for writing and reports it. Then the time of a step does not depend on the
//! length of the document, even on systems that cannot name written pages. A step overwrites up to 1 KiB at a cursor,
//! which moves on and sometimes jumps elsewhere.
//!
//! Two other ways to keep the history are measured:
//!
//! - A journal has the old and the new bytes of each edit. A jump undoes or repeats all edits in between.
//! - One copy of the document is kept for each step. These figures are computed from a few copies.
//!
//! After each jump, the whole document is compared with the document that the journal makes.
//!
//! The table shows median times, and the memory that the history takes beside the document. For the snapshots, the
//! memory is the growth of the process on Linux, and the captured pages on other systems. The first ten steps and
//! jumps are a warm-up and are not counted.

use std::fs;
use std::hint::black_box;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytesize::ByteSize;
use comfy_table::{CellAlignment, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use memsnap::{LoggedView, Snapshot, ViewOptions};
use rand::{Rng, RngExt, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;

const DOCUMENT: usize = 100_000_000;
/// A debug build makes fewer steps, since it checks after each step that all writes were reported.
const STEPS: usize = if cfg!(debug_assertions) { 5_000 } else { 100_000 };
const JUMPS: usize = 100;
const WARM_UP: usize = 10;

/// An entry of the journal.
struct Edit {
    offset: usize,
    old: Box<[u8]>,
    new: Box<[u8]>,
}

/// The document with its whole history, kept as snapshots.
struct Editor {
    document: LoggedView<Snapshot>,
    /// The states before the first step and after each.
    states: Vec<Snapshot>,
}

impl Editor {
    fn open(content: &[u8]) -> Result<Self> {
        let opened = Snapshot::from_slice(content)?;
        Ok(Self { document: opened.clone().into_view_with(&ViewOptions::logged())?, states: vec![opened] })
    }

    fn write(&mut self, offset: usize, bytes: &[u8]) -> Result<()> {
        let range = offset..offset + bytes.len();
        self.document.get_mut(range).context("outside of the document")?.copy_from_slice(bytes);
        self.states.push(self.document.take_snapshot()?);
        Ok(())
    }

    fn go(&mut self, step: usize) -> Result<()> {
        Ok(self.document.restore_to(&self.states[step])?)
    }
}

/// Makes random edits in a document, and keeps a journal of them.
fn edit(document: &mut [u8], rng: &mut Xoshiro256PlusPlus) -> (Vec<Edit>, Vec<Duration>) {
    let mut cursor = 0;
    let edit = |_| {
        let mut new = vec![0; rng.random_range(1..=1024)];
        rng.fill_bytes(&mut new);
        if cursor + new.len() > DOCUMENT || rng.random_ratio(1, 50) {
            cursor = rng.random_range(0..DOCUMENT - new.len());
        }
        let start = Instant::now();
        let place = &mut document[cursor..cursor + new.len()];
        let edit = Edit { offset: cursor, old: (&*place).into(), new: new.into() };
        place.copy_from_slice(&edit.new);
        cursor += edit.new.len();
        (edit, start.elapsed())
    };
    (0..STEPS).map(edit).unzip()
}

/// Brings a document from one step to another, by the edits between them.
fn replay(document: &mut [u8], journal: &[Edit], from: usize, to: usize) {
    for edit in journal.get(from..to).into_iter().flatten() {
        document[edit.offset..][..edit.new.len()].copy_from_slice(&edit.new);
    }
    for edit in journal.get(to..from).into_iter().flatten().rev() {
        document[edit.offset..][..edit.old.len()].copy_from_slice(&edit.old);
    }
}

/// Returns the memory of this process, if the system reports it.
fn resident() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/smaps_rollup").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    Some(line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()? * 1024)
}

fn main() -> Result<()> {
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} {msg}, {eta} to go")?;
    let progress = ProgressBar::new(STEPS as u64).with_style(style).with_message("steps");
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
    let mut content = vec![0; DOCUMENT];
    rng.fill_bytes(&mut content);

    let mut editor = Editor::open(&content)?;
    let (journal, journal_steps) = edit(&mut content, &mut rng);
    let before = resident();
    let mut steps = Vec::new();
    for edit in &journal {
        let start = Instant::now();
        editor.write(edit.offset, &edit.new)?;
        steps.push(start.elapsed());
        progress.inc(1);
    }
    let captured = editor.states[0].stats().store.live as u64;
    let grown = before.and_then(|before| resident()?.checked_sub(before)).unwrap_or(captured);

    let (mut snapshot_jumps, mut journal_jumps, mut copies) = (Vec::new(), Vec::new(), Vec::new());
    let mut copy = content.clone();
    progress.reset();
    progress.set_length(JUMPS as u64);
    progress.set_message("jumps");
    let mut now = STEPS;
    for _ in 0..JUMPS {
        let to = rng.random_range(0..=STEPS);
        let start = Instant::now();
        editor.go(to)?;
        snapshot_jumps.push(start.elapsed());
        let start = Instant::now();
        replay(&mut content, &journal, now, to);
        journal_jumps.push(start.elapsed());
        let start = Instant::now();
        black_box(&mut copy).copy_from_slice(black_box(&content));
        copies.push(start.elapsed());
        let same = editor.document.content() == content;
        ensure!(same, "the jump from step {now} to step {to} made a wrong document");
        now = to;
        progress.inc(1);
    }
    progress.finish_and_clear();

    let written: usize = journal.iter().map(|edit| size_of::<Edit>() + 2 * edit.new.len()).sum();
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(["history", "step", "jump", "memory of a step", "of all steps"]);
    for (name, step, jump, memory) in [
        ("snapshots", median(steps), median(snapshot_jumps), grown),
        ("journal of edits", median(journal_steps), median(journal_jumps), written as u64),
        ("copies", median(copies.clone()), median(copies), STEPS as u64 * DOCUMENT as u64),
    ] {
        let (each, all) = (ByteSize(memory / STEPS as u64), ByteSize(memory));
        table.add_row([name.to_owned(), step, jump, each.to_string(), all.to_string()]);
    }
    table.column_iter_mut().skip(1).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
    println!("{table}");
    Ok(())
}

/// Returns the median of the values after the warm-up.
fn median(mut times: Vec<Duration>) -> String {
    times.drain(..WARM_UP);
    times.sort_unstable();
    format!("{:.1?}", times[times.len() / 2])
}
