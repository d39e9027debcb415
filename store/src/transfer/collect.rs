//! Collecting what no snapshot of a remote needs, while others may be pushing.

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use super::{ids_below, places_path};
use crate::blocks::pack_path;
use crate::chain::manifest_path;
use crate::collect::{Collect, Collected};
use crate::error::{Error, Result};
use crate::id::Id;
use crate::remote::Remote;
use crate::remote::lease::Lease;
use crate::remote::objects::DELETED_AT_ONCE;

/// The entries of a name that stay.
const ENTRIES: usize = 2;

/// How often the listed snapshots are read again because some were removed meanwhile.
const TRIES: usize = 3;

/// How long a collection waits for pushes that are running. Pushes that begin meanwhile wait for the collection.
const PATIENCE: Duration = Duration::from_secs(20);

/// How often a collection looks whether the pushes have ended.
const PAUSE: Duration = Duration::from_millis(200);

/// What an object that is marked may be.
#[derive(Default)]
struct Needed {
    manifests: BTreeSet<Id>,
    packs: BTreeSet<Id>,
}

impl Remote {
    /// Deletes what no snapshot of the remote needs.
    ///
    /// Nothing tells a collector of all machines that are pushing, so this takes two calls. The first one marks what no
    /// snapshot needs. A later call deletes what was marked for the grace time and is still not needed. It only does so
    /// while no push is running. It waits up to 20 s for those that are running, and otherwise leaves this to the next
    /// call. Pushes that begin meanwhile wait.
    ///
    /// # Errors
    ///
    /// [`Error::Damaged`] if a manifest is damaged: then nothing is deleted. [`Error::Remote`].
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
            // A push takes a lease and then looks for this. So one of the two sees the other.
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

    /// Waits until no push is running. Returns `false` if some go on for too long.
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

    /// Marks what no snapshot needs, and removes the marks of what is needed again. Returns the marks that were there.
    fn mark_unneeded(&self, options: &Collect) -> Result<Vec<(Id, SystemTime)>> {
        let needed = self.needed(&BTreeSet::new())?;
        let mut marks = Vec::new();
        self.garbage(|id, time| {
            marks.push((id, time));
            Ok(())
        })?;
        let marked: BTreeSet<Id> = marks.iter().map(|(id, _)| *id).collect();
        let is_needed = |id: &Id| needed.manifests.contains(id) || needed.packs.contains(id);
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
            // Without a grace time, this call deletes what it has marked.
            let new = all.into_iter().filter(|id| !is_needed(id) && !marked.contains(id));
            marks.extend(new.map(|id| (id, SystemTime::UNIX_EPOCH)));
        }
        Ok(marks)
    }

    /// Deletes what is due and not needed, or only says what that is if the collection was not announced.
    fn delete(&self, due: &BTreeSet<Id>, announced: Option<&mut Lease>) -> Result<Collected> {
        let all = ids_below(self, "manifests", |_, _| Ok(()))?;
        // A manifest that stays keeps what it needs. Otherwise a push that finds it would not send that again.
        let needed = self.needed(&all.difference(due).copied().collect())?;
        let mut done = Collected::default();
        let mut find = |folder: &str, needed: &BTreeSet<Id>| {
            let mut found = Vec::new();
            ids_below(self, folder, |id, object| {
                if due.contains(&id) && !needed.contains(&id) {
                    found.push(id);
                    done.bytes += object.len;
                }
                Ok(())
            })?;
            Ok::<_, Error>(found)
        };
        let packs = find("packs", &needed.packs)?;
        let manifests = find("manifests", &needed.manifests)?;
        let lists = find("places", &needed.manifests)?;
        (done.packs, done.manifests) = (packs.len() as u64, manifests.len() as u64);
        let Some(announced) = announced else { return Ok(done) };
        let mut by_depth = Vec::with_capacity(manifests.len());
        for id in manifests {
            announced.keep()?;
            by_depth.push((self.depth(&id)?, id));
        }
        by_depth.sort_unstable();
        by_depth.reverse();
        announced.renew()?;
        // A manifest is deleted before those below it, and before what it needs.
        for level in by_depth.chunk_by(|a, b| a.0 == b.0) {
            self.delete_announced(level.iter().map(|(_, id)| manifest_path(id)), announced)?;
        }
        self.delete_announced(lists.iter().map(places_path), announced)?;
        self.delete_announced(packs.iter().map(pack_path), announced)?;
        let is_needed = |id: &&Id| needed.manifests.contains(id) || needed.packs.contains(id);
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
    fn needed(&self, kept: &BTreeSet<Id>) -> Result<Needed> {
        let mut tries = TRIES;
        loop {
            let listed = self.snapshot_ids()?;
            let mut needed = Needed::default();
            let mut add = |id: &Id| self.add_needed(&mut needed, *id);
            match listed.iter().try_for_each(&mut add) {
                Ok(()) => {}
                // A snapshot was removed meanwhile, and another collection has deleted what it needed.
                Err(Error::Damaged { .. }) if tries > 0 && self.snapshot_ids()? != listed => {
                    tries -= 1;
                    continue;
                }
                Err(error) => return Err(error),
            }
            for id in kept {
                match add(id) {
                    // No snapshot needs it, so it is of no use, and is deleted when its time comes.
                    Ok(()) | Err(Error::Damaged { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
            return Ok(needed);
        }
    }

    /// Adds a manifest and what it needs.
    fn add_needed(&self, needed: &mut Needed, id: Id) -> Result<()> {
        let missing = |path: String| Error::damaged(self.objects().full(&path), "it is missing");
        let mut next = Some(id);
        while let Some(id) = next.filter(|id| !needed.manifests.contains(id)) {
            let (base, _) = self.header(&id)?.ok_or_else(|| missing(manifest_path(&id)))?;
            let packs = self.packs_of(&id)?.ok_or_else(|| missing(places_path(&id)))?;
            needed.manifests.insert(id);
            needed.packs.extend(packs.into_iter().map(|(id, _)| id));
            next = base;
        }
        Ok(())
    }

    /// Returns the depth of a manifest, or 0 if it is damaged or gone.
    fn depth(&self, id: &Id) -> Result<u32> {
        match self.header(id) {
            Ok(header) => Ok(header.map_or(0, |(_, depth)| depth)),
            Err(Error::Damaged { .. }) => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// Reads the base and the depth of a manifest.
    fn header(&self, id: &Id) -> Result<Option<(Option<Id>, u32)>> {
        let path = manifest_path(id);
        let Some(bytes) = self.objects().get_range(&path, 0..136)? else { return Ok(None) };
        let damaged = || Error::damaged(self.objects().full(&path), "its header is not valid");
        let bytes: [u8; 136] = bytes.try_into().map_err(|_| damaged())?;
        if &bytes[..8] != b"memsnapM" {
            return Err(damaged());
        }
        let number = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        let base = (number(12) & 2 != 0).then(|| Id::from_bytes(std::array::from_fn(|i| bytes[48 + i])));
        Ok(Some((base, number(104))))
    }
}
