//! The index of the blocks of a remote, in the cache of the repository.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufReader, Read, Write};

use super::places::PlacesReader;
use super::{ids_below, places_path};
use crate::blocks::BATCH;
use crate::cache::CACHE;
use crate::chain::manifest_path;
use crate::collect::REMOTE;
use crate::error::{Error, Result};
use crate::format::manifest::ManifestReader;
use crate::format::pack::Contents;
use crate::format::{Sequential, Wrong};
use crate::id::Id;
use crate::index::{Index, ManifestRow, PackRow, Place, Reader, Writer};
use crate::inner::{Inner, now};
use crate::remote::Remote;
use crate::sink::places;
use crate::storage::{DatabaseMode, Lock, Locked, ReadFile};

/// The number of bytes of an object that are requested at a time.
const PART: u64 = 8 << 20;

/// What an error says about an index that is damaged.
const DAMAGED: &str = "cannot use, and you can delete it, since it is made again,";

/// Returns whether an error says that the index is damaged.
pub(super) fn is_damage(error: &Error) -> bool {
    matches!(error, Error::File { action: DAMAGED, .. })
}

/// An index of the packs of a remote. It is a cache: if it is lost or damaged, it is made again.
///
/// Errors about it differ from those about the index of the repository: see [`is_damage`].
pub(super) struct Known<'a> {
    inner: &'a Inner,
    remote: &'a Remote,
    path: String,
    /// The packs that the remote has.
    pub(super) packs: BTreeSet<Id>,
}

impl<'a> Known<'a> {
    /// Locks the index of a remote against other pushes to it from this repository.
    ///
    /// The caller keeps the files of the repository, because a collection can delete the file of the lock.
    pub(super) fn lock(inner: &Inner, remote: &Remote) -> Result<Box<dyn Locked>> {
        let failed = || Error::file("cannot make", inner.path(CACHE));
        inner.storage.create_folder(CACHE).map_err(failed())?;
        let path = format!("{CACHE}/{REMOTE}{}.lock", remote.repository());
        let what =
            "the lock of the remote in `cache`, which another push from this repository to this remote holds";
        inner.lock(&path, Lock::Exclusive, what)
    }

    /// Opens the index, and removes the packs that the remote does not have any more.
    ///
    /// The caller holds the [lock](Self::lock) of the index, and a lease if it relies on packs of the remote.
    pub(super) fn open(inner: &'a Inner, remote: &'a Remote) -> Result<Self> {
        let packs = ids_below(remote, "packs", |_, _| Ok(()))?;
        let known = Self { inner, remote, path: path(remote), packs };
        if known.forget_deleted().is_err() {
            // The file does not exist or is damaged.
            let _ = inner.storage.remove(&known.path);
            Index::create(&*inner.storage, &known.path, remote.repository())?;
        }
        Ok(known)
    }

    /// Deletes the index, so that [`open`](Self::open) makes it again.
    pub(super) fn remove(inner: &Inner, remote: &Remote) -> Result<()> {
        let path = path(remote);
        inner.storage.remove(&path).map_err(Error::file("cannot remove", inner.path(&path)))
    }

    /// Returns an error about damage of the index.
    pub(super) fn damaged(&self, what: impl Into<String>) -> Error {
        let source = std::io::Error::new(std::io::ErrorKind::InvalidData, what.into());
        Error::file(DAMAGED, self.inner.path(&self.path))(source)
    }

    /// Opens the index and uses it. `using` does not access objects of the remote, whose damage is another error.
    fn using<T>(&self, mode: DatabaseMode, using: impl FnOnce(&Index) -> Result<T>) -> Result<T> {
        let opened = Index::open(&*self.inner.storage, &self.path, mode, self.remote.repository());
        match opened.and_then(|index| using(&index)) {
            Err(Error::Damaged { what, .. }) => Err(self.damaged(what)),
            // The message of this one names the index of the repository.
            Err(Error::Index { action, source }) => {
                let source = std::io::Error::other(format!("{action}: {source}"));
                Err(Error::file("cannot use", self.inner.path(&self.path))(source))
            }
            result => result,
        }
    }

