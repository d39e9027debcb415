//! Times and their medians.

use std::time::{Duration, Instant};

/// Times of the same work.
#[derive(Clone, Debug, Default)]
pub struct Times(Vec<Duration>);

impl Times {
    /// Adds a time.
    pub fn push(&mut self, time: Duration) {
        self.0.push(time);
    }

    /// Returns the median in seconds. `None` if there are no times.
    #[must_use]
    pub fn median(&self) -> Option<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let middle = sorted.get(sorted.len() / 2)?.as_secs_f64();
        let below = sorted[(sorted.len() - 1) / 2].as_secs_f64();
        Some(f64::midpoint(middle, below))
    }

    /// Returns all times in seconds.
    pub fn seconds(&self) -> impl Iterator<Item = f64> {
        self.0.iter().map(Duration::as_secs_f64)
    }
}

/// Calls `work`, and returns its result and the time that it took.
pub fn time<O>(work: impl FnOnce() -> O) -> (O, Duration) {
    let start = Instant::now();
    let result = work();
    (result, start.elapsed())
}

/// Formats a number with three significant digits, and with all digits of its integer part.
#[must_use]
pub fn number(value: f64) -> String {
    match value.abs() {
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        1.0.. => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// Formats a time.
#[must_use]
pub fn seconds(value: f64) -> String {
    match value {
        ..1e-6 => format!("{} ns", number(value * 1e9)),
        ..1e-3 => format!("{} µs", number(value * 1e6)),
        ..1.0 => format!("{} ms", number(value * 1e3)),
        _ => format!("{} s", number(value)),
    }
}

/// Returns the memory that this process has in RAM, in bytes. `None` on systems other than Linux.
#[must_use]
pub fn resident() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/self/smaps_rollup").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Rss:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<f64>().ok().map(|kibibytes| kibibytes * 1024.0)
}
