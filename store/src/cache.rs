//! The cache: images of snapshots, and notes of those that were compared with their manifests.
//!
//! A file of the cache is used without being read again if the note beside it says that exactly this file was compared.
//! Whoever can write to the folder can forge both. So a note counts only if nobody but the user could have written it.

use std::fs::{self, File, Metadata};
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use rayon::prelude::*;

use crate::blocks::in_batches;
use crate::chain::open_listed;
use crate::cores::on_all_cores;
use crate::error::{Error, Result};
use crate::format::BLOCK;
use crate::format::runs::Entry;
use crate::id::Id;
use crate::image::write_image;
use crate::index::ManifestRow;
use crate::inner::Inner;
use crate::progress::Observer;
use crate::save::is_zero;
use crate::source::{FileSource, Source, block_ranges};
use crate::storage::folder::{open_regular, refuse_link};

/// The folder of the cache.
pub(crate) const CACHE: &str = "cache";

/// What the names of files begin with that are being written.
pub(crate) const WRITING: &str = "writing-";

/// The greatest length of a note that is read.
const NOTE: u64 = 1024;

/// Returns the path of a snapshot in the cache.
pub(crate) fn cache_path(inner: &Inner, id: &Id) -> PathBuf {
    inner.path(CACHE).join(id.to_string())
}

/// Returns the file of a snapshot in the cache. Writes it first if it is not there or was changed.
pub(crate) fn cached_file(
    inner: &Inner,
    id: Id,
    row: &ManifestRow,
    observer: &mut Observer<'_>,
) -> Result<File> {
    let path = cache_path(inner, &id);
    match open_cached(inner, &id) {
        Ok(file) if is_checked(inner, &file, &path, row) => Ok(file),
        Ok(file) if has_bytes(inner, &file, id, row)? => {
            note_check(inner, &file, &path).map_err(Error::file("cannot write the note of", &path))?;
            Ok(file)
        }
        Ok(_) => fill(inner, &path, id, row, observer),
        // What is no file is replaced.
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::InvalidInput) => {
            fill(inner, &path, id, row, observer)
        }
        Err(error) => Err(Error::file("cannot open", &path)(error)),
    }
}

/// Opens the file of a snapshot in the cache.
pub(crate) fn open_cached(inner: &Inner, id: &Id) -> io::Result<File> {
    let path = cache_path(inner, id);
    refuse_link(&inner.path(CACHE))?;
    refuse_link(&path)?;
    open_regular(&path)
}

/// Writes the snapshot to the cache, reads it back, and compares it with its manifest.
fn fill(inner: &Inner, path: &Path, id: Id, row: &ManifestRow, observer: &mut Observer<'_>) -> Result<File> {
    let failed = || Error::file("cannot write", path);
    let folder = inner.path(CACHE);
    inner.storage.create_folder(CACHE).map_err(Error::file("cannot make", &folder))?;
    let file = tempfile::Builder::new().prefix(WRITING).tempfile_in(&folder).map_err(failed())?;
    write_image(inner, file.as_file(), path, id, row, observer)?;
    let read_back = file.reopen().map_err(failed())?;
    if !has_bytes(inner, &read_back, id, row)? {
        return Err(Error::damaged(
            path.display().to_string(),
            "it does not have the bytes that were written to it",
        ));
    }
    make_read_only(file.as_file()).map_err(failed())?;
    // The bytes need not be durable: after a crash of the system, the time of the note differs or the bytes do.
    file.as_file().sync_all().map_err(failed())?;
    let (_, kept) = file.keep().map_err(|error| failed()(error.error))?;
    fs::rename(&kept, path).map_err(failed())?;
    let file = open_cached(inner, &id).map_err(failed())?;
    note_check(inner, &file, path).map_err(failed())?;
    Ok(file)
}

/// Takes away all rights to write to the file, also those of its owner.
fn make_read_only(file: &File) -> io::Result<()> {
    let mut permissions = file.metadata()?.permissions();
    permissions.set_readonly(true);
    file.set_permissions(permissions)
}

/// Whether the note beside the file says that exactly this file was compared with its manifest.
pub(crate) fn is_checked(inner: &Inner, file: &File, path: &Path, row: &ManifestRow) -> bool {
    let check = || -> io::Result<bool> {
        let metadata = file.metadata()?;
        if metadata.len() != row.len
            || !is_private(&metadata)
            || !is_private(&fs::metadata(inner.path(CACHE))?)
        {
            return Ok(false);
        }
        let note = note_path(path);
        refuse_link(&note)?;
        let note = open_regular(&note)?;
        let mut text = String::new();
        (&note).take(NOTE).read_to_string(&mut text)?;
        Ok(is_private(&note.metadata()?) && text == fingerprint(file)?)
    };
    check().unwrap_or(false) // Without a note that can be read, the caller compares the bytes.
}

