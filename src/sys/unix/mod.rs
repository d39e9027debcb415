//! What all Unix systems do in the same way. What each does in its own comes from `system`:
//!
//! | item | meaning |
//! |---|---|
//! | `new_file`, `borrowed_file` | an empty file of our own, and another `Descriptor` of somebody's; with the `Kind` of file it is |
//! | `clone_of`, `data_extents`, `NOT_OPEN` | how a file is copied: a clone that shares its blocks; where it is not all zero; flags of a descriptor that reads nothing |
//! | `Owner` | the process that a shared mapping stays in |
//! | `Shown` | notes which pages of a mapping show what, where `discard` has to know |
//! | `NO_RESERVE`, `NO_REPLACE`, `slack` | flags of `mmap`; room that huge pages take |
//!
//! and the methods of [`MemoryFile`] and [`Mapping`] that are not here: `finish`, `punch`, `collapse`, `share`,
//! `data`, `allocated`; `discard`, `give_back`, `populate`, `advise`.

mod code;
mod file;
mod mapping;
pub(in crate::sys) mod source;

pub(crate) use code::RUNS_CODE;
pub(crate) use file::MemoryFile;
pub(crate) use mapping::Mapping;
pub(crate) use source::{borrowed, copy_of, stream};

/// Bytes in a page.
#[inline]
pub(crate) fn page_size() -> usize {
    rustix::param::page_size()
}

/// The kernel's estimate of the memory that new work can have without swapping, where there is Linux's `/proc`.
pub(crate) fn available_memory() -> Option<usize> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: usize = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    // A process of 32 bits may run on a machine with more memory than it has addresses.
    Some(kib.saturating_mul(1024))
}

/// Files that the process may have open.
pub(crate) fn file_limit() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX))
}
