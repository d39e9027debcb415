//! Linux: private mappings of sealed memfds, and `/proc/self/pagemap` to see which pages of them
//! were written. Written for 5.10 and later; what newer kernels add is probed for.

mod file;
mod huge;
mod memory;
mod pagemap;
mod process;
mod source;
mod tracker;
mod userfault;

use rustix::fs::OFlags;
use rustix::io::Errno;

/// What another process can be given to have a file.
pub(crate) use std::os::fd::OwnedFd as Handle;

use super::call;
pub(super) use super::unix::Descriptor as FileDescriptor;
use super::unix::commits_strictly;
pub(crate) use super::unix::{
    Mapping, MemoryFile, RUNS_CODE, available_memory, borrowed, copy_of, file_limit, page_size, stream,
    writes_in_place,
};
pub(super) use file::{Kind, borrowed_file, new_file};
pub(crate) use huge::huge_region;
pub(super) use memory::{NO_REPLACE, NO_RESERVE, Shown, alignment};
use process::Process;
pub(super) use process::{Generation as Owner, in_child};
pub(crate) use source::received;
pub(super) use source::{clone_of, with_extents};
pub(crate) use tracker::Tracker;

/// Of a descriptor that gives no access to bytes.
pub(super) const NOT_OPEN: OFlags = OFlags::PATH;

/// A `MAP_FIXED` mapping takes the place of another in one step, under the lock that page faults take. Where memory is
/// promised strictly it may fail and leave a hole (before 6.12: see `unix/mapping.rs`). There no view is written
/// in place, unless it was before that was set.
pub(crate) fn replaces_unseen() -> bool {
    !commits_strictly()
}

/// Whether the kernel may hold pages of this process that it, or a device, writes to without a fault: memory
/// pinned or locked for io_uring's fixed buffers, RDMA or VFIO.
fn may_have_pinned_memory() -> bool {
    counts(&["VmPin:", "VmLck:"])
}

/// The same, of memory that is pinned and not only locked.
fn has_pinned_memory() -> bool {
    counts(&["VmPin:"])
}

/// Whether the kernel counts any memory of the process under one of these names, or does not say.
fn counts(names: &[&str]) -> bool {
    let Ok(status) = read_status() else { return true };
    let none =
        |name| status.lines().any(|line| line.strip_prefix(name).is_some_and(|kib| kib.trim() == "0 kB"));
    !names.iter().copied().all(none)
}

/// The start of `/proc/self/status`, up to at least the lines for pinned and locked memory.
fn read_status() -> Result<String, Errno> {
    /// The line that follows these lines.
    const NEXT: &str = "\nVmHWM:";
    let file = Process::current()?.status()?;
    let mut buffer = vec![0; 1024];
    loop {
        call("pread").map_err(|_| Errno::NOMEM)?;
        let read = rustix::io::pread(&file, &mut buffer, 0)?;
        let text = String::from_utf8_lossy(&buffer[..read]);
        // The list of groups comes before these lines, and may be long.
        if read < buffer.len() || text.contains(NEXT) {
            return Ok(text.into_owned());
        }
        buffer.resize(2 * buffer.len(), 0);
    }
}
