//! Descriptors that are checked before they are used.
//!
//! A descriptor is a number. Other code of the process can close it, as a daemon does that closes all numbers
//! (`close_range`), and the next file that is opened gets the number. In a thread with a file table of its own
//! (`unshare(CLONE_FILES)`) it may name another file from the start. To map, read or ask another file would give wrong
//! bytes, or miss writes. So a [`Descriptor`] knows which file it is for, and asks the kernel each time.
//!
//! This is no help against code that closes the number in the middle of a call.
#![allow(unsafe_code)]

use std::os::fd::{BorrowedFd, IntoRawFd, OwnedFd, RawFd};

use rustix::fs::Stat;
use rustix::io::Errno;

use super::identity::{Identity, close_if, stat_of};
use super::keys::Key;
use crate::sys::call;

/// A descriptor of memsnap's own, closed when it is dropped. Whatever the number stands for meanwhile, another file is
/// neither used nor closed.
pub(in crate::sys) struct Descriptor {
    number: RawFd,
    identity: Identity,
    /// Has forked children close it.
    key: Option<Key>,
}

impl Descriptor {
    pub(in crate::sys) fn new(fd: OwnedFd) -> Result<Self, Errno> {
        call("fstat").map_err(|_| Errno::NOMEM)?;
        let identity = Identity::of(&rustix::fs::fstat(&fd)?);
        Ok(Self { number: fd.into_raw_fd(), identity, key: None })
    }

    /// One that forked children must not have: they close it.
    pub(in crate::sys) fn kept_from_children(fd: OwnedFd) -> Result<Self, Errno> {
        let mut descriptor = Self::new(fd)?;
        descriptor.key = Some(Key::new(descriptor.number, descriptor.identity)?);
        Ok(descriptor)
    }

    /// Lets children that are forked from now on have it.
    pub(in crate::sys) fn leave_to_children(&self) {
        if let Some(key) = &self.key {
            key.withdraw();
        }
    }

    pub(in crate::sys) fn is_kept_from_children(&self) -> bool {
        self.key.as_ref().is_some_and(Key::is_listed)
    }

    /// The descriptor, for one call. Fails with `BADF` where it is closed or another file.
    pub(in crate::sys) fn get(&self) -> Result<BorrowedFd<'_>, Errno> {
        self.stat()?;
        Ok(self.as_it_is())
    }

    /// What the kernel tells of the file. Fails as [`get`](Self::get) does.
    pub(in crate::sys) fn stat(&self) -> Result<Stat, Errno> {
        call("fstat").map_err(|_| Errno::NOMEM)?;
        stat_of(self.as_it_is(), self.identity)
    }

    fn as_it_is(&self) -> BorrowedFd<'_> {
        // SAFETY: the number is that of an `OwnedFd`, so it is not -1. This value owns it and closes it only when it is
        // dropped. Code that closes what it does not own breaks that; then the number stands for another file or
        // none, which `get` turns into an error before it is used.
        unsafe { BorrowedFd::borrow_raw(self.number) }
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // In a child, whoever takes the entry off the list closes the descriptor.
        if self.key.as_ref().is_none_or(Key::withdraw) {
            // Where the kernel does not tell, the number stays open: that is better than to close somebody else's file.
            close_if(self.number, self.identity);
        }
    }
}
