//! What single operations do.

use super::super::state::PREFIX;
use super::*;

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

fn bytes(size: usize) -> Layout {
    Layout::from_size_align(size, 8).unwrap()
}

impl Fixture {
    /// The bytes of all prefixes. Blocks have to be shorter than a segment.
    fn state(&self) -> Vec<u8> {
        self.bytes().chunks(SEGMENT).map(|segment| &segment[..PREFIX]).collect::<Vec<_>>().concat()
    }

    #[track_caller]
    fn filled(&self, layout: Layout) -> Block {
        let block = Block { at: self.allocate(layout).unwrap(), layout, fill: 0xff };
        // SAFETY: the block is so long.
        unsafe { block.at.write_bytes(0xff, layout.size()) };
        block
    }
}

#[test]
#[cfg_attr(miri, ignore = "slow, and like the random tests")]
fn exhaustion_changes_nothing() {
    let arena = Fixture::new(3);
    let failing = [
        bytes(5 * MIB),
        bytes(9 * MIB),
        bytes(isize::MAX as usize - 7),
        Layout::from_size_align(1, 1 << (usize::BITS - 2)).unwrap(),
        Layout::from_size_align(isize::MAX as usize - (64 * KIB - 1), 64 * KIB).unwrap(),
    ];
    arena.grows.set(0);
    for layout in failing {
        let before = arena.state();
        assert_eq!(arena.allocate(layout), None, "{layout:?}");
        assert!(before == arena.state(), "{layout:?}");
    }
    // Each size fills what the sizes before left.
    arena.grows.set(usize::MAX);
    let mut blocks = Vec::new();
    for size in [MIB, 100 * KIB, 9 * KIB, 7 * KIB, 700, 48, 24, 16] {
        for left in (0..).map(|i| i % 2) {
            // Growth fails each second time, and is asked for again.
            arena.grows.set(left);
            let before = arena.state();
            match arena.allocate(bytes(size)) {
                Some(block) => blocks.push((block, bytes(size))),
                None => {
                    assert!(before == arena.state(), "{size}");
                    if left == 1 {
                        break;
                    }
                }
            }
        }
        assert_eq!(arena.check().blocks, blocks.len());
    }
    assert_eq!(arena.len.get(), 3 * SEGMENT);
    for (block, layout) in blocks {
        arena.free(block, layout);
    }
    assert_eq!(arena.check().blocks, 0);
}

#[test]
#[cfg_attr(miri, ignore = "slow, and like the random tests")]
fn growth_takes_an_eighth_or_what_is_there() {
    let arena = Fixture::new(19);
    let mut lengths = Vec::new();
    while arena.allocate(bytes(3 * MIB)).is_some() {
        lengths.push(arena.len.get() / SEGMENT);
    }
    lengths.dedup();
    // 18 and an eighth are 21, which is too much for the room.
    assert_eq!(lengths, [1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 13, 15, 17, 18, 19]);
}

/// A mark after one small operation costs the page of the block and the first page, as long as the arena is small.
#[test]
fn one_block_changes_one_page_of_state() {
    let arena = Fixture::new(1);
    let kept = arena.filled(bytes(40));
    let before = arena.bytes().to_vec();
    let block = arena.filled(bytes(40));
    kept.verify(usize::MAX);
    arena.free(kept.at, kept.layout);
    let pages = arena.bytes().chunks(4096).zip(before.chunks(4096));
    let changed: Vec<usize> =
        pages.enumerate().filter(|(_, (now, before))| now != before).map(|(i, _)| i).collect();
    assert_eq!(changed, [0, arena.offset(block.at) / 4096]);
}

#[test]
#[cfg_attr(miri, ignore = "slow, and like the random tests")]
fn free_memory_is_released_once() {
    let arena = Fixture::new(8);
    assert!(arena.release(usize::MAX).1.is_empty());
    let (run, between, row) =
        (arena.filled(bytes(MIB)), arena.filled(bytes(48)), arena.filled(bytes(9 * MIB)));
    let (run_at, row_at) = (arena.offset(run.at), arena.offset(row.at));
    arena.free(run.at, run.layout);
    arena.free(row.at, row.layout);
    let (result, ranges) = arena.release(0);
    assert_eq!((result.unwrap_err().to_string().as_str(), ranges.len()), ("refused", 0));
    let (result, ranges) = arena.release(1);
    assert_eq!((result.is_err(), ranges), (true, vec![run_at..run_at + MIB]));
    let (result, ranges) = arena.release(usize::MAX);
    result.unwrap();
    assert_eq!(ranges.len(), 1, "{ranges:?}");
    assert!(ranges[0].start <= row_at && ranges[0].end >= row_at + row.layout.size(), "{ranges:?}");
    assert!(arena.release(usize::MAX).1.is_empty());
    assert!(arena.bytes()[run_at..run_at + MIB] == vec![0; MIB]);
    arena.check();
    // A short run is not worth a call, until it is joined with others.
    let short: Vec<_> = (0..8).map(|_| arena.filled(bytes(16 * KIB))).collect();
    for block in &short[..2] {
        arena.free(block.at, block.layout);
    }
    assert!(arena.release(usize::MAX).1.is_empty());
    for block in &short[2..] {
        arena.free(block.at, block.layout);
    }
    let start = arena.offset(short[0].at);
    assert_eq!(arena.release(usize::MAX).1, [start..start + 128 * KIB]);
    between.verify(usize::MAX);
    arena.check();
}