    fn forget_deleted(&self) -> Result<()> {
        self.using(DatabaseMode::Write, |index| {
            let packs = index.read()?.packs()?;
            let gone = packs.into_iter().filter(|(_, row)| !self.packs.contains(&row.id));
            forget(index, &gone.map(|(number, _)| number).collect())
        })
    }

    /// Forgets packs and all places in them.
    pub(super) fn forget(&self, packs: &BTreeSet<u32>) -> Result<()> {
        self.using(DatabaseMode::Write, |index| forget(index, packs))
    }

    pub(super) fn remote(&self) -> &Remote {
        self.remote
    }

    /// Returns where blocks are in the remote, as far as this is known. `hashes` ascend.
    pub(super) fn find(&self, hashes: &[Id]) -> Result<Vec<Option<Place>>> {
        self.using(DatabaseMode::Read, |index| index.read()?.find(hashes))
    }

    /// Returns the packs by their numbers.
    pub(super) fn rows(&self) -> Result<BTreeMap<u32, PackRow>> {
        self.using(DatabaseMode::Read, |index| Ok(index.read()?.packs()?.into_iter().collect()))
    }

    /// Adds a pack that the remote has.
    pub(super) fn add_pack(&mut self, id: Id, len: u64, contents: &Contents) -> Result<()> {
        self.packs.insert(id);
        self.using(DatabaseMode::Write, |index| {
            let existing = index.read()?.pack_number(&id)?;
            let mut writer = index.write()?;
            let number = existing.map_or_else(|| writer.next_pack(), Ok)?;
            let blocks = u32::try_from(contents.hashes.len()).unwrap_or(u32::MAX);
            // A pack that another machine has sent may be known in part only.
            writer.add_packs(
                &[(number, PackRow { id, len, blocks, created: now() })],
                places(number, contents).collect(),
            )?;
            writer.commit()
        })
    }

    /// Reads the places of blocks that other machines have pushed, up to a quarter of `needed` bytes.
    pub(super) fn learn(&self, needed: u64) -> Result<()> {
        let seen = self.using(DatabaseMode::Read, |index| index.read()?.manifests())?;
        let seen: BTreeSet<Id> = seen.into_iter().map(|(id, _)| id).collect();
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
            let budget = std::mem::replace(&mut left, rest);
            match self.learn_from(id, len, budget) {
                // Others have written it. Without it, some blocks may be sent that the remote has.
                Err(Error::Damaged { .. } | Error::Newer { .. }) => {}
                learned => learned?,
            }
        }
        Ok(())
    }

    /// Adds the places of the blocks that a manifest of the remote lists.
    fn learn_from(&self, id: Id, len: u64, budget: u64) -> Result<()> {
        let get = |object: &str, limit: u64| Fetched::get(self.inner, self.remote, object, |_| limit);
        // A manifest with attachments or zeroes can be longer than was estimated.
        let Some(manifest) = get(&manifest_path(&id), budget.saturating_sub(len))? else { return Ok(()) };
        let Some(list) = get(&places_path(&id), len)? else { return Ok(()) };
        let mut manifest = manifest.manifest(self.remote, id)?;
        let mut list = list.places(self.remote)?;
        let mut damage = None;
        self.using(DatabaseMode::Write, |index| {
            let mut writer = index.write()?;
            let Numbered { mut rows, numbers } = self.number_packs(&index.read()?, &writer, &list.packs)?;
            let mut entries = BTreeMap::new();
            loop {
                let mut next = || -> Result<_, Wrong> {
                    let Some((_, hash)) = manifest.next()? else { return Ok(None) };
                    Ok(Some(hash.map(|hash| Ok::<_, Wrong>((hash, list.next()?))).transpose()?))
                };
                let entry = match next() {
                    Ok(Some(entry)) => entry,
                    Ok(None) => break,
                    // What was written so far is dropped with the writer.
                    Err(wrong) => {
                        damage = Some(wrong);
                        return Ok(());
                    }
                };
                if let Some((hash, place)) = entry
                    && let Some(Some(pack)) = numbers.get(place.pack as usize)
                {
                    entries.insert(hash, Place { pack: *pack, ..place });
                }
                if entries.len() >= BATCH * 16 {
                    let entries = std::mem::take(&mut entries).into_iter().collect();
                    writer.add_packs(&std::mem::take(&mut rows), entries)?;
                }
            }
            writer.add_packs(&rows, entries.into_iter().collect())?;
            note(&mut writer, id)?;
            writer.commit()
        })?;
        match damage {
            Some(wrong) => Err(wrong.of(&self.remote.objects().full(&manifest_path(&id)))),
            None => Ok(()),
        }
    }

    /// Gives numbers to the packs that are not known yet.
    fn number_packs(&self, reader: &Reader, writer: &Writer<'_>, packs: &[(Id, u64)]) -> Result<Numbered> {
        let (mut rows, mut numbers) = (Vec::new(), Vec::with_capacity(packs.len()));
        let mut next = writer.next_pack()?;
        for (pack, len) in packs {
            let number = match reader.pack_number(pack)? {
                Some(number) => Some(number),
                None if self.packs.contains(pack) => {
                    // No pack has 0 blocks: `learned` finds those of which the list has not been read.
                    rows.push((next, PackRow { id: *pack, len: *len, blocks: 0, created: now() }));
                    next += 1;
                    Some(next - 1)
                }
                None => None,
            };
            numbers.push(number);
        }
        Ok(Numbered { rows, numbers })
    }

    /// Notes that the places of a manifest that was just pushed are known.
    pub(super) fn note_pushed(&self, id: Id) -> Result<()> {
        self.using(DatabaseMode::Write, |index| {
            let mut writer = index.write()?;
            note(&mut writer, id)?;
            writer.commit()
        })
    }
}

