//! The check of a damaged arena.

use super::super::state::{Arena, Entry, Segment, UNITS, first_unit};
use super::*;
use std::mem::offset_of;

/// An arena with some of everything.
fn arena() -> Fixture {
    let mut r = Rng::seed_from_u64(7);
    let arena = Fixture::new(9);
    let mut blocks = Vec::new();
    let sizes = [16, 24, 48, 48, 400, 448, 512, 700, 3000, 20_000, 200_000];
    for i in 0..400 {
        let layout = Layout::from_size_align(sizes[i % sizes.len()], 8).unwrap();
        blocks.push((arena.allocate(layout).unwrap(), layout));
    }
    for len in [5, 2, 6] {
        let layout = Layout::from_size_align(len << 20, 8).unwrap();
        blocks.push((arena.allocate(layout).unwrap(), layout));
    }
    let row = blocks.len() - 3;
    let (block, layout) = blocks.remove(row);
    arena.free(block, layout);
    for _ in 0..300 {
        let (block, layout) = blocks.swap_remove(r.random_range(0..blocks.len() - 2));
        arena.free(block, layout);
    }
    arena.check();
    arena
}

/// Whether the byte at an offset of an entry has no meaning, or one that no other state confirms.
fn unconfirmed(entry: &Entry, at: usize) -> bool {
    let links = (offset_of!(Entry, next)..offset_of!(Entry, count)).contains(&at);
    let bits = at < offset_of!(Entry, next);
    let (trigger, class, kind) =
        (offset_of!(Entry, trigger), offset_of!(Entry, class), offset_of!(Entry, kind));
    match entry.kind.get() {
        Entry::INSIDE => at != kind,
        Entry::PART => at != kind && at != class,
        Entry::RUN => bits || links || at / 2 == trigger / 2 || at == class,
        Entry::FREE => bits || at / 2 == trigger / 2 || at == class,
        // A chunk that is in no list has no links, and may pass for one of a class with as many blocks.
        _ => (links || at == class) && !is_listed(entry),
    }
}

fn is_listed(chunk: &Entry) -> bool {
    chunk.trigger.get() == CLASSES[usize::from(chunk.class.get())].capacity
}

/// Damages one byte in all ways that change one bit, and restores it. Returns how many of these `check` finds.
fn found(arena: &Fixture, at: usize) -> u32 {
    let byte = arena.bytes()[at];
    let mut found = 0;
    for bit in 0..8 {
        arena.bytes()[at] = byte ^ 1 << bit;
        // SAFETY: the arena was initialized, and the length is checked.
        found += u32::from(unsafe { Segments::check(arena.base) }.is_err());
    }
    for other in [0, 0xff, 0x7f] {
        arena.bytes()[at] = other;
        // SAFETY: as above.
        let _ = unsafe { Segments::check(arena.base) };
    }
    arena.bytes()[at] = byte;
    found
}

#[test]
#[cfg_attr(miri, ignore = "many thousand checks")]
fn each_byte() {
    let arena = arena();
    let head = HEADER_END..super::super::state::HEAD_END;
    for at in head {
        assert_eq!(found(&arena, at), 8, "byte {at} of the head");
    }
    let segments = u32::try_from(arena.len.get() / SEGMENT).unwrap();
    // SAFETY: the arena was initialized.
    let state = unsafe { Arena::new(arena.base) };
    let (mut all, mut missed, mut segment) = (0, 0, 0);
    while segment < segments {
        let start = segment as usize * SEGMENT;
        for at in [offset_of!(Segment, kind), offset_of!(Segment, len), offset_of!(Segment, before)] {
            for byte in 0..4 {
                assert_eq!(
                    found(&arena, start + super::super::super::HEADER + at + byte),
                    8,
                    "{segment} {at}"
                );
            }
        }
        let head = state.segment(segment);
        let divided = head.kind.get() == Segment::DIVIDED;
        for unit in (first_unit(segment)..(segment + 1) * UNITS).filter(|_| divided) {
            let entry = state.entry(unit);
            let inside = entry.kind.get() == Entry::INSIDE;
            let at = start + (unit % UNITS) as usize * size_of::<Entry>();
            for byte in 0..size_of::<Entry>() {
                if inside && byte != offset_of!(Entry, kind) {
                    continue;
                }
                let (unconfirmed, found) = (unconfirmed(entry, byte), found(&arena, at + byte));
                assert!(
                    unconfirmed || found == 8,
                    "byte {byte} of unit {unit}, kind {}: {found}",
                    entry.kind.get()
                );
                all += 8;
                missed += 8 - found;
            }
        }
        segment += head.len.get();
    }
    println!("{missed} of {all} changed bits of entries are not found");
    arena.check();
}

const HEADER_END: usize = super::super::super::HEADER + size_of::<Segment>();

/// Many bytes at once: whatever the check says, it comes to an end.
#[test]
fn many_bytes() {
    let arena = arena();
    let mut r = Rng::seed_from_u64(3);
    let whole = arena.bytes().to_vec();
    for _ in 0..if cfg!(miri) { 3 } else { 300 } {
        for _ in 0..r.random_range(2..50) {
            let segment = r.random_range(0..arena.len.get() / SEGMENT);
            let from = if segment == 0 { HEADER_END + 8 } else { super::super::super::HEADER };
            let at = segment * SEGMENT + r.random_range(from..super::super::state::PREFIX);
            arena.bytes()[at] = r.random();
        }
        // SAFETY: the arena was initialized, and its length is as it was.
        let _ = unsafe { Segments::check(arena.base) };
        arena.bytes().copy_from_slice(&whole);
    }
    arena.check();
}
