//! Runs of pages inside a segment.
//!
//! Two free runs are never neighbours. A free run is in the bin of its length, with the first page of it as the node.

use super::super::Grow;
use super::chunks::unlink;
use super::rows;
use super::state::{
    Arena, DIRTY, Entry, PAGE, PAGES, PREFIX_PAGES, RUN_BINS, Segment, Span, first_page, offset_of, put,
    run_len, starts_segment,
};
use std::io;
use std::ops::Range;

/// The pages of the longest run.
pub(super) const LONGEST: u32 = PAGES - PREFIX_PAGES;

/// A run with fewer dirty pages than this is not made clean: a system call costs more than it would give back.
const WORTH: u32 = 16;

/// How many runs of one bin are looked at that may be too short.
const TRIES: u32 = 8;

/// Returns the bin of a run: exact up to 8 pages, then four bins for each doubling.
pub(super) fn bin_of(pages: u32) -> usize {
    if pages < 8 {
        return pages.saturating_sub(1) as usize;
    }
    let log = pages.ilog2();
    7 + (log as usize - 3) * 4 + (pages >> (log - 2) & 3) as usize
}

/// Makes a free run, which is the first page's entry from now on, and puts it into its bin.
fn insert(arena: Arena<'_>, page: u32, pages: u32, dirty: Span) {
    let (head, run) = (arena.head(), arena.entry(page));
    let (set, bin) = (dirty.set(), bin_of(pages));
    let first = head.runs[set][bin].replace(page);
    if first == 0 {
        head.run_bits[set].set(head.run_bits[set].get() | 1 << bin);
    } else {
        arena.entry(first).prev.set(page);
    }
    run.kind.set(Entry::FREE);
    run.count.set(run_len(pages));
    run.next.set(first);
    run.prev.set(0);
    run.set_dirty(dirty);
}

/// Takes a free run out of its bin.
fn remove(arena: Arena<'_>, page: u32) -> (u32, Span) {
    let (head, run) = (arena.head(), arena.entry(page));
    let (pages, dirty) = (u32::from(run.count.get()), run.dirty());
    let (set, bin) = (dirty.set(), bin_of(pages));
    let first = &head.runs[set][bin];
    unlink(arena, first, page);
    if first.get() == 0 {
        head.run_bits[set].set(head.run_bits[set].get() & !(1 << bin));
    }
    if head.spare.get() == page {
        head.spare.set(0);
    }
    (pages, dirty)
}

/// Tells what is behind a run how much before it is free.
fn set_before(arena: Arena<'_>, page: u32, free: u32) {
    if !starts_segment(page) {
        put(&arena.entry(page).before, run_len(free));
    }
}

/// Returns a free run of at least `pages`: one with dirty pages rather than a clean one, then a short one.
fn find(arena: Arena<'_>, pages: u32) -> Option<u32> {
    let (head, bin) = (arena.head(), bin_of(pages));
    [DIRTY, super::state::CLEAN].into_iter().find_map(|set| {
        let bits = head.run_bits[set].get() >> bin;
        let mut page = if bits & 1 == 1 { head.runs[set][bin].get() } else { 0 };
        for _ in 0..TRIES {
            if page == 0 {
                break;
            }
            let run = arena.entry(page);
            if u32::from(run.count.get()) >= pages {
                return Some(page);
            }
            page = run.next.get();
        }
        let longer = bits & !1;
        (longer != 0).then(|| head.runs[set][bin + longer.trailing_zeros() as usize].get())
    })
}

/// Returns a free run of at least `pages`, in a segment that is divided for it if necessary.
fn find_or_divide(arena: Arena<'_>, pages: u32, more: &impl Grow) -> Option<u32> {
    if let Some(page) = find(arena, pages) {
        return Some(page);
    }
    let (segment, dirty) = rows::take_one(arena, more)?;
    divide(arena, segment, dirty);
    Some(first_page(segment))
}

/// Makes all pages of a segment a free run. Its entries are zero.
pub(super) fn divide(arena: Arena<'_>, segment: u32, dirty: bool) {
    let state = arena.segment(segment);
    state.kind.set(Segment::PAGED);
    state.len.set(1);
    let (from, to) = (first_page(segment), (segment + 1) * PAGES);
    insert(arena, from, to - from, if dirty { Span::new(from, to) } else { Span::EMPTY });
}

