//! Garbage collection in a remote, to which other machines may be pushing.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use super::places::Packs;
use super::{ids_below, places_path};
use crate::blocks::pack_path;
use crate::chain::manifest_path;
use crate::collect::{Collect, Collected};
use crate::error::{Error, Result};
use crate::id::Id;
use crate::remote::Remote;
use crate::remote::lease::Lease;
use crate::remote::objects::DELETED_AT_ONCE;

/// The number of the newest entries of a name that are kept.
const ENTRIES: usize = 2;

/// How often the listed snapshots are read again because some were removed while they were read.
const TRIES: usize = 3;

/// How long a collection waits for running pushes.
///
/// Pushes that begin in this time wait for the collection.
const PATIENCE: Duration = Duration::from_secs(20);

/// The time between two checks whether the pushes have ended.
const PAUSE: Duration = Duration::from_millis(200);

/// How many manifests are read at a time, between two looks at the announcement.
const AT_ONCE: usize = 64;

/// The bytes of a manifest that are read: its header without labels and attachments.
const HEADER: usize = 136;

/// How many bytes of the end of places are read: those of the list of some 100 packs.
const END: u64 = 4096;

/// What an object that is marked may be.
#[derive(Default)]
struct Needed {
    manifests: BTreeSet<Id>,
    /// The packs, each with a manifest that needs it.
    packs: BTreeMap<Id, Id>,
}

impl Remote {
    /// Deletes the objects that no snapshot of the remote needs.
    ///
    /// This takes two calls, because other machines may be pushing. The first call marks the objects that no snapshot
    /// needs. A later call deletes the objects that have been marked for the grace time and are still not needed. If the
    /// grace time is zero, one call does both.
    ///
    /// Objects are deleted only while no push is running. The call waits up to 20 s for running pushes. If they have not
    /// ended by then, it deletes nothing, and a later call deletes the objects. Pushes that begin meanwhile wait.
    ///
    /// # Errors
    ///
    /// - [`Error::Damaged`] if a manifest is damaged, or if a pack that a listed snapshot needs is missing: then nothing
    ///   is deleted.
    /// - [`Error::Expired`] if the store was so slow that the announcement ended. Nothing that a snapshot needs was
    ///   deleted.
    /// - [`Error::Remote`].
    pub fn collect(&self, options: &Collect) -> Result<Collected> {
        let marked = self.mark_unneeded(options)?;
        let now = self.now()?;
        let is_due =
            |time: &SystemTime| now.duration_since(*time).unwrap_or_default() >= options.grace_time();
        let due: BTreeSet<Id> =
            marked.into_iter().filter(|(_, time)| is_due(time)).map(|(id, _)| id).collect();
        if options.is_dry_run() {
            return self.delete(&due, None);
        }
        let mut done = Collected::default();
        if !due.is_empty() {
            // A push takes a lease, and then looks for this announcement. So at least one of the two sees the other.
            let mut announced = self.announce_collection()?;
            if self.wait_for_pushes(&mut announced)? {
                done = self.delete(&due, Some(&mut announced))?;
            }
        }
        self.prune_names(ENTRIES, options.grace_time().max(Duration::from_secs(60 * 60)), now)?;
        let ended = self.leases()?.into_iter().filter(|lease| lease.ends + options.grace_time() < now);
        self.objects().delete_many(ended.map(|lease| lease.path))?;
        Ok(done)
    }

    /// Waits until no push is running. Returns `false` if some do not end in time.
    fn wait_for_pushes(&self, announced: &mut Lease) -> Result<bool> {
        let began = Instant::now();
        loop {
            let leases = self.leases()?;
            let now = if leases.is_empty() { return Ok(true) } else { self.now()? };
            if !leases.iter().any(|lease| lease.ends > now) {
                return Ok(true);
            }
            if began.elapsed() > PATIENCE {
                return Ok(false);
            }
            announced.keep()?;
            thread::sleep(PAUSE);
        }
    }

