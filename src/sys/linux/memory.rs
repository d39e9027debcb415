//! What Linux does with mappings besides what all Unix systems do: advice to the kernel (`madvise`).
//!
//! The advice is for discarding and populating pages, for huge pages and names, and for keeping mappings from forked
//! children. `unix/mapping.rs` decides what is mapped where.
#![allow(unsafe_code)]

use std::io;

use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, madvise};
use rustix::process::set_virtual_memory_region_name;

use crate::pages::{PageRange, PageSet};
use crate::sys::unix::{Mapping, page_size};
use crate::sys::{HugePages, Populate};
use crate::sys::{LARGE, Source, call};

/// `PIDFD_SELF_THREAD`: stands for the calling process where `process_madvise` expects a descriptor.
///
/// A kernel that knows this constant allows all advice for the process itself. Since 6.16 the kernel also gathers the
/// TLB flushes of all ranges. A kernel that does not know it reports a bad descriptor.
const PIDFD_SELF_THREAD: libc::c_int = -10000;

/// The most ranges that one call of `process_madvise` takes.
const UIO_MAXIOV: usize = 1024;

/// The flag for a mapping that counts against no limit before it is used.
pub(in crate::sys) const NO_RESERVE: MapFlags = MapFlags::NORESERVE;

/// The flag for a mapping that replaces no other.
///
/// A kernel before 4.17 ignores it and maps at another address.
pub(in crate::sys) const NO_REPLACE: MapFlags = MapFlags::FIXED_NOREPLACE;

/// What the pages of a mapping show where they are not private.
///
/// This type is empty, because Linux drops private pages without being told what they show afterwards.
#[derive(Default)]
pub(in crate::sys) struct Shown(());

impl Shown {
    #[inline]
    pub(in crate::sys) fn set(&mut self, _range: PageRange, _source: Source<'_>) {}

    #[inline]
    pub(in crate::sys) fn truncate(&mut self, _pages: usize) {}
}

/// Returns the alignment, in pages, that a mapping of `pages` pages of `source` should have.
///
/// Returns 0 if the address does not matter.
#[inline]
pub(in crate::sys) fn alignment(huge_pages: HugePages, pages: usize, source: Source<'_>) -> usize {
    match (huge_pages, source) {
        (HugePages::Never, _) | (HugePages::Auto, Source::Zero) => 0,
        (HugePages::Auto, _) if pages < LARGE / page_size() => 0,
        (HugePages::Auto | HugePages::Advise, _) => huge_page_size() / page_size(),
    }
}

/// Returns the number of bytes in a huge page: 2 MiB, or a page if that is larger.
///
/// 2 MiB is right for x86-64, and for AArch64 with pages of 4 KiB.
pub(super) fn huge_page_size() -> usize {
    (2 << 20).max(page_size())
}

impl Mapping {
    /// Drops the private pages among `pages`, which then show their source again.
    ///
    /// # Safety
    ///
    /// The pages must be inside the mapping. No reference to their bytes may exist.
    pub(crate) unsafe fn discard(&self, pages: &PageSet) -> io::Result<()> {
        // SAFETY: forwarded to the caller.
        let done = unsafe { self.discard_together(pages.ranges()) };
        for range in &pages.ranges()[done..] {
            debug_assert!(range.end <= self.pages());
            call("madvise")?;
            let len = range.len() * page_size();
            // SAFETY: the caller promises that the range is inside this mapping and that no reference to its bytes
            // exists.
            unsafe { madvise(self.address(range.start), len, Advice::LinuxDontNeed) }?;
        }
        Ok(())
    }

