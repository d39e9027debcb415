//! What the tests of limits, files and memory ask of the system.
#![allow(dead_code)] // Each test file is a crate of its own and uses a part.

use std::env;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Names the test that a re-executed test binary is to run.
const ALONE: &str = "MEMSNAP_TEST_ALONE";

/// Runs `body`, which is all of the test named `test`, in a process of its own: limits, memory and
/// descriptors belong to processes, and other tests run in this one.
pub(crate) fn alone(test: &str, body: impl FnOnce()) {
    alone_with(test, &[], body);
}

/// Runs `body` [alone], in a process whose heap goes on where no mapping can be made any more.
pub(crate) fn with_steady_heap(test: &str, body: impl FnOnce()) {
    if !cfg!(target_env = "gnu") {
        return skipped(test, "only the heap of glibc can be kept from needing mappings of its own");
    }
    // One heap, which grows in steps that outlast the test.
    let top = (64 << 20).to_string();
    let heap = [("MALLOC_ARENA_MAX", "1"), ("MALLOC_MMAP_MAX_", "0"), ("MALLOC_TOP_PAD_", top.as_str())];
    alone_with(test, &heap, body);
}

fn alone_with(test: &str, environment: &[(&str, &str)], body: impl FnOnce()) {
    if env::var_os(ALONE).is_some_and(|name| name == test) {
        return body();
    }
    let output = Command::new(env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture"])
        .env(ALONE, test)
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let (said, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let passed = output.status.success() && said.contains("test result: ok. 1 passed");
    assert!(passed, "{test} in a process of its own: {}\n{said}\n{error}", output.status);
    error.lines().filter(|line| line.starts_with("skipped: ") || line.starts_with("note: ")).for_each(tell);
}

/// Says that `test` could not run here.
pub(crate) fn skipped(test: &str, reason: &str) {
    tell(&format!("skipped: {test}: {reason}"));
}

/// Writes a line to the real standard error, also where the test's output is captured.
pub(crate) fn tell(line: &str) {
    let _ = io::stderr().write_all(format!("\n{line}\n").as_bytes());
}

/// `len` bytes, no two pages of them alike.
pub(crate) fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// `bytes`, and zeroes up to a whole number of pages.
pub(crate) fn padded(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.resize(bytes.len().next_multiple_of(memsnap::page_size()), 0);
    bytes
}

/// Compares without printing megabytes.
#[track_caller]
pub(crate) fn assert_same(what: &str, real: &[u8], expected: &[u8]) {
    assert_eq!(real.len(), expected.len(), "{what}: length");
    if real != expected {
        let at = real.iter().zip(expected).position(|(real, expected)| real != expected).unwrap_or_default();
        let page = at / memsnap::page_size();
        panic!("{what}: byte {at} (page {page}) is {}, expected {}", real[at], expected[at]);
    }
}

/// The message of an error with all that it was caused by.
pub(crate) fn message(error: &io::Error) -> String {
    let mut message = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        message = format!("{message}: {error}");
        source = error.source();
    }
    message
}

/// Of the memory that is mapped in this process, in bytes, from `/proc/self/smaps_rollup`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    pub(crate) rss: usize,
    /// Memory of the process's own.
    pub(crate) anonymous: usize,
    /// Pages of memory files, as far as they are mapped.
    pub(crate) shared: usize,
}

pub(crate) fn memory() -> Memory {
    let rollup = fs::read_to_string("/proc/self/smaps_rollup").unwrap();
    let field = |name| kib(&rollup, name).unwrap_or_else(|| panic!("no {name} in\n{rollup}"));
    Memory { rss: field("Rss:"), anonymous: field("Pss_Anon:"), shared: field("Pss_Shmem:") }
}

fn kib(report: &str, name: &str) -> Option<usize> {
    let line = report.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()? * 1024)
}

/// The numbers of this process's descriptors on memory files of memsnap.
fn memory_descriptors() -> Vec<String> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir("/proc/self/fd").unwrap() {
        let entry = entry.unwrap();
        // The descriptor of the directory is listed too; it is of no interest.
        let target = fs::read_link(entry.path()).unwrap_or_default();
        if target.to_string_lossy().starts_with("/memfd:memsnap") {
            numbers.push(entry.file_name().into_string().unwrap());
        }
    }
    numbers
}

/// Handles on the memory files of memsnap that are open in this process.
pub(crate) fn memory_files() -> Vec<File> {
    let paths = memory_descriptors().into_iter().map(|number| format!("/proc/self/fd/{number}"));
    paths.map(|path| File::open(path).unwrap()).collect()
}

/// Whether each descriptor on a memory file of memsnap is closed on exec.
pub(crate) fn closed_on_exec() -> Vec<bool> {
    const O_CLOEXEC: u32 = 0o2_000_000;
    let flags = memory_descriptors().into_iter().map(|number| {
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{number}")).unwrap();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
        u32::from_str_radix(flags.trim(), 8).unwrap()
    });
    flags.map(|flags| flags & O_CLOEXEC != 0).collect()
}

/// Memory that the memory files of memsnap take up, mapped or not.
pub(crate) fn memory_file_bytes() -> u64 {
    memory_files().iter().map(allocated).sum()
}

/// Memory or disk that a file takes up.
pub(crate) fn allocated(file: &File) -> u64 {
    std::os::unix::fs::MetadataExt::blocks(&file.metadata().unwrap()) * 512
}

/// A soft limit of the process, in force until it is dropped.
pub(crate) struct Limit {
    resource: Resource,
    before: Rlimit,
    /// Whatever takes up the descriptors below the limit.
    fill: Vec<File>,
}

impl Limit {
    /// No further descriptor can be opened.
    pub(crate) fn descriptors() -> Self {
        let mut limit = Self::set(Resource::Nofile, 64);
        limit.fill();
        limit
    }

    /// As many descriptors as `most` can be open.
    pub(crate) fn descriptors_to(most: u64) -> Self {
        Self::set(Resource::Nofile, most)
    }

    /// Takes the descriptors that were closed meanwhile.
    pub(crate) fn fill(&mut self) {
        while let Ok(file) = File::open("/dev/null") {
            self.fill.push(file);
        }
    }

    /// No more than `spare` bytes of address space can be mapped.
    pub(crate) fn address_space(spare: usize) -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let used = kib(&status, "VmSize:").unwrap();
        Self::set(Resource::As, (used + spare) as u64)
    }

    fn set(resource: Resource, limit: u64) -> Self {
        let before = getrlimit(resource);
        setrlimit(resource, Rlimit { current: Some(limit), maximum: before.maximum }).unwrap();
        Self { resource, before, fill: Vec::with_capacity(64) }
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        setrlimit(self.resource, Rlimit { ..self.before }).unwrap();
    }
}

/// A pipe's reading end, to which a thread writes `bytes`.
pub(crate) fn pipe_of(bytes: Vec<u8>) -> File {
    let (reader, mut writer) = io::pipe().unwrap();
    std::thread::spawn(move || writer.write_all(&bytes));
    File::from(OwnedFd::from(reader))
}
