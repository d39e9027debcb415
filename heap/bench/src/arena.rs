//! A view that an [`ArenaAllocator`] divides, without a heap around it.

use std::alloc::Layout;
use std::cell::UnsafeCell;
use std::marker::PhantomData;
use std::ptr::NonNull;

use anyhow::{Context, Result};
use memsnap::{OwnedView, Snapshot, ViewOptions};
use memsnap_heap::allocator::{ArenaAllocator, Grow};

/// The addresses of an arena.
const ADDRESSES: usize = 4 << 30;

/// A view that the allocator `A` divides.
pub(crate) struct Arena<A> {
    view: Box<UnsafeCell<OwnedView>>,
    base: NonNull<u8>,
    allocator: PhantomData<A>,
}

/// Makes the view longer.
struct Longer<'a>(&'a UnsafeCell<OwnedView>);

impl Grow for Longer<'_> {
    fn grow(&self, len: usize) -> bool {
        // SAFETY: the methods of `Arena` borrow it exclusively, and use the view only while the allocator does not run.
        unsafe { &mut *self.0.get() }.grow(len).is_ok()
    }
}

impl<A: ArenaAllocator> Arena<A> {
    /// Makes an empty arena.
    pub(crate) fn new() -> Result<Self> {
        let mut options = ViewOptions::new();
        options.reserve(ADDRESSES).keep_resident(usize::MAX);
        let mut view = Snapshot::zeroed(A::FIRST)?.into_view_with(&options)?;
        let base = NonNull::new(view.as_mut_ptr()).context("a view has no address")?;
        // SAFETY: the view has `A::FIRST` bytes, which are zero.
        unsafe { A::init(base) };
        Ok(Self { view: Box::new(UnsafeCell::new(view)), base, allocator: PhantomData })
    }

    /// Allocates a block of at least one byte.
    #[inline]
    pub(crate) fn allocate(&mut self, layout: Layout) -> Option<NonNull<u8>> {
        // SAFETY: the arena is initialized and borrowed exclusively. The callers pass layouts of at least 16 bytes.
        unsafe { A::allocate(self.base, layout, &Longer(&self.view)) }
    }

    /// Frees a block.
    ///
    /// # Safety
    ///
    /// The block was allocated in this arena with this layout, and is not freed yet.
    #[inline]
    pub(crate) unsafe fn deallocate(&mut self, block: NonNull<u8>, layout: Layout) {
        // SAFETY: the caller promises the condition. The arena is initialized and borrowed exclusively.
        unsafe { A::deallocate(self.base, block, layout) };
    }

    /// Keeps the current state.
    pub(crate) fn mark(&mut self) -> Result<Snapshot> {
        Ok(self.view.get_mut().take_snapshot()?)
    }

    /// Returns the bytes of the pages that were ever written.
    pub(crate) fn written(&mut self) -> usize {
        self.view.get_mut().stats().private
    }
}
