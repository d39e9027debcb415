//! Describes the machine, and reads the counters of this process.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, available_parallelism};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};

/// Returns a number in a file such as `/proc/self/status`, without its unit.
fn field(path: &str, name: &str) -> Result<u64> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {path}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    number.with_context(|| format!("{path} has no number {name}"))
}

/// Returns the number of bytes that this process has written with system calls.
pub(crate) fn written() -> Result<u64> {
    field("/proc/self/io", "wchar")
}

/// Returns a number of bytes in `/proc/self/status`.
pub(crate) fn memory(name: &str) -> Result<u64> {
    Ok(field("/proc/self/status", name)? * 1024)
}

/// Runs a call.
///
/// Returns its result, and the greatest anonymous memory of this process, sampled each millisecond.
pub(crate) fn peak_of_anonymous_memory<T>(call: impl FnOnce() -> Result<T>) -> Result<(T, u64)> {
    let done = AtomicBool::new(false);
    let (result, most) = thread::scope(|scope| {
        let sampler = scope.spawn(|| -> Result<u64> {
            let mut most = memory("RssAnon")?;
            while !done.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(1));
                most = most.max(memory("RssAnon")?);
            }
            Ok(most)
        });
        let result = call();
        done.store(true, Ordering::Relaxed);
        (result, sampler.join())
    });
    let most = most.map_err(|_| anyhow!("the thread that samples memory panicked"))??;
    Ok((result?, most))
}

/// Describes the date, the machine and the versions, in lines of Markdown.
pub(crate) fn description() -> Result<String> {
    let date = Command::new("date").args(["-u", "+%Y-%m-%d %H:%M UTC"]).output().context("starting date")?;
    let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = processors.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown");
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    Ok(format!(
        "- date: {}\n- CPU: {}, {} cores\n- system: Linux {}\n- page size: {}\n",
        String::from_utf8_lossy(&date.stdout).trim(),
        model.trim_start_matches([' ', '\t', ':']),
        available_parallelism()?,
        kernel.trim().split('-').next().unwrap_or_default(),
        memsnap::page_size(),
    ))
}

/// Returns the type of the file system at a path.
pub(crate) fn file_system(path: &Path) -> String {
    let output = Command::new("df").args(["--output=fstype"]).arg(path).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.lines().nth(1).unwrap_or("unknown").trim().to_owned()
}
