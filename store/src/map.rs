//! Mapping: writes a snapshot to a file in the cache once, and maps that file.

#![allow(unsafe_code)]

use memsnap::Snapshot;

use crate::cache::{cache_path, cached_file};
use crate::error::{Error, Result};
use crate::id::Reference;
use crate::inner::Inner;
use crate::progress::Observer;
use crate::saved::Saved;

/// Maps a snapshot from the cache. Writes the file first if it does not exist or was changed.
///
/// # Safety
///
/// As long as the snapshot exists, or one that descends from it, nothing changes the files in the folder `cache`.
pub(crate) unsafe fn map(inner: &Inner, id: &Reference) -> Result<Saved> {
    let (id, row) = inner.resolve(id)?;
    let path = cache_path(inner, &id);
    let failed = || Error::file("cannot map", &path);
    let file =
        cached_file(inner, id, &row, &mut Observer::none()).map_err(|error| inner.or_removed(id, error))?;
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