/// Whether a file or folder belongs to this user, and nobody else can write to it.
#[cfg(unix)]
fn is_private(metadata: &Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    metadata.uid() == rustix::process::geteuid().as_raw() && metadata.mode() & 0o022 == 0
}

/// Nothing is known of other users. `Extract` uses no file of the cache on these systems.
#[cfg(not(unix))]
fn is_private(_: &Metadata) -> bool {
    true
}

/// Writes the note beside a file that was compared with its manifest.
pub(crate) fn note_check(inner: &Inner, file: &File, path: &Path) -> io::Result<()> {
    // The rename replaces a link. Writing to the path would follow it.
    let mut note = tempfile::Builder::new().prefix(WRITING).tempfile_in(inner.path(CACHE))?;
    note.write_all(fingerprint(file)?.as_bytes())?;
    note.persist(note_path(path))?;
    Ok(())
}

fn note_path(path: &Path) -> PathBuf {
    path.with_extension("checked")
}

/// Returns a text that changes when the file is written to or replaced.
fn fingerprint(file: &File) -> io::Result<String> {
    let metadata = file.metadata()?;
    let modified = metadata.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    #[cfg(unix)]
    let identity = {
        use std::os::unix::fs::MetadataExt;
        format!("{} {} {}.{}", metadata.dev(), metadata.ino(), metadata.ctime(), metadata.ctime_nsec())
    };
    #[cfg(not(unix))]
    let identity = format!("{:?}", metadata.created()?);
    Ok(format!("{} {modified} {identity}", metadata.len()))
}

/// Compares all bytes of a file with a manifest.
fn has_bytes(inner: &Inner, file: &File, id: Id, row: &ManifestRow) -> Result<bool> {
    let failed = || Error::file("cannot read", cache_path(inner, &id));
    if file.metadata().map_err(failed())?.len() != row.len {
        return Ok(false);
    }
    let source = FileSource::new(file).map_err(failed())?;
    let mut same = true;
    let mut next = 0;
    let mut compare = |entries: &[Entry]| -> Result<()> {
        // Bytes between the listed blocks have to be zero.
        let mut tasks: Vec<(u64, u64, &[Entry])> = Vec::new();
        let mut begin = 0;
        while begin < entries.len() {
            let end = entries.len().min(begin + 256);
            let until = entries[end - 1].0 + 1;
            tasks.push((next, until, &entries[begin..end]));
            (next, begin) = (until, end);
        }
        let results: Result<Vec<bool>> = on_all_cores(|| {
            tasks.par_iter().map(|task| has_blocks(&source, task).map_err(failed())).collect()
        });
        same &= results?.into_iter().all(|same| same);
        Ok(())
    };
    in_batches(open_listed(&*inner.storage, id, row)?.entries()?, &mut compare)?;
    Ok(same && has_blocks(&source, &(next, row.len / BLOCK as u64, &[])).map_err(failed())?)
}

/// Whether the blocks of a range are these, and all others are zero.
fn has_blocks(source: &FileSource<'_>, (from, to, entries): &(u64, u64, &[Entry])) -> io::Result<bool> {
    let mut entries = entries.iter().peekable();
    let mut buffer = vec![0; 64 * BLOCK];
    let data = source.data_within(*from * BLOCK as u64..*to * BLOCK as u64)?;
    let mut listed_outside = Vec::new();
    for range in block_ranges(data, *to) {
        let mut at = range.start.max(*from);
        while at < range.end {
            let count = (range.end - at).min(64);
            let bytes = &mut buffer[..count as usize * BLOCK];
            source.read_at(bytes, at * BLOCK as u64)?;
            for (block, bytes) in (at..).zip(bytes.chunks_exact(BLOCK)) {
                while let Some(entry) = entries.next_if(|entry| entry.0 < block) {
                    listed_outside.push(*entry);
                }
                let hash = if is_zero(bytes) { None } else { Some(Id::of(bytes)) };
                let expected = entries.next_if(|entry| entry.0 == block).and_then(|entry| entry.1);
                if hash != expected {
                    return Ok(false);
                }
            }
            at += count;
        }
    }
    // A listed block is not zero, so it cannot be in a hole.
    Ok(listed_outside.is_empty() && entries.next().is_none())
}
