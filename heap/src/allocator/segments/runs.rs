//! Runs of units inside a segment.
//!
//! Two free runs are never neighbours. A free run is in the bin of its length, with the first unit of it as the node.

use super::super::Grow;
use super::chunks::unlink;
use super::rows;
use super::state::{
    ALIGN, Arena, CLEAN, DIRTY, Entry, PREFIX_UNITS, RUN_BINS, Segment, Span, UNIT, UNITS, first_unit,
    offset_of, put, run_len, starts_segment, unit_at,
};
use std::io;
use std::ops::Range;

/// The units of the longest run.
pub(super) const LONGEST: u32 = UNITS - PREFIX_UNITS;

/// A run with fewer dirty units than this is not made clean: a system call costs more than it would give back.
const WORTH: u32 = 8;

/// How many runs of one bin are looked at that may be too short.
const TRIES: u32 = 8;

/// Returns the bin of a run: exact up to 8 units, then four bins for each doubling.
pub(super) fn bin_of(units: u32) -> usize {
    if units < 8 {
        return units.saturating_sub(1) as usize;
    }
    let log = units.ilog2();
    7 + (log as usize - 3) * 4 + (units >> (log - 2) & 3) as usize
}

/// Makes a free run, whose state is in the entry of its first unit, and puts it into its bin.
fn insert(arena: Arena<'_>, unit: u32, units: u32, dirty: Span) {
    let (head, run) = (arena.head(), arena.entry(unit));
    let (set, bin) = (dirty.set(), bin_of(units));
    let first = head.runs[set][bin].replace(unit);
    if first == 0 {
        head.run_bits[set].set(head.run_bits[set].get() | 1 << bin);
    } else {
        arena.entry(first).prev.set(unit);
    }
    run.kind.set(Entry::FREE);
    run.count.set(run_len(units));
    run.next.set(first);
    run.prev.set(0);
    run.set_dirty(dirty);
}

/// Takes a free run out of its bin.
fn remove(arena: Arena<'_>, unit: u32) -> (u32, Span) {
    let (head, run) = (arena.head(), arena.entry(unit));
    let (units, dirty) = (u32::from(run.count.get()), run.dirty());
    let (set, bin) = (dirty.set(), bin_of(units));
    let first = &head.runs[set][bin];
    unlink(arena, first, unit);
    if first.get() == 0 {
        head.run_bits[set].set(head.run_bits[set].get() & !(1 << bin));
    }
    if head.spare.get() == unit {
        head.spare.set(0);
    }
    (units, dirty)
}

/// Stores in the entry behind a free run how long the run is.
fn set_before(arena: Arena<'_>, unit: u32, free: u32) {
    if !starts_segment(unit) {
        put(&arena.entry(unit).before, run_len(free));
    }
}

/// Returns a free run of at least `units`: one with dirty units rather than a clean one, then a short one.
///
/// Looks at up to `tries` runs that may be too short.
fn find(arena: Arena<'_>, units: u32, tries: u32) -> Option<u32> {
    let (head, bin) = (arena.head(), bin_of(units));
    [DIRTY, CLEAN].into_iter().find_map(|set| {
        let bits = head.run_bits[set].get() >> bin;
        let mut unit = if bits & 1 == 1 { head.runs[set][bin].get() } else { 0 };
        for _ in 0..tries {
            if unit == 0 {
                break;
            }
            let run = arena.entry(unit);
            if u32::from(run.count.get()) >= units {
                return Some(unit);
            }
            unit = run.next.get();
        }
        let longer = bits & !1;
        (longer != 0).then(|| head.runs[set][bin + longer.trailing_zeros() as usize].get())
    })
}

/// Returns a free run of at least `units`, in a segment that is divided for it if necessary.
fn find_or_divide(arena: Arena<'_>, units: u32, more: &impl Grow) -> Option<u32> {
    if let Some(unit) = find(arena, units, TRIES) {
        return Some(unit);
    }
    let Some((segment, dirty)) = rows::take_one(arena, more) else {
        return find(arena, units, u32::MAX);
    };
    divide(arena, segment, dirty);
    Some(first_unit(segment))
}

/// Makes all units of a segment a free run. Its entries are zero.
pub(super) fn divide(arena: Arena<'_>, segment: u32, dirty: bool) {
    let state = arena.segment(segment);
    state.kind.set(Segment::DIVIDED);
    state.len.set(1);
    let (from, to) = (first_unit(segment), (segment + 1) * UNITS);
    insert(arena, from, to - from, if dirty { Span::new(from, to) } else { Span::EMPTY });
}

/// Takes `units` out of a free run, `lead` units behind its start. What is left on both sides stays free.
fn carve(arena: Arena<'_>, unit: u32, lead: u32, units: u32) {
    let (all, dirty) = remove(arena, unit);
    let (start, end) = (unit + lead, unit + all);
    if lead > 0 {
        insert(arena, unit, lead, dirty.within(unit, start));
    }
    let run = arena.entry(start);
    run.kind.set(Entry::RUN);
    run.count.set(run_len(units));
    put(&run.before, run_len(lead));
    leave(arena, start + units, end, dirty);
}

