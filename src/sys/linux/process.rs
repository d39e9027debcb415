//! What belongs to one process and must not be believed in its forked children.
//!
//! It lives in a page under `MADV_WIPEONFORK` (Linux 4.14): a child finds zeroes there, which mean
//! "nothing known yet". So a fork is noticed by one load, also where process ids repeat, and no lock
//! can be inherited in a locked state. Where the kernel knows no such pages there is no shared state at
//! all, and callers do without.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicU64, Ordering};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use rustix::rand::{GetRandomFlags, getrandom};

use super::userfault;
use crate::sys::unix::MemoryFile;

static PAGE: AtomicPtr<Process> = AtomicPtr::new(ptr::null_mut());

/// All zero in a process that has not used it, in particular in a fresh child.
pub(super) struct Process {
    stamp: AtomicU64,
    pagemap: Descriptor,
    userfault: Descriptor,
}

/// A descriptor that is opened once and kept. Holds its number plus one.
struct Descriptor(AtomicI32);

/// A value that no other process has, parents and children included.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::sys) struct Stamp(u64);

impl Stamp {
    /// Of the process that a shared mapping has to stay in: this one.
    pub(in crate::sys) fn of_shared(_file: &MemoryFile) -> io::Result<Self> {
        Ok(Process::current().and_then(Process::stamp)?)
    }

    pub(in crate::sys) fn is_current(self) -> bool {
        Process::current().and_then(Process::stamp) == Ok(self)
    }
}

impl Process {
    /// The page of the calling process. `NOMEM` may pass, other errors will not.
    pub(super) fn current() -> Result<&'static Self, Errno> {
        let page = PAGE.load(Ordering::Acquire);
        let page = if page.is_null() { create()? } else { page };
        // SAFETY: the page was mapped readable and writable by `create`, is never unmapped, is
        // aligned to a page, and zeroes (fresh or wiped) are a valid `Process` of atomics.
        Ok(unsafe { &*page })
    }

    /// What tells this process from its relatives.
    pub(super) fn stamp(&self) -> Result<Stamp, Errno> {
        let stamp = self.stamp.load(Ordering::Acquire);
        if stamp != 0 {
            return Ok(Stamp(stamp));
        }
        let mut random = [0; 8];
        // So few bytes come all at once or not at all.
        getrandom(&mut random, GetRandomFlags::empty())?;
        let random = u64::from_ne_bytes(random).max(1);
        let stamp = match self.stamp.compare_exchange(0, random, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => random,
            Err(earlier) => earlier,
        };
        Ok(Stamp(stamp))
    }

    /// `/proc/self/pagemap` of this process.
    pub(super) fn pagemap(&self) -> Result<BorrowedFd<'static>, Errno> {
        self.pagemap.get_or_open(open_pagemap)
    }

    /// The userfaultfd of this process, for asynchronous write-protection.
    pub(super) fn userfault(&self) -> Result<BorrowedFd<'static>, Errno> {
        self.userfault.get_or_open(userfault::open)
    }
}

impl Descriptor {
    fn get_or_open(
        &self,
        open: impl FnOnce() -> Result<OwnedFd, Errno>,
    ) -> Result<BorrowedFd<'static>, Errno> {
        let mut fd = self.0.load(Ordering::Acquire) - 1;
        if fd < 0 {
            let opened = open()?;
            let raw = opened.as_raw_fd();
            match self.0.compare_exchange(0, raw + 1, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => fd = opened.into_raw_fd(),
                Err(earlier) => fd = earlier - 1,
            }
        }
        // SAFETY: the descriptor is owned by the process's page and never closed.
        Ok(unsafe { BorrowedFd::borrow_raw(fd) })
    }
}

fn open_pagemap() -> Result<OwnedFd, Errno> {
    rustix::fs::open("/proc/self/pagemap", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

fn create() -> Result<*mut Process, Errno> {
    let len = rustix::param::page_size();
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping at an address that the kernel picks touches no memory in use.
    let page = unsafe { mmap_anonymous(ptr::null_mut(), len, access, MapFlags::PRIVATE) }?;
    // SAFETY: the range is the mapping just made, whose bytes nobody refers to yet.
    let wiped = unsafe { madvise(page, len, Advice::LinuxWipeOnFork) };
    let ours = wiped.map(|()| {
        let set = PAGE.compare_exchange(ptr::null_mut(), page.cast(), Ordering::AcqRel, Ordering::Acquire);
        set.map_or_else(|earlier| earlier, |_| page.cast())
    });
    if ours != Ok(page.cast()) {
        // SAFETY: the mapping was made above and its address was given to nobody.
        let _ = unsafe { munmap(page, len) };
    }
    ours
}
