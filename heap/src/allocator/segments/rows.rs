//! Rows of segments: blocks that are too long for one segment, and segments that are not in use.
//!
//! Two free rows are never neighbours. A free row is in the bin of its length, with its first segment as the node. The
//! block of a row starts behind the prefix of its first segment, and covers the places of the later prefixes.

use super::super::Grow;
use super::runs;
use super::state::{
    Arena, CLEAN, DIRTY, Head, MAX_SEGMENTS, PREFIX, PREFIX_UNITS, ROW_BINS, SEGMENT, Segment, Span, UNITS,
    offset_of, put, unit_at,
};
use std::io;
use std::ops::Range;

/// How many rows of one bin are looked at that may be too short.
const TRIES: u32 = 32;

/// Returns the bin of a row: one for each doubling.
pub(super) fn bin_of(segments: u32) -> usize {
    segments.ilog2() as usize
}

fn insert(arena: Arena<'_>, segment: u32, len: u32, dirty: Span, stale: bool) {
    let (head, row) = (arena.head(), arena.segment(segment));
    let (set, bin) = (dirty.set(), bin_of(len));
    let first = head.rows[set][bin].replace(segment);
    if first == 0 {
        head.row_bits[set].set(head.row_bits[set].get() | 1 << bin);
    } else {
        arena.segment(first).prev.set(segment);
    }
    row.kind.set(Segment::FREE);
    row.len.set(len);
    row.next.set(first);
    row.prev.set(0);
    row.dirty[0].set(dirty.from);
    row.dirty[1].set(dirty.to);
    row.stale.set(u32::from(stale));
}

fn dirty_of(row: &Segment) -> Span {
    Span { from: row.dirty[0].get(), to: row.dirty[1].get() }
}

fn remove(arena: Arena<'_>, segment: u32) -> (u32, Span, bool) {
    let (head, row) = (arena.head(), arena.segment(segment));
    let (len, dirty, next, prev) = (row.len.get(), dirty_of(row), row.next.get(), row.prev.get());
    let (set, bin) = (dirty.set(), bin_of(len));
    if next != 0 {
        arena.segment(next).prev.set(prev);
    }
    if prev != 0 {
        arena.segment(prev).next.set(next);
    } else {
        head.rows[set][bin].set(next);
        if next == 0 {
            head.row_bits[set].set(head.row_bits[set].get() & !(1 << bin));
        }
    }
    (len, dirty, row.stale.get() != 0)
}

/// Stores behind a free row how long the row is.
fn set_before(arena: Arena<'_>, segment: u32, free: u32) {
    if segment == arena.head().segments.get() {
        put(&arena.head().last_free, free);
    } else {
        put(&arena.segment(segment).before, free);
    }
}

/// Returns a free row of at least `len` segments. Looks at up to `tries` rows that may be too short.
fn find(arena: Arena<'_>, len: u32, tries: u32) -> Option<u32> {
    let (head, bin) = (arena.head(), bin_of(len));
    [DIRTY, CLEAN].into_iter().find_map(|set| {
        let bits = head.row_bits[set].get() >> bin;
        let mut at = if bits & 1 == 1 { head.rows[set][bin].get() } else { 0 };
        for _ in 0..tries {
            if at == 0 {
                break;
            }
            let row = arena.segment(at);
            if row.len.get() >= len {
                return Some(at);
            }
            at = row.next.get();
        }
        let longer = bits & !1;
        (longer != 0).then(|| head.rows[set][bin + longer.trailing_zeros() as usize].get())
    })
}

fn find_or_grow(arena: Arena<'_>, len: u32, more: &impl Grow) -> Option<u32> {
    let last = |head: &Head| head.segments.get() - head.last_free.get();
    if let Some(row) = find(arena, len, TRIES) {
        return Some(row);
    }
    let head = arena.head();
    // The search may have left out the row at the end of the arena.
    let missing = len.saturating_sub(head.last_free.get());
    if missing == 0 || grow(arena, missing, more).is_some() {
        return Some(last(head));
    }
    find(arena, len, u32::MAX)
}

/// Makes the arena longer by an eighth, or by `least` segments if that is more, or if growing by an eighth fails.
fn grow(arena: Arena<'_>, least: u32, more: &impl Grow) -> Option<()> {
    let head = arena.head();
    let (now, last) = (head.segments.get(), head.last_free.get());
    let most = MAX_SEGMENTS - now;
    if least > most {
        return None;
    }
    let large = least.max(now.div_ceil(8)).min(most);
    let fits = |by: u32| SEGMENT.checked_mul((now + by) as usize).is_some_and(|len| more.grow(len));
    let by = if fits(large) {
        large
    } else if large > least && fits(least) {
        least
    } else {
        return None;
    };
    head.segments.set(now + by);
    head.not_segments.set(!(now + by));
    if last == 0 {
        put(&arena.segment(now).before, 0);
        insert(arena, now, by, Span::EMPTY, false);
    } else {
        let (len, dirty, stale) = remove(arena, now - last);
        insert(arena, now - last, len + by, dirty, stale);
    }
    head.last_free.set(last + by);
    Some(())
}

/// Takes `len` segments out of a free row, `lead` segments behind its start. What is left on both sides stays free.
fn carve(arena: Arena<'_>, segment: u32, lead: u32, len: u32) -> bool {
    let (all, dirty, mut stale) = remove(arena, segment);
    let (start, end) = (segment + lead, segment + all);
    if lead > 0 {
        insert(arena, segment, lead, dirty.within(segment, start), stale);
        stale = dirty.contains(start);
    }
    let row = arena.segment(start);
    row.kind.set(Segment::USED);
    row.len.set(len);
    put(&row.before, lead);
    row.stale.set(u32::from(stale));
    leave(arena, start + len, end, dirty);
    dirty.contains(start)
}

