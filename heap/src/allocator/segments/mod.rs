//! The allocator that dirties few pages.
//!
//! The arena is a row of segments of 4 MiB. Each one starts with a prefix, which has an entry of 48 bytes for each unit
//! of 8 KiB. Entries say what is free, and a page has 85 of them. So many frees change the same
//! pages, and none changes the page of its block. Free memory is never written.
//!
//! - Blocks of up to 8 KiB are cut from chunks of units, each with blocks of one size ([`chunks`]).
//! - Longer blocks, and chunks, are runs of units inside a segment ([`runs`]).
//! - Blocks that are too long for that are rows of segments ([`rows`]).
//!
//! The layout of a block decides which of these it is. In debug builds, freeing a block that cannot have been allocated
//! with its layout prints a message and aborts the process, as the standard library does for such bugs.

mod check;
mod chunks;
mod classes;
mod rows;
mod runs;
mod state;
#[cfg(test)]
mod tests;

use super::{ArenaAllocator, Grow, Usage};
use classes::{CLASSES, class_of};
use state::{ALIGN, Arena, Entry, SEGMENT, Segment, UNIT, bug, offset_of, unit_at};
use std::alloc::Layout;
use std::io;
use std::ops::Range;
use std::ptr::NonNull;

/// An allocator that changes few pages: it keeps apart from the blocks which of them are free.
///
/// In debug builds, freeing a block twice or with another layout prints a message and aborts the process.
#[derive(Clone, Copy, Debug)]
pub struct Segments;

/// Where the blocks of a layout are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// In chunks of this class.
    Chunk(usize),
    /// In a run of so many units.
    Run(u32),
    /// In a row of segments: so many units.
    Row(usize),
}

#[inline]
fn place(layout: Layout) -> Place {
    class_of(layout).map_or_else(|| place_large(layout), Place::Chunk)
}

#[inline(never)]
fn place_large(layout: Layout) -> Place {
    // An arena starts at a multiple of `ALIGN`, so that a block of a higher alignment starts inside of its first unit.
    let slack = if layout.align() > ALIGN { UNIT - ALIGN } else { 0 };
    let units = (layout.size() + slack).div_ceil(UNIT);
    match u32::try_from(units) {
        Ok(few) if runs::fits(units, layout.align()) => Place::Run(few),
        _ => Place::Row(units),
    }
}

/// Allocates a block that is not in a chunk. Returns its offset.
#[inline(never)]
fn allocate_large(arena: Arena<'_>, layout: Layout, more: &impl Grow) -> Option<usize> {
    let align = layout.align();
    match place_large(layout) {
        Place::Run(units) if align > ALIGN => runs::allocate_aligned(arena, units, align, more),
        Place::Run(units) => runs::allocate(arena, units, more).map(offset_of),
        Place::Row(units) => rows::allocate(arena, units, align, more),
        Place::Chunk(_) => None,
    }
}

/// Frees a block that is not in a chunk.
#[inline(never)]
fn deallocate_large(arena: Arena<'_>, offset: usize, layout: Layout) {
    if cfg!(debug_assertions) {
        plausible(arena, offset, layout);
    }
    let unit = unit_at(offset);
    match place_large(layout) {
        Place::Row(_) => {
            let segment = rows::row_at(unit);
            rows::free(arena, segment, arena.segment(segment).len.get());
        }
        _ => runs::free(arena, unit, u32::from(arena.entry(unit).count.get())),
    }
}

/// Ends the process if a block that is not in a chunk cannot have been allocated with a layout.
fn plausible(arena: Arena<'_>, offset: usize, layout: Layout) {
    if offset >= arena.len() || !offset.is_multiple_of(ALIGN) {
        bug("a block was freed that is not in the arena");
    }
    let unit = unit_at(offset);
    let same = match place_large(layout) {
        Place::Run(units) => {
            let run = arena.entry(unit);
            run.kind.get() == Entry::RUN && u32::from(run.count.get()) == units
        }
        Place::Row(units) => {
            let row = arena.segment(rows::row_at(unit));
            row.kind.get() == Segment::USED && row.len.get() as usize == rows::len_of(unit, units)
        }
        Place::Chunk(_) => false,
    };
    if !same {
        bug("a block was freed twice, or with another layout than it was allocated with");
    }
}