/// A segment that was inside a block has bytes of it where its state belongs.
#[test]
#[cfg_attr(miri, ignore = "slow, and like the random tests")]
fn freed_rows_are_divided_again() {
    let arena = Fixture::new(8);
    let row = arena.filled(bytes(15 * MIB));
    assert_eq!(arena.len.get(), 5 * SEGMENT);
    arena.free(row.at, row.layout);
    arena.grows.set(0);
    let blocks: Vec<_> = (0..10).map(|_| arena.filled(bytes(MIB))).collect();
    let small: Vec<_> = (0..5_000).map(|_| arena.filled(bytes(700))).collect();
    assert_eq!(arena.check().blocks, blocks.len() + small.len());
    for block in blocks.iter().chain(&small) {
        arena.free(block.at, block.layout);
    }
    arena.grows.set(usize::MAX);
    let row = arena.filled(bytes(11 * MIB));
    arena.free(row.at, row.layout);
    assert_eq!(arena.check().blocks, 0);
}

#[test]
#[cfg_attr(miri, ignore = "slow, and like the random tests")]
fn alignments_beyond_a_page() {
    let aligns = [8 * KIB, 64 * KIB, MIB, 4 * MIB, 8 * MIB];
    for (before, align) in [BEFORE, 0].into_iter().flat_map(|before| aligns.map(|align| (before, align))) {
        let arena = Fixture::behind(before, 20);
        let layouts =
            [1, 20 * KIB, MIB, 5 * MIB, 9 * MIB].map(|size| Layout::from_size_align(size, align).unwrap());
        let mut blocks = layouts.map(|layout| arena.filled(layout));
        assert_eq!(arena.check().blocks, blocks.len());
        assert!(arena.resize(blocks[3].at, layouts[3], 5 * MIB - 1));
        blocks[3].layout = Layout::from_size_align(5 * MIB - 1, align).unwrap();
        for block in blocks {
            block.verify(usize::MAX);
            arena.free(block.at, block.layout);
            arena.check();
        }
    }
}

/// What was inside a row has the bytes of its block where entries belong. `release` leaves those of the first segment.
#[test]
#[cfg_attr(miri, ignore = "slow, and like the random tests")]
fn entries_are_cleared() {
    for joined in [false, true] {
        let arena = Fixture::new(12);
        let (first, second) = (arena.filled(bytes(15 * MIB)), arena.filled(bytes(5 * MIB)));
        assert!(arena.resize(first.at, bytes(15 * MIB), 4 * MIB));
        arena.release(usize::MAX).0.unwrap();
        if joined {
            arena.free(second.at, second.layout);
            arena.release(usize::MAX).0.unwrap();
        }
        arena.check_clean();
        arena.grows.set(0);
        for _ in 0..if joined { 15 } else { 9 } {
            arena.allocate(bytes(MIB)).unwrap();
            arena.check();
        }
    }
}

#[test]
fn resize_in_place() {
    let arena = Fixture::new(16);
    let small = arena.filled(bytes(41));
    assert!(arena.resize(small.at, bytes(41), 48));
    assert!(!arena.resize(small.at, bytes(48), 49));
    assert!(!arena.resize(small.at, bytes(48), 40));
    let run = arena.filled(bytes(100 * KIB));
    assert!(arena.resize(run.at, bytes(100 * KIB), 300 * KIB));
    let behind = arena.filled(bytes(100 * KIB));
    assert!(!arena.resize(run.at, bytes(300 * KIB), 310 * KIB));
    assert!(arena.resize(run.at, bytes(300 * KIB), 20 * KIB));
    assert!(arena.resize(run.at, bytes(20 * KIB), 300 * KIB));
    assert!(!arena.resize(run.at, bytes(300 * KIB), 8 * KIB), "a block of a chunk");
    assert!(!arena.resize(run.at, bytes(300 * KIB), 5 * MIB), "a row");
    let row = arena.filled(bytes(5 * MIB));
    assert!(arena.resize(row.at, bytes(5 * MIB), 13 * MIB), "at the end of the arena");
    assert_eq!(arena.len.get(), 5 * SEGMENT);
    let last = arena.filled(bytes(5 * MIB));
    assert!(!arena.resize(row.at, bytes(13 * MIB), 20 * MIB));
    assert!(arena.resize(row.at, bytes(13 * MIB), 6 * MIB));
    assert!(arena.resize(row.at, bytes(6 * MIB), 15 * MIB));
    assert!(!arena.resize(row.at, bytes(15 * MIB), isize::MAX as usize - 7));
    arena.grows.set(0);
    assert!(!arena.resize(last.at, bytes(5 * MIB), 21 * MIB));
    for (block, size) in
        [(small, 48), (run, 300 * KIB), (behind, 100 * KIB), (row, 15 * MIB), (last, 5 * MIB)]
    {
        arena.check();
        arena.free(block.at, bytes(size));
    }
    assert_eq!(arena.check().blocks, 0);
}

