//! The check of the whole state.
//!
//! It first walks the segments and their pages, which finds all runs, chunks and rows, and then all lists, each of which
//! has to have exactly the members that were found. The length of the arena is stored twice: nothing is read behind it.
//!
//! What it cannot find: a change to bits and the count of a chunk that fit together (a block that is free, but is in use
//! to its owner), to the dirty pages of a free run that stays in its bin, to the mark of a used row's stale prefix, and to
//! bytes without a meaning, as those of pages that are not the first one of a run.

use super::super::Usage;
use super::chunks::{self, NEVER};
use super::classes::{CLASSES, COUNT};
use super::state::{
    Arena, Entry, MAX_SEGMENTS, PAGE, PAGES, PREFIX, ROW_BINS, RUN_BINS, SEGMENT, Segment, Span, first_page,
};
use super::{rows, runs};
use std::collections::{HashMap, HashSet};

/// What the walk found, by where it has to be listed.
#[derive(Default)]
struct Found {
    usage: Usage,
    /// Free runs: the set and the bin of each.
    runs: HashMap<u32, (usize, usize)>,
    /// Free rows: the set and the bin of each.
    rows: HashMap<u32, (usize, usize)>,
    /// Listed chunks: the class of each.
    listed: HashMap<u32, usize>,
    /// Chunks that blocks are taken from.
    current: HashMap<u32, usize>,
    /// Runs of segments that are entirely free.
    empty: HashSet<u32>,
}

/// Returns an error unless the condition holds.
macro_rules! ensure {
    ($holds:expr, $($message:tt)*) => {
        if !$holds {
            return Err(format!($($message)*));
        }
    };
}

/// Checks all state.
pub(super) fn check(arena: Arena<'_>) -> Result<Usage, String> {
    let head = arena.head();
    let segments = head.segments.get();
    ensure!(
        segments == !head.not_segments.get() && (1..=MAX_SEGMENTS).contains(&segments),
        "the arena has {segments} segments, and the complement of this is stored as {:#x}",
        head.not_segments.get()
    );
    let mut found = Found::default();
    walk_segments(arena, &mut found)?;
    check_chunks(arena, &found)?;
    check_runs(arena, &found)?;
    check_rows(arena, &found)?;
    found.usage.len = segments as usize * SEGMENT;
    Ok(found.usage)
}

fn walk_segments(arena: Arena<'_>, found: &mut Found) -> Result<(), String> {
    let segments = arena.head().segments.get();
    let (mut at, mut free) = (0, 0);
    while at < segments {
        let segment = arena.segment(at);
        let (kind, len, before) = (segment.kind.get(), segment.len.get(), segment.before.get());
        ensure!(
            (1..=segments - at).contains(&len),
            "segment {at} is a row of {len} segments, of {segments} in the arena"
        );
        ensure!(before == free, "segment {at} has {before} free segments before it, but there are {free}");
        ensure!(
            segment.stale.get() <= 1,
            "segment {at}: the mark of a stale prefix is {}",
            segment.stale.get()
        );
        match kind {
            Segment::PAGED => {
                ensure!(len == 1, "segment {at} is divided into pages and has the length {len}");
                walk_pages(arena, at, found)?;
            }
            Segment::USED => {
                ensure!(at > 0, "segment 0 belongs to a block");
                found.usage.blocks += 1;
                found.usage.used += len as usize * SEGMENT - PREFIX;
            }
            Segment::FREE => {
                ensure!(
                    at > 0 && free == 0,
                    "the row of free segments at {at} has a free neighbour, or is the first"
                );
                let dirty = span(segment.dirty[0].get(), segment.dirty[1].get(), at, at + len)
                    .map_err(|e| format!("row {at}: dirty segments {e}"))?;
                found.rows.insert(at, (dirty.set(), rows::bin_of(len)));
            }
            _ => return Err(format!("segment {at} has the kind {kind}")),
        }
        free = if kind == Segment::FREE { len } else { 0 };
        at += len;
    }
    let last = arena.head().last_free.get();
    ensure!(last == free, "the head says that {last} segments are free at the end, but there are {free}");
    Ok(())
}

