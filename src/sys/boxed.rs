//! Memory from the allocator in place of a mapping, for Miri, which knows next to no system calls.
//!
//! The store has it there, so that Miri checks how captured pages are handed out, read and recycled.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::io;
use std::mem::MaybeUninit;
use std::ops::Deref;
use std::ptr::NonNull;

use super::{Source, Span, page_size};
use crate::pages::{PageRange, PageSet};
use crate::sys::Populate;

/// Pages of zeroes, as far as the store needs a mapping of them.
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
        // SAFETY: the size is not zero.
        let start = unsafe { alloc_zeroed(layout(pages)?) };
        let start = NonNull::new(start).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self(Span { start, pages }))
    }

    pub(crate) fn populate(&self, _: PageRange, _: Populate) -> io::Result<()> {
        Ok(())
    }

    /// Makes the bytes of `pages` uninitialized, so that Miri reports whoever reads one before it is written.
    ///
    /// # Safety
    ///
    /// Nobody holds a reference to bytes of these pages.
    pub(crate) unsafe fn give_back(&self, pages: &PageSet) -> io::Result<()> {
        let nothing = Box::<[u8]>::new_uninit_slice(page_size());
        for page in pages.iter() {
            let bytes = self.page_ptr(page).cast::<MaybeUninit<u8>>().as_ptr();
            // SAFETY: both are one page long, the box is of nobody else, and the bytes are the caller's to change.
            unsafe { bytes.copy_from_nonoverlapping(nothing.as_ptr(), nothing.len()) };
        }
        Ok(())
    }
}

impl Drop for Boxed {
    fn drop(&mut self) {
        if let Ok(layout) = layout(self.0.pages) {
            // SAFETY: the memory was allocated by `new` with this layout, and its owner is done with it.
            unsafe { dealloc(self.0.start.as_ptr(), layout) };
        }
    }
}
