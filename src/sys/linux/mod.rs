//! Linux: private mappings of sealed memfds, and `/proc/self/pagemap` to see which pages of them
//! were written. Written for 5.10 and later; what newer kernels add is probed for.

mod file;
mod memory;
mod pagemap;
mod process;
mod source;
mod tracker;
mod userfault;

/// What another process can be given to have a file.
pub(crate) use std::os::fd::OwnedFd as Handle;

pub(crate) use file::MemoryFile;
pub(crate) use memory::{Mapping, Source};
pub(crate) use source::{borrowed, copy_of, received, stream};
pub(crate) use tracker::{Found, Search, Tracker};

/// Bytes in a page.
#[inline]
pub(crate) fn page_size() -> usize {
    rustix::param::page_size()
}

/// The kernel's estimate of the memory that new work can have without swapping, as far as it has addresses.
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

/// Whether the kernel may hold pages of this process that it, or a device, writes to without a fault: memory
/// pinned or locked for io_uring's fixed buffers, RDMA or VFIO.
fn may_have_pinned_memory() -> bool {
    let Ok(status) = std::fs::read_to_string("/proc/self/status") else { return true };
    let none =
        |name| status.lines().any(|line| line.strip_prefix(name).is_some_and(|kib| kib.trim() == "0 kB"));
    !(none("VmPin:") && none("VmLck:"))
}