/// A chunk that is entirely free gives its units to other sizes.
#[test]
fn chunks_are_given_back() {
    let arena = Fixture::new(1);
    for size in [8192, 48, 224, 512, 1024, 3000] {
        let mut blocks = Vec::new();
        while let Some(block) = arena.allocate(bytes(size)) {
            blocks.push(block);
        }
        assert!(blocks.len() * size > 3 * SEGMENT / 4, "{size}: {}", blocks.len());
        for block in blocks {
            arena.free(block, bytes(size));
        }
        arena.check();
        if cfg!(miri) {
            break;
        }
    }
}

/// Runs a test of this file in a process of its own. Returns whether this is that process.
fn aborts(name: &str, message: &str) -> bool {
    const CHILD: &str = "MEMSNAP_HEAP_TEST_ABORTS";
    if cfg!(any(miri, not(debug_assertions))) {
        println!("skipped: {name}: needs debug assertions and another process");
        return false;
    }
    if std::env::var_os(CHILD).is_some() {
        return true;
    }
    let name = format!("allocator::segments::tests::behaviour::{name}");
    let mut child = std::process::Command::new(std::env::current_exe().unwrap());
    let out = child.args([&name, "--exact", "--nocapture"]).env(CHILD, "1").output().unwrap();
    let error = String::from_utf8_lossy(&out.stderr);
    assert!(!out.status.success() && error.contains(message), "{} {error}", out.status);
    false
}

#[test]
fn double_free_aborts() {
    if aborts("double_free_aborts", "a block was freed twice; the process is aborted") {
        let arena = Fixture::new(1);
        let block = arena.filled(bytes(48));
        arena.free(block.at, block.layout);
        arena.free(block.at, block.layout);
    }
}

#[test]
fn wrong_layout_aborts() {
    if aborts("wrong_layout_aborts", "with another layout") {
        let arena = Fixture::new(1);
        let block = arena.filled(bytes(48));
        arena.free(block.at, bytes(50));
    }
}

#[test]
fn wrong_length_aborts() {
    if aborts("wrong_length_aborts", "with another layout") {
        let arena = Fixture::new(1);
        let block = arena.filled(bytes(100 * KIB));
        arena.free(block.at, bytes(120 * KIB));
    }
}

#[test]
fn foreign_block_aborts() {
    if aborts("foreign_block_aborts", "not in the arena") {
        let arena = Fixture::new(1);
        arena.free(NonNull::from(&mut 0u64).cast(), bytes(8));
    }
}

/// The search for a row gives up after some rows of a bin. The row at the end of the arena, which it had not seen, was then
/// longer than what was missing, and a subtraction overflowed.
#[test]
#[cfg_attr(miri, ignore = "many segments")]
fn a_row_that_the_search_left_out_is_found() {
    let row = |segments: usize| bytes(segments * SEGMENT - 64 * KIB);
    let arena = Fixture::new(400);
    let fours: Vec<_> =
        (0..40).map(|_| (arena.allocate(row(4)).unwrap(), arena.allocate(row(1)).unwrap()).0).collect();
    let left = |block: NonNull<u8>| (arena.len.get() - arena.offset(block)).div_ceil(SEGMENT) - 1;
    // Seven segments are left at the end. They are in the same bin as the rows of four.
    while left(arena.allocate(row(1)).unwrap()) != 7 {}
    let seven = arena.allocate(row(7)).unwrap();
    arena.free(seven, row(7));
    fours.into_iter().for_each(|four| arena.free(four, row(4)));
    arena.grows.set(0);
    assert!(arena.allocate(row(5)).is_some());
    // Now only the rows of four are left, and a search through all of them finds one.
    assert!(arena.allocate(row(3)).is_some());
    arena.check();
}
