//! The memory of an arena: a view of memsnap, or memory from the global allocator.
//!
//! Miri cannot run system calls, so it uses the latter. An image of it is a copy.

use std::io;
use std::mem::{ManuallyDrop, MaybeUninit};
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;

use memsnap::{OwnedView, Snapshot, ViewOptions, ViewStats};

use crate::boxed_memory::BoxedMemory;
use crate::current::outside;

/// Memory that can grow at its address, and whose state can be kept and put back.
pub(crate) enum Memory {
    Mapped(OwnedView),
    Boxed(BoxedMemory),
}

/// A kept state of a [`Memory`].
#[derive(Clone)]
pub(crate) struct Image(ManuallyDrop<Kept>);

#[derive(Clone)]
enum Kept {
    Mapped(Snapshot),
    Boxed(Arc<[MaybeUninit<u8>]>),
}

impl Image {
    fn new(kept: Kept) -> Self {
        Self(ManuallyDrop::new(kept))
    }

    /// The snapshot, unless the memory is boxed.
    pub(crate) fn snapshot(&self) -> Option<&Snapshot> {
        match &*self.0 {
            Kept::Mapped(snapshot) => Some(snapshot),
            Kept::Boxed(_) => None,
        }
    }
}

impl Drop for Image {
    /// Memory that memsnap allocates meanwhile, to list the free pages of its store, may outlive the call.
    fn drop(&mut self) {
        // SAFETY: the value is being dropped, so nothing uses it afterwards.
        outside(|| unsafe { ManuallyDrop::drop(&mut self.0) });
    }
}

impl Memory {
    /// Opens a view of `snapshot`.
    pub(crate) fn map(snapshot: Snapshot, options: &ViewOptions) -> io::Result<Self> {
        outside(|| snapshot.into_view_with(options).map(Self::Mapped))
    }

    /// Allocates `len` zero bytes that can grow to `most`.
    pub(crate) fn boxed(len: usize, most: usize) -> io::Result<Self> {
        outside(|| BoxedMemory::new(len, most).map(Self::Boxed))
    }

    /// The address of the first byte. It never changes.
    pub(crate) fn base(&mut self) -> NonNull<u8> {
        match self {
            // A view of at least one byte has an address that is not null.
            Self::Mapped(view) => NonNull::new(view.as_mut_ptr()).unwrap_or(NonNull::dangling()),
            Self::Boxed(boxed) => boxed.start(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Mapped(view) => view.len(),
            Self::Boxed(boxed) => boxed.len(),
        }
    }

    /// Adds zero bytes at the end.
    pub(crate) fn grow(&mut self, len: usize) -> io::Result<()> {
        outside(|| match self {
            Self::Mapped(view) => view.grow(len),
            Self::Boxed(boxed) => boxed.grow(len),
        })
    }

    pub(crate) fn zero(&mut self, range: Range<usize>) -> io::Result<()> {
        outside(|| match self {
            Self::Mapped(view) => view.zero(range),
            Self::Boxed(boxed) => boxed.zero(range),
        })
    }

    /// Keeps the current state.
    pub(crate) fn take(&mut self) -> io::Result<Image> {
        outside(|| match self {
            Self::Mapped(view) => view.take_snapshot().map(Kept::Mapped).map(Image::new),
            Self::Boxed(boxed) => Ok(Image::new(Kept::Boxed(boxed.copy()))),
        })
    }

    /// Puts a kept state back. After an error, the memory is a mixture of two states until a call succeeds.
    pub(crate) fn put_back(&mut self, image: &Image) -> io::Result<()> {
        outside(|| match (self, &*image.0) {
            (Self::Mapped(view), Kept::Mapped(snapshot)) => view.restore_to(snapshot),
            (Self::Boxed(boxed), Kept::Boxed(copy)) => boxed.put_back(copy),
            _ => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "going back to a mark: it is of a heap with another kind of memory; use a mark of this heap",
            )),
        })
    }

    /// The statistics of the view, if there is one.
    pub(crate) fn stats(&self) -> Option<ViewStats> {
        match self {
            Self::Mapped(view) => Some(outside(|| view.stats())),
            Self::Boxed(_) => None,
        }
    }
}
