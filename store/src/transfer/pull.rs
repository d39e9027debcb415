//! Pulling: blocks first, then manifests, and at last one change of the index.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use super::known::Fetched;
use super::places_path;
use crate::blocks::pack_path;
use crate::chain::manifest_path;
use crate::error::{Error, Result};
use crate::format::BLOCK;
use crate::format::manifest::{Header, MAX_DEPTH};
use crate::format::pack::{Decoder, Encoder, Encoding, FRAME_BLOCKS, Frame};
use crate::id::{Id, Reference};
use crate::index::{ManifestRow, Place};
use crate::inner::Inner;
use crate::progress::{Observer, Progress};
use crate::remote::Remote;
use crate::save::write_name;
use crate::sink::{Sink, write_file};

/// The number of blocks that are looked up and requested at a time: those of 16 MiB.
const AT_ONCE: usize = 4096;

/// Pulls a snapshot. Returns its id, and the number of blocks that the repository lacked.
pub(super) fn pull(
    inner: &Inner,
    remote: &Remote,
    id: &Reference,
    name: Option<&str>,
    observer: &mut Observer<'_>,
) -> Result<(Id, u64)> {
    let id = remote.resolve(id.clone())?;
    let _lock = inner.lock_writer()?;
    let mut missing: Vec<(Id, Fetched<'_>, Header)> = Vec::new();
    let mut next = Some(id);
    while let Some(id) = next.filter(|_| missing.len() <= MAX_DEPTH as usize) {
        if inner.read(|index| index.manifest(&id))?.is_some() {
            break;
        }
        let path = manifest_path(&id);
        let unknown = || Error::NotFound { kind: "manifest", reference: remote.objects().full(&path) };
        let fetched = Fetched::get(inner, remote, &path)?.ok_or_else(unknown)?;
        let mut reader = fetched.manifest(remote, id)?;
        reader.check().map_err(|wrong| wrong.of(&remote.objects().full(&path)))?;
        next = reader.header.base;
        missing.push((id, fetched, reader.header));
    }
    let total = missing.iter().map(|(_, _, header)| header.entries * BLOCK as u64).sum();
    let progress = Progress { total, ..Progress::default() };
    let mut pull =
        Pull { inner, remote, sink: Sink::new(inner), blocks: 0, observer, progress, seen: HashMap::new() };
    for (id, manifest, _) in missing.iter().rev() {
        pull.blocks_of(*id, manifest)?;
    }
    let pending = pull.sink.sync()?;
    let (blocks, bytes) = (pull.blocks, pull.sink.bytes);
    for (id, manifest, _) in &missing {
        write_file(inner, "manifests", |out| {
            manifest.copy_to(out)?;
            Ok((id.to_string(), ()))
        })?;
    }
    if let Some(name) = name {
        write_name(inner, name, id)?;
    }
    // It may be here already, also as the base of another one, which is not listed.
    let existing = inner.read(|index| index.manifest(&id))?;
    inner.change(|index| {
        pending.add_to(index)?;
        for (number, (id, _, header)) in missing.iter().enumerate() {
            index.put_manifest(id, &row(header, number == 0, if number == 0 { bytes } else { 0 }))?;
        }
        if let Some(row) = &existing {
            index.put_manifest(&id, &ManifestRow { listed: true, ..row.clone() })?;
        }
        name.map_or(Ok(()), |name| index.set_name(name, Some(&id)))
    })?;
    Ok((id, blocks))
}

fn row(header: &Header, listed: bool, stored: u64) -> ManifestRow {
    ManifestRow {
        listed,
        parent: header.parent,
        base: header.base,
        len: header.len,
        content_len: header.content_len,
        created: header.created,
        depth: header.depth,
        entries: header.entries,
        chain_entries: header.chain_entries,
        stored,
    }
}

struct Pull<'a, 'o> {
    inner: &'a Inner,
    remote: &'a Remote,
    sink: Sink<'a>,
    blocks: u64,
    observer: &'a mut Observer<'o>,
    progress: Progress,
    /// Blocks that are in new packs.
    seen: HashMap<Id, ()>,
}

impl Pull<'_, '_> {
    /// Fetches the blocks that a manifest lists and the repository lacks.
    fn blocks_of(&mut self, id: Id, manifest: &Fetched<'_>) -> Result<()> {
        let path = places_path(&id);
        let wrong = |wrong: crate::format::Wrong| wrong.of(&self.remote.objects().full(&path));
        let unknown =
            || Error::NotFound { kind: "list of places", reference: self.remote.objects().full(&path) };
        let list = Fetched::get(self.inner, self.remote, &path)?.ok_or_else(unknown)?;
        let mut list = list.places(self.remote)?;
        let packs = list.packs.clone();
        let mut reader = manifest.manifest(self.remote, id)?;
        let mut batch = BTreeMap::new();
        loop {
            let entry =
                reader.next().map_err(|wrong| wrong.of(&self.remote.objects().full(&manifest_path(&id))))?;
            if let Some((_, Some(hash))) = entry {
                batch.insert(hash, list.next().map_err(wrong)?);
            }
            if batch.len() == AT_ONCE || entry.is_none() {
                self.fetch(&std::mem::take(&mut batch), &packs)?;
                self.progress.done = (self.progress.done + (AT_ONCE * BLOCK) as u64).min(self.progress.total);
                self.observer.tell(self.progress);
            }
            if entry.is_none() {
                return Ok(());
            }
        }
    }

    /// Fetches those of some blocks that the repository lacks.
    fn fetch(&mut self, batch: &BTreeMap<Id, Place>, packs: &[(Id, u64)]) -> Result<()> {
        let hashes: Vec<Id> = batch.keys().copied().collect();
        let known = self.inner.read(|index| index.find(&hashes))?;
        // The blocks of each frame, by pack and offset.
        let mut frames: BTreeMap<(u32, u32), (Place, Vec<(u8, Id)>)> = BTreeMap::new();
        for ((hash, place), known) in batch.iter().zip(known) {
            if known.is_none() && !self.seen.contains_key(hash) {
                let frame = frames.entry((place.pack, place.offset)).or_insert((*place, Vec::new()));
                frame.1.push((place.number, *hash));
            }
        }
        let mut decoder = Decoder::new().map_err(Error::memory("cannot decompress"))?;
        let mut encoder = Encoder::new().map_err(Error::memory("cannot compress"))?;
        let frames: Vec<_> = frames.into_values().collect();
        for of_pack in frames.chunk_by(|a, b| a.0.pack == b.0.pack) {
            let path = pack_path(&packs[of_pack[0].0.pack as usize].0);
            let range =
                |place: &Place| u64::from(place.offset)..u64::from(place.offset) + u64::from(place.stored);
            let ranges: Vec<Range<u64>> = of_pack.iter().map(|(place, _)| range(place)).collect();
            let unknown = || Error::NotFound { kind: "pack", reference: self.remote.objects().full(&path) };
            let stored = self.remote.objects().get_ranges(&path, &ranges)?.ok_or_else(unknown)?;
            for ((place, wanted), stored) in of_pack.iter().zip(stored) {
                let damaged = |what: String| Error::damaged(self.remote.objects().full(&path), what);
                let frame = decode(&mut decoder, &mut encoder, place, wanted, &stored).map_err(damaged)?;
                self.sink.push(&frame)?;
                self.blocks += wanted.len() as u64;
                self.progress.written += frame.bytes.len() as u64;
                self.seen.extend(frame.hashes.iter().map(|hash| (*hash, ())));
            }
        }
        self.index_many()
    }

    /// Adds the packs to the index once there are many, which limits the memory of the call.
    fn index_many(&mut self) -> Result<()> {
        if self.sink.pending() >= 1 << 20 {
            let pending = self.sink.sync()?;
            self.inner.change(|index| pending.add_to(index))?;
            self.seen.clear();
        }
        Ok(())
    }
}

/// Checks a frame, and returns one with the wanted blocks: the same one if most are wanted.
fn decode(
    decoder: &mut Decoder,
    encoder: &mut Encoder,
    place: &Place,
    wanted: &[(u8, Id)],
    stored: &[u8],
) -> Result<Frame, String> {
    let Some(encoding) = Encoding::from_byte(place.encoding) else {
        return Err(format!("the encoding {} is not known", place.encoding));
    };
    let blocks = usize::from(place.blocks);
    if blocks > FRAME_BLOCKS {
        return Err(format!("a frame has {blocks} blocks"));
    }
    let bytes = decoder.decode(stored, encoding, blocks)?;
    let hashes: Vec<Id> = bytes.chunks_exact(BLOCK).map(Id::of).collect();
    for (number, hash) in wanted {
        if hashes.get(usize::from(*number)) != Some(hash) {
            return Err(format!("the block {hash} at {} has other bytes", place.offset));
        }
    }
    if wanted.len() * 2 >= blocks {
        return Ok(Frame { encoding, hashes, bytes: stored.to_vec() });
    }
    let mut kept = Vec::with_capacity(wanted.len() * BLOCK);
    for (number, _) in wanted {
        kept.extend_from_slice(&bytes[usize::from(*number) * BLOCK..][..BLOCK]);
    }
    encoder.encode(&kept, wanted.iter().map(|(_, hash)| *hash).collect()).map_err(|error| error.to_string())
}
