//! The allocator of a heap beside talc and the system's: the pages that it writes, its memory, and its time.

use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;
use std::ptr::NonNull;

use anyhow::{Context, Result};
use memsnap_heap::allocator::{ArenaAllocator, Segments};
use memsnap_heap_bench::measure::time;
use rand::{RngExt, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;

use super::Size;
use crate::arena::Arena;
use crate::results::{Results, Unit};
use crate::talc::TalcArena;

pub(crate) const NAME: &str = "allocator";
/// The pages written by 1,000 pairs of a free and an allocation.
pub(crate) const PAIRS: &str = "pages of 1,000 free + alloc pairs";
/// The pages written by 1,000 frees.
pub(crate) const FREES: &str = "pages of 1,000 frees";
/// The pages of the arena that were written, divided by the bytes of the live objects.
pub(crate) const MEMORY: &str = "arena / live bytes";
/// The time of a free and an allocation.
pub(crate) const TIME: &str = "free + alloc";
/// The system's allocator.
pub(crate) const SYSTEM: &str = "system";

const PAIRS_COUNTED: usize = 1_000;
/// The rounds in which written pages are counted.
const ROUNDS: usize = 10;
/// The pairs in a measured time.
const BATCH: usize = 20_000;

/// An allocator with live objects.
trait Blocks {
    fn allocate(&mut self, layout: Layout) -> Option<NonNull<u8>>;

    /// # Safety
    ///
    /// The block was allocated here with this layout, and is not freed yet.
    unsafe fn deallocate(&mut self, block: NonNull<u8>, layout: Layout);
}

impl<A: ArenaAllocator> Blocks for Arena<A> {
    #[inline]
    fn allocate(&mut self, layout: Layout) -> Option<NonNull<u8>> {
        Self::allocate(self, layout)
    }

    #[inline]
    unsafe fn deallocate(&mut self, block: NonNull<u8>, layout: Layout) {
        // SAFETY: the caller promises the conditions.
        unsafe { Self::deallocate(self, block, layout) };
    }
}

impl Blocks for System {
    #[inline]
    fn allocate(&mut self, layout: Layout) -> Option<NonNull<u8>> {
        // SAFETY: the layouts of this file are not empty.
        NonNull::new(unsafe { self.alloc(layout) })
    }

    #[inline]
    unsafe fn deallocate(&mut self, block: NonNull<u8>, layout: Layout) {
        // SAFETY: the caller promises the conditions.
        unsafe { self.dealloc(block.as_ptr(), layout) };
    }
}

/// An allocator and its live objects.
struct Objects<B: Blocks> {
    blocks: B,
    live: Vec<(NonNull<u8>, Layout)>,
    random: Xoshiro256PlusPlus,
}

impl<B: Blocks> Objects<B> {
    /// Allocates objects, and replaces each of them twice on average.
    fn new(blocks: B, count: usize) -> Result<Self> {
        let random = Xoshiro256PlusPlus::seed_from_u64(1);
        let mut objects = Self { blocks, live: Vec::with_capacity(count), random };
        for _ in 0..count {
            let object = objects.allocate()?;
            objects.live.push(object);
        }
        objects.replace(2 * count)?;
        Ok(objects)
    }

    /// Returns a size as programs have them: most are small.
    fn layout(&mut self) -> Layout {
        let size: usize = match self.random.random_range(0..10_u32) {
            0..5 => self.random.random_range(16..=64),
            5..9 => self.random.random_range(64..=256),
            _ => self.random.random_range(256..=1024),
        };
        // The layout of `u64`s is valid, and has an alignment of 8.
        Layout::array::<u64>(size / 8).unwrap_or(Layout::new::<u64>())
    }

    fn allocate(&mut self) -> Result<(NonNull<u8>, Layout)> {
        let layout = self.layout();
        let block = self.blocks.allocate(layout).with_context(|| format!("allocating {layout:?}"))?;
        let number: u64 = self.random.random();
        // SAFETY: the block has at least 16 bytes and is aligned to 8.
        unsafe { block.cast::<u64>().write(number) };
        Ok((block, layout))
    }

    fn remove(&mut self) {
        let index = self.random.random_range(0..self.live.len());
        let (block, layout) = self.live.swap_remove(index);
        // SAFETY: the block was live, and was allocated with this layout.
        unsafe { self.blocks.deallocate(block, layout) };
    }

    /// Frees a random object and allocates another one, so many times.
    fn replace(&mut self, pairs: usize) -> Result<()> {
        for _ in 0..pairs {
            self.remove();
            let object = self.allocate()?;
            self.live.push(object);
        }
        Ok(())
    }

    fn bytes(&self) -> usize {
        self.live.iter().map(|(_, layout)| layout.size()).sum()
    }
}

pub(crate) fn run(size: &Size, results: &mut Results) -> Result<()> {
    let mut ours = Objects::new(Arena::<Segments>::new()?, size.objects)?;
    let mut talc = Objects::new(Arena::<TalcArena>::new()?, size.objects)?;
    let mut system = Objects::new(System, size.objects)?;
    for _ in 0..size.turns * 4 {
        measure_time(Segments::NAME, &mut ours, results)?;
        measure_time(TalcArena::NAME, &mut talc, results)?;
        measure_time(SYSTEM, &mut system, results)?;
    }
    drop(system);
    after_operations(&mut ours, size, results)?;
    after_operations(&mut talc, size, results)?;
    for _ in 0..ROUNDS {
        count_pages(&mut ours, results)?;
        count_pages(&mut talc, results)?;
    }
    Ok(())
}

fn measure_time<B: Blocks>(
    name: &'static str,
    objects: &mut Objects<B>,
    results: &mut Results,
) -> Result<()> {
    objects.replace(BATCH / 4)?;
    let (done, time) = time(|| objects.replace(BATCH));
    done?;
    black_box(&objects.live);
    results.add([NAME, name, TIME], Unit::Seconds, time.as_secs_f64() / BATCH as f64);
    Ok(())
}

fn after_operations<A: ArenaAllocator>(
    objects: &mut Objects<Arena<A>>,
    size: &Size,
    results: &mut Results,
) -> Result<()> {
    // A pair is two operations.
    objects.replace(size.operations / 2)?;
    let arena = objects.blocks.written() as f64;
    results.add([NAME, A::NAME, MEMORY], Unit::Number, arena / objects.bytes() as f64);
    Ok(())
}

/// Counts the pages whose bytes differ after random operations.
fn count_pages<A: ArenaAllocator>(objects: &mut Objects<Arena<A>>, results: &mut Results) -> Result<()> {
    let before = objects.blocks.mark()?;
    objects.replace(PAIRS_COUNTED)?;
    let replaced = objects.blocks.mark()?;
    for _ in 0..PAIRS_COUNTED {
        objects.remove();
    }
    let removed = objects.blocks.mark()?;
    for (metric, from, to) in [(PAIRS, &before, &replaced), (FREES, &replaced, &removed)] {
        let bytes: usize = from.diff(to)?.map(|change| change.range().len()).sum();
        results.add([NAME, A::NAME, metric], Unit::Number, (bytes / memsnap::page_size()) as f64);
    }
    for _ in 0..PAIRS_COUNTED {
        let object = objects.allocate()?;
        objects.live.push(object);
    }
    Ok(())
}
