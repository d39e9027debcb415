//! `Blocks`: finds, reads and decompresses blocks, and compares each one with its hash.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::io::ErrorKind;
use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;

use crate::cores::on_all_cores;
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

/// The greatest number of packs that are open at a time. Systems limit the open files of a process, some to 256.
const OPEN: usize = 64;

/// How often blocks are looked up again because their packs are gone.
const RETRIES: usize = 3;

/// Reads blocks of a repository. It keeps packs open.
pub(crate) struct Blocks<'a> {
    inner: &'a Inner,
    packs: HashMap<Id, Box<dyn ReadFile>>,
}

/// A frame, and its wanted blocks: their numbers in the frame and in the list of the caller.
struct Wanted {
    place: Place,
    pack: PackRow,
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
        let mut numbers: Vec<usize> = (0..wanted.len()).collect();
        for retry in 0.. {
            let frames = self.find(wanted, &numbers)?;
            let Some((gone, error)) = self.read_frames(wanted, &frames, &take)? else { break };
            // The collector may have moved blocks to another pack since the index was read.
            if retry == RETRIES {
                return Err(error);
            }
            numbers = frames[gone..].iter().flat_map(|frame| &frame.blocks).map(|block| block.1).collect();
        }
        Ok(())
    }

    /// Finds the frames that contain blocks, in the order of packs and offsets.
    fn find(&self, wanted: &[Id], numbers: &[usize]) -> Result<Vec<Wanted>> {
        let mut order = numbers.to_vec();
        order.sort_unstable_by_key(|number| wanted[*number]);
        let sorted: Vec<Id> = order.iter().map(|number| wanted[*number]).collect();
        // The number of a pack that was collected is used again for another one, so the rows are from the same time.
        let (mut found, rows) = self.inner.read(|index| {
            let mut found = Vec::with_capacity(sorted.len());
            let mut rows = HashMap::new();
            for (place, number) in index.find(&sorted)?.into_iter().zip(&order) {
                let Some(place) = place else {
                    let what = format!("it does not contain the block {}", wanted[*number]);
                    return Err(Error::damaged("index.redb", what));
                };
                if let Entry::Vacant(row) = rows.entry(place.pack) {
                    row.insert(pack_row(index, place.pack)?);
                }
                found.push((place, *number));
            }
            Ok((found, rows))
        })?;
        found.sort_unstable_by_key(|(place, number)| (place.pack, place.offset, *number));
        let same = |a: &(Place, usize), b: &(Place, usize)| (a.0.pack, a.0.offset) == (b.0.pack, b.0.offset);
        let frames = found.chunk_by(same).map(|blocks| {
            let place = blocks[0].0;
            let blocks = blocks.iter().map(|(place, number)| (place.number, *number)).collect();
            Wanted { place, pack: rows[&place.pack], blocks }
        });
        Ok(frames.collect())
    }

    /// Reads frames. If a pack is gone, returns the number of the first frame that was not read, and the error.
    fn read_frames(
        &mut self,
        wanted: &[Id],
        frames: &[Wanted],
        take: &(impl Fn(usize, &[u8]) -> Result<()> + Sync),
    ) -> Result<Option<(usize, Error)>> {
        let mut begin = 0;
        while begin < frames.len() {
            let mut open = HashSet::new();
            let mut end = begin;
            while let Some(frame) = frames.get(end)
                && (open.len() < OPEN || open.contains(&frame.pack.id))
            {
                open.insert(frame.pack.id);
                end += 1;
            }
            if self.packs.len() + open.len() > OPEN {
                self.packs.retain(|id, _| open.contains(id));
            }
            for frame in &frames[begin..end] {
                match self.open(&frame.pack) {
                    Err(error @ Error::File { .. }) if error.kind() == ErrorKind::NotFound => {
                        return Ok(Some((begin, error)));
                    }
                    opened => opened?,
                }
            }
            on_all_cores(|| self.decode(wanted, &frames[begin..end], take))?;
            begin = end;
        }
        Ok(None)
    }

    fn open(&mut self, row: &PackRow) -> Result<()> {
        if let Entry::Vacant(pack) = self.packs.entry(row.id) {
            pack.insert(open_pack(self.inner, row)?);
        }
        Ok(())
    }

    /// Reads and decompresses frames of packs that are open.
    fn decode(
        &self,
        wanted: &[Id],
        frames: &[Wanted],
        take: &(impl Fn(usize, &[u8]) -> Result<()> + Sync),
    ) -> Result<()> {
        frames.par_iter().try_for_each_init(
            || (Decoder::new(), Vec::new()),
            |(decoder, buffer), frame| {
                let decoder = decoder.as_mut().map_err(|error| Error::Memory {
                    action: "cannot decompress",
                    source: std::io::Error::new(error.kind(), error.to_string()),
                })?;
                let file = &*self.packs[&frame.pack.id];
                frame.read(self.inner, file, decoder, buffer, |number, bytes| {
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
}

fn pack_row(index: &Reader, number: u32) -> Result<PackRow> {
    index.pack(number)?.ok_or_else(|| {
        Error::damaged("index.redb", format!("it has places in the pack {number}, but not the pack"))
    })
}

/// Opens a pack, and checks that it is as long as the index says.
pub(crate) fn open_pack(inner: &Inner, row: &PackRow) -> Result<Box<dyn ReadFile>> {
    let path = pack_path(&row.id);
    let file = inner.storage.open(&path).map_err(Error::file("cannot open", inner.path(&path)))?;
    let len = file.len().map_err(Error::file("cannot read", inner.path(&path)))?;
    if len != row.len {
        return Err(Error::damaged(path, format!("it has {len} bytes instead of {}", row.len)));
    }
    Ok(file)
}

impl Wanted {
    /// Reads the frame, and calls `take` with the blocks that are wanted.
    fn read(
        &self,
        inner: &Inner,
        file: &dyn ReadFile,
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
        let read = file.read_exact_at(buffer, place.offset.into());
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use memsnap::Snapshot;

    use super::*;
    use crate::collect::Collect;
    use crate::repository::Repository;

    /// A load keeps packs open while a collection deletes one and a save uses its number for another one.
    #[test]
    fn the_number_of_a_pack_may_be_used_again() {
        let folder = tempfile::tempdir().unwrap();
        let repository = Repository::create(folder.path().join("repository")).unwrap();
        let mut blocks = Blocks::new(&repository.inner);
        for byte in 1..4 {
            let content = [byte; BLOCK];
            let id = repository.save(&Snapshot::from_slice(&content).unwrap()).run().unwrap().id();
            let packs = repository.inner.read(|index| index.packs()).unwrap();
            assert_eq!(packs.iter().map(|pack| pack.0).collect::<Vec<_>>(), [0]);
            let check = |_: usize, bytes: &[u8]| {
                assert_eq!(bytes, content);
                Ok(())
            };
            blocks.read(&[Id::of(&content)], check).unwrap();
            repository.remove(id).unwrap();
            repository.collect(&Collect::new().grace(Duration::ZERO)).unwrap();
        }
    }

    /// A file was open for each pack from which a load read, and systems limit the open files of a process.
    #[test]
    fn few_packs_are_open_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let repository = Repository::create(folder.path().join("repository")).unwrap();
        let contents: Vec<[u8; BLOCK]> =
            (1..=u8::try_from(OPEN).unwrap() + 10).map(|byte| [byte; BLOCK]).collect();
        for content in &contents {
            repository.save(&Snapshot::from_slice(content).unwrap()).run().unwrap();
        }
        let mut blocks = Blocks::new(&repository.inner);
        let hashes: Vec<Id> = contents.iter().map(|content| Id::of(content)).collect();
        let check = |number: usize, bytes: &[u8]| {
            assert_eq!(bytes, contents[number]);
            Ok(())
        };
        blocks.read(&hashes, check).unwrap();
        assert!((1..=OPEN).contains(&blocks.packs.len()));
    }
}
