//! Tests of the allocator: random operations against a model, with the check after many of them.

mod behaviour;
mod damage;

use super::state::{PREFIX, UNITS};
use super::*;
use rand::{RngExt, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus as Rng;
use std::alloc::{alloc_zeroed, dealloc};
use std::cell::Cell;

/// The base is so far behind a multiple of a segment, and so is a multiple of a page and of nothing more. Blocks with the
/// alignment of a segment start where the prefix of another segment would be.
const BEFORE: usize = SEGMENT - 3 * ALIGN;

/// An arena from the system's allocator.
struct Fixture {
    base: NonNull<u8>,
    /// How far behind a multiple of a segment the base is, and how many bytes may be used from there.
    before: usize,
    room: usize,
    len: Cell<usize>,
    /// How often the arena grows before it fails to.
    grows: Cell<usize>,
}

impl Grow for Fixture {
    fn grow(&self, len: usize) -> bool {
        assert!(len > self.len.get() && len.is_multiple_of(SEGMENT));
        let Some(left) = self.grows.get().checked_sub(1) else { return false };
        if len > self.room {
            return false;
        }
        self.grows.set(left);
        self.len.set(len);
        true
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        // SAFETY: from `alloc_zeroed` with this layout.
        unsafe { dealloc(self.base.as_ptr().wrapping_sub(self.before), Self::whole(self.before, self.room)) };
    }
}

impl Fixture {
    fn whole(before: usize, room: usize) -> Layout {
        Layout::from_size_align(before + room, SEGMENT).unwrap()
    }

    fn new(segments: usize) -> Self {
        Self::behind(BEFORE, segments)
    }

    fn behind(before: usize, segments: usize) -> Self {
        let room = segments * SEGMENT;
        // SAFETY: the size is not 0.
        let start = unsafe { alloc_zeroed(Self::whole(before, room)) };
        let base = NonNull::new(start.wrapping_add(before)).unwrap();
        // SAFETY: so many zero bytes.
        unsafe { Segments::init(base) };
        Self { base, before, room, len: Cell::new(SEGMENT), grows: Cell::new(usize::MAX) }
    }

    fn allocate(&self, layout: Layout) -> Option<NonNull<u8>> {
        // SAFETY: the arena was initialized.
        let block = unsafe { Segments::allocate(self.base, layout, self) }?;
        assert!(block.addr().get().is_multiple_of(layout.align()), "{block:?} {layout:?}");
        let offset = self.offset(block);
        assert!(
            offset >= super::super::HEADER && offset + layout.size() <= self.len.get(),
            "{offset} {layout:?}"
        );
        Some(block)
    }

    fn free(&self, block: NonNull<u8>, layout: Layout) {
        // SAFETY: callers pass blocks in use with their layouts.
        unsafe { Segments::deallocate(self.base, block, layout) };
    }

    fn resize(&self, block: NonNull<u8>, layout: Layout, size: usize) -> bool {
        // SAFETY: callers pass blocks in use with their layouts.
        unsafe { Segments::resize(self.base, block, layout, size, self) }
    }

    fn offset(&self, block: NonNull<u8>) -> usize {
        block.addr().get() - self.base.addr().get()
    }

    #[track_caller]
    fn check(&self) -> Usage {
        // SAFETY: the arena was initialized.
        let usage = unsafe { Segments::check(self.base) }.unwrap();
        assert_eq!(usage.len, self.len.get());
        usage
    }

    /// The bytes of the arena that can be used now.
    #[allow(clippy::mut_from_ref, reason = "callers have no other reference")]
    fn bytes(&self) -> &mut [u8] {
        // SAFETY: the room is at least as long, and nobody refers to it.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr(), self.len.get()) }
    }

    /// Calls `release` with a function that fails for the range with the number `fail`.
    fn release(&self, fail: usize) -> (io::Result<()>, Vec<Range<usize>>) {
        self.release_as_if(unit_at(memsnap::page_size()).max(1), fail)
    }

    /// The same for a system whose pages have so many units.
    fn release_as_if(&self, system: u32, fail: usize) -> (io::Result<()>, Vec<Range<usize>>) {
        let mut ranges = Vec::new();
        let mut zero = |range: Range<usize>| {
            let page = if system == 1 { ALIGN } else { system as usize * UNIT };
            assert!(range.start < range.end && range.end <= self.len.get(), "{range:?}");
            assert!(range.start.is_multiple_of(page) && range.end.is_multiple_of(page), "{range:?}");
            if ranges.len() == fail {
                return Err(io::Error::other("refused"));
            }
            // SAFETY: inside the arena.
            unsafe { self.base.as_ptr().wrapping_add(range.start).write_bytes(0, range.len()) };
            ranges.push(range);
            Ok(())
        };
        // SAFETY: the arena was initialized, and nobody else uses it.
        let arena = unsafe { Arena::new(self.base) };
        (release(arena, system, &mut zero), ranges)
    }

    /// Looks at the memory that the state calls clean.
    #[track_caller]
    fn check_clean(&self) {
        // SAFETY: the arena was initialized, and nobody else uses it.
        let arena = unsafe { Arena::new(self.base) };
        let zeros = vec![0; SEGMENT];
        let mut segment = 0;
        while segment < arena.head().segments.get() {
            let state = arena.segment(segment);
            let from = segment as usize * SEGMENT;
            if state.kind.get() == Segment::DIVIDED {
                for unit in state::first_unit(segment)..(segment + 1) * UNITS {
                    let run = arena.entry(unit);
                    if run.kind.get() != Entry::FREE {
                        continue;
                    }
                    for unit in
                        (unit..unit + u32::from(run.count.get())).filter(|&unit| !run.dirty().contains(unit))
                    {
                        assert!(self.bytes()[offset_of(unit)..][..UNIT] == zeros[..UNIT], "unit {unit}");
                    }
                }
            } else if state.kind.get() == Segment::FREE {
                let dirty = state.dirty[0].get()..state.dirty[1].get();
                if !dirty.contains(&segment) {
                    let keep = if state.stale.get() == 0 { ALIGN } else { PREFIX };
                    assert!(self.bytes()[from + keep..from + SEGMENT] == zeros[keep..], "segment {segment}");
                }
                for other in (segment + 1..segment + state.len.get()).filter(|other| !dirty.contains(other)) {
                    let from = other as usize * SEGMENT;
                    assert!(self.bytes()[from..from + SEGMENT] == zeros, "segment {other}");
                }
            }
            segment += state.len.get();
        }
    }
}

/// A block in use, and the byte that its ends are filled with.
#[derive(Clone, Copy)]
struct Block {
    at: NonNull<u8>,
    layout: Layout,
    fill: u8,
}

impl Block {
    /// Long blocks are filled at both ends and once in each unit: all of it would take most of the time.
    fn places(size: usize) -> impl Iterator<Item = usize> {
        let ends = if size <= 512 { 0..size } else { 0..64 };
        let rest = if size <= 512 { 0..0 } else { 64..size };
        ends.chain(rest.step_by(UNIT / 2 - 8)).chain([size - 1])
    }

    fn fill(&self, from: usize) {
        for i in Self::places(self.layout.size()).filter(|&i| i >= from) {
            // SAFETY: inside the block.
            unsafe { self.at.as_ptr().wrapping_add(i).write(self.fill) };
        }
    }

    #[track_caller]
    fn verify(&self, size: usize) {
        for i in Self::places(self.layout.size()).filter(|&i| i < size) {
            // SAFETY: inside the block, and written before.
            let byte = unsafe { self.at.as_ptr().wrapping_add(i).read() };
            assert_eq!(byte, self.fill, "byte {i} of {:?}", self.layout);
        }
    }
}

fn layout(r: &mut Rng, largest: u32) -> Layout {
    let log = r.random_range(0..=largest);
    let size = r.random_range(1..=1usize << log);
    let align =
        if r.random_range(0..4) == 0 { 1 << r.random_range(0..=16) } else { 1 << r.random_range(0..=3) };
    Layout::from_size_align(size, align).unwrap()
}

/// Random operations against a model. The arena is copied and put back on the way, as a mark does.
fn random(seed: usize, steps: usize, segments: usize, largest: u32) {
    let mut r = Rng::seed_from_u64(seed as u64);
    let arena = Fixture::new(segments);
    // Pages of 4, 8, 16 and 64 KiB.
    let system = [1, 1, 2, 8][seed % 4];
    let mut blocks: Vec<Block> = Vec::new();
    let mut mark = None;
    for step in 0..steps {
        match r.random_range(0..100u32) {
            0..48 => {
                let layout = layout(&mut r, largest);
                if let Some(at) = arena.allocate(layout) {
                    let block = Block { at, layout, fill: r.random() };
                    block.fill(0);
                    blocks.push(block);
                }
            }
            48..88 if !blocks.is_empty() => {
                let block = blocks.swap_remove(r.random_range(0..blocks.len()));
                block.verify(usize::MAX);
                arena.free(block.at, block.layout);
            }
            88..96 if !blocks.is_empty() => {
                let i = r.random_range(0..blocks.len());
                let (old, size) = (blocks[i], layout(&mut r, largest).size());
                if arena.resize(old.at, old.layout, size) {
                    let block = &mut blocks[i];
                    block.layout = Layout::from_size_align(size, old.layout.align()).unwrap();
                    old.verify(size);
                    block.fill(0);
                }
            }
            96 => {
                let fail = if r.random() { usize::MAX } else { r.random_range(0..3) };
                let (result, ranges) = arena.release_as_if(system, fail);
                assert!(if result.is_ok() { ranges.len() <= fail } else { ranges.len() == fail });
            }
            97 => {
                mark = Some((arena.bytes().to_vec(), blocks.clone()));
            }
            98 => {
                if let Some((bytes, then)) = &mark {
                    arena.len.set(bytes.len());
                    arena.bytes().copy_from_slice(bytes);
                    blocks.clone_from(then);
                    let (end, rest) = (bytes.len(), arena.room - bytes.len());
                    // New bytes are zero.
                    // SAFETY: what is behind the arena, in the room.
                    unsafe { arena.base.as_ptr().wrapping_add(end).write_bytes(0, rest) };
                }
            }
            _ => arena.grows.set(if r.random_range(0..8) == 0 { 0 } else { usize::MAX }),
        }
        if step % 16 == 0 {
            assert_eq!(arena.check().blocks, blocks.len(), "step {step}");
        }
        // Parts of longer system pages are called clean before they are: see `runs::release`.
        if system == 1 && step % 64 == 0 {
            arena.check_clean();
        }
    }
    for block in blocks.drain(..) {
        block.verify(usize::MAX);
        arena.free(block.at, block.layout);
    }
    assert_eq!(arena.check().blocks, 0);
}

#[test]
fn random_small() {
    for seed in 0..if cfg!(miri) { 1 } else { 8 } {
        random(seed, if cfg!(miri) { 200 } else { 3_000 }, 3, 13);
    }
}

#[test]
fn random_all() {
    for seed in 0..if cfg!(miri) { 1 } else { 8 } {
        random(seed, if cfg!(miri) { 60 } else { 1_500 }, 12, 23);
    }
}