    /// Discards the private pages of up to [`UIO_MAXIOV`] ranges with each system call.
    ///
    /// Other processors then flush their TLBs once for each call. Returns how many of the ranges were discarded,
    /// counted from the first. This is 0 if the kernel is too old or a filter refuses the call.
    ///
    /// # Safety
    ///
    /// As for [`discard`](Self::discard).
    unsafe fn discard_together(&self, ranges: &[PageRange]) -> usize {
        let mut done = 0;
        for part in ranges.chunks(UIO_MAXIOV) {
            if part.len() < 2 || call("process_madvise").is_err() {
                break;
            }
            let vector = |range: &PageRange| libc::iovec {
                iov_base: self.address(range.start),
                iov_len: range.len() * page_size(),
            };
            let vectors: Vec<_> = part.iter().map(vector).collect();
            let (len, advice, flags) = (vectors.len(), libc::MADV_DONTNEED, 0);
            // SAFETY: the ranges are inside this mapping, and no reference to their bytes exists, as the caller
            // promises. `vectors` has `len` elements, which the kernel reads. It accesses no other memory of the
            // program.
            let advised = unsafe {
                libc::syscall(
                    libc::SYS_process_madvise,
                    PIDFD_SELF_THREAD,
                    vectors.as_ptr(),
                    len,
                    advice,
                    flags,
                )
            };
            let mut left = usize::try_from(advised).unwrap_or(0);
            let whole = part.iter().take_while(|range| {
                let len = range.len() * page_size();
                let all = left >= len;
                left = left.saturating_sub(len);
                all
            });
            let whole = whole.count();
            done += whole;
            if whole < part.len() {
                break;
            }
        }
        done
    }

    /// Gives back the memory of `pages`, whose bytes are unspecified afterwards.
    ///
    /// The mapping must be one of zeroes.
    ///
    /// # Safety
    ///
    /// The pages must be inside the mapping. No reference to their bytes may exist.
    pub(crate) unsafe fn give_back(&self, pages: &PageSet) -> io::Result<()> {
        // SAFETY: forwarded to the caller.
        unsafe { self.discard(pages) }
    }

    /// Prepares the pages of `range` with one call, which saves a page fault for each of them.
    ///
    /// Fails with `Unsupported` if the kernel cannot do that (before 5.14).
    pub(crate) fn populate(&self, range: PageRange, populate: Populate) -> io::Result<()> {
        debug_assert!(range.end <= self.pages());
        let advice = match populate {
            Populate::No => return Ok(()),
            Populate::Read => Advice::LinuxPopulateRead,
            Populate::Write => Advice::LinuxPopulateWrite,
        };
        call("madvise")?;
        // SAFETY: the range is inside this mapping. Populating changes no byte of it.
        match unsafe { madvise(self.address(range.start), range.len() * page_size(), advice) } {
            Err(Errno::INVAL) => Err(io::ErrorKind::Unsupported.into()),
            result => Ok(result?),
        }
    }

    /// Gives the kernel the advice that the placement asks for, about pages that were mapped just now.
    ///
    /// Also keeps shared pages from forked children.
    #[inline]
    pub(in crate::sys) fn advise(&self, range: PageRange, source: Source<'_>) -> io::Result<()> {
        let advise = |advice| {
            // SAFETY: the range is inside this mapping. The advice used here changes no byte of it.
            unsafe { madvise(self.address(range.start), range.len() * page_size(), advice) }
        };
        // A kernel without huge pages or names refuses this advice. The mapping works without it.
        match (self.huge_pages, source) {
            (HugePages::Advise, _) => _ = advise(Advice::LinuxHugepage),
            (HugePages::Auto | HugePages::Never, Source::Zero) => _ = advise(Advice::LinuxNoHugepage),
            (HugePages::Auto | HugePages::Never, _) => {}
        }
        if let (Some(name), Source::Zero) = (&self.name, source) {
            // SAFETY: the pages are inside this mapping. They were mapped readable just now, and nothing writes to them
            // yet.
            let bytes = unsafe { self.range(range) };
            let _ = set_virtual_memory_region_name(bytes, Some(name));
        }
        if let Source::Shared(_) = source {
            call("madvise")?;
            advise(Advice::LinuxDontFork)?;
        }
        Ok(())
    }
}