/// Changes the size of a block without moving it.
#[inline(never)]
fn resize(arena: Arena<'_>, offset: usize, from: Place, to: Place, more: &impl Grow) -> bool {
    let unit = unit_at(offset);
    match (from, to) {
        (Place::Run(_), Place::Run(units)) => runs::resize(arena, unit, units),
        (Place::Row(_), Place::Row(units)) => {
            rows::resize(arena, rows::row_at(unit), rows::len_of(unit, units), more)
        }
        (from, to) => from == to,
    }
}

/// Makes what is free clean, in multiples of `system` units.
fn release(
    arena: Arena<'_>,
    system: u32,
    zero: &mut impl FnMut(Range<usize>) -> io::Result<()>,
) -> io::Result<()> {
    runs::release(arena, system, zero)?;
    rows::release(arena, system, zero)
}

// SAFETY: a block is cut from a chunk, a run or a row, which are disjoint, in the arena, and outside of the prefixes
// (the tests call `check`, which says so). Classes are multiples of the alignment, runs and rows are moved to it. All
// links are numbers of units and segments.
unsafe impl ArenaAllocator for Segments {
    const NAME: &'static str = "segments";
    const FIRST: usize = SEGMENT;

    unsafe fn init(base: NonNull<u8>) {
        // SAFETY: the caller lends `FIRST` bytes, which is the length of one segment.
        let arena = unsafe { Arena::new(base) };
        arena.head().segments.set(1);
        arena.head().not_segments.set(!1);
        runs::divide(arena, 0, false);
    }

    #[inline]
    unsafe fn allocate(base: NonNull<u8>, layout: Layout, more: &impl Grow) -> Option<NonNull<u8>> {
        // SAFETY: the arena was initialized, and the caller makes no other call at the same time.
        let arena = unsafe { Arena::new(base) };
        let offset = match class_of(layout) {
            Some(class) => chunks::allocate(arena, class, more),
            None => allocate_large(arena, layout, more),
        };
        // SAFETY: the block is inside the arena.
        offset.map(|offset| unsafe { arena.block(offset) })
    }

    #[inline]
    unsafe fn deallocate(base: NonNull<u8>, block: NonNull<u8>, layout: Layout) {
        // SAFETY: as in `allocate`.
        let arena = unsafe { Arena::new(base) };
        let offset = arena.offset(block);
        match class_of(layout) {
            // SAFETY: the block is one of this class, and in use: conditions of the caller.
            Some(class) => unsafe { chunks::deallocate(arena, offset, class) },
            None => deallocate_large(arena, offset, layout),
        }
    }

    unsafe fn resize(
        base: NonNull<u8>,
        block: NonNull<u8>,
        layout: Layout,
        size: usize,
        more: &impl Grow,
    ) -> bool {
        // SAFETY: as in `allocate`.
        let arena = unsafe { Arena::new(base) };
        let Ok(to) = Layout::from_size_align(size, layout.align()) else { return false };
        resize(arena, arena.offset(block), place(layout), place(to), more)
    }

    unsafe fn release(
        base: NonNull<u8>,
        mut zero: impl FnMut(Range<usize>) -> io::Result<()>,
    ) -> io::Result<()> {
        // SAFETY: as in `allocate`.
        let arena = unsafe { Arena::new(base) };
        release(arena, unit_at(memsnap::page_size()).max(1), &mut zero)
    }

    unsafe fn check(base: NonNull<u8>) -> Result<Usage, String> {
        // SAFETY: as in `allocate`. `check` looks at the length in the head before it uses it.
        let arena = unsafe { Arena::new(base) };
        check::check(arena)
    }
}

const _: () = assert!(CLASSES.len() < 256);
