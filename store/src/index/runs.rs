//! Runs: lists of places, sorted by hash and divided into buckets by the first bits of the hash.
//!
//! Each save adds one run. A run with a higher number is newer. If several runs have a hash, the place in the newest
//! run counts. So when two runs are merged, all runs between them are merged too. Otherwise, an old place could replace
//! a newer one.

use redb::{ReadableTable, Table};

use crate::error::{Error, Result};
use crate::id::Id;

use super::gate::Stop;
use super::row::{Bucket, Place, Row, RunRow, bucket_key, damaged, push_entry, seal};

/// As soon as this many runs have about the same size, they are merged.
const MERGE: usize = 4;

/// The table of runs.
pub(super) trait Runs: ReadableTable<u32, &'static [u8]> {}
impl<T: ReadableTable<u32, &'static [u8]>> Runs for T {}

/// The table of buckets.
pub(super) trait Buckets: ReadableTable<(u32, u32), &'static [u8]> {}
impl<T: ReadableTable<(u32, u32), &'static [u8]>> Buckets for T {}

/// The two tables, open for writing.
pub(super) struct Tables<'t> {
    pub(super) runs: Table<'t, u32, &'static [u8]>,
    pub(super) buckets: Table<'t, (u32, u32), &'static [u8]>,
}

/// Returns all runs, the oldest first.
pub(super) fn list(runs: &impl Runs) -> Result<Vec<(u32, RunRow)>, Stop> {
    let mut list = Vec::new();
    for row in runs.iter()? {
        let (number, value) = row?;
        let number = number.value();
        list.push((number, RunRow::from_value("runs", &number.to_be_bytes(), value.value())?));
    }
    Ok(list)
}

/// Sets the places of hashes in a run, except of those that already have a place. The hashes ascend.
pub(super) fn find(
    buckets: &impl Buckets,
    (run, row): (u32, &RunRow),
    hashes: &[Id],
    places: &mut [Option<Place>],
) -> Result<(), Stop> {
    let mut current: Option<(u32, Bucket)> = None;
    for (hash, place) in hashes.iter().zip(places).filter(|(_, place)| place.is_none()) {
        let number = row.bucket(hash);
        if current.as_ref().is_none_or(|current| current.0 != number) {
            let bucket = match buckets.get((run, number))? {
                Some(value) => Bucket::from_value((run, number), row, value.value())?,
                None => Bucket::default(),
            };
            current = Some((number, bucket));
        }
        if let Some((_, bucket)) = &current {
            *place = bucket.find(hash)?;
        }
    }
    Ok(())
}

/// Reads the entries of a run in order. Keeps one bucket in memory.
pub(super) struct Cursor {
    run: u32,
    row: RunRow,
    /// The number of the next bucket, or `None` after the last.
    next: Option<u32>,
    bucket: Bucket,
    at: usize,
}

impl Cursor {
    /// Returns a cursor before the first entry.
    pub(super) fn new(run: u32, row: RunRow) -> Self {
        Self { run, row, next: Some(0), bucket: Bucket::default(), at: 0 }
    }

    /// Returns the next bucket and its number.
    fn next_bucket(&mut self, buckets: &impl Buckets) -> Result<Option<(u32, Bucket)>, Stop> {
        let Some(next) = self.next else { return Ok(None) };
        let Some(row) = buckets.range((self.run, next)..=(self.run, u32::MAX))?.next() else {
            self.next = None;
            return Ok(None);
        };
        let (key, value) = row?;
        let key = key.value();
        // In a damaged database, the pages of the table may not be in order.
        if key.0 != self.run || key.1 < next {
            return Err(damaged("buckets are not in order").into());
        }
        self.next = key.1.checked_add(1);
        Ok(Some((key.1, Bucket::from_value(key, &self.row, value.value())?)))
    }

    /// Returns the next entry.
    pub(super) fn next(&mut self, buckets: &impl Buckets) -> Result<Option<(Id, Place)>, Stop> {
        if self.at == self.bucket.len() {
            let Some((_, bucket)) = self.next_bucket(buckets)? else { return Ok(None) };
            (self.bucket, self.at) = (bucket, 0);
        }
        self.at += 1;
        Ok(Some(self.bucket.entry(self.at - 1)?))
    }
}

/// Writes a run. Entries must be added in ascending order.
struct Builder {
    run: u32,
    row: RunRow,
    number: u32,
    bucket: Vec<u8>,
    entries: u64,
}

impl Builder {
    /// Begins a run with about `entries` entries.
    fn new(run: u32, entries: u64) -> Self {
        Self { run, row: RunRow::new(entries), number: 0, bucket: Vec::new(), entries: 0 }
    }

    /// Adds an entry.
    fn push(&mut self, tables: &mut Tables<'_>, hash: &Id, place: &Place) -> Result<(), Stop> {
        let number = self.row.bucket(hash);
        if number != self.number {
            self.flush(tables)?;
            self.number = number;
        }
        push_entry(&mut self.bucket, hash, place);
        self.entries += 1;
        Ok(())
    }

