//! What all Unix systems do in the same way. What each does in its own comes from `system`:
//!
//! | item | meaning |
//! |---|---|
//! | `new_file`, `borrowed_file` | an empty file of our own, and another `FileDescriptor` of somebody's; with the `Kind` of file it is |
//! | `clone_of`, `with_extents`, `NOT_OPEN` | how a file is copied: a clone that shares its blocks; the file opened anew, and where it is not all zero; flags of a descriptor that reads nothing |
//! | `FileDescriptor` | a [`Descriptor`], or something that gives one |
//! | `Owner` | the process that a shared mapping stays in |
//! | `in_child` | what a forked child calls first: it gives itself a number and closes what it must not have inherited |
//! | `Shown` | notes which pages of a mapping show what, where `discard` has to know |
//! | `NO_RESERVE`, `NO_REPLACE`, `alignment` | flags of `mmap`; the addresses that huge pages need |
//!
//! and the methods of [`MemoryFile`] and [`Mapping`] that are not here: `finish`, `punch`, `collapse`, `share`,
//! `data`, `allocated`; `discard`, `give_back`, `populate`, `advise`.

mod code;
mod descriptor;
mod file;
mod identity;
mod keys;
mod mapping;
pub(in crate::sys) mod source;

pub(crate) use code::RUNS_CODE;
pub(in crate::sys) use descriptor::Descriptor;
pub(crate) use file::MemoryFile;
pub(in crate::sys) use keys::{close_inherited, next_number};
pub(crate) use mapping::Mapping;
pub(crate) use source::{borrowed, copy_of, stream};

#[cfg(test)]
use super::fault;

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

/// Whether a page of a shared mapping is there when it is written for the first time. Where Linux promises no more
/// memory than there is (`vm.overcommit_memory=2`), each page of a memfd is counted when it is first touched, and at the
/// limit the process is stopped (`SIGBUS`); private memory is refused when it is mapped.
pub(crate) fn writes_in_place() -> bool {
    !commits_strictly()
}

/// Whether Linux promises no more memory than there is. Without its `/proc`, the usual is assumed, which is that it does.
pub(super) fn commits_strictly() -> bool {
    #[cfg(test)]
    if fault::commits_strictly() {
        return true;
    }
    std::fs::read("/proc/sys/vm/overcommit_memory").is_ok_and(|mode| mode.trim_ascii() == b"2")
}

/// Files that the process may have open.
pub(crate) fn file_limit() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX))
}
