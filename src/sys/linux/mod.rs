//! The Linux backend: private mappings of sealed memfds, and `/proc/self/pagemap` to find their written pages.
//!
//! | what | mechanism | why | since | without it |
//! |---|---|---|---|---|
//! | files | memfds with seals | the kernel guarantees that sealed bytes never change | 3.17 | no snapshot can be made, except of a file that is mapped in place or cloned |
//! | finding written pages | userfaultfd with asynchronous write-protection, and `PAGEMAP_SCAN` | a search takes 1 to 2 ns for each page-table entry | 6.7 | private pages are listed by reading `/proc/self/pagemap`; if that is refused too, all pages are compared |
//! | forks | a page under `MADV_WIPEONFORK` | one load notices a fork | 4.14 | no view is written in place, and all pages are compared |
//! | huge pages | `MADV_COLLAPSE` | moves mapped pages of a file into huge pages | 6.1 | files stay in pages of the usual size |
//!
//! The backend is written for Linux 5.10 and later. It probes for what newer kernels add. `tracker.rs` describes the
//! tracking methods. The code that Linux shares with other Unix systems is in `unix`.

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

/// What is sent to another process to share a file with it.
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

/// The flag of descriptors that give no access to the bytes of their file.
pub(super) const NOT_OPEN: OFlags = OFlags::PATH;

/// Returns whether other threads can read a mapping, and see no difference, while `replace` maps the same bytes there.
///
/// A `MAP_FIXED` mapping takes the place of another in one step, under the lock that page faults take. With strict
/// overcommit accounting, it may fail and leave a hole (before Linux 6.12, see `unix/mapping.rs`). So no view is opened
/// to be written in place while strict accounting is on. A view that was opened before continues to be written in
/// place, and its snapshots copy the written pages.
pub(crate) fn replaces_unseen() -> bool {
    !commits_strictly()
}

/// Returns whether a device or the kernel may write to pages of the process without a page fault.
///
/// Such memory is pinned or locked, for example for fixed buffers of io_uring, for RDMA or for VFIO.
fn may_have_pinned_memory() -> bool {
    counts(&["VmPin:", "VmLck:"])
}

/// Returns whether the process may have pinned memory. Memory that is only locked does not count.
fn has_pinned_memory() -> bool {
    counts(&["VmPin:"])
}

/// Returns whether the kernel counts memory of the process under one of these names.
///
/// Also returns `true` if the kernel does not report these counts.
fn counts(names: &[&str]) -> bool {
    let Ok(status) = read_status() else { return true };
    let none =
        |name| status.lines().any(|line| line.strip_prefix(name).is_some_and(|kib| kib.trim() == "0 kB"));
    !names.iter().copied().all(none)
}

/// Reads the start of `/proc/self/status`, at least up to the lines for pinned and locked memory.
fn read_status() -> Result<String, Errno> {
    /// The name of the line that follows them.
    const NEXT: &str = "\nVmHWM:";
    let file = Process::current()?.status()?;
    let mut buffer = vec![0; 1024];
    loop {
        call("pread").map_err(|_| Errno::NOMEM)?;
        let read = rustix::io::pread(&file, &mut buffer, 0)?;
        let text = String::from_utf8_lossy(&buffer[..read]);
        // The list of groups precedes these lines and may be long.
        if read < buffer.len() || text.contains(NEXT) {
            return Ok(text.into_owned());
        }
        buffer.resize(2 * buffer.len(), 0);
    }
}