/// Returns a span that is inside of a range, or empty in the one way to write that.
fn span(from: u32, to: u32, start: u32, end: u32) -> Result<Span, String> {
    let span = Span { from, to };
    ensure!(
        span == Span::EMPTY || start <= from && from < to && to <= end,
        "{from}..{to} are not inside of {start}..{end}"
    );
    Ok(span)
}

fn walk_pages(arena: Arena<'_>, segment: u32, found: &mut Found) -> Result<(), String> {
    let (first, end) = (first_page(segment), (segment + 1) * PAGES);
    let (mut page, mut free) = (first, 0);
    while page < end {
        let entry = arena.entry(page);
        let before = entry.before.get();
        ensure!(
            u32::from(before) == free,
            "page {page} has {before} free pages before it, but there are {free}"
        );
        let pages = match entry.kind.get() {
            Entry::FREE => {
                let pages = check_length(page, u32::from(entry.count.get()), end)?;
                ensure!(free == 0, "the free run at page {page} has a free neighbour");
                let dirty = span(entry.dirty().from, entry.dirty().to, page, page + pages)
                    .map_err(|e| format!("run {page}: dirty pages {e}"))?;
                found.runs.insert(page, (dirty.set(), runs::bin_of(pages)));
                if segment > 0 && pages == runs::LONGEST {
                    found.empty.insert(page);
                }
                free = pages;
                pages
            }
            Entry::RUN => {
                free = 0;
                let pages = check_length(page, u32::from(entry.count.get()), end)?;
                found.usage.blocks += 1;
                found.usage.used += pages as usize * PAGE;
                pages
            }
            Entry::CHUNK => {
                free = 0;
                check_chunk(arena, page, end, found)?
            }
            kind => return Err(format!("page {page} has the kind {kind}, but a run or a chunk starts here")),
        };
        check_inside(arena, page, pages)?;
        page += pages;
    }
    Ok(())
}

fn check_length(page: u32, pages: u32, end: u32) -> Result<u32, String> {
    ensure!(
        (1..=end - page).contains(&pages),
        "the run at page {page} has {pages} pages, and the segment ends at {end}"
    );
    Ok(pages)
}

/// Checks the pages of a run or chunk after the first one.
fn check_inside(arena: Arena<'_>, page: u32, pages: u32) -> Result<(), String> {
    let chunk = arena.entry(page).kind.get() == Entry::CHUNK;
    for i in 1..pages {
        let entry = arena.entry(page + i);
        let kind = entry.kind.get();
        let same = if chunk {
            kind == Entry::PART && u32::from(entry.class.get()) == i
        } else {
            kind == Entry::INSIDE
        };
        ensure!(same, "page {} is inside of the run or chunk at {page}, but has the kind {kind}", page + i);
    }
    Ok(())
}

fn check_chunk(arena: Arena<'_>, page: u32, end: u32, found: &mut Found) -> Result<u32, String> {
    let chunk = arena.entry(page);
    let class = usize::from(chunk.class.get());
    ensure!(class < COUNT, "the chunk at page {page} is of class {class}, of {COUNT}");
    let size = &CLASSES[class];
    let pages = check_length(page, u32::from(size.pages), end)?;
    let mut free = 0;
    for (word, all) in chunk.bits.iter().zip(chunks::all_free(size)) {
        ensure!(
            word.get() & !all == 0,
            "the chunk at page {page} has bits behind its {} blocks",
            size.capacity
        );
        free += word.get().count_ones();
    }
    let count = chunk.count.get();
    ensure!(u32::from(count) == free, "the chunk at page {page} has {free} free blocks, but counts {count}");
    let trigger = chunk.trigger.get();
    if trigger == NEVER {
        found.current.insert(page, class);
    } else if trigger == size.capacity {
        found.listed.insert(page, class);
    } else {
        ensure!(
            trigger == size.quarter && count < trigger,
            "the chunk at page {page} is not listed with {count} of {} blocks free, and is to be at {trigger}",
            size.capacity
        );
    }
    let used = usize::from(size.capacity - count);
    found.usage.blocks += used;
    found.usage.used += used * size.size as usize;
    Ok(pages)
}

