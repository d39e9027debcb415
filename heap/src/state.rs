//! What a heap and a realm have in common: an arena that holds one value, and marks of it.

use std::alloc::Layout;
use std::io;
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::arena::{self, Arena};
use crate::mark::Mark;
use crate::stats::HeapStats;

/// Numbers of heaps, so that a mark cannot be taken for one of another heap.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// An arena that holds one value.
pub(crate) struct State {
    arena: Arena,
    /// Where the value is, in bytes from the start of the arena.
    root: usize,
    number: u64,
    /// Whether going back to a mark failed, so that the arena may be a mixture of two states.
    broken: bool,
}

impl State {
    /// Allocates room for a value in an empty arena. The caller writes the value.
    pub(crate) fn new(mut arena: Arena, layout: Layout, shape: u64) -> io::Result<Self> {
        let layout =
            Layout::from_size_align(layout.size().max(1), layout.align()).map_err(io::Error::other)?;
        // SAFETY: the arena is new and nobody else uses it. The layout is not empty.
        let block = unsafe { arena::allocate(arena.base(), layout) }.ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::OutOfMemory,
                format!(
                    "there is no room in the heap for a root of {} bytes; raise HeapOptions::address_space",
                    layout.size()
                ),
            )
        })?;
        let root = block.addr().get() - arena.base().addr().get();
        arena.set_root(root, shape);
        Ok(Self::open(arena, root))
    }

    /// Uses an arena that has a value at `root`.
    pub(crate) fn open(arena: Arena, root: usize) -> Self {
        Self { arena, root, number: NEXT.fetch_add(1, Ordering::Relaxed), broken: false }
    }

    pub(crate) fn base(&self) -> NonNull<u8> {
        self.arena.base()
    }

    /// Where the value is. Its address never changes.
    ///
    /// # Panics
    ///
    /// If going back to a mark failed and no later call succeeded.
    pub(crate) fn root(&self) -> NonNull<u8> {
        assert!(
            !self.broken,
            "going back to a mark failed, so the heap has no state; go back to a mark before using its values"
        );
        // SAFETY: the value is within the arena.
        unsafe { self.arena.base().add(self.root) }
    }

    pub(crate) fn mark<R>(&mut self) -> io::Result<Mark<R>> {
        if self.broken {
            return Err(io::Error::other(
                "marking a heap: going back to a mark failed before, so the heap has no state; go back to a mark first",
            ));
        }
        self.broken = true; // in case of a panic
        let marked = self.arena.mark();
        // On Windows, returning free memory to the system can fail and leave no bytes.
        self.broken = self.arena.memory().len() == 0;
        Ok(Mark { image: marked?, heap: self.number, root: PhantomData })
    }

    pub(crate) fn back_to<R>(&mut self, mark: &Mark<R>) -> io::Result<()> {
        if mark.heap != self.number {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "going back to a mark: it is of another heap; use a mark that this heap made",
            ));
        }
        self.broken = true; // in case of a panic
        let result = self.arena.back_to(&mark.image);
        self.broken = result.is_err();
        result
    }

    /// Declares that the value may not be used until going back to a mark succeeds.
    pub(crate) fn give_up(&mut self) {
        self.broken = true;
    }

    pub(crate) fn stats(&self) -> HeapStats {
        HeapStats::new(self.arena.memory())
    }

    pub(crate) fn check(&self) -> Result<crate::allocator::Usage, String> {
        if self.broken {
            return Err("going back to a mark failed, so the heap has no state".to_owned());
        }
        self.arena.check()
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{self, AssertUnwindSafe};

    use super::*;
    use crate::options::HeapOptions;

    fn state(boxed: bool) -> State {
        let mut options = HeapOptions::new();
        options.address_space(16 << 20).boxed(boxed);
        State::new(options.arena().unwrap(), Layout::new::<u64>(), 0).unwrap()
    }

    /// After a return that failed, the arena may be a mixture of two states, so no value of it may be used. A failure is
    /// made by a mark that is of another kind of memory, and claims to be of this heap.
    #[test]
    fn after_a_return_that_failed_the_value_cannot_be_used_until_one_succeeds() {
        if cfg!(miri) {
            return println!("skipped: state: Miri cannot map memory");
        }
        let (mut heap, mut other) = (state(true), state(false));
        let good: Mark<()> = heap.mark().unwrap();
        let bad = Mark { heap: heap.number, ..other.mark::<()>().unwrap() };
        assert!(heap.back_to(&bad).is_err());
        assert!(panic::catch_unwind(AssertUnwindSafe(|| heap.root())).is_err());
        assert!(heap.check().is_err());
        let refused = heap.mark::<()>().unwrap_err().to_string();
        assert!(refused.contains("go back to a mark first"), "{refused}");
        // A mark of another heap changes nothing.
        assert!(heap.back_to(&other.mark::<()>().unwrap()).is_err());
        assert!(panic::catch_unwind(AssertUnwindSafe(|| heap.root())).is_err());
        heap.back_to(&good).unwrap();
        heap.root();
        heap.mark::<()>().unwrap();
    }
}
