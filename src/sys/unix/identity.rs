//! Recognizes the file that a descriptor number refers to.
//!
//! When descriptors are checked is up to `descriptor.rs` and `keys.rs`.
#![allow(unsafe_code)]

use std::os::fd::{BorrowedFd, RawFd};

use rustix::fs::Stat;
use rustix::io::Errno;

/// The numbers of the device and inode of a file, by which it is recognized.
///
/// No other file has the same numbers as long as this one is open or mapped in any process. After that, a file system
/// on a disk may give the inode number to a new file. So memsnap keeps a page of such a file mapped
/// (`MemoryFile::held`), unless it is a temporary file of `posix`. Kernels number files without a name (memfds,
/// userfaultfds, `/proc`) in sequence.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) device: u64,
    pub(super) inode: u64,
}

impl Identity {
    #[allow(
        clippy::unnecessary_cast,
        clippy::cast_sign_loss,
        reason = "the types are not the same everywhere"
    )]
    pub(super) fn of(stat: &Stat) -> Self {
        Self { device: stat.st_dev as u64, inode: stat.st_ino as u64 }
    }
}

/// Returns what the kernel reports about `fd`.
///
/// Fails with `BADF` if it refers to another file than `identity`.
pub(super) fn stat_of(fd: BorrowedFd<'_>, identity: Identity) -> Result<Stat, Errno> {
    let stat = rustix::fs::fstat(fd)?;
    if Identity::of(&stat) == identity { Ok(stat) } else { Err(Errno::BADF) }
}

/// Closes the descriptor `number`, which is not -1, if it refers to the file `identity`.
///
/// Makes only the system calls `fstat` and `close`, which are allowed in any forked child.
pub(super) fn close_if(number: RawFd, identity: Identity) {
    // SAFETY: the number is not -1. It is used for `fstat` only, which fails if the number refers to no open file.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    if stat_of(fd, identity).is_ok() {
        // SAFETY: the number refers to the file for which memsnap opened it, and no code of memsnap uses it after this.
        unsafe { rustix::io::close(number) };
    }
}
