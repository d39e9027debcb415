//! Times of calls, the description of the machine, and tables of Markdown.

use std::env;
use std::fs;
use std::process::Command;
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use comfy_table::{CellAlignment, Table, presets};

/// The times of repeated calls of one kind.
#[derive(Clone, Default)]
pub struct Times(Vec<Duration>);

impl Times {
    /// Calls `call`, and keeps the time that it took.
    pub fn time<T>(&mut self, call: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = call();
        self.0.push(start.elapsed());
        result
    }

    /// Returns the median time of the calls, or zero if there were none.
    #[must_use]
    pub fn median(&self) -> Duration {
        self.percentile(50)
    }

    /// Returns the time that 99 % of the calls did not exceed, or zero if there were none.
    #[must_use]
    pub fn p99(&self) -> Duration {
        self.percentile(99)
    }

    /// Returns how many calls of the mean time fit in a second, or zero if there were none.
    #[must_use]
    pub fn per_second(&self) -> f64 {
        let total = self.0.iter().sum::<Duration>().as_secs_f64();
        if total == 0.0 { 0.0 } else { self.0.len() as f64 / total }
    }

    fn percentile(&self, percent: usize) -> Duration {
        let mut times = self.0.clone();
        times.sort_unstable();
        let rank = (times.len() * percent).div_ceil(100);
        times.get(rank.saturating_sub(1)).copied().unwrap_or_default()
    }
}

impl Extend<Duration> for Times {
    fn extend<I: IntoIterator<Item = Duration>>(&mut self, times: I) {
        self.0.extend(times);
    }
}

/// Formats a duration with three significant digits.
#[must_use]
pub fn time(time: Duration) -> String {
    let nanoseconds = time.as_secs_f64() * 1e9;
    match nanoseconds {
        ..1e3 => format!("{nanoseconds:.0} ns"),
        ..1e6 => format!("{} µs", three_digits(nanoseconds / 1e3)),
        ..1e9 => format!("{} ms", three_digits(nanoseconds / 1e6)),
        _ => format!("{} s", three_digits(nanoseconds / 1e9)),
    }
}

/// Formats `what` divided by `than`, with three significant digits.
#[must_use]
pub fn ratio(what: Duration, than: Duration) -> String {
    format!("{} x", three_digits(what.as_secs_f64() / than.as_secs_f64()))
}

/// Formats a number with three significant digits, but always with its integer part.
#[must_use]
pub fn three_digits(number: f64) -> String {
    let decimals = match number {
        ..1.0 => 3,
        ..10.0 => 2,
        ..100.0 => 1,
        _ => 0,
    };
    format!("{number:.decimals$}")
}

/// Makes a table of Markdown. All columns but the first are aligned as numbers.
#[must_use]
pub fn table<const N: usize>(header: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN).set_header(header).add_rows(rows);
    table.column_iter_mut().skip(1).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
    table
}

/// Returns the start of a record: a title, the date, the machine, and the command that made the record.
#[must_use]
pub fn heading(title: &str, bin: &str) -> String {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments = if arguments.is_empty() { String::new() } else { format!(" -- {}", arguments.join(" ")) };
    format!(
        "# {title}\n\n- date: {}\n{}- command: `cargo run --release -p memsnap-showcase --bin {bin}{arguments}`\n",
        date(),
        machine(),
    )
}

/// Returns the current date, from the program `date`.
fn date() -> String {
    let output = Command::new("date").args(["-u", "+%Y-%m-%d %H:%M UTC"]).output();
    output.map_or("unknown".to_owned(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Describes the processor, the system and the page size, in lines of Markdown.
fn machine() -> String {
    let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = processors
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map_or(env::consts::ARCH, |line| line.trim_start_matches([' ', '\t', ':']));
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!(
        "- CPU: {model}, {} cores\n- system: {} {}\n- page size: {}\n",
        available_parallelism().map_or(1, usize::from),
        env::consts::OS,
        release.trim().split('-').next().unwrap_or_default(),
        memsnap::page_size(),
    )
}

/// Returns the memory of this process in bytes, or `None` if the system does not report it.
///
/// It is `Pss` of `/proc/self/smaps_rollup`, so a page counts once, however often this process maps it.
#[must_use]
pub fn memory() -> Option<u64> {
    let report = fs::read_to_string("/proc/self/smaps_rollup").ok()?;
    let line = report.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}