    /// Marks the objects that no snapshot needs, and removes marks of those that are needed again.
    ///
    /// Returns the old marks.
    fn mark_unneeded(&self, options: &Collect) -> Result<Vec<(Id, SystemTime)>> {
        let needed = self.needed(&BTreeSet::new(), None)?;
        let mut marks = Vec::new();
        self.garbage(|id, time| {
            marks.push((id, time));
            Ok(())
        })?;
        let marked: BTreeSet<Id> = marks.iter().map(|(id, _)| *id).collect();
        let is_needed = |id: &Id| needed.manifests.contains(id) || needed.packs.contains_key(id);
        let all: BTreeSet<Id> = ids_below(self, "packs", |_, _| Ok(()))?
            .into_iter()
            .chain(ids_below(self, "manifests", |_, _| Ok(()))?)
            .chain(ids_below(self, "places", |_, _| Ok(()))?)
            .collect();
        if !options.is_dry_run() {
            for id in all.iter().filter(|id| !is_needed(id) && !marked.contains(id)) {
                self.mark_garbage(*id)?;
            }
            for id in marked.iter().filter(|id| is_needed(id) || !all.contains(id)) {
                self.unmark_garbage(*id)?;
            }
        }
        let mut marks: Vec<_> =
            marks.into_iter().filter(|(id, _)| !is_needed(id) && all.contains(id)).collect();
        if options.grace_time().is_zero() {
            // If the grace time is zero, this call deletes the objects that it has marked.
            let new = all.into_iter().filter(|id| !is_needed(id) && !marked.contains(id));
            marks.extend(new.map(|id| (id, SystemTime::UNIX_EPOCH)));
        }
        Ok(marks)
    }

    /// Deletes what is due and not needed, or only says what that is if the collection was not announced.
    fn delete(&self, due: &BTreeSet<Id>, mut announced: Option<&mut Lease>) -> Result<Collected> {
        let all = ids_below(self, "manifests", |_, _| Ok(()))?;
        // A manifest that stays keeps what it needs. Otherwise a push that finds it would not send that again.
        let needed = self.needed(&all.difference(due).copied().collect(), announced.as_deref_mut())?;
        let mut done = Collected::default();
        let mut find = |folder: &str, is_needed: &dyn Fn(&Id) -> bool| {
            let mut found = Vec::new();
            ids_below(self, folder, |id, object| {
                if due.contains(&id) && !is_needed(&id) {
                    found.push(id);
                    done.bytes += object.len;
                }
                Ok(())
            })?;
            Ok::<_, Error>(found)
        };
        let packs = find("packs", &|id| needed.packs.contains_key(id))?;
        let manifests = find("manifests", &|id| needed.manifests.contains(id))?;
        let lists = find("places", &|id| needed.manifests.contains(id))?;
        (done.packs, done.manifests) = (packs.len() as u64, manifests.len() as u64);
        let Some(announced) = announced else { return Ok(done) };
        let mut by_depth = self.depths(&manifests, announced)?;
        by_depth.sort_unstable();
        by_depth.reverse();
        announced.renew()?;
        // A manifest is deleted before those below it, and before what it needs.
        for level in by_depth.chunk_by(|a, b| a.0 == b.0) {
            self.delete_announced(level.iter().map(|(_, id)| manifest_path(id)), announced)?;
        }
        self.delete_announced(lists.iter().map(places_path), announced)?;
        self.delete_announced(packs.iter().map(pack_path), announced)?;
        let is_needed = |id: &&Id| needed.manifests.contains(id) || needed.packs.contains_key(id);
        self.unmark_all(due.iter().filter(|id| !is_needed(id)).copied())?;
        Ok(done)
    }

    /// Deletes objects. Each request begins and ends while the announcement is valid.
    fn delete_announced(&self, paths: impl Iterator<Item = String>, announced: &mut Lease) -> Result<()> {
        let paths: Vec<String> = paths.collect();
        for page in paths.chunks(DELETED_AT_ONCE) {
            announced.keep()?;
            self.objects().delete_many(page.iter().cloned())?;
        }
        Ok(())
    }

    /// Returns all manifests and packs that the listed snapshots need, and that the manifests `kept` need.
    fn needed(&self, kept: &BTreeSet<Id>, mut announced: Option<&mut Lease>) -> Result<Needed> {
        let mut tries = TRIES;
        loop {
            let listed = self.snapshot_ids()?;
            let mut needed = Needed::default();
            let mut lens = BTreeMap::new();
            ids_below(self, "places", |id, object| {
                lens.insert(id, object.len);
                Ok(())
            })?;
            let found = self.add_needed(&mut needed, &lens, &listed, false, &mut announced);
            match found.and_then(|()| self.check_packs(&needed)) {
                Ok(()) => {}
                // A snapshot was removed after the listing, and another collection has deleted what it needed.
                Err(Error::Damaged { .. }) if tries > 0 && self.snapshot_ids()? != listed => {
                    tries -= 1;
                    continue;
                }
                Err(error) => return Err(error),
            }
            // No snapshot needs them. One that is damaged is of no use, and is deleted when its time comes.
            self.add_needed(&mut needed, &lens, kept, true, &mut announced)?;
            return Ok(needed);
        }
    }

