//! Memory from the global allocator, whose states are kept as copies.

use std::alloc::{self, Layout};
use std::io;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::ptr::{self, NonNull};
use std::sync::Arc;

/// The alignment of the memory, as that of a mapping.
const ALIGNMENT: usize = 4096;

/// Memory of the global allocator. The bytes from `len` on are unspecified.
pub(crate) struct BoxedMemory {
    start: NonNull<u8>,
    len: usize,
    layout: Layout,
}

// SAFETY: the memory is owned like that of a `Box`.
unsafe impl Send for BoxedMemory {}

impl BoxedMemory {
    pub(crate) fn new(len: usize, most: usize) -> io::Result<Self> {
        let layout = Layout::from_size_align(most.max(len).max(1), ALIGNMENT).map_err(|_| {
            io::Error::new(io::ErrorKind::InvalidInput, format!("a heap cannot grow to {most} bytes"))
        })?;
        // SAFETY: the size of the layout is not 0.
        let start = NonNull::new(unsafe { alloc::alloc_zeroed(layout) }).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::OutOfMemory,
                format!("there is no memory for a heap of {most} bytes"),
            )
        })?;
        Ok(Self { start, len, layout })
    }

    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn grow(&mut self, len: usize) -> io::Result<()> {
        if len > self.layout.size() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("a heap with room for {} bytes cannot grow to {len} bytes", self.layout.size()),
            ));
        }
        let from = self.len;
        self.len = from.max(len);
        self.zero(from..self.len)
    }

    pub(crate) fn zero(&mut self, range: Range<usize>) -> io::Result<()> {
        if range.start > range.end || range.end > self.len {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("no bytes {range:?} in {}", self.len),
            ));
        }
        // SAFETY: `range.start` is at most the length of the allocation.
        let start = unsafe { self.start.add(range.start) };
        // SAFETY: the range is within the allocation, which is exclusively borrowed.
        unsafe { start.write_bytes(0, range.len()) };
        Ok(())
    }

    pub(crate) fn copy(&mut self) -> Arc<[MaybeUninit<u8>]> {
        let bytes = ptr::slice_from_raw_parts(self.start.as_ptr().cast::<MaybeUninit<u8>>(), self.len);
        // SAFETY: the bytes are within the allocation, which is exclusively borrowed, and may be uninitialized.
        Arc::from(unsafe { &*bytes })
    }

    pub(crate) fn put_back(&mut self, copy: &[MaybeUninit<u8>]) -> io::Result<()> {
        self.grow(copy.len())?;
        self.len = copy.len();
        // SAFETY: the allocation has at least `copy.len()` bytes, and `copy` is not a part of it.
        unsafe {
            self.start.cast::<MaybeUninit<u8>>().as_ptr().copy_from_nonoverlapping(copy.as_ptr(), copy.len())
        };
        Ok(())
    }
}

impl Drop for BoxedMemory {
    fn drop(&mut self) {
        // SAFETY: the memory was allocated with this layout.
        unsafe { alloc::dealloc(self.start.as_ptr(), self.layout) };
    }
}
