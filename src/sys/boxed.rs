//! Memory from the allocator in place of a mapping, for Miri, which supports few system calls.
//!
//! The store uses it under Miri, which then checks how captured pages are allocated, read and recycled.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::io;
use std::mem::MaybeUninit;
use std::ops::Deref;
use std::ptr::NonNull;

use super::{Source, Span, page_size};
use crate::pages::{PageRange, PageSet};
use crate::sys::Populate;

/// Pages of zeroes, with the methods of a mapping that the store needs.
pub(crate) struct Boxed(Span);

impl Deref for Boxed {
    type Target = Span;

    fn deref(&self) -> &Span {
        &self.0
    }
}

fn layout(pages: usize) -> io::Result<Layout> {
    let len = pages.checked_mul(page_size()).filter(|&len| len > 0).ok_or(io::ErrorKind::OutOfMemory)?;
    Layout::from_size_align(len, page_size()).map_err(|_| io::ErrorKind::OutOfMemory.into())
}

impl Boxed {
    pub(crate) fn new(pages: usize, _: Source<'_>) -> io::Result<Self> {
        // SAFETY: `layout` returns an error for a size of zero.
        let start = unsafe { alloc_zeroed(layout(pages)?) };
        let start = NonNull::new(start).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self(Span { start, pages }))
    }

    pub(crate) fn populate(&self, _: PageRange, _: Populate) -> io::Result<()> {
        Ok(())
    }

    /// Makes the bytes of `pages` uninitialized.
    ///
    /// Miri then reports reads of bytes that were not written since.
    ///
    /// # Safety
    ///
    /// The pages must be inside the span. No reference to their bytes may exist.
    pub(crate) unsafe fn give_back(&self, pages: &PageSet) -> io::Result<()> {
        let nothing = Box::<[u8]>::new_uninit_slice(page_size());
        for page in pages.iter() {
            let bytes = self.page_ptr(page).cast::<MaybeUninit<u8>>().as_ptr();
            // SAFETY: the page is inside the span, as the caller promises. Both ranges are one page long. They do not
            // overlap, since the box was allocated just now. The caller promises that no reference to the page exists.
            unsafe { bytes.copy_from_nonoverlapping(nothing.as_ptr(), nothing.len()) };
        }
        Ok(())
    }
}

impl Drop for Boxed {
    fn drop(&mut self) {
        if let Ok(layout) = layout(self.0.pages) {
            // SAFETY: `new` allocated the memory with this layout, and no reference to it outlives its owner.
            unsafe { dealloc(self.0.start.as_ptr(), layout) };
        }
    }
}
