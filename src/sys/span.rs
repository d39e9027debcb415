//! Access to the bytes of mapped pages by page number.
//!
//! A span owns no memory. Mappings own it, and decide which pages are mapped and accessible.
#![allow(unsafe_code)]

use std::ptr::{self, NonNull};
use std::slice;

use super::page_size;
use crate::pages::PageRange;

/// A range of addresses of whole pages.
///
/// Invariant: the addresses stay reserved for the span's owner as long as the span exists. The code that makes a span
/// guarantees this. The methods that turn addresses into references or write bytes are `unsafe`. Their callers know
/// which pages are mapped, and which access they have.
pub(crate) struct Span {
    pub(super) start: NonNull<u8>,
    pub(super) pages: usize,
}

// SAFETY: a span is a range of addresses, which are the same in each thread of the process.
unsafe impl Send for Span {}
// SAFETY: as above. Methods that access bytes are `unsafe`.
unsafe impl Sync for Span {}

impl Span {
    /// Returns a span without pages. Its address is aligned to a page.
    pub(super) fn empty() -> Self {
        let start = NonNull::new(ptr::without_provenance_mut(page_size())).unwrap_or(NonNull::dangling());
        Self { start, pages: 0 }
    }

    pub(crate) fn as_ptr(&self) -> NonNull<u8> {
        self.start
    }

    /// Returns the address of `page`, which is at most the number of pages.
    pub(crate) fn page_ptr(&self, page: usize) -> NonNull<u8> {
        debug_assert!(page <= self.pages);
        // SAFETY: `page` is at most the number of pages, so the result is inside the span or one past its end. The
        // length of a mapping fits an `isize`.
        unsafe { self.start.add(page * page_size()) }
    }

    /// Returns the bytes of `page`.
    ///
    /// # Safety
    ///
    /// As for [`range`](Self::range).
    pub(crate) unsafe fn page(&self, page: usize) -> &[u8] {
        // SAFETY: forwarded to the caller.
        unsafe { self.range(PageRange::new(page, page + 1)) }
    }

    /// Returns the bytes of `range`.
    ///
    /// # Safety
    ///
    /// The pages must be inside the span and readable. Nothing may write to them as long as the slice is in use.
    pub(crate) unsafe fn range(&self, range: PageRange) -> &[u8] {
        debug_assert!(range.end <= self.pages);
        // SAFETY: the caller promises that these bytes are inside the span, readable and not written. Mapped memory is
        // initialized, and a byte needs no alignment.
        unsafe { slice::from_raw_parts(self.page_ptr(range.start).as_ptr(), range.len() * page_size()) }
    }

    /// Overwrites the pages from `page` on with `bytes`, whose length is a multiple of the page size.
    ///
    /// # Safety
    ///
    /// The pages must be inside the span and writable. No reference to their bytes may exist, and `bytes` must not
    /// overlap them.
    pub(crate) unsafe fn write(&self, page: usize, bytes: &[u8]) {
        debug_assert!(
            bytes.len().is_multiple_of(page_size()) && page + bytes.len() / page_size() <= self.pages
        );
        let source = NonNull::from(bytes).cast();
        // SAFETY: the caller promises that the pages have room for `bytes`, can be written and do not overlap `bytes`.
        // Bytes need no alignment.
        unsafe { self.page_ptr(page).copy_from_nonoverlapping(source, bytes.len()) };
    }

    pub(crate) fn pages(&self) -> usize {
        self.pages
    }

    /// Returns the range of all pages.
    pub(super) fn all(&self) -> PageRange {
        PageRange::new(0, self.pages)
    }

    /// Returns the length in bytes.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.pages * page_size()
    }
}
