//! An arena: memory with a header, divided by an allocator whose state is in the arena too.

use std::alloc::Layout;
use std::io;
use std::mem;
use std::ptr::NonNull;

use crate::allocator::{ArenaAllocator, Grow, HEADER, Segments, Usage};
use crate::current::outside;
use crate::memory::{Image, Memory};

/// The first bytes of an arena. The allocator's state follows.
#[repr(C)]
#[derive(Clone, Copy)]
struct Header {
    /// The memory of the arena. It is the only address in the header that changes, and it is written again after each
    /// [`Arena::back_to`], because another process may have made the arena.
    memory: *mut Memory,
    magic: u64,
    origin: Origin,
}

const _: () = assert!(size_of::<Header>() <= HEADER);

/// `memheap` and the version of the layout of headers and of the allocator's state.
const MAGIC: u64 = u64::from_le_bytes(*b"memheap\x01");

/// Where an arena is, and what it holds. Another process needs this to open the arena.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct Origin {
    /// The address of the first byte of the arena.
    pub(crate) address: usize,
    /// Where the value is, in bytes from the start.
    pub(crate) root: usize,
    /// A hash of the type of the value.
    pub(crate) shape: u64,
}

impl Origin {
    /// Reads the origin of an arena from the first bytes of its memory. Returns `None` if they are not those of an arena.
    pub(crate) fn read(start: &[u8; HEADER]) -> Option<Self> {
        let word =
            |offset: usize| start[offset..].first_chunk().map_or(0, |bytes| u64::from_ne_bytes(*bytes));
        let number =
            |offset: usize| start[offset..].first_chunk().map_or(0, |bytes| usize::from_ne_bytes(*bytes));
        let origin = mem::offset_of!(Header, origin);
        (word(mem::offset_of!(Header, magic)) == MAGIC).then(|| Self {
            address: number(origin + mem::offset_of!(Self, address)),
            root: number(origin + mem::offset_of!(Self, root)),
            shape: word(origin + mem::offset_of!(Self, shape)),
        })
    }
}

/// An arena. Going back to an image of it also frees what was allocated since.
pub(crate) struct Arena {
    /// From `Box::into_raw`. The header points to it too, so it is not a `Box`, which would claim to be the only pointer.
    memory: NonNull<Memory>,
    base: NonNull<u8>,
}

// SAFETY: the memory is owned like that of a `Box`, and `Memory` is `Send`.
unsafe impl Send for Arena {}

const _: () = {
    const fn is_send<T: Send>() {}
    is_send::<Memory>();
};

impl Arena {
    /// Uses memory that contains an arena.
    ///
    /// # Safety
    ///
    /// All bytes of the memory are those that an arena of this version had, at this address.
    pub(crate) unsafe fn open(memory: Memory) -> Self {
        let arena = Self::of(memory);
        arena.connect();
        arena
    }

    /// Makes an empty arena of memory that has [`Segments::FIRST`] zero bytes.
    pub(crate) fn new(memory: Memory) -> Self {
        debug_assert_eq!(memory.len(), Segments::FIRST);
        let arena = Self::of(memory);
        arena.connect();
        // SAFETY: the memory has this length and is zero behind the header. Nothing else refers to it.
        unsafe { Segments::init(arena.base) };
        arena
    }

    fn of(mut memory: Memory) -> Self {
        let base = memory.base();
        Self { memory: NonNull::from(outside(|| Box::leak(Box::new(memory)))), base }
    }

    /// Writes where the value is to the header.
    pub(crate) fn set_root(&mut self, root: usize, shape: u64) {
        let origin = Origin { address: self.base.addr().get(), root, shape };
        let header = Header { memory: self.memory.as_ptr(), magic: MAGIC, origin };
        // SAFETY: the arena starts with a header, which is only used in this file, and is exclusively borrowed.
        unsafe { self.base.cast::<Header>().write(header) };
    }

