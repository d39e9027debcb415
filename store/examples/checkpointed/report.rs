//! The measurements of all rounds, and the table with them.

use std::time::Duration;

use bytesize::ByteSize;
use comfy_table::{CellAlignment, Table, presets};

/// The times and bytes of one kind of work.
#[derive(Default)]
pub(crate) struct Work {
    times: Vec<Duration>,
    bytes: Vec<u64>,
}

impl Work {
    pub(crate) fn add(&mut self, time: Duration, bytes: u64) {
        self.times.push(time);
        self.bytes.push(bytes);
    }

    pub(crate) fn count(&self) -> usize {
        self.times.len()
    }

    fn time(&self) -> Option<Duration> {
        median(&self.times)
    }

    fn row(&self, what: &str) -> [String; 5] {
        let time = |time: Option<Duration>| time.map_or("-".to_owned(), milliseconds);
        let bytes = median(&self.bytes).filter(|bytes| *bytes > 0).map(|bytes| ByteSize(bytes).to_string());
        [
            what.to_owned(),
            self.count().to_string(),
            time(self.time()),
            time(self.times.iter().max().copied()),
            bytes.unwrap_or_else(|| "-".to_owned()),
        ]
    }
}

/// The measurements of all rounds.
#[derive(Default)]
pub(crate) struct Report {
    pub(crate) made: Work,
    pub(crate) pauses: Work,
    pub(crate) saved: Work,
    pub(crate) whole: Work,
    pub(crate) loaded: Work,
    pub(crate) checked: Work,
}

impl Report {
    /// Returns the table.
    pub(crate) fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_style(presets::UTF8_FULL_CONDENSED).set_header([
            "what",
            "times",
            "median",
            "slowest",
            "bytes each",
        ]);
        table.add_rows([
            self.made.row("first checkpoint: all of the state"),
            self.saved.row("checkpoint: the changes, saved and synced"),
            self.pauses.row("  before it: the snapshot, during which the state is not changed"),
            self.whole.row("for comparison: all of the state, written to a file and synced"),
            self.loaded.row("restart: the last checkpoint is loaded"),
            self.checked.row("  after it: the example checks every byte"),
        ]);
        table.column_iter_mut().skip(1).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
        table
    }

    /// Compares a checkpoint with writing all of the state.
    ///
    /// Returns `None` if one of the two was not measured.
    pub(crate) fn comparison(&self) -> Option<String> {
        let (checkpoint, whole) = (self.saved.time()?, self.whole.time()?);
        let (bytes, all) = (median(&self.saved.bytes)?, median(&self.whole.bytes)?);
        Some(format!(
            "A checkpoint took 1/{:.0} of the time and 1/{:.0} of the bytes that writing all of the state takes.",
            whole.as_secs_f64() / checkpoint.as_secs_f64(),
            all as f64 / bytes as f64,
        ))
    }
}

fn median<T: Ord + Copy>(values: &[T]) -> Option<T> {
    let mut values = values.to_vec();
    values.sort_unstable();
    values.get(values.len().checked_sub(1)? / 2).copied()
}

fn milliseconds(time: Duration) -> String {
    let milliseconds = time.as_secs_f64() * 1e3;
    if milliseconds < 10.0 { format!("{milliseconds:.2} ms") } else { format!("{milliseconds:.0} ms") }
}
