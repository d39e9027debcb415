//! The object with the places of the blocks that a manifest lists. `DESIGN.md` has the format.

use std::collections::HashMap;
use std::io::{self, Read, Write};

use super::places_path;
use crate::error::{Error, Result};
use crate::format::{Sequential, Wrong};
use crate::id::Id;
use crate::index::Place;
use crate::remote::Remote;
use crate::storage::ReadFile;

const MAGIC: &[u8; 8] = b"memsnapL";
const VERSION: u32 = 1;
const HEADER: usize = 16;
const ENTRY: usize = 16;
const PACK: usize = 40;
const TRAILER: u64 = 44;

/// The greatest number of packs that are read: those of 1 TiB of blocks.
const MAX_PACKS: u32 = 1 << 20;

/// Packs, with the lengths of their objects.
pub(super) type Packs = Vec<(Id, u64)>;

/// Writes places, one for each block that is not zero, in the order of the manifest.
pub(super) struct PlacesWriter<W> {
    out: W,
    hasher: blake3::Hasher,
    len: u64,
    numbers: HashMap<u32, u32>,
    packs: Packs,
}

impl<W: Write> PlacesWriter<W> {
    pub(super) fn new(out: W) -> io::Result<Self> {
        let mut places =
            Self { out, hasher: blake3::Hasher::new(), len: 0, numbers: HashMap::new(), packs: Vec::new() };
        let mut header = [0; HEADER];
        header[..8].copy_from_slice(MAGIC);
        header[8..12].copy_from_slice(&VERSION.to_le_bytes());
        places.put(&header)?;
        Ok(places)
    }

    /// Adds the place of the next block. `pack` is the id of its pack and the length of that file.
    pub(super) fn push(&mut self, place: &Place, pack: impl FnOnce() -> (Id, u64)) -> io::Result<()> {
        let number = match self.numbers.get(&place.pack) {
            Some(number) => *number,
            None => {
                let number = u32::try_from(self.packs.len()).map_err(io::Error::other)?;
                self.packs.push(pack());
                self.numbers.insert(place.pack, number);
                number
            }
        };
        let mut entry = [0; ENTRY];
        entry[..4].copy_from_slice(&number.to_le_bytes());
        entry[4..8].copy_from_slice(&place.offset.to_le_bytes());
        entry[8..12].copy_from_slice(&place.stored.to_le_bytes());
        entry[12..15].copy_from_slice(&[place.number, place.blocks, place.encoding]);
        self.put(&entry)
    }

    /// Writes the end. Returns the length.
    pub(super) fn finish(mut self) -> io::Result<u64> {
        let packs = std::mem::take(&mut self.packs);
        for (id, len) in &packs {
            self.put(id.as_bytes())?;
            self.put(&len.to_le_bytes())?;
        }
        self.put(&u32::try_from(packs.len()).map_err(io::Error::other)?.to_le_bytes())?;
        self.put(&[0; 8])?;
        let checksum = self.hasher.finalize();
        self.out.write_all(checksum.as_bytes())?;
        self.out.flush()?;
        Ok(self.len + 32)
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        self.hasher.update(bytes);
        self.len += bytes.len() as u64;
        Ok(())
    }
}

impl Remote {
    /// Returns the packs that the places of a manifest name, with their lengths, or `None` if it has no places.
    pub(super) fn packs_of(&self, manifest: &Id) -> Result<Option<Packs>> {
        self.packs_at_end(manifest, None)
    }

    /// As [`packs_of`](Self::packs_of). `end` is the length of the object and its last bytes, if they were read.
    pub(super) fn packs_at_end(&self, manifest: &Id, end: Option<(u64, &[u8])>) -> Result<Option<Packs>> {
        if let Some((len, tail)) = end {
            let start = len.saturating_sub(tail.len() as u64);
            let packs = read_packs(len, |range| {
                let at = range.start.checked_sub(start).and_then(|at| usize::try_from(at).ok());
                let bytes =
                    at.and_then(|at| tail.get(at..)?.get(..usize::try_from(range.end - range.start).ok()?));
                bytes.map(Vec::from).ok_or(Failed::Gone)
            });
            if let Ok(packs) = packs {
                return Ok(Some(packs));
            }
        }
        let path = places_path(manifest);
        let Some(object) = self.objects().head(&path)? else { return Ok(None) };
        let packs = read_packs(object.len, |range| {
            self.objects().get_range(&path, range).map_err(Failed::Store)?.ok_or(Failed::Gone)
        });
        match packs {
            Ok(packs) => Ok(Some(packs)),
            Err(Failed::Gone) => Ok(None),
            Err(Failed::Store(error)) => Err(error),
            Err(Failed::Wrong(wrong)) => Err(wrong.of(&self.objects().full(&path))),
        }
    }
}

