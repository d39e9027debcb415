//! `HeapOptions`: how a heap is made.

use std::io;

use memsnap::{HugePages, Snapshot, Tracking, ViewOptions};

use crate::allocator::{ArenaAllocator, Segments};
use crate::arena::Arena;
use crate::current::outside;
use crate::memory::Memory;

/// The addresses that a heap reserves if the program does not say how many.
#[cfg(target_pointer_width = "64")]
const ADDRESS_SPACE: usize = 64 << 30;
#[cfg(not(target_pointer_width = "64"))]
const ADDRESS_SPACE: usize = 256 << 20;

/// Options with which a [`Heap`](crate::Heap) or a [`Realm`](crate::Realm) is made.
///
/// # Examples
///
/// A heap that can grow to 1 TiB, if addresses have 64 bits:
///
/// ```
/// use memsnap_heap::{Heap, HeapOptions, Root, Vec};
///
/// struct Numbers;
/// impl Root for Numbers {
///     type Of<'h> = Vec<'h, u64>;
/// }
///
/// # fn main() -> std::io::Result<()> {
/// let mut options = HeapOptions::new();
/// # #[cfg(target_pointer_width = "64")]
/// options.address_space(1 << 40);
/// let heap = Heap::<Numbers>::with_options(&options, |memory| Vec::new_in(memory))?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct HeapOptions {
    address_space: usize,
    boxed: bool,
    view: ViewOptions,
}

impl Default for HeapOptions {
    fn default() -> Self {
        Self::new()
    }
}

impl HeapOptions {
    /// Returns the default options.
    #[must_use]
    pub fn new() -> Self {
        let mut view = ViewOptions::new();
        view.keep_resident(usize::MAX);
        Self { address_space: ADDRESS_SPACE, boxed: cfg!(miri), view }
    }

    /// Reserves addresses for a heap of up to `bytes` bytes, rounded up to whole segments of 4 MiB.
    ///
    /// Reserved addresses take no memory. The default is 64 GiB, or 256 MiB where addresses have 32 bits. If a heap
    /// needs more, allocations fail.
    pub fn address_space(&mut self, bytes: usize) -> &mut Self {
        self.address_space = bytes;
        self
    }

    /// Sets the method by which a heap finds the pages that were written. The default is [`Tracking::Auto`].
    ///
    /// See [`memsnap::ViewOptions::tracking`].
    pub fn tracking(&mut self, tracking: Tracking) -> &mut Self {
        self.view.tracking(tracking);
        self
    }

    /// Sets whether the heap is in huge pages. The default is [`HugePages::Auto`].
    ///
    /// See [`memsnap::ViewOptions::huge_pages`].
    pub fn huge_pages(&mut self, huge_pages: HugePages) -> &mut Self {
        self.view.huge_pages(huge_pages);
        self
    }

    /// Sets the most bytes of private memory that going back to a mark leaves to the heap. The default is no limit.
    ///
    /// A smaller number saves memory, and makes page faults after going back more frequent. See
    /// [`memsnap::ViewOptions::keep_resident`].
    pub fn keep_resident(&mut self, bytes: usize) -> &mut Self {
        self.view.keep_resident(bytes);
        self
    }

    /// Makes the heap at `address`, a multiple of the page size. 0 lets the system pick an address, which is the default.
    ///
    /// Use this if the heap is [opened](crate::Heap::open) by another process, in which the same addresses have to be
    /// free. See [`memsnap::ViewOptions::at`]. Boxed memory ignores it.
    pub fn address(&mut self, address: usize) -> &mut Self {
        self.view.at(address);
        self
    }

    /// Takes the memory from the global allocator instead of the operating system. The default is `false`.
    ///
    /// Each mark is then a copy of the whole heap. This is for tools that cannot run system calls, such as Miri, where
    /// it is the default. All of the [address space](Self::address_space) is allocated at once.
    pub fn boxed(&mut self, boxed: bool) -> &mut Self {
        self.boxed = boxed;
        self
    }

    /// The most bytes that an arena of these options can have.
    pub(crate) fn most(&self) -> usize {
        let most = self.address_space.max(Segments::FIRST);
        // If this overflows, there are not so many addresses, and making the view fails.
        let most = most.checked_next_multiple_of(Segments::FIRST).unwrap_or(most);
        // In Miri, the default would take all memory.
        if cfg!(miri) { most.min(32 << 20) } else { most }
    }

    /// Maps the snapshot of an arena at an address.
    pub(crate) fn map(&self, snapshot: Snapshot, address: usize) -> io::Result<Memory> {
        let mut view = self.view.clone();
        view.at(address).reserve(self.most().max(snapshot.len()));
        Memory::map(snapshot, &view)
    }

    /// Makes an empty arena.
    pub(crate) fn arena(&self) -> io::Result<Arena> {
        let memory = if self.boxed {
            Memory::boxed(Segments::FIRST, self.most())?
        } else {
            let mut view = self.view.clone();
            view.reserve(self.most());
            Memory::map(outside(|| Snapshot::zeroed(Segments::FIRST))?, &view)?
        };
        Ok(Arena::new(memory))
    }
}
