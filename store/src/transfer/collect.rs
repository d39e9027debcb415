//! Collecting what no snapshot of a remote needs, while others may be pushing.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use super::places::read_packs;
use super::{ids_below, places_path};
use crate::blocks::pack_path;
use crate::chain::manifest_path;
use crate::collect::{Collect, Collected};
use crate::error::{Error, Result};
use crate::format::Wrong;
use crate::id::Id;
use crate::remote::Remote;

/// The entries of a name that stay.
const ENTRIES: usize = 2;

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
    /// while no push is running: otherwise it leaves this to the next call. Pushes wait meanwhile.
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
            let needed = self.needed()?;
            return self.delete(&due, &needed, true);
        }
        let mut done = Collected::default();
        if !due.is_empty() {
            // A push takes a lease and then looks for this. So one of the two sees the other.
            let announced = self.announce_collection()?;
            if !self.leases()?.iter().any(|lease| lease.ends > now) {
                let needed = self.needed()?;
                announced.check()?;
                done = self.delete(&due, &needed, false)?;
            }
        }
        self.prune_names(ENTRIES, options.grace_time().max(Duration::from_secs(60 * 60)), now)?;
        let ended = self.leases()?.into_iter().filter(|lease| lease.ends + options.grace_time() < now);
        self.objects().delete_many(ended.map(|lease| lease.path))?;
        Ok(done)
    }

    /// Marks what no snapshot needs, and removes the marks of what is needed again. Returns the marks that were there.
    fn mark_unneeded(&self, options: &Collect) -> Result<Vec<(Id, SystemTime)>> {
        let needed = self.needed()?;
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

    /// Deletes what is due and not needed.
    fn delete(&self, due: &BTreeSet<Id>, needed: &Needed, dry_run: bool) -> Result<Collected> {
        let mut done = Collected::default();
        let (mut packs, mut manifests, mut lists) = (Vec::new(), Vec::new(), Vec::new());
        let bytes = &mut done.bytes;
        ids_below(self, "packs", |id, object| {
            if due.contains(&id) && !needed.packs.contains(&id) {
                packs.push(id);
                *bytes += object.len;
            }
            Ok(())
        })?;
        ids_below(self, "manifests", |id, object| {
            if due.contains(&id) && !needed.manifests.contains(&id) {
                manifests.push(id);
                *bytes += object.len;
            }
            Ok(())
        })?;
        ids_below(self, "places", |id, object| {
            if due.contains(&id) && !needed.manifests.contains(&id) {
                lists.push(id);
                *bytes += object.len;
            }
            Ok(())
        })?;
        (done.packs, done.manifests) = (packs.len() as u64, manifests.len() as u64);
        if dry_run {
            return Ok(done);
        }
        // A manifest is deleted before those below it, and before what it needs.
        let mut by_depth = Vec::with_capacity(manifests.len());
        for id in manifests {
            by_depth.push((self.header(&id)?.map_or(0, |header| header.1), id));
        }
        by_depth.sort_unstable();
        for (_, id) in by_depth.iter().rev() {
            self.objects().delete(&manifest_path(id))?;
        }
        self.objects().delete_many(lists.iter().map(places_path))?;
        self.objects().delete_many(packs.iter().map(pack_path))?;
        for id in due {
            self.unmark_garbage(*id)?;
        }
        Ok(done)
    }

    /// Returns all manifests and packs that the listed snapshots need.
    fn needed(&self) -> Result<Needed> {
        let mut needed = Needed::default();
        let mut next: Vec<Id> = self.snapshot_ids()?.into_iter().collect();
        while let Some(id) = next.pop() {
            if !needed.manifests.insert(id) {
                continue;
            }
            let missing = |path: String| Error::damaged(self.objects().full(&path), "it is missing");
            let (base, _) = self.header(&id)?.ok_or_else(|| missing(manifest_path(&id)))?;
            next.extend(base);
            let path = places_path(&id);
            let object = self.objects().head(&path)?.ok_or_else(|| missing(path.clone()))?;
            let packs = read_packs(object.len, |range| {
                let bytes = self.objects().get_range(&path, range).map_err(Failed::Store)?;
                bytes.ok_or_else(|| Failed::Store(missing(path.clone())))
            });
            let packs = packs.map_err(|failed| match failed {
                Failed::Store(error) => error,
                Failed::Wrong(wrong) => wrong.of(&self.objects().full(&path)),
            })?;
            needed.packs.extend(packs.into_iter().map(|(id, _)| id));
        }
        Ok(needed)
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

/// Why the packs of a manifest could not be read.
enum Failed {
    Store(Error),
    Wrong(Wrong),
}

impl From<Wrong> for Failed {
    fn from(wrong: Wrong) -> Self {
        Self::Wrong(wrong)
    }
}