/// Why the packs of a manifest could not be read.
enum Failed {
    Store(Error),
    Wrong(Wrong),
    /// The places were deleted meanwhile.
    Gone,
}

impl From<Wrong> for Failed {
    fn from(wrong: Wrong) -> Self {
        Self::Wrong(wrong)
    }
}

/// Returns the greatest length of the places of a manifest that lists this many blocks: each in a pack of its own.
pub(super) fn longest_places(blocks: u64) -> u64 {
    let packs = blocks.min(MAX_PACKS.into()) * PACK as u64;
    blocks.saturating_mul(ENTRY as u64).saturating_add(HEADER as u64 + packs + TRAILER)
}

/// The packs at the end of places. `read` returns a range of the object, of `len` bytes.
pub(super) fn read_packs<E: From<Wrong>>(
    len: u64,
    mut read: impl FnMut(std::ops::Range<u64>) -> Result<Vec<u8>, E>,
) -> Result<Packs, E> {
    let damaged = |what: String| E::from(Wrong::Damaged(what));
    let Some(end) = len.checked_sub(TRAILER).filter(|end| *end >= HEADER as u64) else {
        return Err(damaged(format!("it has only {len} bytes")));
    };
    let trailer = read(end..len)?;
    let Some(count) =
        trailer.first_chunk().map(|bytes| u32::from_le_bytes(*bytes)).filter(|count| *count <= MAX_PACKS)
    else {
        return Err(damaged("its number of packs is not valid".to_owned()));
    };
    let bytes = u64::from(count) * PACK as u64;
    let Some(start) = end.checked_sub(bytes).filter(|start| *start >= HEADER as u64) else {
        return Err(damaged(format!("it claims {count} packs")));
    };
    if count == 0 {
        return Ok(Vec::new());
    }
    let table = read(start..end)?;
    let packs = table.chunks_exact(PACK).map(|entry| {
        let (id, len) = entry.split_at(32);
        (Id::from_bytes(std::array::from_fn(|i| id[i])), u64::from_le_bytes(std::array::from_fn(|i| len[i])))
    });
    Ok(packs.collect())
}

/// Reads the places in a file, in order. The pack of a place is a number in the list of packs.
pub(super) struct PlacesReader {
    input: io::BufReader<Sequential>,
    pub(super) packs: Packs,
}

impl PlacesReader {
    /// Compares the file with its checksum, and reads the list of packs.
    pub(super) fn new(open: impl Fn() -> io::Result<Box<dyn ReadFile>>) -> Result<Self, Wrong> {
        let file = open()?;
        let len = file.len()?;
        let Some(hashed) = len.checked_sub(32) else {
            return Err(Wrong::Damaged(format!("it has only {len} bytes")));
        };
        let mut hasher = blake3::Hasher::new();
        let mut input = Sequential::new(open()?)?.take(hashed);
        io::copy(&mut input, &mut hasher)?;
        let mut checksum = [0; 32];
        file.read_exact_at(&mut checksum, hashed)?;
        if hasher.finalize().as_bytes() != &checksum {
            return Err(Wrong::Damaged("it does not have the checksum that it claims".to_owned()));
        }
        let packs = read_packs(len, |range| -> Result<_, Wrong> {
            let mut bytes = vec![0; usize::try_from(range.end - range.start).unwrap_or(usize::MAX)];
            file.read_exact_at(&mut bytes, range.start)?;
            Ok(bytes)
        })?;
        let mut input = io::BufReader::with_capacity(64 << 10, Sequential::new(open()?)?);
        let mut header = [0; HEADER];
        input.read_exact(&mut header)?;
        let version = u32::from_le_bytes(std::array::from_fn(|i| header[8 + i]));
        match (&header[..8] == MAGIC, version) {
            (true, VERSION) => Ok(Self { input, packs }),
            (true, 2..) => Err(Wrong::Newer(version)),
            _ => Err(Wrong::Damaged("it does not begin as places do".to_owned())),
        }
    }

    /// Returns the next place. To be called once for each block of the manifest that is not zero.
    pub(super) fn next(&mut self) -> Result<Place, Wrong> {
        let mut entry = [0; ENTRY];
        self.input.read_exact(&mut entry)?;
        let number = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| entry[at + i]));
        let place = Place {
            pack: number(0),
            offset: number(4),
            stored: number(8),
            number: entry[12],
            blocks: entry[13],
            encoding: entry[14],
        };
        let fits = self
            .packs
            .get(place.pack as usize)
            .is_some_and(|pack| u64::from(place.offset) + u64::from(place.stored) <= pack.1);
        let valid = place.blocks <= 16
            && place.number < place.blocks
            && place.stored <= u32::from(place.blocks) * 4096
            && place.encoding <= 1;
        if fits && valid {
            Ok(place)
        } else {
            Err(Wrong::Damaged(format!("the place at offset {} is not valid", place.offset)))
        }
    }
}
