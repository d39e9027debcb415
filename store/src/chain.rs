//! `Chain`: reads a chain of manifests as one list of blocks.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::blocks::BATCH;
use crate::error::{Error, Result};
use crate::format::manifest::{Header, MAX_DEPTH, ManifestReader};
use crate::format::runs::Entry;
use crate::format::{Sequential, blocks};
use crate::id::Id;
use crate::index::ManifestRow;
use crate::storage::Storage;

/// Reads a manifest to its end. Calls `take` with the hashes that it lists, in batches of at most [`BATCH`].
///
/// The hashes in a batch ascend, and each is there once.
pub(crate) fn for_each_hashes(
    reader: &mut ManifestReader,
    mut take: impl FnMut(&[Id]) -> Result<()>,
) -> Result<()> {
    let path = manifest_path(&reader.id);
    let mut hashes = Vec::with_capacity(BATCH);
    loop {
        let entry = reader.next().map_err(|wrong| wrong.of(&path))?;
        hashes.extend(entry.and_then(|entry| entry.1));
        if hashes.len() == BATCH || entry.is_none() {
            hashes.sort_unstable();
            hashes.dedup();
            take(&hashes)?;
            hashes.clear();
        }
        if entry.is_none() {
            return Ok(());
        }
    }
}

/// Returns the path of a manifest.
pub(crate) fn manifest_path(id: &Id) -> String {
    format!("manifests/{id}")
}

/// Opens a manifest and reads its header.
pub(crate) fn open_manifest(storage: &dyn Storage, id: Id) -> Result<ManifestReader> {
    let path = manifest_path(&id);
    let file = storage.open(&path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Error::damaged(&*path, "the file is missing"),
        _ => Error::file("cannot open", storage.path(&path))(error),
    })?;
    let file = Sequential::new(file).map_err(Error::file("cannot read", storage.path(&path)))?;
    ManifestReader::new(file, id).map_err(|wrong| wrong.of(&path))
}

/// Opens a manifest. `above` is the manifest that has it as its base, if there is one.
fn open_below(storage: &dyn Storage, above: Option<Id>, id: Id) -> Result<ManifestReader> {
    match (open_manifest(storage, id), above) {
        // `above` may contain a wrong id of its base, so the error names both.
        (Err(Error::Damaged { .. }), Some(above)) => {
            let what = format!("its base {} is missing or damaged", manifest_path(&id));
            Err(Error::damaged(manifest_path(&above), what))
        }
        (opened, _) => opened,
    }
}

/// Returns the header of a manifest, after comparing all of the manifest with its id.
pub(crate) fn checked_header(storage: &dyn Storage, id: Id) -> Result<Header> {
    let mut reader = open_manifest(storage, id)?;
    reader.check().map_err(|wrong| wrong.of(&manifest_path(&id)))?;
    Ok(reader.header)
}

/// Opens the chain of a snapshot that has a row in the index.
///
/// The caller uses the lengths in the row for memory and files, so the row and the manifest have to agree.
pub(crate) fn open_listed(storage: &dyn Storage, id: Id, row: &ManifestRow) -> Result<Chain> {
    let chain = Chain::open(storage, id)?;
    check_row(chain.top(), id, row)?;
    Ok(chain)
}

/// Checks that the index and the manifest of a snapshot have the same lengths.
pub(crate) fn check_lengths(storage: &dyn Storage, id: Id, row: &ManifestRow) -> Result<()> {
    check_row(Some(&open_manifest(storage, id)?.header), id, row)
}

fn check_row(header: Option<&Header>, id: Id, row: &ManifestRow) -> Result<()> {
    let agrees = header.is_some_and(|header| (header.len, header.content_len) == (row.len, row.content_len));
    if agrees {
        return Ok(());
    }
    Err(Error::damaged("index.redb", format!("it does not agree with {}", manifest_path(&id))))
}

/// A chain of manifests, each the base of the one before.
///
/// The last one is full, unless the chain was cut.
pub(crate) struct Chain {
    layers: Vec<ManifestReader>,
}

impl Chain {
    /// Opens a manifest and the whole chain below it.
    pub(crate) fn open(storage: &dyn Storage, id: Id) -> Result<Self> {
        Self::open_to(storage, id, None)
    }

    /// Does the same as [`open`](Self::open), but cuts the chain before the manifest `end`.
    pub(crate) fn open_to(storage: &dyn Storage, id: Id, end: Option<Id>) -> Result<Self> {
        let mut layers: Vec<ManifestReader> = Vec::new();
        let mut next = Some(id);
        while let Some(id) = next.filter(|next| Some(*next) != end) {
            let mut layer = open_below(storage, layers.last().map(|above| above.id), id)?;
            // They may be long, and nobody who reads a chain needs them.
            layer.header.labels.clear();
            layer.header.attachments.clear();
            if let Some(above) = layers.last()
                && layer.header.depth.checked_add(1) != Some(above.header.depth)
            {
                let what =
                    format!("its depth is {}, that of its base {}", above.header.depth, layer.header.depth);
                return Err(Error::damaged(manifest_path(&above.id), what));
            }
            next = layer.header.base;
            layers.push(layer);
        }
        Ok(Self { layers })
    }

