//! Garbage collection: deletes the files that no snapshot needs.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::{Duration, SystemTime};

use crate::blocks::{Blocks, lock, pack_path};
use crate::cache::{CACHE, WRITING};
use crate::chain::{for_each_hashes, manifest_path, open_manifest};
use crate::error::{Error, Result};
use crate::format::BLOCK;
use crate::format::pack::{Contents, Encoder, FRAME_BLOCKS, read_contents};
use crate::id::Id;
use crate::index::{self, ManifestRow, PackRow, Place};
use crate::inner::{Inner, is_temporary, now};
use crate::name::{has_file, is_safe};
use crate::save::write_name;
use crate::sink::Sink;

/// A pack is written again if less than one in this many of its blocks is needed.
const PART: u64 = 2;

/// The beginning of the names of files in the cache that are indexes of remotes.
pub(crate) const REMOTE: &str = "remote-";

/// Options of [`Repository::collect`](crate::Repository::collect).
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use memsnap_store::{Collect, Repository};
///
/// # let folder = tempfile::tempdir().unwrap();
/// # let path = folder.path().join("repository");
/// # let repository = Repository::create(&path)?;
/// let collected = repository.collect(&Collect::new().grace(Duration::ZERO).dry_run(true))?;
/// assert_eq!(collected.packs, 0);
/// # Ok::<(), memsnap_store::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Collect {
    grace: Duration,
    dry_run: bool,
    cache: bool,
}

impl Default for Collect {
    fn default() -> Self {
        Self::new()
    }
}

impl Collect {
    /// Returns the default options: a grace time of 24 hours, no dry run, and mapped files stay.
    #[must_use]
    pub fn new() -> Self {
        Self { grace: Duration::from_secs(24 * 60 * 60), dry_run: false, cache: false }
    }

    /// Sets the grace time: files that are younger are not deleted.
    #[must_use]
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// Sets whether the call only returns what it would delete.
    #[must_use]
    pub fn dry_run(mut self, dry_run: bool) -> Self {
        self.dry_run = dry_run;
        self
    }

    /// Sets whether all files in the cache are deleted too. [`Repository::map`] writes them again.
    ///
    /// Files of snapshots that are not listed any more are always deleted. On Unix, a program that has mapped a file can
    /// still use it.
    ///
    /// [`Repository::map`]: crate::Repository::map
    #[must_use]
    pub fn cache(mut self, cache: bool) -> Self {
        self.cache = cache;
        self
    }
}

#[cfg(feature = "remote")]
impl Collect {
    pub(crate) fn grace_time(&self) -> Duration {
        self.grace
    }

    pub(crate) fn is_dry_run(&self) -> bool {
        self.dry_run
    }
}

/// The result of a garbage collection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Collected {
    /// The number of packs that were deleted because none of their blocks is needed.
    pub packs: u64,
    /// The number of packs that were deleted after their needed blocks had been written to new packs.
    pub repacked: u64,
    /// The number of manifests that were deleted.
    pub manifests: u64,
    /// The bytes of all deleted files, minus those of the new packs. A dry run does not subtract these.
    pub bytes: u64,
}

