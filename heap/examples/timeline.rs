//! A timeline of a map of a million entries: each step is kept, and the program goes to any of them, and branches.
//!
//! ```text
//! cargo run --release -p memsnap-heap --example timeline -- [--quick] [--entries N] [--steps N] [--out FILE]
//! ```
//!
//! The map is of text to lists of numbers. A step makes 1,000 random changes: eight tenths change a list, a tenth removes
//! an entry, and a tenth adds one. Then it keeps a mark.
//!
//! 1. The trunk: six ways to keep states make the same steps in turns of six. The first step of a turn is not counted.
//!    `fork` is in a process of its own. In the end, all maps must be equal.
//! 2. Undo: each way makes as many changes and goes back.
//! 3. Travel: the heap goes to all of its states in random order.
//! 4. Branches: the heap makes two branches from different states of the trunk, and switches between their ends.
//!
//! The heap hashes each state when it makes it, and compares the hash whenever it is there again. Hashes are not part of
//! any time. The program prints medians, and draws the times of the steps and of going back as SVG.

use std::io::{IsTerminal, stderr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Parser;
use comfy_table::{CellAlignment, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
#[cfg(unix)]
use memsnap_heap_bench::map::Forked;
use memsnap_heap_bench::map::{Cloned, Contender, Im, Imbl, InHeap, Map, Rpds, Script, Timed};
use memsnap_heap_bench::measure::{Times, seconds};
use memsnap_heap_bench::plot::{self, Panel};
use rand::{RngExt, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;

/// A map that is marked each step, rolled back and branched, beside other ways to do so.
#[derive(Parser)]
struct Options {
    /// Number of entries
    #[arg(long, default_value_t = 1_000_000, default_value_if("quick", "true", "50000"))]
    entries: u64,
    /// Number of steps
    #[arg(long, default_value_t = 48, default_value_if("quick", "true", "12"))]
    steps: usize,
    /// Use 50,000 entries and 12 steps
    #[arg(long)]
    quick: bool,
    /// Draw the plot to this file
    #[arg(long, default_value = "heap/record/timeline.svg")]
    out: PathBuf,
}

/// The changes of a step.
const CHANGES: usize = 1_000;
/// The steps of a turn.
const TURN: usize = 6;
/// The steps of a branch, and how often the heap switches between branches.
const BRANCH: usize = 5;
const SWITCHES: usize = 10;
/// How often changes are undone. The first time is not counted.
const UNDONE: usize = 11;
/// The keys that are looked up to measure reading.
const KEYS: usize = 100_000;

/// A way to keep states, and its times.
struct Way<C: Contender + ?Sized> {
    changes: Times,
    marks: Times,
    steps: Times,
    backs: Times,
    /// The time to look up an entry, in seconds.
    read: Option<f64>,
    script: Script,
    contender: C,
}

impl<C: Contender> Way<C> {
    fn new(contender: C, entries: u64) -> Self {
        let (changes, marks, steps, backs) = Default::default();
        let script = Script::new(1, entries);
        Self { changes, marks, steps, backs, read: None, script, contender }
    }
}

/// A way of any type.
type Any = Box<Way<dyn Contender>>;

fn any(contender: impl Contender + 'static, entries: u64) -> Any {
    Box::new(Way::new(contender, entries))
}

impl<C: Contender + ?Sized> Way<C> {
    /// Makes a step and marks it.
    fn step(&mut self, counted: bool) -> Result<()> {
        let [changes, mark] = self.contender.step(&self.script.changes(CHANGES))?;
        if counted {
            self.changes.push(changes);
            self.marks.push(mark);
            self.steps.push(changes + mark);
        }
        Ok(())
    }

    /// Makes changes and undoes them, and looks up keys.
    fn undo_and_read(&mut self, counted: bool, keys: &[String]) -> Result<()> {
        let mut script = self.script.clone();
        let back = self.contender.undo(&script.changes(CHANGES))?;
        // The first time, the keys are not in the processor's cache.
        self.contender.read(keys);
        let read = self.contender.read(keys);
        if counted {
            back.into_iter().for_each(|time| self.backs.push(time));
            self.read = read.map(|time| time.as_secs_f64() / keys.len() as f64);
        }
        Ok(())
    }

    fn row(&self) -> [String; 6] {
        let time = |time: Option<f64>| time.map_or("-".to_owned(), seconds);
        let times =
            [self.steps.median(), self.changes.median(), self.marks.median(), self.backs.median(), self.read];
        let [steps, changes, marks, backs, read] = times.map(time);
        [self.contender.name().to_owned(), steps, changes, marks, backs, read]
    }
}

/// The hashes of the heap's states, when they were made.
struct Hashes {
    of: Vec<u64>,
    checked: usize,
}

impl Hashes {
    /// Goes to a state of the heap, and checks it. Returns the time to go there.
    fn go(&mut self, map: &mut Timed<InHeap>, state: usize) -> Result<Duration> {
        let time = map.back_to(state)?;
        ensure!(map.map().hash() == self.of[state], "state {state} is not what it was when it was made");
        self.checked += 1;
        Ok(time)
    }
}

fn main() -> Result<()> {
    let Options { entries, steps, out, .. } = Options::parse();
    // The process of `fork` is started first, while this one is small.
    let mut others = vec![
        #[cfg(unix)]
        any(Forked::new(entries)?, entries),
    ];
    let progress = progress(steps);
    progress.println(format!("making the map of {entries} entries in each structure"));
    let mut ours = Way::new(Timed::<InHeap>::new(entries, usize::MAX)?, entries);
    others.push(any(Timed::<Cloned>::new(entries, usize::MAX)?, entries));
    others.push(any(Timed::<Im>::new(entries, usize::MAX)?, entries));
    others.push(any(Timed::<Imbl>::new(entries, usize::MAX)?, entries));
    others.push(any(Timed::<Rpds>::new(entries, usize::MAX)?, entries));

    let mut hashes = Hashes { of: vec![ours.contender.map().hash()], checked: 0 };
    trunk(&mut ours, &mut others, &mut hashes, steps, &progress)?;
    progress.set_message("undo");
    let keys = Script::new(2, entries).keys(KEYS);
    for turn in 0..UNDONE {
        ours.undo_and_read(turn > 0, &keys)?;
        others.iter_mut().try_for_each(|way| way.undo_and_read(turn > 0, &keys))?;
    }
    let travels = travel(&mut ours, &mut hashes, &progress)?;
    let switches = branches(&mut ours, &mut hashes, entries, &progress)?;
    progress.finish_and_clear();

    println!("{}", table(&ours, &others));
    let summary = [("to any state of the trunk", &travels), ("from branch to branch", &switches)];
    for (what, times) in summary {
        println!("memsnap-heap, {what}: {}", times.median().map_or("-".to_owned(), seconds));
    }
    println!(
        "{} states, visited {} times, and each time with the hash of when it was made",
        hashes.of.len(),
        hashes.checked
    );
    draw(&out, &ours, &others)?;
    println!("the plot is {}", out.display());
    Ok(())
}

fn progress(steps: usize) -> ProgressBar {
    let length = (steps + 1 + 2 * BRANCH + SWITCHES + steps) as u64;
    if !stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} {msg}");
    ProgressBar::new(length).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// Lets all ways make the same steps in turns, and compares their maps.
fn trunk(
    ours: &mut Way<Timed<InHeap>>,
    others: &mut [Any],
    hashes: &mut Hashes,
    steps: usize,
    progress: &ProgressBar,
) -> Result<()> {
    progress.set_message("trunk");
    for first in (0..steps).step_by(TURN) {
        let turn = TURN.min(steps - first);
        for step in 0..turn {
            ours.step(step > 0)?;
            hashes.of.push(ours.contender.map().hash());
            progress.inc(1);
        }
        for way in &mut *others {
            (0..turn).try_for_each(|step| way.step(step > 0))?;
        }
    }
    let expected = ours.contender.map().hash();
    for way in others {
        let hash = way.contender.hash();
        ensure!(
            hash.is_none_or(|hash| hash == expected),
            "{} has another map in the end",
            way.contender.name()
        );
    }
    Ok(())
}

/// Goes to all states in random order. Returns the times.
fn travel(ours: &mut Way<Timed<InHeap>>, hashes: &mut Hashes, progress: &ProgressBar) -> Result<Times> {
    progress.set_message("travel");
    let mut order: Vec<_> = (0..hashes.of.len()).collect();
    let mut random = Xoshiro256PlusPlus::seed_from_u64(1);
    (1..order.len()).for_each(|last| order.swap(last, random.random_range(0..=last)));
    let mut times = Times::default();
    for state in order {
        times.push(hashes.go(&mut ours.contender, state)?);
        progress.inc(1);
    }
    Ok(times)
}

/// Makes two branches, and switches between their ends. Returns the times of the switches.
fn branches(
    ours: &mut Way<Timed<InHeap>>,
    hashes: &mut Hashes,
    entries: u64,
    progress: &ProgressBar,
) -> Result<Times> {
    let trunk = hashes.of.len();
    let mut ends = Vec::new();
    for (number, start) in [(1, trunk / 3), (2, trunk * 2 / 3)] {
        progress.set_message(format!("branch {number}"));
        hashes.go(&mut ours.contender, start)?;
        let mut script = Script::new(10 + number, entries);
        for _ in 0..BRANCH {
            ours.contender.step(&script.changes(CHANGES))?;
            hashes.of.push(ours.contender.map().hash());
            progress.inc(1);
        }
        ends.push(hashes.of.len() - 1);
    }
    let mut times = Times::default();
    for switch in 0..SWITCHES {
        times.push(hashes.go(&mut ours.contender, ends[switch % 2])?);
        progress.inc(1);
    }
    Ok(times)
}

fn table(ours: &Way<Timed<InHeap>>, others: &[Any]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(["", "step: 1,000 changes + mark", "changes", "mark", "back", "reading an entry"]);
    table.add_row(ours.row());
    for way in others {
        table.add_row(way.row());
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn draw(out: &Path, ours: &Way<Timed<InHeap>>, others: &[Any]) -> Result<()> {
    let lines = |times: &dyn Fn(&Way<dyn Contender>) -> Vec<f64>, first: Vec<f64>| {
        let others = others.iter().map(|way| (way.contender.name(), times(way)));
        [(ours.contender.name(), first)].into_iter().chain(others).collect()
    };
    let panels = [
        Panel {
            title: "1,000 changes and a mark",
            x: "counted step",
            lines: lines(&|way| way.steps.seconds().collect(), ours.steps.seconds().collect()),
        },
        Panel {
            title: "Going back over 1,000 changes",
            x: "counted return",
            lines: lines(&|way| way.backs.seconds().collect(), ours.backs.seconds().collect()),
        },
    ];
    plot::draw(out, &panels)
}
