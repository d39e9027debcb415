//! `Blocks`: finds, reads and decompresses blocks, and compares each one with its hash.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::format::BLOCK;
use crate::format::pack::{Decoder, Encoding};
use crate::id::Id;
use crate::index::{PackRow, Place, Reader};
use crate::inner::Inner;
use crate::storage::ReadFile;

/// The number of blocks that are read at a time: 64 MiB of blocks.
pub(crate) const BATCH: usize = 16_384;

/// Returns the path of a pack.
pub(crate) fn pack_path(id: &Id) -> String {
    format!("packs/{id}")
}

/// Reads blocks of a repository. Keeps packs open.
pub(crate) struct Blocks<'a> {
    inner: &'a Inner,
    packs: HashMap<u32, Pack>,
}

#[derive(Clone)]
struct Pack {
    id: Id,
    len: u64,
    file: Arc<dyn ReadFile>,
}

/// A frame, and its wanted blocks: their numbers in the frame and in the list of the caller.
struct Wanted {
    place: Place,
    pack: Pack,
    blocks: Vec<(u8, usize)>,
}

impl<'a> Blocks<'a> {
    pub(crate) fn new(inner: &'a Inner) -> Self {
        Self { inner, packs: HashMap::new() }
    }

    /// Reads the blocks with these hashes, at most [`BATCH`] of them.
    ///
    /// Calls `take` once for each block, with its number in `wanted` and its bytes, from several threads, in no order.
    pub(crate) fn read(
        &mut self,
        wanted: &[Id],
        take: impl Fn(usize, &[u8]) -> Result<()> + Sync,
    ) -> Result<()> {
        let frames = match self.find(wanted) {
            // A collection may have moved blocks to another pack.
            Err(Error::File { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                self.packs.clear();
                self.find(wanted)?
            }
            found => found?,
        };
        frames.par_iter().try_for_each_init(
            || (Decoder::new(), Vec::new()),
            |(decoder, buffer), frame| {
                let decoder = decoder.as_mut().map_err(|error| Error::Memory {
                    action: "cannot decompress",
                    source: std::io::Error::new(error.kind(), error.to_string()),
                })?;
                frame.read(self.inner, decoder, buffer, |number, bytes| {
                    if Id::of(bytes) != wanted[number] {
                        let what =
                            format!("the block {} at {} has other bytes", wanted[number], frame.place.offset);
                        return Err(Error::damaged(pack_path(&frame.pack.id), what));
                    }
                    take(number, bytes)
                })
            },
        )
    }

    /// Finds the frames that contain the blocks, and opens their packs.
    fn find(&mut self, wanted: &[Id]) -> Result<Vec<Wanted>> {
        let mut order: Vec<usize> = (0..wanted.len()).collect();
        order.sort_unstable_by_key(|number| wanted[*number]);
        let sorted: Vec<Id> = order.iter().map(|number| wanted[*number]).collect();
        let inner = self.inner;
        let mut found = inner.read(|index| {
            let mut found = Vec::with_capacity(wanted.len());
            let mut checked = HashSet::new();
            for (place, number) in index.find(&sorted)?.into_iter().zip(&order) {
                let Some(place) = place else {
                    let what = format!("it does not contain the block {}", wanted[*number]);
                    return Err(Error::damaged("index.redb", what));
                };
                if checked.insert(place.pack) {
                    let row = pack_row(index, place.pack)?;
                    // The number of a deleted pack can be used again for another pack.
                    if self.packs.get(&place.pack).is_none_or(|pack| pack.id != row.id) {
                        self.packs.insert(place.pack, open_pack(inner, &row)?);
                    }
                }
                found.push((place, *number));
            }
            Ok(found)
        })?;
        found.sort_unstable_by_key(|(place, number)| (place.pack, place.offset, *number));
        let mut frames: Vec<Wanted> = Vec::new();
        for (place, number) in found {
            match frames
                .last_mut()
                .filter(|last| (last.place.pack, last.place.offset) == (place.pack, place.offset))
            {
                Some(last) => last.blocks.push((place.number, number)),
                None => {
                    let pack = self.packs[&place.pack].clone();
                    frames.push(Wanted { place, pack, blocks: vec![(place.number, number)] });
                }
            }
        }
        Ok(frames)
    }
}

fn pack_row(index: &Reader, number: u32) -> Result<PackRow> {
    index.pack(number)?.ok_or_else(|| {
        Error::damaged("index.redb", format!("it has places in the pack {number}, but not the pack"))
    })
}

fn open_pack(inner: &Inner, row: &PackRow) -> Result<Pack> {
    let path = pack_path(&row.id);
    let file = inner.storage.open(&path).map_err(Error::file("cannot open", inner.path(&path)))?;
    let len = file.len().map_err(Error::file("cannot read", inner.path(&path)))?;
    if len != row.len {
        return Err(Error::damaged(path, format!("it has {len} bytes instead of {}", row.len)));
    }
    Ok(Pack { id: row.id, len, file: Arc::from(file) })
}

impl Wanted {
    /// Reads the frame, and calls `take` with the blocks that are wanted.
    fn read(
        &self,
        inner: &Inner,
        decoder: &mut Decoder,
        buffer: &mut Vec<u8>,
        take: impl Fn(usize, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let (place, path) = (&self.place, pack_path(&self.pack.id));
        let wrong = |what: String| Error::damaged(&*path, format!("the frame at {}: {what}", place.offset));
        if u64::from(place.offset) + u64::from(place.stored) > self.pack.len {
            return Err(wrong(format!(
                "in the index, it ends after the end of the file ({} bytes)",
                self.pack.len
            )));
        }
        let Some(encoding) = Encoding::from_byte(place.encoding) else {
            return Err(wrong(format!("its encoding {} is not known", place.encoding)));
        };
        buffer.resize(place.stored as usize, 0);
        let read = self.pack.file.read_exact_at(buffer, place.offset.into());
        read.map_err(Error::file("cannot read", inner.path(&path)))?;
        let bytes = decoder.decode(buffer, encoding, place.blocks.into()).map_err(wrong)?;
        for (number, wanted) in &self.blocks {
            let at = usize::from(*number) * BLOCK;
            let block = bytes.get(at..at + BLOCK);
            take(*wanted, block.ok_or_else(|| wrong(format!("it has no block {number}")))?)?;
        }
        Ok(())
    }
}

/// Calls `take` with batches of entries. Stops at the first error, and returns it.
pub(crate) fn in_batches<T>(
    entries: impl Iterator<Item = Result<T>>,
    mut take: impl FnMut(&[T]) -> Result<()>,
) -> Result<()> {
    let mut batch = Vec::with_capacity(BATCH);
    for entry in entries {
        batch.push(entry?);
        if batch.len() == BATCH {
            take(&batch)?;
            batch.clear();
        }
    }
    if batch.is_empty() { Ok(()) } else { take(&batch) }
}

/// Locks a mutex whose value is also valid after a panic of another thread.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
