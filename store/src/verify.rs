//! Verification: checks the files of a repository.

use std::collections::HashMap;
use std::io::ErrorKind;

use rayon::prelude::*;

use crate::blocks::pack_path;
use crate::chain::{for_each_hashes, manifest_path, open_manifest};
use crate::collect::pack_contents;
use crate::cores::on_all_cores;
use crate::error::{Error, Result};
use crate::format::BLOCK;
use crate::format::pack::{Contents, Decoder, read_contents};
use crate::id::Id;
use crate::index::{ManifestRow, PackRow, Place};
use crate::inner::Inner;
use crate::sink::places;
use crate::storage::ReadFile;

/// The checks that [`Repository::verify`](crate::Repository::verify) makes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Depth {
    /// Checks manifests, the index, and the lists of blocks of the packs.
    ///
    /// The hash of each manifest has to be its id, the index has to have all blocks that the manifests list, and the
    /// places in the index have to agree with the lists of blocks of the packs.
    Structure,
    /// Checks the structure, and compares every pack and every block with its hash.
    Data,
}

/// The result of [`Repository::verify`](crate::Repository::verify).
///
/// # Examples
///
/// ```
/// use memsnap_store::{Depth, Repository};
///
/// # let folder = tempfile::tempdir().unwrap();
/// # let path = folder.path().join("repository");
/// let repository = Repository::create(&path)?;
/// assert!(repository.verify(Depth::Data)?.problems.is_empty());
/// # Ok::<(), memsnap_store::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Verified {
    /// The number of manifests that were checked.
    pub manifests: u64,
    /// The number of packs that were checked.
    pub packs: u64,
    /// The number of blocks in these packs.
    pub blocks: u64,
    /// The problems, with one sentence for each. Empty if the repository is intact.
    pub problems: Vec<String>,
}

pub(crate) fn verify(inner: &Inner, depth: Depth) -> Result<Verified> {
    // A collection could delete packs after they were listed.
    let _files = inner.keep_files()?;
    let inner = &inner.patient();
    // A save can add a snapshot and its name meanwhile, so all of these are from the same time.
    let (manifests, packs, names) =
        inner.read(|index| Ok((index.manifests()?, index.packs()?, index.names()?)))?;
    let mut found = Verified::default();
    let rows: HashMap<Id, &ManifestRow> = manifests.iter().map(|(id, row)| (*id, row)).collect();
    let mut places = Places::new(inner, &packs);
    for (id, row) in &manifests {
        found.manifests += 1;
        if let Err(error) = check_manifest(inner, *id, row, &rows, &mut places) {
            found.problems.push(problem(error)?);
        }
    }
    let check = |(number, row): &(u32, PackRow)| match check_pack(inner, *number, row, depth) {
        Ok(blocks) => Ok(Ok(blocks)),
        Err(error) => problem(error).map(Err),
    };
    let checked: Vec<Result<u64, String>> =
        on_all_cores(|| packs.par_iter().map(check).collect::<Result<_>>())?;
    for result in checked {
        found.packs += 1;
        match result {
            Ok(blocks) => found.blocks += blocks,
            Err(problem) => found.problems.push(problem),
        }
    }
    for (name, id) in names {
        if !rows.get(&id).is_some_and(|row| row.listed) {
            found.problems.push(format!("index.redb is damaged: the name {name} stands for no snapshot"));
        }
    }
    Ok(found)
}

/// Returns the message of an error about the files of the repository. Returns other errors as errors.
///
/// A lock that was not free in time, for example, says nothing about the files. A program that is told of damage may
/// remove the snapshot, or repair the repository.
fn problem(error: Error) -> Result<String> {
    let is_about_files = match &error {
        Error::Damaged { .. } | Error::Newer { .. } | Error::Mixed { .. } => true,
        // A file is missing or too short, or the storage refuses it, for example because it is a link.
        Error::File { source, .. } => {
            matches!(source.kind(), ErrorKind::NotFound | ErrorKind::UnexpectedEof | ErrorKind::InvalidInput)
        }
        _ => false,
    };
    if is_about_files { Ok(error.to_string()) } else { Err(error) }
}

