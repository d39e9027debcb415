//! The state of a process that is not valid in its forked children, and how a child notices the fork.
//!
//! The state is in a page under `MADV_WIPEONFORK` (Linux 4.14). A child finds zeroes there, which mean that nothing is
//! known yet. So one load is enough to notice a fork, even if process ids repeat. The state needs no lock, which a
//! child could inherit in a locked state. If the kernel does not support such pages, [`Process::current`] fails, and
//! callers work without this state.
//!
//! A child notices the fork in a `pthread_atfork` handler. If no handler ran, it notices the fork when it first calls
//! [`Process::current`]. It then closes the descriptors of its parent that it must not have, which `unix/keys.rs`
//! lists. A bare `clone` can make a child that shares the file table of its parent but not its memory. Such a child
//! closes these descriptors for the parent too. The parent then uses a slower tracking method, and its calls on a view
//! that is written in place return an error.
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

/// The page of the process, or null before its first use.
static PAGE: AtomicPtr<Process> = AtomicPtr::new(ptr::null_mut());

/// The state of the calling process.
///
/// All its bytes are zero in a process that has not used it yet, and therefore in a new child.
pub(super) struct Process {
    /// A number that no ancestor has; 0 if the process has none yet.
    ///
    /// Descriptors that an ancestor listed have smaller numbers.
    generation: AtomicU64,
    pagemap: AtomicPtr<Descriptor>,
    status: AtomicPtr<Descriptor>,
    userfault: AtomicPtr<Descriptor>,
}

/// The number of a process, which neither its ancestors nor its descendants have.
///
/// A sibling may have the same number. That does no harm: the mappings that a process inherits were made by its
/// ancestors.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::sys) struct Generation(u64);

impl Generation {
    /// Returns the number of this process, in which a shared mapping of `file` has to stay.
    ///
    /// Fails with `Unsupported` if forked children have the file.
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

/// A file of this process in `/proc`, to be used for one system call.
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
    /// Returns the state of the calling process. `NOMEM` may be temporary; other errors are permanent.
    pub(super) fn current() -> Result<&'static Self, Errno> {
        let page = PAGE.load(Ordering::Acquire);
        let page = if page.is_null() { create()? } else { page };
        // SAFETY: `create` mapped the page readable and writable and aligned to a page, and it is never unmapped. It is
        // zero when it is new or was wiped, and zeroes are a valid `Process`, which consists of atomics.
        let process = unsafe { &*page };
        if process.generation.load(Ordering::Acquire) == 0 {
            process.begin();
        }
        Ok(process)
    }

    /// Gives a new process its number, and closes the inherited descriptors that it must not have.
    ///
    /// Allocates nothing and takes no lock.
    #[cold]
    fn begin(&self) {
        let number = next_number();
        // If another thread stores a number first, that number counts.
        let _ = self.generation.compare_exchange(0, number, Ordering::AcqRel, Ordering::Acquire);
        close_inherited(self.generation.load(Ordering::Acquire));
    }

    fn generation(&self) -> Generation {
        Generation(self.generation.load(Ordering::Relaxed))
    }

    /// Returns `/proc/self/pagemap`.
    pub(super) fn pagemap(&'static self) -> Result<ProcessFile, Errno> {
        kept_or_opened(&self.pagemap, || open_in_proc("/proc/self/pagemap"))
    }

    /// Returns `/proc/self/status`. Reading it takes half the time if it is kept open.
    pub(super) fn status(&'static self) -> Result<ProcessFile, Errno> {
        kept_or_opened(&self.status, || open_in_proc("/proc/self/status"))
    }

    /// Returns the userfaultfd of this process, for asynchronous write-protection.
    ///
    /// It is never replaced: memory is write-protected as long as the userfaultfd that it was registered with is open.
    pub(super) fn userfault(&'static self) -> Result<BorrowedFd<'static>, Errno> {
        get_or_open(&self.userfault, userfault::open)?.get()
    }
}

/// Returns a file of this process in `/proc`, whose descriptor is kept in `place`.
///
/// If the kept descriptor is closed, or refers to another file in this thread, opens the file for one call only.
/// Keeping each new descriptor would leave one open in each thread that has a file table of its own.
fn kept_or_opened(
    place: &'static AtomicPtr<Descriptor>,
    open: fn() -> Result<OwnedFd, Errno>,
) -> Result<ProcessFile, Errno> {
    match get_or_open(place, open)?.get() {
        Ok(kept) => Ok(ProcessFile::Kept(kept)),
        Err(_) => open().map(ProcessFile::Opened),
    }
}

/// Returns the descriptor that this process keeps in `place`, and opens it at the first use.
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
                // SAFETY: `Box::into_raw` returned the pointer above, and it was not stored anywhere.
                drop(unsafe { Box::from_raw(opened) });
            }
        }
    }
    // SAFETY: `Box::into_raw` returned the pointer in this process, because a child finds null. A box whose pointer is
    // in `place` is never freed.
    Ok(unsafe { &*kept })
}

/// The `pthread_atfork` handler of a child. Gives the child its number if the parent used this state.
pub(in crate::sys) extern "C" fn in_child() {
    if !PAGE.load(Ordering::Acquire).is_null() {
        let _ = Process::current();
    }
}

fn open_in_proc(path: &str) -> Result<OwnedFd, Errno> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

/// Maps the page of the process, or returns the one that another thread mapped meanwhile.
fn create() -> Result<*mut Process, Errno> {
    let len = rustix::param::page_size();
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: the kernel picks an unused address, so no memory in use changes.
    let page = unsafe { mmap_anonymous(ptr::null_mut(), len, access, MapFlags::PRIVATE) }?;
    // SAFETY: the range is the mapping that was made just now, and no reference to its bytes exists.
    let wiped = unsafe { madvise(page, len, Advice::LinuxWipeOnFork) };
    let ours = wiped.map(|()| {
        let set = PAGE.compare_exchange(ptr::null_mut(), page.cast(), Ordering::AcqRel, Ordering::Acquire);
        set.map_or_else(|earlier| earlier, |_| page.cast())
    });
    if ours != Ok(page.cast()) {
        // SAFETY: the mapping was made above, and its address was not stored anywhere.
        let _ = unsafe { munmap(page, len) };
    }
    ours
}
