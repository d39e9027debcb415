//! Tests of the allocator: random operations against a model, with the check after many of them.

use super::state::{PAGE, SEGMENT};
use super::*;
use rand::{RngExt, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus as Rng;
use std::alloc::{alloc_zeroed, dealloc};
use std::cell::{Cell, RefCell};

/// An arena from the system's allocator.
struct Fixture {
    base: NonNull<u8>,
    whole: Layout,
    len: Cell<usize>,
    /// How often the arena grows before it fails to.
    grows: Cell<usize>,
}

impl Grow for Fixture {
    fn grow(&self, len: usize) -> bool {
        assert!(len > self.len.get() && len.is_multiple_of(SEGMENT));
        let Some(left) = self.grows.get().checked_sub(1) else { return false };
        if len > self.whole.size() {
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
        unsafe { dealloc(self.base.as_ptr(), self.whole) };
    }
}

impl Fixture {
    /// The base is a multiple of a page, and of nothing more.
    fn new(segments: usize) -> Self {
        let whole = Layout::from_size_align(segments * SEGMENT, memsnap::page_size().max(PAGE)).unwrap();
        // SAFETY: the size is not 0.
        let base = NonNull::new(unsafe { alloc_zeroed(whole) }).unwrap();
        // SAFETY: so many zero bytes.
        unsafe { Segments::init(base) };
        Self { base, whole, len: Cell::new(SEGMENT), grows: Cell::new(usize::MAX) }
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
        // SAFETY: `whole` is at least as long, and nobody refers to it.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr(), self.len.get()) }
    }

    /// Calls `release` with a function that fails for the range with the number `fail`.
    fn release(&self, fail: usize) -> (io::Result<()>, Vec<Range<usize>>) {
        let ranges = RefCell::new(Vec::new());
        let zero = |range: Range<usize>| {
            assert!(range.start < range.end && range.end <= self.len.get(), "{range:?}");
            assert!(
                range.start.is_multiple_of(memsnap::page_size())
                    && range.end.is_multiple_of(memsnap::page_size())
            );
            if ranges.borrow().len() == fail {
                return Err(io::Error::other("refused"));
            }
            // SAFETY: inside the arena.
            unsafe { self.base.as_ptr().wrapping_add(range.start).write_bytes(0, range.len()) };
            ranges.borrow_mut().push(range);
            Ok(())
        };
        // SAFETY: the function makes the range zero.
        let result = unsafe { Segments::release(self.base, zero) };
        (result, ranges.into_inner())
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
    /// Long blocks are filled at both ends and once in each page: all of it would take most of the time.
    fn places(size: usize) -> impl Iterator<Item = usize> {
        let ends = if size <= 512 { 0..size } else { 0..64 };
        let rest = if size <= 512 { 0..0 } else { 64..size };
        ends.chain(rest.step_by(PAGE / 2 - 8)).chain([size - 1])
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
fn random(seed: u64, steps: usize, segments: usize, largest: u32) {
    let mut r = Rng::seed_from_u64(seed);
    let arena = Fixture::new(segments);
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
                let (result, ranges) = arena.release(if r.random() { usize::MAX } else { 1 });
                assert_eq!(result.is_err(), ranges.len() == 1 && result.is_err());
            }
            97 if steps < 100_000 => {
                mark = Some((arena.bytes().to_vec(), blocks.clone()));
            }
            98 => {
                if let Some((bytes, then)) = &mark {
                    arena.len.set(bytes.len());
                    arena.bytes().copy_from_slice(bytes);
                    blocks.clone_from(then);
                    let (end, rest) = (bytes.len(), arena.whole.size() - bytes.len());
                    // New bytes are zero.
                    // SAFETY: what is behind the arena, in `whole`.
                    unsafe { arena.base.as_ptr().wrapping_add(end).write_bytes(0, rest) };
                }
            }
            _ => arena.grows.set(if r.random_range(0..8) == 0 { 0 } else { usize::MAX }),
        }
        if step % 16 == 0 {
            assert_eq!(arena.check().blocks, blocks.len(), "step {step}");
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
    for seed in 0..if cfg!(miri) { 1 } else { 20 } {
        random(seed, if cfg!(miri) { 300 } else { 4_000 }, 3, 13);
    }
}

#[test]
fn random_all() {
    for seed in 0..if cfg!(miri) { 1 } else { 20 } {
        random(seed, if cfg!(miri) { 60 } else { 3_000 }, 12, 23);
    }
}
