//! A persistent-mode fuzz target: one process runs every input, and a restore resets the target after each.
//!
//! ```text
//! cargo run --release --example fuzz_target
//! ```
//!
//! The target is a small virtual machine, which runs its input as a program. All of its state is in one view: a
//! coverage map, a stack, and 256 cells of memory with 8 KiB each. `restore_excluding` resets the state and keeps the
//! coverage map, which the fuzzer reads. The virtual machine has a bug: it divides by a cell without checking that the
//! cell is not zero.
//!
//! The fuzzer runs twice with the same random numbers. The first run resets the target by a restore, the second run by
//! a copy of the whole state. After each reset, the whole state is compared with the state before the first input. In
//! the end, both runs must have found the same inputs.
//!
//! The table shows the times of the resets. Inputs a second count the time to run and to reset the target, without the
//! comparisons. The first thousand inputs are a warm-up and are not counted.

use std::io;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use comfy_table::{CellAlignment, Table, presets};
use memsnap::{OwnedView, Snapshot};
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;

/// The length of the coverage map: whole pages on every system, so that a restore does not copy parts of pages.
const COVERAGE: usize = 1 << 16;
/// The stack is in the first 8 KiB of the state. Each cell has 8 KiB of its own.
const CELL: usize = 1 << 13;
const STATE: usize = 257 * CELL;

const WARM_UP: usize = 1_000;
const INPUTS: usize = 10_000;

/// The fuzz target. It borrows its memory for one input.
struct Machine<'a> {
    coverage: &'a mut [u8],
    state: &'a mut [u8],
}

struct DivisionByZero;

impl Machine<'_> {
    /// Runs an input. Returns whether the input takes a step that no earlier input took.
    fn run(&mut self, program: &[u8]) -> Result<bool, DivisionByZero> {
        let (mut at, mut previous, mut new) = (0, 0, false);
        while let Some(&[operation, operand]) = program.get(at..at + 2) {
            at += 2;
            let operation = operation % 6;
            new |= self.cover(previous, operation);
            previous = operation;
            let cell = CELL * (1 + usize::from(operand));
            match operation {
                0 => self.push(operand),
                1 => self.state[cell] = self.pop(),
                2 => self.push(self.state[cell]),
                3 => {
                    let sum = self.pop().wrapping_add(self.pop());
                    self.push(sum);
                }
                4 => at += usize::from(self.pop().min(operand)),
                _ => {
                    let quotient = self.pop().checked_div(self.state[cell]).ok_or(DivisionByZero)?;
                    self.push(quotient);
                }
            }
        }
        Ok(new)
    }

    /// Counts a step: two operations in a row, at this depth of the stack. Returns whether the step is new.
    fn cover(&mut self, previous: u8, operation: u8) -> bool {
        let step = usize::from(previous * 6 + operation) * 256 + usize::from(self.state[0]);
        let count = &mut self.coverage[step];
        *count = count.saturating_add(1);
        *count == 1
    }

    fn push(&mut self, value: u8) {
        self.state[0] = self.state[0].saturating_add(1);
        self.state[usize::from(self.state[0])] = value;
    }

    fn pop(&mut self) -> u8 {
        let value = self.state[usize::from(self.state[0])];
        self.state[0] = self.state[0].saturating_sub(1);
        value
    }
}

/// Does the work that is needed once, not for each input, and returns the memory of the target.
fn initialised() -> io::Result<OwnedView> {
    let mut memory = Snapshot::zeroed(COVERAGE + STATE)?.into_view()?;
    for number in 0..=u8::MAX {
        memory[COVERAGE + CELL * (1 + usize::from(number))..][..CELL].fill(number | 1);
    }
    // A restore puts the view back to the snapshot that it was opened on.
    memory.take_snapshot()?.into_view()
}

/// The inputs that one run of the fuzzer found, and its times.
#[derive(Default)]
struct Report {
    corpus: Vec<Vec<u8>>,
    crashes: Vec<Vec<u8>>,
    resets: Vec<Duration>,
    /// The time to run and reset the target.
    busy: Duration,
}

/// Fuzzes the target in `memory`, and resets it by `reset`, which must not change the coverage map.
fn fuzz<M: AsMut<[u8]>>(mut memory: M, reset: impl Fn(&mut M) -> io::Result<()>) -> Result<Report> {
    let pristine = memory.as_mut()[COVERAGE..].to_vec();
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
    let mut report = Report { corpus: vec![vec![0, 1, 2, 3]], ..Report::default() };
    for number in 0..WARM_UP + INPUTS {
        let input = mutate(report.corpus.choose(&mut rng).context("an empty corpus")?, &mut rng);

        let start = Instant::now();
        let (coverage, state) = memory.as_mut().split_at_mut(COVERAGE);
        let outcome = Machine { coverage, state }.run(&input);
        let end = Instant::now();
        reset(&mut memory)?;
        if number >= WARM_UP {
            report.resets.push(end.elapsed());
            report.busy += start.elapsed();
        }

        let same = memory.as_mut()[COVERAGE..] == pristine;
        ensure!(same, "the reset after input {number} left a changed byte");
        match outcome {
            Ok(true) => report.corpus.push(input),
            Ok(false) => {}
            Err(DivisionByZero) => report.crashes.push(input),
        }
    }
    report.resets.sort_unstable();
    Ok(report)
}

fn mutate(input: &[u8], rng: &mut Xoshiro256PlusPlus) -> Vec<u8> {
    let mut input = input.to_vec();
    for _ in 0..rng.random_range(1..=4) {
        let at = rng.random_range(0..input.len());
        if rng.random() {
            input[at] = rng.random();
        } else {
            input.insert(at, rng.random());
        }
    }
    input.truncate(256);
    input
}

fn main() -> Result<()> {
    let target = initialised()?;
    let pristine = target.to_vec();
    let restored = fuzz(target, |memory| memory.restore_excluding(&[0..COVERAGE]))?;
    let copied = fuzz(pristine.clone(), |memory| {
        memory[COVERAGE..].copy_from_slice(&pristine[COVERAGE..]);
        Ok(())
    })?;
    let same = restored.corpus == copied.corpus && restored.crashes == copied.crashes;
    ensure!(same, "the two runs made the same inputs, but found different ones");

    let mut table = Table::new();
    let header = ["reset by", "resets, all verified", "median", "p99", "inputs a second"];
    table.load_style(presets::ASCII_MARKDOWN).set_header(header);
    for (name, report) in [("restore_excluding", &restored), ("a copy of the whole state", &copied)] {
        table.add_row([
            name.to_owned(),
            report.resets.len().to_string(),
            format!("{:.1?}", report.resets[report.resets.len() / 2]),
            format!("{:.1?}", report.resets[report.resets.len() * 99 / 100]),
            format!("{:.0}", report.resets.len() as f64 / report.busy.as_secs_f64()),
        ]);
    }
    table.column_iter_mut().skip(1).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
    println!("{table}");
    let (corpus, crashes) = (restored.corpus.len(), restored.crashes.len());
    println!("\nBoth runs found {corpus} inputs with new coverage, and {crashes} that divide by zero.");
    Ok(())
}
