//! Descriptors that are checked before each use.
//!
//! A descriptor is a number. Other code of the process can close it, for example a daemon that closes all numbers
//! (`close_range`), and then the next file that is opened gets the number. In a thread with a file table of its own
//! (`unshare(CLONE_FILES)`), the number may refer to another file from the start. Using another file would give wrong
//! bytes or miss writes. So a [`Descriptor`] records which file it was opened for, and checks this with the kernel
//! before each use.
//!
//! The check does not help if other code closes the number between the check and the use. How files are recognized is
//! up to `identity.rs`, and which descriptors children close is up to `keys.rs`.
#![allow(unsafe_code)]

use std::os::fd::{BorrowedFd, IntoRawFd, OwnedFd, RawFd};

use rustix::fs::Stat;
use rustix::io::Errno;

use super::identity::{Identity, close_if, stat_of};
use super::keys::Key;
use crate::sys::call;

/// A descriptor that memsnap opened, and closes when it is dropped.
///
/// Invariant: if the number refers to another file than it was opened for, it is neither used nor closed.
pub(in crate::sys) struct Descriptor {
    number: RawFd,
    identity: Identity,
    /// The entry by which forked children close the descriptor.
    key: Option<Key>,
}

impl Descriptor {
    /// Makes a checked descriptor.
    pub(in crate::sys) fn new(fd: OwnedFd) -> Result<Self, Errno> {
        call("fstat").map_err(|_| Errno::NOMEM)?;
        let identity = Identity::of(&rustix::fs::fstat(&fd)?);
        Ok(Self { number: fd.into_raw_fd(), identity, key: None })
    }

    /// Makes a checked descriptor that forked children close.
    pub(in crate::sys) fn kept_from_children(fd: OwnedFd) -> Result<Self, Errno> {
        let mut descriptor = Self::new(fd)?;
        descriptor.key = Some(Key::new(descriptor.number, descriptor.identity)?);
        Ok(descriptor)
    }

    /// Lets children that are forked from now on keep the descriptor.
    pub(in crate::sys) fn leave_to_children(&self) {
        if let Some(key) = &self.key {
            key.withdraw();
        }
    }

    /// Returns whether forked children close the descriptor.
    pub(in crate::sys) fn is_kept_from_children(&self) -> bool {
        self.key.as_ref().is_some_and(Key::is_listed)
    }

    /// Returns the descriptor, to be used for one system call.
    ///
    /// Fails with `BADF` if it is closed or refers to another file.
    pub(in crate::sys) fn get(&self) -> Result<BorrowedFd<'_>, Errno> {
        self.stat()?;
        Ok(self.as_it_is())
    }

    /// Returns what the kernel reports about the file. Fails as [`get`](Self::get) does.
    pub(in crate::sys) fn stat(&self) -> Result<Stat, Errno> {
        call("fstat").map_err(|_| Errno::NOMEM)?;
        stat_of(self.as_it_is(), self.identity)
    }

    /// Returns the descriptor without a check.
    fn as_it_is(&self) -> BorrowedFd<'_> {
        // SAFETY: the number came from an `OwnedFd`, so it is not -1. This value owns the number and closes it only
        // when it is dropped, so it is open as long as the borrow lasts. Code that closes descriptors it does not own
        // breaks this. Then the number refers to another file or none, and `get` returns an error before it is used.
        unsafe { BorrowedFd::borrow_raw(self.number) }
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // In a child, the thread that takes the entry off the list closes the descriptor.
        if self.key.as_ref().is_none_or(Key::withdraw) {
            // If the kernel does not report which file it is, the number stays open. The alternative could close
            // another file.
            close_if(self.number, self.identity);
        }
    }
}
