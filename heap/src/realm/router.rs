//! `Router`: a global allocator that serves the realm whose closure runs.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr::{self, NonNull};
use std::thread;

use super::registry;
use crate::arena;
use crate::current::{current, divert};

/// A global allocator that allocates in the [`Realm`](crate::Realm) whose closure runs on this thread.
///
/// Outside of closures of realms, and for blocks that were allocated there, it calls the allocator `A`. A block is freed by
/// the allocator that it came from, which is found by its address. While a thread panics, its allocations go to `A`.
///
/// # Examples
///
/// ```
/// use memsnap_heap::Router;
///
/// #[global_allocator]
/// static ALLOCATOR: Router = Router::system();
/// # fn main() {}
/// ```
#[derive(Debug, Default)]
pub struct Router<A = System>(A);

impl Router {
    /// Returns a router that otherwise uses the allocator of the system.
    #[must_use]
    pub const fn system() -> Self {
        Self(System)
    }
}

impl<A> Router<A> {
    /// Returns a router that otherwise uses `allocator`.
    pub const fn new(allocator: A) -> Self {
        Self(allocator)
    }
}

/// The arena that this thread allocates in now. What a panic allocates, such as its message, outlives the closure.
#[inline]
fn destination() -> Option<NonNull<u8>> {
    let base = current()?;
    if thread::panicking() {
        divert();
        return None;
    }
    Some(base)
}

/// The arena that `block` is in, to free it or change its size.
#[inline]
fn origin(block: *mut u8) -> Option<NonNull<u8>> {
    let base = registry::arena_of(block)?;
    if current() != Some(base) {
        registry::count_freed_outside(block);
    }
    Some(base)
}

fn pointer(block: Option<NonNull<u8>>) -> *mut u8 {
    block.map_or(ptr::null_mut(), NonNull::as_ptr)
}

// SAFETY: both allocators fulfil the contract, each block goes back to the one it came from, and nothing here panics.
// `Realm` demands that a realm's blocks are used only on the thread that runs its closures.
unsafe impl<A: GlobalAlloc> GlobalAlloc for Router<A> {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match destination() {
            // SAFETY: the arena exists while one of its realm's closures runs. The caller passes a layout that is not empty.
            Some(base) => pointer(unsafe { arena::allocate(base, layout) }),
            // SAFETY: the caller promises the conditions.
            None => unsafe { self.0.alloc(layout) },
        }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if destination().is_none() {
            // SAFETY: the caller promises the conditions.
            return unsafe { self.0.alloc_zeroed(layout) };
        }
        // SAFETY: the caller promises the conditions.
        let block = unsafe { self.alloc(layout) };
        if !block.is_null() {
            // SAFETY: the block has this many bytes.
            unsafe { block.write_bytes(0, layout.size()) };
        }
        block
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        match (origin(block), NonNull::new(block)) {
            // SAFETY: the block is of this arena, and the caller promises its layout.
            (Some(base), Some(block)) => unsafe { arena::deallocate(base, block, layout) },
            // SAFETY: the block is of no arena, so it is of this allocator. The caller promises its layout.
            _ => unsafe { self.0.dealloc(block, layout) },
        }
    }

    #[inline]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        match (origin(block), NonNull::new(block)) {
            (Some(base), Some(block)) => {
                // SAFETY: the caller promises that this is a valid layout.
                let new = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
                // SAFETY: the block is of this arena, and the caller promises its layout and that `size` is not 0.
                pointer(unsafe { arena::reallocate(base, block, layout, new) })
            }
            // SAFETY: the block is of no arena, so it is of this allocator. The caller promises the rest.
            _ => unsafe { self.0.realloc(block, layout, size) },
        }
    }
}