    /// Returns the header of the first manifest, or `None` if the chain was cut before it.
    pub(crate) fn top(&self) -> Option<&Header> {
        self.layers.first().map(|layer| &layer.header)
    }

    /// Returns the ids of the manifests.
    #[cfg(feature = "remote")]
    pub(crate) fn ids(&self) -> Vec<Id> {
        self.layers.iter().map(|layer| layer.id).collect()
    }

    /// Returns whether the last manifest is full.
    fn is_whole(&self) -> bool {
        self.layers.last().is_some_and(|layer| layer.header.base.is_none())
    }

    /// Returns the blocks in ascending order.
    ///
    /// If the chain is whole, these are the blocks that are not zero. Otherwise they are those that may differ from
    /// the manifest that the chain was cut at, including blocks of zeroes.
    pub(crate) fn entries(self) -> Result<Entries> {
        let zeroes = !self.is_whole();
        let mut limit = u64::MAX;
        let mut layers = Vec::with_capacity(self.layers.len());
        for reader in self.layers {
            // Blocks after the end of a manifest above do not count.
            limit = limit.min(blocks(reader.header.len));
            layers.push(Layer { reader, limit });
        }
        let mut entries = Entries { layers, heads: BinaryHeap::new(), last: None, zeroes };
        for number in 0..entries.layers.len() {
            entries.advance(number)?;
        }
        Ok(entries)
    }
}

struct Layer {
    reader: ManifestReader,
    limit: u64,
}

/// The merged blocks of a chain. When it ends, all manifests have been compared with their ids.
pub(crate) struct Entries {
    layers: Vec<Layer>,
    /// The next block of each layer.
    ///
    /// The lowest block comes first, and of equal blocks that of the topmost layer.
    heads: BinaryHeap<Reverse<(u64, usize, Option<Id>)>>,
    last: Option<u64>,
    zeroes: bool,
}

impl Entries {
    fn advance(&mut self, number: usize) -> Result<()> {
        let layer = &mut self.layers[number];
        let wrong = |layer: &Layer, wrong: crate::format::Wrong| wrong.of(&manifest_path(&layer.reader.id));
        match layer.reader.next() {
            Ok(Some((block, hash))) if block < layer.limit => self.heads.push(Reverse((block, number, hash))),
            Ok(None) => {}
            Ok(Some(_)) => layer.reader.check().map_err(|error| wrong(layer, error))?,
            Err(error) => return Err(wrong(layer, error)),
        }
        Ok(())
    }

    fn next_entry(&mut self) -> Result<Option<Entry>> {
        while let Some(Reverse((block, number, hash))) = self.heads.pop() {
            self.advance(number)?;
            if self.last.replace(block) != Some(block) && (self.zeroes || hash.is_some()) {
                return Ok(Some((block, hash)));
            }
        }
        Ok(None)
    }
}

impl Iterator for Entries {
    type Item = Result<Entry>;

    fn next(&mut self) -> Option<Result<Entry>> {
        self.next_entry().transpose()
    }
}

/// A block in which two snapshots differ: its number, and its hash in the second one, if not zero.
pub(crate) type Difference = Entry;

type Differences = Box<dyn Iterator<Item = Result<Difference>>>;

/// Returns the blocks in which `to` differs from `from`, in ascending order, within the length of `to`.
///
/// If `exact` is false, the result may contain blocks that are equal. This can save reading a manifest that both chains
/// have in common.
pub(crate) fn differences(storage: &dyn Storage, from: Id, to: Id, exact: bool) -> Result<Differences> {
    if from == to {
        return Ok(Box::new(std::iter::empty()));
    }
    if !exact && let Some(found) = above_common(storage, from, to, KEPT)? {
        return Ok(found);
    }
    let (from, to) = (Chain::open(storage, from)?, Chain::open(storage, to)?);
    let limit = to.top().map_or(0, |top| blocks(top.len));
    let joined = Joined { from: from.entries()?.peekable(), to: to.entries()?.peekable() };
    Ok(Box::new(joined.filter(move |entry| entry.as_ref().map_or(true, |entry| entry.0 < limit))))
}

/// The number of blocks that [`above_common`] keeps in memory: 3 MiB of them.
pub(crate) const KEPT: usize = 1 << 16;