/// Makes a free run of what another run was shortened by. No free run is behind it.
fn leave(arena: Arena<'_>, unit: u32, end: u32, dirty: Span) {
    if unit < end {
        put(&arena.entry(unit).before, 0);
        insert(arena, unit, end - unit, dirty.within(unit, end));
    }
    set_before(arena, end, end - unit);
}

/// Allocates a run. Returns its first unit.
pub(super) fn allocate(arena: Arena<'_>, units: u32, more: &impl Grow) -> Option<u32> {
    let unit = find_or_divide(arena, units, more)?;
    carve(arena, unit, 0, units);
    Some(unit)
}

/// Returns how many more units are searched for, so that a block of this alignment is somewhere inside.
pub(super) fn spare(align: usize) -> usize {
    if align > ALIGN { align / UNIT - 1 } else { 0 }
}

/// Whether a run of so many units with this alignment is in a segment, wherever the segment is.
pub(super) fn fits(units: usize, align: usize) -> bool {
    units.saturating_add(spare(align)) <= LONGEST as usize
}

/// Allocates a run with a multiple of `align`, which is more than [`ALIGN`], in its first unit. Returns the offset
/// of this multiple. [`fits`] is true for the length and alignment.
pub(super) fn allocate_aligned(
    arena: Arena<'_>,
    units: u32,
    align: usize,
    more: &impl Grow,
) -> Option<usize> {
    let unit = find_or_divide(arena, units + unit_at(align) - 1, more)?;
    let at = arena.address() + offset_of(unit);
    let offset = at.next_multiple_of(align) - arena.address();
    carve(arena, unit, unit_at(offset) - unit, units);
    Some(offset)
}

/// Frees the units of a run or chunk, and joins them with the free runs on both sides.
pub(super) fn free(arena: Arena<'_>, unit: u32, units: u32) {
    let entry = arena.entry(unit);
    let (mut start, mut end) = (unit, unit + units);
    let mut dirty = Span::new(start, end);
    entry.kind.set(Entry::INSIDE);
    let before = u32::from(entry.before.get());
    if before > 0 {
        start -= before;
        dirty = dirty.join(remove(arena, start).1);
    }
    if !starts_segment(end) && arena.entry(end).kind.get() == Entry::FREE {
        let (behind, its) = remove(arena, end);
        arena.entry(end).kind.set(Entry::INSIDE);
        dirty = dirty.join(its);
        end += behind;
    }
    let segment = unit / UNITS;
    if end - start == LONGEST && segment != 0 {
        let spare = &arena.head().spare;
        if spare.get() != 0 {
            // One free segment stays divided: else a program that allocates and frees a block at the end of what is in
            // use would divide a segment each time.
            arena.segment(segment).stale.set(1);
            return rows::free(arena, segment, 1);
        }
        spare.set(start);
    }
    insert(arena, start, end - start, dirty);
    set_before(arena, end, end - start);
}

/// Changes the length of a run in place.
pub(super) fn resize(arena: Arena<'_>, unit: u32, units: u32) -> bool {
    let run = arena.entry(unit);
    let (now, end) = (u32::from(run.count.get()), unit + u32::from(run.count.get()));
    if units < now {
        run.count.set(run_len(units));
        let rest = arena.entry(unit + units);
        put(&rest.before, 0);
        free(arena, unit + units, now - units);
    } else if units > now {
        if starts_segment(end) {
            return false;
        }
        let behind = arena.entry(end);
        if behind.kind.get() != Entry::FREE || now + u32::from(behind.count.get()) < units {
            return false;
        }
        let (all, dirty) = remove(arena, end);
        behind.kind.set(Entry::INSIDE);
        run.count.set(run_len(units));
        leave(arena, unit + units, end + all, dirty);
    }
    true
}

/// Passes the dirty units of long free runs to `zero`, as whole pages of the system, and makes these runs clean.
///
/// What is left over at the ends of a run shares a system page with a block. It counts as clean from now on: once the
/// block is freed, the whole system page is passed.
pub(super) fn release(
    arena: Arena<'_>,
    system: u32,
    zero: &mut impl FnMut(Range<usize>) -> io::Result<()>,
) -> io::Result<()> {
    for bin in bin_of(WORTH)..RUN_BINS {
        let mut unit = arena.head().runs[DIRTY][bin].get();
        while unit != 0 {
            let run = arena.entry(unit);
            let next = run.next.get();
            let (dirty, end) = (run.dirty(), unit + u32::from(run.count.get()));
            let from = (dirty.from / system * system).max(unit).next_multiple_of(system);
            let to = dirty.to.next_multiple_of(system).min(end) / system * system;
            if from < to && to - from >= WORTH {
                zero(offset_of(from)..offset_of(to))?;
                let spare = arena.head().spare.get();
                let (units, _) = remove(arena, unit);
                insert(arena, unit, units, Span::EMPTY);
                put(&arena.head().spare, spare);
            }
            unit = next;
        }
    }
    Ok(())
}
