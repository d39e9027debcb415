//! Bare system calls: a private mapping of a memory file, without a library.
//!
//! This competitor gets a list of the changed pages. A snapshot copies them to a buffer. A restore discards them with
//! `MADV_DONTNEED`: one `madvise` for each run of pages, or one `process_madvise` for all. So its results show how much
//! these system calls, and the page faults after them, slow down threads that run at the same time.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::{io, process, ptr, slice};

use anyhow::{Context, Result};
use memsnap::page_size;

use super::{ChangedPages, Competitor, Operation, Region, Taken};
use crate::case::Case;
use crate::image::Image;
use crate::pages::Change;
use crate::results::{ONE_CALL, SYSTEM_CALLS};

#[derive(Clone, Copy)]
pub(crate) enum SystemCalls {
    /// One call for each run of changed pages.
    CallEach,
    /// One call for all changed pages.
    OneCall,
}

/// A private mapping of the file of an image. Nothing writes to the file or shortens it while it is mapped.
pub(crate) struct Private {
    start: *mut u8,
    len: usize,
}

// SAFETY: the mapping belongs to this value alone, like a `Vec`, and is bound to no thread.
unsafe impl Send for Private {}

struct Mapping {
    map: Private,
    taken: ChangedPages,
    /// A pidfd of this process, if one call discards all runs.
    process: Option<OwnedFd>,
}

impl Private {
    pub(crate) fn map(image: &Image) -> io::Result<Self> {
        let (descriptor, len) = (image.file.as_raw_fd(), image.bytes().len());
        let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_NORESERVE);
        // SAFETY: a new mapping, at an address that the kernel chooses, touches no other.
        let start = unsafe { libc::mmap(ptr::null_mut(), len, access, flags, descriptor, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { start: start.cast(), len })
    }

    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the mapping is `len` readable and writable bytes until it is dropped, and borrowed mutably here.
        unsafe { slice::from_raw_parts_mut(self.start, self.len) }
    }

    /// Borrows the bytes of a run of pages.
    fn run(&mut self, run: &[Change]) -> &mut [u8] {
        &mut self.bytes()[run[0].page * page_size()..][..run.len() * page_size()]
    }

    /// Discards a run of pages, so that they show the file again.
    fn discard(&mut self, run: &[Change]) -> io::Result<()> {
        let range = self.run(run);
        // SAFETY: the range is in the mapping, and this is the only slice of it. Its pages then show the file again.
        match unsafe { libc::madvise(range.as_mut_ptr().cast(), range.len(), libc::MADV_DONTNEED) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Discards all pages of `changes`.
    fn discard_all(&mut self, process: &OwnedFd, changes: &[Change]) -> io::Result<()> {
        let vector =
            |range: &mut [u8]| libc::iovec { iov_base: range.as_mut_ptr().cast(), iov_len: range.len() };
        let ranges: Vec<_> = runs(changes).map(|run| vector(self.run(run))).collect();
        for ranges in ranges.chunks(MOST_RANGES) {
            let (call, advice) = (libc::SYS_process_madvise, libc::MADV_DONTNEED);
            // SAFETY: the ranges are in the mapping, and no slice of it exists. Their pages then show the file again.
            let done = unsafe {
                libc::syscall(call, process.as_raw_fd(), ranges.as_ptr(), ranges.len(), advice, 0_u32)
            };
            let wanted: usize = ranges.iter().map(|range| range.iov_len).sum();
            if usize::try_from(done).map_err(|_| io::Error::last_os_error())? != wanted {
                return Err(io::Error::other("not all pages were discarded"));
            }
        }
        Ok(())
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        // SAFETY: the mapping belongs to this value alone, and no slice of it exists.
        unsafe { libc::munmap(self.start.cast(), self.len) };
    }
}

/// Returns the runs of consecutive pages among the changed pages.
fn runs(changes: &[Change]) -> impl Iterator<Item = &[Change]> {
    changes.chunk_by(|a, b| a.page + 1 == b.page)
}

/// The most ranges that one `process_madvise` accepts.
const MOST_RANGES: usize = 1024;

/// Returns whether the kernel lets a process discard its own pages with `process_madvise`.
fn can_discard_all() -> bool {
    let discard = || {
        let mut map = Private::map(&Image::new(page_size())?)?;
        anyhow::Ok(map.discard_all(&this_process()?, &[Change::first_word(0)])?)
    };
    discard().is_ok()
}

/// Opens a pidfd of this process.
fn this_process() -> io::Result<OwnedFd> {
    // SAFETY: the call takes no pointers.
    let descriptor = unsafe { libc::syscall(libc::SYS_pidfd_open, process::id(), 0_u32) };
    let descriptor = i32::try_from(descriptor).map_err(io::Error::other)?;
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

impl Competitor for SystemCalls {
    fn name(&self) -> &'static str {
        match self {
            Self::CallEach => SYSTEM_CALLS,
            Self::OneCall => ONE_CALL,
        }
    }

    fn obstacle(&self, _case: &Case, _operation: Operation) -> Option<&'static str> {
        let can = match self {
            Self::CallEach => true,
            Self::OneCall => can_discard_all(),
        };
        (!can).then_some("this kernel does not let a process discard its own pages with process_madvise")
    }

    fn memory(&self, case: &Case, _operation: Operation) -> usize {
        2 * case.changed * page_size()
    }

    fn open(&self, image: &Image, case: &Case) -> Result<Box<dyn Region>> {
        let map = Private::map(image)?;
        let process = match self {
            Self::CallEach => None,
            Self::OneCall => Some(this_process().context("pidfd_open")?),
        };
        Ok(Box::new(Mapping { map, taken: ChangedPages::new(case.changed), process }))
    }
}

impl Region for Mapping {
    fn bytes(&mut self) -> &mut [u8] {
        self.map.bytes()
    }

    fn take(&mut self, changes: &[Change]) -> Result<Taken> {
        self.taken.take(self.map.bytes(), changes);
        Ok(Box::new(()))
    }

    fn restore(&mut self, changes: &[Change]) -> Result<()> {
        let discarded = match &self.process {
            Some(process) => self.map.discard_all(process, changes),
            None => runs(changes).try_for_each(|run| self.map.discard(run)),
        };
        Ok(discarded?)
    }

    fn restore_to(&mut self, _taken: &Taken, changes: &[Change]) -> Result<()> {
        self.taken.put_back(self.map.bytes(), changes);
        Ok(())
    }
}