/// Walks a list. `node` returns the links of a member of it, or `None` if this does not belong there.
fn check_list(
    what: &str,
    first: u32,
    most: usize,
    node: impl Fn(u32) -> Option<(u32, u32)>,
) -> Result<usize, String> {
    let (mut at, mut before, mut len) = (first, 0, 0);
    while at != 0 {
        let Some((next, prev)) = node(at) else {
            return Err(format!("{what}: {at} follows {before}, but does not belong there"));
        };
        ensure!(prev == before, "{what}: {at} follows {before}, but has a link back to {prev}");
        len += 1;
        ensure!(len <= most, "{what}: the list is longer than {most}, which is all there is: a loop");
        (at, before) = (next, at);
    }
    Ok(len)
}

fn links(arena: Arena<'_>, page: u32) -> (u32, u32) {
    let entry = arena.entry(page);
    (entry.next.get(), entry.prev.get())
}

fn check_chunks(arena: Arena<'_>, found: &Found) -> Result<(), String> {
    let head = arena.head();
    let (mut listed, mut current) = (0, 0);
    for (class, size) in CLASSES.iter().enumerate() {
        let what = format!("the chunks of {} bytes", size.size);
        listed += check_list(&what, head.listed[class].get(), found.listed.len(), |page| {
            (found.listed.get(&page) == Some(&class)).then(|| links(arena, page))
        })?;
        let page = head.current[class].get();
        if page != 0 {
            ensure!(
                found.current.get(&page) == Some(&class),
                "{what}: {page} is not the one to take blocks from"
            );
            current += 1;
        }
    }
    let (all, all_current) = (found.listed.len(), found.current.len());
    ensure!(listed == all, "{listed} chunks are in lists, and {all} should be");
    ensure!(
        current == all_current,
        "blocks are taken from {current} chunks, and {all_current} are marked as such"
    );
    Ok(())
}

fn check_runs(arena: Arena<'_>, found: &Found) -> Result<(), String> {
    let head = arena.head();
    let mut listed = 0;
    for (set, bins) in head.runs.iter().enumerate() {
        let bits = head.run_bits[set].get();
        ensure!(bits >> RUN_BINS == 0, "free runs: bits behind the last bin: {bits:#x}");
        for (bin, first) in bins.iter().enumerate() {
            let marked = bits >> bin & 1 == 1;
            ensure!(marked == (first.get() != 0), "free runs: the bit of bin {bin} in set {set} is {marked}");
            let what = format!("free runs, bin {bin} of set {set}");
            listed += check_list(&what, first.get(), found.runs.len(), |page| {
                (found.runs.get(&page) == Some(&(set, bin))).then(|| links(arena, page))
            })?;
        }
    }
    let all = found.runs.len();
    ensure!(listed == all, "{listed} free runs are in bins, and {all} should be");
    let spare = head.spare.get();
    let same = if spare == 0 {
        found.empty.is_empty()
    } else {
        found.empty.len() == 1 && found.empty.contains(&spare)
    };
    ensure!(same, "the spare segment is that of page {spare}, and {} segments are empty", found.empty.len());
    Ok(())
}

fn check_rows(arena: Arena<'_>, found: &Found) -> Result<(), String> {
    let head = arena.head();
    let mut listed = 0;
    for (set, bins) in head.rows.iter().enumerate() {
        let bits = head.row_bits[set].get();
        ensure!(bits >> ROW_BINS == 0, "free rows: bits behind the last bin: {bits:#x}");
        for (bin, first) in bins.iter().enumerate() {
            let marked = bits >> bin & 1 == 1;
            ensure!(marked == (first.get() != 0), "free rows: the bit of bin {bin} in set {set} is {marked}");
            let what = format!("free rows, bin {bin} of set {set}");
            listed += check_list(&what, first.get(), found.rows.len(), |at| {
                (found.rows.get(&at) == Some(&(set, bin))).then(|| {
                    let row = arena.segment(at);
                    (row.next.get(), row.prev.get())
                })
            })?;
        }
    }
    let all = found.rows.len();
    ensure!(listed == all, "{listed} free rows are in bins, and {all} should be");
    Ok(())
}
