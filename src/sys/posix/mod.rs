//! Unix as POSIX describes it: macOS, the BSDs, illumos and Android; Linux too with `--cfg memsnap_unix`, for tests.
//!
//! | what | how | without it |
//! |---|---|---|
//! | memory to map | `memfd_create` (Linux, Android, FreeBSD 13) | a temporary file without a name |
//! | views written in place | a shared mapping of such memory, kept out of children by `madvise` or `minherit` | a private mapping, captured when the view ends |
//! | written pages | all are compared | |
//! | private pages discarded | the same memory is mapped again, up to a number of times | copied over |
//!
//! Nothing here takes what POSIX leaves open for granted. `mmap` over an older mapping need not be atomic for those who
//! read there, and may leave a hole behind when it fails. `MADV_DONTNEED` is a hint: the bytes may stay or go.

mod file;
mod memory;
mod process;
mod tracker;

use std::io;

pub(crate) use std::os::fd::OwnedFd as Handle;

use super::unix::commits_strictly;
pub(crate) use super::unix::{
    Mapping, MemoryFile, RUNS_CODE, available_memory, borrowed, copy_of, file_limit, page_size, stream,
    writes_in_place,
};
pub(super) use file::{FileDescriptor, Kind, NOT_OPEN, borrowed_file, clone_of, new_file, with_extents};
pub(super) use memory::{NO_REPLACE, NO_RESERVE, Shown, alignment};
pub(super) use process::{Owner, in_child};
pub(crate) use tracker::Tracker;

/// POSIX does not say that a `MAP_FIXED` mapping takes the place of another in one step, nor what is left when it fails.
/// Linux does it under the lock that page faults take, and leaves no hole unless memory is promised strictly.
pub(crate) fn replaces_unseen() -> bool {
    cfg!(any(target_os = "linux", target_os = "android")) && !commits_strictly()
}

/// Always `None`: there are no huge pages.
pub(crate) fn huge_region() -> Option<usize> {
    None
}

/// Nothing that another process can be given keeps its bytes.
#[allow(dead_code, reason = "no module in `os` takes handles here")]
pub(crate) fn received(_handle: Handle) -> io::Result<(MemoryFile, usize)> {
    Err(io::ErrorKind::Unsupported.into())
}
