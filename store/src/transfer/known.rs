//! The index of the blocks of a remote, in the cache of the repository.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufReader, Read, Write};

use super::places::PlacesReader;
use super::{ids_below, places_path};
use crate::blocks::BATCH;
use crate::chain::manifest_path;
use crate::collect::REMOTE;
use crate::error::{Error, Result};
use crate::format::manifest::ManifestReader;
use crate::format::pack::Contents;
use crate::format::{Sequential, Wrong};
use crate::id::Id;
use crate::index::{Index, ManifestRow, PackRow, Place};
use crate::inner::{Inner, now};
use crate::remote::Remote;
use crate::sink::places;
use crate::storage::{DatabaseMode, ReadFile};

/// The number of bytes of an object that are requested at a time.
const PART: u64 = 8 << 20;

/// An index of the blocks of a remote. If it is lost or damaged, it is made again.
pub(super) struct Known<'a> {
    inner: &'a Inner,
    remote: &'a Remote,
    path: String,
    /// The packs that the remote has.
    pub(super) packs: BTreeSet<Id>,
}

impl<'a> Known<'a> {
    /// Opens the index, and removes the packs that the remote does not have any more.
    ///
    /// The caller holds the lock of the writer, and a lease if it relies on packs of the remote.
    pub(super) fn open(inner: &'a Inner, remote: &'a Remote) -> Result<Self> {
        let packs = ids_below(remote, "packs", |_, _| Ok(()))?;
        let failed = || Error::file("cannot make", inner.path("cache"));
        inner.storage.create_folder("cache").map_err(failed())?;
        let path = format!("cache/{REMOTE}{}.redb", remote.repository());
        let known = Self { inner, remote, path, packs };
        if known.forget_deleted().is_err() {
            // The file does not exist or is damaged.
            let _ = inner.storage.remove(&known.path);
            Index::create(&*inner.storage, &known.path, remote.repository())?;
        }
        Ok(known)
    }

    fn index(&self, mode: DatabaseMode) -> Result<Index> {
        Index::open(&*self.inner.storage, &self.path, mode, self.remote.repository())
    }

    fn forget_deleted(&self) -> Result<()> {
        let index = self.index(DatabaseMode::Write)?;
        let packs = index.read()?.packs()?;
        let gone = packs.into_iter().filter(|(_, row)| !self.packs.contains(&row.id));
        let gone: BTreeSet<u32> = gone.map(|(number, _)| number).collect();
        if gone.is_empty() {
            return Ok(());
        }
        let mut writer = index.write()?;
        writer.remove_packs(&gone)?;
        writer.commit()
    }

    /// Returns the places of blocks in the remote, as far as they are known. `hashes` ascend.
    pub(super) fn find(&self, hashes: &[Id]) -> Result<Vec<Option<Place>>> {
        self.index(DatabaseMode::Read)?.read()?.find(hashes)
    }

    /// Returns the packs by their numbers.
    pub(super) fn rows(&self) -> Result<BTreeMap<u32, PackRow>> {
        Ok(self.index(DatabaseMode::Read)?.read()?.packs()?.into_iter().collect())
    }

    /// Adds a pack that the remote has.
    pub(super) fn add_pack(&mut self, id: Id, len: u64, contents: &Contents) -> Result<()> {
        let index = self.index(DatabaseMode::Write)?;
        self.packs.insert(id);
        let existing = index.read()?.pack_number(&id)?;
        let mut writer = index.write()?;
        let number = existing.map_or_else(|| writer.next_pack(), Ok)?;
        let blocks = u32::try_from(contents.hashes.len()).unwrap_or(u32::MAX);
        // The index may have only some blocks of a pack that another machine has sent.
        writer.add_packs(
            &[(number, PackRow { id, len, blocks, created: now() })],
            places(number, contents).collect(),
        )?;
        writer.commit()
    }

    /// Reads the places of blocks that other machines have pushed, up to a quarter of `needed` bytes.
    pub(super) fn learn(&self, needed: u64) -> Result<()> {
        let seen: BTreeSet<Id> =
            self.index(DatabaseMode::Read)?.read()?.manifests()?.into_iter().map(|(id, _)| id).collect();
        let mut new = Vec::new();
        ids_below(self.remote, "places", |id, object| {
            if !seen.contains(&id) {
                new.push((object.len, id));
            }
            Ok(())
        })?;
        new.sort_unstable();
        let mut left = needed / 4;
        for (len, id) in new {
            // The manifest is about twice as long as the places.
            let Some(rest) = left.checked_sub(len.saturating_mul(3)) else { break };
            left = rest;
            self.learn_from(id)?;
        }
        Ok(())
    }

