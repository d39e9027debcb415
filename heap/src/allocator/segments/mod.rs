//! The allocator that dirties few pages.
//!
//! The arena is a row of segments of 4 MiB. Each one starts with a prefix, which has an entry of 48 bytes for each page of
//! the segment. What is free is written there, apart from the blocks, so that 4 KiB of entries speak for 85 pages. Memory
//! that is free is never written.
//!
//! - Blocks of up to 8 KiB are cut from chunks of pages, each with blocks of one size ([`chunks`]).
//! - Longer blocks, and chunks, are runs of pages inside a segment ([`runs`]).
//! - Blocks that are too long for that are rows of segments ([`rows`]).
//!
//! Where a block is, is decided by its layout. In debug builds, freeing a block that cannot have been allocated with this
//! layout prints a message and aborts the process.

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
use state::{Arena, Entry, PAGE, SEGMENT, Segment, bug, offset_of, page_at};
use std::alloc::Layout;
use std::io;
use std::ops::Range;
use std::ptr::NonNull;

/// The allocator of [segments](self).
#[derive(Clone, Copy, Debug)]
pub struct Segments;

/// Where the blocks of a layout are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// In chunks of this class.
    Chunk(usize),
    /// In a run of so many pages.
    Run(u32),
    /// In a row of segments: so many pages.
    Row(usize),
}

#[inline]
fn place(layout: Layout) -> Place {
    class_of(layout).map_or_else(|| place_large(layout), Place::Chunk)
}

#[inline(never)]
fn place_large(layout: Layout) -> Place {
    let pages = layout.size().div_ceil(PAGE);
    match u32::try_from(pages) {
        Ok(few) if runs::fits(pages, layout.align()) => Place::Run(few),
        _ => Place::Row(pages),
    }
}

/// Allocates a block that is not in a chunk. Returns its offset.
#[inline(never)]
fn allocate_large(arena: Arena<'_>, layout: Layout, more: &impl Grow) -> Option<usize> {
    let align = layout.align();
    let page = match place_large(layout) {
        Place::Run(pages) if align > PAGE => runs::allocate_aligned(arena, pages, align, more),
        Place::Run(pages) => runs::allocate(arena, pages, more),
        Place::Row(pages) => rows::allocate(arena, pages, align, more),
        Place::Chunk(_) => None,
    };
    page.map(offset_of)
}

/// Frees a block that is not in a chunk.
#[inline(never)]
fn deallocate_large(arena: Arena<'_>, offset: usize, layout: Layout) {
    if cfg!(debug_assertions) {
        plausible(arena, offset, layout);
    }
    let page = page_at(offset);
    match place_large(layout) {
        Place::Row(_) => {
            let segment = rows::row_at(page);
            rows::free(arena, segment, arena.segment(segment).len.get());
        }
        _ => runs::free(arena, page, u32::from(arena.entry(page).count.get())),
    }
}

/// Ends the process if a block that is not in a chunk cannot have been allocated with a layout.
fn plausible(arena: Arena<'_>, offset: usize, layout: Layout) {
    if offset >= arena.len() || !offset.is_multiple_of(PAGE) {
        bug("a block was freed that is not in the arena");
    }
    let page = page_at(offset);
    let same = match place_large(layout) {
        Place::Run(pages) => {
            let run = arena.entry(page);
            run.kind.get() == Entry::RUN && u32::from(run.count.get()) == pages
        }
        Place::Row(pages) => {
            let row = arena.segment(rows::row_at(page));
            row.kind.get() == Segment::USED && row.len.get() as usize == rows::len_of(page, pages)
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
    let page = page_at(offset);
    match (from, to) {
        (Place::Run(_), Place::Run(pages)) => runs::resize(arena, page, pages),
        (Place::Row(_), Place::Row(pages)) => {
            rows::resize(arena, rows::row_at(page), rows::len_of(page, pages), more)
        }
        (from, to) => from == to,
    }
}

// SAFETY: a block is cut from a chunk, a run or a row, which are disjoint, in the arena, and without the prefixes (`check`
// says so after each operation of the tests). Classes are multiples of the alignment, runs and rows are moved to it. All
// links are numbers of pages and segments.
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
        let system = page_at(memsnap::page_size()).max(1);
        runs::release(arena, system, &mut zero)?;
        rows::release(arena, system, &mut zero)
    }

    unsafe fn check(base: NonNull<u8>) -> Result<Usage, String> {
        // SAFETY: as in `allocate`. `check` looks at the length in the head before it uses it.
        let arena = unsafe { Arena::new(base) };
        check::check(arena)
    }
}

const _: () = assert!(CLASSES.len() < 256);
