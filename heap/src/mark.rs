//! `Mark`: a state of a heap that the heap can go back to.

use std::fmt;
use std::marker::PhantomData;

use memsnap::Snapshot;

use crate::memory::Image;

/// A state of a [`Heap`](crate::Heap) or a [`Realm`](crate::Realm), to which it can go back.
///
/// A mark has copies of the pages that changed since the mark before it, and shares all others. Cloning a mark takes
/// constant time. Marks can be dropped in any order, and on any thread.
///
/// `R` is the [`Root`](crate::Root) of the heap, or the type of the value in the realm.
pub struct Mark<R> {
    pub(crate) image: Image,
    /// The number of the heap that the mark is of.
    pub(crate) heap: u64,
    /// A mark contains no value that is dropped or used, so it is `Send` and `Sync` whatever `R` is.
    pub(crate) root: PhantomData<fn() -> R>,
}

impl<R> Mark<R> {
    /// Returns the snapshot of the heap's memory, to save it with the crate `memsnap-store` for example.
    ///
    /// [`Heap::open`](crate::Heap::open) makes a heap of it, also in another process. Returns `None` if the memory is
    /// [boxed](crate::HeapOptions::boxed).
    #[must_use]
    pub fn snapshot(&self) -> Option<&Snapshot> {
        self.image.snapshot()
    }
}

impl<R> Clone for Mark<R> {
    fn clone(&self) -> Self {
        Self { image: self.image.clone(), heap: self.heap, root: PhantomData }
    }
}

impl<R> fmt::Debug for Mark<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mark").field("heap", &self.heap).finish_non_exhaustive()
    }
}

const _: () = {
    const fn is_send_and_sync<T: Send + Sync>() {}
    is_send_and_sync::<Mark<*const u8>>();
};
