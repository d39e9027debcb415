//! Pulling: receives blocks, then writes manifests, and then changes the index in one transaction.

use std::collections::HashSet;
use std::ops::Range;

use bytes::Bytes;
use rayon::prelude::*;

use super::known::Fetched;
use super::places::longest_places;
use super::places_path;
use crate::blocks::pack_path;
use crate::chain::manifest_path;
use crate::cores::on_all_cores;
use crate::error::{Error, Result};
use crate::format::BLOCK;
use crate::format::manifest::{Header, MAX_METADATA};
use crate::format::pack::{Decoder, Encoder, Encoding, FRAME_BLOCKS, Frame};
use crate::id::{Id, Reference};
use crate::index::{ManifestRow, Place};
use crate::inner::Inner;
use crate::progress::{Observer, Progress};
use crate::remote::Remote;
use crate::save::write_name;
use crate::sink::{Sink, write_file};

/// The number of blocks that are looked up at a time.
///
/// It is large, because blocks that are far from each other in a snapshot can be close to each other in a pack, and are
/// then fetched by one request.
const AT_ONCE: usize = 1 << 18;

/// The longest part of a pack that is in memory at a time.
const PART: u64 = 16 << 20;

/// Pulls a snapshot. Returns its id, and the number of blocks that the repository lacked.
pub(super) fn pull(
    inner: &Inner,
    remote: &Remote,
    id: &Reference,
    name: Option<&str>,
    observer: &mut Observer<'_>,
) -> Result<(Id, u64)> {
    let reference = id;
    let id = remote.resolve(reference.clone())?;
    match pull_id(inner, remote, id, name, observer) {
        Ok(blocks) => Ok((id, blocks)),
        // The snapshot was removed and collected during the pull.
        Err(Error::Damaged { .. }) if !remote.is_listed(&id)? => {
            let reference = format!("{reference} in {}", remote.url());
            Err(Error::NotFound { kind: "snapshot", reference })
        }
        Err(error) => Err(error),
    }
}

/// Pulls a snapshot. Returns the number of blocks that the repository lacked.
fn pull_id(
    inner: &Inner,
    remote: &Remote,
    id: Id,
    name: Option<&str>,
    observer: &mut Observer<'_>,
) -> Result<u64> {
    // Saves run meanwhile. They only add packs and manifests, so what the pull finds in the index stays there.
    let _files = inner.keep_files()?;
    let inner = &inner.patient();
    if let Some(name) = name {
        inner.read(|index| index.check_case(name))?;
    }
    let missing = missing_manifests(inner, remote, id)?;
    let total = missing
        .iter()
        .map(|(_, _, header)| header.entries.saturating_mul(BLOCK as u64))
        .fold(0, u64::saturating_add);
    let progress = Progress { total, ..Progress::default() };
    let (sink, seen) = (Sink::new(inner), HashSet::new());
    let mut pull = Pull { inner, remote, sink, blocks: 0, observer, progress, seen };
    for (id, manifest, _) in missing.iter().rev() {
        pull.blocks_of(*id, manifest)?;
    }
    let pending = pull.sink.sync()?;
    let (blocks, bytes) = (pull.blocks, pull.sink.bytes);
    // From the base up, so that a crash leaves no manifest without its base.
    for (id, manifest, _) in missing.iter().rev() {
        write_file(inner, "manifests", |out| {
            manifest.copy_to(out)?;
            Ok((id.to_string(), ()))
        })?;
    }
    let _writer = inner.lock_writer()?;
    let rows = rows(inner, id, &missing, bytes)?;
    if let Some(name) = name {
        // Another writer may have made a name meanwhile that differs only in case.
        inner.read(|index| index.check_case(name))?;
        write_name(inner, name, id)?;
    }
    inner.change(|index| {
        pending.add_to(index)?;
        for (id, row) in &rows {
            index.put_manifest(id, row)?;
        }
        name.map_or(Ok(()), |name| index.set_name(name, Some(&id)))
    })?;
    Ok(blocks)
}

