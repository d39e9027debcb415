//! What belongs to one process and must not be believed in its forked children.
//!
//! It lives in a page under `MADV_WIPEONFORK` (Linux 4.14): a child finds zeroes there, which mean
//! "nothing known yet". So a fork is noticed by one load, also where process ids repeat, and no lock
//! can be inherited in a locked state. Where the kernel knows no such pages there is no shared state at
//! all, and callers do without.
//!
//! A child notices the fork in a `pthread_atfork` handler, or, where none was run, at its first call of memsnap that
//! gets here. It then closes what it must not have of its parent; see `unix/keys.rs`. (A child that shares its parent's file
//! table but not its memory, which takes a bare `clone`, closes it for the parent too; that goes on with a slower way of
//! finding pages, and with an error for a view written in place.)
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

use super::userfault;
use crate::sys::unix::{Descriptor, MemoryFile, close_inherited, next_number};

static PAGE: AtomicPtr<Process> = AtomicPtr::new(ptr::null_mut());

/// All zero in a process that has not used it, in particular in a fresh child.
pub(super) struct Process {
    /// A number that no ancestor has. Descriptors that were listed by one have smaller numbers.
    generation: AtomicU64,
    pagemap: AtomicPtr<Descriptor>,
    status: AtomicPtr<Descriptor>,
    userfault: AtomicPtr<Descriptor>,
}

/// Of a process, a number that neither its ancestors nor its descendants have. Nobody else knows of its mappings: those
/// of a sibling were made after the fork.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::sys) struct Generation(u64);

impl Generation {
    /// Of the process that a shared mapping has to stay in: this one. Fails with `Unsupported` for files that children would
    /// have.
    pub(in crate::sys) fn of_shared(file: &MemoryFile) -> io::Result<Self> {
        if !file.is_kept_from_children() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        Ok(Process::current()?.generation())
    }

    pub(in crate::sys) fn is_current(self) -> bool {
        Process::current().is_ok_and(|process| process.generation() == self)
    }
}

/// A file of this process in `/proc`, for one call.
pub(super) enum ProcessFile {
    Kept(BorrowedFd<'static>),
    Opened(OwnedFd),
}

impl AsFd for ProcessFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Kept(fd) => *fd,
            Self::Opened(fd) => fd.as_fd(),
        }
    }
}

impl Process {
    /// The page of the calling process. `NOMEM` may pass, other errors will not.
    pub(super) fn current() -> Result<&'static Self, Errno> {
        let page = PAGE.load(Ordering::Acquire);
        let page = if page.is_null() { create()? } else { page };
        // SAFETY: the page was mapped readable and writable by `create`, is never unmapped, is
        // aligned to a page, and zeroes (fresh or wiped) are a valid `Process` of atomics.
        let process = unsafe { &*page };
        if process.generation.load(Ordering::Acquire) == 0 {
            process.begin();
        }
        Ok(process)
    }

    /// In a new process. Allocates nothing and takes no lock.
    #[cold]
    fn begin(&self) {
        let number = next_number();
        // Should another thread be faster, its number counts.
        let _ = self.generation.compare_exchange(0, number, Ordering::AcqRel, Ordering::Acquire);
        close_inherited(self.generation.load(Ordering::Acquire));
    }

    fn generation(&self) -> Generation {
        Generation(self.generation.load(Ordering::Relaxed))
    }

    /// `/proc/self/pagemap`.
    pub(super) fn pagemap(&'static self) -> Result<ProcessFile, Errno> {
        kept_or_opened(&self.pagemap, || open_in_proc("/proc/self/pagemap"))
    }

    /// `/proc/self/status`. Reading it takes half the time if it is kept open.
    pub(super) fn status(&'static self) -> Result<ProcessFile, Errno> {
        kept_or_opened(&self.status, || open_in_proc("/proc/self/status"))
    }

    /// The userfaultfd of this process, for asynchronous write-protection. There is no other, since memory is protected
    /// for as long as the userfaultfd that it was registered with is open.
    pub(super) fn userfault(&'static self) -> Result<BorrowedFd<'static>, Errno> {
        get_or_open(&self.userfault, userfault::open)?.get()
    }
}

/// A file of this process in `/proc`, kept open. If the descriptor that is kept was closed, or refers to another file
/// in this thread, the file is opened for this call only. Keeping the new descriptor as well would leave one behind in
/// each thread that has a file table of its own.
fn kept_or_opened(
    place: &'static AtomicPtr<Descriptor>,
    open: fn() -> Result<OwnedFd, Errno>,
) -> Result<ProcessFile, Errno> {
    match get_or_open(place, open)?.get() {
        Ok(kept) => Ok(ProcessFile::Kept(kept)),
        Err(_) => open().map(ProcessFile::Opened),
    }
}

/// The descriptor that is kept in this process.
fn get_or_open(
    place: &'static AtomicPtr<Descriptor>,
    open: fn() -> Result<OwnedFd, Errno>,
) -> Result<&'static Descriptor, Errno> {
    let mut kept = place.load(Ordering::Acquire);
    if kept.is_null() {
        let opened = Box::into_raw(Box::new(Descriptor::kept_from_children(open()?)?));
        match place.compare_exchange(ptr::null_mut(), opened, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => kept = opened,
            Err(earlier) => {
                kept = earlier;
                // SAFETY: the pointer was made above and given to nobody.
                drop(unsafe { Box::from_raw(opened) });
            }
        }
    }
    // SAFETY: the pointer was made by `Box::into_raw` in this process, for a child finds null; it is never freed.
    Ok(unsafe { &*kept })
}

/// For `pthread_atfork`: notices the fork, if there was anything to inherit.
pub(in crate::sys) extern "C" fn in_child() {
    if !PAGE.load(Ordering::Acquire).is_null() {
        let _ = Process::current();
    }
}

fn open_in_proc(path: &str) -> Result<OwnedFd, Errno> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
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
