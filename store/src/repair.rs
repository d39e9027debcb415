//! Rebuilding the index.

use std::collections::BTreeMap;
use std::io;

use crate::blocks::BATCH;
use crate::chain::{manifest_path, open_manifest};
use crate::collect::pack_contents;
use crate::error::{Error, Result};
use crate::format::manifest::Header;
use crate::id::Id;
use crate::index::{self, Index, ManifestRow, PackRow};
use crate::inner::{Inner, now};
use crate::name::is_safe;
use crate::sink::places;
use crate::storage::DatabaseMode;

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
    /// What could not be used: one sentence each, which names the object. The files stay where they are.
    pub problems: Vec<String>,
}

pub(crate) fn repair(inner: &Inner) -> Result<Repaired> {
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
        // The collector removes the file if this fails.
        let _ = inner.storage.remove(&path);
    }
    renamed.map(|()| found)
}

/// Returns what is wrong with a file that is damaged, and other errors as they are.
///
/// A file that could not be read this time, or that a newer version wrote, has to stay in the index: the collector deletes
/// what the index does not have.
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
    for (id, len) in ids(inner, "packs", found)? {
        let contents = match pack_contents(inner, &id) {
            Ok(contents) => contents,
            Err(error) => {
                found.problems.push(damage(error)?);
                continue;
            }
        };
        let blocks = u32::try_from(contents.hashes.len()).unwrap_or(u32::MAX);
        rows.push((number, PackRow { id, len, blocks, created: now() }));
        entries.extend(places(number, &contents));
        number += 1;
        found.packs += 1;
        if entries.len() >= 1 << 20 {
            add_run(index, &mut rows, &mut entries)?;
        }
    }
    add_run(index, &mut rows, &mut entries)
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

fn add_manifests(inner: &Inner, index: &Index, found: &mut Repaired) -> Result<()> {
    let reader = index.read()?;
    let mut rows: BTreeMap<Id, (Header, u64)> = BTreeMap::new();
    for (id, len) in ids(inner, "manifests", found)? {
        match read_manifest(inner, &reader, id) {
            Ok(header) => {
                rows.insert(id, (header, len));
            }
            Err(error) => found.problems.push(damage(error)?),
        }
    }
    // A manifest can only be used with the whole chain below it.
    loop {
        let whole = |header: &Header| match header.base {
            None => true,
            Some(base) => {
                rows.get(&base).is_some_and(|(below, _)| below.depth.checked_add(1) == Some(header.depth))
            }
        };
        let broken: Vec<Id> =
            rows.iter().filter(|(_, (header, _))| !whole(header)).map(|(id, _)| *id).collect();
        if broken.is_empty() {
            break;
        }
        for id in broken {
            rows.remove(&id);
            found
                .problems
                .push(format!("{} cannot be used: its base is missing or damaged", manifest_path(&id)));
        }
    }
    drop(reader);
    let mut writer = index.write()?;
    for (id, (header, len)) in &rows {
        let row = ManifestRow {
            listed: true,
            parent: header.parent,
            base: header.base,
            len: header.len,
            content_len: header.content_len,
            created: header.created,
            depth: header.depth,
            entries: header.entries,
            chain_entries: header.chain_entries,
            stored: *len,
        };
        writer.put_manifest(id, &row)?;
        found.manifests += 1;
    }
    writer.commit()
}

/// Reads a manifest, and checks that the packs have all its blocks.
fn read_manifest(inner: &Inner, reader: &index::Reader, id: Id) -> Result<Header> {
    let path = manifest_path(&id);
    let mut manifest = open_manifest(&*inner.storage, id)?;
    let mut hashes = Vec::with_capacity(BATCH);
    loop {
        let entry = manifest.next().map_err(|wrong| wrong.of(&path))?;
        hashes.extend(entry.and_then(|entry| entry.1));
        if hashes.len() == BATCH || entry.is_none() {
            hashes.sort_unstable();
            hashes.dedup();
            if let Some((hash, _)) =
                hashes.iter().zip(reader.find(&hashes)?).find(|(_, place)| place.is_none())
            {
                return Err(Error::damaged(path, format!("its block {hash} is in no pack")));
            }
            hashes.clear();
        }
        if entry.is_none() {
            return Ok(manifest.header);
        }
    }
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
            None => {
                found.problems.push(format!("names/{} is ignored: it leads to no usable snapshot", file.name))
            }
        }
    }
    writer.commit()
}

/// Reads the id in the file of a name. Returns `None` if there is no such file, or if it contains no id.
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
