//! Pushing: sends packs, places and manifests, and then makes the snapshot visible.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io::BufWriter;
use std::thread;
use std::time::{Duration, Instant};

use super::known::{Known, is_damage};
use super::places::PlacesWriter;
use super::{Listed, places_path, snapshot_path};
use crate::blocks::{BATCH, Blocks, lock, pack_path};
use crate::chain::{Chain, for_each_hashes, manifest_path, open_manifest};
use crate::collect::{Marks, mark_block, pack_contents};
use crate::error::{Error, Result};
use crate::format::pack::{Encoder, FRAME_BLOCKS};
use crate::format::{BLOCK, Sequential};
use crate::id::{Id, Reference};
use crate::index::{ManifestRow, PackRow};
use crate::inner::Inner;
use crate::progress::{Observer, Progress};
use crate::remote::Remote;
use crate::remote::lease::Lease;
use crate::sink::Sink;

/// A local pack is sent as it is if the remote lacks at least this many percent of its blocks.
///
/// Otherwise the blocks that it lacks are sent in a new pack.
const PERCENT: u64 = 80;

/// The time between two checks whether a collection has ended.
const PAUSE: Duration = Duration::from_secs(1);

/// Pushes a snapshot. Returns its id, and the number of blocks that the remote lacked.
pub(super) fn push(
    inner: &Inner,
    remote: &Remote,
    id: &Reference,
    name: Option<&str>,
    observer: &mut Observer<'_>,
) -> Result<(Id, u64)> {
    let _files = inner.keep_files()?;
    let _known = Known::lock(inner, remote)?;
    let inner = &inner.patient();
    let (id, row) = inner.resolve(id)?;
    if let Some(name) = name {
        // Before anything is sent. It is checked again before the name moves.
        remote.check_case(name)?;
    }
    let lease = lease(inner, remote)?;
    let known = Known::open(inner, remote)?;
    let progress = Progress::default();
    let mut push = Push { inner, remote, lease, known, observer, progress };
    let blocks = match push.send(id) {
        Err(error) if is_damage(&error) => {
            Known::remove(inner, remote)?;
            push.known = Known::open(inner, remote)?;
            push.progress = Progress { written: push.progress.written, ..Progress::default() };
            push.send(id)?
        }
        sent => sent?,
    };
    push.publish(id, &row, name)?;
    Ok((id, blocks))
}

/// Takes a lease while no collection is deleting.
fn lease(inner: &Inner, remote: &Remote) -> Result<Lease> {
    let began = Instant::now();
    loop {
        // A collection announces itself, and then looks for leases. So at least one of the two sees the other.
        let lease = remote.lease()?;
        if !remote.is_collected()? {
            return Ok(lease);
        }
        drop(lease);
        if began.elapsed() > inner.wait {
            return Err(Error::Busy {
                place: remote.url().to_owned(),
                lock: "the end of a collection",
                seconds: inner.wait.as_secs(),
            });
        }
        thread::sleep(PAUSE.min(inner.wait));
    }
}

struct Push<'a, 'o> {
    inner: &'a Inner,
    remote: &'a Remote,
    lease: Lease,
    known: Known<'a>,
    observer: &'a mut Observer<'o>,
    progress: Progress,
}

impl Push<'_, '_> {
    /// Sends all that a snapshot needs and the remote lacks. Returns the number of blocks.
    fn send(&mut self, id: Id) -> Result<u64> {
        let missing = self.missing_manifests(id)?;
        let blocks = self.send_blocks(&missing)?;
        for id in missing.iter().rev() {
            self.send_manifest(*id)?;
        }
        Ok(blocks)
    }

    /// Returns the manifests of a chain that have to be sent, from the top down.
    ///
    /// A manifest that is there is not enough. If the lease of an earlier push ended before its last request arrived, a
    /// collection may have deleted the packs meanwhile, or what is below the manifest.
    fn missing_manifests(&self, id: Id) -> Result<Vec<Id>> {
        let mut missing = Vec::new();
        for id in Chain::open(&*self.inner.storage, id)?.ids() {
            let exists = self.remote.objects().head(&manifest_path(&id))?.is_some();
            if !exists || !self.has_packs(&id)? {
                missing.push(id);
            } else if self.remote.is_listed(&id)? {
                // A collection keeps all that a listed snapshot needs.
                break;
            }
        }
        Ok(missing)
    }

