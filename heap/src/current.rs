//! Which arena the allocations of this thread go to, while a [`Router`](crate::Router) is the global allocator.

use std::cell::Cell;
use std::ptr::{self, NonNull};

thread_local! {
    /// The base of the arena. Null: allocations go to the usual allocator.
    static CURRENT: Cell<*mut u8> = const { Cell::new(ptr::null_mut()) };

    /// How many allocations of this thread went to the usual allocator because the thread was panicking in a closure.
    static DIVERTED: Cell<u64> = const { Cell::new(0) };
}

/// How many allocations in closures went to the usual allocator because the thread was panicking.
pub(crate) fn diverted() -> u64 {
    DIVERTED.get()
}

/// Notes such an allocation.
#[cold]
pub(crate) fn divert() {
    DIVERTED.set(DIVERTED.get().wrapping_add(1));
}

/// The arena that allocations of this thread go to.
#[inline]
pub(crate) fn current() -> Option<NonNull<u8>> {
    NonNull::new(CURRENT.get())
}

/// Calls `f` with the allocations of this thread going to an arena.
pub(crate) fn inside<O>(base: NonNull<u8>, f: impl FnOnce() -> O) -> O {
    with(base.as_ptr(), f)
}

/// Calls `f` with the allocations of this thread going to the usual allocator.
///
/// All calls of memsnap that may allocate are made through this function, because what they allocate outlives a realm.
pub(crate) fn outside<O>(f: impl FnOnce() -> O) -> O {
    with(ptr::null_mut(), f)
}

fn with<O>(base: *mut u8, f: impl FnOnce() -> O) -> O {
    /// Sets the arena back, also when `f` panics.
    struct Reset(*mut u8);
    impl Drop for Reset {
        fn drop(&mut self) {
            CURRENT.set(self.0);
        }
    }
    let _reset = Reset(CURRENT.replace(base));
    f()
}