    /// The address of the first byte. It never changes.
    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }

    pub(crate) fn memory(&self) -> &Memory {
        // SAFETY: `memory` is valid until `self` is dropped. It is changed by methods that borrow `self` exclusively, and
        // by allocations, which do not run during the life of this reference: the arena is not `Sync`, and the callers, all
        // in `state.rs`, do not allocate in the arena meanwhile.
        unsafe { self.memory.as_ref() }
    }

    fn memory_mut(&mut self) -> &mut Memory {
        // SAFETY: as above, and `self` is borrowed exclusively.
        unsafe { self.memory.as_mut() }
    }

    /// Returns free memory to the system, and keeps the state of the arena.
    pub(crate) fn mark(&mut self) -> io::Result<Image> {
        let (base, memory) = (self.base, self.memory_mut());
        // SAFETY: the arena is initialized and exclusively borrowed. `Memory::zero` makes the bytes zero.
        unsafe { Segments::release(base, |range| memory.zero(range)) }?;
        self.freeze();
        self.memory_mut().take()
    }

    /// Puts a state back. After an error, the arena must not be used until a call succeeds.
    pub(crate) fn back_to(&mut self, image: &Image) -> io::Result<()> {
        self.freeze();
        self.memory_mut().put_back(image)?;
        self.connect();
        Ok(())
    }

    /// Writes the address of the memory to the header, if it is not there yet.
    fn connect(&self) {
        let header = self.base.cast::<Header>();
        // SAFETY: the arena starts with a header, which is only used in this file. The arena is not `Sync`.
        let slot = unsafe { &raw mut (*header.as_ptr()).memory };
        // SAFETY: the slot is in the arena. Zero bytes and addresses are valid.
        if unsafe { slot.read() } != self.memory.as_ptr() {
            // SAFETY: as above.
            unsafe { slot.write(self.memory.as_ptr()) };
        }
    }

    /// Makes the padding bytes of values in the arena initialized to the compiler.
    ///
    /// Comparing and copying pages reads all bytes of the arena. Padding bytes are uninitialized to the language although
    /// they have a value in memory. The compiler does not know what the assembly does with the arena, so it has to assume
    /// that every byte was overwritten with some value, here the one that the byte has.
    fn freeze(&mut self) {
        let base = self.base.as_ptr();
        #[cfg(any(
            target_arch = "x86",
            target_arch = "x86_64",
            target_arch = "arm",
            target_arch = "aarch64",
            target_arch = "riscv32",
            target_arch = "riscv64",
            target_arch = "loongarch64",
        ))]
        if !cfg!(miri) {
            // SAFETY: there are no instructions.
            unsafe { std::arch::asm!("/* {0} */", in(reg) base, options(nostack, preserves_flags)) };
        }
        std::hint::black_box(base);
    }

    /// Checks the allocator's state, and adds up what is in use.
    pub(crate) fn check(&self) -> Result<Usage, String> {
        // SAFETY: the arena is initialized, and not `Sync`.
        unsafe { Segments::check(self.base) }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: the pointer came from a `Box`, and no other use of it follows.
        outside(|| drop(unsafe { Box::from_raw(self.memory.as_ptr()) }));
    }
}

/// Makes an arena longer, through its header.
struct Longer(NonNull<u8>);

impl Grow for Longer {
    #[cold]
    fn grow(&self, len: usize) -> bool {
        // SAFETY: `allocate` and `resize` demand an arena that is not used elsewhere at this time.
        let memory = unsafe { self.0.cast::<Header>().as_ref() }.memory;
        // SAFETY: the header points to the memory of the arena, and no reference to it exists.
        unsafe { (*memory).grow(len) }.is_ok()
    }
}

/// Allocates a block of at least one byte.
///
/// # Safety
///
/// `base` is the base of an arena. No other call on this arena runs at the same time, and the arena is usable.
#[inline]
pub(crate) unsafe fn allocate(base: NonNull<u8>, layout: Layout) -> Option<NonNull<u8>> {
    // SAFETY: the conditions are the same.
    unsafe { Segments::allocate(base, layout, &Longer(base)) }
}

/// Frees a block.
///
/// # Safety
///
/// As for [`allocate`]. The block was allocated in this arena with this layout, and not freed since.
#[inline]
pub(crate) unsafe fn deallocate(base: NonNull<u8>, block: NonNull<u8>, layout: Layout) {
    // SAFETY: the conditions are the same.
    unsafe { Segments::deallocate(base, block, layout) };
}

/// Changes the size of a block, and moves the block if necessary.
///
/// # Safety
///
/// As for [`deallocate`]. `new` has a size of at least 1.
#[inline]
pub(crate) unsafe fn reallocate(
    base: NonNull<u8>,
    block: NonNull<u8>,
    old: Layout,
    new: Layout,
) -> Option<NonNull<u8>> {
    // SAFETY: the caller promises the conditions. `new` is a valid layout.
    if old.align() == new.align() && unsafe { Segments::resize(base, block, old, new.size(), &Longer(base)) }
    {
        return Some(block);
    }
    // SAFETY: the caller promises the conditions.
    let moved = unsafe { allocate(base, new) }?;
    // SAFETY: both blocks have at least this many bytes. They do not overlap, because both are allocated.
    unsafe { moved.copy_from_nonoverlapping(block, old.size().min(new.size())) };
    // SAFETY: the caller promises the conditions.
    unsafe { deallocate(base, block, old) };
    Some(moved)
}
