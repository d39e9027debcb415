//! Mapping: writes a snapshot to a file in the cache once, and maps that file.

#![allow(unsafe_code)]

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use memsnap::Snapshot;
use rayon::prelude::*;

use crate::blocks::in_batches;
use crate::chain::open_listed;
use crate::cores::on_all_cores;
use crate::error::{Error, Result};
use crate::extract::write_image;
use crate::format::BLOCK;
use crate::format::runs::Entry;
use crate::id::{Id, Reference};
use crate::index::ManifestRow;
use crate::inner::Inner;
use crate::progress::Observer;
use crate::save::is_zero;
use crate::saved::Saved;
use crate::source::{FileSource, Source, block_ranges};

/// Returns the path of the file of a snapshot in the cache.
pub(crate) fn cache_path(inner: &Inner, id: &Id) -> PathBuf {
    inner.path("cache").join(id.to_string())
}

/// Maps a snapshot from the cache. Writes the file first if it does not exist or was changed.
///
/// # Safety
///
/// As long as the snapshot exists, or one that descends from it, nothing changes the files in the folder `cache`.
pub(crate) unsafe fn map(inner: &Inner, id: &Reference) -> Result<Saved> {
    let (id, row) = inner.resolve(id)?;
    let path = cache_path(inner, &id);
    let failed = || Error::file("cannot map", &path);
    let gone = |error| inner.or_removed(id, error);
    let file = match File::open(&path) {
        Ok(file) if is_checked(&file, &path, &row) => file,
        Ok(file) if has_bytes(inner, &file, id, &row).map_err(gone)? => {
            note_check(&file, &path).map_err(failed())?;
            file
        }
        Ok(_) => fill(inner, &path, id, &row).map_err(gone)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fill(inner, &path, id, &row).map_err(gone)?
        }
        Err(error) => return Err(failed()(error)),
    };
    // SAFETY: the caller promises that nothing changes the file.
    let snapshot = unsafe { Snapshot::map_file(&file) }.map_err(failed())?;
    let (Ok(len), Ok(content_len)) = (usize::try_from(row.len), usize::try_from(row.content_len)) else {
        return Err(Error::invalid(format!(
            "cannot map a snapshot of {} bytes: it is longer than the address space of this system",
            row.len
        )));
    };
    let snapshot = snapshot.resized(len, content_len).map_err(failed())?;
    Ok(Saved::new(id, snapshot))
}

/// Writes the snapshot to a file in the cache, reads it back, and compares it with the manifest.
fn fill(inner: &Inner, path: &Path, id: Id, row: &ManifestRow) -> Result<File> {
    let failed = || Error::file("cannot write", path);
    let folder = inner.path("cache");
    make_folder(&folder).map_err(Error::file("cannot make", &folder))?;
    let file = tempfile::Builder::new().prefix("writing-").tempfile_in(&folder).map_err(failed())?;
    write_image(inner, file.as_file(), path, id, row, &mut Observer::none())?;
    let read_back = file.reopen().map_err(failed())?;
    if !has_bytes(inner, &read_back, id, row)? {
        return Err(Error::damaged(
            path.display().to_string(),
            "the bytes that were read back are not those that were written",
        ));
    }
    make_read_only(file.as_file()).map_err(failed())?;
    // The file is synced before its note is written. Otherwise, after a crash of the system, a note could exist for a
    // file whose bytes were lost.
    file.as_file().sync_all().map_err(failed())?;
    let (_, kept) = file.keep().map_err(|error| failed()(error.error))?;
    fs::rename(&kept, path).map_err(failed())?;
    let file = File::open(path).map_err(failed())?;
    note_check(&file, path).map_err(failed())?;
    Ok(file)
}

/// Makes a folder that, on Unix, only its owner can open.
fn make_folder(path: &Path) -> io::Result<()> {
    #[cfg(unix)]
    let made = std::os::unix::fs::DirBuilderExt::mode(&mut fs::DirBuilder::new(), 0o700).create(path);
    #[cfg(not(unix))]
    let made = fs::create_dir(path);
    match made {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

/// Makes the file read-only, also for its owner.
fn make_read_only(file: &File) -> io::Result<()> {
    let mut permissions = file.metadata()?.permissions();
    permissions.set_readonly(true);
    file.set_permissions(permissions)
}

/// Returns whether the note beside the file says that exactly this file was compared with its manifest.
pub(crate) fn is_checked(file: &File, path: &Path, row: &ManifestRow) -> bool {
    let Ok(note) = fs::read_to_string(note_path(path)) else { return false };
    let len = file.metadata().map_or(0, |metadata| metadata.len());
    len == row.len && fingerprint(file).is_ok_and(|fingerprint| fingerprint == note)
}

fn note_check(file: &File, path: &Path) -> io::Result<()> {
    fs::write(note_path(path), fingerprint(file)?)
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

/// Returns whether all bytes of a file are those of a manifest.
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

/// Returns whether the listed blocks of a range have these hashes, and all its other blocks are zero.
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
