//! The code that all Unix systems share: mappings, files, checked descriptors, and copies of files.
//!
//! The module `system`, which is `linux` or `posix`, provides the rest:
//!
//! | item | meaning |
//! |---|---|
//! | `new_file`, `borrowed_file` | an empty file that only memsnap has; another `FileDescriptor` of a file that other code has. Both come with the `Kind` of the file |
//! | `clone_of` | a copy of a file that shares its blocks |
//! | `with_extents` | a file that was opened again, with the ranges that are not holes |
//! | `NOT_OPEN` | the flags of a descriptor that gives no access to bytes |
//! | `FileDescriptor` | a [`Descriptor`], or a pointer to one |
//! | `Owner` | the process that a shared mapping stays in |
//! | `in_child` | the handler that a forked child calls first: it gives the child a number and closes descriptors that the child must not have |
//! | `Shown` | records what the pages of a mapping show, if `discard` needs that |
//! | `NO_RESERVE`, `NO_REPLACE` | flags of `mmap` |
//! | `alignment` | the alignment that huge pages need |
//!
//! It also adds the other methods of [`MemoryFile`] (`finish`, `seal`, `may_be_sealed`, `punch`, `collapse`, `holes`,
//! `share`, `data`, `allocated`) and of [`Mapping`] (`discard`, `give_back`, `populate`, `entries`, `advise`).

mod code;
mod descriptor;
mod file;
mod identity;
mod keys;
mod mapping;
mod reserve;
pub(in crate::sys) mod source;

pub(crate) use code::RUNS_CODE;
pub(in crate::sys) use descriptor::Descriptor;
pub(crate) use file::MemoryFile;
pub(in crate::sys) use keys::{close_inherited, next_number};
pub(crate) use mapping::Mapping;
pub(crate) use source::{borrowed, copy_of, stream};

#[cfg(test)]
use super::fault;

/// Returns the number of bytes in a page.
#[inline]
pub(crate) fn page_size() -> usize {
    rustix::param::page_size()
}

/// Returns the kernel's estimate of the bytes that can be allocated without swapping.
///
/// Returns `None` unless the system has Linux's `/proc`.
pub(crate) fn available_memory() -> Option<usize> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: usize = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    // A machine may have more memory than a 32-bit process has addresses.
    Some(kib.saturating_mul(1024))
}

/// Returns whether each page of a shared mapping is sure to get memory when it is first written.
///
/// With strict overcommit accounting, Linux counts each page of a memfd when it is first accessed. At the limit, the
/// process gets `SIGBUS`. Private memory is counted when it is mapped, so the limit is an error there.
pub(crate) fn writes_in_place() -> bool {
    !commits_strictly()
}

/// Returns whether Linux uses strict overcommit accounting (`vm.overcommit_memory=2`).
///
/// Returns `false` if that is unknown.
pub(super) fn commits_strictly() -> bool {
    #[cfg(test)]
    if fault::commits_strictly() {
        return true;
    }
    std::fs::read("/proc/sys/vm/overcommit_memory").is_ok_and(|mode| mode.trim_ascii() == b"2")
}

/// Returns the number of files that the process may have open.
pub(crate) fn file_limit() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX))
}
