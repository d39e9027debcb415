//! Which file a descriptor stands for.
#![allow(unsafe_code)]

use std::os::fd::{BorrowedFd, RawFd};

use rustix::fs::Stat;
use rustix::io::Errno;

/// Tells an open file from others: by the numbers of its device and inode, which no other file has as long as this one is
/// open or mapped by anybody.
///
/// Kernels number the files that have no name (memfds, userfaultfds, `/proc`) in sequence. A file system on a disk
/// gives the number of a deleted file to the next one, so a file there has to be kept: see `MemoryFile::hold`.
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

/// What the kernel tells of `fd`. Fails with `BADF` if it is another file than `identity`.
pub(super) fn stat_of(fd: BorrowedFd<'_>, identity: Identity) -> Result<Stat, Errno> {
    let stat = rustix::fs::fstat(fd)?;
    if Identity::of(&stat) == identity { Ok(stat) } else { Err(Errno::BADF) }
}

/// Closes `number`, which is not -1, if it is that file. No more than two system calls, which may be made in any child.
pub(super) fn close_if(number: RawFd, identity: Identity) {
    // SAFETY: the number is not -1. If it stands for no open file, the kernel says so.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    if stat_of(fd, identity).is_ok() {
        // SAFETY: the number stands for the file that it was opened for by memsnap, which does not use it any more.
        unsafe { rustix::io::close(number) };
    }
}
