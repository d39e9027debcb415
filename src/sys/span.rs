//! Pages in memory, by their addresses.
#![allow(unsafe_code)]

use std::ptr::{self, NonNull};
use std::slice;

use super::page_size;
use crate::pages::PageRange;

/// A range of whole pages.
///
/// Whoever makes one keeps them mapped as long as it lives; what may be done with their bytes is decided by those
/// who turn addresses into references.
pub(crate) struct Span {
    pub(super) start: NonNull<u8>,
    pub(super) pages: usize,
}

// SAFETY: a span is a range of addresses of the process, the same in each thread.
unsafe impl Send for Span {}
// SAFETY: as above; methods that touch bytes are `unsafe`.
unsafe impl Sync for Span {}

impl Span {
    /// No pages; the address is that of a page.
    pub(super) fn empty() -> Self {
        let start = NonNull::new(ptr::without_provenance_mut(page_size())).unwrap_or(NonNull::dangling());
        Self { start, pages: 0 }
    }

    pub(crate) fn as_ptr(&self) -> NonNull<u8> {
        self.start
    }

    /// The first byte of `page`, which is at most the number of pages.
    pub(crate) fn page_ptr(&self, page: usize) -> NonNull<u8> {
        debug_assert!(page <= self.pages);
        // SAFETY: the offset is within the span or one past its end.
        unsafe { self.start.add(page * page_size()) }
    }

    /// The bytes of `page`.
    ///
    /// # Safety
    ///
    /// As for [`range`](Self::range).
    pub(crate) unsafe fn page(&self, page: usize) -> &[u8] {
        // SAFETY: forwarded to the caller.
        unsafe { self.range(PageRange::new(page, page + 1)) }
    }

    /// The bytes of `range`.
    ///
    /// # Safety
    ///
    /// The pages are the span's and can be read, and nobody writes to them as long as the slice is in use.
    pub(crate) unsafe fn range(&self, range: PageRange) -> &[u8] {
        debug_assert!(range.end <= self.pages);
        // SAFETY: the caller's promise.
        unsafe { slice::from_raw_parts(self.page_ptr(range.start).as_ptr(), range.len() * page_size()) }
    }

    /// Overwrites the pages from `page` on with `bytes`, which are whole pages.
    ///
    /// # Safety
    ///
    /// The pages are the span's and writable; nobody holds a reference to their bytes, of which `bytes` are none.
    pub(crate) unsafe fn write(&self, page: usize, bytes: &[u8]) {
        debug_assert!(
            bytes.len().is_multiple_of(page_size()) && page + bytes.len() / page_size() <= self.pages
        );
        let source = NonNull::from(bytes).cast();
        // SAFETY: both are as long as `bytes`; that the pages may be written and are not the source is the
        // caller's promise.
        unsafe { self.page_ptr(page).copy_from_nonoverlapping(source, bytes.len()) };
    }

    pub(crate) fn pages(&self) -> usize {
        self.pages
    }

    /// All of its pages.
    pub(super) fn all(&self) -> PageRange {
        PageRange::new(0, self.pages)
    }

    /// The length in bytes.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.pages * page_size()
    }
}
