//! The check of the whole state.
//!
//! It walks the segments and their units first, and finds all runs, chunks and rows. Then it walks all lists: each must
//! have exactly the members that were found. The length of the arena is stored twice, so that a damaged length is found
//! before anything behind the end of the arena is read.
//!
//! It cannot find these changes:
//!
//! - bits and the count of a chunk that fit each other: a block is free that has an owner, or the other way round
//! - another class of a chunk that is not listed, if blocks of both classes are as many
//! - the dirty units of a free run or the dirty segments of a free row, if it stays in its bin
//! - the mark of a stale prefix
//! - bytes without a meaning, such as most of the entry of a unit that is not the first one of its run

use super::super::Usage;
use super::chunks::{self, NEVER};
use super::classes::{CLASSES, COUNT};
use super::state::{
    Arena, Entry, MAX_SEGMENTS, PREFIX, ROW_BINS, RUN_BINS, SEGMENT, Segment, Span, UNIT, UNITS, first_unit,
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
            Segment::DIVIDED => {
                ensure!(len == 1, "segment {at} is divided into units and has the length {len}");
                walk_units(arena, at, found)?;
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

fn walk_units(arena: Arena<'_>, segment: u32, found: &mut Found) -> Result<(), String> {
    let (first, end) = (first_unit(segment), (segment + 1) * UNITS);
    let (mut unit, mut free) = (first, 0);
    while unit < end {
        let entry = arena.entry(unit);
        let before = entry.before.get();
        ensure!(
            u32::from(before) == free,
            "unit {unit} has {before} free units before it, but there are {free}"
        );
        let units = match entry.kind.get() {
            Entry::FREE => {
                let units = check_length(unit, u32::from(entry.count.get()), end)?;
                ensure!(free == 0, "the free run at unit {unit} has a free neighbour");
                let dirty = span(entry.dirty().from, entry.dirty().to, unit, unit + units)
                    .map_err(|e| format!("run {unit}: dirty units {e}"))?;
                found.runs.insert(unit, (dirty.set(), runs::bin_of(units)));
                if segment > 0 && units == runs::LONGEST {
                    found.empty.insert(unit);
                }
                free = units;
                units
            }
            Entry::RUN => {
                free = 0;
                let units = check_length(unit, u32::from(entry.count.get()), end)?;
                found.usage.blocks += 1;
                found.usage.used += units as usize * UNIT;
                units
            }
            Entry::CHUNK => {
                free = 0;
                check_chunk(arena, unit, end, found)?
            }
            kind => return Err(format!("unit {unit} has the kind {kind}, but a run or a chunk starts here")),
        };
        check_inside(arena, unit, units)?;
        unit += units;
    }
    Ok(())
}

fn check_length(unit: u32, units: u32, end: u32) -> Result<u32, String> {
    ensure!(
        (1..=end - unit).contains(&units),
        "the run at unit {unit} has {units} units, and the segment ends at {end}"
    );
    Ok(units)
}

/// Checks the units of a run or chunk after the first one.
fn check_inside(arena: Arena<'_>, unit: u32, units: u32) -> Result<(), String> {
    let chunk = arena.entry(unit).kind.get() == Entry::CHUNK;
    for i in 1..units {
        let entry = arena.entry(unit + i);
        let kind = entry.kind.get();
        let same = if chunk {
            kind == Entry::PART && u32::from(entry.class.get()) == i
        } else {
            kind == Entry::INSIDE
        };
        ensure!(same, "unit {} is inside of the run or chunk at {unit}, but has the kind {kind}", unit + i);
    }
    Ok(())
}

fn check_chunk(arena: Arena<'_>, unit: u32, end: u32, found: &mut Found) -> Result<u32, String> {
    let chunk = arena.entry(unit);
    let class = usize::from(chunk.class.get());
    ensure!(class < COUNT, "the chunk at unit {unit} is of class {class}, of {COUNT}");
    let size = &CLASSES[class];
    let units = check_length(unit, u32::from(size.units), end)?;
    let mut free = 0;
    for (word, all) in chunk.bits.iter().zip(chunks::all_free(size)) {
        ensure!(
            word.get() & !all == 0,
            "the chunk at unit {unit} has bits behind its {} blocks",
            size.capacity
        );
        free += word.get().count_ones();
    }
    let count = chunk.count.get();
    ensure!(u32::from(count) == free, "the chunk at unit {unit} has {free} free blocks, but counts {count}");
    let trigger = chunk.trigger.get();
    if trigger == NEVER {
        found.current.insert(unit, class);
    } else if trigger == size.capacity {
        found.listed.insert(unit, class);
    } else {
        ensure!(
            trigger == size.quarter && count < trigger,
            "the chunk at unit {unit} is not listed with {count} of {} blocks free, and is to be at {trigger}",
            size.capacity
        );
    }
    let used = usize::from(size.capacity - count);
    found.usage.blocks += used;
    found.usage.used += used * size.size as usize;
    Ok(units)
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

fn links(arena: Arena<'_>, unit: u32) -> (u32, u32) {
    let entry = arena.entry(unit);
    (entry.next.get(), entry.prev.get())
}

fn check_chunks(arena: Arena<'_>, found: &Found) -> Result<(), String> {
    let head = arena.head();
    let (mut listed, mut current) = (0, 0);
    for (class, size) in CLASSES.iter().enumerate() {
        let what = format!("the chunks of {} bytes", size.size);
        listed += check_list(&what, head.listed[class].get(), found.listed.len(), |unit| {
            (found.listed.get(&unit) == Some(&class)).then(|| links(arena, unit))
        })?;
        let unit = head.current[class].get();
        if unit != 0 {
            ensure!(
                found.current.get(&unit) == Some(&class),
                "{what}: {unit} is not the one to take blocks from"
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
            listed += check_list(&what, first.get(), found.runs.len(), |unit| {
                (found.runs.get(&unit) == Some(&(set, bin))).then(|| links(arena, unit))
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
    ensure!(same, "the spare segment is that of unit {spare}, and {} segments are empty", found.empty.len());
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
