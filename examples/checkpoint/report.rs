//! Times of the library's calls, and the tables that show them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytesize::ByteSize;
use comfy_table::{CellAlignment, Table, presets};
use memsnap::Snapshot;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Operation {
    MakeImage,
    View,
    ViewOfSnapshot,
    TakeSnapshot,
    Restore,
    RestoreTo,
    Diff,
    TryClone,
}

impl Operation {
    fn name(self) -> &'static str {
        match self {
            Self::MakeImage => "make the image",
            Self::View => "view",
            Self::ViewOfSnapshot => "view of a snapshot taken",
            Self::TakeSnapshot => "take_snapshot",
            Self::Restore => "restore",
            Self::RestoreTo => "restore_to",
            Self::Diff => "diff",
            Self::TryClone => "try_clone",
        }
    }
}

/// Timed calls: for each, the operation, the number of pages that changed, and the time.
#[derive(Clone, Default)]
pub(crate) struct Calls(Vec<(Operation, usize, Duration)>);

impl Calls {
    pub(crate) fn time<T>(&mut self, operation: Operation, pages: usize, call: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = call();
        self.0.push((operation, pages, start.elapsed()));
        result
    }

    pub(crate) fn extend(&mut self, others: Self) {
        self.0.extend(others.0);
    }

    pub(crate) fn table(&self, copy: Duration) -> Table {
        let mut calls: BTreeMap<Operation, Vec<(usize, Duration)>> = BTreeMap::new();
        for &(operation, pages, time) in &self.0 {
            calls.entry(operation).or_default().push((pages, time));
        }
        let mut table = Table::new();
        table.load_style(presets::ASCII_MARKDOWN).set_header([
            "operation",
            "calls",
            "pages changed (mean)",
            "median",
            "p99",
            "plain copy of it all",
            "copy / median (ratio measured in this run)",
        ]);
        for (operation, calls) in calls {
            let (pages, times): (Vec<_>, Vec<_>) = calls.into_iter().unzip();
            let median = percentile(times.clone(), 50);
            table.add_row([
                operation.name().to_owned(),
                times.len().to_string(),
                (pages.iter().sum::<usize>() / pages.len()).to_string(),
                format!("{median:.1?}"),
                format!("{:.1?}", percentile(times, 99)),
                format!("{copy:.1?}"),
                three_digits(copy.as_secs_f64() / median.as_secs_f64()),
            ]);
        }
        numbers_to_the_right(table)
    }
}

/// Returns the `percent`-th percentile of `times`, which must not be empty.
pub(crate) fn percentile(mut times: Vec<Duration>, percent: usize) -> Duration {
    times.sort_unstable();
    times[(times.len() * percent).div_ceil(100) - 1]
}

fn three_digits(ratio: f64) -> String {
    let decimals = match ratio {
        ..1.0 => 3,
        ..10.0 => 2,
        ..100.0 => 1,
        _ => 0,
    };
    format!("{ratio:.decimals$}")
}

/// Makes a table of the memory of all snapshots together, and of a copy for each.
pub(crate) fn memory_table(root: &Snapshot, taken: &[Snapshot]) -> Table {
    let bytes = |len: usize| ByteSize(len as u64);
    let stats = root.stats();
    let flat = stats.flat + taken.iter().map(|snapshot| snapshot.stats().flat).sum::<u64>();
    let store = bytes(stats.store.live) + bytes(stats.store.recyclable);
    let together = ByteSize(stats.base + flat) + store;
    let copies = ByteSize(root.content_len() as u64 * (1 + taken.len() as u64));
    let mut table = Table::new();
    table
        .load_style(presets::ASCII_MARKDOWN)
        .set_header([format!("memory of {} snapshots", 1 + taken.len()), "bytes".to_owned()]);
    for (name, size) in [
        ("base: the image, held once by all", ByteSize(stats.base)),
        ("store, live: captured pages that a snapshot shows", bytes(stats.store.live)),
        ("store, recyclable: kept for the next capture", bytes(stats.store.recyclable)),
        ("flat: pages copied for views to map, of all snapshots", ByteSize(flat)),
        ("together", together),
        ("a full copy for each snapshot", copies),
    ] {
        table.add_row([name.to_owned(), size.to_string()]);
    }
    let ratio = copies.as_u64() as f64 / together.as_u64() as f64;
    table.add_row(["copies / together".to_owned(), three_digits(ratio)]);
    numbers_to_the_right(table)
}

/// Aligns all columns but the first to the right, since they are numbers.
fn numbers_to_the_right(mut table: Table) -> Table {
    table.column_iter_mut().skip(1).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
    table
}
