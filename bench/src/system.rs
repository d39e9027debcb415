//! The machine: its description, the memory that a run may hold, and the processor time that other processes take.

use std::fs;
use std::ops::Range;
use std::thread::available_parallelism;

use anyhow::{Context, Result, ensure};
use memsnap::page_size;

use crate::case::{GIB, KIB};

/// The most memory that a run holds at a time.
const MOST: usize = 21 * GIB / 2;
/// The memory that a run leaves to other processes.
const SPARE: usize = 2 * GIB;

/// Returns how many bytes of memory a run may hold.
pub(crate) fn memory_limit() -> Result<usize> {
    let available = kib(&fs::read_to_string("/proc/meminfo")?, "MemAvailable:")?;
    Ok(available.saturating_sub(SPARE).min(MOST))
}

/// Returns a field of `/proc/meminfo`, or of a file in the same format, in bytes.
pub(crate) fn kib(report: &str, field: &str) -> Result<usize> {
    let line = report.lines().find_map(|line| line.strip_prefix(field));
    let number = line.and_then(|line| line.trim().strip_suffix("kB"));
    let number = number.with_context(|| format!("no {field} in\n{report}"))?;
    Ok(number.trim().parse::<usize>()? * KIB)
}

/// How the time of all processors was used since the system started, in ticks.
#[derive(Clone, Copy)]
pub(crate) struct Processors {
    all: u64,
    idle: u64,
    own: u64,
}

impl Processors {
    pub(crate) fn now() -> Result<Self> {
        let system = fs::read_to_string("/proc/stat")?;
        // The fields are user, nice, system, idle, iowait, irq, softirq and steal.
        let system = ticks(system.lines().next().unwrap_or_default(), 1..9)?;
        let own = fs::read_to_string("/proc/self/stat")?;
        let (_, own) = own.rsplit_once(')').context("/proc/self/stat has no `)`")?;
        // User and system time of this process, and of its children that have ended.
        let own = ticks(own, 11..15)?.iter().sum();
        Ok(Self { all: system.iter().sum(), idle: system[3] + system[4], own })
    }

    /// Returns the share of the processors' time since `start` that other processes took, in percent.
    pub(crate) fn others_since(self, start: Self) -> f64 {
        let busy = (self.all - self.idle).saturating_sub(start.all - start.idle);
        let others = busy.saturating_sub(self.own - start.own);
        100.0 * others as f64 / (self.all - start.all).max(1) as f64
    }
}

/// Returns the numbers in the given fields of a line.
fn ticks(line: &str, fields: Range<usize>) -> Result<Vec<u64>> {
    let ticks = line.split_whitespace().skip(fields.start).take(fields.len());
    let ticks: Vec<u64> = ticks.map(str::parse).collect::<Result<_, _>>()?;
    ensure!(ticks.len() == fields.len(), "fields {fields:?} are missing in: {line}");
    Ok(ticks)
}

/// Describes the processor, the kernel and the page size, in lines of Markdown.
pub(crate) fn description() -> Result<String> {
    let processors = fs::read_to_string("/proc/cpuinfo")?;
    let model = processors.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown");
    let kernel = fs::read_to_string("/proc/version")?;
    Ok(format!(
        "- CPU: {}, {} cores\n- kernel: {}\n- page size: {}\n",
        model.trim_start_matches([' ', '\t', ':']),
        available_parallelism()?,
        kernel.trim(),
        page_size(),
    ))
}
