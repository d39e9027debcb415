//! Repair: builds a new index from packs, manifests and names.

use std::collections::BTreeMap;
use std::io;

use rayon::prelude::*;

use crate::blocks::pack_path;
use crate::chain::{for_each_hashes, manifest_path, open_manifest};
use crate::cores::on_all_cores;
use crate::error::{Error, Result};
use crate::format::BLOCK;
use crate::format::pack::{Contents, Decoder, read_contents};
use crate::id::Id;
use crate::index::{self, Index, ManifestRow, PackRow};
use crate::inner::{Inner, now};
use crate::name::is_safe;
use crate::sink::places;
use crate::storage::DatabaseMode;

/// The folder to which files are moved that cannot be used.
const DAMAGED: &str = "damaged";

/// The number of packs that are read before their blocks are added.
const AT_ONCE: usize = 16;

/// What [`Repository::repair`](crate::Repository::repair) has found.
///
/// # Examples
///
/// ```
/// use memsnap::Snapshot;
/// use memsnap_store::Repository;
///
/// # fn main() -> memsnap_store::Result<()> {
/// # let folder = tempfile::tempdir().unwrap();
/// # let path = folder.path().join("repository");
/// let repository = Repository::create(&path)?;
/// repository.save(&Snapshot::from_slice(b"state").unwrap()).name("latest").run()?;
///
/// std::fs::remove_file(path.join("index.redb")).unwrap();
/// let repaired = Repository::repair(&path)?;
/// assert_eq!((repaired.manifests, repaired.packs, repaired.names), (1, 1, 1));
/// assert!(repaired.problems.is_empty());
/// repository.load("latest").run()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Repaired {
    /// The number of manifests that are in the new index.
    pub manifests: u64,
    /// The number of packs that are in the new index.
    pub packs: u64,
    /// The number of names that are in the new index.
    pub names: u64,
    /// What is damaged or incomplete: one sentence each, which names the object.
    pub problems: Vec<String>,
}

pub(crate) fn repair(inner: &Inner) -> Result<Repaired> {
    let _files = inner.lock_files()?;
    let _writer = inner.lock_writer()?;
    let _index = inner.lock_index()?;
    let path = inner.temporary("redb");
    let mut found = Repaired::default();
    let built = Index::create(&*inner.storage, &path, &inner.id).and_then(|()| {
        let index = Index::open(&*inner.storage, &path, DatabaseMode::Write, &inner.id)?;
        add_packs(inner, &index, &mut found)?;
        add_manifests(inner, &index, &mut found)?;
        add_names(inner, &index, &mut found)
    });
    let renamed = built.and_then(|()| {
        inner
            .storage
            .rename(&path, index::PATH)
            .map_err(Error::file("cannot replace", inner.path(index::PATH)))?;
        inner.storage.sync_folder("").map_err(Error::file("cannot sync", inner.path("")))
    });
    if renamed.is_err() {
        // If this fails, a collection removes the file.
        let _ = inner.storage.remove(&path);
    }
    renamed.map(|()| found)
}

/// Returns the message of an error about a damaged file. Returns other errors as errors.
///
/// A file that cannot be read now, or that a newer version wrote, must not be left out of the index: a collection would
/// delete it.
fn damage(error: Error) -> Result<String> {
    match error {
        Error::Damaged { .. } => Ok(error.to_string()),
        error => Err(error),
    }
}

/// Returns the ids of the files of a folder.
fn ids(inner: &Inner, folder: &str, found: &mut Repaired) -> Result<Vec<(Id, u64)>> {
    let listed = inner.storage.list(folder).map_err(Error::file("cannot list", inner.path(folder)))?;
    let mut ids = Vec::new();
    for file in listed {
        match file.name.parse() {
            Ok(id) => ids.push((id, file.len)),
            Err(_) => {
                found.problems.push(format!("{folder}/{} is ignored: its name is not an id", file.name))
            }
        }
    }
    ids.sort_unstable();
    Ok(ids)
}

fn add_packs(inner: &Inner, index: &Index, found: &mut Repaired) -> Result<()> {
    let (mut number, mut rows, mut entries) = (0, Vec::new(), Vec::new());
    let ids = ids(inner, "packs", found)?;
    // All packs are read, because a block that is damaged must not stay in the index: it would never be written again.
    for packs in ids.chunks(AT_ONCE) {
        let read =
            on_all_cores(|| packs.par_iter().map(|(id, _)| good_blocks(inner, *id)).collect::<Vec<_>>());
        for ((id, len), read) in packs.iter().zip(read) {
            let (contents, good) = match read {
                Ok(read) => read,
                Err(error) => {
                    found.problems.push(damage(error)?);
                    set_aside(inner, "packs", id)?;
                    continue;
                }
            };
            let blocks = u32::try_from(contents.hashes.len()).unwrap_or(u32::MAX);
            rows.push((number, PackRow { id: *id, len: *len, blocks, created: now() }));
            let before = entries.len();
            entries.extend(
                places(number, &contents).zip(good).filter(|(_, good)| *good).map(|(entry, _)| entry),
            );
            let lost = contents.hashes.len() - (entries.len() - before);
            if lost > 0 {
                let path = pack_path(id);
                found.problems.push(format!("{path} is damaged: {lost} of its {blocks} blocks are left out"));
            }
            number += 1;
            found.packs += 1;
        }
        if entries.len() >= 1 << 20 {
            add_run(index, &mut rows, &mut entries)?;
        }
    }
    add_run(index, &mut rows, &mut entries)
}

