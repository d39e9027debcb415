//! talc as the allocator of an arena, to compare the pages that it writes.

use std::alloc::Layout;
use std::io;
use std::ops::Range;
use std::ptr::NonNull;

use memsnap_heap::allocator::{ArenaAllocator, Grow, HEADER, Usage};
use talc::DefaultBinning;
use talc::base::Talc;
use talc::source::Manual;

/// The allocator talc 5.
pub(crate) struct TalcArena;

/// The state, behind the header of the arena.
#[repr(C)]
struct State {
    talc: Talc<Manual, DefaultBinning>,
    /// The end of the memory that talc divides.
    end: NonNull<u8>,
    len: usize,
}

/// Where the memory that talc divides starts.
const START: usize = 4096;
/// By how much an arena becomes longer.
const STEP: usize = 4 << 20;

const _: () = assert!(HEADER + size_of::<State>() <= START && HEADER.is_multiple_of(align_of::<State>()));

/// # Safety
///
/// `base` is the base of an arena of this allocator, which is not used by anybody else during the lifetime.
unsafe fn state<'a>(base: NonNull<u8>) -> &'a mut State {
    // SAFETY: the arena is longer than its header.
    let state = unsafe { base.add(HEADER) };
    // SAFETY: `init` has written a state there, and the caller promises that nobody else uses it.
    unsafe { state.cast().as_mut() }
}

// SAFETY: talc keeps blocks apart, and outside of the first page. The state does contain addresses, against the contract. An
// arena of this program never moves, and no image of it is put at another address, so they stay valid.
unsafe impl ArenaAllocator for TalcArena {
    const NAME: &'static str = "talc 5";
    const FIRST: usize = STEP;

    unsafe fn init(base: NonNull<u8>) {
        let mut talc = Talc::new(Manual);
        // SAFETY: the arena has `FIRST` bytes.
        let start = unsafe { base.add(START) };
        // SAFETY: the memory behind the first page is not used by anybody else.
        let Some(end) = (unsafe { talc.claim(start.as_ptr(), Self::FIRST - START) }) else {
            unreachable!("talc refuses 4 MiB");
        };
        // SAFETY: the arena is longer than its header.
        let state = unsafe { base.add(HEADER) };
        // SAFETY: the state fits between the header and the first block.
        unsafe { state.cast::<State>().write(State { talc, end, len: Self::FIRST }) };
    }

    #[inline]
    unsafe fn allocate(base: NonNull<u8>, layout: Layout, more: &impl Grow) -> Option<NonNull<u8>> {
        // SAFETY: the caller promises the conditions.
        let state = unsafe { state(base) };
        loop {
            // SAFETY: the caller promises that the layout is not empty.
            if let Some(block) = unsafe { state.talc.try_allocate(layout) } {
                return Some(block);
            }
            let len = (state.len + layout.size()).next_multiple_of(STEP) + STEP;
            if !more.grow(len) {
                return None;
            }
            // SAFETY: the arena has this length now.
            let end = unsafe { base.add(len) };
            // SAFETY: the new bytes behind the end are not used by anybody else.
            state.end = unsafe { state.talc.extend(state.end, end.as_ptr()) };
            state.len = len;
        }
    }

    #[inline]
    unsafe fn deallocate(base: NonNull<u8>, block: NonNull<u8>, layout: Layout) {
        // SAFETY: the caller promises the conditions.
        let state = unsafe { state(base) };
        // SAFETY: the caller promises the conditions.
        unsafe { state.talc.deallocate(block.as_ptr(), layout) };
    }

    unsafe fn resize(_: NonNull<u8>, _: NonNull<u8>, _: Layout, _: usize, _: &impl Grow) -> bool {
        false
    }

    unsafe fn release(_: NonNull<u8>, _: impl FnMut(Range<usize>) -> io::Result<()>) -> io::Result<()> {
        Ok(())
    }

    unsafe fn check(base: NonNull<u8>) -> Result<Usage, String> {
        // SAFETY: the caller promises the conditions.
        let len = unsafe { state(base) }.len;
        Ok(Usage { len, ..Usage::default() })
    }
}
