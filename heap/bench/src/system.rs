//! Describes the machine.

use std::fs;
use std::process::Command;
use std::thread::available_parallelism;

use anyhow::Result;

/// Describes the date, the machine and the system, in lines of Markdown.
pub(crate) fn description() -> Result<String> {
    let date = Command::new("date").args(["-u", "+%Y-%m-%d %H:%M UTC"]).output();
    let date = date.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = processors.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown");
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    Ok(format!(
        "- date: {}\n- CPU: {}, {} cores\n- system: {} {}\n- page size: {}\n",
        date.unwrap_or_else(|_| "unknown".to_owned()),
        model.trim_start_matches([' ', '\t', ':']),
        available_parallelism()?,
        std::env::consts::OS,
        kernel.trim().split('-').next().unwrap_or_default(),
        memsnap::page_size(),
    ))
}
