//! Reads, hashes and compresses the blocks of a save, and writes them to packs.

use std::collections::{HashMap, HashSet};
use std::io::ErrorKind;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use memsnap::Snapshot;
use rayon::prelude::*;

use crate::blocks::{lock, open_pack};
use crate::cores::on_all_cores;
use crate::error::{Error, Result};
use crate::format::pack::{Encoder, FRAME_BLOCKS, Frame};
use crate::format::runs::Entry;
use crate::format::{BLOCK, position};
use crate::id::Id;
use crate::index::{Place, Reader};
use crate::inner::Inner;
use crate::progress::{Observer, Progress};
use crate::sink::{Pending, Sink};
use crate::source::Source;

/// The number of adjacent blocks that a thread reads and hashes at a time.
const TASK: usize = 64;

/// The number of blocks in a batch: 16 MiB of blocks.
const BATCH: u64 = 4096;

/// The number of batches that can wait for the thread that writes packs.
const WAITING: usize = 2;

/// The number of new blocks after which their packs are added to the index.
///
/// This limits the memory of a save. No manifest refers to these blocks until the save ends.
const UNINDEXED: usize = 1 << 20;

/// The blocks to save.
pub(super) struct Job<'a> {
    pub(super) inner: &'a Inner,
    pub(super) source: &'a dyn Source,
    /// A snapshot with which blocks are compared, if some of the blocks may be equal to its blocks.
    pub(super) old: Option<&'a Snapshot>,
    pub(super) ranges: &'a [Range<u64>],
}

/// The result of saving blocks.
pub(super) struct Stored {
    /// The packs that are not in the index yet.
    pub(super) pending: Pending,
    pub(super) bytes: u64,
    pub(super) blocks: u64,
}

/// Adjacent blocks that were read.
struct Read {
    bytes: Vec<u8>,
    /// The number, the hash and the position in `bytes` of the blocks that differ.
    blocks: Vec<(Entry, usize)>,
}

impl Job<'_> {
    /// Saves the blocks, and calls `list` with each in ascending order.
    pub(super) fn run(
        &self,
        list: &mut dyn FnMut(Entry) -> Result<()>,
        observer: &mut Observer<'_>,
    ) -> Result<Stored> {
        // The hashes of blocks that were sent to the writer and are not in the index.
        let sent = Mutex::new(HashSet::new());
        thread::scope(|scope| {
            let (sender, frames) = sync_channel(WAITING);
            let writer = scope.spawn(|| write(self.inner, frames, &sent));
            let read = self.read(list, observer, &sent, sender);
            // The writer ends when the sender is dropped. If both fail, the error of the writer is the cause.
            let written = writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            read.map(|()| written)
        })
    }

    /// Reads the blocks, and sends those that the repository lacks to the writer.
    fn read(
        &self,
        list: &mut dyn FnMut(Entry) -> Result<()>,
        observer: &mut Observer<'_>,
        sent: &Mutex<HashSet<Id>>,
        sender: SyncSender<Vec<Frame>>,
    ) -> Result<()> {
        let total = self.ranges.iter().map(|range| range.end - range.start).sum::<u64>() * BLOCK as u64;
        let mut progress = Progress { total, ..Progress::default() };
        let tasks = self.ranges.iter().flat_map(|range| {
            range.clone().step_by(TASK).map(|first| first..range.end.min(first + TASK as u64))
        });
        let mut tasks = tasks.peekable();
        let mut usable = Usable { inner: self.inner, packs: HashMap::new() };
        while tasks.peek().is_some() {
            let mut blocks = 0;
            let mut batch: Vec<Range<u64>> = Vec::new();
            while let Some(task) = tasks.next_if(|_| blocks < BATCH) {
                blocks += task.end - task.start;
                batch.push(task);
            }
            let read: Vec<Read> = on_all_cores(|| {
                batch.into_par_iter().map(|task| self.read_task(task)).collect::<Result<_>>()
            })?;
            let frames = encode(&self.unknown(&read, sent, &mut usable)?)?;
            for (entry, _) in read.iter().flat_map(|read| &read.blocks) {
                list(*entry)?;
            }
            progress.done += blocks * BLOCK as u64;
            progress.written += frames.iter().map(|frame| frame.bytes.len() as u64).sum::<u64>();
            // If the writer has failed, `run` returns its error.
            if !frames.is_empty() && sender.send(frames).is_err() {
                break;
            }
            observer.tell(progress);
        }
        Ok(())
    }

    fn read_task(&self, task: Range<u64>) -> Result<Read> {
        let failed = "cannot read the bytes to save";
        let len = position(task.end - task.start);
        let mut bytes = vec![0; len];
        self.source.read_at(&mut bytes, task.start * BLOCK as u64).map_err(Error::memory(failed))?;
        let mut old = Vec::new();
        if let Some(snapshot) = self.old {
            old.resize(len, 0);
            Source::read_at(snapshot, &mut old, task.start * BLOCK as u64).map_err(Error::memory(failed))?;
        }
        let mut blocks = Vec::new();
        for (block, at) in task.zip((0..len).step_by(BLOCK)) {
            let new = &bytes[at..at + BLOCK];
            if old.get(at..at + BLOCK) != Some(new) {
                let hash = if is_zero(new) { None } else { Some(Id::of(new)) };
                blocks.push(((block, hash), at));
            }
        }
        Ok(Read { bytes, blocks })
    }

    /// Returns the blocks that the repository lacks, each once, and adds them to `sent`.
    fn unknown<'r>(
        &self,
        read: &'r [Read],
        sent: &Mutex<HashSet<Id>>,
        usable: &mut Usable<'_>,
    ) -> Result<Vec<(Id, &'r [u8])>> {
        let mut hashes: Vec<Id> =
            read.iter().flat_map(|read| &read.blocks).filter_map(|block| block.0.1).collect();
        if hashes.is_empty() {
            return Ok(Vec::new());
        }
        hashes.sort_unstable();
        hashes.dedup();
        // `sent` is read before the index, because the writer adds blocks to the index before it removes them from
        // `sent`.
        let in_packs: Vec<bool> = {
            let sent = lock(sent);
            hashes.iter().map(|hash| sent.contains(hash)).collect()
        };
        let places = self.inner.read(|index| {
            let places = index.find(&hashes)?;
            places
                .into_iter()
                .map(|place| place.map_or(Ok(false), |place| usable.check(index, &place)))
                .collect()
        });
        let places: Vec<bool> = places?;
        let known = in_packs.into_iter().zip(places).map(|(sent, usable)| sent || usable);
        let mut unknown: HashSet<Id> =
            hashes.iter().zip(known).filter(|(_, known)| !known).map(|(hash, _)| *hash).collect();
        lock(sent).extend(&unknown);
        let blocks = read.iter().flat_map(|read| read.blocks.iter().map(move |block| (read, block)));
        let new = blocks.filter_map(|(read, ((_, hash), at))| {
            let hash = hash.filter(|hash| unknown.remove(hash))?;
            Some((hash, &read.bytes[*at..*at + BLOCK]))
        });
        Ok(new.collect())
    }
}