/// Reads all of a pack. Returns what it contains, and for each block whether its bytes have its hash.
fn good_blocks(inner: &Inner, id: Id) -> Result<(Contents, Vec<bool>)> {
    let path = pack_path(&id);
    let file = inner.storage.open(&path).map_err(Error::file("cannot open", inner.path(&path)))?;
    let contents = read_contents(&*file).map_err(|wrong| wrong.of(&path))?;
    let mut decoder = Decoder::new().map_err(Error::memory("cannot decompress"))?;
    let (mut good, mut stored) = (Vec::with_capacity(contents.hashes.len()), Vec::new());
    for frame in &contents.frames {
        stored.resize(frame.stored as usize, 0);
        let read = file.read_exact_at(&mut stored, frame.offset.into());
        read.map_err(Error::file("cannot read", inner.path(&path)))?;
        let hashes = &contents.hashes[frame.first as usize..][..frame.blocks.into()];
        match decoder.decode(&stored, frame.encoding, frame.blocks.into()) {
            Ok(bytes) => {
                let blocks = hashes.iter().zip(bytes.chunks_exact(BLOCK));
                good.extend(blocks.map(|(hash, bytes)| Id::of(bytes) == *hash));
            }
            Err(_) => good.extend(hashes.iter().map(|_| false)),
        }
    }
    Ok((contents, good))
}

/// Moves a file that cannot be used to a folder that `collect` leaves alone.
fn set_aside(inner: &Inner, folder: &str, id: &Id) -> Result<()> {
    let (from, to) = (format!("{folder}/{id}"), format!("{DAMAGED}/{folder}-{id}"));
    inner.storage.create_folder(DAMAGED).map_err(Error::file("cannot make", inner.path(DAMAGED)))?;
    inner.storage.rename(&from, &to).map_err(Error::file("cannot move", inner.path(&from)))
}

fn add_run(
    index: &Index,
    rows: &mut Vec<(u32, PackRow)>,
    entries: &mut Vec<(Id, index::Place)>,
) -> Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    let mut writer = index.write()?;
    writer.add_packs(rows, std::mem::take(entries))?;
    rows.clear();
    writer.commit()
}

/// Adds all manifests that can be read, also those that lack blocks or a base.
///
/// These stay listed, so that `collect` deletes nothing that is left of them until they are removed.
fn add_manifests(inner: &Inner, index: &Index, found: &mut Repaired) -> Result<()> {
    let reader = index.read()?;
    let mut rows: BTreeMap<Id, ManifestRow> = BTreeMap::new();
    for (id, len) in ids(inner, "manifests", found)? {
        match read_manifest(inner, &reader, id) {
            Ok((row, lacking)) => {
                if lacking > 0 {
                    let path = manifest_path(&id);
                    found
                        .problems
                        .push(format!("{path} is incomplete: {lacking} of its blocks are in no pack"));
                }
                rows.insert(id, ManifestRow { stored: len, ..row });
            }
            Err(error) => {
                found.problems.push(damage(error)?);
                set_aside(inner, "manifests", &id)?;
            }
        }
    }
    drop(reader);
    let mut writer = index.write()?;
    for (id, row) in &rows {
        let below = row.base.map(|base| rows.get(&base).map(|below| below.depth));
        if below.is_some_and(|depth| depth.and_then(|depth| depth.checked_add(1)) != Some(row.depth)) {
            let path = manifest_path(id);
            found.problems.push(format!("{path} is incomplete: its base is missing or damaged"));
        }
        writer.put_manifest(id, row)?;
        found.manifests += 1;
    }
    writer.commit()
}

/// Reads a manifest. Returns its row, and the number of its blocks that are in no pack.
fn read_manifest(inner: &Inner, reader: &index::Reader, id: Id) -> Result<(ManifestRow, usize)> {
    let mut manifest = open_manifest(&*inner.storage, id)?;
    let mut lacking = 0;
    for_each_hashes(&mut manifest, |hashes| {
        lacking += reader.find(hashes)?.iter().filter(|place| place.is_none()).count();
        Ok(())
    })?;
    Ok((ManifestRow::new(&manifest.header, true, 0), lacking))
}

fn add_names(inner: &Inner, index: &Index, found: &mut Repaired) -> Result<()> {
    let listed = inner.storage.list("names").map_err(Error::file("cannot list", inner.path("names")))?;
    let mut writer = index.write()?;
    let reader = index.read()?;
    for file in listed {
        if !is_safe(&file.name) {
            found.problems.push(format!("names/{:?} is ignored: it cannot be a name", file.name));
            continue;
        }
        let id = match read_name(inner, &file.name) {
            Ok(id) => id,
            Err(error) => {
                found.problems.push(damage(error)?);
                continue;
            }
        };
        match id.map(|id| reader.manifest(&id)).transpose()?.flatten() {
            Some(_) => {
                writer.set_name(&file.name, id.as_ref())?;
                found.names += 1;
            }
            None => found.problems.push(format!(
                "names/{} is ignored: it does not contain the id of a snapshot that can be used",
                file.name
            )),
        }
    }
    writer.commit()
}

/// Reads the id in the file of a name.
///
/// Returns `None` if there is no such file, or if it contains no id.
pub(crate) fn read_name(inner: &Inner, name: &str) -> Result<Option<Id>> {
    let path = format!("names/{name}");
    let failed = || Error::file("cannot read", inner.path(&path));
    let file = match inner.storage.open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(failed())?,
    };
    let mut bytes = [0; 64];
    match file.read_exact_at(&mut bytes, 0) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        read => {
            read.map_err(failed())?;
            Ok(std::str::from_utf8(&bytes).ok().and_then(|text| text.parse().ok()))
        }
    }
}