/// Returns the blocks that the manifests above the common one list.
///
/// Returns `None` if these are not all differences. This is known only at their end. So all are read before the first one
/// is returned. If there are more than `kept`, they are read again while the caller uses them, which saves their memory.
pub(crate) fn above_common(
    storage: &dyn Storage,
    from: Id,
    to: Id,
    kept: usize,
) -> Result<Option<Differences>> {
    let Some(above) = Above::open(storage, from, to)? else { return Ok(None) };
    let (mut found, mut count) = (Vec::new(), 0);
    for entry in above {
        let Some(entry) = entry? else { return Ok(None) };
        count += 1;
        if count <= kept {
            found.push(entry);
        }
    }
    if count <= kept {
        return Ok(Some(Box::new(found.into_iter().map(Ok))));
    }
    drop(found);
    let changed =
        move || Error::damaged(manifest_path(&to), "it or a manifest of its chain has changed meanwhile");
    let again = Above::open(storage, from, to)?.ok_or_else(changed)?;
    Ok(Some(Box::new(again.map(move |entry| entry?.ok_or_else(changed)))))
}

/// The blocks that two chains list above their common manifest.
///
/// An entry is `None` if the first chain lists a block that the second one does not, because the common manifest would
/// have to be read to know whether it differs. The caller stops there.
struct Above {
    from: Entries,
    to: std::iter::Peekable<Entries>,
    /// A block of `from` that comes after those of `to` that were returned.
    next: Option<u64>,
    /// The number of blocks of the common manifest, and of `to`.
    common: u64,
    limit: u64,
}

impl Above {
    fn next_entry(&mut self) -> Result<Option<Option<Difference>>> {
        loop {
            let block = match self.next.take() {
                Some(block) => Some(block),
                None => self.from.next().transpose()?.map(|entry| entry.0),
            };
            let Some(block) = block else { return Ok(self.to.next().transpose()?.map(Some)) };
            if let Some(entry) =
                self.to.next_if(|entry| entry.as_ref().map_or(true, |entry| entry.0 <= block))
            {
                let entry = entry?;
                self.next = Some(block).filter(|block| entry.0 < *block);
                return Ok(Some(Some(entry)));
            }
            if block < self.common {
                return Ok(Some(None));
            }
            if block < self.limit {
                return Ok(Some(Some((block, None)))); // The common manifest ends before the block.
            }
        }
    }
}

impl Iterator for Above {
    type Item = Result<Option<Difference>>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_entry().transpose()
    }
}

impl Above {
    /// Finds the common manifest, and opens the chains above it.
    ///
    /// Returns `None` if there is none, or if the chains above it do not list all differences.
    fn open(storage: &dyn Storage, from: Id, to: Id) -> Result<Option<Self>> {
        let (mut a, mut b) = (Some(from), Some(to));
        let mut seen = Vec::new();
        // Headers are read twice, which is cheap because chains are short.
        while let Some(id) = a {
            let above = seen.last().copied();
            seen.push(id);
            a = open_below(storage, above, id)?.header.base.filter(|_| seen.len() <= MAX_DEPTH as usize);
        }
        let (mut depth, mut above) = (0, None);
        while let Some(id) = b.filter(|id| !seen.contains(id)) {
            depth += 1;
            b = open_below(storage, above, id)?.header.base.filter(|_| depth <= MAX_DEPTH);
            above = Some(id);
        }
        let Some(common) = b else { return Ok(None) };
        let (from, to) =
            (Chain::open_to(storage, from, Some(common))?, Chain::open_to(storage, to, Some(common))?);
        if to.layers.is_empty() {
            return Ok(None); // No reader would compare the manifest of `to` with its id.
        }
        // No manifest may be shorter than the common one. Otherwise, blocks after its end differ without being listed.
        let mut len = open_manifest(storage, common)?.header.len;
        // The common manifest was not compared with its id, so its length may be wrong. This does not matter if all lengths
        // are equal.
        if from.layers.iter().chain(&to.layers).any(|layer| layer.header.len != len) {
            len = checked_header(storage, common)?.len;
        }
        if from.layers.iter().chain(&to.layers).any(|layer| layer.header.len < len) {
            return Ok(None);
        }
        let limit = to.top().map_or(blocks(len), |top| blocks(top.len));
        let (from, to) = (from.entries()?, to.entries()?.peekable());
        Ok(Some(Self { from, to, next: None, common: blocks(len), limit }))
    }
}

/// Merges two lists of blocks that are not zero, and returns the blocks that differ.
struct Joined {
    from: std::iter::Peekable<Entries>,
    to: std::iter::Peekable<Entries>,
}

impl Iterator for Joined {
    type Item = Result<Difference>;

    fn next(&mut self) -> Option<Result<Difference>> {
        loop {
            let block = |entry: Option<&Result<Entry>>| match entry {
                None => Some(u64::MAX),
                Some(Ok(entry)) => Some(entry.0),
                Some(Err(_)) => None,
            };
            // An error comes first.
            let Some(from) = block(self.from.peek()) else { return self.from.next() };
            let Some(to) = block(self.to.peek()) else { return self.to.next() };
            if from < to {
                self.from.next();
                return Some(Ok((from, None)));
            }
            let new = self.to.next()?;
            if to < from {
                return Some(new);
            }
            let old = self.from.next()?;
            if let (Ok(old), Ok(new)) = (&old, &new)
                && old.1 == new.1
            {
                continue;
            }
            return Some(new);
        }
    }
}