/// The packs on which a save relies, and whether their files are there.
///
/// A block in a file that is missing or cut is written again, so that it is stored again.
struct Usable<'a> {
    inner: &'a Inner,
    packs: HashMap<u32, bool>,
}

impl Usable<'_> {
    fn check(&mut self, index: &Reader, place: &Place) -> Result<bool> {
        if let Some(usable) = self.packs.get(&place.pack) {
            return Ok(*usable);
        }
        let usable = match index.pack(place.pack)?.map(|row| open_pack(self.inner, &row)) {
            None | Some(Err(Error::Damaged { .. })) => false,
            Some(Err(error)) if error.kind() == ErrorKind::NotFound => false,
            Some(opened) => opened.map(|_| true)?,
        };
        self.packs.insert(place.pack, usable);
        Ok(usable)
    }
}

/// Compresses blocks, in their order.
fn encode(blocks: &[(Id, &[u8])]) -> Result<Vec<Frame>> {
    let failed = "cannot compress";
    let encode = |encoder: &mut std::io::Result<Encoder>, blocks: &[(Id, &[u8])]| {
        let mut bytes = Vec::with_capacity(blocks.len() * BLOCK);
        for (_, block) in blocks {
            bytes.extend_from_slice(block);
        }
        let encoder = encoder
            .as_mut()
            .map_err(|error| Error::Memory { action: failed, source: error.kind().into() })?;
        let hashes = blocks.iter().map(|(hash, _)| *hash).collect();
        encoder.encode(&bytes, hashes).map_err(Error::memory(failed))
    };
    on_all_cores(|| blocks.par_chunks(FRAME_BLOCKS).map_init(Encoder::new, encode).collect())
}

/// Writes frames to packs until the sender is dropped.
fn write(inner: &Inner, frames: Receiver<Vec<Frame>>, sent: &Mutex<HashSet<Id>>) -> Result<Stored> {
    let mut sink = Sink::new(inner);
    for batch in frames {
        for frame in &batch {
            sink.push(frame)?;
        }
        if sink.pending() >= UNINDEXED {
            let pending = sink.sync()?;
            inner.change(|index| pending.add_to(index))?;
            let mut sent = lock(sent);
            for hash in pending.hashes() {
                sent.remove(hash);
            }
        }
    }
    let pending = sink.sync()?;
    Ok(Stored { pending, bytes: sink.bytes, blocks: sink.blocks })
}

/// Returns whether all bytes of a block are zero.
pub(crate) fn is_zero(block: &[u8]) -> bool {
    static ZEROES: [u8; BLOCK] = [0; BLOCK];
    block == ZEROES
}