    /// Adds the places of the blocks that a manifest of the remote lists.
    fn learn_from(&self, id: Id) -> Result<()> {
        let Some(manifest) = Fetched::get(self.inner, self.remote, &manifest_path(&id))? else {
            return Ok(());
        };
        let Some(list) = Fetched::get(self.inner, self.remote, &places_path(&id))? else { return Ok(()) };
        let mut manifest = manifest.manifest(self.remote, id)?;
        let mut list = list.places(self.remote)?;
        let index = self.index(DatabaseMode::Write)?;
        let mut writer = index.write()?;
        let reader = index.read()?;
        let mut numbers = Vec::with_capacity(list.packs.len());
        let mut next = writer.next_pack()?;
        let mut rows = Vec::new();
        for (pack, len) in &list.packs {
            let number = match reader.pack_number(pack)? {
                Some(number) => Some(number),
                None if self.packs.contains(pack) => {
                    rows.push((next, PackRow { id: *pack, len: *len, blocks: 0, created: now() }));
                    next += 1;
                    Some(next - 1)
                }
                None => None, // The pack was deleted.
            };
            numbers.push(number);
        }
        let mut entries = BTreeMap::new();
        while let Some((_, hash)) = manifest.next().map_err(|wrong| wrong.of(&manifest_path(&id)))? {
            let Some(hash) = hash else { continue };
            let place = list.next().map_err(|wrong| wrong.of(&places_path(&id)))?;
            if let Some(Some(pack)) = numbers.get(place.pack as usize) {
                entries.insert(hash, Place { pack: *pack, ..place });
            }
            if entries.len() >= BATCH * 16 {
                writer.add_packs(
                    &std::mem::take(&mut rows),
                    std::mem::take(&mut entries).into_iter().collect(),
                )?;
            }
        }
        writer.add_packs(&rows, entries.into_iter().collect())?;
        self.note(&mut writer, id)?;
        writer.commit()
    }

    /// Notes that the places of a manifest are known.
    fn note(&self, writer: &mut crate::index::Writer<'_>, id: Id) -> Result<()> {
        writer.put_manifest(&id, &ManifestRow::default())
    }

    /// Notes that the places of a manifest that was just pushed are known.
    pub(super) fn note_pushed(&self, id: Id) -> Result<()> {
        let index = self.index(DatabaseMode::Write)?;
        let mut writer = index.write()?;
        self.note(&mut writer, id)?;
        writer.commit()
    }
}

/// An object that was copied to a temporary file.
pub(super) struct Fetched<'a> {
    inner: &'a Inner,
    pub(super) path: String,
    object: String,
}

impl<'a> Fetched<'a> {
    /// Copies an object in parts. Returns `None` if there is no such object.
    pub(super) fn get(inner: &'a Inner, remote: &Remote, object: &str) -> Result<Option<Self>> {
        let Some(found) = remote.objects().head(object)? else { return Ok(None) };
        let fetched = Self { inner, path: inner.temporary("fetched"), object: object.to_owned() };
        let failed = || Error::file("cannot write", inner.path(&fetched.path));
        let mut file = inner.storage.create(&fetched.path).map_err(failed())?;
        let mut at = 0;
        while at < found.len {
            let end = found.len.min(at + PART);
            let Some(bytes) = remote.objects().get_range(object, at..end)? else { return Ok(None) };
            file.write_all(&bytes).map_err(failed())?;
            at = end;
        }
        file.flush().map_err(failed())?;
        Ok(Some(fetched))
    }

    pub(super) fn open(&self) -> std::io::Result<Box<dyn ReadFile>> {
        self.inner.storage.open(&self.path)
    }

    /// Reads the file as a manifest.
    pub(super) fn manifest(&self, remote: &Remote, id: Id) -> Result<ManifestReader> {
        let read = || -> Result<_, Wrong> { ManifestReader::new(Sequential::new(self.open()?)?, id) };
        read().map_err(|wrong| wrong.of(&remote.objects().full(&self.object)))
    }

    /// Reads the file as places.
    pub(super) fn places(&self, remote: &Remote) -> Result<PlacesReader> {
        PlacesReader::new(|| self.open()).map_err(|wrong| wrong.of(&remote.objects().full(&self.object)))
    }

    /// Copies the file to a writer.
    pub(super) fn copy_to(&self, out: &mut dyn Write) -> Result<u64> {
        let failed = || Error::file("cannot copy", self.inner.path(&self.path));
        let file = self.open().and_then(Sequential::new).map_err(failed())?;
        let mut input = BufReader::new(file);
        std::io::copy(&mut input.by_ref(), out).map_err(failed())
    }
}

impl Drop for Fetched<'_> {
    fn drop(&mut self) {
        // If this fails, a collection removes the file.
        let _ = self.inner.storage.remove(&self.path);
    }
}