pub(crate) fn collect(inner: &Inner, options: &Collect) -> Result<Collected> {
    // In this order: savers need not wait for as long as a push or a pull runs.
    let _files = inner.lock_files()?;
    let _writer = inner.lock_writer()?;
    let (manifests, packs) = inner.read(|index| Ok((index.manifests()?, index.packs()?)))?;
    let before = now().saturating_sub(u64::try_from(options.grace.as_millis()).unwrap_or(u64::MAX));
    let (needed, unneeded) = divide(manifests, |row| row.created > before && !options.grace.is_zero())?;

    let mut done = Collected { manifests: unneeded.len() as u64, ..Collected::default() };
    let mut garbage: Vec<String> = unneeded.iter().map(manifest_path).collect();
    let marks = mark(inner, &needed, &packs)?;
    let (mut dead, mut sparse) = (BTreeSet::new(), Vec::new());
    for (number, row) in &packs {
        let live = marks.get(number).map_or(0, |marks| marks.live);
        if row.created > before && options.grace > Duration::ZERO {
            continue;
        }
        if live == 0 {
            dead.insert(*number);
            done.packs += 1;
        } else if live * PART < u64::from(row.blocks) {
            sparse.push(*number);
            done.repacked += 1;
        } else {
            continue;
        }
        garbage.push(pack_path(&row.id));
    }
    let known: BTreeSet<Id> = packs.iter().map(|(_, row)| row.id).collect();
    let files: BTreeSet<Id> = needed.keys().chain(&unneeded).copied().collect();
    garbage.extend(orphans(inner, "packs", &known, options.grace)?);
    garbage.extend(orphans(inner, "manifests", &files, options.grace)?);
    garbage.extend(temporary(inner)?);
    garbage.extend(cached(inner, &needed, options.cache)?);
    done.bytes = garbage.iter().map(|path| len(inner, path)).sum();
    if options.dry_run {
        return Ok(done);
    }

    let mut sink = Sink::new(inner);
    repack(inner, &mut sink, &sparse, &packs, &marks)?;
    let moved = sink.sync()?;
    dead.extend(&sparse);
    if !(dead.is_empty() && unneeded.is_empty() && moved.is_empty()) {
        inner.change(|index| {
            index.remove_packs(&dead)?;
            moved.add_to(index)?;
            unneeded.iter().try_for_each(|id| index.remove_manifest(id))
        })?;
    }
    done.bytes = done.bytes.saturating_sub(sink.bytes);
    // A new pack can have the same bytes as an old one, and so the same name. The old one may be in `garbage`.
    let kept: BTreeSet<String> =
        inner.read(|index| index.packs())?.iter().map(|(_, row)| pack_path(&row.id)).collect();
    garbage.retain(|path| !kept.contains(path));
    write_names(inner)?;
    // Nothing refers to these files any more. If the process ends now, the next collection deletes them.
    let (manifests, others): (Vec<String>, Vec<String>) =
        garbage.into_iter().partition(|path| path.starts_with("manifests/"));
    if !(manifests.is_empty() && others.is_empty()) {
        remove_files(inner, &manifests)?;
        // A manifest whose packs are gone would look damaged to `repair`. An earlier attempt may have removed manifests
        // and failed to sync their folder, so it is synced even if there were none now.
        inner
            .storage
            .sync_folder("manifests")
            .map_err(Error::file("cannot sync", inner.path("manifests")))?;
    }
    remove_files(inner, &others)?;
    Ok(done)
}

