//! `In`: the allocator of a heap, as values inside the heap keep it.

use std::alloc::Layout;
use std::fmt;
use std::marker::PhantomData;
use std::ptr::NonNull;

use allocator_api2::alloc::{AllocError, Allocator};

use crate::arena;

/// The allocator of a [`Heap`](crate::Heap), which collections inside the heap hold.
///
/// [`Heap::with_mut`](crate::Heap::with_mut) passes it to its closure. Every collection that takes an allocator of the
/// crate `allocator-api2` 0.2 can use it, such as [`Vec`](crate::Vec), [`Box`](crate::Box) and
/// [`HashMap`](crate::HashMap).
///
/// The lifetime `'h` is the *brand* of one heap. It is different for each call of `with_mut`. So the compiler refuses
/// code in which a handle or a collection leaves the closure, or in which two heaps are mixed.
///
/// If the heap cannot grow, an allocation returns `AllocError`. Collections abort the process then, as those of the
/// standard library do, unless a method such as `try_reserve` is used.
#[derive(Clone, Copy)]
pub struct In<'h> {
    base: NonNull<u8>,
    /// Invariant in `'h`. The pointer makes the type neither `Send` nor `Sync`.
    brand: PhantomData<fn(&'h ()) -> &'h ()>,
}

impl In<'_> {
    /// # Safety
    ///
    /// `base` is the base of an arena. Until the end of the lifetime, the arena exists, is usable, and is used only on
    /// this thread.
    pub(crate) unsafe fn new(base: NonNull<u8>) -> Self {
        Self { base, brand: PhantomData }
    }
}

fn block(start: NonNull<u8>, size: usize) -> NonNull<[u8]> {
    NonNull::slice_from_raw_parts(start, size)
}

fn empty(layout: Layout) -> NonNull<[u8]> {
    block(
        NonNull::without_provenance(layout.align().try_into().unwrap_or(std::num::NonZero::<usize>::MIN)),
        0,
    )
}

// SAFETY: a block stays valid until it is freed, because an arena never moves, and because the brand keeps values of
// the arena from being used after the arena has gone back to a state in which they did not exist. All copies of a handle
// are the same allocator.
unsafe impl Allocator for In<'_> {
    #[inline]
    fn allocate(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
        if layout.size() == 0 {
            return Ok(empty(layout));
        }
        // SAFETY: `new` demands that the arena is usable. The handle is not `Sync` and calls nothing that calls back.
        let start = unsafe { arena::allocate(self.base, layout) }.ok_or(AllocError)?;
        Ok(block(start, layout.size()))
    }

    #[inline]
    unsafe fn deallocate(&self, ptr: NonNull<u8>, layout: Layout) {
        if layout.size() != 0 {
            // SAFETY: as for `allocate`. The caller promises that the block is allocated here with this layout.
            unsafe { arena::deallocate(self.base, ptr, layout) };
        }
    }

    #[inline]
    unsafe fn grow(&self, ptr: NonNull<u8>, old: Layout, new: Layout) -> Result<NonNull<[u8]>, AllocError> {
        if old.size() == 0 {
            return self.allocate(new);
        }
        // SAFETY: as for `deallocate`. The caller promises that `new` is not smaller than `old`, so it is not empty.
        let start = unsafe { arena::reallocate(self.base, ptr, old, new) }.ok_or(AllocError)?;
        Ok(block(start, new.size()))
    }

    #[inline]
    unsafe fn grow_zeroed(
        &self,
        ptr: NonNull<u8>,
        old: Layout,
        new: Layout,
    ) -> Result<NonNull<[u8]>, AllocError> {
        // SAFETY: the caller promises the conditions.
        let grown = unsafe { self.grow(ptr, old, new) }?;
        // SAFETY: the block has `new.size()` bytes, which is at least `old.size()`.
        let added = unsafe { grown.cast::<u8>().add(old.size()) };
        // SAFETY: these bytes are in the block.
        unsafe { added.write_bytes(0, new.size() - old.size()) };
        Ok(grown)
    }

    #[inline]
    unsafe fn shrink(&self, ptr: NonNull<u8>, old: Layout, new: Layout) -> Result<NonNull<[u8]>, AllocError> {
        if new.size() == 0 {
            // SAFETY: the caller promises that the block is allocated here with this layout.
            unsafe { self.deallocate(ptr, old) };
            return Ok(empty(new));
        }
        // SAFETY: as for `grow`.
        let start = unsafe { arena::reallocate(self.base, ptr, old, new) }.ok_or(AllocError)?;
        Ok(block(start, new.size()))
    }
}

impl fmt::Debug for In<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("In").finish_non_exhaustive()
    }
}