/// Returns the rows of the manifests that a pull adds or lists. The caller holds the lock of the writer.
///
/// Another pull or a save may have added some of the manifests meanwhile, and may have listed them.
fn rows(
    inner: &Inner,
    id: Id,
    missing: &[(Id, Fetched<'_>, Header)],
    stored: u64,
) -> Result<Vec<(Id, ManifestRow)>> {
    inner.read(|index| {
        let mut rows = Vec::with_capacity(missing.len() + 1);
        for (missing, _, header) in missing {
            let stored = if *missing == id { stored } else { 0 };
            let row = index.manifest(missing)?;
            rows.push((*missing, row.unwrap_or_else(|| ManifestRow::new(header, false, stored))));
        }
        // The base of the last one, or the snapshot itself, was in the index when the pull began.
        let below = missing.last().map_or(Some(id), |(_, _, header)| header.base);
        if let Some(below) = below {
            let gone =
                || Error::damaged("index.redb", format!("the manifest {below} was removed during the pull"));
            let row = index.manifest(&below)?.ok_or_else(gone)?;
            if below == id {
                rows.push((id, row));
            }
        }
        // The manifest of the snapshot is the first one.
        if let Some((_, row)) = rows.first_mut() {
            row.listed = true;
        }
        Ok(rows)
    })
}

/// Fetches the manifests of a chain that the repository lacks, from the top down.
fn missing_manifests<'a>(
    inner: &'a Inner,
    remote: &Remote,
    id: Id,
) -> Result<Vec<(Id, Fetched<'a>, Header)>> {
    let mut missing: Vec<(Id, Fetched<'_>, Header)> = Vec::new();
    let mut next = Some(id);
    while let Some(id) = next {
        let local = inner.read(|index| index.manifest(&id))?;
        let fetched = match &local {
            Some(_) => None,
            None => Some(fetch_manifest(inner, remote, id)?),
        };
        let depth = fetched.as_ref().map(|(_, header)| header.depth).or(local.map(|row| row.depth));
        // The depths end at 0, so this also limits the length of the chain.
        if let Some((above, _, header)) = missing.last()
            && depth.and_then(|depth| depth.checked_add(1)) != Some(header.depth)
        {
            let what = format!("its depth is {}, which does not fit that of its base {id}", header.depth);
            return Err(Error::damaged(remote.objects().full(&manifest_path(above)), what));
        }
        let Some((fetched, mut header)) = fetched else { break };
        next = header.base;
        // They may be long, and a chain has many manifests. The manifest itself is in a file.
        header.labels.clear();
        header.attachments.clear();
        missing.push((id, fetched, header));
    }
    Ok(missing)
}

/// Fetches a manifest, and compares it with its id.
fn fetch_manifest<'a>(inner: &'a Inner, remote: &Remote, id: Id) -> Result<(Fetched<'a>, Header)> {
    let path = manifest_path(&id);
    let object = remote.objects().full(&path);
    let fetched = Fetched::get(inner, remote, &path, longest_manifest)?
        .ok_or_else(|| Error::damaged(&*object, "it is missing, and a snapshot of the remote needs it"))?;
    let mut reader = fetched.manifest(remote, id)?;
    reader.check().map_err(|wrong| wrong.of(&object))?;
    Ok((fetched, reader.header))
}

/// Returns the greatest length of a manifest from its first bytes: that of one with runs of one block.
fn longest_manifest(first: &[u8]) -> u64 {
    let claimed = first.get(120..).and_then(|bytes| bytes.first_chunk());
    let entries = claimed.map_or(0, |bytes| u64::from_le_bytes(*bytes));
    entries.saturating_mul(49).saturating_add(MAX_METADATA + 1024)
}

struct Pull<'a, 'o> {
    inner: &'a Inner,
    remote: &'a Remote,
    sink: Sink<'a>,
    blocks: u64,
    observer: &'a mut Observer<'o>,
    progress: Progress,
    /// The blocks that are in new packs.
    seen: HashSet<Id>,
}

impl Pull<'_, '_> {
    /// Fetches the blocks that a manifest lists and the repository lacks.
    fn blocks_of(&mut self, id: Id, manifest: &Fetched<'_>) -> Result<()> {
        let path = places_path(&id);
        let wrong = |wrong: crate::format::Wrong| wrong.of(&self.remote.objects().full(&path));
        let unknown = || {
            Error::damaged(
                self.remote.objects().full(&path),
                "it is missing, and a snapshot of the remote needs it",
            )
        };
        let mut reader = manifest.manifest(self.remote, id)?;
        // The manifest has been compared with its id, so this is the number of blocks that it lists.
        let longest = longest_places(reader.header.entries);
        let list = Fetched::get(self.inner, self.remote, &path, |_| longest)?.ok_or_else(unknown)?;
        let mut list = list.places(self.remote)?;
        let packs = list.packs.clone();
        let mut batch = Vec::new();
        loop {
            let entry =
                reader.next().map_err(|wrong| wrong.of(&self.remote.objects().full(&manifest_path(&id))))?;
            if let Some((_, Some(hash))) = entry {
                batch.push((hash, list.next().map_err(wrong)?));
            }
            if batch.len() == AT_ONCE || entry.is_none() {
                self.fetch(&mut batch, &packs, &path)?;
                batch.clear();
            }
            if entry.is_none() {
                return Ok(());
            }
        }
    }

    /// Fetches those of some blocks that the repository lacks.
    ///
    /// `packs` are those of the places at the path `list`.
    fn fetch(&mut self, batch: &mut Vec<(Id, Place)>, packs: &[(Id, u64)], list: &str) -> Result<()> {
        let count = batch.len() as u64;
        batch.sort_unstable_by_key(|(hash, _)| *hash);
        batch.dedup_by_key(|(hash, _)| *hash);
        let hashes: Vec<Id> = batch.iter().map(|(hash, _)| *hash).collect();
        let mut known = self.inner.read(|index| index.find(&hashes))?.into_iter();
        batch.retain(|(hash, _)| known.next().flatten().is_none() && !self.seen.contains(hash));
        batch.sort_unstable_by_key(|(_, place)| (place.pack, place.offset, place.number));
        let total = batch.len() as u64;
        self.progress.done += (count - total) * BLOCK as u64;
        let wanted: Vec<Wanted<'_>> =
            batch.chunk_by(|a, b| (a.1.pack, a.1.offset) == (b.1.pack, b.1.offset)).map(Wanted).collect();
        for of_pack in wanted.chunk_by(|a, b| a.place().pack == b.place().pack) {
            let (pack, _) = packs[of_pack[0].place().pack as usize];
            // Otherwise, a few bytes of a pack could become many frames in memory.
            if let Some(two) = of_pack.windows(2).find(|two| two[1].range().start < two[0].range().end) {
                let what = format!(
                    "the frames at {} and {} of {pack} overlap",
                    two[0].place().offset,
                    two[1].place().offset
                );
                return Err(Error::damaged(self.remote.objects().full(list), what));
            }
            let mut rest = of_pack;
            while let Some(first) = rest.first() {
                let end = first.range().start + PART;
                let (part, behind) =
                    rest.split_at(rest.partition_point(|frame| frame.range().end <= end).max(1));
                self.fetch_part(&pack, part)?;
                rest = behind;
            }
        }
        Ok(())
    }

    /// Fetches frames that are all in one part of a pack.
    fn fetch_part(&mut self, pack: &Id, wanted: &[Wanted<'_>]) -> Result<()> {
        let path = pack_path(pack);
        let damaged = |what: String| Error::damaged(self.remote.objects().full(&path), what);
        let ranges: Vec<Range<u64>> = wanted.iter().map(Wanted::range).collect();
        let stored = self
            .remote
            .objects()
            .get_ranges(&path, &ranges)?
            .ok_or_else(|| damaged("it is missing, and a snapshot of the remote needs it".to_owned()))?;
        let coders = || Ok::<_, std::io::Error>((Decoder::new()?, Encoder::new()?));
        let frame = |coders: &mut std::io::Result<(Decoder, Encoder)>, (wanted, stored): (&Wanted, Bytes)| {
            let (decoder, encoder) = coders.as_mut().map_err(|error| Error::Memory {
                action: "cannot decompress",
                source: std::io::Error::new(error.kind(), error.to_string()),
            })?;
            wanted.frame(decoder, encoder, &stored).map_err(damaged)
        };
        let frames: Vec<Frame> =
            on_all_cores(|| wanted.par_iter().zip(stored).map_init(coders, frame).collect::<Result<_>>())?;
        for (wanted, frame) in wanted.iter().zip(frames) {
            self.sink.push(&frame)?;
            self.blocks += wanted.0.len() as u64;
            self.progress.written += frame.bytes.len() as u64;
            self.progress.done += (wanted.0.len() * BLOCK) as u64;
            self.seen.extend(frame.hashes);
        }
        self.observer.tell(self.progress);
        self.index_many()
    }

    /// Adds the packs to the index once they have many blocks. This limits the memory of the call.
    fn index_many(&mut self) -> Result<()> {
        if self.sink.pending() >= 1 << 20 {
            let pending = self.sink.sync()?;
            let _writer = self.inner.lock_writer()?;
            self.inner.change(|index| pending.add_to(index))?;
            self.seen.clear();
        }
        Ok(())
    }
}

/// The blocks of one frame that are wanted, in ascending order; at least one.
struct Wanted<'a>(&'a [(Id, Place)]);

impl Wanted<'_> {
    fn place(&self) -> &Place {
        &self.0[0].1
    }

    /// Returns the range of the frame in its pack.
    fn range(&self) -> Range<u64> {
        let start = u64::from(self.place().offset);
        start..start + u64::from(self.place().stored)
    }

    /// Checks the frame.
    ///
    /// Returns it if at least half of its blocks are wanted, or else a new frame with the wanted ones.
    fn frame(&self, decoder: &mut Decoder, encoder: &mut Encoder, stored: &[u8]) -> Result<Frame, String> {
        let place = self.place();
        let Some(encoding) = Encoding::from_byte(place.encoding) else {
            return Err(format!("the encoding {} is not known", place.encoding));
        };
        let blocks = usize::from(place.blocks);
        if blocks > FRAME_BLOCKS {
            return Err(format!("a frame has {blocks} blocks"));
        }
        let bytes = decoder.decode(stored, encoding, blocks)?;
        let hashes: Vec<Id> = bytes.chunks_exact(BLOCK).map(Id::of).collect();
        for (hash, wanted) in self.0 {
            if hashes.get(usize::from(wanted.number)) != Some(hash) {
                return Err(format!("the block {hash} at {} has other bytes", place.offset));
            }
        }
        if self.0.len() * 2 >= blocks {
            return Ok(Frame { encoding, hashes, bytes: stored.to_vec() });
        }
        let mut kept = Vec::with_capacity(self.0.len() * BLOCK);
        for (_, wanted) in self.0 {
            kept.extend_from_slice(&bytes[usize::from(wanted.number) * BLOCK..][..BLOCK]);
        }
        encoder
            .encode(&kept, self.0.iter().map(|(hash, _)| *hash).collect())
            .map_err(|error| error.to_string())
    }
}