fn remove_files(inner: &Inner, paths: &[String]) -> Result<()> {
    for path in paths {
        match inner.storage.remove(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Error::file("cannot remove", inner.path(path))(error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Divides manifests into those that are listed, young, or the base of a needed one, and the others.
///
/// Fails if a base is missing, because it is not known what the manifest would need of it.
fn divide(
    manifests: Vec<(Id, ManifestRow)>,
    is_young: impl Fn(&ManifestRow) -> bool,
) -> Result<(BTreeMap<Id, ManifestRow>, BTreeSet<Id>)> {
    let mut all: BTreeMap<Id, ManifestRow> = manifests.into_iter().collect();
    let mut needed = BTreeMap::new();
    let mut next: Vec<Id> =
        all.iter().filter(|(_, row)| row.listed || is_young(row)).map(|(id, _)| *id).collect();
    while let Some(id) = next.pop() {
        let Some(row) = all.remove(&id) else { continue };
        if let Some(base) = row.base {
            if !all.contains_key(&base) && !needed.contains_key(&base) {
                let what =
                    format!("its base {base} is missing; remove the snapshot if it is not worth a repair");
                return Err(Error::damaged(manifest_path(&id), what));
            }
            next.push(base);
        }
        needed.insert(id, row);
    }
    Ok((needed, all.into_keys().collect()))
}

/// Which blocks of a pack are needed.
///
/// There are many of these in memory at a time, so they do not keep the hashes of all blocks. They need less than 5 bytes
/// for each block.
pub(crate) struct Marks {
    /// The offset of each frame, and the number of its first block.
    frames: Vec<(u32, u32)>,
    /// The first bytes of the hash of each block, with which places are checked.
    starts: Vec<[u8; 4]>,
    /// One bit for each block.
    needed: Vec<u64>,
    live: u64,
}

impl Marks {
    /// Marks no block of a pack that contains this.
    pub(crate) fn new(contents: &Contents) -> Self {
        Self {
            frames: contents.frames.iter().map(|frame| (frame.offset, frame.first)).collect(),
            starts: contents.hashes.iter().map(start_of).collect(),
            needed: vec![0; contents.hashes.len().div_ceil(64)],
            live: 0,
        }
    }

    /// Marks the block at a place. Fails if the pack has another block there.
    pub(crate) fn mark(&mut self, hash: &Id, place: &Place) -> Result<()> {
        let wrong = || Error::damaged("index.redb", format!("the place of the block {hash} is wrong"));
        let frame = self.frames.binary_search_by_key(&place.offset, |frame| frame.0).map_err(|_| wrong())?;
        let block = self.frames[frame].1 as usize + usize::from(place.number);
        let end = self.frames.get(frame + 1).map_or(self.starts.len(), |next| next.1 as usize);
        if block >= end || self.starts[block] != start_of(hash) {
            return Err(wrong());
        }
        let bit = 1 << (block % 64);
        self.live += u64::from(self.needed[block / 64] & bit == 0);
        self.needed[block / 64] |= bit;
        Ok(())
    }

    /// Returns the number of marked blocks.
    #[cfg(feature = "remote")]
    pub(crate) fn live(&self) -> u64 {
        self.live
    }

    /// Returns the hashes of the marked blocks of a pack, whose list of blocks is read again.
    pub(crate) fn hashes(&self, inner: &Inner, pack: &Id) -> Result<Vec<Id>> {
        let contents = pack_contents(inner, pack)?;
        if !contents.hashes.iter().map(start_of).eq(self.starts.iter().copied()) {
            return Err(Error::damaged(pack_path(pack), "its list of blocks has changed meanwhile"));
        }
        let is_needed = |block: usize| self.needed[block / 64] & (1 << (block % 64)) != 0;
        let hashes = contents.hashes.into_iter().enumerate().filter(|(block, _)| is_needed(*block));
        Ok(hashes.map(|(_, hash)| hash).collect())
    }
}

fn start_of(hash: &Id) -> [u8; 4] {
    std::array::from_fn(|i| hash.as_bytes()[i])
}

/// Marks the blocks that manifests list.
fn mark(
    inner: &Inner,
    manifests: &BTreeMap<Id, ManifestRow>,
    packs: &[(u32, PackRow)],
) -> Result<BTreeMap<u32, Marks>> {
    let rows: BTreeMap<u32, PackRow> = packs.iter().copied().collect();
    let mut marks = BTreeMap::new();
    for id in manifests.keys() {
        for_each_hashes(&mut open_manifest(&*inner.storage, *id)?, |hashes| {
            let places = inner.read(|index| index.find(hashes))?;
            for (hash, place) in hashes.iter().zip(places) {
                let place = place.ok_or_else(|| {
                    let what = format!("it does not contain the block {hash} of {}", manifest_path(id));
                    Error::damaged("index.redb", what)
                })?;
                mark_block(inner, &rows, &mut marks, hash, &place)?;
            }
            Ok(())
        })?;
    }
    Ok(marks)
}

/// Marks a block. For the first mark in a pack, reads the list of its blocks.
pub(crate) fn mark_block(
    inner: &Inner,
    rows: &BTreeMap<u32, PackRow>,
    marks: &mut BTreeMap<u32, Marks>,
    hash: &Id,
    place: &Place,
) -> Result<()> {
    let marks = match marks.entry(place.pack) {
        Entry::Occupied(entry) => entry.into_mut(),
        Entry::Vacant(entry) => {
            let unknown =
                || Error::damaged("index.redb", format!("it does not have the pack {}", place.pack));
            let row = rows.get(&place.pack).ok_or_else(unknown)?;
            entry.insert(Marks::new(&pack_contents(inner, &row.id)?))
        }
    };
    marks.mark(hash, place)
}

/// Reads the lists of frames and blocks of a pack.
pub(crate) fn pack_contents(inner: &Inner, id: &Id) -> Result<Contents> {
    let path = pack_path(id);
    let file = inner.storage.open(&path).map_err(Error::file("cannot open", inner.path(&path)))?;
    read_contents(&*file).map_err(|wrong| wrong.of(&path))
}

/// Writes the needed blocks of the packs with the numbers `sparse`, which ascend, to new packs.
fn repack(
    inner: &Inner,
    sink: &mut Sink<'_>,
    sparse: &[u32],
    packs: &[(u32, PackRow)],
    marks: &BTreeMap<u32, Marks>,
) -> Result<()> {
    let failed = "cannot compress";
    let mut blocks = Blocks::new(inner);
    let mut encoder = Encoder::new().map_err(Error::memory(failed))?;
    for (number, row) in packs.iter().filter(|(number, _)| sparse.binary_search(number).is_ok()) {
        let Some(marks) = marks.get(number) else { continue };
        for hashes in marks.hashes(inner, &row.id)?.chunks(FRAME_BLOCKS * 64) {
            let bytes = std::sync::Mutex::new(vec![0; hashes.len() * BLOCK]);
            blocks.read(hashes, |number, block| {
                lock(&bytes)[number * BLOCK..][..BLOCK].copy_from_slice(block);
                Ok(())
            })?;
            let bytes = bytes.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
            for (hashes, bytes) in hashes.chunks(FRAME_BLOCKS).zip(bytes.chunks(FRAME_BLOCKS * BLOCK)) {
                sink.push(&encoder.encode(bytes, hashes.to_vec()).map_err(Error::memory(failed))?)?;
            }
        }
    }
    Ok(())
}

/// Returns the files of a folder that the index does not have and that are older than the grace time.
fn orphans(inner: &Inner, folder: &str, known: &BTreeSet<Id>, grace: Duration) -> Result<Vec<String>> {
    let listed = inner.storage.list(folder).map_err(Error::file("cannot list", inner.path(folder)))?;
    let unknown =
        listed.into_iter().filter(|file| file.name.parse().is_ok_and(|id: Id| !known.contains(&id)));
    Ok(unknown
        .filter(|file| is_older(file.modified, grace))
        .map(|file| format!("{folder}/{}", file.name))
        .collect())
}

/// Returns the files in `tmp`, which were left by processes that have ended.
///
/// The caller holds the locks of the files and of the writer, so no process is writing them.
fn temporary(inner: &Inner) -> Result<Vec<String>> {
    let listed = inner.storage.list("tmp").map_err(Error::file("cannot list", inner.path("tmp")))?;
    let ours = listed.into_iter().filter(|file| is_temporary(&file.name));
    Ok(ours.map(|file| format!("tmp/{}", file.name)).collect())
}

/// Returns the files of the cache that belong to no listed snapshot, or all of them.
fn cached(inner: &Inner, needed: &BTreeMap<Id, ManifestRow>, all: bool) -> Result<Vec<String>> {
    let listed = match inner.storage.list(CACHE) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        listed => listed.map_err(Error::file("cannot list", inner.path(CACHE)))?,
    };
    let day = Duration::from_secs(24 * 60 * 60);
    let is_garbage = |file: &crate::storage::Listed| {
        if file.name.starts_with(WRITING) {
            return is_older(file.modified, day); // Another process may be writing it.
        }
        if file.name.starts_with(REMOTE) {
            return all;
        }
        // The store makes no files with other names.
        let id = file.name.strip_suffix(".checked").unwrap_or(&file.name).parse::<Id>();
        id.is_ok_and(|id| all || !needed.get(&id).is_some_and(|row| row.listed))
    };
    Ok(listed.iter().filter(|file| is_garbage(file)).map(|file| format!("{CACHE}/{}", file.name)).collect())
}

fn is_older(modified: SystemTime, grace: Duration) -> bool {
    // A time in the future is not old.
    grace.is_zero() || SystemTime::now().duration_since(modified).is_ok_and(|age| age > grace)
}

fn len(inner: &Inner, path: &str) -> u64 {
    inner.storage.open(path).and_then(|file| file.len()).unwrap_or(0)
}

/// Makes the files in `names/`, which `repair` reads, agree with the index.
fn write_names(inner: &Inner) -> Result<()> {
    let names: BTreeMap<String, Id> = inner.read(index::Reader::names)?.into_iter().collect();
    let listed = inner.storage.list("names").map_err(Error::file("cannot list", inner.path("names")))?;
    for file in &listed {
        let path = format!("names/{}", file.name);
        // The store makes no other files here.
        if is_safe(&file.name) && !names.contains_key(&file.name) {
            inner.storage.remove(&path).map_err(Error::file("cannot remove", inner.path(&path)))?;
        }
    }
    for (name, id) in names.iter().filter(|(name, _)| has_file(name)) {
        if crate::repair::read_name(inner, name)? != Some(*id) {
            write_name(inner, name, *id)?;
        }
    }
    Ok(())
}
