//! An allocator that fails if a single allocation is larger than any that the store needs.
//!
//! A damaged or hostile file can claim any length. Code that allocates a length without checking it exceeds this limit.

#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};

/// The largest allocation. A pack and a batch of blocks need less.
const LARGEST: usize = 160 << 20;

struct Capped;

#[global_allocator]
static ALLOCATOR: Capped = Capped;

// SAFETY: all calls go to `System`, or return null, which means that there is no memory.
unsafe impl GlobalAlloc for Capped {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.size() > LARGEST {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's promises are those of `System::alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if layout.size() > LARGEST {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's promises are those of `System::alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the pointer comes from `System`, with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if size > LARGEST {
            return std::ptr::null_mut();
        }
        // SAFETY: the pointer comes from `System`, with this layout, and the caller's promises are those of `realloc`.
        unsafe { System.realloc(pointer, layout, size) }
    }
}