/// Checks that a manifest agrees with its id and the index, and that the index has its base and blocks.
fn check_manifest(
    inner: &Inner,
    id: Id,
    row: &ManifestRow,
    rows: &HashMap<Id, &ManifestRow>,
    places: &mut Places<'_>,
) -> Result<()> {
    let path = manifest_path(&id);
    let mut reader = open_manifest(&*inner.storage, id)?;
    let header = &reader.header;
    let as_listed =
        (header.parent, header.base, header.len, header.content_len, header.depth, header.entries);
    if as_listed != (row.parent, row.base, row.len, row.content_len, row.depth, row.entries) {
        return Err(Error::damaged("index.redb", format!("it does not agree with {path}")));
    }
    if let Some(base) = header.base {
        let Some(below) = rows.get(&base) else {
            return Err(Error::damaged(path, format!("it is relative to {base}, which is missing")));
        };
        if below.depth.checked_add(1) != Some(header.depth) {
            return Err(Error::damaged(
                path,
                format!("its depth is {}, that of its base {}", header.depth, below.depth),
            ));
        }
    }
    for_each_hashes(&mut reader, |hashes| {
        let found = inner.read(|index| index.find(hashes))?;
        if let Some((hash, _)) = hashes.iter().zip(&found).find(|(_, place)| place.is_none()) {
            return Err(Error::damaged(&*path, format!("its block {hash} is in no pack")));
        }
        places.check(hashes.iter().copied().zip(found.into_iter().flatten()).collect())
    })
}

/// The number of packs whose lists [`Places`] keeps in memory. A list has at most 3 MiB.
const KEPT: usize = 16;

/// Compares places in the index with the lists of blocks of the packs.
struct Places<'a> {
    inner: &'a Inner,
    rows: HashMap<u32, &'a PackRow>,
    contents: HashMap<u32, Contents>,
}

impl<'a> Places<'a> {
    fn new(inner: &'a Inner, packs: &'a [(u32, PackRow)]) -> Self {
        let rows = packs.iter().map(|(number, row)| (*number, row)).collect();
        Self { inner, rows, contents: HashMap::new() }
    }

    fn check(&mut self, mut blocks: Vec<(Id, Place)>) -> Result<()> {
        blocks.sort_unstable_by_key(|(_, place)| (place.pack, place.offset));
        for (hash, place) in &blocks {
            let wrong = || Error::damaged("index.redb", format!("the place of the block {hash} is wrong"));
            if !self.contents.contains_key(&place.pack) {
                let pack = match self.rows.get(&place.pack) {
                    Some(row) => row.id,
                    // A save or a pull has added the pack since the packs were listed.
                    None => self.inner.read(|index| index.pack(place.pack))?.ok_or_else(wrong)?.id,
                };
                let contents = pack_contents(self.inner, &pack)?;
                if self.contents.len() >= KEPT {
                    self.contents.clear();
                }
                self.contents.insert(place.pack, contents);
            }
            let contents = self.contents.get(&place.pack).ok_or_else(wrong)?;
            let frame = contents.frames.binary_search_by_key(&place.offset, |frame| frame.offset);
            let frame = contents.frames.get(frame.map_err(|_| wrong())?).ok_or_else(wrong)?;
            let agrees = (frame.stored, frame.blocks, frame.encoding as u8)
                == (place.stored, place.blocks, place.encoding);
            let found = contents.hashes.get(frame.first as usize + usize::from(place.number));
            if !agrees || found != Some(hash) {
                return Err(wrong());
            }
        }
        Ok(())
    }
}