/// Takes `pages` out of a free run, `lead` pages behind its start. What is left on both sides stays free.
fn carve(arena: Arena<'_>, page: u32, lead: u32, pages: u32) {
    let (all, dirty) = remove(arena, page);
    let (start, end) = (page + lead, page + all);
    if lead > 0 {
        insert(arena, page, lead, dirty.within(page, start));
    }
    let run = arena.entry(start);
    run.kind.set(Entry::RUN);
    run.count.set(run_len(pages));
    put(&run.before, run_len(lead));
    leave(arena, start + pages, end, dirty);
}

/// Makes what a run was shortened by a free run. No free run is behind it.
fn leave(arena: Arena<'_>, page: u32, end: u32, dirty: Span) {
    if page < end {
        put(&arena.entry(page).before, 0);
        insert(arena, page, end - page, dirty.within(page, end));
    }
    set_before(arena, end, end - page);
}

/// Allocates a run. Returns its first page.
pub(super) fn allocate(arena: Arena<'_>, pages: u32, more: &impl Grow) -> Option<u32> {
    let page = find_or_divide(arena, pages, more)?;
    carve(arena, page, 0, pages);
    Some(page)
}

/// Whether a run of so many pages with this alignment is in a segment, wherever the segment is.
pub(super) fn fits(pages: usize, align: usize) -> bool {
    let spare = if align > PAGE { align / PAGE - 1 } else { 0 };
    pages.saturating_add(spare) <= LONGEST as usize
}

/// Allocates a run at a multiple of `align`, which is more than a page. [`fits`] says that there can be one.
pub(super) fn allocate_aligned(arena: Arena<'_>, pages: u32, align: usize, more: &impl Grow) -> Option<u32> {
    let spare = super::state::page_at(align) - 1;
    let page = find_or_divide(arena, pages + spare, more)?;
    let at = arena.address() + offset_of(page);
    let lead = super::state::page_at(at.next_multiple_of(align) - at);
    carve(arena, page, lead, pages);
    Some(page + lead)
}

/// Frees the pages of a run or chunk, and joins them with the free runs on both sides.
pub(super) fn free(arena: Arena<'_>, page: u32, pages: u32) {
    let entry = arena.entry(page);
    let (mut start, mut end) = (page, page + pages);
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
    let segment = page / PAGES;
    if end - start == LONGEST && segment != 0 {
        let spare = &arena.head().spare;
        if spare.get() != 0 {
            // Two runs of LONGEST pages are two whole segments: one is enough for what comes.
            arena.segment(segment).stale.set(1);
            return rows::free(arena, segment, 1);
        }
        spare.set(start);
    }
    insert(arena, start, end - start, dirty);
    set_before(arena, end, end - start);
}

/// Changes the length of a run in place.
pub(super) fn resize(arena: Arena<'_>, page: u32, pages: u32) -> bool {
    let run = arena.entry(page);
    let (now, end) = (u32::from(run.count.get()), page + u32::from(run.count.get()));
    if pages < now {
        run.count.set(run_len(pages));
        let rest = arena.entry(page + pages);
        put(&rest.before, 0);
        free(arena, page + pages, now - pages);
    } else if pages > now {
        if starts_segment(end) {
            return false;
        }
        let behind = arena.entry(end);
        if behind.kind.get() != Entry::FREE || now + u32::from(behind.count.get()) < pages {
            return false;
        }
        let (all, dirty) = remove(arena, end);
        behind.kind.set(Entry::INSIDE);
        run.count.set(run_len(pages));
        leave(arena, page + pages, end + all, dirty);
    }
    true
}

/// Passes the dirty pages of long free runs to `zero`, as whole pages of the system, and makes these runs clean.
///
/// What is left over at the ends of a run shares a system page with something in use. Once that is freed, too, the whole
/// system page is passed.
pub(super) fn release(
    arena: Arena<'_>,
    system: u32,
    zero: &mut impl FnMut(Range<usize>) -> io::Result<()>,
) -> io::Result<()> {
    for bin in bin_of(WORTH)..RUN_BINS {
        let mut page = arena.head().runs[DIRTY][bin].get();
        while page != 0 {
            let run = arena.entry(page);
            let next = run.next.get();
            let (dirty, end) = (run.dirty(), page + u32::from(run.count.get()));
            let from = (dirty.from / system * system).max(page).next_multiple_of(system);
            let to = dirty.to.next_multiple_of(system).min(end) / system * system;
            if from < to && to - from >= WORTH {
                zero(offset_of(from)..offset_of(to))?;
                let spare = arena.head().spare.get();
                let (pages, _) = remove(arena, page);
                insert(arena, page, pages, Span::EMPTY);
                put(&arena.head().spare, spare);
            }
            page = next;
        }
    }
    Ok(())
}