    /// Fails if a pack that a listed snapshot needs is missing.
    fn check_packs(&self, needed: &Needed) -> Result<()> {
        let packs = ids_below(self, "packs", |_, _| Ok(()))?;
        match needed.packs.iter().find(|(pack, _)| !packs.contains(pack)) {
            None => Ok(()),
            Some((pack, manifest)) => Err(Error::damaged(
                self.objects().full(&pack_path(pack)),
                format!(
                    "it is missing, and snapshots with the manifest {manifest} need it: remove them from the remote, or \
                     push {manifest} again from a machine that has it"
                ),
            )),
        }
    }

    /// Adds manifests, those below them, and what they need. `lens` has the lengths of places.
    ///
    /// If `skip` is set, manifests that are damaged or missing are left out.
    fn add_needed(
        &self,
        needed: &mut Needed,
        lens: &BTreeMap<Id, u64>,
        manifests: &BTreeSet<Id>,
        skip: bool,
        announced: &mut Option<&mut Lease>,
    ) -> Result<()> {
        let mut next: Vec<Id> = manifests.iter().copied().collect();
        let mut seen = BTreeSet::new();
        while !next.is_empty() {
            let mut ids: Vec<Id> = next.split_off(next.len().saturating_sub(AT_ONCE));
            ids.retain(|id| !needed.manifests.contains(id) && seen.insert(*id));
            if let Some(announced) = announced {
                announced.keep()?;
            }
            let ends: Vec<Range<u64>> =
                ids.iter().map(|id| lens.get(id).map_or(0..0, |len| len.saturating_sub(END)..*len)).collect();
            let headers = ids.iter().map(|id| (manifest_path(id), 0..HEADER as u64));
            let places = ids.iter().zip(&ends).map(|(id, end)| (places_path(id), end.clone()));
            let mut found = self.objects().try_ranges(&headers.chain(places).collect::<Vec<_>>());
            let tails = found.split_off(ids.len());
            for (((id, header), end), tail) in ids.iter().zip(found).zip(ends).zip(tails) {
                match self.read_manifest(id, header, tail.as_deref().map(|tail| (end.end, tail))) {
                    Ok((base, packs)) => {
                        needed.manifests.insert(*id);
                        needed.packs.extend(packs.into_iter().map(|(pack, _)| (pack, *id)));
                        next.extend(base);
                    }
                    Err(Error::Damaged { .. }) if skip => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// Returns the base of a manifest and its packs. `header` and `end` are parts of the objects that were read already.
    fn read_manifest(
        &self,
        id: &Id,
        header: Option<Vec<u8>>,
        end: Option<(u64, &[u8])>,
    ) -> Result<(Option<Id>, Packs)> {
        let missing = |path: String| Error::damaged(self.objects().full(&path), "it is missing");
        let header = match header {
            Some(header) => Some(header),
            None => self.objects().get_range(&manifest_path(id), 0..HEADER as u64)?,
        };
        let header = header.ok_or_else(|| missing(manifest_path(id)))?;
        let (base, _) = self.parse_header(id, header)?;
        let packs = self.packs_at_end(id, end)?.ok_or_else(|| missing(places_path(id)))?;
        Ok((base, packs))
    }

    /// Returns manifests with their depths, or with 0 for those that are damaged or gone.
    fn depths(&self, manifests: &[Id], announced: &mut Lease) -> Result<Vec<(u32, Id)>> {
        let mut depths = Vec::with_capacity(manifests.len());
        for ids in manifests.chunks(AT_ONCE) {
            announced.keep()?;
            let wanted: Vec<_> = ids.iter().map(|id| (manifest_path(id), 0..HEADER as u64)).collect();
            for (id, header) in ids.iter().zip(self.objects().try_ranges(&wanted)) {
                let header = match header {
                    Some(header) => Ok(Some(header)),
                    None => self.objects().get_range(&manifest_path(id), 0..HEADER as u64),
                };
                let depth = header.and_then(|header| match header {
                    Some(header) => Ok(self.parse_header(id, header)?.1),
                    None => Ok(0),
                });
                match depth {
                    Ok(depth) => depths.push((depth, *id)),
                    Err(Error::Damaged { .. }) => depths.push((0, *id)),
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(depths)
    }

    /// Returns the base and the depth of a manifest from its first bytes.
    fn parse_header(&self, id: &Id, bytes: Vec<u8>) -> Result<(Option<Id>, u32)> {
        let damaged = || Error::damaged(self.objects().full(&manifest_path(id)), "its header is not valid");
        let bytes: [u8; HEADER] = bytes.try_into().map_err(|_| damaged())?;
        if &bytes[..8] != b"memsnapM" {
            return Err(damaged());
        }
        let number = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        let base = (number(12) & 2 != 0).then(|| Id::from_bytes(std::array::from_fn(|i| bytes[48 + i])));
        Ok((base, number(104)))
    }
}