/// Checks a pack. Returns the number of its blocks.
fn check_pack(inner: &Inner, number: u32, row: &PackRow, depth: Depth) -> Result<u64> {
    let path = pack_path(&row.id);
    let file = inner.storage.open(&path).map_err(Error::file("cannot open", inner.path(&path)))?;
    let len = file.len().map_err(Error::file("cannot read", inner.path(&path)))?;
    if len != row.len {
        return Err(Error::damaged(path, format!("it has {len} bytes instead of {}", row.len)));
    }
    let contents = pack_contents(inner, &row.id)?;
    if contents.hashes.len() != row.blocks as usize {
        return Err(Error::damaged(
            path,
            format!("it has {} blocks instead of {}", contents.hashes.len(), row.blocks),
        ));
    }
    check_places(inner, number, &contents)?;
    if depth == Depth::Data {
        check_data(inner, &*file, row.id)?;
    }
    Ok(contents.hashes.len() as u64)
}

/// Checks that the places of blocks in a pack agree with the list of its blocks.
///
/// A block may have its place in another pack, or no place. The index loses the place of a block that nothing needs if
/// the block was stored a second time and a collection deletes the second pack. [`check_manifest`] checks that each
/// needed block has a place.
fn check_places(inner: &Inner, number: u32, contents: &Contents) -> Result<()> {
    let mut entries: Vec<_> = places(number, contents).collect();
    entries.sort_unstable_by_key(|entry| entry.0);
    // A pull copies whole frames, so a pack can have a block twice.
    let blocks: Vec<&[(Id, Place)]> = entries.chunk_by(|a, b| a.0 == b.0).collect();
    let hashes: Vec<Id> = blocks.iter().map(|same| same[0].0).collect();
    for (same, found) in blocks.iter().zip(inner.read(|index| index.find(&hashes))?) {
        let Some(found) = found.filter(|found| found.pack == number) else { continue };
        if !same.iter().any(|(_, place)| *place == found) {
            let what = format!("the place of the block {} is wrong", same[0].0);
            return Err(Error::damaged("index.redb", what));
        }
    }
    Ok(())
}

/// Reads all of a pack, and compares it with its name, and its blocks with their hashes.
///
/// Returns its lists.
pub(crate) fn check_data(inner: &Inner, file: &dyn ReadFile, id: Id) -> Result<Contents> {
    let path = pack_path(&id);
    let failed = || Error::file("cannot read", inner.path(&path));
    let len = file.len().map_err(failed())?;
    let (mut hasher, mut at, mut buffer) = (blake3::Hasher::new(), 0, vec![0; 1 << 20]);
    while at < len {
        let part = usize::try_from(len - at).unwrap_or(usize::MAX).min(buffer.len());
        file.read_exact_at(&mut buffer[..part], at).map_err(failed())?;
        hasher.update(&buffer[..part]);
        at += part as u64;
    }
    if Id::from(hasher.finalize()) != id {
        return Err(Error::damaged(path, "its bytes do not have the hash that is its name"));
    }
    let contents = read_contents(file).map_err(|wrong| wrong.of(&path))?;
    let mut decoder = Decoder::new().map_err(Error::memory("cannot decompress"))?;
    for frame in &contents.frames {
        buffer.resize(frame.stored as usize, 0);
        file.read_exact_at(&mut buffer, frame.offset.into()).map_err(failed())?;
        let bytes = decoder
            .decode(&buffer, frame.encoding, frame.blocks.into())
            .map_err(|what| Error::damaged(&*path, format!("the frame at {}: {what}", frame.offset)))?;
        let hashes = &contents.hashes[frame.first as usize..][..frame.blocks.into()];
        for (hash, bytes) in hashes.iter().zip(bytes.chunks_exact(BLOCK)) {
            if Id::of(bytes) != *hash {
                let what = format!("the block {hash} at {} has other bytes", frame.offset);
                return Err(Error::damaged(path, what));
            }
        }
    }
    Ok(contents)
}
