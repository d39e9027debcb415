//! `fork`, as Redis and HyPer use it: a snapshot is a child process, which shares all memory copy-on-write.
#![allow(unsafe_code)]

use std::ops::Range;
use std::{fs, io, ptr};

use anyhow::{Context, Result, bail};
use memmap2::MmapMut;
use memsnap::page_size;

use super::{Competitor, Operation, Region, Taken};
use crate::case::{Case, MIB};
use crate::image::Image;
use crate::pages::Change;

pub(crate) struct Fork;

pub(crate) struct Child(libc::pid_t);

struct Memory(MmapMut);

/// The least length of mappings that are kept out of children. The stack of a thread is shorter.
const LARGE: usize = 4 * MIB;

impl Competitor for Fork {
    fn name(&self) -> &'static str {
        "fork"
    }

    fn obstacle(&self, _case: &Case, operation: Operation) -> Option<&'static str> {
        match operation {
            Operation::Restore => Some("a process cannot be restored from its child"),
            Operation::Take { kept: 101.. } => Some("needs a process for each snapshot"),
            Operation::Take { .. } => None,
        }
    }

    fn memory(&self, case: &Case, operation: Operation) -> usize {
        let Operation::Take { kept } = operation else { return case.bytes };
        let page_table = case.pages() * size_of::<u64>();
        case.bytes + kept * (case.changed * page_size() + page_table)
    }

    fn open(&self, image: &Image, case: &Case) -> Result<Box<dyn Region>> {
        let mut map = MmapMut::map_anon(case.bytes)?;
        if case.is_resident() {
            map.copy_from_slice(image.bytes());
        }
        Ok(Box::new(Memory(map)))
    }
}

impl Region for Memory {
    fn bytes(&mut self) -> &mut [u8] {
        &mut self.0
    }

    fn prepare(&mut self) -> Result<()> {
        let own = self.0.as_ptr_range();
        keep_others_out_of_children(own.start.addr()..own.end.addr())
    }

    fn take(&mut self, _changes: &[Change]) -> Result<Taken> {
        Ok(Box::new(Child::fork()?))
    }

    fn restore(&mut self, _changes: &[Change]) -> Result<()> {
        bail!("fork cannot restore")
    }
}

impl Child {
    fn fork() -> io::Result<Self> {
        // SAFETY: the child only makes system calls, which it may make even if another thread held a lock at the fork.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()),
            0 => wait_for_the_end(),
            child => Ok(Self(child)),
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // SAFETY: the call takes no pointers. Nothing has waited for the child, so the number still belongs to it.
        unsafe { libc::kill(self.0, libc::SIGKILL) };
        let mut status = 0;
        // SAFETY: the status is written to a live variable.
        unsafe { libc::waitpid(self.0, &raw mut status, 0) };
        assert!(
            libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGKILL,
            "the child ended before it was killed"
        );
    }
}

/// Waits, in the child, until the child or its parent is killed. Until then, the memory of the child stays.
fn wait_for_the_end() -> ! {
    // SAFETY: the call takes no pointers.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    loop {
        // SAFETY: the call takes no pointers.
        unsafe { libc::pause() };
    }
}

/// Keeps a mapping of another competitor out of child processes, because it would slow down `fork`.
///
/// # Safety
///
/// No child process accesses the mapping.
pub(crate) unsafe fn keep_out_of_children(start: *mut u8, len: usize) -> io::Result<()> {
    // SAFETY: this only changes what a child inherits. By this function's contract, no child accesses the mapping.
    let result = unsafe { libc::madvise(start.cast(), len, libc::MADV_DONTFORK) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Returns the range of the pages around the thread-local variables.
///
/// Each function of the C library that has a stack protector reads them.
fn thread_local() -> Range<usize> {
    // SAFETY: the call takes no pointers.
    let errno = unsafe { libc::__errno_location() }.addr();
    let page = errno - errno % page_size();
    page - 16 * page_size()..page + 16 * page_size()
}

/// Returns the parts of `range` before and after `hole`.
fn around(range: Range<usize>, hole: &Range<usize>) -> [Range<usize>; 2] {
    [range.start..range.end.min(hole.start), range.start.max(hole.end)..range.end]
}

/// Keeps all large private mappings except `own` out of child processes.
///
/// These are heaps and copies of other competitors.
fn keep_others_out_of_children(own: Range<usize>) -> Result<()> {
    for line in fs::read_to_string("/proc/self/maps")?.lines() {
        let mut fields = line.split_whitespace();
        let (range, access) = (fields.next().unwrap_or_default(), fields.next().unwrap_or_default());
        let (start, end) = range.split_once('-').context("a line of /proc/self/maps has no `-`")?;
        let (start, end) = (usize::from_str_radix(start, 16)?, usize::from_str_radix(end, 16)?);
        if access != "rw-p" || line.ends_with("[stack]") {
            continue;
        }
        if end - start < LARGE {
            continue;
        }
        // The kernel merges adjacent mappings, so this one can contain these ranges. They are left as they are.
        let parts = around(start..end, &own).into_iter().flat_map(|part| around(part, &thread_local()));
        for part in parts {
            if !part.is_empty() {
                let start = ptr::with_exposed_provenance_mut(part.start);
                // SAFETY: a child only uses its stack and the data of libraries, which are not large.
                unsafe { keep_out_of_children(start, part.len()) }?;
            }
        }
    }
    Ok(())
}