/// The packs of a list of places.
struct Numbered {
    /// Rows for those that are not known yet.
    rows: Vec<(u32, PackRow)>,
    /// The numbers of all, or `None` for one that was deleted.
    numbers: Vec<Option<u32>>,
}

/// Forgets packs and all places in them.
fn forget(index: &Index, packs: &BTreeSet<u32>) -> Result<()> {
    if packs.is_empty() {
        return Ok(());
    }
    let mut writer = index.write()?;
    writer.remove_packs(packs)?;
    writer.commit()
}

/// Returns the path of the index of a remote.
fn path(remote: &Remote) -> String {
    format!("{CACHE}/{REMOTE}{}.redb", remote.repository())
}

/// Notes that the places of a manifest are known.
fn note(writer: &mut Writer<'_>, id: Id) -> Result<()> {
    writer.put_manifest(&id, &ManifestRow::default())
}

/// An object that was copied to a temporary file.
pub(super) struct Fetched<'a> {
    inner: &'a Inner,
    pub(super) path: String,
    object: String,
}

impl<'a> Fetched<'a> {
    /// Copies an object in parts. Returns `None` if there is no such object.
    ///
    /// `limit` returns the greatest length of such an object from its first bytes.
    pub(super) fn get(
        inner: &'a Inner,
        remote: &Remote,
        object: &str,
        limit: impl Fn(&[u8]) -> u64,
    ) -> Result<Option<Self>> {
        let Some(found) = remote.objects().head(object)? else { return Ok(None) };
        let fetched = Self { inner, path: inner.temporary("fetched"), object: object.to_owned() };
        let failed = || Error::file("cannot write", inner.path(&fetched.path));
        let mut file = inner.storage.create(&fetched.path).map_err(failed())?;
        let mut at = 0;
        while at < found.len {
            let end = found.len.min(at + PART);
            let Some(bytes) = remote.objects().get_range(object, at..end)? else { return Ok(None) };
            let limit = if at == 0 { limit(&bytes) } else { u64::MAX };
            if found.len > limit {
                let what = format!("it has {} bytes, and such an object has at most {limit}", found.len);
                return Err(Error::damaged(remote.objects().full(object), what));
            }
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