    /// Returns whether the remote has the places of a manifest, and the packs in which they are.
    fn has_packs(&self, id: &Id) -> Result<bool> {
        match self.remote.packs_of(id) {
            Ok(packs) => {
                Ok(packs.is_some_and(|packs| packs.iter().all(|(pack, _)| self.known.packs.contains(pack))))
            }
            // They are sent again.
            Err(Error::Damaged { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Calls `take` with the hashes that a manifest lists, in batches that ascend, each hash once in a batch.
    fn hashes(&self, id: Id, take: impl FnMut(&[Id]) -> Result<()>) -> Result<()> {
        for_each_hashes(&mut open_manifest(&*self.inner.storage, id)?, take)
    }

    /// Sends all blocks that the manifests list and the remote lacks. Returns their number.
    fn send_blocks(&mut self, manifests: &[Id]) -> Result<u64> {
        // The headers are not compared with anything yet.
        let mut listed = 0_u64;
        for id in manifests {
            listed = listed.saturating_add(open_manifest(&*self.inner.storage, *id)?.header.entries);
        }
        if listed == 0 {
            return Ok(0);
        }
        self.known.learn(listed.saturating_mul(BLOCK as u64))?;
        self.check_learned(manifests)?;
        let (marks, rows) = self.mark(manifests)?;
        let blocks = marks.values().map(|marks| marks.live()).sum();
        let is_whole = |number: &u32, marks: &Marks| {
            let row = &rows[number];
            marks.live() * 100 >= u64::from(row.blocks) * PERCENT || self.known.packs.contains(&row.id)
        };
        let (whole, parts): (BTreeMap<_, _>, BTreeMap<_, _>) =
            marks.into_iter().partition(|(number, marks)| is_whole(number, marks));
        self.progress.total = whole.keys().map(|number| rows[number].len).sum::<u64>()
            + parts.values().map(|marks| marks.live() * BLOCK as u64).sum::<u64>();
        for number in whole.into_keys() {
            self.send_pack(&rows[&number])?;
        }
        self.send_parts(parts, &rows)?;
        Ok(blocks)
    }

    /// Checks the packs on which this push would rely because of what other machines have pushed.
    fn check_learned(&mut self, manifests: &[Id]) -> Result<()> {
        let learned = self.known.learned()?;
        if learned.is_empty() {
            return Ok(());
        }
        let mut relied: BTreeMap<u32, u64> = BTreeMap::new();
        for id in manifests {
            self.hashes(*id, |hashes| {
                for place in self.known.find(hashes)?.into_iter().flatten() {
                    if learned.contains(&place.pack) {
                        *relied.entry(place.pack).or_default() += 1;
                    }
                }
                Ok(())
            })?;
        }
        self.known.check_learned(&relied, || self.lease.keep())
    }

    /// Marks the blocks in local packs that the manifests list and the remote lacks.
    fn mark(&mut self, manifests: &[Id]) -> Result<(BTreeMap<u32, Marks>, BTreeMap<u32, PackRow>)> {
        let (mut marks, mut rows) = (BTreeMap::new(), BTreeMap::new());
        for id in manifests {
            for_each_hashes(&mut open_manifest(&*self.inner.storage, *id)?, |hashes| {
                // A batch can wait for a writer of the index.
                self.lease.keep()?;
                let known = self.known.find(hashes)?;
                let lacking: Vec<Id> = hashes
                    .iter()
                    .zip(known)
                    .filter(|(_, place)| place.is_none())
                    .map(|(hash, _)| *hash)
                    .collect();
                // A save or a pull may add packs and move blocks to them meanwhile.
                let places = self.inner.read(|index| {
                    let places = index.find(&lacking)?;
                    for number in places.iter().flatten().map(|place| place.pack) {
                        if let Entry::Vacant(row) = rows.entry(number)
                            && let Some(found) = index.pack(number)?
                        {
                            row.insert(found);
                        }
                    }
                    Ok(places)
                })?;
                for (hash, place) in lacking.iter().zip(places) {
                    let place = place.ok_or_else(|| {
                        Error::damaged("index.redb", format!("it does not contain the block {hash} of {id}"))
                    })?;
                    mark_block(self.inner, &rows, &mut marks, hash, &place)?;
                }
                Ok(())
            })?;
        }
        Ok((marks, rows))
    }

    /// Sends a local pack, unless an earlier push has sent it.
    fn send_pack(&mut self, row: &PackRow) -> Result<()> {
        let contents = pack_contents(self.inner, &row.id)?;
        let path = pack_path(&row.id);
        if !self.known.packs.contains(&row.id) {
            self.send_file(&path, &path)?;
        }
        self.known.add_pack(row.id, row.len, &contents)?;
        self.progress.done += row.len;
        self.observer.tell(self.progress);
        Ok(())
    }

    /// Sends marked blocks in new packs.
    fn send_parts(&mut self, parts: BTreeMap<u32, Marks>, rows: &BTreeMap<u32, PackRow>) -> Result<()> {
        let failed = "cannot compress";
        let inner = self.inner;
        let mut blocks = Blocks::new(inner);
        let mut encoder = Encoder::new().map_err(Error::memory(failed))?;
        let mut sink = Sink::temporary(inner);
        for (number, marks) in parts {
            let hashes = marks.hashes(inner, &rows[&number].id)?;
            for hashes in hashes.chunks(FRAME_BLOCKS * 64) {
                let bytes = std::sync::Mutex::new(vec![0; hashes.len() * BLOCK]);
                blocks.read(hashes, |number, block| {
                    lock(&bytes)[number * BLOCK..][..BLOCK].copy_from_slice(block);
                    Ok(())
                })?;
                let bytes = bytes.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
                for (hashes, bytes) in hashes.chunks(FRAME_BLOCKS).zip(bytes.chunks(FRAME_BLOCKS * BLOCK)) {
                    sink.push(&encoder.encode(bytes, hashes.to_vec()).map_err(Error::memory(failed))?)?;
                }
                self.send_ended(&mut sink)?;
            }
        }
        sink.end_pack()?;
        self.send_ended(&mut sink)
    }

    /// Sends the packs that a sink has ended.
    fn send_ended(&mut self, sink: &mut Sink<'_>) -> Result<()> {
        for (path, row, contents) in sink.take_temporary() {
            let sent = self.send_file(&path, &pack_path(&row.id));
            // If this fails, a collection removes the file.
            let _ = self.inner.storage.remove(&path);
            sent?;
            self.known.add_pack(row.id, row.len, &contents)?;
            self.progress.done += contents.hashes.len() as u64 * BLOCK as u64;
            self.observer.tell(self.progress);
        }
        Ok(())
    }

    /// Sends the places of the blocks of a manifest, and the manifest.
    fn send_manifest(&mut self, id: Id) -> Result<()> {
        let inner = self.inner;
        let path = inner.temporary("places");
        let written = self.write_places(id, &path).and_then(|()| self.send_file(&path, &places_path(&id)));
        // If this fails, a collection removes the file.
        let _ = inner.storage.remove(&path);
        written?;
        let manifest = manifest_path(&id);
        self.send_file(&manifest, &manifest)?;
        self.known.note_pushed(id)
    }

    fn write_places(&self, id: Id, path: &str) -> Result<()> {
        let inner = self.inner;
        let failed = || Error::file("cannot write", inner.path(path));
        let rows = self.known.rows()?;
        let file = inner.storage.create(path).map_err(failed())?;
        let mut places = PlacesWriter::new(BufWriter::new(file)).map_err(failed())?;
        let mut reader = open_manifest(&*inner.storage, id)?;
        let mut hashes = Vec::with_capacity(BATCH);
        loop {
            let entry = reader.next().map_err(|wrong| wrong.of(&manifest_path(&id)))?;
            hashes.extend(entry.and_then(|entry| entry.1));
            if hashes.len() == BATCH || entry.is_none() {
                let mut sorted = hashes.clone();
                sorted.sort_unstable();
                sorted.dedup();
                let found = self.known.find(&sorted)?;
                for hash in hashes.drain(..) {
                    let place = sorted.binary_search(&hash).ok().and_then(|at| found[at]);
                    let pack = place.and_then(|place| rows.get(&place.pack));
                    let (Some(place), Some(pack)) = (place, pack) else {
                        return Err(self.known.damaged(format!("it lacks the block {hash}, which was sent")));
                    };
                    places.push(&place, || (pack.id, pack.len)).map_err(failed())?;
                }
            }
            if entry.is_none() {
                places.finish().map_err(failed())?;
                return Ok(());
            }
        }
    }

    /// Makes the snapshot visible, and moves a name.
    fn publish(&mut self, id: Id, row: &ManifestRow, name: Option<&str>) -> Result<()> {
        let listed = Listed {
            parent: row.parent.map(|parent| parent.to_string()),
            len: row.len,
            content_len: row.content_len,
            created: row.created,
            stored: row.stored,
        };
        let bytes = serde_json::to_vec(&listed).map_err(|error| Error::invalid(error.to_string()))?;
        let path = snapshot_path(&id);
        let objects = self.remote.objects();
        // Before the snapshot is listed, the lease protects what it needs.
        self.lease.renew()?;
        if objects.head(&path)?.is_none() {
            objects.put(&path, bytes)?;
            // From here on, a collection finds what the snapshot needs.
            let gone =
                || Error::NotFound { kind: "object that was just written", reference: objects.full(&path) };
            let listed = objects.head(&path)?.ok_or_else(gone)?;
            if let Err(error) = self.lease.check_at(listed.modified) {
                if matches!(error, Error::Expired { .. }) {
                    // A collection may have begun before the snapshot was there, and delete what it needs.
                    objects.delete(&path)?;
                }
                return Err(error);
            }
        }
        if let Some(name) = name {
            let current = self.remote.name(name)?.map(|name| name.id);
            let moved = self.remote.move_name(name, current, id)?;
            if moved.id != id && !moved.also.contains(&id) {
                return Err(Error::Conflict { name: name.to_owned() });
            }
        }
        Ok(())
    }

    /// Sends a file of the repository.
    fn send_file(&mut self, path: &str, object: &str) -> Result<()> {
        let failed = || Error::file("cannot read", self.inner.path(path));
        let file = self.inner.storage.open(path).map_err(failed())?;
        let len = file.len().map_err(failed())?;
        let mut reader = Sequential::new(file).map_err(failed())?;
        self.remote.objects().put_from(object, len, &mut reader, &mut || self.lease.keep())?;
        self.progress.written += len;
        self.observer.tell(self.progress);
        Ok(())
    }
}
