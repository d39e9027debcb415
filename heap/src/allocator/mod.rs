//! Allocators whose whole state is inside the arena that they divide.
//!
//! A mark of the arena is then a mark of the allocator, and going back to it frees what was allocated since.

mod segments;

pub use segments::Segments;

use std::alloc::Layout;
use std::io;
use std::ops::Range;
use std::ptr::NonNull;

/// How many bytes at the start of an arena belong to the heap. The allocator's state follows.
pub const HEADER: usize = 128;

/// An allocator whose whole state is inside an arena.
///
/// An arena starts at `base`, at a multiple of the page size, and never moves. Its first [`HEADER`] bytes belong to the
/// heap. The allocator asks for more bytes behind its end with [`Grow`]. New bytes are zero.
///
/// # Safety
///
/// Blocks that are allocated and not freed are inside the arena, do not overlap each other, the first [`HEADER`] bytes or
/// the allocator's own state, and have the size and alignment of their layout. The allocator's state contains no address,
/// only offsets.
#[allow(clippy::missing_safety_doc, reason = "the conditions are those of the trait")]
pub unsafe trait ArenaAllocator {
    /// The name, in tables and messages.
    const NAME: &'static str;

    /// The length in bytes of an empty arena.
    const FIRST: usize;

    /// Makes an empty arena of `Self::FIRST` zero bytes.
    ///
    /// # Safety
    ///
    /// `base` is valid for reads and writes of `Self::FIRST` bytes, which are zero except for the header.
    unsafe fn init(base: NonNull<u8>);

    /// Allocates a block. Returns `None` if the arena cannot grow.
    ///
    /// # Safety
    ///
    /// This arena was initialized. No other call on it runs at the same time. The size of the layout is not 0.
    unsafe fn allocate(base: NonNull<u8>, layout: Layout, more: &impl Grow) -> Option<NonNull<u8>>;

    /// Frees a block.
    ///
    /// # Safety
    ///
    /// As for [`allocate`](Self::allocate). The block was allocated here with this layout and is not freed yet.
    unsafe fn deallocate(base: NonNull<u8>, block: NonNull<u8>, layout: Layout);

    /// Changes the size of a block without moving it. Returns `false`, and changes nothing, if that is not possible.
    ///
    /// # Safety
    ///
    /// As for [`deallocate`](Self::deallocate). `size` is not 0, and `layout` with this size is a valid layout.
    unsafe fn resize(
        base: NonNull<u8>,
        block: NonNull<u8>,
        layout: Layout,
        size: usize,
        more: &impl Grow,
    ) -> bool;

    /// Passes each range of the arena to `zero` that is free, long enough to pay for a system call, and possibly not zero.
    ///
    /// # Errors
    ///
    /// Returns the error of `zero`. The range that it failed for is passed again next time.
    ///
    /// # Safety
    ///
    /// As for [`allocate`](Self::allocate). `zero` makes the bytes of the range zero, or fails.
    unsafe fn release(base: NonNull<u8>, zero: impl FnMut(Range<usize>) -> io::Result<()>) -> io::Result<()>;

    /// Checks all of the allocator's state, and adds up what is in use.
    ///
    /// # Errors
    ///
    /// Says which part of the state contradicts which other one.
    ///
    /// # Safety
    ///
    /// As for [`allocate`](Self::allocate), except that the state may be damaged.
    unsafe fn check(base: NonNull<u8>) -> Result<Usage, String>;
}

/// Makes an arena longer.
pub trait Grow {
    /// Makes the arena `len` bytes long, if it can. The new bytes are zero.
    fn grow(&self, len: usize) -> bool;
}

/// What is in use in an arena.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// The number of blocks in use.
    pub blocks: usize,
    /// The bytes of these blocks, rounded up to what they occupy.
    pub used: usize,
    /// The length of the arena.
    pub len: usize,
}