    /// Writes the bucket.
    fn flush(&mut self, tables: &mut Tables<'_>) -> Result<(), Stop> {
        if !self.bucket.is_empty() {
            let key = (self.run, self.number);
            let value = seal("buckets", &bucket_key(key), std::mem::take(&mut self.bucket));
            tables.buckets.insert(key, value.as_slice())?;
        }
        Ok(())
    }

    /// Writes the last bucket, and adds the run to the table of runs if it has entries.
    fn finish(mut self, tables: &mut Tables<'_>) -> Result<(), Stop> {
        self.flush(tables)?;
        let row = RunRow { entries: self.entries, ..self.row };
        put(tables, self.run, &row)
    }
}

/// Writes the row of a run, or removes it if the run has no entries.
fn put(tables: &mut Tables<'_>, run: u32, row: &RunRow) -> Result<(), Stop> {
    if row.entries == 0 {
        tables.runs.remove(run)?;
    } else {
        tables.runs.insert(run, row.to_value("runs", &run.to_be_bytes()).as_slice())?;
    }
    Ok(())
}

/// Adds a run, and merges runs until fewer than four have about the same size.
pub(super) fn add(tables: &mut Tables<'_>, mut entries: Vec<(Id, Place)>) -> Result<(), Stop> {
    // If a block has several places, the last one counts. The sort is stable.
    entries.sort_by_key(|entry| entry.0);
    let mut builder = Builder::new(free_number(&list(&tables.runs)?)?, entries.len() as u64);
    for (index, (hash, place)) in entries.iter().enumerate() {
        if entries.get(index + 1).is_none_or(|next| next.0 != *hash) {
            builder.push(tables, hash, place)?;
        }
    }
    builder.finish(tables)?;
    loop {
        let runs = list(&tables.runs)?;
        let Some(first) = first_to_merge(&runs) else { return Ok(()) };
        merge(tables, &runs[first..])?;
    }
}

/// Returns the number of a run that is newer than all others.
fn free_number(runs: &[(u32, RunRow)]) -> Result<u32> {
    match runs.last() {
        None => Ok(0),
        Some(last) => {
            last.0.checked_add(1).ok_or_else(|| Error::invalid("the index has no number left for a run"))
        }
    }
}

/// Returns the index of the first of the runs that have to be merged.
fn first_to_merge(runs: &[(u32, RunRow)]) -> Option<usize> {
    let mut classes = [0; 32];
    for (_, row) in runs {
        classes[row.class() as usize] += 1;
    }
    let class = classes.iter().position(|&count| count >= MERGE)?;
    runs.iter().position(|(_, row)| row.class() as usize == class)
}

/// Replaces the newest runs with one run. `runs` begins with the oldest of them.
fn merge(tables: &mut Tables<'_>, runs: &[(u32, RunRow)]) -> Result<(), Stop> {
    let total = runs.iter().fold(0_u64, |total, (_, row)| total.saturating_add(row.entries));
    let mut builder = Builder::new(free_number(runs)?, total);
    // The newest run comes first.
    let mut cursors: Vec<Cursor> = runs.iter().rev().map(|&(run, row)| Cursor::new(run, row)).collect();
    let mut heads = Vec::new();
    for cursor in &mut cursors {
        heads.push(cursor.next(&tables.buckets)?);
    }
    // Of equal hashes, `min_by_key` returns the first, which is in the newest run.
    while let Some((hash, place)) = heads.iter().flatten().min_by_key(|entry| entry.0).copied() {
        for (head, cursor) in heads.iter_mut().zip(&mut cursors) {
            if head.is_some_and(|entry| entry.0 == hash) {
                *head = cursor.next(&tables.buckets)?;
            }
        }
        builder.push(tables, &hash, &place)?;
    }
    builder.finish(tables)?;
    for &(run, _) in runs {
        tables.buckets.retain_in((run, 0)..=(run, u32::MAX), |_, _| false)?;
        tables.runs.remove(run)?;
    }
    Ok(())
}

/// Removes the places for which `keep` returns false, from all runs.
pub(super) fn retain(tables: &mut Tables<'_>, keep: impl Fn(&Place) -> bool) -> Result<(), Stop> {
    for (run, row) in list(&tables.runs)? {
        let mut cursor = Cursor::new(run, row);
        let mut entries = 0;
        while let Some((number, bucket)) = cursor.next_bucket(&tables.buckets)? {
            let mut kept = Vec::new();
            for index in 0..bucket.len() {
                let (hash, place) = bucket.entry(index)?;
                if keep(&place) {
                    push_entry(&mut kept, &hash, &place);
                    entries += 1;
                }
            }
            let key = (run, number);
            if kept.is_empty() {
                tables.buckets.remove(key)?;
            } else if kept.len() < bucket.len() * super::row::ENTRY {
                tables.buckets.insert(key, seal("buckets", &bucket_key(key), kept).as_slice())?;
            }
        }
        put(tables, run, &RunRow { entries, ..row })?;
    }
    Ok(())
}