/// Makes a free row of what another row was shortened by. No free row is behind it.
fn leave(arena: Arena<'_>, segment: u32, end: u32, dirty: Span) {
    if segment < end {
        put(&arena.segment(segment).before, 0);
        insert(arena, segment, end - segment, dirty.within(segment, end), dirty.contains(segment));
    }
    set_before(arena, end, end - segment);
}

/// Takes one segment to be divided into units. Its entries are zero. Also returns whether its units may be dirty.
pub(super) fn take_one(arena: Arena<'_>, more: &impl Grow) -> Option<(u32, bool)> {
    let segment = find_or_grow(arena, 1, more)?;
    let dirty = carve(arena, segment, 0, 1);
    if arena.segment(segment).stale.get() != 0 {
        arena.clear_entries(segment);
    }
    Some((segment, dirty))
}

/// Returns the first segment of the row whose block starts at a unit.
///
/// A block never starts in the prefix of its own first segment.
pub(super) fn row_at(unit: u32) -> u32 {
    unit.saturating_sub(PREFIX_UNITS) / UNITS
}

/// Returns how many segments a block has, from its first unit.
pub(super) fn len_of(unit: u32, units: usize) -> usize {
    (unit as usize + units).div_ceil(UNITS as usize) - row_at(unit) as usize
}

/// Allocates a row. Returns the offset of the block.
pub(super) fn allocate(arena: Arena<'_>, units: usize, align: usize, more: &impl Grow) -> Option<usize> {
    let all =
        units.checked_add(runs::spare(align))?.checked_add(PREFIX_UNITS as usize)?.div_ceil(UNITS as usize);
    let all = u32::try_from(all).ok().filter(|&all| all <= MAX_SEGMENTS)?;
    let segment = find_or_grow(arena, all, more)?;
    let at = arena.address() + segment as usize * SEGMENT + PREFIX;
    let offset = at.next_multiple_of(align) - arena.address();
    let unit = unit_at(offset);
    let len = u32::try_from(len_of(unit, units)).ok()?;
    carve(arena, segment, row_at(unit) - segment, len);
    Some(offset)
}

/// Frees segments, and joins them with the free rows on both sides.
pub(super) fn free(arena: Arena<'_>, segment: u32, len: u32) {
    let row = arena.segment(segment);
    let (mut start, mut end, mut stale) = (segment, segment + len, row.stale.get() != 0);
    let mut dirty = Span::new(start, end);
    let before = row.before.get();
    if before > 0 {
        start -= before;
        let (_, its, its_stale) = remove(arena, start);
        (dirty, stale) = (dirty.join(its), its_stale);
    }
    if end < arena.head().segments.get() && arena.segment(end).kind.get() == Segment::FREE {
        let (behind, its, _) = remove(arena, end);
        // Its state is inside the row from now on, and is not zero.
        dirty = dirty.join(its).join(Span::new(end, end + 1));
        end += behind;
    }
    insert(arena, start, end - start, dirty, stale);
    set_before(arena, end, end - start);
}

/// Changes the length of a row in place.
pub(super) fn resize(arena: Arena<'_>, segment: u32, len: usize, more: &impl Grow) -> bool {
    let Some(len) = u32::try_from(len).ok().filter(|&len| len <= MAX_SEGMENTS) else { return false };
    let (head, row) = (arena.head(), arena.segment(segment));
    let now = row.len.get();
    let end = segment + now;
    if len < now {
        row.len.set(len);
        let rest = arena.segment(segment + len);
        rest.before.set(0);
        // It was inside the block.
        rest.stale.set(1);
        free(arena, segment + len, now - len);
    } else if len > now {
        let behind = |arena: Arena<'_>| {
            let free = end < head.segments.get() && arena.segment(end).kind.get() == Segment::FREE;
            if free { arena.segment(end).len.get() } else { 0 }
        };
        let (has, last) = (behind(arena), head.segments.get());
        if has < len - now && (end + has != last || grow(arena, len - now - has, more).is_none()) {
            return false;
        }
        let (all, dirty, _) = remove(arena, end);
        row.len.set(len);
        leave(arena, segment + len, end + all, dirty);
    }
    true
}

/// Passes the dirty segments of free rows to `zero`, and makes these rows clean. The prefix of a row's first segment
/// stays: it has the state.
pub(super) fn release(
    arena: Arena<'_>,
    system: u32,
    zero: &mut impl FnMut(Range<usize>) -> io::Result<()>,
) -> io::Result<()> {
    for bin in 0..ROW_BINS {
        let mut segment = arena.head().rows[DIRTY][bin].get();
        while segment != 0 {
            let row = arena.segment(segment);
            let (next, dirty) = (row.next.get(), dirty_of(row));
            let keep = if dirty.from == segment { PREFIX_UNITS.next_multiple_of(system) } else { 0 };
            zero(offset_of(dirty.from * UNITS + keep)..dirty.to as usize * SEGMENT)?;
            let (len, _, stale) = remove(arena, segment);
            insert(arena, segment, len, Span::EMPTY, stale);
            segment = next;
        }
    }
    Ok(())
}

const _: () = assert!(runs::LONGEST < UNITS);
