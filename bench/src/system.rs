//! What the machine is, and how much memory it has to spare.

use std::fs;
use std::thread::available_parallelism;

use anyhow::{Context, Result};
use memsnap::page_size;

use crate::case::{GIB, KIB};

/// More than this is never held at a time.
const MOST: usize = 21 * GIB / 2;
/// What is left to others.
const SPARE: usize = 2 * GIB;

/// How much memory may be held.
pub(crate) fn memory_limit() -> Result<usize> {
    let available = kib(&fs::read_to_string("/proc/meminfo")?, "MemAvailable:")?;
    Ok(available.saturating_sub(SPARE).min(MOST))
}

/// The value of a field of `/proc/meminfo` and the like, in bytes.
pub(crate) fn kib(report: &str, field: &str) -> Result<usize> {
    let line = report.lines().find_map(|line| line.strip_prefix(field));
    let number = line.and_then(|line| line.trim().strip_suffix("kB"));
    let number = number.with_context(|| format!("no {field} in\n{report}"))?;
    Ok(number.trim().parse::<usize>()? * KIB)
}

/// The processor, the kernel and the page size, as lines of Markdown.
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
