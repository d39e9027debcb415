//! The backend for Unix systems other than Linux: macOS, the BSDs, illumos and Android.
//!
//! Linux uses it too with `--cfg memsnap_unix`, so that it can be tested. It uses what POSIX describes and what most of
//! these systems have:
//!
//! | what | mechanism | without it |
//! |---|---|---|
//! | files that can be mapped | `memfd_create` (Linux, Android, FreeBSD 13) | a temporary file without a name |
//! | views that are written in place | a shared mapping of such a file, which `madvise` or `minherit` keeps from forked children | a private mapping, which is captured when the view ends |
//! | finding written pages | all pages are compared | |
//! | discarding private pages | the same pages are mapped again, a limited number of times | the old bytes are copied over them |
//!
//! These mechanisms fit because they do not depend on what POSIX leaves open. `mmap` over an older mapping need not be
//! atomic for threads that read there, and may leave a hole if it fails. `MADV_DONTNEED` is a hint: the bytes may stay
//! or not. What these systems share with Linux is in `unix`.

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

/// Returns whether other threads can read a mapping, and see no difference, while `replace` maps the same bytes there.
///
/// POSIX does not say that a `MAP_FIXED` mapping takes the place of another in one step, or what a failed call leaves.
/// Linux does it under the lock that page faults take, and leaves no hole unless overcommit accounting is strict.
pub(crate) fn replaces_unseen() -> bool {
    cfg!(any(target_os = "linux", target_os = "android")) && !commits_strictly()
}

/// Always returns `None`: no call that all these systems have moves files into huge pages.
pub(crate) fn huge_region() -> Option<usize> {
    None
}

/// Always fails with `Unsupported`: not all of these systems can guarantee that the bytes never change.
#[allow(dead_code, reason = "no module in `os` takes handles here")]
pub(crate) fn received(_handle: Handle) -> io::Result<(MemoryFile, usize)> {
    Err(io::ErrorKind::Unsupported.into())
}
