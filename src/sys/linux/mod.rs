//! Linux: private mappings of sealed memfds, and `/proc/self/pagemap` to see which pages of them
//! were written. Written for 5.10 and later; what newer kernels add is probed for.

mod file;
mod memory;
mod pagemap;
mod process;
mod source;
mod tracker;
mod userfault;

use rustix::fs::OFlags;

pub(super) use std::os::fd::OwnedFd as Descriptor;
/// What another process can be given to have a file.
pub(crate) use std::os::fd::OwnedFd as Handle;

pub(crate) use super::unix::{
    Mapping, MemoryFile, RUNS_CODE, available_memory, borrowed, copy_of, file_limit, page_size, stream,
};
pub(super) use file::{Kind, borrowed_file, data_extents, new_file};
pub(super) use memory::{NO_REPLACE, NO_RESERVE, Shown, slack};
pub(super) use process::Stamp as Owner;
pub(super) use source::clone_of;
pub(crate) use source::received;
pub(crate) use tracker::Tracker;

/// Of a descriptor that gives no access to bytes.
pub(super) const NOT_OPEN: OFlags = OFlags::PATH;

/// A `MAP_FIXED` mapping takes the place of another in one step, under the lock that page faults take.
pub(crate) const REPLACES_UNSEEN: bool = true;

/// Whether the kernel may hold pages of this process that it, or a device, writes to without a fault: memory
/// pinned or locked for io_uring's fixed buffers, RDMA or VFIO.
fn may_have_pinned_memory() -> bool {
    let Ok(status) = std::fs::read_to_string("/proc/self/status") else { return true };
    let none =
        |name| status.lines().any(|line| line.strip_prefix(name).is_some_and(|kib| kib.trim() == "0 kB"));
    !(none("VmPin:") && none("VmLck:"))
}
